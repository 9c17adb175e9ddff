"""Word a conflict as a chain of reasons ("because ... and ...") that ends at the user's requirements."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import markers_by_python
from colablock.errors import BadDistribution, FetchFailed, NoSolution
from colablock.index.candidates import Reason
from colablock.resolver.model import (
    LOCK,
    PYTHON,
    UNUSABLE,
    Conflict,
    ResolverCandidate,
    ResolverConstraint,
    ResolverRequirement,
)

if TYPE_CHECKING:
    from colablock._vendor.packaging.markers import Marker
    from colablock.index.candidates import CandidateSource, ProjectCandidates, Rejection
    from colablock.resolver.model import Edge, Key, Request

__all__ = ["explain", "misfits"]

_MOST_REFUSALS = 4  # per name; the newest are enough to see the reason
_MOST_SENTENCES = 4  # per parent, about the requirements of its versions
_MOST_VERSIONS = 5  # that are listed one by one
_MOST_PLACES = 3
_PAIR = 2  # versions, with nothing between


# A build may fail for one Python only.
_OF_PYTHON = {Reason.TAGS, Reason.REQUIRES_PYTHON, Reason.UNUSABLE}
_OF_MARKERS = re.compile(r"python_|platform|implementation_|os_name")


def explain(
    conflict: Conflict,
    source: CandidateSource | None = None,
    *,
    asker: str,
    misfits: Mapping[NormalizedName, str] | None = None,
    hint: str | None = None,
) -> NoSolution:
    """Return the error for *conflict*; *asker* is the name of the matrix.

    With the *source* of its candidates, the error says whether every Python has the same conflict.

    *misfits* (see `misfits`) are all requested names without a file for this Python.  The
    conflict itself has only the one that the solve met first.
    """
    conflict = _with_roots(conflict)
    is_about_python = bool(misfits) or _is_about_python(conflict)
    lines = [*_causes(conflict, asker), *_facts(conflict), *(misfits or {}).values()]
    names = sorted({*conflict.names, *(misfits or {})} - {PYTHON})
    headline = _headline(conflict)
    if misfits:
        version = conflict.request.environment.python_version
        markers = conflict.request.environment.markers
        headline = (
            f"{_and(f'`{name}`' for name in misfits)} {_have(misfits)} no file for Python {version}"
            f" on {markers['sys_platform']} {markers['platform_machine']}"
        )
    return NoSolution(
        headline,
        because=list(dict.fromkeys(lines)),
        names=names,
        is_about_python=is_about_python,
        is_universal=source is not None and not is_about_python and _is_universal(conflict, source),
        hint=hint,
    )


def _with_roots(conflict: Conflict) -> Conflict:
    """Return *conflict* with what the user asks for, where that excludes the versions without a file.

    Whoever reads that a version has no wheel for this Python tries another one, in vain.
    """
    added: dict[NormalizedName, tuple[Edge, ...]] = {}
    for name in conflict.names:
        own = [one for one in conflict.request.asked if one.name == name and one.url is None]
        wants = [ResolverRequirement(name, one.specifier, path=one.path) for one in own]
        known = {want.path for want, parent in conflict.edges.get(name, ()) if parent is None}
        unfit = [one.version for one in _refusals(conflict, name) if one.reason in _OF_PYTHON and one.version]
        if unfit and not any(all(_takes(want, version) for want in wants) for version in unfit):
            added[name] = tuple((want, None) for want in wants if want.path not in known)
    if not added:
        return conflict
    edges = {**conflict.edges, **{name: (*more, *conflict.edges[name]) for name, more in added.items()}}
    causes = (*(edge for more in added.values() for edge in more), *conflict.causes)
    return replace(conflict, edges=edges, causes=causes)


def _is_about_python(conflict: Conflict) -> bool:
    """Whether another Python may have a file of a version that meets the requirements."""
    refused = (one for name in conflict.names for one in _refusals(conflict, name))
    return PYTHON in conflict.names or any(one.reason in _OF_PYTHON for one in refused)


def _is_universal(conflict: Conflict, source: CandidateSource) -> bool:
    """Whether the conflict is the same for every Python and platform, and with nothing installed.

    It is if no installed distribution takes part, no requirement in it has a marker that tells the
    possible Pythons apart, and no version that may be chosen is without a file for this Python.
    """
    if conflict.where == (LOCK,) or not conflict.edges.keys().isdisjoint(conflict.request.installed):
        return False
    if any(
        _tells_pythons_apart(entry.marker, conflict.request)
        for entry in conflict.request.roots
        if entry.name in conflict.edges
    ):
        return False
    try:
        return not any(_depends_on_python(conflict, source, name) for name in conflict.edges)
    except (FetchFailed, BadDistribution):
        return False


def _tells_pythons_apart(marker: Marker | None, request: Request) -> bool:
    """Whether *marker* holds for some of the Pythons that *request* admits, and not for others."""
    if marker is None or not _OF_MARKERS.search(str(marker)):
        return False
    pythons = markers_by_python(request.environment, request.requires_python)
    return len({marker.evaluate(markers) for markers in pythons}) != 1


def _depends_on_python(conflict: Conflict, source: CandidateSource, name: NormalizedName) -> bool:
    edges = conflict.edges[name]
    for want, parent in edges:
        lines = () if parent is None else source.metadata(parent.candidate).requires
        for line in lines:
            if canonicalize_name(line.name) == want.name and _tells_pythons_apart(
                line.marker, conflict.request
            ):
                return True
    by_parent: defaultdict[str | None, list[ResolverRequirement]] = defaultdict(list)
    roots = [want for want, parent in edges if parent is None]
    for want, parent in edges:
        if parent is not None:
            by_parent[parent.name].append(want)
    groups = [*([root] for root in roots), *by_parent.values()]
    for rejection in source.judge(name).rejections:
        version = rejection.version
        if rejection.reason in _OF_PYTHON and (
            version is None or all(any(_takes(want, version) for want in group) for group in groups)
        ):
            return True
    return False


def _have(names: Collection[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _is(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"


def misfits(request: Request, source: CandidateSource) -> dict[NormalizedName, str]:
    """Return the requested names without a file for this Python or platform, each with the reason.

    They are sorted by name.  A solve stops at the first conflict, but to choose another Python
    a user must know all of these names.
    """
    found = {}
    asked: defaultdict[NormalizedName, SpecifierSet] = defaultdict(SpecifierSet)
    for entry in request.asked:
        asked[entry.name] &= entry.specifier
    for entry in request.asked:
        there = request.installed.get(entry.name)
        if there is not None and entry.specifier.contains(there.version, prereleases=True):
            continue
        judged = _judged(source, entry.name)
        if judged is None or any(
            entry.specifier.contains(c.version, prereleases=True) for c in judged.candidates
        ):
            continue
        specifier = asked[entry.name]
        for rejection in judged.rejections:
            fits = rejection.version is None or specifier.contains(rejection.version, prereleases=True)
            if fits and rejection.reason in {Reason.TAGS, Reason.REQUIRES_PYTHON}:
                found[entry.name] = str(rejection)
                break
    return dict(sorted(found.items()))


def _judged(source: CandidateSource, name: NormalizedName) -> ProjectCandidates | None:
    try:
        return source.judge(name)
    except FetchFailed:
        return None  # the report is about another error


def _headline(conflict: Conflict) -> str:
    if conflict.missing:
        names = _and(f"`{name}`" for name in sorted(conflict.missing))
        if conflict.where == (LOCK,):
            return f"{names} {_is(conflict.missing)} not in the lock"
        return f"no index has {names}"
    projects = [name for name in conflict.names if name != PYTHON]
    if not projects:
        return f"Python {conflict.request.environment.python_version} does not fit"
    wants = dict.fromkeys(str(want) for want, _ in conflict.causes if want.extra is None)
    if not wants:
        names = _and(f"`{name}`" for name in projects)
        return f"no version of {names} has valid metadata"
    if len(wants) == 1:
        return f"no candidate fits `{next(iter(wants))}`"
    return "no version of " + _and(f"`{name}`" for name in projects) + " meets every requirement"


_Group = tuple["Key | None", NormalizedName]  # a parent (None: the user), and a name that it requires


def _causes(conflict: Conflict, asker: str) -> Iterator[str]:
    """Yield every requirement of the conflict: those that cannot be met, each with its chain to the user."""
    groups: defaultdict[_Group, list[Edge]] = defaultdict(list)
    for edges in conflict.edges.values():
        for want, parent in edges:
            groups[(parent.name, parent.extra) if parent else None, want.name].append((want, parent))
    depths = _depths(groups)
    ordered = sorted(groups, key=lambda group: (depths.get(group[0], 0), *_sortable(group)))
    # The groups of the chain that leads to a parent come before the next group.
    waiting = [*reversed(ordered), *(one for one in reversed(ordered) if one[1] in conflict.names)]
    told: set[_Group] = set()
    while waiting:
        group = waiting.pop()
        if group not in told:
            told.add(group)
            yield from _lines(groups[group], conflict, asker)
            waiting += [one for one in reversed(ordered) if group[0] and one[1] == group[0][0]]


def _sortable(group: _Group) -> tuple[str, str, str]:
    parent, name = group
    return (parent[0], parent[1] or "", name) if parent else ("", "", name)


def _depths(groups: Iterable[_Group]) -> dict[Key | None, int]:
    """Return how many requirements are between the user and each parent."""
    depths: dict[Key | None, int] = {None: 0}
    queue: deque[Key | None] = deque([None])
    while queue:
        current = queue.popleft()
        for parent, name in groups:
            if parent == current:
                for key in {one for one, _ in groups if one and one[0] == name} - depths.keys():
                    depths[key] = depths[current] + 1
                    queue.append(key)
    return depths


def _lines(edges: Iterable[Edge], conflict: Conflict, asker: str) -> Iterator[str]:
    """Yield the requirements of one group: of the user, or of the versions of one parent."""
    by_text: dict[str, dict[ResolverCandidate, ResolverRequirement]] = {}
    for want, parent in edges:
        if parent is None:
            yield _asks(want, asker, conflict)
        elif want.extra != UNUSABLE:
            by_text.setdefault(_text_of(want), {})[parent] = want
    yield from _needs(by_text, conflict)


def _takes(want: ResolverRequirement, version: Version) -> bool:
    return want.specifier.contains(version, prereleases=True)


def _candidates(conflict: Conflict, name: NormalizedName) -> list[Version]:
    """Return the available versions that a choice of the other projects may need."""
    edges = conflict.edges.get(name, ())
    return [version for version in conflict.available.get(name, ()) if _may_take(edges, version)]


def _may_take(edges: Iterable[Edge], version: Version) -> bool:
    """Whether *version* meets what the user asks for, and some requirement at all."""
    takes = [(parent, _takes(want, version)) for want, parent in edges]
    return any(fits for _, fits in takes) and all(fits for parent, fits in takes if parent is None)


def _asks(want: ResolverRequirement, asker: str, conflict: Conflict) -> str:
    if want.name == PYTHON:
        here = conflict.request.environment.python_version
        return f"{asker} needs {_text_of(want)}, and this is Python {here}"
    return f"{asker} asks for {_text_of(want)} ({want.path})"


def _text_of(want: ResolverRequirement) -> str:
    return f"Python {want.specifier}" if want.name == PYTHON else f"`{want}`"


def _needs(
    by_text: Mapping[str, Mapping[ResolverCandidate, ResolverRequirement]], conflict: Conflict
) -> Iterator[str]:
    """Yield the requirements of the versions of one parent.  Equal ones, or many, share one sentence."""
    newest = {text: max(choice.version for choice in parents) for text, parents in by_text.items()}
    texts = sorted(by_text, key=lambda text: newest[text], reverse=True)
    if len(texts) <= _MOST_SENTENCES:
        for text in texts:
            parents = [*by_text[text]]
            yield f"{_range(parents, conflict)} {'needs' if len(parents) == 1 else 'need'} {text}"
        return
    everyone = list(dict.fromkeys(parent for text in texts for parent in by_text[text]))
    yield f"{_range(everyone, conflict)} each need one version: from {texts[0]} to {texts[-1]}"


def _range(parents: Sequence[ResolverCandidate], conflict: Conflict) -> str:
    versions = sorted({parent.version for parent in parents})
    name = _name_of(parents[0])
    between = [v for v in conflict.available.get(parents[0].name, ()) if versions[0] < v < versions[-1]]
    if len(versions) <= _PAIR or (len(versions) <= _MOST_VERSIONS and not {*between} <= {*versions}):
        return f"{name} {_and(map(str, versions))}"
    return f"{name} {versions[0]} to {versions[-1]} ({len(versions)} versions tried)"


def _name_of(choice: ResolverCandidate) -> str:
    return f"{choice.name}[{choice.extra}]" if choice.extra else choice.name


def _facts(conflict: Conflict) -> Iterator[str]:
    """Yield the facts that exclude candidates: protected distributions, constraints, rejected files."""
    request = conflict.request
    if PYTHON in conflict.names and any(parent for want, parent in conflict.causes if want.name == PYTHON):
        yield f"this is Python {request.environment.python_version}"
    for want, parent in conflict.causes:
        if want.url and parent is not None:
            yield f"a direct reference counts only if the matrix itself has it ({want.name})"
    for name in (*conflict.names, *sorted(conflict.edges.keys() - {*conflict.names, PYTHON})):
        yield from _exclusions(conflict, name)
    for choice in conflict.barred:
        if choice.version.is_prerelease:
            text = f"{choice.name} {choice.version} is a pre-release"
            yield f"{text}, and a final release meets the requirements on it"
    if conflict.missing and conflict.where and conflict.where != (LOCK,):
        yield f"it was searched for in {_and(conflict.where[:_MOST_PLACES])}"


def _exclusions(conflict: Conflict, name: NormalizedName) -> Iterator[str]:
    """Yield the facts that exclude versions of *name*."""
    request = conflict.request
    installed = request.installed.get(name)
    if installed is not None and name in request.protected:
        yield f"{name} {installed.version} is installed and protected"
    for constraint in _constraints(conflict, name):
        yield constraint.text
    for absent in request.absent:
        if absent.name == name and any(map(absent.specifier.contains, _candidates(conflict, name))):
            yield f"{absent.path} excludes `{name}{absent.specifier}`"
    fixed = request.fixed.get(name)
    if fixed is not None:
        yield f"{name} is locked at {fixed}"
    if name not in conflict.names:
        for choice in conflict.barred:
            if choice.name == name and not choice.version.is_prerelease:
                yield f"{name} {choice.version} was yanked, and only `==` selects a yanked version"
        return
    for rejection in _refusals(conflict, name):
        only = ", and only `==` selects a yanked version" if rejection.reason is Reason.YANKED else ""
        yield f"{rejection}{only}"
    yield from _available_versions(conflict, name)


def _constraints(conflict: Conflict, name: NormalizedName) -> Iterator[ResolverConstraint]:
    """Yield the constraints that exclude a version which may meet the requirements."""
    fitting = _candidates(conflict, name)
    for constraint in conflict.constraints.get(name, ()):
        excludes = not all(constraint.specifier.contains(version, prereleases=True) for version in fitting)
        if excludes or name in conflict.request.protected:
            yield constraint


def _available_versions(conflict: Conflict, name: NormalizedName) -> Iterator[str]:
    """Yield the available versions, if a single requirement excludes all of them."""
    versions = conflict.available.get(name, ())
    wants = _wants(conflict, name)
    mode = conflict.request.prerelease
    fitting = _fitting(conflict, name)
    if fitting and "if-necessary" not in mode and all(version.is_prerelease for version in fitting):
        yield f"{name} {fitting[0]} is a pre-release, and pre-releases are excluded (`prerelease`)"
    alone = all(any(_takes(want, v) for v in versions) for want in wants)
    if versions and wants and not alone:
        few = len(versions) <= _MOST_VERSIONS
        listed = _and(map(str, sorted(versions))) if few else f"{min(versions)} to {max(versions)}"
        yield (
            f"the available versions of {name} are {listed}"
            if len(versions) > 1
            else (f"the only available version of {name} is {listed}")
        )


def _wants(conflict: Conflict, name: NormalizedName) -> list[ResolverRequirement]:
    return [want for want, _ in conflict.causes if want.name == name and want.extra is None]


def _fitting(conflict: Conflict, name: NormalizedName) -> list[Version]:
    """Return the available versions of *name* that meet all requirements in conflict."""
    wants = _wants(conflict, name)
    versions = conflict.available.get(name, ())
    return [v for v in versions if all(_takes(want, v) for want in wants)]


def _refusals(conflict: Conflict, name: NormalizedName) -> Iterator[Rejection]:
    """Yield the rejections of versions that meet the requirements otherwise, the newest first."""
    wants = _wants(conflict, name)
    by_version: dict[Version | None, Rejection] = {}
    for rejection in conflict.refused:
        version = rejection.version
        if rejection.name == name and (version is None or all(_takes(want, version) for want in wants)):
            by_version.setdefault(version, rejection)
    ordered = sorted(by_version, key=lambda version: version or Version("0"), reverse=True)
    for version in ordered[:_MOST_REFUSALS]:
        yield by_version[version]


def _and(words: Iterable[str]) -> str:
    *most, last = list(words)
    return f"{', '.join(most)} and {last}" if most else last
