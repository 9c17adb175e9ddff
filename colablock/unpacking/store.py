"""The store of unpacked wheels in the cache, by the SHA-256 of the wheel.

An environment gets hard links to its files, as with uv.  An entry is complete when it appears: it is
unpacked beside the store and renamed.  A program that edits an installed file in place changes the file of
the store, too, so each file must still have the size, mode and mtime that it was written with.  After a
restart of the machine, which may have lost data, the contents are hashed again once.  An entry that differs
is unpacked again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.decoding import Malformed, decode, encode, read_bounded
from colablock._common.fs import NEW, file_digest, is_same_disk, make_private, write_private
from colablock._common.limits import UNPACKED_MANIFEST
from colablock._common.process import safe_umask
from colablock.errors import BadDistribution
from colablock.network.cache import MANIFEST, UNPACKED
from colablock.unpacking.unpack import UnpackedWheel, differing, unpack

if TYPE_CHECKING:
    from colablock.network.cache import Cache

__all__ = ["StoredWheel", "UnpackedStore"]

_TREE = "tree"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWheel:
    """An unpacked wheel and the folder of its files."""

    wheel: UnpackedWheel
    folder: Path


class UnpackedStore:
    """Unpacked wheels.  Without a *cache*, or on another disk than *target*, they are in *scratch* only."""

    def __init__(self, cache: Cache | None, *, target: Path, scratch: Path) -> None:
        self.is_shared = cache is not None and is_same_disk(cache.folder, target)
        self._cache = cache if self.is_shared else None
        self._unfinished = scratch if self._cache is None else self._cache.unfinished
        self._scratch = scratch
        self._boot = _boot()

    def has(self, sha256: str) -> bool:
        """Whether there is an entry, so that the wheel probably needs no further disk space."""
        return self._cache is not None and self._cache.path(UNPACKED, sha256).is_dir()

    def get(self, wheel: Path, sha256: str) -> StoredWheel:
        """Return the unpacked *wheel*, whose hash has to be *sha256*; unpack it unless it is there.

        Raises BadDistribution, and OSError if the disk is full.
        """
        entry = (
            self._scratch / UNPACKED / sha256 if self._cache is None else self._cache.path(UNPACKED, sha256)
        )
        found = self._read(entry, wheel.name)
        if found is None:
            found = self._unpack(entry, wheel, sha256)
        return StoredWheel(wheel=found, folder=entry / _TREE)

    def close(self) -> None:
        """Remove what is in the scratch folder.  Links to it stay."""
        if self._cache is None:
            shutil.rmtree(self._scratch / UNPACKED, ignore_errors=True)

    def _read(self, entry: Path, filename: str) -> UnpackedWheel | None:
        """Return the wheel of an entry; None if it is missing, or not as it was written."""
        if self._cache is None:
            return None
        manifest = entry / MANIFEST
        try:
            found = decode(read_bounded(manifest, UNPACKED_MANIFEST), UnpackedWheel)
        except (OSError, Malformed):
            return None
        if (found.filename, found.umask) != (filename, safe_umask()):
            return None
        is_of_boot = found.boot == self._boot
        if differing(entry / _TREE, found, hashed=not is_of_boot) is not None:
            return None
        with contextlib.suppress(OSError):  # the next call reads it again
            if is_of_boot:
                os.utime(manifest)  # its last use, for `cache prune`
            else:
                found = replace(found, boot=self._boot)
                write_private(manifest, encode(found))
        return found

    def _unpack(self, entry: Path, wheel: Path, sha256: str) -> UnpackedWheel:
        if file_digest(wheel) != sha256:
            raise BadDistribution(f"`{wheel.name}` has another SHA-256 than {sha256}")
        with self._new() as new:
            made = unpack(wheel, new / _TREE, boot=self._boot)
            write_private(new / MANIFEST, encode(made))
            return self._keep(new, entry, wheel.name) or made

    def _keep(self, new: Path, entry: Path, filename: str) -> UnpackedWheel | None:
        """Rename *new* to *entry*; return the wheel there if another process has put it there meanwhile."""
        try:
            make_private(entry.parent)
            new.rename(entry)
        except OSError:  # something is there: it stays if it is whole, since others make links to it
            found = self._read(entry, filename)
            if self._cache is None or found is not None:
                return found
            self._cache.clear_path(entry)
            new.rename(entry)
        return None

    @contextmanager
    def _new(self) -> Iterator[Path]:
        """Yield a new folder on the disk of the store, and remove what is left of it."""
        new = make_private(self._unfinished) / f"{NEW}{os.urandom(8).hex()}"
        new.mkdir(mode=0o700)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _boot() -> str:
    """Return the id of this start of the machine; "" if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
