"""Solve so that the installed members of a stack get what they need, whoever installed them.

An installed distribution may have a requirement that was unmet before.  Nobody asked to mend the environment,
so `resolve` leaves it.  A member of the stack is another matter: torch 2.11 beside the CUDA libraries of
another torch does not import.

Two members that are builds of one package own the same files, so they get one version.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock.environment.dependency_graph import DependencyGraph
from colablock.errors import FetchFailed, NoSolution
from colablock.matrix.model import Constraint
from colablock.resolver.resolver import resolve

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.dependency_graph import Demand
    from colablock.index.candidates import CandidateSource
    from colablock.resolver.model import Request, Resolution

__all__ = ["mixed", "resolve_members"]


def resolve_members(
    request: Request, source: CandidateSource, reporter: Reporter | None = None
) -> Resolution:
    """Return a resolution in which the requirements of kept members are met, as far as possible.

    A requirement that no version of its target can meet is left as it is, and a sentence in
    `Resolution.left` says so.  Builds of one package get one version, unless no version of both
    fits.  Raises as `resolve` does.
    """
    found = _with_needs(request, source, reporter)
    while (apart := _apart(found)) is not None:
        for first, second in (apart, apart[::-1]):
            same = replace(request, constraints=(*request.constraints, _same_version(found, first, second)))
            try:
                found = _with_needs(same, source, reporter)
            except (NoSolution, FetchFailed):
                continue
            request = same
            break
        else:
            return found  # the plan refuses it
    return found


def mixed(found: Resolution) -> tuple[str, ...]:
    """Return a sentence about two builds of one package that get different versions, if there are such."""
    told = [f"{name} {found.pins[name].version}" for name in _apart(found) or ()]
    return (f"{' and '.join(told)} own the same files",) if told else ()


def _apart(found: Resolution) -> tuple[NormalizedName, NormalizedName] | None:
    """Return two builds of one package that get different versions, the requested one first."""
    pins = found.pins
    requested = {entry.name for entry in found.request.asked}
    for name in sorted(pins, key=lambda name: (name not in requested, pins[name].is_installed)):
        for other in sorted(found.request.builds.get(name, frozenset()) & pins.keys()):
            are_kept = pins[name].is_installed and pins[other].is_installed
            if pins[name].version != pins[other].version and not are_kept:
                return name, other
    return None


def _same_version(found: Resolution, first: NormalizedName, second: NormalizedName) -> Constraint:
    """Return the constraint that gives *second* the version of *first*."""
    version = found.pins[first].version
    path = f"{first} {version}, which owns the same files,"
    return Constraint(name=second, path=path, specifier=SpecifierSet(f"=={version}"))


def _with_needs(request: Request, source: CandidateSource, reporter: Reporter | None) -> Resolution:
    """Return a resolution in which the requirements of kept members are met, as far as possible."""
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
