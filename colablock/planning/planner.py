"""Make a plan from a resolution and a snapshot.  One function per rule: keep, move, absent, broken, order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import Broken, DependencyGraph, StateChange, find_broken
from colablock.environment.removable import (
    is_out_of_reach,
    precedes_site,
    removal_hint,
    why_irremovable,
)
from colablock.environment.requirements import parse_requirement
from colablock.environment.snapshot import Installed
from colablock.errors import Refused
from colablock.index.candidates import CandidateOrigin
from colablock.planning.plan import Action, Artifact, Breakage, Kept, Plan, Remedy, Step, Target

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix, PackageEntry
    from colablock.resolver.model import Pin, Resolution

__all__ = ["Repair", "make_plan"]


class Repair(Protocol):
    """Finds a version of one broken distribution that fits a state.  Nothing else moves."""

    def look_ahead(self, names: Iterable[NormalizedName]) -> None:
        """Prefetch what repairing *names* is likely to need."""

    def refusal(self, name: NormalizedName) -> str | None:
        """Return why *name* must not be replaced; None if it may be."""

    def __call__(self, name: NormalizedName, after: Mapping[NormalizedName, Installed]) -> Resolution | None:
        """Return the resolution with *name* repaired; None where nothing fits."""

    def tried(self, name: NormalizedName) -> str | None:
        """Return a sentence about the versions that do not repair *name*; None if none was tried."""


@dataclass
class _PlanDraft:
    """A plan in the making: pins by name (the stack's, then those of repairs), and the removals."""

    snapshot: Snapshot
    graph: DependencyGraph  # of the snapshot
    pins: dict[NormalizedName, Pin]
    entries: Mapping[NormalizedName, PackageEntry]
    removed: dict[NormalizedName, str] = field(default_factory=dict)  # name → reason
    repaired: dict[NormalizedName, str] = field(default_factory=dict)
    breakages: list[Breakage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def change(self) -> StateChange:
        """Return the change so far."""
        moved = {
            name: Installed(name=name, version=str(pin.version), requires=(*pin.requires, *pin.optional))
            for name, pin in self.pins.items()
            if not pin.is_installed
        }
        return StateChange(moved=moved, removed=frozenset(self.removed), repaired=frozenset(self.repaired))


def make_plan(
    *,
    matrix: Matrix,
    resolution: Resolution,
    snapshot: Snapshot,
    target: Target,
    why_target: str = "",
    repair: Repair | None = None,
    broken: Remedy | None = None,
    fingerprint: str = "",
    notes: Iterable[str] = (),
) -> Plan:
    """Return the ordered steps from *snapshot* to *resolution*, each with its reason.

    By default a directly broken distribution is repaired if *repair* finds a
    version, and removed otherwise; one that only a removal breaks is left and
    listed.  *broken* overrides the remedy of every directly broken distribution.
    Raises Refused when a rule forbids the change.
    """
    entries = {entry.name: entry for entry in resolution.request.asked}
    draft = _PlanDraft(
        snapshot=snapshot,
        graph=DependencyGraph.of(snapshot),
        pins=dict(resolution.pins),
        entries=entries,
    )
    _remove_absent(draft, matrix)
    _judge_broken(draft, repair, broken)
    steps = [*_removals(draft), *_installations(draft, resolution)]
    changed = {step.name for step in steps}
    return Plan(
        matrix=matrix.name,
        matrix_digest=matrix.digest,
        variant=matrix.variant,
        target=target,
        why_target=why_target,
        python=snapshot.python,
        python_version=str(snapshot.environment.python_version),
        steps=tuple(steps),
        kept=tuple(_kept(draft)),
        breakages=tuple(draft.breakages),
        unknown=_unknown(snapshot, steps),
        restart={name: modules for name, modules in sorted(snapshot.loaded.items()) if name in changed},
        fingerprint=fingerprint,
        notes=(*notes, *draft.notes, *_tried(draft, repair)),
        requirements=tuple(entry.requirement for entry in resolution.request.asked),
    )


def _tried(draft: _PlanDraft, repair: Repair | None) -> Iterator[str]:
    """Yield what was tried to repair the distributions that are removed or left broken."""
    for item in draft.breakages:
        told = repair.tried(item.name) if repair is not None and item.remedy is not Remedy.REPAIR else None
        if told is not None and item.direct:
            yield told


def _unknown(snapshot: Snapshot, steps: Iterable[Step]) -> tuple[NormalizedName, ...]:
    """Return the distributions without recorded requirements, which a replacement may break unnoticed."""
    if not any(step.action is Action.REPLACE for step in steps):
        return ()
    return tuple(sorted(name for name, there in snapshot.installed.items() if not there.is_known))


def _remove_absent(draft: _PlanDraft, matrix: Matrix) -> None:
    """Remove the installed distributions that ``[absent]`` excludes, unless the resolution moves them."""
    needed = _needed_by_protected(draft)
    for absent in matrix.absent:
        there = draft.snapshot.installed.get(absent.name)
        if there is None or absent.name in draft.pins:
            continue
        if absent.specifier.contains(Version(there.version), prereleases=True):
            is_protected = absent.name in draft.snapshot.protected
            if fixed := _why_kept(draft, absent.name):
                message = f"{absent.path} wants {absent.name} {there.version} away, but {fixed}"
                raise Refused(message, hint="`--into env` makes an environment without it")
            if is_protected or absent.name in needed:
                why = "it is protected" if is_protected else "what is protected needs it"
                message = f"{absent.path} wants {absent.name} {there.version} away, and {why} here"
                raise Refused(message, hint="`--into env` makes an environment without it")
            draft.removed[absent.name] = (
                absent.why or f"{absent.path} excludes {absent.name}{absent.specifier}"
            )


def _judge_broken(draft: _PlanDraft, repair: Repair | None, override: Remedy | None) -> None:
    """Choose a remedy for each newly broken distribution, until no more break directly.

    A later move or removal may break a repaired distribution again.  It is repaired once more
    where a version fits.  Else its repair stays, and it is listed as one that is left broken.
    """
    needed = _needed_by_protected(draft) | draft.snapshot.protected
    decided: dict[NormalizedName, Breakage] = {}
    again: set[NormalizedName] = set()
    while True:
        found = find_broken(draft.snapshot, draft.change(), draft.graph)
        pending = [
            item
            for item in found.values()
            if (item.name in draft.repaired and item.name not in again)
            or (item.name not in decided and item.direct)
        ]
        if not pending:
            break
        if repair is not None and override in {None, Remedy.REPAIR}:
            repair.look_ahead([item.name for item in pending])
        for item in pending:
            if item.name in draft.repaired:
                again.add(item.name)
                _repair_again(draft, item.name, repair)
            else:
                decided[item.name] = _remedy_for(draft, item, repair, override, needed)
    left = [
        _breakage(item, Remedy.LEAVE, _because(draft, item))
        for item in found.values()
        if item.name not in decided or item.name in draft.repaired
    ]
    draft.breakages = [*decided.values(), *left]


def _repair_again(draft: _PlanDraft, name: NormalizedName, repair: Repair | None) -> None:
    """Replace the repair of *name* by one that fits the state as it is now, if there is one."""
    reason, pin = draft.repaired.pop(name), draft.pins.pop(name)
    fixed = repair(name, draft.change().applied_to(draft.snapshot.installed)) if repair else None
    draft.pins[name] = fixed.pins[name] if fixed is not None else pin
    draft.repaired[name] = reason


def _remedy_for(
    draft: _PlanDraft,
    item: Broken,
    repair: Repair | None,
    override: Remedy | None,
    needed: frozenset[NormalizedName],
) -> Breakage:
    """Repair, remove or leave one directly broken distribution; return the remedy with its reasons."""
    because = _because(draft, item)
    reason = ", ".join(reversed(because))
    if override is Remedy.LEAVE or (override is Remedy.REMOVE and item.name in needed):
        return _breakage(item, Remedy.LEAVE, because)
    if (kept := _why_kept(draft, item.name)) is not None:
        return _breakage(item, Remedy.LEAVE, (*because, kept))
    if (
        override is not Remedy.REMOVE
        and repair is not None
        and (why := repair.refusal(item.name)) is not None
    ):
        return _breakage(item, Remedy.LEAVE, (*because, why))
    fixed = None
    if override is not Remedy.REMOVE and repair is not None:
        fixed = repair(item.name, draft.change().applied_to(draft.snapshot.installed))
    if fixed is not None:
        draft.repaired[item.name] = reason
        draft.pins.update({name: pin for name, pin in fixed.pins.items() if not pin.is_installed})
        return _breakage(item, Remedy.REPAIR, because)
    if override is Remedy.REPAIR or item.name in needed:
        return _breakage(item, Remedy.LEAVE, because)
    draft.removed[item.name] = reason
    return _breakage(item, Remedy.REMOVE, because)


def _why_kept(draft: _PlanDraft, name: NormalizedName) -> str | None:
    """Return why *name* can be neither removed nor replaced where it is; None if it can be."""
    there = draft.snapshot.installed.get(name)
    if there is not None and is_out_of_reach(draft.snapshot, there):
        return f"it is out of reach: `{there.path}` is outside of `{draft.snapshot.prefix}`"
    why = why_irremovable(draft.snapshot, name)
    return None if why is None else f"{name} cannot be removed: {why}"


def _refuse_irremovable(draft: _PlanDraft, name: NormalizedName) -> None:
    """Raise Refused if a new version of *name* would not take the place of the installed one."""
    snapshot = draft.snapshot
    there = snapshot.installed.get(name) or Installed(name=name, version="")
    if (why := why_irremovable(snapshot, name)) is not None:
        what = f"`{name}` {there.version}".rstrip()
        message = f"{what} cannot be replaced in `{snapshot.prefix}`: {why}"
        raise Refused(message, hint=f"{removal_hint(there)}; `--into env` needs no change here")
    if is_out_of_reach(snapshot, there) and precedes_site(snapshot, there):
        raise Refused(
            f"`{name}` {there.version} is out of reach, and would hide a new version: `{there.path}` comes"
            f" before `{snapshot.site}` on the import path",
            hint="Remove it with what installed it, or use an isolated environment, with `--into env`",
        )


def _breakage(item: Broken, remedy: Remedy, because: tuple[str, ...]) -> Breakage:
    return Breakage(
        name=item.name,
        version=item.version,
        requirement=item.requirement,
        direct=item.direct,
        because=because,
        remedy=remedy,
    )


def _moved(draft: _PlanDraft, name: NormalizedName) -> str:
    before = draft.snapshot.installed[name].version
    pin = draft.pins.get(name)
    if name in draft.removed or pin is None:
        return f"{name} {before} is removed"
    return f"{name} {before} becomes {pin.version}"


def _because(draft: _PlanDraft, item: Broken) -> tuple[str, ...]:
    """Return the chain from the moved or removed distribution down to *item*, one sentence per link."""
    return (_moved(draft, item.origin), *item.links)


def _needed_by_protected(draft: _PlanDraft) -> frozenset[NormalizedName]:
    """Return what protected distributions require, by the extras that they ask for too: never removed."""
    nodes = draft.graph.nodes(sorted(draft.snapshot.protected))
    return frozenset(demand.target for node in nodes for demand in draft.graph.demands_of(node))


def _removals(draft: _PlanDraft) -> list[Step]:
    """Return the removals: dependents before their dependencies."""
    names = _in_order(draft.removed, lambda name: _required_names(draft.snapshot.installed[name].requires))
    return [
        Step(
            action=Action.REMOVE,
            name=name,
            reason=draft.removed[name],
            previous=draft.snapshot.installed[name].version,
        )
        for name in reversed(names)
    ]


def _installations(draft: _PlanDraft, resolution: Resolution) -> list[Step]:
    """Return the replacements and installations: dependencies before their dependents."""
    names = [name for name, pin in draft.pins.items() if not pin.is_installed]
    ordered = _in_order(names, lambda name: _required_names(draft.pins[name].requires))
    steps = []
    for name in ordered:
        if name in draft.snapshot.unreadable:
            message = (
                f"{name} is installed with a version that cannot be read, so it cannot be replaced safely"
            )
            raise Refused(message, hint=f"Remove it by hand: `uv pip uninstall {name}`")
        _refuse_irremovable(draft, name)
        pin = draft.pins[name]
        before = draft.snapshot.installed.get(name)
        if before is not None and is_out_of_reach(draft.snapshot, before):
            draft.notes.append(f"{name} {before.version} is out of reach, and stays in `{before.path}`")
            before = None
        steps.append(
            Step(
                action=Action.REPLACE if before else Action.INSTALL,
                name=name,
                reason=_reason(draft, pin, resolution),
                version=str(pin.version),
                previous=before.version if before else None,
                artifact=_artifact(pin, draft.entries.get(name)),
                requested=any(parent.name is None for parent in pin.parents) and name not in draft.repaired,
            )
        )
    return steps


def _reason(draft: _PlanDraft, pin: Pin, resolution: Resolution) -> str:
    """Return the reason for this version: the matrix entry, the dependent, or the repair."""
    if pin.name in draft.repaired:
        return f"{draft.repaired[pin.name]}; {pin.version} fits"
    roots = [parent for parent in pin.parents if parent.name is None]
    needs = [parent for parent in pin.parents if parent.name is not None]
    if roots:
        entry = draft.entries.get(pin.name)
        why = f": {entry.why}" if entry is not None and entry.why else ""
        return f"{roots[0].path} asks for {roots[0].requirement}{why}"
    before = draft.snapshot.installed.get(pin.name)
    movers = [one for one in needs if before is not None and _excludes(one.requirement, before.version)]
    if movers or (needs and pin.name not in resolution.released):
        parent = (movers or needs)[0]
        version = f" {draft.pins[parent.name].version}" if parent.name in draft.pins else ""
        return f"{parent.name}{version} needs {parent.requirement}"
    return resolution.released.get(pin.name, "part of the solution")


def _excludes(line: str, version: str) -> bool:
    requirement = parse_requirement(line)
    return requirement is not None and not requirement.specifier.contains(version, prereleases=True)


def _kept(draft: _PlanDraft) -> list[Kept]:
    kept = []
    for name, pin in sorted(draft.pins.items()):
        if pin.is_installed and pin.candidate.installed is not None:
            asked = pin.parents[0] if pin.parents else None
            reason = (
                f"meets {asked.requirement}" + (f" of {asked.name or asked.path}") if asked else "is there"
            )
            kept.append(Kept(name=name, version=pin.candidate.installed.version, reason=reason))
    return kept


def _artifact(pin: Pin, entry: PackageEntry | None) -> Artifact | None:
    file = pin.candidate.file
    if file is None:
        return None
    made = pin.candidate.origin is not CandidateOrigin.LOCK  # a lock names the rebuilt wheel itself
    rebuilt = entry.path if entry is not None and entry.is_rebuilt and made else None
    return Artifact(
        name=pin.name,
        version=str(pin.version),
        filename=file.filename,
        url=file.url,
        hashes=dict(file.hashes),
        size=file.size,
        index=file.index,
        build=not file.is_wheel and rebuilt is None,
        rebuilt=rebuilt,
        direct=pin.candidate.origin is CandidateOrigin.DIRECT,
        requires=tuple(pin.requires),
        extras=tuple(sorted(pin.extras)),
    )


def _required_names(lines: Iterable[str]) -> set[NormalizedName]:
    parsed = (parse_requirement(line.split(" @ ")[0]) for line in lines)
    return {canonicalize_name(requirement.name) for requirement in parsed if requirement is not None}


def _in_order(
    names: Iterable[NormalizedName], needs: Callable[[NormalizedName], set[NormalizedName]]
) -> list[NormalizedName]:
    """Return *names* in topological order, dependencies first; cycles fall back to alphabetical order."""
    waiting = {name: needs(name) for name in sorted(names)}
    users: defaultdict[NormalizedName, list[NormalizedName]] = defaultdict(list)
    for name, required in waiting.items():
        waiting[name] = (required & waiting.keys()) - {name}
        for needed in waiting[name]:
            users[needed].append(name)
    ordered: list[NormalizedName] = []
    ready = sorted(name for name, required in waiting.items() if not required)
    while waiting:
        if not ready:  # a cycle: take the one with the fewest open dependencies
            ready = [min(waiting, key=lambda name: (len(waiting[name]), name))]
        name = ready.pop(0)
        del waiting[name]
        ordered.append(name)
        for user in users[name]:
            if user in waiting and name in waiting[user]:
                waiting[user] = waiting[user] - {name}
                if not waiting[user]:
                    ready.append(user)
    return ordered
