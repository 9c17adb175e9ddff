"""A complete search that learns from conflicts: it finds a solution, or proves that there is none.

resolvelib is fast, but it may pass over the part of the search that holds the only solution, and it meets
the same conflict again and again.  This search keeps what a conflict teaches as an incompatibility: a set
of terms that cannot all hold, as PubGrub does.  A term is a project with some of its versions, written as
the bits of an integer; bit 0 stands for "not selected".  Every incompatibility follows from requirements
alone, so an incompatibility without terms proves that there is no solution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from colablock._records import dataclass
from colablock.resolver.model import PYTHON, Impossible, SearchEnded
from colablock.resolver.search_state import ABSENT, Incompatibility, ProjectState, terms_without_other_wants

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock._vendor.packaging.version import Version
    from colablock.resolver.model import Edge, Key, ResolverCandidate, ResolverRequirement

__all__ = ["CompleteSearch", "Questions"]

_READ_STEPS = 1_000  # that reading the metadata of one version counts as
_PROMOTED = 5  # the conflicts after which a project is decided before the others, as in pip
_MOST_READ = 500  # the versions that are read only to find what may want a pre-release or a yanked version


class Questions(Protocol):
    """What the search asks the provider."""

    def domain(self, key: Key) -> tuple[Sequence[ResolverCandidate], Mapping[Version, int]]:
        """Return the candidates that some requirements may select, and their numbers by version."""

    def matches(self, key: Key, wants: Sequence[ResolverRequirement]) -> Sequence[ResolverCandidate]:
        """Return the candidates that *wants* select, best first."""

    def fitting(self, key: Key, want: ResolverRequirement) -> int:
        """Return the candidates of the domain that meet *want*: the first of them is bit 0."""

    def may_admit(
        self, choice: ResolverCandidate, wants: Sequence[ResolverRequirement]
    ) -> Callable[[ResolverRequirement], bool]:
        """Return whether a requirement beside *wants*, which do not select *choice*, may admit it."""

    def get_dependencies(self, candidate: ResolverCandidate) -> Iterable[ResolverRequirement]:
        """Return the requirements of *candidate*."""

    def identify(self, requirement_or_candidate: ResolverRequirement | ResolverCandidate) -> Key:
        """Return the project, and the extra of it."""


@dataclass(slots=True)
class _Step:
    """One change of the possible versions of a project.  Without a *reason* it is a decision."""

    place: int
    before: int
    after: int
    level: int  # the number of decisions so far
    reason: Incompatibility | None


class CompleteSearch:
    """One search.  *steps* bounds the incompatibilities that it looks at, and the metadata that it reads.

    With *dependencies*, these are the requirements, and no metadata is read.  With *is_quick* a version that
    was not read is taken to have no requirement that admits a pre-release or a yanked version: then a proof
    that names such versions holds only as far as metadata was read.
    """

    def __init__(
        self,
        questions: Questions,
        roots: Iterable[Edge],
        *,
        steps: int,
        dependencies: Callable[[ResolverCandidate], Iterable[ResolverRequirement]] | None = None,
        is_quick: bool = False,
    ) -> None:
        self._questions = questions
        self._is_quick = is_quick
        self._dependencies = dependencies or questions.get_dependencies
        self._roots = tuple(roots)
        self._left = self.steps = steps
        self._read_steps = 0 if dependencies else _READ_STEPS
        self._to_read = _MOST_READ
        self._projects: list[ProjectState] = []
        self._places: dict[Key, int] = {}
        self._trail: list[_Step] = []
        self._level = 0
        self._changed: list[int] = []  # places whose incompatibilities are yet to be looked at
        self._merged: dict[tuple[int, int, int], Incompatibility] = {}

    def run(self) -> dict[Key, ResolverCandidate]:
        """Return the selected candidates.  Raises Impossible or SearchEnded."""
        self._ask_roots()
        while True:
            conflict = self._propagate()
            if conflict is not None:
                self._learn(conflict)
                continue
            place = self._next()
            if place is not None:
                bit = self._best(place)
                if not self._read(place, bit):
                    self._level += 1
                    self._set(place, bit, None)
                continue
            found = {p.key: p.choice for p in self._projects if p.is_selected}
            if all(self._is_admitted(self._places[key]) for key in found):
                return found

    # -- projects and their requirements

    def _ask_roots(self) -> None:
        for want, parent in reversed(self._roots):  # the last change is looked at first
            place = self._place(self._questions.identify(want))
            project = self._projects[place]
            project.asked.append(want)
            self._add(Incompatibility({place: self._unfit(place, want)}, [(want, parent)]))

    def _place(self, key: Key) -> int:
        """Return the place of the project *key*; at first, register it."""
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self._projects)
            candidates, numbers = self._questions.domain(key)
            every = (2 << len(candidates)) - 1
            self._projects.append(ProjectState(key, candidates, numbers, every, every))
        return place

    def _unfit(self, place: int, want: ResolverRequirement) -> int:
        """Return the versions that do not meet *want*, and "not selected"."""
        project = self._projects[place]
        return project.every & ~(self._questions.fitting(project.key, want) << 1)

    def _read(self, place: int, bit: int) -> bool:
        """Read the requirements of one version; False if they are known."""
        project = self._projects[place]
        if project.read & bit:
            return False
        project.read |= bit
        self._left -= self._read_steps
        candidate = project.candidates[bit.bit_length() - 2]
        for want in self._dependencies(candidate):
            target = self._place(self._questions.identify(want))
            self._projects[target].wanted.append((place, bit, want))
            self._require(place, bit, target, self._unfit(target, want), (want, candidate))
        return True

    def _require(self, place: int, bit: int, target: int, unfit: int, edge: Edge) -> None:
        """Add the incompatibility of one version with the versions that do not meet its requirement."""
        if target == place:
            if unfit & bit:
                self._add(Incompatibility({place: bit}, [edge]))
        elif unfit == self._projects[target].every:
            self._add(Incompatibility({place: bit}, [edge]))
        elif (known := self._merged.get((place, target, unfit))) is not None:
            known.terms[place] |= bit  # the versions with the same requirement share one incompatibility
            known.edges.append(edge)
            self._changed.append(place)
        else:
            one = self._merged[place, target, unfit] = Incompatibility({place: bit, target: unfit}, [edge])
            self._add(one)

    # -- decisions

    def _next(self) -> int | None:
        """Return the place to decide or read next; None if everything that is required is known."""
        waiting = [
            place
            for place, project in enumerate(self._projects)
            if not (possible := project.possible) & ABSENT  # selected, and not decided or not read
            and (possible & (possible - 1) or not possible & project.read)
        ]
        return min(waiting, key=self._rank, default=None)

    def _rank(self, place: int) -> tuple[object, ...]:
        project = self._projects[place]
        name, extra = project.key
        base = self._places.get((name, None)) if extra is not None else None
        return (
            name != PYTHON,
            not project.is_decided,
            base is not None and not self._projects[base].is_decided,
            -project.conflicts if project.conflicts >= _PROMOTED else 0,
            not project.asked,
            project.possible.bit_count(),
            name,
            extra or "",
        )

    def _best(self, place: int) -> int:
        """Return the version to try first, by the order of the provider."""
        project = self._projects[place]
        if project.is_decided:
            return project.possible
        for candidate in self._questions.matches(project.key, self._wants(place)):
            bit = 2 << project.numbers[candidate.version]
            if bit & project.possible:
                return bit
        return project.possible & -project.possible

    def _wants(self, place: int) -> list[ResolverRequirement]:
        """Return the requirements on *place* so far; on an extra, those on its base too."""
        project = self._projects[place]
        decided = self._projects
        found = [want for parent, bit, want in project.wanted if decided[parent].possible == bit]
        name, extra = project.key
        base = self._places.get((name, None)) if extra is not None else None
        return [*project.asked, *found, *(self._wants(base) if base is not None else ())]

    # -- propagation

    def _set(self, place: int, after: int, reason: Incompatibility | None) -> None:
        project = self._projects[place]
        project.changes.append(len(self._trail))
        self._trail.append(_Step(place, project.possible, after, self._level, reason))
        project.possible = after
        self._changed.append(place)

    def _add(self, one: Incompatibility) -> None:
        """Take *one* into account from now on."""
        if len(one.terms) == 1:
            self._go_back(0)  # it holds whatever is decided
        *_, before, last = sorted([*one.terms, *one.terms], key=lambda place: self._held_since(one, place))
        if len(one.terms) > 1:
            before = max(one.terms.keys() - {last}, key=lambda place: self._held_since(one, place))
        one.watched = (before, last)
        for place in {before, last}:
            self._projects[place].watching.append(one)
            self._changed.append(place)

    def _propagate(self) -> Incompatibility | None:
        """Rule out versions until nothing changes; return an incompatibility whose terms all hold."""
        while self._changed:
            place = self._changed.pop()
            project = self._projects[place]
            watching, project.watching = project.watching, []
            for number, one in enumerate(watching):
                if self._look_at(one, place):
                    project.watching += watching[number:]
                    self._changed.append(place)
                    return one
            self._left -= len(watching)
            if self._left <= 0:
                raise SearchEnded(self.steps, *_tried(self._projects))
        return None

    def _look_at(self, one: Incompatibility, place: int) -> bool:
        """Rule out what *one* excludes after a change of *place*; whether all its terms hold."""
        terms, projects = one.terms, self._projects
        first, second = one.watched
        other = second if first == place else first
        holds = not projects[place].possible & ~terms[place]
        if holds and len(terms) > 2:  # noqa: PLR2004 - more than the watched ones
            for third, unfit in terms.items():
                if third not in {place, other} and projects[third].possible & ~unfit:
                    one.watched = (third, other)
                    projects[third].watching.append(one)
                    return False
        if holds or place == other:
            possible = projects[other].possible
            if not possible & ~terms[other]:
                return True
            if possible & terms[other]:
                self._set(other, possible & ~terms[other], one)
        projects[place].watching.append(one)
        return False

    def _go_back(self, level: int) -> None:
        """Undo every change after the decision *level*."""
        while self._trail and self._trail[-1].level > level:
            step = self._trail.pop()
            project = self._projects[step.place]
            project.possible = step.before
            project.changes.pop()
        self._level = level

    # -- conflicts

    def _held_since(self, one: Incompatibility, place: int) -> int:
        """Return the position in the trail from which this term holds; its end if it does not hold."""
        unfit = one.terms[place]
        project = self._projects[place]
        if project.possible & ~unfit:
            return len(self._trail)
        if not project.every & ~unfit:
            return -1
        # Versions are only ruled out, so the term holds from the first of these changes on.
        return next(at for at in project.changes if not self._trail[at].after & ~unfit)

    def _learn(self, conflict: Incompatibility) -> None:
        """Go back to where *conflict* rules out a version, and keep what it teaches.  Raises Impossible."""
        for place in conflict.terms:
            self._projects[place].conflicts += 1
        while True:
            self._left -= 1
            since = sorted((self._held_since(conflict, place), place) for place in conflict.terms)
            if not since or since[-1][0] < 0:
                raise _impossible(conflict)
            at, place = since[-1]
            step = self._trail[at]
            before = max((self._trail[one].level for one, _ in since[:-1] if one >= 0), default=0)
            if step.reason is None or before < step.level:
                self._go_back(before)
                if conflict.watched == (-1, -1):
                    self._add(conflict)
                self._changed.extend(conflict.terms)
                return
            conflict = _resolved(conflict, step.reason, place, self._projects[place].every)

    # -- pre-releases and yanked versions

    def _is_admitted(self, place: int) -> bool:
        """Whether all requirements together admit the selected version.

        A pre-release or a yanked version may meet each requirement, and yet not be admitted.
        Then only another requirement on it can change this.
        """
        project = self._projects[place]
        if project.key[1] is not None:
            return True  # it has the version of its base
        wants = [want for want in self._wants(place) if want.exact is None]
        if project.choice in self._questions.matches(project.key, wants):
            return True
        if self._is_quick or not self._read_more():
            matters = self._questions.may_admit(project.choice, wants)
            terms = terms_without_other_wants(
                self._projects, place, matters, unread_may_want=not self._is_quick
            )
            self._add(Incompatibility(terms, barred=project.choice))
        return False

    def _read_more(self) -> bool:
        """Read the other versions of all projects, up to a bound; False if there is nothing to read."""
        found = False
        for place, project in enumerate(self._projects):  # it grows meanwhile
            for number in range(len(project.candidates)):
                if self._to_read > 0 and self._read(place, 2 << number):
                    self._to_read -= 1
                    found = True
        return found


def _tried(projects: Sequence[ProjectState]) -> tuple[Counter[NormalizedName], Counter[NormalizedName]]:
    """Return the number of versions that were read, and of conflicts, by name."""
    tried: Counter[NormalizedName] = Counter()
    conflicts: Counter[NormalizedName] = Counter()
    for project in projects:
        name, extra = project.key
        conflicts[name] += project.conflicts
        if extra is None and name != PYTHON:
            tried[name] += project.read.bit_count()
    return tried, conflicts


def _resolved(conflict: Incompatibility, reason: Incompatibility, place: int, every: int) -> Incompatibility:
    """Return what follows from both: *reason* has ruled out the versions of *place* that *conflict* lacks."""
    terms = dict(conflict.terms)
    for one, unfit in reason.terms.items():
        if one == place:
            terms[one] |= unfit
        else:
            terms[one] = terms.get(one, unfit) & unfit
    if terms[place] == every:
        del terms[place]
    return Incompatibility(terms, parents=(conflict, reason))


def _impossible(proof: Incompatibility) -> Impossible:
    """Return the requirements from which *proof* follows."""
    edges: dict[Edge, None] = {}
    barred: dict[ResolverCandidate, None] = {}
    seen = {id(proof)}
    queue = [proof]
    while queue:
        one = queue.pop()
        edges.update(dict.fromkeys(one.edges))
        if one.barred is not None:
            barred[one.barred] = None
        for parent in one.parents:
            if id(parent) not in seen:
                seen.add(id(parent))
                queue.append(parent)
    return Impossible(edges, barred)
