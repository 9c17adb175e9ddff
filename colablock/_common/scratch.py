"""Temporary folders that do not outlive their process for long.

A folder of ``scratch_folder`` has a random name, mode 0700 and a lock.  A
process that is killed leaves its folder behind, but not the lock, so that the
next call of colablock can tell and ``sweep`` removes the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from colablock._common.fs import flock
from colablock.errors import Unmet

__all__ = ["Scratch", "scratch_folder", "sweep"]

_PREFIX = "colablock-tmp-"
_NAME = re.compile(_PREFIX + "[a-z0-9_]{8}")  # as tempfile.mkdtemp makes it
_TRIES = 8  # sweeping may remove a new folder before it is locked, but hardly this often


class Scratch:
    """A new temporary folder at *path*, removed by ``close`` or with the object.  Raises Unmet."""

    def __init__(self) -> None:
        try:
            self.path, descriptor = _locked_folder()
        except OSError as error:
            raise Unmet(
                f"no temporary folder can be created: {error.strerror or error}",
                hint="Set TMPDIR to a folder that you can write to",
            ) from error
        self.close = weakref.finalize(self, _remove, self.path, descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new temporary folder that only this user can enter, and remove it.  Raises Unmet."""
    scratch = Scratch()
    try:
        yield scratch.path
    finally:
        scratch.close()


def sweep() -> None:
    """Remove the folders of ``scratch_folder`` that killed processes of this user have left."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        left = [entry.path for entry in entries if _NAME.fullmatch(entry.name)]
        for folder in left:
            _remove_unused(folder)


def _locked_folder() -> tuple[Path, int]:
    for _ in range(_TRIES):
        folder = tempfile.mkdtemp(prefix=_PREFIX)  # with mode 0700
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # without locks, no process removes the folder of another
            flock(descriptor, shared=True)  # files that are written in it take a shared lock, too
        if os.path.isdir(folder):  # noqa: PTH112
            return Path(folder), descriptor
        os.close(descriptor)
    raise FileExistsError("other processes remove them")


def _remove_unused(folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        is_ours = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == stat.S_IRWXU
        if is_ours and flock(descriptor, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # a file system without locks
        return
    finally:
        os.close(descriptor)


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
