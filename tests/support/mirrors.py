"""Helpers for tests of mirrored checkpoints: a mirror that keeps its notes, and what a store has."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from colablock.training.runs.checkpoints.mirror import Mirror
from colablock.training.runs.checkpoints.restore import restore_checkpoint
from colablock.training.runs.checkpoints.stores import FileOperations, FolderStore, list_archives
from colablock.training.runs.folder import RunFolder
from tests.support.reporters import Notes

__all__ = [
    "ODDITIES",
    "Failing",
    "NotedMirror",
    "archived_steps",
    "flip_bit",
    "mirrored_names",
    "names_in",
    "restore_from",
]


class Failing(FileOperations):
    """Fails at the operation *at*, counted from 0.  A file that fails to sync is left half written."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.at = at
        self.error = error
        self.count = 0

    def _next(self) -> None:
        self.count += 1
        if self.count - 1 == self.at:
            raise self.error()

    def create(self, path: Path) -> IO[bytes]:
        self._next()
        return super().create(path)

    def sync(self, file: IO[bytes]) -> None:
        if self.count == self.at:
            file.truncate(file.tell() // 2)
        self._next()
        super().sync(file)

    def rename(self, source: Path, destination: Path) -> None:
        self._next()
        super().rename(source, destination)

    def remove(self, path: Path) -> None:
        self._next()
        super().remove(path)


class NotedMirror:
    """A mirror to the folder *drive* that keeps its notes."""

    def __init__(self, run: RunFolder, drive: Path, files: FileOperations | None = None) -> None:
        self.notes: list[str] = []
        self.store = FolderStore(drive, files or FileOperations())
        self.mirror = Mirror(run, self.store, self.notes.append)

    def mirror_newest(self) -> bool:
        return self.mirror.mirror_newest()


def archived_steps(drive: Path, run_id: str = "run-1") -> list[int]:
    """Return the steps of the complete archives in the folder *drive*, latest first."""
    return [archive.step for archive in list_archives(FolderStore(drive), run_id)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mirrored_names(drive: Path, run: RunFolder) -> set[str]:
    """Return the names of the archives of *run* in the folder *drive*, without its mark."""
    record = run.record()
    assert record is not None
    return {path.name.replace(f"-{record.mark}", "") for path in drive.glob(f"*-{record.mark}.tar")}


def restore_from(drive: Path, into: Path) -> tuple[Path, list[str]]:
    """Restore the run ``run-1`` to *into*; return the checkpoint and the notes."""
    reporter = Notes()
    return restore_checkpoint(FolderStore(drive), "run-1", into, reporter=reporter), reporter.notes


#: What another program may have left in a folder under any name.
ODDITIES: Mapping[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a folder": Path.mkdir,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


def flip_bit(path: Path, at: int) -> None:
    """Flip a bit of the byte *at* of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
