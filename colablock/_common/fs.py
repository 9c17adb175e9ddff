"""Files that a user asked for, written as a whole or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from colablock.errors import InvalidInput

__all__ = ["free_space", "is_same_disk", "write_atomic"]


def write_atomic(path: Path, data: bytes) -> None:
    """Write *data* to *path* in one step, its folders made, over what stood there.  Raises InvalidInput."""
    new = path.parent / f".{path.name}.{os.getpid()}"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(data)
        new.replace(path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise InvalidInput(f"`{path}` cannot be written: {error.strerror}") from error


def free_space(folder: Path) -> int:
    """Return the bytes that may still be written in *folder*, or where it would be."""
    stat = os.statvfs(_nearest_existing(folder))
    return stat.f_bavail * stat.f_frsize


def is_same_disk(one: Path, other: Path) -> bool:
    """Whether what is written in the one folder takes room from what is written in the other."""
    return _nearest_existing(one).stat().st_dev == _nearest_existing(other).stat().st_dev


def _nearest_existing(folder: Path) -> Path:
    """Return *folder*, or the one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
