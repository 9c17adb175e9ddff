"""Files: atomic writes, locks, hashes and free disk space."""

from __future__ import annotations

import errno
import hashlib
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
    "replace_file",
    "sync",
    "write_atomic",
]

NEW = ".new-"
"""Prefix for the name of a file that is not complete yet."""

_BLOCK = 1 << 20


# Atomic writes


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield an unused path in the folder of *path*.  What the block creates there becomes *path* atomically.

    Other processes see the old file or the new one, never a part of it.  If the
    block raises, the new file is removed and *path* is unchanged.  The
    temporary name is random, so nobody can predict it.  A symbolic link at
    *path* is replaced, and its target is unchanged.  Nothing is synced.  Raises
    OSError.
    """
    new = path.with_name(f"{NEW}{os.urandom(8).hex()}")
    try:
        yield new
        new.replace(path)
    finally:
        # Renaming one hard link of a file to another does nothing, so the temporary name may remain.
        with suppress(OSError):
            new.unlink()


def replace_file(path: Path, data: bytes, *, private: bool = False, synced: bool = False) -> None:
    """Write *data* to *path* atomically, see ``atomic_path``.  An existing file keeps its permissions.

    With *private*, only the owner may read the file (mode 0600), whatever the umask is.

    With *synced*, the content is synced before the rename and the folder after
    it: a crash of the machine leaves the old content or the new.  Without it, a
    crash may leave an empty file.  Raises OSError.
    """
    with atomic_path(path) as new, open(new, "xb", opener=_private if private else None) as file:
        with suppress(OSError):  # no such file, or a file system without permissions
            if not private and stat.S_ISREG(mode := path.lstat().st_mode):
                new.chmod(stat.S_IMODE(mode))
        file.write(data)
        if synced:
            file.flush()
            os.fsync(file.fileno())
    if synced:
        try:
            sync(path.parent)
        except OSError as error:  # some network file systems cannot sync a folder
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that the user named, with ``replace_file``, and create its parent folders.

    A symbolic link is followed, and its target is replaced.  A device or a pipe
    such as ``/dev/stdout`` is written in place.  Raises InvalidInput.
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
    """Sync a file, or the entries of a folder, to the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Locks


def flock(file: int | IO[Any], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file or folder (flock(2)), and return whether the lock is held.

    The lock is advisory.  Closing the file releases it, and so does the end of
    the process.  Without *wait*, returns False if another process holds the
    lock.  Always returns False on Windows, which has no such lock.  Raises
    OSError if the file system does not support locks.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def open_locked(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Open and lock the file or folder *path*; return the descriptor, whose closing releases the lock.

    Returns None if another process holds the lock and *wait* is false, if
    *path* cannot be opened, or if the file system does not support locks.
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
    """Hold the lock file *path* during the block.  It is created if missing and never removed.

    Waits while another process holds it.  Raises OSError.
    """
    with path.open("ab") as file:
        flock(file)
        yield


# Content and disk space


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash (hex) of the content of a file.  Raises OSError."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of *folder*, which need not exist yet."""
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
