"""The contents of zip and tar archives of others, checked before anything of them is unpacked.

A path stays below the folder to unpack into on every file system
(PEP 706 for tar archives).  The limits are in `limits`.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
from typing import Final

from colablock._common.limits import (
    ARCHIVE_DEPTH,
    ARCHIVE_MEMBER,
    ARCHIVE_PATH,
    ARCHIVE_RATIO,
    ARCHIVE_RATIO_FROM,
    ARCHIVE_UNPACKED,
    MEMBERS,
)
from colablock._common.text import printable, size_text

__all__ = ["Contents", "UnsafeArchive", "check_path", "check_zip"]

_LOCAL = 30  # bytes of a local header without its name (4.3.7)
_DESCRIPTOR = 24  # the longest data descriptor (4.3.9)
_ENCRYPTED, _HAS_DESCRIPTOR = 0x1, 0x8
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_KINDS = (0, stat.S_IFREG, stat.S_IFDIR)  # 0: the tool that packed it gave no mode
# A path with these cannot be shown, listed in a RECORD or told from another.
_UNSHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Windows has devices of these names in every folder, and drops spaces and dots at the end of a name.
_FOREIGN: Final = re.compile(
    r"(?:^|/)(?:con|prn|aux|nul|(?:com|lpt)[0-9\xb9\xb2\xb3])(?: *\.[^/]*)? *(?:/|$)|[. ](?:/|$)",
    re.IGNORECASE,
)
# The headers of Linux have pairs such as xt_MARK.h and xt_mark.h.
_C_HEADERS = (".h", ".hh", ".hpp", ".hxx", ".cuh")
_NAME = 255  # bytes of a file name


class UnsafeArchive(zipfile.BadZipFile):
    """An archive that must not be unpacked.  The text is the reason, in one line."""


def check_path(path: str) -> str:
    """Return the path of a member without a final ``/``.

    Raises UnsafeArchive unless it is relative, normalized and valid on every file system.
    """
    inner = path.removesuffix("/")
    parts = inner.split("/")
    if path.startswith("/") or "\\" in path or ".." in parts or path[1:2] == ":":
        raise UnsafeArchive(f"it contains the path `{printable(path)}`, which leaves the archive")
    if inner.isascii() and inner.isprintable():
        wrong = False
    else:
        wrong = any(unicodedata.category(one) in _UNSHOWN for one in inner) or printable(inner) != inner
    if wrong or "" in parts or "." in parts:
        raise UnsafeArchive(f"it contains the path `{printable(path)}`, which is not a valid path")
    if len(inner) > ARCHIVE_PATH or len(parts) > ARCHIVE_DEPTH:
        raise UnsafeArchive(f"it contains a path of {len(parts)} folders and {len(inner)} characters")
    is_short = len(inner) * 4 <= _NAME  # a character has at most four bytes
    # Released wheels have empty folders with such names (`pyarrow./` in pyarrow 17.0.0), which nothing needs.
    is_foreign = not path.endswith("/") and _FOREIGN.search(inner)
    if is_foreign or not (is_short or all(len(part.encode()) <= _NAME for part in parts)):
        raise UnsafeArchive(
            f"it contains the path `{printable(path)}`, which is not a valid file name on every system"
        )
    return inner


class Contents:
    """The members of one archive: their number, their sizes and their paths, checked one by one.

    *packed* is the size of the archive in bytes.
    """

    def __init__(self, packed: int) -> None:
        self._packed = packed
        self._members = 0
        self._size = 0
        self._paths: dict[str, str] = {}  # by the name that a path has where case does not count
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, path: str, size: int) -> None:
        """Count a member of *size* bytes.  Raises UnsafeArchive beyond the limits."""
        self._members += 1
        self._size += size
        if self._members > MEMBERS:
            raise UnsafeArchive(f"it has more than {MEMBERS} members")
        if size > ARCHIVE_MEMBER:
            raise UnsafeArchive(f"its member `{printable(path)}` has {size_text(size)}")
        if self._size > ARCHIVE_UNPACKED:
            raise UnsafeArchive(f"it has more than {size_text(ARCHIVE_UNPACKED)} unpacked")
        if self._size > max(ARCHIVE_RATIO_FROM, self._packed * ARCHIVE_RATIO):
            raise UnsafeArchive(
                f"its {size_text(self._packed)} unpack to more than {ARCHIVE_RATIO} times their size"
            )

    def claim(self, path: str, *, folder: bool = False) -> None:
        """Claim *path* for one member.  Raises UnsafeArchive if another member has it on some file system."""
        parent = path.rpartition("/")[0]
        if parent and parent not in self._folders:
            self.claim(parent, folder=True)
        key = path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()
        known = self._paths.setdefault(key, path)
        if folder and known == path and (path in self._folders or key not in self._files):
            self._folders.add(path)
        elif known == path and path not in self._folders and key not in self._files:
            self._files.add(key)
        elif known == path:
            raise UnsafeArchive(f"it contains the path `{printable(path)}` twice")
        elif folder or not path.endswith(_C_HEADERS):
            raise UnsafeArchive(
                f"its paths `{printable(known)}` and `{printable(path)}` are the same where case and Unicode"
                " forms do not count"
            )


def check_zip(archive: zipfile.ZipFile, size: int) -> list[tuple[str, zipfile.ZipInfo]]:
    """Return the files of a zip archive of *size* bytes with their paths, all of them safe to unpack.

    Raises UnsafeArchive for a link, a device, an encrypted or an overlapping member, a
    local header that differs from the directory, and whatever `check_path` and `Contents` refuse.
    """
    contents = Contents(size)
    found = []
    for member in archive.infolist():
        if member.orig_filename != member.filename:
            raise UnsafeArchive(f"it contains the path `{printable(member.orig_filename)}`, which has a NUL")
        path = check_path(member.filename)
        contents.add(path, member.file_size)
        contents.claim(path, folder=member.is_dir())
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in _KINDS or (kind == stat.S_IFDIR) > member.is_dir():
            raise UnsafeArchive(f"`{printable(path)}` is a link or a device, not a file")
        if member.flag_bits & _ENCRYPTED:
            raise UnsafeArchive(f"`{printable(path)}` is encrypted")
        if member.compress_type not in _METHODS:
            raise UnsafeArchive(
                f"`{printable(path)}` is compressed by the unknown method {member.compress_type}"
            )
        if not member.is_dir():
            found.append((path, member))
    _check_layout(archive)
    return found


def _check_layout(archive: zipfile.ZipFile) -> None:
    """Check that members follow each other without gaps, and that local headers agree with the directory.

    Else two tools may unpack different files from one archive.
    """
    stream = archive.fp
    assert stream is not None  # noqa: S101 - it was just opened
    end = 0
    gap = 0
    differs = "the local header of `{}` differs from the directory"
    for member in sorted(archive.infolist(), key=lambda one: one.header_offset):
        if not end <= member.header_offset <= end + gap:
            raise UnsafeArchive(f"`{printable(member.filename)}` does not follow the member before it")
        stream.seek(member.header_offset)
        header = stream.read(_LOCAL)
        if len(header) < _LOCAL or header[:4] != b"PK\3\4":
            raise UnsafeArchive(f"`{printable(member.filename)}` has no local header")
        flags, method = struct.unpack_from("<HH", header, 6)
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        name = stream.read(name_length)
        encoding = "utf-8" if flags & 0x800 else "cp437"
        if name.decode(encoding, "replace") != member.filename or method != member.compress_type:
            raise UnsafeArchive(differs.format(printable(member.filename)))
        has_descriptor = bool(flags & _HAS_DESCRIPTOR)
        packed, unpacked = struct.unpack_from("<LL", header, 18)
        if (
            not has_descriptor
            and not {packed, unpacked} & {0xFFFFFFFF}
            and ((packed, unpacked) != (member.compress_size, member.file_size))
        ):
            raise UnsafeArchive(differs.format(printable(member.filename)))
        end = member.header_offset + _LOCAL + name_length + extra_length + member.compress_size
        gap = _DESCRIPTOR if has_descriptor else 0
    if not end <= archive.start_dir <= end + gap:
        raise UnsafeArchive("it has data between its last member and its directory")
