"""Select cache entries to prune: leftovers, old entries, entries of a project.

Other processes may use the cache at the same time.  They use entries of the
kinds in ``_BY_PATH`` by path, so those stay while such a process runs, and so do
files that are being written.  All other entries are read at once, so they can be
removed at any time.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from colablock._common.archives import UNREADABLE, open_tar, open_zip
from colablock._common.decoding import Malformed, decode, read_bounded
from colablock._common.fs import NEW, open_locked
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.requirements import project_named
from colablock.network.cache import MANIFEST, PARSED, UNFINISHED, UNPACKED, decoded
from colablock.network.download import try_lock

__all__ = ["KINDS", "CacheKind", "PruneResult", "clean", "contents", "prune"]

KINDS = {
    "files": "wheels, sdists and archives",
    PARSED: "pages of indexes, parsed",
    "pages": "other pages of indexes",
    "confirmed": "when each page was last revalidated",
    "metadata": "metadata of wheels and sdists",
    "built": "wheels built from sdists",
    "rebuilt": "wheels made for a matrix",
    "named": "files under their own names",
    "partial": "interrupted downloads",
    "digests": "hashes of local files",
    "locks": "lock files, parsed",
    "probes": "what is installed in other environments",
    "stamps": "when each file was last verified",
    "bytecode": "bytecode of training stacks",
    UNPACKED: "unpacked wheels; environments have links to their files",
}
T = TypeVar("T")
_BY_PATH = frozenset({"built", "files", "named", "rebuilt", UNPACKED})
_FOREIGN = frozenset({"bytecode", UNPACKED})  # the names of files in their entries are those of wheels
_FORMER = re.compile(r"simple-[0-9]+")  # kinds of earlier releases
_DAY = 86_400.0
_PAGE_DAYS = 30.0
_UNLINKED_DAYS = 1.0  # environments with copies have no links
_WRITING_DAYS = 1.0  # an older file is a leftover, not a write in progress


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """The entries of one kind; *size* in bytes."""

    name: str
    about: str
    entries: int
    size: int


@dataclass(slots=True)
class PruneResult:
    """The removed entries and the bytes that this freed; *left* are entries in use, or without permission."""

    entries: int = 0
    size: int = 0
    left: int = 0


def contents(folder: Path) -> list[CacheKind]:
    """Return the kinds of entries in the cache *folder*, without those that have none."""
    found = []
    for name, about in KINDS.items():
        entries = list(_entries(folder, name))
        if entries:
            size = sum(path.lstat().st_size for entry in entries for path in _files(entry))
            found.append(CacheKind(name=name, about=about, entries=len(entries), size=size))
    return found


def prune(folder: Path, *, now: float, days: float | None = None) -> PruneResult:
    """Remove entries that are no longer useful, and return their number and size.

    These are leftovers of interrupted processes, interrupted downloads, entries of earlier
    releases, unpacked wheels that no environment has links to and that were not used for a day, pages
    that were not requested, and locks and unpacked wheels that were not used for 30 days and, with
    *days*, files that were not used for so many days.
    """
    with _Pruner(folder) as pruner:
        for kind in _former(folder):
            pruner.prune(kind, lambda _: True)
        page_age = now - _PAGE_DAYS * _DAY
        for kind in ("bytecode", "pages", PARSED, "confirmed", "digests", "locks", "probes"):
            pruner.prune(kind, lambda entry: _is_older(entry, page_age))
        day = now - _UNLINKED_DAYS * _DAY
        pruner.prune(
            UNPACKED,
            lambda entry: (
                _is_older(entry / MANIFEST, day)
                and (_is_unlinked(entry) or _is_older(entry / MANIFEST, page_age))
            ),
        )
        if days is not None:
            age = now - days * _DAY
            pruner.prune("files", lambda entry: _is_older(_stamp_of(entry), age) and _is_older(entry, age))
            pruner.prune(UNPACKED, lambda entry: _is_older(entry / MANIFEST, age))
            for kind in ("built", "rebuilt", "metadata"):
                pruner.prune(kind, lambda entry: _is_older(entry, age))
        for kind in ("named", "stamps"):
            pruner.prune(kind, lambda entry: not _file_of(entry).exists())
        pruner.prune("partial", lambda _: True)
        pruner.prune_leftovers(now - _WRITING_DAYS * _DAY)
        return pruner.result


def clean(folder: Path, names: Collection[str] = ()) -> PruneResult:
    """Remove all entries, or those of the projects *names*, and return their number and size.

    Raises InvalidInput for an invalid name.
    """
    wanted = {project_named(name) for name in names}
    with _Pruner(folder) as pruner:
        if not wanted:
            for kind in (*KINDS, *_former(folder)):
                pruner.prune(kind, lambda _: True)
            pruner.prune_leftovers(0.0)
            return pruner.result
        known = {entry.name for entry in _entries(folder, "metadata") if _metadata_name(entry) in wanted}
        belongs: dict[str, Callable[[Path], bool]] = {
            "pages": lambda entry: _page_name(entry) in wanted,
            PARSED: lambda entry: _page_name(entry) in wanted,
            "files": lambda entry: entry.name in known or _file_name(entry) in wanted,
            "metadata": lambda entry: entry.name in known,
            UNPACKED: lambda entry: any(_project(name) in wanted for name in _infos(entry)),
        }
        for kind in ("built", "rebuilt", "named"):
            belongs[kind] = lambda entry: any(_project(path.name) in wanted for path in entry.iterdir())
        for kind, is_theirs in belongs.items():
            pruner.prune(kind, is_theirs)
        pruner.prune("stamps", lambda entry: not _file_of(entry).exists())
        return pruner.result


class _Pruner:
    """Removes entries of one cache.  It takes the exclusive lock if no other process uses the cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: int | None = None
        self.result = PruneResult()

    def __enter__(self) -> _Pruner:  # noqa: PYI034 - nobody derives from it
        self._held = open_locked(self._folder, wait=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            os.close(self._held)

    def prune(self, kind: str, is_due: Callable[[Path], bool]) -> None:
        """Remove the entries of *kind* for which *is_due* is true; entries in use are counted as left."""
        for entry in list(_entries(self._folder, kind)):
            with suppress(OSError):  # removed meanwhile
                if not is_due(entry):
                    continue
                with self._unused(kind, entry) as is_unused:
                    if is_unused:
                        self._remove(entry)
                    else:
                        self.result.left += 1
        if self._held is not None:
            _remove_empty(self._folder / kind)

    def prune_leftovers(self, before: float) -> None:
        """Remove unfinished files: all of them under the exclusive lock, else those older than *before*."""
        for kind in KINDS.keys() - _FOREIGN:
            for leftover in list((self._folder / kind).glob(f"**/{NEW}*")):
                with suppress(OSError):
                    if self._held is not None or _is_older(leftover, before):
                        self._remove(leftover)
        for leftover in _listed(self._folder / UNFINISHED):
            if self._held is not None or _is_older(leftover, before):
                self._remove(leftover)
        with suppress(OSError):
            (self._folder / UNFINISHED).rmdir()

    @contextmanager
    def _unused(self, kind: str, entry: Path) -> Iterator[bool]:
        """Yield whether no process uses *entry*.  None can start to during the block."""
        if kind == "partial" and entry.is_file():
            with entry.open("rb") as stream:
                yield try_lock(stream, entry)
        else:
            yield kind not in _BY_PATH or self._held is not None

    def _remove(self, entry: Path) -> None:
        paths = [path.lstat() for path in _files(entry)]
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        except OSError:
            self.result.left += 1
            return
        self.result.entries += 1
        # A file with other hard links still occupies its space.
        self.result.size += sum(status.st_size for status in paths if status.st_nlink == 1)


def _entries(folder: Path, kind: str) -> Iterator[Path]:
    """Yield the entries of a kind, without foreign files beside them."""
    for hashed in _listed(folder / kind):
        if re.fullmatch(r"[0-9a-f]{2}", hashed.name):
            yield from (entry for entry in _listed(hashed) if entry.name.startswith(hashed.name))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _files(entry: Path) -> Iterator[Path]:
    if entry.is_dir() and not entry.is_symlink():
        yield from (path for path in entry.rglob("*") if not path.is_dir())
    else:
        yield entry


def _former(folder: Path) -> list[str]:
    return [path.name for path in _listed(folder) if _FORMER.fullmatch(path.name) and path.name != PARSED]


def _remove_empty(folder: Path) -> None:
    for path in (*_listed(folder), folder):
        with suppress(OSError):
            path.rmdir()  # fails unless it is empty


def _is_unlinked(entry: Path) -> bool:
    """Whether no environment, and no stash of one, has a link to a file of an unpacked wheel."""
    return all(path.lstat().st_nlink == 1 for path in _files(entry))


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.lstat().st_mtime < moment
    except FileNotFoundError:
        return True


def _file_of(entry: Path) -> Path:
    """Return the file that an entry of another kind describes; both have the same key."""
    return entry.parent.parent.parent / "files" / entry.parent.name / entry.name


def _stamp_of(entry: Path) -> Path:
    return entry.parent.parent.parent / "stamps" / entry.parent.name / entry.name


# The project of an entry


def _infos(entry: Path) -> list[str]:
    """Return the names of the metadata folders of an unpacked wheel: one."""
    return [path.name for path in (entry / "tree").glob("*.dist-info")]


def _project(filename: str) -> NormalizedName:
    """Return the project in the file name of a wheel or an sdist."""
    if filename.endswith((".whl", ".dist-info")):
        return canonicalize_name(filename.partition("-")[0])
    return canonicalize_name(filename.rpartition("-")[0])


def _record_of(entry: Path, type_: type[T], *, first_line: bool = False) -> T | None:
    try:
        data = decoded(read_bounded(entry)) or b""
        return decode(data.partition(b"\n")[0] if first_line else data, type_)
    except (OSError, Malformed):
        return None


def _page_name(entry: Path) -> NormalizedName | None:
    head = _record_of(entry, dict[str, str], first_line=True)
    if head is None:
        return None
    try:
        path = urlsplit(head.get("url", "")).path
    except ValueError:
        return None
    return canonicalize_name(path.rstrip("/").rpartition("/")[2])


def _metadata_name(entry: Path) -> NormalizedName | None:
    facts = _record_of(entry, dict[str, Any])
    name = facts.get("name") if facts is not None else None
    return canonicalize_name(name) if isinstance(name, str) else None


def _file_name(entry: Path) -> NormalizedName | None:
    """Return the project of a cached file from its content, since its name is a hash."""
    try:
        if zipfile.is_zipfile(entry):
            with entry.open("rb") as stream, open_zip(stream) as archive:
                tops = {name.partition("/")[0] for name in archive.namelist()}
            infos = [top for top in tops if top.endswith(".dist-info")]
            return canonicalize_name((infos or sorted(tops))[0].partition("-")[0])
        with open_tar(entry) as tar:
            first = tar.next()
            return _project(first.name.partition("/")[0]) if first is not None else None
    except (*UNREADABLE, IndexError):
        return None
