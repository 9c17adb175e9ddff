"""Make a plan from a resolution and a snapshot.  One function per rule: keep, move, absent, broken, order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import DependencyGraph
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
from colablock.matrix.model import is_addition
from colablock.planning.plan import Action, Artifact, Breakage, Kept, Plan, Remedy, Step, Target
from colablock.planning.remedies import PlanDraft, Repair, judge_broken, needed_by_protected, why_kept
from colablock.planning.shared_files import builds_in

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix, PackageEntry
    from colablock.resolver.model import Parent, Pin, Resolution

__all__ = ["make_plan"]


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
    builds: Mapping[NormalizedName, frozenset[NormalizedName]] | None = None,
    listed: Collection[NormalizedName] = (),
) -> Plan:
    """Return the ordered steps from *snapshot* to *resolution*, each with its reason.

    By default a directly broken distribution is repaired if *repair* finds a
    version, and removed otherwise; one that only a removal breaks is left and
    listed.  *broken* overrides the remedy of every directly broken distribution.
    *builds* are the other builds of each distribution, if they are known already, also with the
    modules of wheels to install; those of *listed* are.
    Raises Refused when a rule forbids the change.
    """
    entries = {entry.name: entry for entry in resolution.request.asked}
    snapshot = replace(snapshot, shared=builds_in(snapshot) if builds is None else builds)
    draft = PlanDraft(
        snapshot=snapshot,
        graph=DependencyGraph.of(snapshot),
        pins=dict(resolution.pins),
        entries=entries,
        stack=frozenset(resolution.pins),
    )
    _remove_absent(draft, matrix)
    judge_broken(draft, repair, broken)
    breakages = tuple(_with_tried(one, repair) for one in draft.breakages)
    _refuse_mixed(draft, listed)
    steps = [*_removals(draft), *_installations(draft, resolution)]
    stale = {step.name: snapshot.loaded_otherwise(step.name, step.version) for step in steps}
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
        breakages=breakages,
        unknown=_unknown(snapshot, steps),
        restart={name: modules for name, modules in sorted(stale.items()) if modules},
        fingerprint=fingerprint,
        notes=(*notes, *draft.notes, *(one.tried for one in breakages if one.tried)),
        requirements=tuple(entry.requirement for entry in resolution.request.asked),
    )


def _with_tried(breakage: Breakage, repair: Repair | None) -> Breakage:
    """Add what was tried to repair a distribution that is removed or left broken."""
    if repair is None or not breakage.direct or breakage.remedy is Remedy.REPAIR:
        return breakage
    return replace(breakage, tried=repair.tried(breakage.name) or "")


def _unknown(snapshot: Snapshot, steps: Iterable[Step]) -> tuple[NormalizedName, ...]:
    """Return the distributions without recorded requirements, which a replacement may break unnoticed."""
    if not any(step.action is Action.REPLACE for step in steps):
        return ()
    return tuple(sorted(name for name, there in snapshot.installed.items() if not there.is_known))


def _remove_absent(draft: PlanDraft, matrix: Matrix) -> None:
    """Remove the installed distributions that ``[absent]`` excludes, unless the resolution moves them."""
    needed = needed_by_protected(draft)
    for absent in matrix.absent:
        there = draft.snapshot.installed.get(absent.name)
        if there is None or absent.name in draft.pins:
            continue
        if absent.specifier.contains(Version(there.version), prereleases=True):
            is_protected = absent.name in draft.snapshot.protected
            if fixed := why_kept(draft, absent.name):
                message = f"{absent.path} excludes {absent.name} {there.version}, but {fixed}"
                raise Refused(message, hint="`--into env` makes an environment without it")
            if is_protected or absent.name in needed:
                why = "it is protected" if is_protected else "a protected distribution needs it"
                message = f"{absent.path} excludes {absent.name} {there.version}, but {why} here"
                raise Refused(message, hint="`--into env` makes an environment without it")
            draft.removed[absent.name] = (
                absent.why or f"{absent.path} excludes {absent.name}{absent.specifier}"
            )


def _refuse_mixed(draft: PlanDraft, known: Collection[NormalizedName]) -> None:
    """Raise Refused if the stack has two builds of one package at different versions.

    The files of a new version count if they are *known*: a later one may no longer have those of another.
    """
    for name in sorted(draft.stack):
        for other in sorted(draft.snapshot.shared.get(name, frozenset()) & draft.stack):
            mine, its = draft.pins[name], draft.pins[other]
            kept = [pin for pin in (mine, its) if pin.is_installed]
            if mine.version != its.version and (len(kept) == 1 or (not kept and {name, other} <= {*known})):
                raise Refused(
                    f"{name} {mine.version} and {other} {its.version} own the same files, and the stack needs"
                    " both",
                    hint="Give them one version in the matrix, or exclude one of them with `[absent]`",
                )


def _refuse_irremovable(draft: PlanDraft, name: NormalizedName) -> None:
    """Raise Refused if a new version of *name* would not take the place of the installed one."""
    snapshot = draft.snapshot
    there = snapshot.everything.get(name) or Installed(name=name, version="")
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


def _removals(draft: PlanDraft) -> list[Step]:
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


def _installations(draft: PlanDraft, resolution: Resolution) -> list[Step]:
    """Return the replacements and installations: dependencies before their dependents."""
    names = [name for name, pin in draft.pins.items() if not pin.is_installed]
    ordered = _in_order(names, lambda name: _required_names(draft.pins[name].requires))
    steps = []
    for name in _owners_last(draft, ordered):
        _refuse_irremovable(draft, name)
        pin = draft.pins[name]
        before = draft.snapshot.everything.get(name)
        if before is not None and is_out_of_reach(draft.snapshot, before):
            draft.notes.append(f"{name} {before.version} is out of reach, and stays in `{before.path}`")
            before = None
        reason, parent = _reason(draft, pin, resolution)
        steps.append(
            Step(
                action=Action.REPLACE if before else Action.INSTALL,
                name=name,
                reason=reason,
                version=str(pin.version),
                previous=before.version if before else None,
                artifact=_artifact(pin, draft.entries.get(name)),
                requested=any(parent.name is None for parent in pin.parents) and name not in draft.repaired,
                asked_by=(parent.name or parent.path) if parent else "",
                requirement=parent.requirement if parent else "",
            )
        )
    return steps


def _owners_last(draft: PlanDraft, names: list[NormalizedName]) -> list[NormalizedName]:
    """Return *names* with the builds of one package ordered: the files of the last one win.

    It is the one of the stack, the requested one first, else the one that has its files now.
    """

    def rank(name: NormalizedName) -> tuple[bool, bool, bool, str]:
        is_requested = any(parent.name is None for parent in draft.pins[name].parents)
        others = draft.snapshot.shared.get(name, ())
        has_its_files = all(draft.is_whole(name, other) for other in others)
        return name in draft.stack, name in draft.stack and is_requested, has_its_files, name

    ordered = list(names)
    seen: set[NormalizedName] = set()
    for name in names:
        group = {name, *draft.snapshot.shared.get(name, ())}.intersection(names) - seen
        if len(group) > 1:
            seen |= group
            places = sorted(map(names.index, group))
            for place, one in zip(places, sorted(group, key=rank), strict=True):
                ordered[place] = one
    return ordered


def _reason(draft: PlanDraft, pin: Pin, resolution: Resolution) -> tuple[str, Parent | None]:
    """Return the reason for this version: the matrix entry, the dependent, or the repair."""
    if pin.name in draft.repaired:
        return f"{draft.repaired[pin.name]}; {pin.version} fits", None
    roots = [parent for parent in pin.parents if parent.name is None]
    needs = [parent for parent in pin.parents if parent.name is not None]
    if roots:
        entry = draft.entries.get(pin.name)
        why = f": {entry.why}" if entry is not None and entry.why else ""
        asker = "`--with`" if is_addition(roots[0].path) else roots[0].path
        return f"{asker} asks for {roots[0].requirement}{why}", roots[0]
    before = draft.snapshot.installed.get(pin.name)
    movers = [one for one in needs if before is not None and _excludes(one.requirement, before.version)]
    if movers or (needs and pin.name not in resolution.released):
        parent = (movers or needs)[0]
        version = f" {draft.pins[parent.name].version}" if parent.name in draft.pins else ""
        return f"{parent.name}{version} needs {parent.requirement}", parent
    return resolution.released.get(pin.name, "part of the solution"), None


def _excludes(line: str, version: str) -> bool:
    requirement = parse_requirement(line)
    return requirement is not None and not requirement.specifier.contains(version, prereleases=True)


def _kept(draft: PlanDraft) -> list[Kept]:
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
