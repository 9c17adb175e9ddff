"""Solve without a search if every name has one candidate, as with a lock.

The candidates of a name are then those of the lock, or the installed distribution.  No name can have
another one, so the names that the roots require are the only solution, or there is none.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from colablock.resolver.model import PYTHON

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.resolver.model import Key, ResolverCandidate, ResolverRequirement
    from colablock.resolver.provider import Provider

__all__ = ["only_solution"]


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
