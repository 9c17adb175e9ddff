"""The files that a lock lists for a package: those that its target can install, or those of every platform.

A lock is read each time that it is used, and most projects publish dozens of files that one target never
takes.  So a lock lists the files of its target, unless it is asked for all (``colablock lock --all-files``).
An export adds the others again: see `with_all_files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from colablock._common.toml import in_utc
from colablock._records import dataclass
from colablock._vendor.packaging.pylock import Package, PackageArchive, PackageSdist, PackageWheel, Pylock
from colablock._vendor.packaging.utils import NormalizedName, parse_sdist_filename, parse_wheel_filename
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import BadDistribution
from colablock.index.candidates import STRONG_HASHES, Candidate, CandidateOrigin
from colablock.index.evaluator import Policy, judge_files, parse_wheel_name
from colablock.lockfile.tool_table import table_of

if TYPE_CHECKING:
    from colablock._vendor.packaging.version import Version
    from colablock.environment.markers_and_tags import Environment
    from colablock.index.candidates import File

__all__ = ["Wheel", "package_files", "with_all_files"]

_F = TypeVar("_F", PackageWheel, PackageSdist)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel that colablock built from a file that the matrix names.  It lies beside the lock.

    *path* is relative to the lock file, *size* in bytes.  *promised* are the
    hashes of the file that it was built from, where the matrix or an index
    states them.
    """

    path: str
    sha256: str
    size: int
    promised: Mapping[str, str] = field(default_factory=dict)


def package_files(candidate: Candidate, rebuilt: Wheel | None, *, all_files: bool) -> dict[str, Any]:
    """Return the fields ``wheels``, ``sdist`` or ``archive`` of a package.

    A rebuilt package has its wheel, a direct reference its archive.  A package
    of an index has the wheels whose tags fit the target.  It has the sdist only
    if no wheel can be used and the matrix allows the build.  With *all_files*
    it has the wheels of every platform and the sdist.

    Raises BadDistribution if the file to install has no hash, or if its name
    does not tell project and version (PEP 751, ``packages.wheels.name``).
    """
    if rebuilt is not None:
        hashes = {"sha256": rebuilt.sha256}
        return {"wheels": [PackageWheel(path=rebuilt.path, size=rebuilt.size, hashes=hashes)]}
    best = candidate.file
    if best is None or not (
        _hashes(best)
        and (candidate.origin is CandidateOrigin.DIRECT or _is_named(best, candidate.name, candidate.version))
    ):
        _refuse(candidate)
    elif candidate.origin is CandidateOrigin.DIRECT:
        return {"archive": PackageArchive(url=best.url, size=best.size, hashes=_hashes(best))}
    files = (candidate.all_files if all_files else ()) or candidate.files
    wheels, sdist = _described(candidate.name, candidate.version, files)
    return {"wheels": wheels or None, "sdist": None if wheels and not all_files else sdist}


def with_all_files(lock: Pylock, files: Mapping[NormalizedName, Iterable[File]]) -> Pylock:
    """Return *lock* with the files of every platform, taken from *files*, which an index lists by project.

    *files* may have other versions, which are ignored.  The cutoff of the lock
    applies, except to a package for which the lock itself lists a later file or
    one of unknown age: its index is exempt from it.  The files that the lock
    lists stay as they are.  No wheel is added to a package of which the lock lists
    the sdist although a wheel fits its target: `options.no-binary` forbids them.
    """
    cutoff = table_of(lock).get("exclude-newer")
    table = table_of(lock)
    target = environment_for(str(table["python"]), str(table["platform"])) if "python" in table else None
    packages = [
        _completed(package, _allowed(package, list(files.get(package.name, ())), target), cutoff)
        for package in lock.packages
    ]
    return replace(lock, packages=packages)


def _allowed(package: Package, files: Sequence[File], target: Environment | None) -> Sequence[File]:
    """Return *files*, without wheels if the lock has none of those that fit its target."""
    if package.wheels or package.sdist is None or target is None:
        return files
    judged = judge_files(package.name, files, Policy(environment=target)).candidates
    if any(candidate.version == package.version for candidate in judged):
        return [file for file in files if not file.is_wheel]
    return files


def _completed(package: Package, files: Iterable[File], cutoff: datetime | None) -> Package:
    if package.version is None or not (package.wheels or package.sdist):
        return package
    own = [*(package.wheels or ()), *([package.sdist] if package.sdist else ())]
    if not all(_is_before(file.upload_time, cutoff) for file in own):
        cutoff = None
    found = [file for file in files if _is_before(file.upload_time, cutoff)]
    wheels, sdist = _described(package.name, package.version, found)
    by_name = {wheel.filename: wheel for wheel in (*wheels, *(package.wheels or ()))}
    return replace(
        package,
        wheels=[by_name[name] for name in sorted(by_name)] or None,
        sdist=package.sdist or sdist,
    )


def _is_before(moment: datetime | None, cutoff: datetime | None) -> bool:
    return cutoff is None or (moment is not None and in_utc(moment) < in_utc(cutoff))


def _described(
    name: NormalizedName, version: Version, files: Iterable[File]
) -> tuple[list[PackageWheel], PackageSdist | None]:
    """Return the wheels, sorted by name, and the one sdist among *files* that a lock can list."""
    listed = [file for file in files if _hashes(file) and _is_named(file, name, version)]
    wheels = [
        _as_listed(PackageWheel, file)
        for file in sorted(listed, key=lambda file: file.filename)
        if file.is_wheel
    ]
    # PEP 625 allows .tar.gz only; the other formats are older.
    sdists = sorted(
        (file for file in listed if not file.is_wheel),
        key=lambda file: (not file.filename.endswith(".tar.gz"), file.filename),
    )
    return wheels, _as_listed(PackageSdist, sdists[0]) if sdists else None


def _refuse(candidate: Candidate) -> NoReturn:
    """Raise BadDistribution with the reason why the file of *candidate* cannot be locked."""
    file = candidate.file
    if file is None:
        raise BadDistribution(f"{candidate} has no file to lock")
    if not _hashes(file):
        where = file.index or "its folder"
        message = f"`{file.filename}` is listed without a hash by {where}, and a lock needs one"
        raise BadDistribution(message, hint="Fetch the file, and name its folder with `--find-links`")
    message = (
        f"`{file.filename}` is not named as a lock needs it: {candidate} does not follow from it (PEP 751)"
    )
    raise BadDistribution(message)


def _is_named(file: File, name: NormalizedName, version: Version) -> bool:
    """Whether the name of *file* tells project and version in the form that a lock needs (PEP 751)."""
    try:
        if file.is_wheel:
            parse_wheel_name(file.filename)  # packaging lists every tag, however many there are
        parts = (
            parse_wheel_filename(file.filename)[:2] if file.is_wheel else parse_sdist_filename(file.filename)
        )
    except ValueError:
        return False
    return parts == (name, version)


def _as_listed(kind: type[_F], file: File) -> _F:
    return kind(
        name=file.filename,
        url=file.url,
        size=file.size,
        upload_time=in_utc(file.upload_time) if file.upload_time else None,
        hashes=_hashes(file),
    )


def _hashes(file: File) -> dict[str, str]:
    """Return the hashes of *file* that prove anything, sorted."""
    return {name: value for name, value in sorted(file.hashes.items()) if name in STRONG_HASHES}
