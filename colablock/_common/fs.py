"""Files: atomic writes, locks, hashes and free disk space."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from colablock._common.ownership import planted
from colablock.errors import ColablockError, InvalidInput, Refused, Unmet

if sys.platform != "win32":
    import fcntl

__all__ = [
    "NEW",
    "atomic_path",
    "expanded",
    "file_digest",
    "flock",
    "free_space",
    "is_same_disk",
    "locked_file",
    "machine_error",
    "machine_errors",
    "make_private",
    "nearest_beside",
    "open_locked",
    "open_private",
    "remove_unfinished",
    "replace_file",
    "sync",
    "try_lock_file",
    "unusable",
    "without_locks",
    "working_folder",
    "write_atomic",
    "write_private",
]

NEW = ".new-"
"""Prefix for the name of a file that is not complete yet."""

_UNFINISHED = re.compile(re.escape(NEW) + "[0-9a-f]{16}")
_BLOCK = 1 << 20
_MOST_BESIDE = 2000  # files of a folder that a name is compared with


# Atomic writes


@contextmanager
def atomic_path(path: Path, *, unfinished: Path | None = None) -> Iterator[Path]:
    """Yield an unused path in the folder of *path*.  What the block creates there becomes *path* atomically.

    With *unfinished*, a folder on the same file system, the unused path is there.

    Other processes see the old file or the new one, never a part of it.  If the
    block raises, the new file is removed and *path* is unchanged.  The
    temporary name is random, so nobody can predict it.  A symbolic link at
    *path* is replaced, and its target is unchanged.  Nothing is synced.  Raises
    OSError.
    """
    folder = path.parent if unfinished is None else make_private(unfinished)
    new = folder / f"{NEW}{os.urandom(8).hex()}"
    try:
        yield new
        new.replace(path)
    finally:
        # Renaming one hard link of a file to another does nothing, so the temporary name may remain.
        with suppress(OSError):
            new.unlink()


def replace_file(
    path: Path,
    data: bytes,
    *,
    private: bool = False,
    synced: bool = False,
    unfinished: Path | None = None,
) -> None:
    """Write *data* to *path* atomically, see ``atomic_path``.  A file of this user keeps its permissions.

    With *private*, only the owner may read the file (mode 0600), whatever the umask is.

    With *synced*, the content is synced before the rename and the folder after
    it: a crash of the machine leaves the old content or the new.  Without it, a
    crash may leave an empty file.  Raises OSError.
    """
    opener = open_private if private else None
    with atomic_path(path, unfinished=unfinished) as new, open(new, "xb", opener=opener) as file:
        with suppress(OSError):  # no such file, or a file system without permissions
            before = path.lstat()
            if not private and stat.S_ISREG(before.st_mode) and before.st_uid == os.geteuid():
                new.chmod(stat.S_IMODE(before.st_mode))
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


def open_private(path: str, flags: int) -> int:
    """Open a file of our own: an opener for ``open``.  A new file has mode 0600, and no link is followed."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def make_private(folder: Path) -> Path:
    """Create *folder* and the missing folders above it with mode 0700, and return it.  Raises OSError."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_private(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def write_private(path: Path, data: bytes, *, synced: bool = False) -> None:
    """Write a file of our own state atomically with mode 0600, and create its folders.  Raises OSError."""
    with _writing(make_private(path.parent)):
        replace_file(path, data, private=True, synced=synced)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that the user named, with ``replace_file``, and create its parent folders.

    A symbolic link is followed, and its target is replaced.  A device or a pipe
    such as ``/dev/stdout`` is written in place.  In a folder that everybody can
    write to, neither a link nor a pipe of another user is.  Raises InvalidInput, and Unmet for a full disk.
    """
    try:
        why = planted(path)
        if why is not None:
            raise InvalidInput(f"`{path}` is not written: {why}", hint="Remove it, or name another file")
        real = Path(os.path.realpath(path))
        if real.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if real.exists() and not real.is_file():
            real.write_bytes(data)
            return
        real.parent.mkdir(parents=True, exist_ok=True)
        with _writing(real.parent):
            replace_file(real, data)
    except OSError as error:
        raise unusable(error, f"`{path}` cannot be written: {error.strerror}") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Remove what killed processes were writing in *folder*, and mark it as written to during the block."""
    remove_unfinished(folder)
    # Without waiting: this process may hold the lock of the folder, as that of a run while it is started.
    # Another one that removes files holds it only after it has listed them, and so without the new file.
    held = open_locked(folder, shared=True, wait=False)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing in *folder*, unless a process writes there."""
    try:
        left = [name for name in os.listdir(folder) if _UNFINISHED.fullmatch(name)]  # noqa: PTH208
    except OSError:
        return
    held = open_locked(folder, wait=False) if left else None
    if held is None:
        return
    for name in left:
        with suppress(OSError):
            if (folder / name).lstat().st_uid == os.geteuid():
                (folder / name).unlink()
    os.close(held)


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


def try_lock_file(path: Path) -> int | None:
    """Lock the lock file of ``locked_file`` and return its descriptor; None if another process holds it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with suppress(OSError):
            if flock(descriptor, wait=False) and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
    return None


@contextmanager
def locked_file(path: Path, *, required: bool = True) -> Iterator[None]:
    """Hold the lock file *path* during the block.  It is created if missing, and removed afterwards.

    Waits while another process holds it.  Raises OSError, and if it is *required*,
    Refused where the file system does not support locks.
    """
    descriptor = _lock_new(path, required=required)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock ends, so that nobody else holds a lock on it
        os.close(descriptor)


def _lock_new(path: Path, *, required: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            flock(descriptor)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # its last holder has removed it: lock a new one
        except OSError as error:
            if not required:
                return descriptor
            os.close(descriptor)
            raise without_locks(path.parent, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def without_locks(folder: Path, error: OSError) -> Refused:
    """Return the error for a folder that cannot be locked."""
    return Refused(
        f"`{folder}` cannot be locked: {error.strerror}",
        hint="Two changes at the same time would damage it. Use a folder on a drive that supports locks",
    )


# The machine


_REMEDIES = {
    errno.EACCES: "Correct its owner and permissions, or use another folder",
    errno.EPERM: "Correct its owner and permissions, or use another folder",
    errno.EROFS: "The disk is read-only: use a folder on another one",
    errno.ENOSPC: "Free space on the disk, for example with `colablock cache prune`",
    errno.EDQUOT: "Free space within your quota, for example with `colablock cache prune`",
    errno.EMFILE: "Allow more open files (`ulimit -n`)",
    errno.ENFILE: "Too many files are open on this machine: try again later",
    errno.ENAMETOOLONG: "Use a folder with a shorter path",
    errno.ENOLCK: "Use a folder on a drive that supports locks",
    errno.EIO: "The disk has a fault: use a folder on another one",
    errno.EAGAIN: "End other processes, or allow more of them (`ulimit -u`)",
    errno.ENOMEM: "Close other programs, or use a machine with more memory",
}
_LACKING = {
    errno.EAGAIN: "a process or a thread cannot be started",
    errno.ENOMEM: "there is not enough memory",
}
_NO_THREAD = "can't start new thread"  # a RuntimeError of Python
# What a machine lacks, whatever was named.
_SCARCE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EAGAIN, errno.ENOMEM}
)


def unusable(
    error: BaseException | None,
    message: str,
    *,
    hint: str | None = None,
    otherwise: type[InvalidInput] = InvalidInput,
) -> ColablockError:
    """Return the error for a file or a program that the user named, which *error* keeps from being used.

    It is Unmet, a fault of the machine and not of what was named, if that has too little of something.
    """
    if isinstance(error, OSError) and error.errno in _SCARCE:
        return Unmet(message, hint=_REMEDIES[error.errno])
    return otherwise(message, hint=hint)


@contextmanager
def machine_errors() -> Iterator[None]:
    """Raise OSError for memory and threads that the operating system refuses, as Python does for the rest."""
    try:
        yield
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


def machine_error(error: OSError) -> Unmet:
    """Return the error to show for what the operating system refused, and nothing else has explained."""
    try:
        Path.cwd()
    except OSError:
        what, hint = "the working folder", "It was deleted or moved. Change to another folder with `cd`"
    else:
        named = [
            os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
        ]
        number = error.errno or 0
        hint = _REMEDIES.get(number, "Check the path, the disk and its permissions")
        if not named and number in _LACKING:
            return Unmet(f"{_LACKING[number]}: {error.strerror}", hint=hint)
        what = " and ".join(f"`{name}`" for name in named) or "a file"
    return Unmet(f"{what} cannot be used: {error.strerror or error}", hint=hint)


# Content and disk space


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash (hex) of the content of a file.  Raises OSError."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def expanded(path: str, source: str) -> Path:
    """Return *path* with ``~`` expanded.  Raises InvalidInput with the *source* if there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidInput(
            f"the home folder of `{path}` ({source}) is not known", hint="Set HOME to an absolute path"
        ) from error


def nearest_beside(path: Path, *, is_folder: bool = False) -> str | None:
    """Return the name beside *path* that is most like its own; None if none is.  *is_folder*: of a folder."""
    import difflib  # noqa: PLC0415 - every command loads this module, and few names are misspelt

    try:
        beside = islice(path.parent.iterdir(), _MOST_BESIDE)
        names = [one.name for one in beside if not is_folder or one.is_dir()]
    except OSError:
        return None
    same = (name for name in names if Path(name).stem == path.name)
    return next(same, None) or next(iter(difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)), None)


def working_folder() -> Path:
    """Return the working folder.  Raises InvalidInput if it was deleted."""
    try:
        return Path.cwd()
    except OSError as error:
        raise InvalidInput(
            f"the working folder cannot be used: {error.strerror}",
            hint="If it was deleted, change to another folder with `cd`, in a notebook with `%cd`",
        ) from error


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
