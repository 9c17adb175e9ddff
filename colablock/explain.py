"""Because-chains: a conflict as sentences that end at what the user wrote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from colablock._vendor.packaging.version import Version
from colablock.candidates import Reason
from colablock.errors import FetchFailed, NoSolution
from colablock.resolution import PYTHON, Choice, Conflict, Want

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.candidates import CandidateSource, Judged, Rejection
    from colablock.resolution import Request

__all__ = ["explain", "misfits"]

_MOST_REFUSALS = 4  # of one name: the newest are enough to see why


def explain(
    conflict: Conflict,
    *,
    asker: str,
    misfits: Mapping[NormalizedName, str] | None = None,
    hint: str | None = None,
) -> NoSolution:
    """Return the error that words *conflict*; *asker* is the matrix as the user knows it.

    *misfits* are all the names that have no file for this Python, not only the
    one that the solve met first.
    """
    lines = [*_causes(conflict, asker), *_facts(conflict), *(misfits or {}).values()]
    names = sorted({*conflict.names, *(misfits or {})} - {PYTHON})
    headline = _headline(conflict)
    if misfits:
        version = conflict.request.environment.python_version
        headline = f"{_and(f'`{name}`' for name in misfits)} {_have(misfits)} no file for Python {version}"
    return NoSolution(headline, because=_joined(list(dict.fromkeys(lines))), names=names, hint=hint)


def _have(names: Collection[str]) -> str:
    return "has" if len(names) == 1 else "have"


def misfits(request: Request, source: CandidateSource) -> dict[NormalizedName, str]:
    """Return what the user asks for that no file fits here, with the reason of each, sorted by name.

    A solve stops at the first conflict; whoever has to choose another Python
    wants to know all of them.
    """
    found = {}
    markers = dict(request.environment.markers)
    for entry in request.roots:
        if entry.marker is not None and not entry.marker.evaluate(markers):
            continue
        there = request.installed.get(entry.name)
        if there is not None and entry.specifier.contains(there.version, prereleases=True):
            continue
        judged = _judged(source, entry.name)
        if judged is None or any(
            entry.specifier.contains(c.version, prereleases=True) for c in judged.candidates
        ):
            continue
        for rejection in judged.rejections:
            fits = rejection.version is None or entry.specifier.contains(rejection.version, prereleases=True)
            if fits and rejection.reason in {Reason.TAGS, Reason.REQUIRES_PYTHON}:
                found[entry.name] = str(rejection)
                break
    return dict(sorted(found.items()))


def _judged(source: CandidateSource, name: NormalizedName) -> Judged | None:
    try:
        return source.judge(name)
    except FetchFailed:
        return None  # this explains another error; that one is the user's to read


def _headline(conflict: Conflict) -> str:
    asked = {
        name: [w for w, _ in conflict.causes if w.name == name and w.extra is None] for name in conflict.names
    }
    wants = [str(want) for name in conflict.names for want in asked[name]]
    unique = list(dict.fromkeys(wants))
    if conflict.missing:
        return "no index knows " + _and(f"`{name}`" for name in sorted(conflict.missing))
    if PYTHON in conflict.names:
        return f"Python {conflict.request.environment.python_version} does not fit"
    if len(unique) == 1:
        return f"`{unique[0]}` fits no candidate"
    return "no version of " + _and(f"`{name}`" for name in conflict.names) + " meets every requirement"


def _causes(conflict: Conflict, asker: str) -> Iterator[str]:
    """Yield who asks for what, and for each asker why it is there."""
    askers: defaultdict[tuple[str, str], list[Choice]] = defaultdict(list)
    for want, parent in conflict.causes:
        if parent is None:
            yield _asks(want, asker, conflict)
        else:
            askers[parent.name, _spoken(want)].append(parent)
    explained: set[NormalizedName] = set()
    for (_, spoken), parents in askers.items():
        yield f"{_range(parents)} {'needs' if len(parents) == 1 else 'need'} {spoken}"
        if parents[0].name not in explained:
            explained.add(parents[0].name)
            yield from _origin(conflict, parents[0].name, asker, set())


def _asks(want: Want, asker: str, conflict: Conflict) -> str:
    if want.name == PYTHON:
        here = conflict.request.environment.python_version
        return f"{asker} needs Python{want.specifier}, and this is Python {here}"
    return f"{asker} asks for {_spoken(want)} ({want.path})"


def _spoken(want: Want) -> str:
    if want.name == PYTHON:
        return f"Python{want.specifier}"
    if want.extra == "unusable metadata":
        return "metadata that can be read, which it lacks"
    return f"`{want}`"


def _range(parents: list[Choice]) -> str:
    versions = sorted({parent.version for parent in parents})
    name = parents[0].name
    if len(versions) == 1:
        return f"{name} {versions[0]}"
    return f"{name} {versions[0]} to {versions[-1]} ({len(versions)} versions tried)"


def _origin(conflict: Conflict, name: NormalizedName, asker: str, seen: set[NormalizedName]) -> Iterator[str]:
    """Yield the chain from *name* up to the user, one sentence a link."""
    seen.add(name)
    edges = conflict.edges.get(name, ())
    for want, parent in edges:
        if parent is None:
            yield _asks(want, asker, conflict)
            return
    for want, parent in edges:
        if parent is not None and parent.name not in seen and parent.name != name:
            yield f"{parent.candidate} needs {_spoken(want)}"
            yield from _origin(conflict, parent.name, asker, seen)
            return


def _facts(conflict: Conflict) -> Iterator[str]:
    """Yield what stands in the way: protected ones, constraints, refused files."""
    request = conflict.request
    for name in conflict.names:
        installed = request.installed.get(name)
        if installed is not None and name in request.protected:
            yield f"{name} {installed.version} is installed and protected"
        for guard in conflict.guards.get(name, ()):
            yield guard.text
        for absent in request.absent:
            if absent.name == name:
                yield f"{absent.path} keeps out {name}{absent.specifier}"
        fixed = request.fixed.get(name)
        if fixed is not None:
            yield f"{name} is fixed at {fixed}"
        for rejection in _refusals(conflict, name):
            yield str(rejection)


def _refusals(conflict: Conflict, name: NormalizedName) -> Iterator[Rejection]:
    """Yield the refusals of versions that would have met the requirements, the newest first."""
    wants = [want for want, _ in conflict.causes if want.name == name and want.extra is None]
    by_version: dict[Version | None, Rejection] = {}
    for rejection in conflict.refused:
        version = rejection.version
        if rejection.name == name and (
            version is None or all(want.specifier.contains(version, prereleases=True) for want in wants)
        ):
            by_version.setdefault(version, rejection)
    ordered = sorted(by_version, key=lambda version: version or Version("0"), reverse=True)
    for version in ordered[:_MOST_REFUSALS]:
        yield by_version[version]


def _joined(lines: list[str]) -> list[str]:
    return [f"{'because' if index == 0 else 'and'} {line}" for index, line in enumerate(lines)]


def _and(words: Iterable[str]) -> str:
    *most, last = list(words)
    return f"{', '.join(most)} and {last}" if most else last
