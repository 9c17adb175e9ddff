"""Helpers for tests of mirrored checkpoints: a mirror that keeps its notes, and what a store has."""

from __future__ import annotations

from pathlib import Path

from colablock.training.runs.checkpoints.mirror import Mirror
from colablock.training.runs.checkpoints.restore import restore_checkpoint
from colablock.training.runs.checkpoints.stores import FileOperations, FolderStore, list_archives
from colablock.training.runs.folder import RunFolder
from tests.support.reporters import Notes

__all__ = ["NotedMirror", "archived_steps", "flip_bit", "names_in", "restore_from"]


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


def restore_from(drive: Path, into: Path) -> tuple[Path, list[str]]:
    """Restore the run ``run-1`` to *into*; return the checkpoint and the notes."""
    reporter = Notes()
    return restore_checkpoint(FolderStore(drive), "run-1", into, reporter=reporter), reporter.notes


def flip_bit(path: Path, at: int) -> None:
    """Flip a bit of the byte *at* of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
