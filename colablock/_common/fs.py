"""Files: atomic writes, locks, hashes and free disk space."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from colablock.errors import InvalidInput

if sys.platform != "win32":
    import fcntl

__all__ = [
    "NEW",
    "atomic_path",
    "file_digest",
    "flock",
    "free_space",
    "is_same_disk",
    "locked_file",
    "open_locked",
    "read_object",
    "replace_file",
    "sync",
    "write_atomic",
]

NEW = ".new-"
"""How the name of a file begins that is still being written."""

_BLOCK = 1 << 20


# Atomic writes


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a free path in the folder of *path*; what the block puts there becomes *path* by one rename.

    The name cannot be predicted, so nobody else can prepare it.  Other
    processes see the old *path* or the new one, never a part.  When the block
    raises, the new file is removed and *path* stays as it is.  A symbolic link
    at *path* is replaced; its target stays as it is.  Nothing is synced.
    Raises OSError.
    """
    new = path.with_name(f"{NEW}{os.urandom(8).hex()}")
    try:
        yield new
        new.replace(path)
    finally:
        # A rename between two hard links of one file does nothing, so the new name may remain.
        with suppress(OSError):
            new.unlink()


def replace_file(path: Path, data: bytes, *, synced: bool = False) -> None:
    """Write *data* to *path* as ``atomic_path`` does.  The permissions of an older file are kept.

    With *synced*, the file is on the disk before it gets its name, and the name
    is when this returns: a crash leaves the old content or the new one.
    Without it, a crash of the machine may leave an empty file.  Raises OSError.
    """
    with atomic_path(path) as new, new.open("xb") as file:
        with suppress(OSError):  # there is none, or the file system has no permissions
            if stat.S_ISREG(mode := path.lstat().st_mode):
                new.chmod(stat.S_IMODE(mode))
        file.write(data)
        if synced:
            file.flush()
            os.fsync(file.fileno())
    if synced:
        sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that the user asked for as ``replace_file`` does, and make its folders.

    A symbolic link is followed: its target is replaced.  A device or a pipe
    (``/dev/stdout``) is written to in place.  Raises InvalidInput.
    """
    try:
        real = Path(os.path.realpath(path))
        if real.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if real.exists() and not real.is_file():
            real.write_bytes(data)
            return
        real.parent.mkdir(parents=True, exist_ok=True)
        replace_file(real, data)
    except OSError as error:
        raise InvalidInput(f"`{path}` cannot be written: {error.strerror}") from error


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Locks


def flock(file: int | IO[Any], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file or folder (flock(2)); whether the lock is held now.

    The lock binds only processes that ask for it.  It ends when the file is
    closed, so also when the process ends, however it ends.  Without *wait*,
    False means that another one holds it.  Always False on Windows, which has
    no such lock.  Raises OSError where the file system has none.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def open_locked(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Return a descriptor of the file or folder *path* that holds its lock until it is closed.

    None where there is no such lock to be had: another one holds it and *wait*
    is false, *path* cannot be opened, or the file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with suppress(OSError):
        if flock(descriptor, shared=shared, wait=wait):
            return descriptor
    os.close(descriptor)
    return None


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock file *path*, made if need be; wait for whoever holds it.  The file stays.

    Raises OSError.
    """
    with path.open("ab") as file:
        flock(file)
        yield


# Contents and space


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash (hex) of the contents of a file.  Raises OSError."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def free_space(folder: Path) -> int:
    """Return the bytes that can still be written in *folder*, which need not exist yet."""
    status = os.statvfs(_nearest_existing(folder))
    return status.f_bavail * status.f_frsize


def is_same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, are on one file system."""
    return _nearest_existing(one).stat().st_dev == _nearest_existing(other).stat().st_dev


def _nearest_existing(folder: Path) -> Path:
    """Return *folder*, or the nearest folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
