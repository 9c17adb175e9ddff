"""Archives of mirrored checkpoints: their names, their contents, and how they are packed and unpacked.

::

    TARGET/
        ID-newest.txt                      the mark of the run with that id that was started last
        ID-checkpoint-40-MARK.tar          checkpoint-40/ with its manifest, run.json, metrics.jsonl
        ID-checkpoint-40-MARK.tar.sha256   written last: an archive without it is incomplete

Another run may have the same id, on another machine or after ``--fresh``.  Each has a mark of its own, and
no clock tells which is the newest.  Earlier versions wrote no marks.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from colablock._common.decoding import is_plain_name, read_bounded
from colablock._common.limits import METRICS_FILE
from colablock.errors import Unmet

__all__ = [
    "HASH_SUFFIX",
    "RUN_FILES",
    "CheckpointArchive",
    "complete_archives",
    "hash_line",
    "marked_name",
    "newest_name",
    "pack",
    "read_run_files",
    "unpack",
]

HASH_SUFFIX = ".sha256"
RUN_FILES = ("run.json", "metrics.jsonl")  # what another machine needs to resume the run
_BLOCK = 1 << 20  # bytes
_LARGEST_READ = 4 * _BLOCK


@dataclass(frozen=True, slots=True, order=True)
class CheckpointArchive:
    """The archive of one checkpoint of one run, known by its file name."""

    run_id: str
    step: int
    mark: str = ""

    @property
    def name(self) -> str:
        return marked_name(f"{self.run_id}-checkpoint-{self.step}", self.mark)

    @property
    def checkpoint(self) -> str:
        return f"checkpoint-{self.step}"

    @classmethod
    def of(cls, name: str) -> CheckpointArchive | None:
        """Return the archive with the file name *name*; None if it is not the name of an archive."""
        found = re.fullmatch(r"(.+)-checkpoint-([0-9]{1,15})(?:-([0-9a-f]{8}))?\.tar", name)
        is_archive = found and is_plain_name(name) and not name.startswith(".")
        return cls(found[1], int(found[2]), found[3] or "") if found and is_archive else None


def marked_name(stem: str, mark: str) -> str:
    """Return the name of an archive *stem* of the run with the mark *mark*, which may be empty."""
    return f"{stem}-{mark}.tar" if mark else f"{stem}.tar"


def newest_name(run_id: str) -> str:
    """Return the name of the file with the mark of the run *run_id* that was started last."""
    return f"{run_id}-newest.txt"


def complete_archives(
    names: Collection[str], run_id: str | None, mark: str | None = None
) -> tuple[CheckpointArchive, ...]:
    """Return the archives among *names* that have a hash file, the latest step first.

    *run_id* and *mark* leave out those of other runs.
    """
    found = [
        archive
        for name in names
        if f"{name}{HASH_SUFFIX}" in names
        and (archive := CheckpointArchive.of(name)) is not None
        and run_id in (None, archive.run_id)
        and mark in (None, archive.mark)
    ]
    return tuple(sorted(found, key=lambda archive: (archive.run_id, -archive.step, archive.mark)))


def read_run_files(run: Path) -> dict[str, bytes]:
    """Return the contents of those `RUN_FILES` that the folder *run* has."""
    found = {}
    for name in RUN_FILES:
        with suppress(OSError, ValueError):
            found[name] = read_bounded(run / name, METRICS_FILE)
    return found


def hash_line(digest: str, name: str) -> bytes:
    """Return the content of a hash file, in the format of sha256sum(1)."""
    return f"{digest}  {name}\n".encode()


def pack(checkpoint: Path, run_files: Mapping[str, bytes], file: IO[bytes]) -> str:
    """Write *checkpoint* and *run_files* to *file* as a tar archive, in one pass.

    Returns the SHA-256 of the archive, in hex.
    """
    hashing = _HashingWriter(file)
    with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK) as archive:
        for name, data in run_files.items():
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
        for path in sorted(checkpoint.rglob("*")):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as source:
                    name = f"{checkpoint.name}/{path.relative_to(checkpoint).as_posix()}"
                    archive.addfile(_member(name, os.fstat(source.fileno()).st_size), source)
    return hashing.digest.hexdigest()


def unpack(packed: Path, into: Path, checkpoint: str) -> None:
    """Write the files of an archive below *into*.

    Only regular files with the names that `pack` gives are accepted.  Links, modes and
    owners in the archive are ignored.  Raises Unmet for any other member.
    """
    with (
        packed.open("rb") as source_file,
        tarfile.open(fileobj=_SmallReads(source_file), mode="r:") as archive,
    ):
        for member in archive:
            parts = PurePosixPath(member.name).parts
            is_plain = all(map(is_plain_name, member.name.split("/")))
            is_ours = is_plain and (member.name in RUN_FILES or (len(parts) > 1 and parts[0] == checkpoint))
            source = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if source is None or not is_ours:
                raise Unmet(f"it holds `{member.name}`, which colablock does not write")
            path = into.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file, _BLOCK)


class _SmallReads(io.RawIOBase):
    """Passes reads on to a file, and refuses large ones: tarfile reads the text of a header at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise Unmet("a header of it is too large")
        return self._file.read(size)


class _HashingWriter(io.RawIOBase):
    """Passes data on to a file and hashes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member
