"""Reduce a proof that there is no solution to few requirements, so that a person can read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from colablock.resolver.complete_search import CompleteSearch
from colablock.resolver.model import ANY, Impossible, ResolverRequirement, SearchEnded

if TYPE_CHECKING:
    from colablock.resolver.complete_search import Questions
    from colablock.resolver.model import Edge, ResolverCandidate

__all__ = ["reduced"]

_SEARCHES = 200  # an effort for people: hardly any proof has more groups
_STEPS = 100_000  # of one search


def reduced(proof: Impossible, questions: Questions, roots: Collection[Edge]) -> Impossible:
    """Return a proof with as few requirements as a bounded effort finds.

    It leaves out the requirements of one project on another, and then keeps the others if they
    still have no solution.  So the requirements of the result have no solution alone.
    """
    proof = _proof_of(proof.edges, questions, roots) or proof
    groups = sorted(dict.fromkeys(map(_group_of, proof.edges)), reverse=True)
    for group in groups[:_SEARCHES]:
        rest = [edge for edge in proof.edges if _group_of(edge) != group]
        if len(rest) < len(proof.edges):
            proof = _proof_of(rest, questions, roots) or proof
    return proof


def _group_of(edge: Edge) -> tuple[str, ...]:
    """Return the group of *edge*.  The first groups are left out last: what the user asks for."""
    want, parent = edge
    target = (want.extra or "", want.name)
    if parent is None:
        return ("", "", *target, str(want), want.path)
    return (parent.name, parent.extra or "", *target)


def _proof_of(edges: Sequence[Edge], questions: Questions, roots: Collection[Edge]) -> Impossible | None:
    """Return the proof that *edges* alone have no solution; None if a short search finds none."""
    needs: defaultdict[ResolverCandidate, list[ResolverRequirement]] = defaultdict(list)
    asked = []
    for edge in edges:
        want, parent = edge
        if parent is None or edge in roots:
            asked.append(edge)
        elif want.exact is None:
            needs[parent].append(want)

    def dependencies(candidate: ResolverCandidate) -> Iterator[ResolverRequirement]:
        if candidate.extra is not None:
            yield ResolverRequirement(candidate.name, ANY, exact=candidate.version)
        yield from needs.get(candidate, ())

    try:
        CompleteSearch(questions, asked, steps=_STEPS, dependencies=dependencies).run()
    except Impossible as found:
        return found
    except SearchEnded:
        pass
    return None
