"""Read source archives without unpacking them; paths that leave the archive are refused (PEP 706)."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from colablock._common import limits
from colablock.errors import BadDistribution

__all__ = ["UNREADABLE", "Member", "SourceArchive", "open_archive", "open_zip", "read_member"]

#: What the standard library raises for archives that are damaged, or made to look so.
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,  # an unknown compression
    OverflowError,
    RuntimeError,  # an encrypted member; also RecursionError
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
_END = b"PK\x05\x06"
_END_64 = b"PK\x06\x06"
_ENTRY = b"PK\x01\x02"
_LONGEST_LINK = 4096  # bytes: the longest path of Linux
_USUAL_TAIL = 98  # bytes: the end records without a comment
_TAIL = 65_557  # the end record with the longest comment


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
                stream = _Bounded(stack.enter_context(_decompressed(path)), limits.ARCHIVE)
                tar = tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:")  # noqa: SIM115 - see below
                found = dict(_tar_members(stack.enter_context(tar), path.name))
        except UNREADABLE as error:
            raise BadDistribution(f"`{path.name}` cannot be read as an archive: {error}") from error
        yield SourceArchive(path.name, _below_top(found))


def open_zip(stream: IO[bytes]) -> zipfile.ZipFile:
    """Return the zip archive *stream*.  Raises BadZipFile if its directory is too large, or OSError."""
    # zipfile reads the whole directory into memory, several hundred bytes for each member.
    size = stream.seek(0, io.SEEK_END)
    for wanted in (_USUAL_TAIL, _TAIL):  # most archives have no comment after the end record
        stream.seek(max(0, size - wanted))
        tail = stream.read(wanted)
        if _END in tail:
            break
    end, length = _directory(tail)
    if length > limits.DIRECTORY:
        raise zipfile.BadZipFile(f"its directory has {length} bytes, more than {limits.DIRECTORY}")
    stream.seek(max(0, size - len(tail) + end - length))
    if stream.read(length).count(_ENTRY) > limits.MEMBERS:
        raise zipfile.BadZipFile(f"it has more than {limits.MEMBERS} members")
    stream.seek(0)
    return zipfile.ZipFile(stream)


def _directory(tail: bytes) -> tuple[int, int]:
    """Return where the directory of a zip archive ends in its *tail*, and how many bytes it has."""
    end, end_64 = tail.rfind(_END), tail.rfind(_END_64)
    if end_64 >= 0 and len(tail) >= end_64 + 56:  # ZIP64: the end record has no room for the numbers
        return end_64, struct.unpack_from("<Q", tail, end_64 + 40)[0]
    if end < 0 or len(tail) < end + 22:
        return len(tail), 0  # zipfile says what is wrong
    return end, struct.unpack_from("<L", tail, end + 12)[0]


def read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | str, limit: int = limits.MEMBER) -> bytes:
    """Return the content of a member.  Raises BadZipFile if it is larger than *limit*, and `UNREADABLE`."""
    with archive.open(entry) as stream:  # the announced size may be wrong, so it is not asked
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise zipfile.BadZipFile(f"a member is larger than {limit >> 20} MiB")
    return data


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends with OSError after *limit* bytes, those that are skipped included."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        super().__init__()
        self._stream = stream
        self._limit = limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset > self._limit:
            raise OSError(27, f"it has more than {self._limit >> 20} MiB unpacked")
        return self._stream.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        if self._stream.tell() + max(size or 0, 0) > self._limit + tarfile.RECORDSIZE:
            raise OSError(27, f"it has more than {self._limit >> 20} MiB unpacked")
        return self._stream.read(-1 if size is None else size)


def _decompressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path))
    if start.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.open(path))
    return cast("IO[bytes]", lzma.open(path)) if start == b"\xfd7zXZ\0" else path.open("rb")


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
    data = stream.read(limit + 1) if stream is not None else b""
    if len(data) > limit:
        raise tarfile.ReadError(f"a member is larger than {limit >> 20} MiB")
    return data


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
