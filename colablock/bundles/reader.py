"""Read a bundle, which anybody may have made: its members are found by the manifest and checked by it.

Files are read where they lie in the archive, so nothing is unpacked twice.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from colablock._common.archive_contents import UnsafeArchive, check_zip
from colablock._common.archives import UNREADABLE, SeekableReader, open_zip
from colablock._common.decoding import Malformed, open_regular
from colablock._common.fs import atomic_path, file_digest, make_private, open_private
from colablock._common.limits import BUNDLE_MANIFEST, TEXT_FILE
from colablock._common.text import printable, size_text
from colablock._records import dataclass
from colablock.bundles.manifest import FILES, NAME, PYTHON, BundleManifest, BundleMember
from colablock.errors import BadDistribution, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bundle"]

_LOCAL = 30  # bytes of a local header without its name (APPNOTE.TXT, 4.3.7)
_ZIP64 = 20  # bytes of the extra field of a member of more than 4 GiB
_BLOCK = 1 << 20
_IN_PLACE = (FILES, PYTHON)
_AGAIN = "Copy the file again, or make it again with `colablock bundle`"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """An archive whose directory and manifest agree.  The contents are checked when they are read.

    A bundle equals itself alone: another one at the same path may have other contents.
    """

    path: Path
    manifest: BundleManifest
    _offsets: Mapping[str, int] = field(repr=False)
    _by_name: Mapping[str, BundleMember] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Return the bundle at *path*.  Raises InvalidInput, which names what is missing or wrong."""
        try:
            with open_regular(path) as stream:
                return _opened(path, stream)
        except FileNotFoundError:
            raise InvalidInput(f"there is no bundle `{path}`", hint="`colablock bundle` makes one") from None
        except (UnsafeArchive, Malformed) as error:
            raise _invalid(path, str(error)) from error
        except UNREADABLE as error:
            raise _invalid(path, str(error) or type(error).__name__) from error

    def file(self, filename: str, hashes: Mapping[str, str]) -> BundleMember | None:
        """Return the file of that name; None if there is none, or it has another SHA-256 than *hashes*."""
        member = self._by_name.get(filename)
        sha256 = hashes.get("sha256", "").lower()
        return member if member is not None and sha256 in {"", member.sha256} else None

    def wheel_of(self, sdist: str) -> BundleMember | None:
        """Return the wheel that was built from the member with the SHA-256 *sdist*, if the bundle has it."""
        members = {one.path: one for one in self.manifest.members}
        built = self.manifest.built.items()
        return next((members[wheel] for path, wheel in built if members[path].sha256 == sdist), None)

    @contextmanager
    def opened(self, member: BundleMember) -> Iterator[IO[bytes]]:
        """Open a member where it lies in the archive, to read parts of it.  Its content is not checked."""
        with self._stream() as stream:
            window = _Window(stream, self._offsets[member.path], member.size)
            yield cast("IO[bytes]", io.BufferedReader(window))

    def copy(self, member: BundleMember, to: Path, *, progress: Callable[[int], None] | None = None) -> None:
        """Copy a member to *to* atomically.  Raises BadDistribution if it is not what the manifest lists."""
        digest = hashlib.sha256()
        with atomic_path(to) as new:
            with self._stream() as stream, open(new, "xb", opener=open_private) as target:
                stream.seek(self._offsets[member.path])
                left = member.size
                while left and (block := stream.read(min(_BLOCK, left))):
                    digest.update(block)
                    target.write(block)
                    left -= len(block)
                    if progress is not None:
                        progress(len(block))
            if digest.hexdigest() != member.sha256:
                raise self._damaged(member)

    def unpack(self, folder: Path) -> None:
        """Write the matrix and its lock into *folder*, where they are not there already.

        Raises BadDistribution if one is not what the manifest lists, and OSError.
        """
        for member in self.manifest.members:
            if "/" not in member.path:
                self._place(member, folder)

    def unpack_wheels(self, folder: Path, named: Container[str]) -> None:
        """Write the wheels that lie beside the lock into *folder*.  *named* are the paths in the lock.

        Raises InvalidInput for a file that the lock does not name, BadDistribution, and OSError.
        """
        beside = self.beside
        for member in beside:
            if member.path not in named:
                raise self.refused(f"its lock does not name `{member.path}`")
        for member in beside:
            self._place(member, folder)

    @property
    def beside(self) -> list[BundleMember]:
        """The files in a folder beside the lock: the wheels that colablock has rebuilt."""
        return [
            one for one in self.manifest.members if "/" in one.path and not one.path.startswith(_IN_PLACE)
        ]

    @property
    def python(self) -> BundleMember | None:
        """The packed Python, if the bundle has one."""
        return next((one for one in self.manifest.members if one.path == self.manifest.python_file), None)

    def refused(self, why: str) -> InvalidInput:
        """Return the error for a bundle that contradicts itself."""
        return _invalid(self.path, why)

    def _place(self, member: BundleMember, folder: Path) -> None:
        to = folder / member.path
        if to.parent.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(to.parent))
        if not (to.is_file() and not to.is_symlink() and file_digest(to) == member.sha256):
            make_private(to.parent)
            self.copy(member, to)

    @contextmanager
    def _stream(self) -> Iterator[BinaryIO]:
        try:
            with open_regular(self.path) as stream:
                yield stream
        except Malformed as error:
            raise _invalid(self.path, str(error)) from error

    def _damaged(self, member: BundleMember) -> BadDistribution:
        message = (
            f"`{member.path}` in the bundle `{self.path}` is damaged: it does not have the listed SHA-256"
        )
        return BadDistribution(message, hint=_AGAIN)


class _Window(SeekableReader):
    """A part of a file: *size* bytes from *start*."""

    def __init__(self, stream: BinaryIO, start: int, size: int) -> None:
        super().__init__(size)
        self._stream = stream
        self._start = start

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        self._stream.seek(self._start + self._at)
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _opened(path: Path, stream: BinaryIO) -> Bundle:
    """Return the bundle in *stream*.  Raises UnsafeArchive, Malformed and `UNREADABLE`."""
    size = stream.seek(0, os.SEEK_END)
    try:
        archive = open_zip(stream)
    except zipfile.BadZipFile as error:
        raise Malformed(_where_it_ends(stream, size) or str(error)) from error
    with archive:
        members = check_zip(archive, size)
        if archive.comment or not members or members[0][0] != NAME:
            raise Malformed(f"its first member is not `{NAME}`")
        offsets = {}
        for inner, info in members:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise Malformed(f"its member `{printable(inner)}` is compressed")
            offsets[inner] = _content_of(stream, info)
        manifest = BundleManifest.decoded(_text(stream, offsets[NAME], members[0][1].file_size))
        _compare(manifest, {inner: info.file_size for inner, info in members if inner != NAME})
        end = max(offsets[inner] + info.file_size for inner, info in members)
        if not end <= archive.start_dir <= size:
            raise Malformed("its directory is not at its end")
    by_name = {one.filename: one for one in manifest.members if one.path.startswith(FILES)}
    return Bundle(path=path, manifest=manifest, _offsets=offsets, _by_name=by_name)


def _content_of(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return where the content of a member begins."""
    stream.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", stream.read(4))
    return int(info.header_offset + _LOCAL + name + extra)


def _text(stream: BinaryIO, start: int, size: int) -> bytes:
    if size > BUNDLE_MANIFEST:
        raise Malformed(f"its manifest has more than {BUNDLE_MANIFEST} bytes")
    stream.seek(start)
    return stream.read(size)


def _compare(manifest: BundleManifest, sizes: Mapping[str, int]) -> None:
    """Raise Malformed if the directory of the archive and the manifest list different members."""
    listed = {member.path: member.size for member in manifest.members}
    for inner, size in listed.items():
        if inner not in sizes:
            raise Malformed(f"`{inner}`, which its manifest lists, is missing")
        if sizes[inner] != size:
            raise Malformed(f"`{inner}` has {sizes[inner]} bytes, and its manifest lists {size}")
        if "/" not in inner and size > TEXT_FILE:
            raise Malformed(f"`{inner}` has {size_text(size)}")
    for inner in sizes:
        if inner not in listed:
            raise Malformed(f"its manifest does not list `{printable(inner)}`")


def _where_it_ends(stream: BinaryIO, size: int) -> str | None:
    """Return in which member an archive without its end stops; None if it does not begin as a bundle."""
    stream.seek(0)
    head = stream.read(_LOCAL)
    if len(head) < _LOCAL or head[:4] != b"PK\3\4":
        return None
    length = struct.unpack_from("<L", head, 18)[0]
    name, extra = struct.unpack_from("<HH", head, 26)
    if stream.read(name) != NAME.encode() or length > BUNDLE_MANIFEST:
        return None
    end = _LOCAL + name + extra + length
    stream.seek(end - length)
    try:
        manifest = BundleManifest.decoded(stream.read(length))
    except Malformed:
        return f"it ends in the middle of `{NAME}`" if end > size else None
    for member in manifest.members:
        end += _LOCAL + len(member.path.encode()) + member.size + (_ZIP64 if member.size >= 1 << 31 else 0)
        if end > size:
            all_of_it = f"{size_text(size)} of about {size_text(manifest.size)}"
            return f"it ends in the middle of `{member.path}` ({all_of_it} are there)"
    return f"its end is missing, after `{manifest.members[-1].path}`" if manifest.members else None


def _invalid(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"`{path}` is not a usable bundle: {why}", hint=_AGAIN)
