"""Resolution ↔ PEP 751 file.  Same resolution, same bytes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from colablock._vendor import tomli_w
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.pylock import (
    Package,
    PackageSdist,
    PackageWheel,
    Pylock,
    PylockUnsupportedVersionError,
    PylockValidationError,
    is_valid_pylock_path,
)
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name, parse_sdist_filename
from colablock._vendor.packaging.version import Version
from colablock.candidates import Candidate, File, Judged, Metadata, Origin
from colablock.errors import BadDistribution, InvalidInput
from colablock.requirements import parse_requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

    from colablock.environment import Environment
    from colablock.matrix import Matrix
    from colablock.resolution import Pin, Resolution

__all__ = ["LockSource", "Wheel", "lock_digest", "make_lock", "read_lock", "write_lock"]

CREATED_BY = "colablock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel that we made from what the matrix names, as it lies beside the lock.

    *path* is relative to the lock file, *size* in bytes.
    """

    path: str
    sha256: str
    size: int


def make_lock(
    resolution: Resolution, matrix: Matrix, *, wheels: Mapping[NormalizedName, Wheel] | None = None
) -> Pylock:
    """Return the PEP 751 lock of a solve from nothing.

    *wheels* are those of rebuilt packages.  Raises BadDistribution for a file
    that its index lists without a hash, since a lock without one proves nothing.
    """
    environment = resolution.request.environment
    packages = [_package(pin, (wheels or {}).get(name)) for name, pin in sorted(resolution.pins.items())]
    version = environment.python_version
    lock = Pylock(
        lock_version=Version("1.0"),
        environments=[_environment_marker(environment)],
        requires_python=SpecifierSet(f"=={version.major}.{version.minor}.*"),
        created_by=CREATED_BY,
        packages=packages,
        tool={"colablock": _about(resolution, matrix)},
    )
    lock.validate()
    return lock


def write_lock(lock: Pylock) -> bytes:
    """Return the bytes of the lock file, the same for the same lock."""
    return tomli_w.dumps(dict(lock.to_dict()), multiline_strings=False).encode()


def lock_digest(lock: Pylock) -> str:
    """Return the sha256 (hex) of the lock's bytes: the name of the environment made from it."""
    return hashlib.sha256(write_lock(lock)).hexdigest()


def read_lock(path: Path) -> Pylock:
    """Return the lock in *path*.  Raises InvalidInput when it is none (PEP 751)."""
    try:
        return Pylock.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidInput(f"`{path}` cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"`{path}` is not TOML: {error}") from error
    except (PylockValidationError, PylockUnsupportedVersionError) as error:
        raise InvalidInput(f"`{path}` is not a lock file (PEP 751): {error}") from error


def check_lock_name(path: Path) -> None:
    """Refuse a file name that installers do not take for a lock (PEP 751, file name)."""
    if not is_valid_pylock_path(path):
        hint = "Name it `pylock.toml`, or `pylock.NAME.toml` with no dot in NAME"
        raise InvalidInput(f"`{path.name}` is not a name for a lock file", hint=hint)


def _about(resolution: Resolution, matrix: Matrix) -> dict[str, Any]:
    """Return what the format has no field for, under ``[tool.colablock]``."""
    about: dict[str, Any] = {
        "schema": 1,
        "kind": "complete",
        "matrix": matrix.name,
        "matrix-digest": matrix.digest,
        "python": str(resolution.request.environment.python_version),
        "platform": resolution.request.environment.tags[0].platform,
        "requirements": list(_asked(resolution)),
    }
    if matrix.variant:
        about["variant"] = matrix.variant
    if matrix.exclude_newer is not None:
        about["exclude-newer"] = matrix.exclude_newer
    return about


def _asked(resolution: Resolution) -> Iterable[str]:
    for _, pin in sorted(resolution.pins.items()):
        for parent in pin.parents:
            if parent.name is None:
                yield parent.requirement


def _environment_marker(environment: Environment) -> Marker:
    markers = environment.markers
    return Marker(
        f'sys_platform == "{markers["sys_platform"]}" and platform_machine == "{markers["platform_machine"]}"'
        f' and implementation_name == "{markers["implementation_name"]}"'
    )


def _package(pin: Pin, rebuilt: Wheel | None) -> Package:
    candidate = pin.candidate
    tool: dict[str, Any] = {"requires-dist": sorted(pin.requires)}
    if pin.extras:
        tool["extras"] = sorted(pin.extras)
    wheels: list[PackageWheel] = []
    sdist = None
    if rebuilt is not None:
        wheels = [PackageWheel(path=rebuilt.path, size=rebuilt.size, hashes={"sha256": rebuilt.sha256})]
        if candidate.file is not None:
            tool["made-from"] = {"url": candidate.file.url, "hashes": dict(candidate.file.hashes)}
    else:
        files = candidate.all_files or candidate.files
        wheels = [_wheel(file) for file in sorted(files, key=lambda f: f.filename) if file.is_wheel]
        sdist = next((_sdist(file) for file in files if not file.is_wheel and _is_sdist(file)), None)
    return Package(
        name=pin.name,
        version=pin.version,
        requires_python=_requires_python(candidate),
        dependencies=[{"name": name} for name in _needed(pin)] or None,
        index=candidate.file.index if candidate.file and rebuilt is None else None,
        wheels=wheels or None,
        sdist=sdist,
        tool={"colablock": tool},
    )


def _needed(pin: Pin) -> list[str]:
    parsed = (parse_requirement(line) for line in pin.requires)
    return sorted({str(canonicalize_name(r.name)) for r in parsed if r is not None} - {str(pin.name)})


def _requires_python(candidate: Candidate) -> SpecifierSet | None:
    text = candidate.file.requires_python if candidate.file else None
    return SpecifierSet(text) if text else None


def _is_sdist(file: File) -> bool:
    try:
        parse_sdist_filename(file.filename)
    except ValueError:
        return False  # an archive of another form (.zip by an old name, a tag's archive)
    return True


def _wheel(file: File) -> PackageWheel:
    return PackageWheel(
        name=file.filename,
        url=file.url,
        size=file.size,
        upload_time=_utc(file.upload_time),
        hashes=_hashes(file),
    )


def _sdist(file: File) -> PackageSdist:
    return PackageSdist(
        name=file.filename,
        url=file.url,
        size=file.size,
        upload_time=_utc(file.upload_time),
        hashes=_hashes(file),
    )


def _hashes(file: File) -> dict[str, str]:
    if not file.hashes:
        raise BadDistribution(
            f"`{file.filename}` is listed without a hash by {file.index or 'its folder'}: a lock needs one",
        )
    return dict(sorted(file.hashes.items()))


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(timezone.utc) if moment is not None else None


@dataclass
class LockSource:
    """A CandidateSource whose candidates are a lock's: nothing is asked of the network."""

    lock: Pylock
    folder: Path
    environment: Environment
    _packages: dict[NormalizedName, Package] = field(init=False)

    def __post_init__(self) -> None:
        self._packages = {package.name: package for package in self.lock.packages}

    def judge(self, name: NormalizedName) -> Judged:
        """Return the locked version of *name*, with the files that fit here, best first."""
        package = self._packages.get(name)
        where = ("the lock",)
        if package is None or package.version is None:
            return Judged(found=package is not None, where=where)
        one = Pylock(lock_version=self.lock.lock_version, created_by=CREATED_BY, packages=[package])
        markers: Any = dict(self.environment.markers)
        chosen = [file for _, file in one.select(environment=markers, tags=self.environment.tags)]
        files = tuple(
            self._file(package, file) for file in chosen if isinstance(file, PackageWheel | PackageSdist)
        )
        candidate = Candidate(
            name=name, version=package.version, origin=Origin.LOCK, files=files, all_files=files
        )
        return Judged(candidates=(candidate,), where=where)

    def metadata(self, candidate: Candidate) -> Metadata:
        """Return what the lock says that *candidate* needs."""
        tool = (self._packages[candidate.name].tool or {}).get("colablock", {})
        parsed = (parse_requirement(line) for line in tool.get("requires-dist", ()))
        return Metadata(
            requires=tuple(r for r in parsed if r is not None), extras=frozenset(tool.get("extras", ()))
        )

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        """Everything is here already."""

    def _file(self, package: Package, file: PackageWheel | PackageSdist) -> File:
        url = file.url or (self.folder / (file.path or "")).resolve().as_uri()
        return File(
            filename=file.filename, url=url, hashes=dict(file.hashes), size=file.size, index=package.index
        )
