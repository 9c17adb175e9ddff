"""The file operations of a change, and how to run, repeat and expand one.

A move has one private end: the stash of a file that goes out, or the stage of
a file that comes in.  Whether a move has run can therefore be seen on the disk:
its private end exists or not.
"""

# Paths are strings here: a change of a whole stack has 30,000 of them.
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH112, PTH114, PTH116

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from enum import Enum
from pathlib import Path

from colablock._common.fs import replace_file, sync
from colablock._records import dataclass

__all__ = [
    "TEMPORARY",
    "TEMPORARY_BACK",
    "Operation",
    "OperationKind",
    "Operations",
    "complete_copy",
    "delete_folder",
    "expand",
    "make_folder",
    "move",
    "remove_tree",
]

TEMPORARY = ".colablock-new"
# Undo uses another suffix: one thing may be moved away from a path and another moved there.
TEMPORARY_BACK = ".back.colablock-new"


class OperationKind(Enum):
    """What an operation does to the environment."""

    OUT = "out"  # moves to the stash: `destination` is the private end
    IN = "in"  # moves from the stage: `source` is the private end
    MKDIR = "mkdir"
    RMDIR = "rmdir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One move of a file or a whole folder, or the creation or removal of a folder."""

    kind: OperationKind
    source: str = ""
    destination: str = ""
    mode: int = 0o755

    @property
    def is_move(self) -> bool:
        """Whether the operation moves a file or a folder."""
        return self.kind in (OperationKind.OUT, OperationKind.IN)

    @property
    def has_run(self) -> bool:
        """Whether a move has run, according to its private end."""
        if self.kind is OperationKind.OUT:
            return os.path.lexists(self.destination)
        return not os.path.lexists(self.source)


class Operations:
    """Everything that a change does to the disk, one method each.  Tests replace it to inject failures."""

    def rename(self, source: str, destination: str) -> None:
        """Move within one mount; *destination* does not exist."""
        os.rename(source, destination)

    def copy(self, source: str, destination: str) -> None:
        """Copy one file or link with its mode and times, and sync it."""
        shutil.copy2(source, destination, follow_symlinks=False)
        if not os.path.islink(destination):
            sync(destination)

    def unlink(self, path: str) -> None:
        """Remove one file or link."""
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        """Create one folder with exactly these permissions."""
        os.mkdir(path)
        os.chmod(path, mode)

    def rmdir(self, path: str) -> None:
        """Remove one empty folder."""
        os.rmdir(path)

    def write(self, path: str, text: str) -> None:
        """Write a whole file atomically and sync it."""
        replace_file(Path(path), text.encode("utf-8", "surrogateescape"), private=True, synced=True)


def move(source: str, destination: str, disk: Operations, *, suffix: str = TEMPORARY) -> bool:
    """Rename, or copy a file that cannot be renamed.  Returns False for a folder that cannot be renamed.

    Raises FileExistsError if *destination* exists.
    """
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, "something else is at the destination", destination)
    try:
        disk.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if os.path.isdir(source) and not os.path.islink(source):
            return False
        # Both ends must never exist at once: has_run relies on that.  The copy is synced before the source
        # is removed.
        disk.copy(source, destination + suffix)
        disk.unlink(source)
        disk.rename(destination + suffix, destination)
    return True


def complete_copy(source: str, destination: str, suffix: str, disk: Operations) -> None:
    """Complete or discard the copy that an interrupted ``move`` has left at *destination* with *suffix*."""
    temporary = destination + suffix
    if not os.path.lexists(temporary):
        return
    if os.path.lexists(source):
        disk.unlink(temporary)
    else:
        disk.rename(temporary, destination)


def expand(operation: Operation) -> list[Operation]:
    """Return the move of a folder as moves of its content; the move of a file as it is."""
    source, destination = operation.source, operation.destination
    if not os.path.isdir(source) or os.path.islink(source):
        return [operation]
    mode = os.stat(source).st_mode & 0o7777
    steps = [Operation(kind=OperationKind.MKDIR, destination=destination, mode=mode)]
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            steps += expand(
                Operation(kind=operation.kind, source=entry.path, destination=f"{destination}/{entry.name}")
            )
    return [*steps, Operation(kind=OperationKind.RMDIR, source=source, mode=mode)]


def make_folder(folder: str, mode: int, disk: Operations) -> None:
    """Create a folder, or set its permissions: an interrupted recovery may have left it without them."""
    if not os.path.isdir(folder):
        disk.mkdir(folder, mode)
    elif stat.S_IMODE(os.stat(folder).st_mode) != mode:
        os.chmod(folder, mode)


def delete_folder(folder: str, disk: Operations) -> None:
    """Delete a folder and its content, one operation for each file.  Raises OSError."""
    for inner, folders, files in os.walk(folder, topdown=False):
        for name in files:
            disk.unlink(f"{inner}/{name}")
        for name in folders:
            path = f"{inner}/{name}"
            if os.path.islink(path):
                disk.unlink(path)
            else:
                disk.rmdir(path)
    disk.rmdir(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder as far as possible, also subfolders without write permission.  Never raises.

    Of a symbolic link, only the link itself is removed.
    """
    if os.path.islink(folder):
        with suppress(OSError):
            os.unlink(folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        for path, _, _ in os.walk(folder):
            with suppress(OSError):
                os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)
