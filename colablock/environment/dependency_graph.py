"""What a new state breaks that was whole before: judged from requirements and shared files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.requirements import Dependents, applies, only_with, parse_requirement

if TYPE_CHECKING:
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = ["Broken", "StateChange", "find_broken", "newly_unmet", "unmet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """What a plan does to a snapshot: new versions by name, and the names that go."""

    moved: Mapping[NormalizedName, str] = field(default_factory=dict)
    removed: frozenset[NormalizedName] = frozenset()

    @property
    def touched(self) -> frozenset[NormalizedName]:
        return frozenset(self.moved) | self.removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One installed distribution that is newly broken.

    *requirement* no longer holds because of *cause*, which is moved or shares
    files (*direct*), or is removed or broken by a removal itself.
    """

    name: NormalizedName
    version: str
    requirement: str
    cause: NormalizedName
    direct: bool


def find_broken(
    snapshot: Snapshot, change: StateChange, dependents: Dependents
) -> dict[NormalizedName, Broken]:
    """Return what *change* newly breaks, in the order it was found; what it touches is left out.

    First the directly broken, then those behind a removal, and those behind
    these: what needs a broken one is not whole either.
    """
    broken: dict[NormalizedName, Broken] = {}
    for name in sorted(change.touched & snapshot.installed.keys()):
        for item in _directly(snapshot, change, name, dependents):
            broken.setdefault(item.name, item)
    queue = [*sorted(change.removed)]
    while queue:
        cause = queue.pop(0)
        for demand in dependents.of(cause):
            owner = demand.owner
            if owner in change.touched or owner in broken or cause not in snapshot.installed:
                continue
            if not demand.requirement.specifier.contains(snapshot.installed[cause].version, prereleases=True):
                continue  # it was unmet before
            broken[owner] = Broken(
                name=owner,
                version=snapshot.installed[owner].version,
                requirement=str(demand.requirement),
                cause=cause,
                direct=False,
            )
            queue.append(owner)
    return broken


def _directly(
    snapshot: Snapshot, change: StateChange, name: NormalizedName, dependents: Dependents
) -> Iterator[Broken]:
    """Yield what the move of *name* breaks: a range it leaves, or files it shares."""
    before = snapshot.installed[name].version
    after = change.moved.get(name)
    if after is not None:
        for demand in dependents.of(name):
            if demand.owner in change.touched or demand.owner == name:
                continue
            specifier = demand.requirement.specifier
            if specifier.contains(before, prereleases=True) and not specifier.contains(
                after, prereleases=True
            ):
                yield _broken(snapshot, demand.owner, str(demand.requirement), name)
    for other in sorted(snapshot.shared.get(name, ())):
        if other not in change.touched and other in snapshot.installed:
            yield _broken(snapshot, other, f"files that it shares with {name}", name)


def _broken(snapshot: Snapshot, owner: NormalizedName, requirement: str, cause: NormalizedName) -> Broken:
    version = snapshot.installed[owner].version
    return Broken(name=owner, version=version, requirement=requirement, cause=cause, direct=True)


def unmet(names: Iterable[NormalizedName], snapshot: Snapshot) -> frozenset[tuple[NormalizedName, str]]:
    """Return the requirement lines of *names* that the snapshot does not meet as it stands: (name, line)."""
    found = set()
    for owner in (snapshot.installed[name] for name in names if name in snapshot.installed):
        for line in owner.requires:
            requirement = None if only_with(line) else parse_requirement(line)
            if requirement is None or not applies(requirement, snapshot.environment):
                continue
            there = snapshot.installed.get(canonicalize_name(requirement.name))
            if there is None or not requirement.specifier.contains(there.version, prereleases=True):
                found.add((owner.name, line))
    return frozenset(found)


def newly_unmet(
    names: Iterable[NormalizedName], before: Snapshot, installed: Mapping[NormalizedName, Installed]
) -> frozenset[tuple[NormalizedName, str]]:
    """Return the requirement lines of *names* that hold no longer once *installed* is there: (name, line)."""
    found = unmet(names, replace(before, installed=installed))
    return found - unmet({name for name, _ in found}, before)
