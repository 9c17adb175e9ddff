"""Candidates that come from a lock file, so that a solve asks no index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from colablock._common.toml import in_utc
from colablock._common.urls import basename
from colablock._records import dataclass
from colablock._vendor.packaging.pylock import Package, PackageArchive, PackageSdist, PackageWheel, Pylock
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import platform_family
from colablock.environment.requirements import parse_requirement
from colablock.errors import InvalidInput, NoSolution
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    File,
    Metadata,
    ProjectCandidates,
    Reason,
    Rejection,
    at_hand_first,
)
from colablock.index.evaluator import Policy, judge_files, parse_sdist_stem
from colablock.lockfile.tool_table import CREATED_BY, lists_target_files, table_of
from colablock.matrix.model import PackageEntry
from colablock.resolver.model import LOCK

if TYPE_CHECKING:
    from pathlib import Path

    from colablock.environment.markers_and_tags import Environment

__all__ = ["LockSource"]

_Listed: TypeAlias = PackageWheel | PackageSdist | PackageArchive


@dataclass
class LockSource:
    """A CandidateSource whose candidates are the packages of a lock: the network is not used.

    A lock that colablock wrote has the requirements of each package.  A lock of
    another tool has not: everything that it lists for this environment is to be
    installed, and `entries` are the roots that ask for it.  An sdist is used
    only if *allow_build* names the project, a wheel only if *no_binary* does not.

    *folder* is the folder of the lock file, and *name* names the lock in messages.
    With *is_at_hand*, the files for which it holds come first: the others cannot be fetched.
    Raises NoSolution if the lock is for another Python or platform.
    """

    lock: Pylock
    folder: Path
    environment: Environment
    allow_build: frozenset[str] = frozenset()
    no_binary: frozenset[str] = frozenset()
    name: str = LOCK
    path: str = ""
    is_at_hand: Callable[[File], bool] | None = None
    _packages: dict[NormalizedName, Package] = field(init=False)
    _policy: Policy = field(init=False)
    _judged: dict[NormalizedName, ProjectCandidates] = field(init=False, default_factory=dict)
    _metadata: dict[NormalizedName, Metadata] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check_environment(self.lock, self.environment, self.name)
        self._packages = _selected(self.lock, self.environment, self.name)
        self._policy = Policy(
            environment=self.environment, allow_build=self.allow_build, no_binary=self.no_binary
        )

    @property
    def _any_wheel(self) -> Policy:
        return replace(self._policy, no_binary=frozenset())

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the files that it lists for this environment, sorted."""
        files = (file for name in self._packages for one in self.judge(name).candidates for file in one.files)
        hosts = {urlsplit(file.url).netloc.rpartition("@")[2] for file in files}
        return tuple(sorted(hosts - {""}))

    @property
    def is_ours(self) -> bool:
        """Whether colablock wrote the lock."""
        return self.lock.created_by == CREATED_BY and bool(table_of(self.lock))

    @property
    def versions(self) -> dict[NormalizedName, Version]:
        """The locked version of each package that has a file for this environment."""
        judged = {name: self.judge(name).candidates for name in self._packages}
        return {name: candidates[0].version for name, candidates in judged.items() if candidates}

    def entries(self) -> tuple[PackageEntry, ...]:
        """Return roots for all packages of another tool's lock; none for a lock of colablock."""
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
        """Return the locked version of *name*, with the files that fit this environment, best first."""
        if name not in self._judged:
            judged = self._judge(name)
            if self.is_at_hand is not None:
                ordered = at_hand_first(judged.candidates, self.is_at_hand)
                judged = replace(judged, candidates=tuple(ordered))
            self._judged[name] = judged
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
        # A wheel that colablock built is what the matrix asks for, even where it forbids the index's wheels.
        policy = self._policy if self.wheel(name) is None else self._any_wheel
        judged = judge_files(name, files, policy, origin=CandidateOrigin.LOCK)
        return replace(judged, rejections=tuple(map(self._explained, judged.rejections)), where=(LOCK,))

    def _explained(self, rejection: Rejection) -> Rejection:
        """Add to a rejection for the wheel tags that the lock has no files for other targets."""
        if rejection.reason is not Reason.TAGS or not lists_target_files(self.lock):
            return rejection
        table = table_of(self.lock)
        target = f"the lock has the files for Python {table.get('python')} on {table.get('platform')} only"
        return replace(rejection, detail=f"{rejection.detail}; {target}")

    def metadata(self, candidate: Candidate) -> Metadata:
        """Return the requirements of *candidate* in the lock."""
        if candidate.name not in self._metadata:
            self._metadata[candidate.name] = self._metadata_of(self._packages[candidate.name])
        return self._metadata[candidate.name]

    def _metadata_of(self, package: Package) -> Metadata:
        table = table_of(package)
        lines = table.get("requires-dist", ()) if self.is_ours else self._dependencies(package)
        parsed = (parse_requirement(line) for line in lines)
        return Metadata(
            parsed=tuple(r for r in parsed if r is not None),
            requires_python=str(package.requires_python) if package.requires_python else None,
            extras=frozenset(table.get("extras", ())),
        )

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        """Do nothing: the lock has everything."""

    def wheel(self, name: NormalizedName) -> PackageWheel | None:
        """Return the rebuilt wheel of *name* that the lock lists, whether or not the file is there."""
        package = self._packages.get(name)
        is_rebuilt = "made-from" in table_of(package)
        return package.wheels[0] if package is not None and package.wheels and is_rebuilt else None

    def _source_of(self, package: Package) -> File | None:
        """Return the file that a rebuilt wheel is made from, if the wheel is not beside the lock."""
        wheel = self.wheel(package.name) if self.is_ours else None
        if wheel is None or (self.folder / (wheel.path or "")).is_file():
            return None
        made_from = table_of(package)["made-from"]
        url = str(made_from["url"])
        return File(filename=basename(url), url=url, hashes=dict(made_from.get("hashes", {})))

    def _dependencies(self, package: Package) -> Iterator[str]:
        """Yield the dependencies of *package* in another tool's lock that apply here."""
        for dependency in package.dependencies or ():
            name = canonicalize_name(str(dependency.get("name", "")))
            if name in self._packages:
                yield name

    def _archive(self, package: Package, archive: PackageArchive) -> ProjectCandidates:
        """Return the candidate of a direct reference."""
        name, filename = package.name, basename(archive.url or archive.path or "")
        file = self._file(package, archive, filename)
        if file.is_wheel:
            return replace(
                judge_files(name, [file], self._any_wheel, origin=CandidateOrigin.DIRECT), where=(LOCK,)
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
            # "If both are given, the path is preferred" (PEP 751).
            url=(self.folder / file.path).resolve().as_uri() if file.path else file.url or "",
            hashes=dict(file.hashes),
            size=file.size,
            upload_time=in_utc(file.upload_time) if file.upload_time else None,
            requires_python=str(package.requires_python) if package.requires_python else None,
            index=package.index,
        )


def _rejected(
    name: NormalizedName, reason: Reason, detail: str, version: Version | None = None
) -> ProjectCandidates:
    rejection = Rejection(name=name, version=version, filename="", reason=reason, detail=detail)
    return ProjectCandidates(rejections=(rejection,), where=(LOCK,))


def _check_environment(lock: Pylock, environment: Environment, name: str) -> None:
    """Raise NoSolution if *lock* is for another Python or platform (PEP 751, installing)."""
    here = f"Python {environment.python_version}"
    wanted = lock.requires_python
    if wanted and not wanted.contains(environment.python_version, prereleases=True):
        raise NoSolution(f"{name} is for Python {wanted}, and this is {here}")
    markers: Any = dict(environment.markers)
    if lock.environments and not any(marker.evaluate(markers) for marker in lock.environments):
        wanted_text = " or ".join(f"`{marker}`" for marker in lock.environments)
        system = f"{environment.markers['sys_platform']} {environment.markers['platform_machine']}"
        raise NoSolution(f"{name} is for {wanted_text}, and this is {here} on {system}")
    platform = str(table_of(lock).get("platform", environment.platform))
    # No marker tells glibc from musl, and a lock with the files of its target has wheels for one of them.
    if lists_target_files(lock) and platform_family(platform) != platform_family(environment.platform):
        hint = "Lock for this platform, or list the files of every platform with `colablock lock --all-files`"
        raise NoSolution(f"{name} is for {platform}, and this is {environment.platform}", hint=hint)


def _selected(lock: Pylock, environment: Environment, name: str) -> dict[NormalizedName, Package]:
    """Return the packages whose markers hold here, without extras (PEP 751, installing)."""
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
