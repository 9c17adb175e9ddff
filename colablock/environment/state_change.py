"""The change of a plan, and the installed distributions that it breaks."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from colablock._records import dataclass
from colablock.environment.dependency_graph import DependencyGraph, Node, UnmetRequirement, newly_unmet
from colablock.environment.requirements import same_version

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = ["SHARED_FILES", "Broken", "StateChange", "find_broken"]

SHARED_FILES = "files that it shares with"  # what a build of a package needs, and the name of the other one


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """The changes of a plan: the distributions that it installs, and the names that it removes.

    The solve ensures that the requirements of *moved* distributions are met.  This does not hold
    for those that are *repaired*, because a later move or removal may break them again.

    *stack* are the names whose files win over those of other distributions.  *is_whole* tells
    whether a distribution has all its files, although another that shares them is removed.
    """

    moved: Mapping[NormalizedName, Installed] = field(default_factory=dict)
    removed: frozenset[NormalizedName] = frozenset()
    repaired: frozenset[NormalizedName] = frozenset()
    stack: frozenset[NormalizedName] = frozenset()
    is_whole: Callable[[NormalizedName, NormalizedName], bool] = lambda _name, _removed: False

    @property
    def touched(self) -> frozenset[NormalizedName]:
        """Every name that changes."""
        return frozenset(self.moved) | self.removed

    @property
    def settled(self) -> frozenset[NormalizedName]:
        """The names that change and whose requirements the solve ensures."""
        return self.touched - self.repaired

    def applied_to(self, installed: Mapping[NormalizedName, Installed]) -> dict[NormalizedName, Installed]:
        """Return the installed distributions after the change."""
        kept = {name: there for name, there in installed.items() if name not in self.removed}
        return {**kept, **self.moved}

    def spoils(self, cause: NormalizedName, other: Installed) -> bool:
        """Whether the change of *cause* leaves *other*, which shares files with it, without its own files.

        Two that share files have one version, or only one of them stays.
        """
        name = other.name
        if name in self.removed or (name in self.moved and name not in self.repaired):
            return False
        if cause not in self.moved:
            return name not in self.moved and not self.is_whole(name, cause)
        if not same_version(self.moved[cause].version, self.moved.get(name, other).version):
            return True
        return name not in self.moved and name in self.stack and cause not in self.stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One installed distribution that a change newly breaks.

    *requirement* is the first of its own requirements that is no longer met, because of *cause*.
    A *direct* cause is moved, or shares files with it (*by_files*).  Any other cause is removed, or
    is itself broken by a removal.  *links* are sentences that lead from *origin*, the moved or removed
    distribution, to this one.
    """

    name: NormalizedName
    version: str
    requirement: str
    cause: NormalizedName
    direct: bool
    origin: NormalizedName
    links: tuple[str, ...]
    by_files: bool = False


def find_broken(
    snapshot: Snapshot, change: StateChange, before: DependencyGraph
) -> dict[NormalizedName, Broken]:
    """Return the distributions that *change* newly breaks, in the order in which they are found.

    *before* is the graph of *snapshot*.  First come the directly broken ones, then those that
    need a removed distribution, then those that need these, because a distribution that needs
    a broken one is broken too.

    The requirements of an extra that a lock does not list are unknown, so a plan from a lock may
    miss a distribution that they break.  The proof after the change finds it.
    """
    broken: dict[NormalizedName, Broken] = {}
    for item in _directly(snapshot, change, before):
        broken.setdefault(item.name, item)
    _spread(broken, change, before)
    return broken


def _directly(snapshot: Snapshot, change: StateChange, before: DependencyGraph) -> Iterator[Broken]:
    """Yield the distributions that are broken by a move: by an unmet requirement, or by shared files."""
    touched = change.touched & before.installed.keys()
    after = before.with_installed(change.applied_to(before.installed))
    names = after.installed.keys() & before.installed.keys() - change.settled
    found: defaultdict[NormalizedName, list[UnmetRequirement]] = defaultdict(list)
    for one in newly_unmet(names, before, after, touched):
        target, owner = one.demand.target, one.demand.owner
        if target in change.moved:
            found[target].append(one)
        elif owner in change.settled or target not in change.removed:
            found[owner].append(one)
    for cause in sorted(change.touched):
        for one in found[cause]:
            first, *more = one.chain
            yield _broken(after.installed[one.name], str(first.requirement), cause, map(str, reversed(more)))
        for other in sorted(snapshot.shared.get(cause, ())):
            there = snapshot.installed.get(other)
            if there is not None and change.spoils(cause, there):
                there = after.installed[other]
                yield _broken(there, f"{SHARED_FILES} {cause}", cause, by_files=True)


def _broken(
    installed: Installed,
    requirement: str,
    cause: NormalizedName,
    links: Iterable[str] = (),
    *,
    by_files: bool = False,
) -> Broken:
    return Broken(
        name=installed.name,
        version=installed.version,
        requirement=requirement,
        cause=cause,
        direct=True,
        origin=cause,
        links=(*links, f"{installed.name} {installed.version} needs {requirement}"),
        by_files=by_files,
    )


def _spread(broken: dict[NormalizedName, Broken], change: StateChange, before: DependencyGraph) -> None:
    """Add to *broken* the distributions that need removed ones, and those that need these."""
    # The state without the removals: a repaired distribution has the requirements of its new version.
    whole = before.with_installed({**before.installed, **change.moved})
    queue: deque[tuple[Node, NormalizedName, tuple[str, ...]]] = deque(
        ((name, ""), name, ()) for name in sorted(change.removed) if name in before.installed
    )
    seen: set[Node] = set()
    while queue:
        (cause, extra), origin, links = queue.popleft()
        for demand in whole.demands_on(cause):
            owner = demand.owner
            if (cause, extra) not in demand.targets or owner in change.settled or demand.node in seen:
                continue
            was_met = owner in change.repaired or before.is_met(demand)
            if not was_met or not whole.is_met(demand) or (owner in broken and not demand.extra):
                continue
            seen.add(demand.node)
            longer = (*links, str(demand))
            if not demand.extra:
                broken[owner] = Broken(
                    name=owner,
                    version=whole.installed[owner].version,
                    requirement=str(demand.requirement),
                    cause=cause,
                    direct=False,
                    origin=origin,
                    links=longer,
                )
            queue.append((demand.node, origin, longer))
