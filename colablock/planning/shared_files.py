"""Builds of one package: distributions that own the same files of an import package.

The RECORDs tell it, so no list of such projects is needed: the builds of OpenCV all own
``cv2/__init__.py``, and `pillow` and `pillow-simd` own ``PIL/Image.py``.  The portions of a namespace
package own different files in the same folders.  Two projects that each install a folder ``tests`` are
no builds of one package either.
"""

# The paths of all files of a package stay strings: path objects would take seconds.
# ruff: noqa: PTH120

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import combinations
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from colablock._common.archives import UNREADABLE, open_zip
from colablock._common.decoding import Malformed, read_bounded
from colablock._records import dataclass
from colablock.environment.record import Row, read_record, recorded_paths, row_differs
from colablock.errors import BadDistribution

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = ["Claim", "builds_in", "families", "is_whole", "modules_of", "shared_paths", "wheel_claim"]

_CODE = re.compile(r"\.(py|pyd|dll|dylib|so(\.[0-9]+)*)\Z")
_IN_DATA = re.compile(r"\A[^/]+\.data/(purelib|platlib)/")
_NAMESPACE = re.compile(r"extend_path\(|declare_namespace\(")
# What many projects install beside their package, by mistake.
_FOLDERS = ("benchmarks", "docs", "examples", "lib", "scripts", "src", "test", "testing", "tests", "tools")
_BY_CATCH = frozenset({*_FOLDERS, "utils", "conftest.py", "setup.py"})
_MAIN = 3  # a package with a third of the files of a distribution is one of its main packages


class Claim(NamedTuple):
    """The modules of one distribution: their absolute paths, and the folder that they are relative to."""

    name: NormalizedName
    folder: str
    paths: frozenset[str]


def builds_in(
    snapshot: Snapshot, claims: Iterable[Claim] = ()
) -> dict[NormalizedName, frozenset[NormalizedName]]:
    """Return the other builds of each distribution of *snapshot*, and of those in *claims*.

    A recorded runtime has no RECORDs, so its own list of distributions that share files counts.
    """
    found = families(snapshot.installed.values(), claims)
    for name, others in snapshot.shared.items():
        unread = {
            other
            for other in others & snapshot.installed.keys()
            if name in snapshot.installed
            and None in (snapshot.installed[name].path, snapshot.installed[other].path)
        }
        if unread:
            found[name] = found.get(name, frozenset()) | unread
    return found


def claim_of(installed: Installed) -> Claim | None:
    """Return the modules that the RECORD of *installed* lists; None without a readable one."""
    if installed.path is None:
        return None
    try:
        rows = read_record(Path(installed.path))
    except OSError:
        rows = None
    folder = os.path.dirname(installed.path)
    return modules_of(installed.name, folder, [row.path for row in rows]) if rows is not None else None


def modules_of(name: NormalizedName, folder: str, paths: Iterable[str]) -> Claim:
    """Return the claim of a distribution that installs *paths*, relative to *folder*."""
    return Claim(name, folder, frozenset(f"{folder}/{path}" for path in paths if is_module(path)))


def wheel_claim(name: NormalizedName, folder: str, wheel: Path | IO[bytes]) -> Claim:
    """Return the claim of a *wheel* that is to be installed into *folder*.  Raises BadDistribution."""
    try:
        with wheel.open("rb") if isinstance(wheel, Path) else wheel as stream, open_zip(stream) as archive:
            listed = archive.namelist()
    except UNREADABLE as error:
        raise BadDistribution(f"the wheel of {name} cannot be read: {error}") from error
    return modules_of(name, folder, (_IN_DATA.sub("", path) for path in listed))


def is_module(path: str) -> bool:
    """Whether *path* is a module of Python in a package, or a library there.

    A folder such as ``opencv_python.libs``, with the libraries that a wheel brings along, is no package.
    """
    top = path.partition("/")[0] if "/" in path else path.partition(".")[0]
    return top.isidentifier() and _CODE.search(path) is not None


def families(
    installed: Iterable[Installed], more: Iterable[Claim] = ()
) -> dict[NormalizedName, frozenset[NormalizedName]]:
    """Return the other builds of each distribution.  *more* are distributions that are yet to be installed.

    Only the RECORDs of distributions with the same import names, or without any, are read.
    """
    here = tuple(installed)
    unnamed = (claim_of(one) for one in here if not one.import_names)
    more = (*more, *(claim for claim in unnamed if claim is not None))
    tops = Counter(top for one in here for top in set(one.import_names))
    tops.update(top for claim in more for top in _tops(claim))
    contested = {top for top, number in tops.items() if number > 1}
    claims = [claim_of(one) for one in here if contested.intersection(one.import_names)]
    found = _Packages([claim for claim in (*claims, *more) if claim is not None])
    result: defaultdict[NormalizedName, set[NormalizedName]] = defaultdict(set)
    for one, other in _overlapping(found.claims):
        if one.name != other.name and found.are_builds(one, other):
            result[one.name].add(other.name)
            result[other.name].add(one.name)
    return {name: frozenset(others) for name, others in result.items()}


def _overlapping(claims: Sequence[Claim]) -> Iterator[tuple[Claim, Claim]]:
    """Yield the pairs that have a path in common.  There are far fewer of them than pairs."""
    owners: defaultdict[str, list[int]] = defaultdict(list)
    for number, claim in enumerate(claims):
        for path in claim.paths:
            owners[path].append(number)
    pairs = {pair for numbers in owners.values() if len(numbers) > 1 for pair in combinations(numbers, 2)}
    return ((claims[one], claims[other]) for one, other in sorted(pairs))


def _tops(claim: Claim) -> set[str]:
    start = len(claim.folder) + 1
    return {path[start:].partition("/")[0].partition(".")[0] for path in claim.paths}


@dataclass(slots=True)
class _Packages:
    """The packages of several distributions, and which of them are namespaces."""

    claims: list[Claim]
    _regular: dict[str, bool] = field(default_factory=dict)
    _main: dict[Claim, frozenset[str]] = field(default_factory=dict)

    def are_builds(self, one: Claim, other: Claim) -> bool:
        """Whether two distributions own the same modules of a main package of one of them."""
        both = one.paths & other.paths
        if not both:
            return False
        plain = {path for path in both if os.path.basename(path) != "__init__.py"}  # noqa: PTH119
        if plain:  # most pairs share only the start of a namespace
            main = self._mains(one) | self._mains(other)
            if any(self._package(path, one.folder) in main for path in plain):
                return True
        starts = [path for path in both - plain if self._is_regular(os.path.dirname(path))]
        return 2 * len(starts) > min(len(one.paths), len(other.paths))

    def _mains(self, claim: Claim) -> frozenset[str]:
        """Return the packages that have a third of the modules of a distribution, without by-catch."""
        if claim not in self._main:
            numbers = Counter(self._package(path, claim.folder) for path in claim.paths)
            wanted = {
                package: number
                for package, number in numbers.items()
                if os.path.relpath(package, claim.folder) not in _BY_CATCH
            }
            least = sum(wanted.values()) / _MAIN
            self._main[claim] = frozenset(package for package, number in wanted.items() if number >= least)
        return self._main[claim]

    def _package(self, path: str, folder: str) -> str:
        """Return the topmost regular package of a module; its folder if it is below namespaces only.

        For a module in *folder* itself, it is the module.
        """
        parts = path[len(folder) + 1 :].split("/")
        if len(parts) == 1:
            return path
        package = folder
        for part in parts[:-1]:
            package = f"{package}/{part}"
            if self._is_regular(package):
                return package
        return package

    def _is_regular(self, package: str) -> bool:
        """Whether *package* is no namespace: it has an ``__init__.py`` that does something of its own."""
        if package not in self._regular:
            self._regular[package] = _has_code(Path(package, "__init__.py"))
        return self._regular[package]


def _has_code(start: Path) -> bool:
    try:
        text = read_bounded(start).decode("utf-8", "replace")
    except Malformed:
        return True  # no namespace is that large
    except OSError:
        return False
    lines = (line.strip() for line in text.splitlines())
    return not _NAMESPACE.search(text) and any(line and not line.startswith("#") for line in lines)


def shared_paths(one: Installed, other: Installed) -> frozenset[str]:
    """Return the paths that the RECORDs of both list."""
    return frozenset(_rows(one)) & frozenset(_rows(other))


def is_whole(installed: Installed, shared: Collection[str]) -> bool:
    """Whether the files *shared* with another distribution are there as the RECORD of *installed* says."""
    rows = _rows(installed)
    try:
        return bool(rows) and not any(row_differs(Path(path), rows[path]) for path in shared if path in rows)
    except OSError:
        return False


def _rows(installed: Installed) -> Mapping[str, Row]:
    """Return the rows of a RECORD by absolute path, without bytecode."""
    if installed.path is None:
        return {}
    try:
        rows = [row for row in read_record(Path(installed.path)) or () if not row.path.endswith(".pyc")]
    except OSError:
        return {}
    return dict(zip(recorded_paths(os.path.dirname(installed.path), rows), rows, strict=True))
