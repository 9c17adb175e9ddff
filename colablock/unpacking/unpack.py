"""Unpack one wheel into a folder, and hash each file while it is written (Binary distribution format)."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import IO, NamedTuple

from colablock._common.archives import UNREADABLE, open_zip
from colablock._common.process import safe_umask
from colablock._common.text import printable
from colablock._records import dataclass
from colablock.environment.record import HASHES, Row, digest, hash_text, read_record
from colablock.environment.site import STATE, is_state_path
from colablock.errors import BadDistribution
from colablock.index.wheel_check import check_wheel
from colablock.unpacking.link_files import differs, make_folder

__all__ = ["UnpackedFile", "UnpackedWheel", "differing", "unpack"]

_SMALL = 4 << 20  # bytes of a member that is read at once
_BLOCK = 1 << 20
_LENGTHS = struct.Struct("<HH")  # of the name and of the extra field, in a local header
_LENGTHS_AT = 26
_SHOWN = 10  # faults in a message


class UnpackedFile(NamedTuple):  # not a dataclass, because a stack has 25,000 of them
    """A file of a wheel: its path in the wheel, its row in RECORD, and its state when it was written."""

    path: str
    hash: str
    size: int
    mode: int
    mtime: int  # nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedWheel:
    """The content of one wheel; *info* is its metadata folder, and *notes* are for the user."""

    filename: str
    info: str
    is_pure: bool
    boot: str
    notes: tuple[str, ...] = ()
    files: tuple[UnpackedFile, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


def unpack(wheel: Path, into: Path, *, boot: str = "") -> UnpackedWheel:
    """Check *wheel*, unpack it into the new folder *into*, and compare its files with its RECORD.

    A file that RECORD does not list gets a row: `check_wheel` has found that it lies in a folder of
    the wheel.  Raises BadDistribution, and OSError if *into* cannot be written.
    """
    _refuse_state(wheel)
    notes = check_wheel(wheel)
    try:
        with wheel.open("rb") as stream, open_zip(stream) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            info = next(one for one in members if _is_record(one.filename))
            info_folder = info.filename.partition("/")[0]
            into.mkdir(mode=0o700)
            writer = _Writer(archive, stream, str(into), safe_umask())
            record = writer.write(info)
            rows = {row.path: row for row in read_record(into / info_folder) or ()}
            files = (record, *_files(writer, (one for one in members if one is not info), rows))
            description = archive.read(f"{info_folder}/WHEEL").decode("utf-8", "replace")
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise BadDistribution(f"`{wheel.name}` cannot be unpacked: {printable(str(error))}") from error
    faults = [f"{info_folder}: `{printable(path)}` differs from its RECORD" for path in writer.faults]
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise BadDistribution(
            "\n  ".join(["the unpacked files differ from their RECORD", *faults[:_SHOWN], *more])
        )
    return UnpackedWheel(
        filename=wheel.name,
        info=info_folder,
        is_pure=_is_pure(description),
        boot=boot,
        notes=notes,
        files=files,
    )


def _refuse_state(wheel: Path) -> None:
    """Raise BadDistribution if *wheel* has files in a folder with the name of our state folder.

    Such a file could say that a change of the environment was made that never was.
    """
    try:
        with wheel.open("rb") as stream, open_zip(stream) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return  # `check_wheel` says what is wrong with it
    for name in names:
        if is_state_path(name.replace("\\", "/").split("/")):
            raise BadDistribution(
                f"`{wheel.name}` has the file `{name}`, and `{STATE}` is the folder of colablock's own state"
            )


def differing(
    folder: Path, wheel: UnpackedWheel, *, hashed: bool, owners: set[int] | None = None
) -> str | None:
    """Return the first file of an unpacked wheel that is not as it was written; None if all are.

    With *hashed*, the contents are read, too.  The owners of the files are added to *owners*.
    """
    owners = set() if owners is None else owners
    tree = str(folder)
    for path, found, size, mode, mtime in wheel.files:
        try:
            status = os.lstat(f"{tree}/{path}")
        except OSError:
            return path
        if differs(status, size, mode, mtime):
            return path
        owners.add(status.st_uid)
        if hashed and digest(Path(tree, path), found.partition("=")[0]) != found:
            return path
    return None


def _files(
    writer: _Writer, members: Iterable[zipfile.ZipInfo], rows: Mapping[str, Row]
) -> Iterator[UnpackedFile]:
    for member in members:
        row = rows.get(member.filename)
        yield writer.write(member, "" if row is None else row.hash)


def _is_record(path: str) -> bool:
    folder, _, name = path.partition("/")  # a vendored distribution has its own, further down
    return name == "RECORD" and folder.endswith(".dist-info")


def _is_pure(description: str) -> bool:
    """Return what the WHEEL file says: whether the files go to purelib, not to platlib."""
    fields = (line.partition(":") for line in description.splitlines())
    return any(
        key.strip().lower() == "root-is-purelib" and value.strip().lower() == "true"
        for key, _, value in fields
    )


class _Writer:
    """Writes the members of one archive below a folder; *faults* are those that differ from their hash."""

    def __init__(self, archive: zipfile.ZipFile, stream: IO[bytes], folder: str, umask: int) -> None:
        self._archive = archive
        self._stream = stream
        self._folder = folder
        self._umask = umask
        self._made: set[str] = set()
        self.faults: list[str] = []

    def write(self, member: zipfile.ZipInfo, expected: str = "") -> UnpackedFile:
        """Write *member*.  *expected* is its hash in RECORD: a weak one, or none, is not compared."""
        path = f"{self._folder}/{member.filename}"
        make_folder(path.rpartition("/")[0], 0o777 & ~self._umask, self._made)
        is_program = bool((member.external_attr >> 16) & 0o111)
        mode = (0o777 if is_program else 0o666) & ~self._umask
        algorithm = expected.partition("=")[0]
        is_compared = algorithm in HASHES
        hasher = hashlib.new(algorithm if is_compared else "sha256")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            for block in self._blocks(member):
                _write_all(descriptor, block, path)
                hasher.update(block)
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        found = hash_text(hasher.name, hasher.digest())
        if is_compared and found != expected:
            self.faults.append(member.filename)
        return UnpackedFile(member.filename, found, status.st_size, status.st_mode, status.st_mtime_ns)

    def _blocks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield the content of *member*, whose sizes and local header `check_wheel` has compared."""
        if member.file_size > _SMALL or member.compress_size > _SMALL:
            with self._archive.open(member) as content:
                while block := content.read(_BLOCK):
                    yield block
            return
        # Reading a small member this way takes a third of the time of `ZipFile.open`.
        self._stream.seek(member.header_offset + _LENGTHS_AT)
        name, extra = _LENGTHS.unpack(self._stream.read(_LENGTHS.size))
        self._stream.seek(name + extra, os.SEEK_CUR)
        data = self._stream.read(member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            data = inflate.decompress(data, member.file_size + 1)
        if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
            raise zipfile.BadZipFile(
                f"`{printable(member.filename)}` has another size or checksum than its directory says"
            )
        yield data


def _write_all(descriptor: int, data: bytes, path: str) -> None:
    """Raises OSError with *path*: without one, it would be an error of the wheel."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
