"""Check that the files of a lock come from the sources that the matrix gives their packages.

A lock is data of whoever wrote it.  A hash in it proves which file is meant, not
whose file it is.  So a URL counts only if its host belongs to the index of the
package, and a path only if the matrix or the user names the file or its folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from colablock._common.fs import file_digest
from colablock._common.urls import Mirrors, local_path, redacted, split_fragment
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.requirements import parse_requirement
from colablock.errors import FetchFailed, InvalidInput
from colablock.index.candidates import STRONG_HASHES
from colablock.lockfile.tool_table import COMPLETE, table_of
from colablock.matrix.package_sources import PackageSources

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import (
        Package,
        PackageArchive,
        PackageSdist,
        PackageWheel,
        Pylock,
    )
    from colablock.matrix.model import Index, PackageEntry
    from colablock.network.cache import Cache
    from colablock.network.settings import Settings

__all__ = ["LockOrigins", "file_hosts_of"]

#: The other hosts on which public indexes keep their files.  Each serves files of many projects.
_FILE_HOSTS: Mapping[str, tuple[str, ...]] = {
    "pypi.org": ("files.pythonhosted.org",),
    "test.pypi.org": ("test-files.pythonhosted.org",),
    "download.pytorch.org": ("download-r2.pytorch.org", "pypi.nvidia.com"),
}
_SHOWN = 5  # faults in a message
_HINT = (
    "Make the lock again with `colablock lock NAME`.  If the index keeps its files on that host, say so with"
    " `file-hosts` in its [[index]], or for the default index in COLABLOCK_FILE_HOSTS"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOrigins:
    """Where the files of a lock may come from, for one matrix (its variant selected) and one environment.

    *settings* give the default index, the folders of find-links, the mirrors, and
    the hosts that the user adds.  *mirrors* are those of ``COLABLOCK_MIRRORS``.
    """

    sources: PackageSources
    settings: Settings
    mirrors: Mirrors
    allow_local: bool = False  # any local file, since nothing is installed
    cache: Cache | None = None  # keeps the hashes of local files
    _known: dict[Index, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)

    def check(self, lock: Pylock, folder: Path, name: str) -> None:
        """Raise InvalidInput if a file of *lock* comes from a place that its package does not come from.

        *folder* is the folder of the lock file, and *name* names the lock in the message.
        """
        faults = [
            f"{package.name}: {fault}"
            for package, indexes in self._with_indexes(lock)
            for fault in self._faults(package, indexes, folder)
        ]
        if faults:
            more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
            lines = [f"{name} names files that do not belong to the sources of the matrix"]
            raise InvalidInput("\n  ".join([*lines, *faults[:_SHOWN], *more]), hint=_HINT)

    def _with_indexes(self, lock: Pylock) -> Iterator[tuple[Package, tuple[Index, ...]]]:
        """Yield each package with the indexes that it may come from.

        An undeclared package that only packages of a named index require has to
        come from that index.  In a delta the parents may be installed, so the
        default index is allowed there too.
        """
        default = self.sources.default(self.settings.default_index)
        by_url = {_plain(index.url): index for index in self.sources.indexes}
        of_package = {package.name: by_url.get(_plain(package.index or "")) for package in lock.packages}
        askers: dict[NormalizedName, set[str | None]] = {}
        # Without a named index, no package can come in through one.
        for package in lock.packages if self.sources.indexes else ():
            named = of_package[package.name]
            is_rebuilt = self.sources.is_rebuilt(package.name)
            asker = named.name if named is not None and not named.default and not is_rebuilt else None
            for required in _required_names(package):
                askers.setdefault(required, set()).add(asker)
        is_complete = table_of(lock).get("kind") == COMPLETE
        for package in lock.packages:
            own = self.sources.index_of(package.name)
            if own is not None:
                yield package, (own,)
                continue
            through = set() if self.sources.declares(package.name) else askers.get(package.name, set())
            named_indexes = tuple(index for index in self.sources.indexes if index.name in through)
            is_bound = is_complete and named_indexes and None not in through
            yield package, named_indexes if is_bound else (*default, *named_indexes)

    def _faults(self, package: Package, indexes: Sequence[Index], folder: Path) -> Iterator[str]:
        """Yield what is wrong with the files of one package."""
        entry = self.sources.entries.get(package.name)
        if package.archive is not None:
            yield from _archive_faults(entry, package.archive, folder)
            return
        if package.is_direct:
            return  # a repository or a folder, which is never installed
        made_from = table_of(package).get("made-from")
        if made_from is not None:
            yield from self._rebuilt_faults(package, entry, made_from, indexes)
            return
        if entry is not None and entry.url is not None:
            yield f"the matrix takes it from `{redacted(entry.url)}`, and the lock from an index"
            return
        known = [_plain(index.url) for index in indexes]
        if package.index is not None and _plain(package.index) not in known:
            yield f"it is from the index `{_shown(package.index)}`, and the matrix takes it from {_or(known)}"
            return
        allowed = self._allowed(indexes)
        for file in (*(package.wheels or ()), *([package.sdist] if package.sdist else ())):
            fault = self._file_fault(file, allowed, known, folder)
            if fault is not None:
                yield fault

    def _file_fault(
        self,
        file: PackageWheel | PackageSdist,
        allowed: tuple[str, ...],
        indexes: Sequence[str],
        folder: Path,
    ) -> str | None:
        if not STRONG_HASHES & file.hashes.keys():
            return f"`{file.filename}` has no sha256, sha384 or sha512"
        url = file.url or ""
        local = folder / file.path if file.path else local_path(url)
        if local is not None:
            if self.allow_local or self._is_offered(local, indexes) or self._has_copy(file):
                return None
            what = f"`{_shown(file.path or url)}` is a local file"
            if self.settings.bundle is not None:
                return f"{what}, and the bundle has no file of that name and sha256"
            if self.settings.find_links:
                return f"{what}, and no folder of find-links has a file of that name and sha256"
            return f"{what}; name its folder with `--find-links` to use it"
        if not url.startswith(allowed):
            return (
                f"`{_shown(url)}` is on `{_host(url)}`, and {_or(indexes)} has its files on {_hosts(allowed)}"
            )
        own = {_origin(index) for index in indexes}
        if _origin(url) not in own and unquote(urlsplit(url).path).rpartition("/")[2] != file.filename:
            return f"`{_shown(url)}` is not `{file.filename}`"
        return None

    def _rebuilt_faults(
        self,
        package: Package,
        entry: PackageEntry | None,
        made_from: Mapping[str, object],
        indexes: Sequence[Index],
    ) -> Iterator[str]:
        """Yield what is wrong with a wheel that colablock rebuilt from a file that the matrix names."""
        url = str(made_from.get("url", ""))
        if entry is None or not entry.is_rebuilt:
            yield "the lock has a rebuilt wheel of it, and the matrix rebuilds none"
        elif entry.url is not None:
            if url != _canonical(entry.url):
                yield f"it is made from `{_shown(url)}`, and the matrix names `{redacted(entry.url)}`"
        else:
            allowed = self._allowed(indexes)
            if local_path(url) is not None or not url.startswith(allowed):
                yield f"it is made from `{_shown(url)}`, which does not belong to its index"
        for wheel in package.wheels or ():
            if wheel.url is not None or wheel.path is None or _leaves(wheel.path):
                yield f"`{_shown(wheel.path or wheel.url or '')}` is not beside the lock"

    def _is_offered(self, path: Path, indexes: Iterable[str]) -> bool:
        """Whether a local file is in a folder that the user or the matrix names."""
        links = [local_path(link) for link in self.settings.find_links]
        # A folder that is an index may keep the files in a folder beside its pages.
        pages = [local.parent for local in map(local_path, indexes) if local is not None]
        resolved = path.resolve()
        return any(resolved.is_relative_to(one.resolve()) for one in (*links, *pages) if one is not None)

    def _has_copy(self, file: PackageWheel | PackageSdist) -> bool:
        """Whether find-links or a bundle have the same file: it was elsewhere when the lock was made."""
        bundle = self.settings.bundle
        if bundle is not None and bundle.file(file.filename, file.hashes) is not None:
            return True
        for folder in filter(None, map(local_path, self.settings.find_links)):
            copy = folder / file.filename
            try:
                if not copy.is_file():
                    continue
                # What is installed is hashed again.
                digest = file_digest(copy) if self.cache is None else self.cache.local_digest(copy)
                if digest == file.hashes.get("sha256", "").lower():
                    return True
            except (OSError, ValueError):
                continue
        return False

    def _allowed(self, indexes: Sequence[Index]) -> tuple[str, ...]:
        for index in indexes:
            if index not in self._known:
                self._known[index] = tuple(self._prefixes(index))
        return tuple(prefix for index in indexes for prefix in self._known[index])

    def _prefixes(self, index: Index) -> list[str]:
        """Return what the URLs of the files of *index* begin with: the scheme and the host."""
        url = redacted(index.url)
        if local_path(url) is not None:
            return []
        hosts = file_hosts_of(index, self.settings.file_hosts if index.default else ())
        found = [f"{_origin(url)}/", *(f"https://{host}/" for host in hosts)]
        if urlsplit(url).scheme == "http":
            found.append(f"https://{urlsplit(url).netloc.lower()}/")
        # A page of a mirror may list files outside of the mirror's own folder.
        pairs = (*self.mirrors.pairs, *self.settings.mirrors)
        places = [
            place for prefix, place in pairs if any(_is_below(one, prefix) for one in (f"{url}/", *found))
        ]
        return [*found, *(f"{_origin(redacted(place))}/" for place in places if local_path(place) is None)]


def file_hosts_of(index: Index, further: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the hosts beside its own on which *index* keeps its files."""
    host = urlsplit(redacted(index.url)).hostname or ""
    return (*_FILE_HOSTS.get(host, ()), *index.file_hosts, *further)


def _archive_faults(entry: PackageEntry | None, archive: PackageArchive, folder: Path) -> Iterator[str]:
    place = (folder / archive.path).resolve().as_uri() if archive.path else archive.url or ""
    if entry is None or entry.url is None:
        yield f"the lock takes it from `{_shown(place)}`, and the matrix does not name that file"
    elif split_fragment(place)[0] != _canonical(entry.url):
        yield f"the lock takes it from `{_shown(place)}`, and the matrix from `{redacted(entry.url)}`"
    elif entry.sha256 is not None and archive.hashes.get("sha256", "").lower() != entry.sha256.lower():
        yield "the lock has another sha256 of it than the matrix"
    elif not STRONG_HASHES & archive.hashes.keys():
        yield f"`{_shown(place)}` has no sha256, sha384 or sha512"


def _canonical(url: str) -> str:
    """Return the URL of a direct reference as a lock writes it."""
    plain = split_fragment(url)[0]
    path = local_path(plain)
    return path.resolve().as_uri() if path is not None else redacted(plain)


def _required_names(package: Package) -> set[NormalizedName]:
    lines = table_of(package).get("requires-dist", ())
    parsed = (parse_requirement(str(line)) for line in lines)
    named = (str(one.get("name", "")) for one in package.dependencies or ())
    return {canonicalize_name(one.name) for one in parsed if one is not None} | set(
        map(canonicalize_name, named)
    )


def _plain(index: str) -> str:
    return _shown(index).rstrip("/")


def _shown(url: str) -> str:
    """Return *url* without user and password, also if it is no valid URL."""
    try:
        return redacted(url)
    except FetchFailed as error:
        return error.url


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2] or parts.scheme
    except ValueError:
        return "no host"
    return host if parts.scheme == "https" else f"{parts.scheme}://{host}"


def _origin(url: str) -> str:
    """Return scheme and host of *url*, as in ``https://pypi.org``."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _hosts(prefixes: Iterable[str]) -> str:
    return _or([prefix.removeprefix("https://").rstrip("/") for prefix in prefixes])


def _or(words: Sequence[str]) -> str:
    return " or ".join(f"`{word}`" for word in dict.fromkeys(words)) or "no index"


def _is_below(url: str, prefix: str) -> bool:
    return url.startswith(prefix) or prefix.startswith(url)


def _leaves(path: str) -> bool:
    """Whether a path relative to the lock leads out of the lock's folder."""
    return path.startswith("/") or "\\" in path or ".." in path.split("/")
