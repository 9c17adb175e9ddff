"""Read source archives without unpacking them; paths that leave the archive are refused (PEP 706)."""

from __future__ import annotations

import contextlib
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from colablock._common import limits
from colablock._common.archives import UNREADABLE, open_tar, open_zip, read_member
from colablock.errors import BadDistribution

__all__ = ["Member", "SourceArchive", "open_archive"]

_LONGEST_LINK = 4096  # bytes: the longest path of Linux
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive.  *path* is relative to the archive's single top folder."""

    path: str
    executable: bool
    _read: Callable[[int], bytes]

    def read(self, limit: int = limits.MEMBER) -> bytes:
        """Return the content.  Raises BadDistribution if it is damaged or larger than *limit*."""
        return self._read(limit)


@dataclass(frozen=True, slots=True)
class SourceArchive:
    """The regular files of an sdist or a repository archive, by path."""

    filename: str
    members: dict[str, Member]

    def read_text(self, path: str) -> str | None:
        """Return the text of a file; None if it does not exist."""
        member = self.members.get(path)
        return member.read(limits.TEXT_FILE).decode("utf-8", "replace") if member is not None else None


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[SourceArchive]:
    """Yield the files of a ``.tar.*`` or ``.zip`` archive.

    Raises BadDistribution if the archive is unreadable, or if the path or the link
    of a member leaves it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if zipfile.is_zipfile(path):
                archive = open_zip(stack.enter_context(path.open("rb")))
                found = dict(_zip_members(stack.enter_context(archive), path.name))
            else:
                found = dict(_tar_members(stack.enter_context(open_tar(path)), path.name))
        except UNREADABLE as error:
            raise BadDistribution(f"`{path.name}` cannot be read as an archive: {error}") from error
        yield SourceArchive(path.name, _below_top(found))


def _zip_members(archive: zipfile.ZipFile, filename: str) -> Iterator[tuple[str, Member]]:
    for entry in archive.infolist():
        path = _checked(entry.filename, filename)
        mode = entry.external_attr >> 16
        if entry.is_dir():
            continue
        if stat.S_ISLNK(mode):
            target = read_member(archive, entry, _LONGEST_LINK).decode("utf-8", "replace")
            _checked(str(PurePosixPath(path).parent / target), filename, link=True)
            continue  # a link inside the archive: its target is listed under its own name

        def read(limit: int, entry: zipfile.ZipInfo = entry) -> bytes:
            return _reading(lambda: read_member(archive, entry, limit), filename)

        yield path, Member(path, bool(mode & 0o100), read)


def _tar_members(archive: tarfile.TarFile, filename: str) -> Iterator[tuple[str, Member]]:
    for number, entry in enumerate(archive):
        if number >= limits.MEMBERS:
            raise BadDistribution(f"`{filename}` has more than {limits.MEMBERS} members")
        path = _checked(entry.name, filename)
        if entry.issym():
            _checked(str(PurePosixPath(path).parent / entry.linkname), filename, link=True)
        elif entry.islnk():
            _checked(entry.linkname, filename, link=True)
        elif entry.isdev():
            raise BadDistribution(f"`{filename}` contains a device, `{entry.name}`")
        if not (entry.isreg() or entry.islnk() or entry.issym()):
            continue

        def read(limit: int, entry: tarfile.TarInfo = entry) -> bytes:
            return _reading(lambda: _extracted(archive, entry, limit), filename)

        if entry.issym() and not _is_file_link(archive, entry):
            continue
        yield path, Member(path, bool(entry.mode & 0o100), read)


def _is_file_link(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bool:
    try:
        return archive.extractfile(entry) is not None
    except KeyError:  # a link to a folder, or a dangling one
        return False


def _extracted(archive: tarfile.TarFile, entry: tarfile.TarInfo, limit: int) -> bytes:
    stream = archive.extractfile(entry)
    parts: list[bytes] = []
    while stream is not None and (part := stream.read(_CHUNK)):
        parts.append(part)
        if len(parts) * _CHUNK > limit + _CHUNK:
            raise tarfile.ReadError(f"a member is larger than {limit >> 20} MiB")
    return b"".join(parts)


def _reading(read: Callable[[], bytes], filename: str) -> bytes:
    try:
        return read()
    except UNREADABLE as error:
        raise BadDistribution(f"`{filename}` is damaged: {error}") from error


def _checked(name: str, filename: str, *, link: bool = False) -> str:
    """Return the normalized path *name*.  Raises BadDistribution if it leaves the archive."""
    parts: list[str] = []
    outside = name.startswith(("/", "\\")) or "\0" in name or name[1:3] in {":\\", ":/"}
    for part in name.replace("\\", "/").split("/"):
        if part == ".." and link and parts:
            parts.pop()
        elif part == "..":
            outside = True
        elif part not in {"", "."}:
            parts.append(part)
    if outside:
        kind = "a link to" if link else "the path"
        raise BadDistribution(f"`{filename}` contains {kind} `{name}`, which leaves the archive")
    return "/".join(parts)


def _below_top(found: dict[str, Member]) -> dict[str, Member]:
    """Return *found* relative to its single top folder, if there is one."""
    tops = {path.partition("/")[0] for path in found}
    if len(tops) != 1 or any("/" not in path for path in found):
        return found
    return {path.partition("/")[2]: member for path, member in found.items()}
