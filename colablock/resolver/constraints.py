"""What narrows the candidates of a name without asking for it: constraints, and what is protected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.index.candidates import Candidate, CandidateOrigin
from colablock.resolver.model import (
    ANY,
    Request,
    ResolverCandidate,
    ResolverConstraint,
    ResolverRequirement,
)

if TYPE_CHECKING:
    from colablock.environment.dependency_graph import DependencyGraph, Node
    from colablock.environment.snapshot import Installed

__all__ = ["constraints_of", "installed_candidate", "protected_extras"]


def constraints_of(
    request: Request, graph: DependencyGraph, held: Container[NormalizedName]
) -> dict[NormalizedName, list[ResolverConstraint]]:
    """Return the constraints on each name: those of *request*, and what protected distributions require.

    *graph* is that of the installed distributions. A requirement that is unmet constrains
    nothing: it may stay unmet. A requirement that an extra of another distribution adds
    constrains only while that distribution is *held* at its installed version:
    `protected_extras` covers the others.
    """
    found: defaultdict[NormalizedName, list[ResolverConstraint]] = defaultdict(list)
    for constraint in request.constraints:
        if constraint.marker is None or constraint.marker.evaluate(dict(request.environment.markers)):
            text = f"{constraint.path} takes only `{constraint.name}{constraint.specifier}`"
            found[constraint.name].append(ResolverConstraint(constraint.specifier, text))
    for keeper, node in _protected_nodes(request, graph, held):
        owner, extra = node
        if owner not in held:
            continue
        which = f"`{owner}[{extra}]`, which needs " if extra else ""
        for demand in filter(graph.is_met, graph.demands_of(node)):
            specifier = demand.requirement.specifier
            needed = f"{which}`{demand.target}{specifier}`"
            text = f"{keeper.name} {keeper.version} is protected and needs {needed}"
            by = None if owner in request.protected else owner
            found[demand.target].append(ResolverConstraint(specifier, text, by))
    return found


def protected_extras(
    request: Request, graph: DependencyGraph, held: Container[NormalizedName]
) -> dict[ResolverRequirement, ResolverCandidate]:
    """Return the extras that protected distributions ask of what is not *held*, each with who asks.

    Whatever version such a distribution gets, the solve must also meet what the extra requires
    in that version. An extra whose requirements are not all met now may stay as it is.
    """
    found: dict[ResolverRequirement, ResolverCandidate] = {}
    for keeper, node in _protected_nodes(request, graph, held):
        owner, extra = node
        if owner not in held and graph.is_whole(node):
            path = f"the protected {keeper.name} {keeper.version}"
            requirement = ResolverRequirement(owner, ANY, extra, path=path)
            found.setdefault(requirement, ResolverCandidate(installed_candidate(keeper)))
    return found


def installed_candidate(installed: Installed) -> Candidate:
    """Return the candidate that keeps *installed* as it is."""
    return Candidate(
        name=installed.name,
        version=Version(installed.version),
        origin=CandidateOrigin.INSTALLED,
        installed=installed,
    )


def _protected_nodes(
    request: Request, graph: DependencyGraph, held: Container[NormalizedName]
) -> Iterator[tuple[Installed, Node]]:
    """Yield each protected distribution with itself and with each extra that it needs.

    Left out are extras that an extra of a distribution asks for which is not *held*: another
    version of that one may ask for others.
    """
    for name in sorted(request.protected & request.installed.keys()):
        for node in graph.nodes([name]):
            if all(demand.owner in held for demand in graph.roots(node)[name]):
                yield request.installed[name], node
