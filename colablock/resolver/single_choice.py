"""Solve without a search if every name has one candidate, as with a lock.

The candidates of a name are then those of the lock, or the installed distribution.  No name can have
another one, so the names that the roots require are the only solution, or there is none.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colablock.resolver.model import Key, ResolverCandidate, ResolverRequirement
    from colablock.resolver.provider import Provider

__all__ = ["only_solution"]


def only_solution(
    provider: Provider, roots: Iterable[ResolverRequirement]
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
    nothing: defaultdict[Key, list[ResolverCandidate]] = defaultdict(list)
    for key, candidate in chosen.items():
        if candidate not in provider.find_matches(key, wants, nothing):
            return None
    return chosen
