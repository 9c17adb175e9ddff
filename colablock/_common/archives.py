"""Open archives that others may have made, with limits on what is read into memory."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from colablock._common import limits

__all__ = ["UNREADABLE", "SeekableReader", "open_tar", "open_zip", "read_member"]

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
_USUAL_TAIL = 98  # bytes: the end records without a comment
_TAIL = 65_557  # the end record with the longest comment


class SeekableReader(io.RawIOBase):
    """The position in a file of *size* bytes; a subclass reads from there."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a position before the start")
        self._at = base + offset
        return self._at


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
        if size is None or not 0 <= size <= limits.DIRECTORY:  # such as an extended header of 1 GB
            raise OSError(27, f"it is to be read in parts of more than {limits.DIRECTORY >> 20} MiB")
        if self._stream.tell() + size > self._limit + tarfile.RECORDSIZE:
            raise OSError(27, f"it has more than {self._limit >> 20} MiB unpacked")
        return self._stream.read(size)


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, compressed or not.  Raises `UNREADABLE`, also if it has too much unpacked."""
    with _decompressed(path) as stream:
        bounded = cast("IO[bytes]", _Bounded(stream, limits.ARCHIVE))
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            yield archive


def _decompressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path))
    if start.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.open(path))
    return cast("IO[bytes]", lzma.open(path)) if start == b"\xfd7zXZ\0" else path.open("rb")
