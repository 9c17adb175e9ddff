"""Source archives read in place: nothing in them can name a path outside (PEP 706), nothing is run."""

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
    """One regular file of an archive.  *path* is below the archive's single top folder."""

    path: str
    executable: bool
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class SourceArchive:
    """The regular files of an sdist or of a repository's archive, by path."""

    filename: str
    members: dict[str, Member]

    def read_text(self, path: str) -> str | None:
        """Return a text file, None when there is none."""
        member = self.members.get(path)
        return member.read().decode("utf-8", "replace") if member is not None else None


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[SourceArchive]:
    """Give the files of a ``.tar.*`` or ``.zip`` archive.

    A member whose path or link leads outside the archive makes it
    BadDistribution, as does an archive that cannot be read.
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
            continue  # a link within the archive: what it points to is there under its own name

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
            raise BadDistribution(f"`{filename}` holds a device, `{entry.name}`")
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
    except KeyError:  # a link to a folder, or to nothing
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
    """Return *name* in plain form.  Raises BadDistribution when it leads outside."""
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
        raise BadDistribution(f"`{filename}` holds {kind} `{name}`, which leads outside of it")
    return "/".join(parts)


def _below_top(found: dict[str, Member]) -> dict[str, Member]:
    """Return *found* without the one folder that holds everything, where there is one."""
    tops = {path.partition("/")[0] for path in found}
    if len(tops) != 1 or any("/" not in path for path in found):
        return found
    return {path.partition("/")[2]: member for path, member in found.items()}
