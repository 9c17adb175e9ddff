"""Solve so that the installed members of a stack get what they need, whoever installed them.

An installed distribution may have a requirement that was unmet before.  Nobody asked to mend the environment,
so `resolve` leaves it.  A member of the stack is another matter: torch 2.11 beside the CUDA libraries of
another torch does not import.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._common.reporter import Reporter
from colablock.environment.dependency_graph import DependencyGraph
from colablock.errors import FetchFailed, NoSolution
from colablock.resolver.resolver import resolve

if TYPE_CHECKING:
    from colablock.environment.dependency_graph import Demand
    from colablock.index.candidates import CandidateSource
    from colablock.resolver.model import Request, Resolution

__all__ = ["resolve_members"]


def resolve_members(
    request: Request, source: CandidateSource, reporter: Reporter | None = None
) -> Resolution:
    """Return a resolution in which the requirements of kept members are met, as far as possible.

    A requirement that no version of its target can meet is left as it is, and a sentence in
    `Resolution.left` says so.  Raises as `resolve` does.
    """
    found = resolve(request, source, reporter)
    left: dict[tuple[str, str], str] = {}
    while True:
        demand = next((one for one in _unmet(found) if (one.owner, one.line) not in left), None)
        if demand is None:
            return replace(found, left=tuple(left.values()))
        must_hold = found.request.must_hold | {(demand.owner, demand.line)}
        try:
            found = resolve(replace(found.request, must_hold=must_hold), source, reporter)
        except (NoSolution, FetchFailed):
            left[demand.owner, demand.line] = _told(demand, request)


def _unmet(found: Resolution) -> list[Demand]:
    """Return the requirements of kept members that an installed distribution does not meet."""
    request = found.request
    if not request.installed:
        return []
    graph = DependencyGraph(request.installed, request.environment)
    unmet = []
    for name, pin in found.pins.items():
        for extra in ("", *sorted(pin.extras)) if pin.is_installed else ():
            for demand in graph.demands_of((name, extra)):
                if demand.target in request.installed and not graph.is_met(demand):
                    moved = found.pins.get(demand.target)
                    specifier = demand.requirement.specifier
                    if moved is None or not specifier.contains(moved.version, prereleases=True):
                        unmet.append(demand)
    return unmet


def _told(demand: Demand, request: Request) -> str:
    owner, target = request.installed[demand.owner], request.installed[demand.target]
    needs = f"{owner.name} {owner.version} needs {demand.requirement}"
    return f"{needs}, {target.name} {target.version} is installed, and no version can replace it"
