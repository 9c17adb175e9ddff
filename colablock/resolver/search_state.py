"""The state of a complete search: the possible versions of each project, and terms that cannot all hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from colablock._records import dataclass

if TYPE_CHECKING:
    from colablock._vendor.packaging.version import Version
    from colablock.resolver.model import Edge, Key, ResolverCandidate, ResolverRequirement

__all__ = ["ABSENT", "Incompatibility", "ProjectState", "terms_without_other_wants"]

ABSENT = 1  # the bit of "not selected"


@dataclass(slots=True, eq=False)
class Incompatibility:
    """Terms that cannot all hold: the versions by the place of the project.

    A learned one follows from its *parents*, another from *edges*, or from the rule that bars
    a pre-release or a yanked version.
    """

    terms: dict[int, int]
    edges: list[Edge] = field(default_factory=list)
    parents: tuple[Incompatibility, ...] = ()
    barred: ResolverCandidate | None = None
    watched: tuple[int, int] = (-1, -1)  # the places whose changes are followed


@dataclass(slots=True, eq=False)
class ProjectState:
    """A project, or an extra of one: its candidates, and which of them are still possible."""

    key: Key
    candidates: Sequence[ResolverCandidate]
    numbers: Mapping[Version, int]  # of the candidates
    every: int
    possible: int
    watching: list[Incompatibility] = field(default_factory=list)
    asked: list[ResolverRequirement] = field(default_factory=list)  # by the roots
    wanted: list[tuple[int, int, ResolverRequirement]] = field(default_factory=list)  # by place and bit
    read: int = 0  # the versions whose requirements are known
    conflicts: int = 0
    changes: list[int] = field(default_factory=list)  # positions in the trail

    @property
    def is_selected(self) -> bool:
        """Whether something requires it."""
        return not self.possible & ABSENT

    @property
    def is_decided(self) -> bool:
        return not self.possible & (self.possible - 1)

    @property
    def choice(self) -> ResolverCandidate:
        return self.candidates[self.possible.bit_length() - 2]


def terms_without_other_wants(
    projects: Sequence[ProjectState],
    place: int,
    matters: Callable[[ResolverRequirement], bool],
    *,
    unread_may_want: bool,
) -> dict[int, int]:
    """Return terms that hold now, and under which no further requirement on *place* that *matters* is added.

    Each selected project keeps to versions without such a requirement, and without one on a project
    that is not selected and may lead to one.  With *unread_may_want* it keeps to those that were read.
    """
    leads: defaultdict[int, set[int]] = defaultdict(set)  # from a project to those that want it
    for one, project in enumerate(projects):
        leads[one].update(parent for parent, _, _ in project.wanted)
    unread = {one for one, project in enumerate(projects) if project.read | ABSENT != project.every}
    found = set(unread) if unread_may_want else set()
    queue = [place, *found]
    while queue:
        fresh = leads[queue.pop()] - found
        found |= fresh
        queue += fresh
    others = {one: ABSENT | projects[one].read if unread_may_want else projects[one].every for one in found}
    for target in {place} | {one for one in found if not projects[one].is_selected}:
        for parent, bit, want in projects[target].wanted:
            if parent in others and (target != place or (want.exact is None and matters(want))):
                others[parent] &= ~bit
    selected = {one: fit for one, fit in others.items() if projects[one].is_selected}
    limited = {one: fit for one, fit in selected.items() if fit != projects[one].every}
    return {**limited, place: projects[place].possible}
