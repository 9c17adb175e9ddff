"""Judge the names and the ranges of a request before anything is resolved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from colablock._common.text import command_line, near
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.markers_and_tags import Environment, markers_by_python
from colablock.environment.requirements import project_named
from colablock.environment.snapshot import Snapshot
from colablock.errors import FetchFailed, NoSolution, NotFound, Refused
from colablock.lockfile.lock_source import LockSource
from colablock.matrix.model import is_addition, roots

if TYPE_CHECKING:
    from colablock.index.candidates import CandidateSource
    from colablock.matrix.model import Matrix
    from colablock.resolver.model import Request

__all__ = ["check_additions", "check_ranges", "check_reinstalled", "with_protected"]

_LIKENESS = 0.75  # of a misspelt project: short names are alike by accident


class _Asked(NamedTuple):
    """A range, the sentence that says who asks for it, and where it applies."""

    specifier: SpecifierSet
    text: str
    marker: Marker | None
    is_addition: bool = False


def with_protected(snapshot: Snapshot, names: Iterable[str]) -> Snapshot:
    """Return *snapshot* with *names* protected.  Raises NotFound for a name that is not installed."""
    wanted = {project_named(text): text for text in names}
    for name, text in wanted.items():
        if name not in snapshot.everything:
            raise _not_installed(text, "protected", snapshot)
    present = snapshot.installed.keys() & wanted.keys()
    return replace(snapshot, protected=snapshot.protected | present) if wanted else snapshot


def check_reinstalled(snapshot: Snapshot, names: Iterable[NormalizedName]) -> None:
    """Raise NotFound if one of *names* is not installed, Refused if it is protected."""
    for name in sorted(names):
        if name not in snapshot.everything:
            raise _not_installed(name, "reinstalled", snapshot)
        if name in snapshot.protected:
            raise Refused(f"`{name}` cannot be reinstalled: it is protected")


def _not_installed(name: str, what: str, snapshot: Snapshot) -> NotFound:
    where = snapshot.prefix if snapshot.source == "live" else snapshot.source
    return NotFound(
        f"`{name}` cannot be {what}: it is not installed in `{where}`",
        hint=near(name, snapshot.everything, likeness=_LIKENESS),
    )


def check_ranges(matrix: Matrix, with_: Sequence[str], environment: Environment, *, called: str) -> None:
    """Raise NoSolution if the requirements on one project exclude each other, whatever the Python.

    The error has as few of them as exclude each other.  Those with a marker are judged for each Python
    that the matrix admits, on the platform of *environment*.  *called* is what the user calls the matrix.
    """
    asked: defaultdict[NormalizedName, list[_Asked]] = defaultdict(list)
    for entry in roots(matrix, with_):
        if entry.url is None:
            requirement = f"`{entry.name}{entry.specifier}`"
            text = f"{matrix.name} asks for {requirement} ({entry.path})"
            is_added = is_addition(entry.path)
            asked[entry.name].append(_Asked(entry.specifier, text, entry.marker, is_added))
    for limit in matrix.constraints:
        if limit.name in asked:
            text = f"{limit.path} allows only `{limit.name}{limit.specifier}`"
            asked[limit.name].append(_Asked(limit.specifier, text, limit.marker))
    for name, wants in asked.items():
        conflict = _in_every_python(wants, environment, matrix.requires_python)
        if conflict:
            raise NoSolution(
                _headline(name, conflict),
                because=[one.text for one in conflict],
                names=[name],
                is_about_python=False,
                is_universal=True,
                hint=_remedy(conflict, called),
            )


def check_additions(request: Request, source: CandidateSource, with_: Iterable[str], matrix: Matrix) -> None:
    """Raise NoSolution for the first requirement of *with_* whose project no index has."""
    if isinstance(source, LockSource):
        return
    own = {entry.name for entry in matrix.packages}
    for entry in roots(matrix, tuple(with_))[len(matrix.packages) :]:
        if entry.name in own or entry.url is not None or entry.name in request.installed:
            continue
        try:
            judged = source.judge(entry.name)
        except FetchFailed:
            continue  # the solve says it, if it needs this project
        if judged.found or judged.rejections:
            continue
        places = " and ".join(judged.where[:3])
        raise NoSolution(
            f"no index has `{entry.name}`",
            because=[
                f"{matrix.name} asks for `{entry.name}{entry.specifier}` ({entry.path})",
                *([f"it was searched for in {places}"] if places else []),
            ],
            names=[entry.name],
            is_about_python=False,
            is_universal=True,
            hint=near(entry.name, {*own, *request.installed}, likeness=_LIKENESS),
        )


def _headline(name: NormalizedName, conflict: Sequence[_Asked]) -> str:
    if len(conflict) == 1:
        return f"`{name}{conflict[0].specifier}` excludes every version"
    return f"no version of `{name}` meets every requirement"


def _in_every_python(
    wants: Sequence[_Asked], environment: Environment, allowed: SpecifierSet
) -> Sequence[_Asked]:
    """Return the fewest of *wants* that exclude each other in a Python; none if a Python has no conflict."""
    if all(one.marker is None for one in wants):
        return _fewest(wants)
    first: Sequence[_Asked] = ()
    for markers in markers_by_python(environment, allowed):
        found = _fewest([one for one in wants if one.marker is None or one.marker.evaluate(markers)])
        if not found:
            return ()
        first = first or found
    return first


def _fewest(wants: Sequence[_Asked]) -> Sequence[_Asked]:
    """Return the fewest of *wants* that exclude each other; none if they do not."""
    if not _exclude(wants):
        return ()
    return next(
        some for size in range(1, len(wants) + 1) for some in combinations(wants, size) if _exclude(some)
    )


def _exclude(wants: Iterable[_Asked]) -> bool:
    merged = SpecifierSet()
    for one in wants:
        merged &= one.specifier
    return merged.is_unsatisfiable()


def _remedy(conflict: Sequence[_Asked], called: str) -> str | None:
    """Return what to do if some of them are additions of the user."""
    if len({one.is_addition for one in conflict}) == 1:
        return None
    other = f"`{command_line('new', 'NAME', '--extends', called)}`"
    return f"Change the requirement in `--with`, or write a matrix with another range: {other}"
