"""The store of unpacked wheels in the cache, by the SHA-256 and file name of the wheel, and the umask.

An environment gets hard links to its files, as with uv.  An entry is complete when it appears: it is
unpacked beside the store and renamed.  A program that edits an installed file in place changes the file of
the store, too, so each file must still have the size, mode and mtime that it was written with.  After a
restart of the machine, which may have lost data, the contents are hashed again once.  An entry that differs
is unpacked again.

Who makes links to an entry holds a shared lock on its folder.  An entry is replaced only under the exclusive
lock, without waiting for it: while others use a damaged entry, the wheel is unpacked for this process alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import weakref
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.decoding import Malformed, decode, encode, read_bounded
from colablock._common.fs import NEW, file_digest, is_same_disk, make_private, open_locked, write_private
from colablock._common.limits import UNPACKED_MANIFEST
from colablock._common.process import safe_umask
from colablock._records import dataclass
from colablock.errors import BadDistribution
from colablock.index.wheel_check import RULES
from colablock.network.cache import MANIFEST, UNPACKED
from colablock.unpacking.unpack import UnpackedWheel, differing, unpack

if TYPE_CHECKING:
    from colablock.network.cache import Cache

__all__ = ["StoredWheel", "UnpackedStore"]

_TREE = "tree"
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})  # of a rename: something is there


class _Lock:
    """A lock on the folder of an entry, while this object exists."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWheel:
    """An unpacked wheel and the folder of its files, which stay while this object exists.

    Without *is_own*, some files belong to another user: with sudo, the cache may be that of the caller.
    """

    wheel: UnpackedWheel
    folder: Path
    is_own: bool = True
    lock: _Lock | None = field(default=None, repr=False)

    @property
    def manifest(self) -> Path:
        """The file that lists the files."""
        return self.folder.parent / MANIFEST


class UnpackedStore:
    """Unpacked wheels.  Without a *cache*, or on another disk than *target*, they are in *scratch* only."""

    def __init__(self, cache: Cache | None, *, target: Path, scratch: Path) -> None:
        self.is_shared = cache is not None and is_same_disk(cache.folder, target)
        self._cache = cache if self.is_shared else None
        self._unfinished = scratch / UNPACKED if self._cache is None else self._cache.unfinished
        self._own: list[Path] = []  # folders that no other process uses
        self._boot = _boot()
        self._umask = safe_umask()

    def has(self, sha256: str, filename: str) -> bool:
        """Whether there is an entry of this user, so that the wheel probably needs no further disk space."""
        if self._cache is None:
            return False
        try:
            status = self._entry(self._cache, sha256, filename).lstat()
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()

    def can_link(self, folder: Path) -> bool:
        """Whether files below *folder* can be links to those of the store; True if that does not exist yet.

        Some disks, and two mounts of one disk, have no links.
        """
        if not folder.is_dir():
            return True
        try:
            source = self._new_path()
            link = folder / source.name
            try:
                source.touch(mode=0o600)
                os.link(source, link)
            finally:
                source.unlink(missing_ok=True)
            link.unlink()
        except OSError:
            return False
        return True

    def get(self, wheel: Path, sha256: str) -> StoredWheel:
        """Return the unpacked *wheel*, whose hash has to be *sha256*; unpack it unless it is there.

        Raises BadDistribution, and OSError if the disk is full.
        """
        if self._cache is None:
            return self._unpack(wheel, sha256)
        entry = self._entry(self._cache, sha256, wheel.name)
        found = self._read(entry)
        if found is not None:
            return found
        made = self._unpack(wheel, sha256)
        return self._keep(self._cache, made, entry)

    def listed(self, sha256: str, filename: str) -> StoredWheel | None:
        """Return an entry whose files have still to be compared, each with its size, mode and mtime.

        None if it is missing, or if the contents have to be compared, too.
        """
        if self._cache is None:
            return None
        found = _opened(self._entry(self._cache, sha256, filename))
        if found is None or not self._is_of_boot(found.wheel):
            return None
        with contextlib.suppress(OSError):
            os.utime(found.manifest)  # its last use, for `cache prune`
        return found

    def close(self) -> None:
        """Remove what this process alone uses.  Links to it stay."""
        for folder in self._own:
            shutil.rmtree(folder, ignore_errors=True)
        if self._cache is None:
            with contextlib.suppress(OSError):
                self._unfinished.rmdir()

    def _entry(self, cache: Cache, sha256: str, filename: str) -> Path:
        """Return the path of an entry.  Its key has all that decides on its files and on their checks."""
        return cache.path(UNPACKED, f"{sha256} {filename} {self._umask:03o} {RULES}")

    def _read(self, entry: Path) -> StoredWheel | None:
        """Return the wheel of an entry; None if it is missing, or not as it was written."""
        found = _opened(entry)
        if found is None:
            return None
        is_of_boot = self._is_of_boot(found.wheel)
        owners: set[int] = set()
        if differing(found.folder, found.wheel, hashed=not is_of_boot, owners=owners) is not None:
            return None
        found = replace(found, is_own=owners <= {os.geteuid()})
        with contextlib.suppress(OSError):  # the next call reads it again
            if is_of_boot:
                os.utime(found.manifest)  # its last use, for `cache prune`
            else:
                found = replace(found, wheel=replace(found.wheel, boot=self._boot))
                write_private(found.manifest, encode(found.wheel))
        return found

    def _is_of_boot(self, wheel: UnpackedWheel) -> bool:
        """Whether *wheel* was unpacked, or its contents were hashed, since this start of the machine."""
        return wheel.boot == self._boot != ""

    def _unpack(self, wheel: Path, sha256: str) -> StoredWheel:
        """Unpack *wheel* for this process alone."""
        if file_digest(wheel) != sha256:
            raise BadDistribution(f"`{wheel.name}` has another SHA-256 than {sha256}")
        new = self._new_path()
        new.mkdir(mode=0o700)
        try:
            made = unpack(wheel, new / _TREE, boot=self._boot)
            write_private(new / MANIFEST, encode(made))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        self._own.append(new)
        return StoredWheel(wheel=made, folder=new / _TREE)

    def _keep(self, cache: Cache, made: StoredWheel, entry: Path) -> StoredWheel:
        """Rename the folder of *made* to *entry*; return the wheel to use.

        If another process has put it there meanwhile, that is the one.
        """
        new = made.folder.parent
        lock = _locked(new, shared=True)
        if lock is None:  # a file system without locks
            return made
        cache.clear_path(entry / MANIFEST)  # a file in the way; an empty folder does not prevent the rename
        if not _renamed(new, entry):
            found = self._read(entry)
            if found is not None:
                return found
            if not self._replaced(new, entry):
                return made
        self._own.remove(new)
        return replace(made, folder=entry / _TREE, lock=lock)

    def _replaced(self, new: Path, entry: Path) -> bool:
        """Put *new* in the place of *entry* unless another process uses that; return whether it is there."""
        lock = _locked(entry, shared=False)
        if lock is None:
            return False
        old = self._new_path()
        entry.rename(old)
        self._own.append(old)
        return _renamed(new, entry)

    def _new_path(self) -> Path:
        """Return an unused path on the disk of the store."""
        return make_private(self._unfinished) / f"{NEW}{os.urandom(8).hex()}"


def _opened(entry: Path) -> StoredWheel | None:
    """Return the wheel of an entry, whose files have still to be compared; None if it is missing."""
    lock = _locked(entry, shared=True)
    if lock is None:
        return None
    try:
        found = decode(read_bounded(entry / MANIFEST, UNPACKED_MANIFEST), UnpackedWheel)
    except (OSError, Malformed):
        return None
    return StoredWheel(wheel=found, folder=entry / _TREE, lock=lock)


def _locked(entry: Path, *, shared: bool) -> _Lock | None:
    """Lock the folder of an entry; None if it is missing, or the lock of another process excludes it."""
    descriptor = open_locked(entry, shared=shared, wait=False)
    if descriptor is None:
        return None
    lock = _Lock(descriptor)
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), entry.lstat()):  # not replaced meanwhile
            return lock
    return None


def _renamed(new: Path, entry: Path) -> bool:
    """Rename a folder; return False if something is at *entry*.  Raises OSError."""
    try:
        new.rename(entry)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


def _boot() -> str:
    """Return the id of this start of the machine; "" if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
