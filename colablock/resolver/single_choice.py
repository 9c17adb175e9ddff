"""Solve without a search if every name, or every name but one, has one candidate.

With a lock the candidates of a name are those of the lock, or the installed distribution.  No name can have
another one, so the names that the roots require are the only solution, or there is none.  A repair moves
one name among installed distributions that are held.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from colablock.resolver.model import PYTHON, Impossible, ResolverCandidate

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.index.candidates import Candidate
    from colablock.resolver.model import Edge, Key, ResolverRequirement
    from colablock.resolver.provider import Provider

__all__ = ["first_solution", "only_solution"]


def only_solution(
    provider: Provider, roots: Iterable[ResolverRequirement], reporter: Reporter
) -> Mapping[Key, ResolverCandidate] | None:
    """Return the candidate of every name that *roots* require.

    None if a name has several candidates, or one that does not meet all requirements: a search has to
    find the solution, or why there is none.
    """
    chosen: dict[Key, ResolverCandidate] = {}
    wants: defaultdict[Key, list[ResolverRequirement]] = defaultdict(list)
    queue = deque(roots)
    while queue:
        want = queue.popleft()
        key = provider.identify(want)
        wants[key].append(want)
        if key not in chosen:
            candidates, _ = provider.domain(key)
            if len(candidates) != 1:
                return None
            chosen[key] = candidates[0]
            queue.extend(provider.get_dependencies(candidates[0]))
    names: set[NormalizedName] = set()
    for (name, extra), choice in chosen.items():
        asked = [*wants[name, extra], *(wants.get((name, None), ()) if extra is not None else ())]
        if name == PYTHON:
            is_admitted = bool(provider.matches((name, extra), asked))
        else:
            reporter.resolving(name, len(names))
            names.add(name)
            is_admitted = provider.matcher.admits(choice.candidate, asked)
        if not is_admitted:
            return None
    return chosen


def first_solution(
    provider: Provider, roots: Sequence[ResolverRequirement]
) -> Mapping[Key, ResolverCandidate] | None:
    """Return the candidates of the solution that has the first possible version of the one name to move.

    All others are installed and held, so they meet the requirements of a version, or no solution has it.
    None if a search has to find the solution.  Raises Impossible if no version is part of a solution.
    """
    moving = {want.name for want in roots if want.name != PYTHON and want.name not in provider.held}
    if len(moving) != 1:
        return None
    key = moving.pop(), None
    wants = [want for want in roots if provider.identify(want) == key]
    refuted: dict[ResolverCandidate, Sequence[Edge]] = {}
    for choice in provider.matches(key, wants):
        selection = _Selection(provider, roots, choice)
        found = selection.completed()
        if found is not None or not selection.refutation:
            return found
        refuted[choice] = selection.refutation
    for choice in provider.domain(key)[0]:  # with pre-releases, which other requirements may admit
        if choice not in refuted:
            selection = _Selection(provider, roots, choice)
            if selection.completed() is not None or not selection.refutation:
                return None
            refuted[choice] = selection.refutation
    root = [(want, provider.asker(want)) for want in wants]
    raise Impossible([*root, *(edge for edges in refuted.values() for edge in edges)], ())


class _Selection:
    """One version of the name to move, and the candidates that it requires.

    *refutation* are requirements that this version, or something installed, has and that cannot be met.
    """

    def __init__(
        self, provider: Provider, roots: Iterable[ResolverRequirement], choice: ResolverCandidate
    ) -> None:
        self._provider = provider
        self._queue: deque[Edge] = deque((want, provider.asker(want)) for want in roots)
        self._chosen: dict[Key, ResolverCandidate] = {}
        self._behind: dict[ResolverCandidate, Edge] = {}  # why a candidate is selected
        self._free: dict[NormalizedName, Candidate] = {choice.name: choice.candidate}  # those not held
        self._wants: defaultdict[Key, list[ResolverRequirement]] = defaultdict(list)  # on those not held
        self.refutation: tuple[Edge, ...] = ()

    def completed(self) -> Mapping[Key, ResolverCandidate] | None:
        """Return the candidates of all required names; None if there is a refutation, or nothing is sure.

        What is not installed gets the first version that fits so far, and nothing is sure if it does not
        fit in the end.
        """
        while True:
            edge = self._unmet()
            if edge is not None:
                self.refutation = () if len(self._free) > 1 else tuple(self._chain(edge))
                return None
            name = min((name for name, _ in self._wants if name not in self._free), default=None)
            if name is None:
                return self._chosen if all(map(self._is_admitted, self._free)) else None
            wants = self._wants[name, None]
            best = next(filter(self._may_join, self._provider.matches((name, None), wants)), None)
            if best is None:
                return None
            self._free[name] = best.candidate
            again = [want for key, found in self._wants.items() if key[0] == name for want in found]
            self._queue.extend((want, None) for want in again)

    def _unmet(self) -> Edge | None:
        """Follow the requirements of what is selected; return one that is not met."""
        while self._queue:
            want, parent = self._queue.popleft()
            key = self._provider.identify(want)
            if want.name in self._free or self._is_open(want):
                self._wants[key].append(want)
            if self._is_open(want):
                continue
            candidate = self._selected(key)
            if candidate is None or not self._provider.is_satisfied_by(want, candidate):
                return want, parent
            if key not in self._chosen:
                self._chosen[key] = candidate
                self._behind[candidate] = want, parent
                self._queue.extend((need, candidate) for need in self._provider.get_dependencies(candidate))
        return None

    def _is_open(self, want: ResolverRequirement) -> bool:
        """Whether nothing is selected that *want* can be about."""
        return not (want.name == PYTHON or want.name in self._free or want.name in self._provider.held)

    def _selected(self, key: Key) -> ResolverCandidate | None:
        """Return the only candidate of *key*, which is not open; None if it has none."""
        if key[0] in self._free:
            return ResolverCandidate(self._free[key[0]], key[1])
        return next(iter(self._provider.domain(key)[0]), None)

    def _may_join(self, candidate: ResolverCandidate) -> bool:
        """Whether what is selected meets the requirements of *candidate*."""
        for want in self._provider.get_dependencies(candidate):
            if self._is_open(want) and want.name != candidate.name:
                continue
            is_own = want.name == candidate.name
            there = candidate if is_own else self._selected(self._provider.identify(want))
            if there is None or not self._provider.is_satisfied_by(want, there):
                return False
        return True

    def _is_admitted(self, name: NormalizedName) -> bool:
        """Whether all requirements together admit the version of *name*, such as a pre-release."""
        wants = [want for want in self._wants[name, None] if want.exact is None]
        return self._chosen[name, None] in self._provider.matches((name, None), wants)

    def _chain(self, edge: Edge) -> Iterator[Edge]:
        """Yield *edge*, then the requirements that led to its candidate, up to a root."""
        yield edge
        while (parent := edge[1]) is not None and parent in self._behind:
            edge = self._behind[parent]
            yield edge
