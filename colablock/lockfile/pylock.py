"""Resolution ↔ PEP 751 file.  Same resolution, same bytes."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from colablock._common.urls import basename, redacted
from colablock._vendor import tomli_w
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.pylock import (
    Package,
    PackageArchive,
    PackageSdist,
    PackageWheel,
    Pylock,
    PylockUnsupportedVersionError,
    PylockValidationError,
    is_valid_pylock_path,
)
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import (
    NormalizedName,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from colablock._vendor.packaging.version import Version
from colablock.environment.requirements import parse_requirement
from colablock.errors import BadDistribution, InvalidInput, NoSolution
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    File,
    Metadata,
    ProjectCandidates,
    Reason,
    Rejection,
)
from colablock.index.evaluator import Policy, judge_files, parse_sdist_stem
from colablock.matrix.model import PackageEntry
from colablock.resolver.model import LOCK

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

    from colablock.environment.markers_and_tags import Environment
    from colablock.matrix.model import Matrix
    from colablock.resolver.model import Pin, Resolution

__all__ = [
    "COMPLETE",
    "DELTA",
    "LockOrigin",
    "LockSource",
    "Wheel",
    "check_lock_name",
    "lock_digest",
    "make_lock",
    "read_lock",
    "write_lock",
]

CREATED_BY = "colablock"
COMPLETE = "complete"
DELTA = "delta"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel that we made from what the matrix names, as it lies beside the lock.

    *path* is relative to the lock file, *size* in bytes.  *promised* are the
    hashes of the file that it was made from, where somebody promises those.
    """

    path: str
    sha256: str
    size: int
    promised: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOrigin:
    """What a lock was made from beside the matrix: the *runtime* of a delta, the default *index* (its URL
    without credentials), and the requirements that the user added to the matrix's own.
    """

    runtime: str | None = None
    index: str | None = None
    with_: tuple[str, ...] = ()


def make_lock(
    resolution: Resolution,
    matrix: Matrix,
    *,
    wheels: Mapping[NormalizedName, Wheel] | None = None,
    origin: LockOrigin | None = None,
    repairs: Iterable[Pin] = (),
) -> Pylock:
    """Return the PEP 751 lock of a solve: *complete* from nothing, a *runtime delta* from what is installed.

    A delta lists what comes, *repairs* of what the stack breaks among it; what
    it needs and finds installed is assumed.  *wheels* are those of rebuilt
    packages.  Raises BadDistribution for a file that its index lists without a
    hash, since a lock without one proves nothing.
    """
    environment = resolution.request.environment
    pins = {name: pin for name, pin in resolution.pins.items() if not pin.is_installed}
    mended = {pin.name: pin for pin in repairs}
    listed = {**pins, **mended}
    packages = [
        _package(pin, (wheels or {}).get(name), listed.keys(), is_repair=name in mended)
        for name, pin in sorted(listed.items())
    ]
    version = environment.python_version
    lock = Pylock(
        lock_version=Version("1.0"),
        environments=[_environment_marker(environment)],
        requires_python=SpecifierSet(f"=={version.major}.{version.minor}.*"),
        created_by=CREATED_BY,
        packages=packages,
        tool={"colablock": _about(resolution, matrix, origin or LockOrigin())},
    )
    lock.validate()
    return lock


def write_lock(lock: Pylock) -> bytes:
    """Return the bytes of the lock file, the same for the same lock."""
    text = tomli_w.dumps(dict(lock.to_dict()), multiline_strings=False)
    return _STRING.sub(_plainer, text).encode()


_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')


def _plainer(match: re.Match[str]) -> str:
    """Return a string without its escaped quotes (TOML, literal strings): markers are full of them."""
    inner = match[0][1:-1].replace('\\"', '"')
    plain = '"' in inner and "'" not in inner and "\\" not in inner
    return f"'{inner}'" if plain else match[0]


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


def _about(resolution: Resolution, matrix: Matrix, origin: LockOrigin) -> dict[str, Any]:
    """Return what the format has no field for, under ``[tool.colablock]``.

    ``schema`` and ``kind`` (``complete`` or ``delta``) of this table, ``matrix``
    and ``matrix-digest`` of what was solved (with ``variant`` and
    ``exclude-newer`` where it has them), the full ``python`` and the
    ``platform`` it was solved for, the ``requirements`` that were asked for,
    those ``with`` which the user added, and the default ``index``.  A delta
    names its ``runtime`` and ``assumes`` versions of what is installed there.
    A package's own table holds its ``requires-dist`` as far as it applies, its
    ``extras`` in use, what a rebuilt one was ``made-from``, and whether it is a
    ``repair`` of what the stack would break.
    """
    is_delta = bool(resolution.request.installed)
    about: dict[str, Any] = {
        "schema": 1,
        "kind": DELTA if is_delta else COMPLETE,
        "matrix": matrix.name,
        "matrix-digest": matrix.digest,
        "python": str(resolution.request.environment.python_version),
        "platform": resolution.request.environment.platform,
        "requirements": _asked(resolution),
    }
    if matrix.variant:
        about["variant"] = matrix.variant
    if matrix.exclude_newer is not None:
        about["exclude-newer"] = _utc(matrix.exclude_newer)
    if origin.with_:
        about["with"] = sorted(origin.with_)
    if origin.index is not None:
        about["index"] = origin.index
    if origin.runtime is not None:
        about["runtime"] = origin.runtime
    if is_delta:
        about["assumes"] = {
            str(name): pin.candidate.installed.version
            for name, pin in sorted(resolution.pins.items())
            if pin.candidate.installed is not None
        }
    return about


def _asked(resolution: Resolution) -> list[str]:
    """Return the roots whose markers hold, as PEP 508 lines without the markers, sorted."""
    entries = (replace(one, url=redacted(one.url) if one.url else None) for one in resolution.request.asked)
    return sorted({entry.requirement for entry in entries})


def _environment_marker(environment: Environment) -> Marker:
    markers = environment.markers
    return Marker(
        f'sys_platform == "{markers["sys_platform"]}" and platform_machine == "{markers["platform_machine"]}"'
        f' and implementation_name == "{markers["implementation_name"]}"'
    )


def _package(
    pin: Pin, rebuilt: Wheel | None, listed: Container[NormalizedName], *, is_repair: bool
) -> Package:
    candidate = pin.candidate
    tool: dict[str, Any] = {"requires-dist": sorted(pin.requires)}
    if is_repair:
        tool["repair"] = True
    if pin.extras:
        tool["extras"] = sorted(pin.extras)
    if rebuilt is not None and candidate.file is not None and candidate.origin is not CandidateOrigin.LOCK:
        promised = {"hashes": dict(rebuilt.promised)} if rebuilt.promised else {}
        tool["made-from"] = {"url": candidate.file.url, **promised}
    return Package(
        name=pin.name,
        version=pin.version,
        requires_python=_requires_python(candidate),
        dependencies=[{"name": name} for name in _needed(pin) if name in listed] or None,
        index=candidate.file.index if candidate.file and rebuilt is None else None,
        tool={"colablock": tool},
        **_files(candidate, rebuilt),
    )


def _files(candidate: Candidate, rebuilt: Wheel | None) -> dict[str, Any]:
    """Return what a package is installed from: our wheel, a direct reference, or the files of an index.

    Of these all that the format takes are listed, for whoever installs elsewhere.
    """
    if rebuilt is not None:
        hashes = {"sha256": rebuilt.sha256}
        return {"wheels": [PackageWheel(path=rebuilt.path, size=rebuilt.size, hashes=hashes)]}
    best = candidate.file
    if best is None or not (
        _hashes(best) and (candidate.origin is CandidateOrigin.DIRECT or _is_named(best, candidate))
    ):
        _refuse(candidate)
    elif candidate.origin is CandidateOrigin.DIRECT:
        return {"archive": PackageArchive(url=best.url, size=best.size, hashes=_hashes(best))}
    files = [
        file
        for file in candidate.all_files or candidate.files
        if _hashes(file) and _is_named(file, candidate)
    ]
    wheels = [_described(PackageWheel, f) for f in sorted(files, key=lambda f: f.filename) if f.is_wheel]
    sdists = [_described(PackageSdist, file) for file in files if not file.is_wheel]
    # PEP 625 names .tar.gz; others are of older days.
    sdists.sort(key=lambda sdist: (not sdist.filename.endswith(".tar.gz"), sdist.filename))
    return {"wheels": wheels or None, "sdist": sdists[0] if sdists else None}


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


def _is_named(file: File, candidate: Candidate) -> bool:
    """Whether the name of *file* says project and version in the way that a lock needs (PEP 751)."""
    try:
        parts = (
            parse_wheel_filename(file.filename)[:2] if file.is_wheel else parse_sdist_filename(file.filename)
        )
    except ValueError:
        return False
    return parts == (candidate.name, candidate.version)


_F = TypeVar("_F", PackageWheel, PackageSdist)


def _described(kind: type[_F], file: File) -> _F:
    return kind(
        name=file.filename,
        url=file.url,
        size=file.size,
        upload_time=_utc(file.upload_time) if file.upload_time else None,
        hashes=_hashes(file),
    )


def _hashes(file: File) -> dict[str, str]:
    """Return the hashes of *file* that prove anything, sorted."""
    return {name: value for name, value in sorted(file.hashes.items()) if name in _STRONG}


_STRONG = frozenset({"sha256", "sha384", "sha512"})


def _utc(moment: datetime) -> datetime:
    """Return *moment* in UTC; one without a zone is in UTC already."""
    return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _needed(pin: Pin) -> list[NormalizedName]:
    parsed = (parse_requirement(line) for line in pin.requires)
    return sorted({canonicalize_name(r.name) for r in parsed if r is not None} - {pin.name})


def _requires_python(candidate: Candidate) -> SpecifierSet | None:
    text = candidate.file.requires_python if candidate.file else None
    return SpecifierSet(text) if text else None


@dataclass
class LockSource:
    """A CandidateSource whose candidates are a lock's: nothing is asked of the network.

    A lock of ours tells what each package needs.  Another tool's does not:
    all that it lists for this environment is to be installed, and `entries`
    are roots that ask for it.  An sdist is used only where *allow_build* names it.

    Raises NoSolution where the lock is for another Python or platform.
    """

    lock: Pylock
    folder: Path
    environment: Environment
    allow_build: frozenset[str] = frozenset()
    name: str = LOCK
    _packages: dict[NormalizedName, Package] = field(init=False)
    _policy: Policy = field(init=False)
    _judged: dict[NormalizedName, ProjectCandidates] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check_environment(self.lock, self.environment, self.name)
        self._packages = _selected(self.lock, self.environment, self.name)
        self._policy = Policy(environment=self.environment, allow_build=self.allow_build)

    @property
    def is_ours(self) -> bool:
        """Whether colablock wrote the lock."""
        return self.lock.created_by == CREATED_BY and CREATED_BY in (self.lock.tool or {})

    @property
    def versions(self) -> dict[NormalizedName, Version]:
        """The version of each package: a lock's pins are exact."""
        judged = {name: self.judge(name).candidates for name in self._packages}
        return {name: candidates[0].version for name, candidates in judged.items() if candidates}

    def entries(self) -> tuple[PackageEntry, ...]:
        """Return roots for all that another tool's lock lists; a lock of ours needs none."""
        if self.is_ours:
            return ()
        return tuple(
            PackageEntry(
                name=name,
                path=self.name,
                specifier=SpecifierSet(f"=={package.version}" if package.version else ""),
            )
            for name, package in sorted(self._packages.items())
        )

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        """Return the locked version of *name*, with the files that fit here, best first."""
        if name not in self._judged:
            self._judged[name] = self._judge(name)
        return self._judged[name]

    def _judge(self, name: NormalizedName) -> ProjectCandidates:
        package = self._packages.get(name)
        if package is None:
            return ProjectCandidates(found=False, where=(LOCK,))
        if package.archive is not None:
            return self._archive(package, package.archive)
        if package.is_direct:
            kind = "repository" if package.vcs is not None else "folder"
            detail = f"{name} is locked to a {kind}, and only archives and wheels can be used"
            return _rejected(name, Reason.UNUSABLE, detail)
        source = self._source_of(package)
        if source is not None:
            candidate = Candidate(
                name=name,
                version=package.version or Version("0"),
                origin=CandidateOrigin.DIRECT,
                files=(source,),
                all_files=(source,),
            )
            return ProjectCandidates(candidates=(candidate,), where=(LOCK,))
        listed = [*(package.wheels or ()), *([package.sdist] if package.sdist else ())]
        files = [self._file(package, file, file.filename) for file in listed]
        return replace(judge_files(name, files, self._policy, origin=CandidateOrigin.LOCK), where=(LOCK,))

    def metadata(self, candidate: Candidate) -> Metadata:
        """Return what the lock says that *candidate* needs."""
        package = self._packages[candidate.name]
        tool = (package.tool or {}).get("colablock", {})
        lines = tool.get("requires-dist", ()) if self.is_ours else self._dependencies(package)
        parsed = (parse_requirement(line) for line in lines)
        return Metadata(
            requires=tuple(r for r in parsed if r is not None),
            requires_python=str(package.requires_python) if package.requires_python else None,
            extras=frozenset(tool.get("extras", ())),
        )

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        """Everything is here already."""

    def wheel(self, name: NormalizedName) -> PackageWheel | None:
        """Return our own wheel of *name* as the lock lists it, be it beside the lock or not."""
        package = self._packages.get(name)
        is_made = package is not None and "made-from" in (package.tool or {}).get(CREATED_BY, {})
        return package.wheels[0] if package is not None and package.wheels and is_made else None

    def _source_of(self, package: Package) -> File | None:
        """Return what our wheel of *package* is made from, where the wheel does not lie beside the lock."""
        wheel = self.wheel(package.name) if self.is_ours else None
        if wheel is None or (self.folder / (wheel.path or "")).is_file():
            return None
        made_from = (package.tool or {})[CREATED_BY]["made-from"]
        url = str(made_from["url"])
        return File(filename=basename(url), url=url, hashes=dict(made_from.get("hashes", {})))

    def _dependencies(self, package: Package) -> Iterator[str]:
        """Yield the names that another tool's lock says *package* needs, as far as it lists them here."""
        for dependency in package.dependencies or ():
            name = canonicalize_name(str(dependency.get("name", "")))
            if name in self._packages:
                yield name

    def _archive(self, package: Package, archive: PackageArchive) -> ProjectCandidates:
        """Return the one candidate of a direct reference."""
        name, filename = package.name, basename(archive.url or archive.path or "")
        file = self._file(package, archive, filename)
        if file.is_wheel:
            return replace(
                judge_files(name, [file], self._policy, origin=CandidateOrigin.DIRECT), where=(LOCK,)
            )
        version = package.version or parse_sdist_stem(name, filename)
        if version is None:
            detail = f"the lock does not say which version of {name} `{filename}` is"
            return _rejected(name, Reason.UNREADABLE, detail)
        if not self._policy.may_build(name):
            detail = f"{name} is a source archive, and building is not allowed (options.allow-build)"
            return _rejected(name, Reason.SDIST, detail, version)
        candidate = Candidate(
            name=name, version=version, origin=CandidateOrigin.DIRECT, files=(file,), all_files=(file,)
        )
        return ProjectCandidates(candidates=(candidate,), where=(LOCK,))

    def _file(self, package: Package, file: _Listed, filename: str) -> File:
        return File(
            filename=filename,
            # "If both are given, the path is preferred" (PEP 751), as it is nearer.
            url=(self.folder / file.path).resolve().as_uri() if file.path else file.url or "",
            hashes=dict(file.hashes),
            size=file.size,
            upload_time=_utc(file.upload_time) if file.upload_time else None,
            requires_python=str(package.requires_python) if package.requires_python else None,
            index=package.index,
        )


_Listed: TypeAlias = PackageWheel | PackageSdist | PackageArchive


def _rejected(
    name: NormalizedName, reason: Reason, detail: str, version: Version | None = None
) -> ProjectCandidates:
    rejection = Rejection(name=name, version=version, filename="", reason=reason, detail=detail)
    return ProjectCandidates(rejections=(rejection,), where=(LOCK,))


def _check_environment(lock: Pylock, environment: Environment, name: str) -> None:
    """Raise NoSolution where *lock* says that it is not for *environment* (PEP 751, installing)."""
    here = f"Python {environment.python_version}"
    wanted = lock.requires_python
    if wanted and not wanted.contains(environment.python_version, prereleases=True):
        raise NoSolution(f"{name} is for Python {wanted}, and this is {here}")
    markers: Any = dict(environment.markers)
    if lock.environments and not any(marker.evaluate(markers) for marker in lock.environments):
        wanted_text = " or ".join(f"`{marker}`" for marker in lock.environments)
        system = f"{environment.markers['sys_platform']} {environment.markers['platform_machine']}"
        raise NoSolution(f"{name} is for {wanted_text}, and this is {here} on {system}")


def _selected(lock: Pylock, environment: Environment, name: str) -> dict[NormalizedName, Package]:
    """Return the packages whose markers hold here, no extra asked for (PEP 751, installing)."""
    groups = frozenset(lock.default_groups or ())
    markers: Any = {**environment.markers, "extras": frozenset(), "dependency_groups": groups}
    found: dict[NormalizedName, Package] = {}
    for package in lock.packages:
        if package.marker is not None and not package.marker.evaluate(markers, context="lock_file"):
            continue
        if package.name in found:
            raise InvalidInput(f"{name} lists {package.name} twice for Python {environment.python_version}")
        found[package.name] = package
    return found
