"""What the locks of a matrix know about its archives and indexes, for when a host cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from colablock._common.reporter import Reporter
from colablock._common.toml import in_utc
from colablock._common.urls import basename, local_path, redacted, split_fragment
from colablock._records import dataclass
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import platform_family
from colablock.environment.requirements import parse_requirement
from colablock.errors import InvalidInput
from colablock.index.candidates import (
    STRONG_HASHES,
    Candidate,
    CandidateOrigin,
    File,
    KnownArchive,
    Metadata,
)
from colablock.lockfile.package_files import Wheel
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import LockHead, read_head
from colablock.lockfile.tool_table import table_of

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import Package
    from colablock._vendor.packaging.requirements import Requirement
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.markers_and_tags import Environment
    from colablock.matrix.model import Index, PackageEntry
    from colablock.matrix.packed_locks import LockFile

__all__ = ["StandingLocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingLocks:
    """The locks at *paths*, nearest first, as a source of facts about the archives and indexes of *matrix*.

    A lock counts only for an archive with the same URL, the same hash if the matrix
    pins one, and the same replaced requirements, and for the files of an index only
    if it is for the same Python and platform.  What is downloaded later has to be what
    the lock says.  *away* are the URLs that could not be reached, shared by several
    solves.
    """

    paths: Sequence[LockFile]
    matrix: str
    environment: Environment
    reporter: Reporter = field(default_factory=Reporter)
    away: set[str] = field(default_factory=set)
    _found: dict[NormalizedName, tuple[KnownArchive, Wheel | None]] = field(default_factory=dict, repr=False)

    def archive(self, entry: PackageEntry) -> KnownArchive | None:
        """Return what a lock knows about the archive that *entry* names; None if none does."""
        found = self._recalled(entry)
        return found[0] if found is not None else None

    def is_away(self, url: str | None) -> bool:
        """Whether an earlier solve could not reach the archive or the index at *url*."""
        return url in self.away

    def wheel(self, entry: PackageEntry, version: Version) -> Wheel | None:
        """Return the wheel of that version that was rebuilt from the archive of *entry*."""
        found = self._recalled(entry)
        return found[1] if found is not None and found[0].candidate.version == version else None

    def is_recalled(self, name: NormalizedName) -> bool:
        """Whether `archive` or `wheel` was asked for *name* and gave an answer."""
        return name in self._found

    def listed(self, name: NormalizedName, index: Index) -> KnownArchive | None:
        """Return the files and the requirements of *name* that a lock for this target has from *index*."""
        for head, package in self._packages(name):
            known = _listed(package, index) if self._is_same_target(head) else None
            if known is not None:
                self.away.add(index.url)
                self.reporter.note(
                    f"`{redacted(index.url)}` cannot be reached: using what the lock `{head.path.name}`"
                    f" knows about {name}"
                )
                return known
        return None

    def _recalled(self, entry: PackageEntry) -> tuple[KnownArchive, Wheel | None] | None:
        if entry.url is None or entry.name in self._found:
            return self._found.get(entry.name)
        for head, package in self._packages(entry.name):
            archive = _archive(entry, package, is_same_target=self._is_same_target(head))
            if archive is None:
                continue
            self._found[entry.name] = archive, _wheel(package)
            self.away.add(entry.url)
            self.reporter.note(
                f"`{redacted(entry.url)}` cannot be reached: using what the lock `{head.path.name}`"
                f" knows about {entry.name}"
            )
            return self._found[entry.name]
        return None

    def _packages(self, name: NormalizedName) -> Iterator[tuple[LockHead, Package]]:
        """Yield the package *name* of each lock of the matrix, first those for the same Python."""
        heads = [head for head in map(read_head, self.paths) if head and head.matrix == self.matrix]
        for head in sorted(heads, key=lambda head: not self._is_same_target(head)):
            try:
                packages = read_lock(head.path).packages
            except InvalidInput:
                continue
            yield from ((head, package) for package in packages if package.name == name)

    def _is_same_target(self, head: LockHead) -> bool:
        here = self.environment
        return head.short == here.short and platform_family(head.platform) == platform_family(here.platform)


def _archive(entry: PackageEntry, package: Package, *, is_same_target: bool) -> KnownArchive | None:
    """Return what *package* says about the archive of *entry*; None if it is of another one."""
    table = table_of(package)
    made_from = table.get("made-from")
    if package.version is None or (made_from is not None) != entry.is_rebuilt:
        return None
    if made_from is not None:
        url, hashes = str(made_from["url"]), dict(made_from.get("hashes", {}))
        is_same = _is_same_rebuild(entry, package, hashes)
    else:
        archive = package.archive
        url, hashes = (archive.url or "", dict(archive.hashes)) if archive is not None else ("", {})
        is_same = bool(STRONG_HASHES & hashes.keys()) and _is_pinned(entry, hashes)
    if not is_same or url != _canonical(entry.url or ""):
        return None
    python = str(package.requires_python) if package.requires_python else None
    if entry.requires_dist is not None:
        from colablock.index.rebuilt_wheel import replaced_metadata  # noqa: PLC0415 - few are asked

        metadata = replaced_metadata(entry, Metadata(requires_python=python))
    elif is_same_target:  # a lock has only the requirements that apply to its target
        metadata = _locked_metadata(package, python)
    else:
        return None
    size = package.archive.size if package.archive is not None else None
    file = File(filename=basename(url), url=url, hashes=hashes, size=size, requires_python=python)
    candidate = Candidate(
        name=entry.name,
        version=package.version,
        origin=CandidateOrigin.DIRECT,
        files=(file,),
        all_files=(file,),
    )
    return KnownArchive(candidate=candidate, metadata=metadata)


def _listed(package: Package, index: Index) -> KnownArchive | None:
    """Return what *package* says about its files in *index*; None if they are from elsewhere."""
    if package.version is None or (package.index or "").rstrip("/") != index.url.rstrip("/"):
        return None
    python = str(package.requires_python) if package.requires_python else None
    files = tuple(
        File(
            filename=one.filename,
            url=one.url or "",
            hashes=dict(one.hashes),
            size=one.size,
            upload_time=in_utc(one.upload_time) if one.upload_time else None,
            requires_python=python,
            index=package.index,
        )
        for one in (*(package.wheels or ()), *([package.sdist] if package.sdist else ()))
    )
    candidate = Candidate(
        name=package.name,
        version=package.version,
        origin=CandidateOrigin.INDEX,
        files=files,
        all_files=files,
    )
    return KnownArchive(candidate=candidate, metadata=_locked_metadata(package, python))


def _locked_metadata(package: Package, python: str | None) -> Metadata:
    """Return the metadata that a lock states: the requirements that apply to its target."""
    table = table_of(package)
    parsed = (parse_requirement(str(line)) for line in table.get("requires-dist", ()))
    return Metadata(
        parsed=tuple(one for one in parsed if one is not None),
        requires_python=python,
        extras=frozenset(table.get("extras", ())),
    )


def _is_pinned(entry: PackageEntry, hashes: Mapping[str, str]) -> bool:
    """Whether *hashes* have the SHA-256 that the matrix pins, if it pins one."""
    pinned = entry.pinned_sha256
    return pinned is None or hashes.get("sha256", "").lower() == pinned


def _is_same_rebuild(entry: PackageEntry, package: Package, hashes: Mapping[str, str]) -> bool:
    """Whether the rebuilt wheel *package* is made as *entry* asks.

    The label of its version tells that if the matrix pins the archive.  Otherwise the requirements
    are compared; a wheel made from another `source-root` has another hash, which an apply refuses.
    """
    version = str(package.version)
    mark = "+colablock." if "+colablock." in version else ".colablock."
    base = Version(version.partition(mark)[0])
    if entry.version is not None and base != Version(entry.version):
        return False
    pinned = entry.pinned_sha256
    if pinned is not None:
        from colablock.index.rebuilt_wheel import rebuilt_version  # noqa: PLC0415 - few are asked

        return _is_pinned(entry, hashes) and rebuilt_version(entry, base, pinned) == package.version
    if entry.requires_dist is None:
        return True
    known = set(map(str, table_of(package).get("requires-dist", ())))
    possible = {line for one in entry.requires_dist for line in _as_locked(one)}
    always = {line for one in entry.requires_dist if one.marker is None for line in _as_locked(one)}
    return always <= known <= possible


def _as_locked(requirement: Requirement) -> list[str]:
    """Return *requirement* as a lock writes it: a line for the distribution, then one for each extra."""
    name = canonicalize_name(requirement.name)
    tail = f" @ {requirement.url}" if requirement.url else str(requirement.specifier)
    extras = sorted(canonicalize_name(extra) for extra in requirement.extras)
    return [f"{name}{tail}", *(f"{name}[{extra}]{tail}" for extra in extras)]


def _wheel(package: Package) -> Wheel | None:
    """Return the rebuilt wheel that *package* lists."""
    made_from = table_of(package).get("made-from")
    if made_from is None or not package.wheels:
        return None
    wheel = package.wheels[0]
    return Wheel(
        path=wheel.path or "",
        sha256=wheel.hashes.get("sha256", ""),
        size=wheel.size or 0,
        promised=dict(made_from.get("hashes", {})),
    )


def _canonical(url: str) -> str:
    """Return the URL of a direct reference as a lock writes it."""
    plain = split_fragment(url)[0]
    path = local_path(plain)
    return path.resolve().as_uri() if path is not None else redacted(plain)
