"""The ranges that limit candidates without requiring them: constraints, and protected distributions."""

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
    """Return the constraints on each name: of *request*, and the requirements of protected distributions.

    *graph* is the graph of the installed distributions.  A requirement that is unmet is no
    constraint, because it may stay unmet.  A requirement that an extra of another distribution
    adds is a constraint only while that distribution is *held* at its installed version.
    `protected_extras` returns the other extras.
    """
    found: defaultdict[NormalizedName, list[ResolverConstraint]] = defaultdict(list)
    for constraint in request.constraints:
        if constraint.marker is None or constraint.marker.evaluate(dict(request.environment.markers)):
            text = f"{constraint.path} allows only `{constraint.name}{constraint.specifier}`"
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
    """Return the extras of distributions that are not *held*, each with the protected one that asks for it.

    In the version that the solve selects, the requirements of the extra must be met too.  Extras
    whose requirements are not all met now are omitted, because they may stay unmet.
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
    """Yield pairs of a protected distribution and a node that it needs: itself, and extras of others.

    An extra that an extra of another distribution asks for is omitted if that distribution is
    not *held*, because another version may ask for other extras.
    """
    for name in sorted(request.protected & request.installed.keys()):
        for node in graph.nodes([name]):
            if all(demand.owner in held for demand in graph.roots(node)[name]):
                yield request.installed[name], node
