"""Search with resolvelib, within bounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from resolvelib import BaseReporter, ResolutionImpossible, ResolutionTooDeep
from resolvelib.resolvers import Resolution as Search

from colablock.resolver.model import Edge, Key, ResolverCandidate, ResolverRequirement
from colablock.resolver.provider import Clauses

if TYPE_CHECKING:
    from colablock.resolver.provider import Provider

__all__ = ["search"]

# A real solve has fewer than ten conflicts and 300 rounds.  One with many meets the same conflicts again
# and again, and the complete search learns from them.
_CONFLICTS = 100
_ROUNDS = 2_000
_HELD_ROUNDS = 1_000  # with installed distributions, each conflict with a held one needs a search of its own


class _ConflictCounter(BaseReporter[ResolverRequirement, ResolverCandidate, Key]):
    """Ends a search of resolvelib after too many conflicts."""

    def __init__(self) -> None:
        self._number = 0

    def resolving_conflicts(self, causes: Collection[Any]) -> None:  # noqa: ARG002
        self._number += 1
        if self._number > _CONFLICTS:
            raise ResolutionTooDeep(self._number)


class _Search(Search[ResolverRequirement, ResolverCandidate, Key]):
    """A search of resolvelib that judges a pin again only if its requirements have changed."""

    def __init__(self, provider: Any, reporter: _ConflictCounter) -> None:
        super().__init__(provider, reporter)
        self._provider: Provider = provider
        self._judged: dict[Key, tuple[object, ResolverCandidate, bool]] = {}
        self._clauses: dict[Key, tuple[object, Clauses]] = {}

    def _get_preference(self, name: Key) -> Any:
        state = self._states[-1]
        criterion = state.criteria[name]
        known = self._clauses.get(name)
        if known is None or known[0] is not criterion:
            known = self._clauses[name] = criterion, Clauses.of(criterion.iter_requirement())
        return self._provider.preference(name, known[1], state.mapping)

    def _is_current_pin_satisfying(self, name: Key, criterion: Any) -> bool:
        pin = self._states[-1].mapping.get(name)
        if pin is None:
            return False
        known = self._judged.get(name)
        if known is None or known[0] is not criterion or known[1] is not pin:
            is_satisfying: bool = super()._is_current_pin_satisfying(name, criterion)
            known = self._judged[name] = criterion, pin, is_satisfying
        return known[2]


def search(
    provider: Provider, roots: Iterable[ResolverRequirement], *, held: bool
) -> tuple[Mapping[Key, ResolverCandidate] | None, tuple[Edge, ...]]:
    """Return the candidates that resolvelib selects; None and its last conflict if it finds none.

    With *held* there are installed distributions, which stay if they can.  resolvelib may miss a
    solution: it goes back past decisions that its conflict does not name.
    """
    questions: Any = provider
    try:
        # `Resolver` is not used: it walks from each pin up to the roots, and never ends if two pins that
        # remain from an abandoned branch need each other.
        unbounded: Any = _Search(questions, _ConflictCounter())
        found: Mapping[Key, ResolverCandidate] = unbounded.resolve(
            roots, max_rounds=_HELD_ROUNDS if held else _ROUNDS
        ).mapping
    except ResolutionImpossible as error:
        return None, tuple(dict.fromkeys((info.requirement, info.parent) for info in error.causes))
    except ResolutionTooDeep:
        return None, ()
    return found, ()
