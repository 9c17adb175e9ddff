"""Choose a remedy for each distribution that a plan newly breaks: repair it, remove it, or leave it.

Builds of one package (`shared_files`) have a rule of their own.  Their files are at the same paths, so they
have one version or only one of them stays, and no version of the stack is changed for another build.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from colablock._records import dataclass
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.removable import is_out_of_reach, why_irremovable
from colablock.environment.requirements import same_version
from colablock.environment.snapshot import Installed, is_version
from colablock.environment.state_change import SHARED_FILES, Broken, StateChange, find_broken
from colablock.errors import Refused
from colablock.planning.plan import Breakage, Remedy
from colablock.planning.shared_files import is_whole, shared_paths

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import PackageEntry
    from colablock.resolver.model import Pin, Resolution

__all__ = ["PlanDraft", "Repair", "judge_broken", "needed_by_protected", "why_kept"]


class Repair(Protocol):
    """Finds a version of one broken distribution that fits a state.  Nothing else moves."""

    def look_ahead(self, names: Iterable[NormalizedName]) -> None:
        """Prefetch what repairing *names* is likely to need."""

    def refusal(self, name: NormalizedName) -> str | None:
        """Return why *name* must not be replaced; None if it may be."""

    def versions(self, name: NormalizedName) -> frozenset[Version]:
        """Return the versions of *name* that its source has; none if it cannot be read."""

    def __call__(
        self,
        name: NormalizedName,
        after: Mapping[NormalizedName, Installed],
        *,
        versions: Collection[Version] | None = None,
    ) -> Resolution | None:
        """Return the resolution with *name* repaired, to one of *versions*; None where nothing fits."""

    def tried(self, name: NormalizedName) -> str | None:
        """Return a sentence about the versions that do not repair *name*; None if none was tried."""


@dataclass
class PlanDraft:
    """A plan in the making: pins by name (the stack's, then those of repairs), and the removals."""

    snapshot: Snapshot
    graph: DependencyGraph  # of the snapshot
    pins: dict[NormalizedName, Pin]
    entries: Mapping[NormalizedName, PackageEntry]
    removed: dict[NormalizedName, str] = field(default_factory=dict)  # name → reason
    repaired: dict[NormalizedName, str] = field(default_factory=dict)
    breakages: list[Breakage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stack: frozenset[NormalizedName] = frozenset()
    _whole: dict[tuple[NormalizedName, NormalizedName], bool] = field(default_factory=dict)
    _installed_of: dict[NormalizedName, tuple[Pin, Installed]] = field(default_factory=dict)

    def change(self) -> StateChange:
        """Return the change so far."""
        moved = {name: self._installed(pin) for name, pin in self.pins.items() if not pin.is_installed}
        return StateChange(
            moved=moved,
            removed=frozenset(self.removed),
            repaired=frozenset(self.repaired),
            stack=self.stack | self.snapshot.protected,
            is_whole=self.is_whole,
        )

    def _installed(self, pin: Pin) -> Installed:
        """Return the distribution that *pin* installs: the same object for the same pin."""
        known = self._installed_of.get(pin.name)
        if known is None or known[0] is not pin:
            requires = (*pin.requires, *pin.optional)
            known = pin, Installed(name=pin.name, version=str(pin.version), requires=requires)
            self._installed_of[pin.name] = known
        return known[1]

    def after(self) -> dict[NormalizedName, Installed]:
        """Return the installed distributions after the change so far."""
        return self.change().applied_to(self.snapshot.installed)

    def is_whole(self, name: NormalizedName, beside: NormalizedName) -> bool:
        """Whether the files that *name* shares with *beside* are those of *name* now."""
        key = name, beside
        if key not in self._whole:
            one, other = self.snapshot.installed.get(name), self.snapshot.installed.get(beside)
            self._whole[key] = bool(one and other) and is_whole(one, shared_paths(one, other))  # type: ignore[arg-type]
        return self._whole[key]

    def builds(self, name: NormalizedName) -> list[NormalizedName]:
        """Return the other builds of the package of *name* that the plan installs, the stack's first."""
        moved = [
            other
            for other in self.snapshot.shared.get(name, ())
            if other in self.pins and not self.pins[other].is_installed and other not in self.removed
        ]
        return sorted(moved, key=lambda other: (other not in self.stack, other in self.repaired, other))

    def standing(self, name: NormalizedName) -> list[NormalizedName]:
        """Return the other builds of *name* that are installed and stay as they are."""
        others = self.snapshot.shared.get(name, frozenset()) & self.snapshot.installed.keys()
        return sorted(others - self.change().touched) if others else []


def judge_broken(draft: PlanDraft, repair: Repair | None, override: Remedy | None) -> None:
    """Choose a remedy for each newly broken distribution, until no more break directly.

    A later move or removal may break a repaired distribution again.  It is repaired once more
    where a version fits.  Else its repair stays, and it is listed as one that is left broken.
    """
    judge = _Judge(draft, repair, override)
    for item in _mixed(draft):
        judge.decide(item)
    while True:
        found = find_broken(draft.snapshot, draft.change(), draft.graph)
        pending = judge.pending(found.values())
        if not pending:
            break
        judge.look_ahead(pending)
        for item in pending:
            judge.decide(item)
    left = [
        _breakage(item, Remedy.LEAVE, judge.because(item))
        for item in found.values()
        if item.name not in judge.decided or item.name in draft.repaired
    ]
    draft.breakages = [*judge.decided.values(), *left]


def _mixed(draft: PlanDraft) -> Iterator[Broken]:
    """Yield each kept distribution of the stack whose files another version of its package has replaced."""
    installed = draft.snapshot.installed
    for name in sorted(draft.stack & installed.keys()):
        there = installed[name]
        for other in draft.standing(name) if draft.pins[name].is_installed else ():
            are_known = None not in (there.path, installed[other].path)
            differ = not same_version(there.version, installed[other].version)
            if are_known and differ and not draft.is_whole(name, other):
                requirement = f"{SHARED_FILES} {other}"
                yield Broken(
                    name=name,
                    version=there.version,
                    requirement=requirement,
                    cause=other,
                    direct=True,
                    origin=other,
                    links=(f"{name} {there.version} needs {requirement}",),
                    by_files=True,
                )
                break


@dataclass
class _Judge:
    """Decides on broken distributions one by one; each decision changes the draft."""

    draft: PlanDraft
    repair: Repair | None
    override: Remedy | None
    decided: dict[NormalizedName, Breakage] = field(default_factory=dict)
    again: set[NormalizedName] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.needed = needed_by_protected(self.draft) | self.draft.snapshot.protected

    def pending(self, found: Iterable[Broken]) -> list[Broken]:
        """Return those of *found* that are to be decided."""
        return [
            item
            for item in found
            if (item.name in self.draft.repaired and item.name not in self.again)
            or (item.name not in self.decided and item.direct)
        ]

    def look_ahead(self, items: Iterable[Broken]) -> None:
        """Prefetch what repairs of *items* need."""
        if self.repair is not None and self.override in {None, Remedy.REPAIR}:
            self.repair.look_ahead([item.name for item in items])

    def decide(self, item: Broken) -> None:
        """Choose the remedy of *item*."""
        draft = self.draft
        if item.name in draft.repaired:
            self.again.add(item.name)
            self._repair_again(item)
        elif item.name not in draft.removed and not self._is_settled(item):
            is_build = item.by_files or bool(draft.builds(item.name))
            remedy = self._of_build(item) if is_build else self._remedy(item)
            if remedy is not None:
                self.decided[item.name] = remedy

    def because(self, item: Broken) -> tuple[str, ...]:
        """Return the chain from the moved or removed distribution down to *item*, one sentence per link."""
        return (_moved(self.draft, item.origin), *item.links)

    def _is_settled(self, item: Broken) -> bool:
        """Whether an earlier decision of the same round has replaced or removed *item* with its build."""
        return item.by_files and item.name in self.draft.change().touched

    def _remedy(self, item: Broken) -> Breakage:
        """Repair, remove or leave one distribution with a requirement that is no longer met."""
        because = self.because(item)
        reason = ", ".join(reversed(because))
        if self._is_left(item):
            return _breakage(item, Remedy.LEAVE, because)
        if (kept := why_kept(self.draft, item.name)) is not None:
            return _breakage(item, Remedy.LEAVE, (*because, kept))
        if (
            self.override is not Remedy.REMOVE
            and self.repair is not None
            and (why := self.repair.refusal(item.name)) is not None
        ):
            return _breakage(item, Remedy.LEAVE, (*because, why))
        fixed = self._fixed(item.name)
        if fixed is not None:
            self._install(item.name, fixed, reason)
            return _breakage(item, Remedy.REPAIR, because)
        return self._without(item, because)

    def _fixed(self, name: NormalizedName) -> Resolution | None:
        """Return a repair of *name*; with other builds of the package, of a version that they have too."""
        draft, repair = self.draft, self.repair
        if repair is None or self.override is Remedy.REMOVE:
            return None
        standing = draft.standing(name)
        fast = [other for other in standing if other in draft.stack or other in self.needed]
        if fast:
            there = draft.snapshot.installed[fast[0]]
            return repair(name, draft.after(), versions=_versions_of(there))
        common = [repair.versions(other) for other in standing]
        if common:
            fixed = repair(name, draft.after(), versions=frozenset.intersection(*common))
            if fixed is not None:
                return fixed
        return repair(name, draft.after())

    def _of_build(self, item: Broken) -> Breakage | None:
        """Give a build of a package the version of the one that moves, or lay its own files again.

        If neither is possible, it goes.  None if it was decided on another build instead.
        """
        draft, name = self.draft, item.name
        because = self.because(item)
        if self._is_left(item) or (name in self.needed and name not in draft.stack):
            return _breakage(item, Remedy.LEAVE, because)
        if (kept := why_kept(draft, name)) is not None:
            return _breakage(item, Remedy.LEAVE, (*because, kept))
        builds = draft.builds(name)
        there = draft.snapshot.installed[name]
        wanted = {draft.pins[builds[0]].version} if builds else _versions_of(there)
        refusal = self.repair.refusal(name) if self.repair is not None else None
        fixed = None
        if self.repair is not None and self.override is not Remedy.REMOVE:
            fixed = self.repair(name, draft.after(), versions=wanted)
            because = (*because, refusal or f"there is no {name} {_text(wanted) or there.version} that fits")
        if fixed is not None:
            other = builds[0] if builds else item.cause
            self._install(name, fixed, f"it owns the same files as {other}")
            return _breakage(item, Remedy.REPAIR, self.because(item))
        if name not in draft.stack:
            return self._without(item, because)
        loose = [other for other in builds if other not in draft.stack and other not in self.needed]
        if item.cause not in draft.change().touched:
            return _breakage(item, Remedy.LEAVE, because)  # as it was before
        if not loose:
            raise Refused(
                f"{name} {there.version} owns the same files as {item.cause}, and there is no wheel to lay"
                " them again",
                hint="Use an isolated environment, with `--into env`",
            )
        for other in loose:
            self._remove(other, f"it owns the same files as {name}, which the stack needs at {there.version}")
        return None

    def _install(self, name: NormalizedName, fixed: Resolution, reason: str) -> None:
        draft = self.draft
        self._repin(name, fixed, draft.pins.get(name), reason)

    def _repin(self, name: NormalizedName, fixed: Resolution, before: Pin | None, reason: str) -> None:
        draft = self.draft
        draft.repaired[name] = reason
        draft.pins.update({key: pin for key, pin in fixed.pins.items() if not pin.is_installed})
        if before is not None:  # of the stack: it stays what it was, with its own files
            draft.pins[name] = replace(draft.pins[name], parents=before.parents, extras=before.extras)

    def _without(self, item: Broken, because: tuple[str, ...]) -> Breakage:
        """Remove *item*, unless it is needed or only a repair is wanted."""
        if self.override is Remedy.REPAIR or item.name in self.needed:
            return _breakage(item, Remedy.LEAVE, because)
        self.draft.removed[item.name] = ", ".join(reversed(because))
        return _breakage(item, Remedy.REMOVE, because)

    def _remove(self, name: NormalizedName, reason: str) -> None:
        """Remove what an earlier decision has repaired."""
        draft = self.draft
        del draft.pins[name]
        draft.repaired.pop(name, None)
        draft.removed[name] = reason
        self.decided[name] = replace(self.decided[name], remedy=Remedy.REMOVE)

    def _repair_again(self, item: Broken) -> None:
        """Replace the repair of *item* by one that fits the state as it is now, if there is one."""
        draft, name = self.draft, item.name
        reason, pin = draft.repaired.pop(name), draft.pins.pop(name)
        builds = draft.builds(name)
        again = partial(self.repair, name, draft.after()) if self.repair is not None else None
        wanted = {draft.pins[builds[0]].version} if builds else None
        fixed = again(versions=wanted) if again is not None else None
        if fixed is None and builds and name not in draft.stack and name not in self.needed:
            draft.removed[name] = f"{reason}; no version {draft.pins[builds[0]].version} of it fits"
            self.decided[name] = replace(self.decided[name], remedy=Remedy.REMOVE)
            return
        draft.pins[name], draft.repaired[name] = pin, reason
        if fixed is not None:
            self._repin(name, fixed, pin if name in draft.stack else None, reason)

    def _is_left(self, item: Broken) -> bool:
        is_needed = item.name in self.needed
        return self.override is Remedy.LEAVE or (self.override is Remedy.REMOVE and is_needed)


def _versions_of(installed: Installed) -> frozenset[Version]:
    return frozenset({Version(installed.version)} if is_version(installed.version) else ())


def _text(versions: Iterable[Version]) -> str:
    return " or ".join(map(str, versions))


def _breakage(item: Broken, remedy: Remedy, because: tuple[str, ...]) -> Breakage:
    return Breakage(
        name=item.name,
        version=item.version,
        requirement=item.requirement,
        direct=item.direct,
        because=because,
        remedy=remedy,
    )


def _moved(draft: PlanDraft, name: NormalizedName) -> str:
    there, pin = draft.snapshot.everything.get(name), draft.pins.get(name)
    if there is not None and name not in draft.change().touched:
        return f"{name} {there.version} was installed over it"
    if there is None:
        return f"{name} {pin.version} is installed" if pin is not None else f"{name} is removed"
    if name in draft.removed or pin is None:
        return f"{name} {there.version} is removed"
    return f"{name} {there.version} becomes {pin.version}"


def why_kept(draft: PlanDraft, name: NormalizedName) -> str | None:
    """Return why *name* can be neither removed nor replaced where it is; None if it can be."""
    there = draft.snapshot.everything.get(name)
    if name in draft.snapshot.unreadable:
        return f"its version is not valid (PEP 440), so no other one is sought for {name}"
    if there is not None and is_out_of_reach(draft.snapshot, there):
        return f"it is out of reach: `{there.path}` is outside of `{draft.snapshot.prefix}`"
    why = why_irremovable(draft.snapshot, name)
    return None if why is None else f"{name} cannot be removed: {why}"


def needed_by_protected(draft: PlanDraft) -> frozenset[NormalizedName]:
    """Return what protected distributions require, by the extras that they ask for too: never removed."""
    nodes = draft.graph.nodes(sorted(draft.snapshot.protected))
    return frozenset(demand.target for node in nodes for demand in draft.graph.demands_of(node))
