"""Solve with resolvelib, by the rule of least change.

Without installed distributions this is a plain solve that prefers the newest versions.
With installed distributions, the first round holds each of them at its version.  If that
round has no solution, the distributions in the conflict are released, and the next round
may change them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from colablock._common.reporter import Reporter
from colablock._common.text import count
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.dependency_graph import DependencyGraph
from colablock.errors import NoSolution
from colablock.index.candidates import CandidateOrigin, CandidateSource
from colablock.resolver.matching import is_pin
from colablock.resolver.model import (
    PYTHON,
    Conflict,
    Edge,
    Impossible,
    Key,
    Parent,
    Pin,
    Request,
    Resolution,
    ResolverCandidate,
    ResolverRequirement,
    SearchEnded,
    Unsolvable,
)
from colablock.resolver.provider import Provider, SolveMemo
from colablock.resolver.single_choice import first_solution, only_solution

__all__ = ["resolve"]

_STEPS = 5_000_000  # of the complete search: about a minute
_MOST_NAMES = 3  # of the projects with the most conflicts


def resolve(
    request: Request,
    source: CandidateSource,
    reporter: Reporter | None = None,
    *,
    may_release: bool = True,
    graph: DependencyGraph | None = None,
) -> Resolution:
    """Return a pin for every name that *request* needs.

    With *may_release* False only the installed distributions that *request* has released
    may change.  *graph* is that of the installed distributions, if there is one already.

    Raises Unsolvable (a NoSolution) if there is no solution even with every unprotected
    distribution released, NoSolution if the bounded search finds neither a solution nor a
    proof that there is none, and FetchFailed if an index cannot be read.
    """
    reporter = reporter or Reporter()
    # The graph does not depend on the released names, so all rounds have the same.
    graph = graph or DependencyGraph(request.installed, request.environment)
    memo, released = SolveMemo(), dict(request.released)
    if may_release:
        released = {**_forced_releases(request, source, graph, memo), **released}
    rounds = 0
    is_quick = holds = may_release and bool(request.installed)  # releasing does not need a full proof
    while True:
        rounds += 1
        source.prefetch(sorted(released))  # the rounds before did not, as long as it was held
        provider = Provider(replace(request, released=released), source, reporter, graph=graph, memo=memo)
        roots = provider.roots()
        edges = {(want, provider.asker(want)): None for want in roots}
        causes: tuple[Edge, ...] = ()
        try:
            mapping = _known(
                provider, roots, reporter, is_locked=bool(request.fixed), may_release=may_release
            )
            if mapping is None:
                mapping, causes = _quickly_searched(provider, roots, held=holds)
            if mapping is None:
                mapping = _searched(provider, edges, is_quick=is_quick)
        except Impossible as proof:
            more = _more_released(provider, causes, proof, released) if may_release else {}
            is_exact = not (is_quick and proof.barred)
            is_quick = holds and bool(more)
            if not more and is_exact:
                shortest = _reduced(proof, provider, edges) if may_release else proof
                raise Unsolvable(provider.conflict(shortest.edges, shortest.barred)) from proof
            released = {**released, **more}
        except SearchEnded as ended:
            raise _unfinished(ended) from ended
        else:
            return Resolution(
                request=request,
                pins=_pins(_required(mapping, roots, provider), provider),
                released=released,
                rejections=tuple(provider.refused()),
                rounds=rounds,
            )


def _known(
    provider: Provider,
    roots: Sequence[ResolverRequirement],
    reporter: Reporter,
    *,
    is_locked: bool,
    may_release: bool,
) -> Mapping[Key, ResolverCandidate] | None:
    """Return the solution that needs no search: a lock has one version of a name, a repair moves one."""
    found = only_solution(provider, roots, reporter) if is_locked else None
    return found if found is not None or may_release else first_solution(provider, roots)


def _quickly_searched(
    provider: Provider, roots: Sequence[ResolverRequirement], *, held: bool
) -> tuple[Mapping[Key, ResolverCandidate] | None, tuple[Edge, ...]]:
    """Return the solution that resolvelib finds, and else its last conflict."""
    from colablock.resolver.bounded_search import search  # noqa: PLC0415 - it loads resolvelib

    found, causes = search(provider, roots, held=held)
    return found if found is None or _is_admitted(found, roots, provider) else None, causes


def _searched(
    provider: Provider, edges: Mapping[Edge, None], *, is_quick: bool
) -> Mapping[Key, ResolverCandidate]:
    """Return the result of the complete search.  Raises Impossible and SearchEnded."""
    from colablock.resolver.complete_search import CompleteSearch  # noqa: PLC0415 - few solves need it

    return CompleteSearch(provider, edges, steps=_STEPS, is_quick=is_quick).run()


def _reduced(proof: Impossible, provider: Provider, edges: Mapping[Edge, None]) -> Impossible:
    from colablock.resolver.proof import reduced  # noqa: PLC0415 - few solves have one

    return reduced(proof, provider, edges)


def _is_admitted(
    mapping: Mapping[Key, ResolverCandidate], roots: Iterable[ResolverRequirement], provider: Provider
) -> bool:
    """Whether each candidate is one that its requirements select.

    A pin that resolvelib keeps from an abandoned branch may be one that nothing admits any more.
    """
    return all(
        choice in provider.matches(provider.identify(choice), [w for w, _ in wants if w.exact is None])
        for choice, wants in _required(mapping, roots, provider)
        if choice.extra is None
    )


def _unfinished(ended: SearchEnded) -> NoSolution:
    """Return the error for a search that its bound has ended."""
    tried = sum(ended.tried.values())
    most = [name for name, number in ended.conflicts.most_common(_MOST_NAMES) if number]
    lines = [f"the search was ended after {ended.steps:,} steps, so a solution may exist"]
    lines.append(f"{count(tried, 'version')} of {count(len(ended.tried), 'project')} were tried")
    if most:
        lines.append(f"most conflicts were about {', '.join(most)}")
    return NoSolution(
        "no solution found in a bounded search",
        because=lines,
        names=sorted(most),
        is_about_python=False,
        hint="Narrow the ranges of the matrix, or pin the projects with the most conflicts",
    )


def _more_released(
    provider: Provider, causes: Iterable[Edge], proof: Impossible, released: Mapping[NormalizedName, str]
) -> dict[NormalizedName, str]:
    """Return the distributions to release, each with the reason; none if the proof needs none that is held.

    *causes* are the last conflict of resolvelib, which names few distributions.
    """
    last = _release(replace(provider.conflict(causes), causes=tuple(causes)), released)
    if last:
        return last
    conflict = provider.conflict(proof.edges)
    return _release(conflict, released) or _release(replace(conflict, causes=proof.edges), released)


def _release(conflict: Conflict, released: Mapping[NormalizedName, str]) -> dict[NormalizedName, str]:
    """Return the distributions to release because of *conflict*, each with the reason.

    These are the held distributions whose version is excluded.  If there are none, they are the
    others in the conflict, then those with requirements in it, then those with such extras.
    """
    request = conflict.request
    held = {name for name in request.installed if name not in released and name not in request.protected}
    excluded: dict[NormalizedName, str] = {}
    for want, parent in conflict.causes:
        if want.name in held and not want.specifier.contains(
            request.installed[want.name].version, prereleases=True
        ):
            excluded[want.name] = _needs(want, parent)
    if excluded:
        return excluded
    narrowed = {
        want.name: "its installed version is excluded" for want, _ in conflict.causes if want.name in held
    }
    parents = {
        parent.name: f"it needs {want}" for want, parent in conflict.causes if parent and parent.name in held
    }
    owners = {
        constraint.owner: f"one of its extras allows only `{want.name}{constraint.specifier}`"
        for want, _ in conflict.causes
        for constraint in conflict.constraints.get(want.name, ())
        if constraint.owner in held
    }
    return narrowed or parents or owners


def _needs(want: ResolverRequirement, parent: ResolverCandidate | None) -> str:
    return f"{parent.candidate} needs {want}" if parent else f"{want.path} asks for {want}"


def _forced_releases(
    request: Request, source: CandidateSource, graph: DependencyGraph, memo: SolveMemo
) -> dict[NormalizedName, str]:
    """Return the installed distributions that must change because of exact pins, each with the reason.

    This is unit propagation: if the roots or a lock allow only one version of a name, the
    requirements of that version hold in every solution.  It saves a round for each name.
    """
    if not request.installed:
        return {}
    # With a lock every name counts as movable, because the fixed versions are known without a request.
    movable = dict.fromkeys(request.installed, "") if request.fixed else dict(request.released)
    while True:
        provider = Provider(replace(request, released=movable), source, Reporter(), graph=graph, memo=memo)
        forced = _excluded_by_pins(request, provider)
        if forced.keys() <= movable.keys():
            return forced
        movable.update(forced)  # the requirements of their only version hold, too


def _excluded_by_pins(request: Request, provider: Provider) -> dict[NormalizedName, str]:
    """Return the installed distributions that requirements of only versions exclude, each with the reason."""
    only = {*request.fixed, *(entry.name for entry in request.asked if entry.url)}
    forced: dict[NormalizedName, str] = {}
    known: defaultdict[NormalizedName, list[ResolverRequirement]] = defaultdict(list)
    queue: deque[Edge] = deque((want, None) for want in provider.roots())
    expanded: set[tuple[NormalizedName, str | None]] = set()
    while queue:
        want, parent = queue.popleft()
        known[want.name].append(want)
        if want.name == PYTHON or want.name in request.protected:
            continue
        installed = request.installed.get(want.name)
        if installed is not None and want.name not in forced:
            # It meets the requirements before this one.
            if provider.matcher.installed_serves(installed, [want]):
                continue
            forced[want.name] = _needs(want, parent)
        is_exact = want.name in only or is_pin(want)
        if not is_exact or (want.name, want.extra) in expanded:
            continue
        expanded.add((want.name, want.extra))
        fitting = [
            c
            for c in provider.matcher.matching(want.name, known[want.name])
            if c.origin is not CandidateOrigin.INSTALLED
        ]
        if len({c.version.public for c in fitting}) == 1:
            choice = ResolverCandidate(fitting[0], want.extra)
            queue.extend((need, choice) for need in provider.get_dependencies(choice))
    return forced


def _required(
    mapping: Mapping[Key, ResolverCandidate],
    roots: Iterable[ResolverRequirement],
    provider: Provider,
) -> list[tuple[ResolverCandidate, tuple[Edge, ...]]]:
    """Return the candidates of *mapping* that the roots require, sorted by name, each with its parents."""
    edges: dict[Key, dict[Edge, None]] = {}
    queue: deque[Edge] = deque((want, provider.asker(want)) for want in roots)
    while queue:
        want, parent = queue.popleft()
        identifier = provider.identify(want)
        if identifier not in edges:
            choice = mapping[identifier]
            queue.extend((need, choice) for need in provider.get_dependencies(choice))
        edges.setdefault(identifier, {})[want, parent] = None
    ordered = sorted(edges, key=lambda key: (key[0], key[1] or ""))
    return [(mapping[key], tuple(edges[key])) for key in ordered]


def _pins(
    required: Iterable[tuple[ResolverCandidate, tuple[Edge, ...]]],
    provider: Provider,
) -> dict[NormalizedName, Pin]:
    """Return the pins of a finished solve, sorted by name.  An extra is part of the pin of its name."""
    chosen: dict[NormalizedName, ResolverCandidate] = {}
    extras: defaultdict[NormalizedName, set[str]] = defaultdict(set)
    requires: defaultdict[NormalizedName, dict[str, None]] = defaultdict(dict)
    parents: defaultdict[NormalizedName, dict[Parent, None]] = defaultdict(dict)
    for choice, wants in required:
        name = choice.name
        if choice.extra is None:
            chosen[name] = choice
        else:
            extras[name].add(choice.extra)
        for want in provider.get_dependencies(choice):
            if want.exact is None and want.name != PYTHON:
                requires[name][str(want)] = None
        for want, parent in wants:
            if want.exact is None:
                asker = parent.name if parent else None
                parents[name][Parent(name=asker, requirement=str(want), path=want.path)] = None
    return {
        name: Pin(
            name=name,
            candidate=choice.candidate,
            requires=tuple(requires[name]),
            optional=provider.optional(choice.candidate),
            extras=frozenset(extras[name]),
            parents=tuple(parents[name]),
        )
        for name, choice in chosen.items()
        if name != PYTHON
    }
