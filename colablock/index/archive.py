"""Read source archives without unpacking them; paths that leave the archive are refused (PEP 706)."""

from __future__ import annotations

import contextlib
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from colablock._common import limits
from colablock._common.archive_contents import Contents, UnsafeArchive, check_path
from colablock._common.archives import UNREADABLE, open_tar, open_zip, read_member
from colablock._common.text import printable
from colablock._records import dataclass
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

    Raises BadDistribution if the archive is unreadable or beyond the limits, if two
    members have one path, or if the path or the link of a member leaves it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(open_zip(stack.enter_context(path.open("rb"))))
                found = dict(_zip_members(archive, path))
            else:
                found = dict(_tar_members(stack.enter_context(open_tar(path)), path))
        except UNREADABLE as error:
            reason = printable(str(error))
            raise BadDistribution(f"`{path.name}` cannot be read as an archive: {reason}") from error
        yield SourceArchive(path.name, _below_top(found))


def _zip_members(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, Member]]:
    contents = Contents(path.stat().st_size)
    for entry in archive.infolist():
        inner = _checked(entry.orig_filename)
        contents.add(inner, entry.file_size)
        mode = entry.external_attr >> 16
        if entry.is_dir():
            continue
        if stat.S_ISLNK(mode):
            _check_link(inner, read_member(archive, entry, _LONGEST_LINK).decode("utf-8", "replace"))
            continue  # a link inside the archive: its target is listed under its own name
        contents.claim(inner)

        def read(limit: int, entry: zipfile.ZipInfo = entry) -> bytes:
            return _reading(lambda: read_member(archive, entry, limit), path.name)

        yield inner, Member(inner, bool(mode & 0o100), read)


def _tar_members(archive: tarfile.TarFile, file: Path) -> Iterator[tuple[str, Member]]:
    links: list[tuple[str, tarfile.TarInfo]] = []
    contents = Contents(file.stat().st_size)
    for entry in archive:
        contents.add(entry.name, entry.size)
        path = _checked(entry.name)
        if entry.issym():
            _check_link(path, entry.linkname)
        elif entry.islnk():
            _checked(entry.linkname)
        elif not (entry.isreg() or entry.isdir()):
            raise UnsafeArchive(f"`{printable(path)}` is a device, not a file")
        if entry.issym() or entry.islnk():
            links.append((path, entry))
        elif entry.isreg():
            contents.claim(path)
            yield path, _tar_member(archive, path, entry, file.name)
    _check_below({path for path, entry in links if entry.issym()}, archive.getnames())
    # A link may point to a later member, so links are followed once all members are known.
    for path, entry in links:
        target = _target(archive, entry)
        if target is not None:
            contents.claim(path)
            yield path, _tar_member(archive, path, target, file.name)


def _tar_member(archive: tarfile.TarFile, path: str, entry: tarfile.TarInfo, filename: str) -> Member:
    def read(limit: int) -> bytes:
        return _reading(lambda: _extracted(archive, entry, limit), filename)

    return Member(path, bool(entry.mode & 0o100), read)


def _target(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the file that a link leads to; None for a folder, nothing, or links in a circle."""
    seen: set[str] = set()
    while not entry.isreg():
        if entry.name in seen or not (entry.issym() or entry.islnk()):
            return None
        seen.add(entry.name)
        to = entry.linkname if entry.islnk() else str(PurePosixPath(entry.name).parent / entry.linkname)
        try:
            entry = archive.getmember(_normal(to))
        except KeyError:
            return None
    return entry


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
        raise BadDistribution(f"`{filename}` is damaged: {printable(str(error))}") from error


def _checked(name: str) -> str:
    """Return the normalized path *name*.  Raises UnsafeArchive if it leaves the archive."""
    if name.startswith("/") or ".." in name.split("/"):
        raise UnsafeArchive(f"it contains the path `{printable(name)}`, which leaves the archive")
    path = _normal(name)
    return check_path(path) if path else path


def _check_link(path: str, target: str) -> None:
    """Check that the symbolic link *path* stays in the archive."""
    inside = path.split("/")[:-1]
    outside = target.startswith(("/", "\\")) or target[1:2] == ":" or "\0" in target
    went_down = False
    for part in target.replace("\\", "/").split("/"):
        if part == "..":
            # Behind a folder, which may be another link, nobody knows where `..` leads.
            outside = outside or went_down or not inside
            del inside[-1:]
        elif part not in {"", "."}:
            went_down = True
    if outside:
        raise UnsafeArchive(f"it contains a link to `{printable(target)}`, which leaves the archive")


def _check_below(links: set[str], names: list[str]) -> None:
    """Check that no member is written through a symbolic link of the archive."""
    for name in names if links else ():
        parts = _normal(name).split("/")
        if any("/".join(parts[:end]) in links for end in range(1, len(parts))):
            raise UnsafeArchive(f"it contains the path `{printable(name)}`, which is below a link")


def _normal(name: str) -> str:
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _below_top(found: dict[str, Member]) -> dict[str, Member]:
    """Return *found* relative to its single top folder, if there is one."""
    tops = {path.partition("/")[0] for path in found}
    if len(tops) != 1 or any("/" not in path for path in found):
        return found
    return {path.partition("/")[2]: member for path, member in found.items()}
