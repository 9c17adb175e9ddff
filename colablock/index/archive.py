"""Read source archives without unpacking them; paths that leave the archive are refused (PEP 706)."""

from __future__ import annotations

import contextlib
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from colablock.errors import BadDistribution

__all__ = ["Member", "SourceArchive", "open_archive"]


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive.  *path* is relative to the archive's single top folder."""

    path: str
    executable: bool
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class SourceArchive:
    """The regular files of an sdist or a repository archive, by path."""

    filename: str
    members: dict[str, Member]

    def read_text(self, path: str) -> str | None:
        """Return the text of a file; None if it does not exist."""
        member = self.members.get(path)
        return member.read().decode("utf-8", "replace") if member is not None else None


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[SourceArchive]:
    """Yield the files of a ``.tar.*`` or ``.zip`` archive.

    Raises BadDistribution if the archive is unreadable, or if the path or the link
    of a member leaves it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if zipfile.is_zipfile(path):
                found = dict(_zip_members(stack.enter_context(zipfile.ZipFile(path)), path.name))
            else:
                found = dict(_tar_members(stack.enter_context(tarfile.open(path)), path.name))
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise BadDistribution(f"`{path.name}` cannot be read as an archive: {error}") from error
        yield SourceArchive(path.name, _below_top(found))


def _zip_members(archive: zipfile.ZipFile, filename: str) -> Iterator[tuple[str, Member]]:
    for entry in archive.infolist():
        path = _checked(entry.filename, filename)
        mode = entry.external_attr >> 16
        if entry.is_dir():
            continue
        if stat.S_ISLNK(mode):
            target = archive.read(entry).decode("utf-8", "replace")
            _checked(str(PurePosixPath(path).parent / target), filename, link=True)
            continue  # a link inside the archive: its target is listed under its own name

        def read(entry: zipfile.ZipInfo = entry) -> bytes:
            return _reading(lambda: archive.read(entry), filename)

        yield path, Member(path, bool(mode & 0o100), read)


def _tar_members(archive: tarfile.TarFile, filename: str) -> Iterator[tuple[str, Member]]:
    for entry in archive:
        path = _checked(entry.name, filename)
        if entry.issym():
            _checked(str(PurePosixPath(path).parent / entry.linkname), filename, link=True)
        elif entry.islnk():
            _checked(entry.linkname, filename, link=True)
        elif entry.isdev():
            raise BadDistribution(f"`{filename}` contains a device, `{entry.name}`")
        if not (entry.isreg() or entry.islnk() or entry.issym()):
            continue

        def read(entry: tarfile.TarInfo = entry) -> bytes:
            return _reading(lambda: _extracted(archive, entry), filename)

        if entry.issym() and not _is_file_link(archive, entry):
            continue
        yield path, Member(path, bool(entry.mode & 0o100), read)


def _is_file_link(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bool:
    try:
        return archive.extractfile(entry) is not None
    except KeyError:  # a link to a folder, or a dangling one
        return False


def _extracted(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(entry)
    return stream.read() if stream is not None else b""


def _reading(read: Callable[[], bytes], filename: str) -> bytes:
    try:
        return read()
    except (OSError, EOFError, KeyError, tarfile.TarError, zipfile.BadZipFile, RuntimeError) as error:
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
