"""What was fetched before, on disk: pages, metadata and whole files, by key."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colablock._common.fs import atomic_path, file_digest, open_locked, replace_file

__all__ = ["ROWS", "Cache", "cache_folder", "decoded", "place"]

_SAMPLE = 1 << 16


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where the cache is: ``COLABLOCK_CACHE_DIR``, else below the user's cache folder (XDG)."""
    if environ.get("COLABLOCK_CACHE_DIR"):
        return Path(environ["COLABLOCK_CACHE_DIR"])
    # XDG: a relative path is to be ignored.
    base = Path(environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():
        base = Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "colablock"


class Cache:
    """Entries by kind and key; each is whole or absent, whatever other processes do.

    An entry is written under a name of its own and put in place by one rename,
    with a checksum that is looked at when it is read: one that was damaged is as good
    as none, and is written anew.  What is in the way of an entry goes.  A folder
    that cannot be written to is only read, and a temporary one written: the cache
    saves time, and is never needed for an answer.

    While it lives it holds a shared lock on its folder: nobody else takes away
    the files that were handed out (`sweep`).
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        self._temporary = None if writable else tempfile.TemporaryDirectory(prefix="colablock-")
        self.folder = Path(self._temporary.name) if self._temporary else folder
        self._read_only: tuple[Path, ...] = () if writable else (folder,)
        held = open_locked(folder, shared=True)
        if held is not None:
            weakref.finalize(self, os.close, held)

    def path(self, kind: str, key: str) -> Path:
        """Return where the entry of *key* stands, be it there or not; any text serves as a key."""
        return self.folder / _place_of(kind, key)

    def make_way(self, path: Path) -> Path:
        """Return *path*, a place in the cache, fit to be written: what is in its way goes; else OSError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            for folder in path.relative_to(self.folder).parents:
                above = self.folder / folder
                if above.is_file() or above.is_symlink():
                    with contextlib.suppress(OSError):  # another thread or process was quicker
                        above.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        return path

    def read(self, kind: str, key: str) -> bytes | None:
        """Return an entry, None when there is none that is whole."""
        for folder in (self.folder, *self._read_only):
            with contextlib.suppress(OSError):
                data = decoded((folder / _place_of(kind, key)).read_bytes())
                if data is not None:
                    return data
        return None

    def write(self, kind: str, key: str, data: bytes) -> None:
        """Keep an entry; a disk that is full or read-only is no reason to stop."""
        path = self.path(kind, key)
        with contextlib.suppress(OSError):
            replace_file(self.make_way(path), _checksum(data) + b"\n" + data)

    def read_json(self, kind: str, key: str) -> Any:
        """Return an entry, None when there is none or it cannot be read (it is then written anew)."""
        data = self.read(kind, key)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def write_json(self, kind: str, key: str, value: Any) -> None:
        """Keep an entry of plain values."""
        self.write(kind, key, json.dumps(value, separators=(",", ":")).encode())

    def file(self, sha256: str) -> Path | None:
        """Return the kept file of that hash, None when there is none.

        It is hashed again unless its size, time, beginning and end are those of
        when it was last seen whole; one that is no longer what it was is thrown away.
        """
        for folder in (self.folder, *self._read_only):
            path = folder / _place_of("files", sha256)
            with contextlib.suppress(OSError):
                stamp = _stamp(path, sampled=True)
                if self.read("stamps", sha256) == stamp:
                    self._note_use(sha256)
                    return path
                if file_digest(path) == sha256:
                    self.write("stamps", sha256, stamp)
                    return path
                path.unlink()
        return None

    def _note_use(self, sha256: str) -> None:
        with contextlib.suppress(OSError):  # of a cache that is only read nobody needs to know it
            os.utime(self.path("stamps", sha256))

    def keep_file(self, sha256: str, temporary: Path) -> Path:
        """Move *temporary*, whose hash was checked, into the cache and return its new path."""
        path = self.make_way(self.path("files", sha256))
        temporary.replace(path)
        self.write("stamps", sha256, _stamp(path, sampled=True))
        return path

    def local_digest(self, path: Path) -> str:
        """Return the SHA-256 of a local file; remembered while its size and time stay."""
        key = f"{path}\n{_stamp(path).decode()}"
        known = self.read("digests", key)
        if known is not None and _is_digest(text := known.decode("ascii", "replace")):
            return text
        digest = file_digest(path)
        self.write("digests", key, digest.encode())
        return digest


def place(source: Path, target: Path) -> None:
    """Put *source* at *target* as a hard link, or a copy where that cannot be; an older file there goes."""
    with atomic_path(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def decoded(data: bytes) -> bytes | None:
    """Return what an entry holds, None where that is not what was written."""
    checksum, _, rest = data.partition(b"\n")
    return rest if checksum == _checksum(rest) else None


def _checksum(data: bytes) -> bytes:
    """Return what tells damage, quickly: parsed pages are large, and read by every solve."""
    return f"{zlib.crc32(data):08x} {len(data)}".encode()


def _place_of(kind: str, key: str) -> Path:
    name = key if _is_digest(key) else hashlib.sha256(key.encode()).hexdigest()
    return Path(kind, name[:2], name)


def _stamp(path: Path, *, sampled: bool = False) -> bytes:
    """Return what tells whether a file changed; *sampled* looks at its two ends too.

    After a crash a file may have the size and the time that it had, and zeros for contents.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        parts = [str(status.st_size), str(status.st_mtime_ns)]
        if sampled:
            ends = stream.read(_SAMPLE)
            stream.seek(max(0, status.st_size - _SAMPLE))
            parts.append(hashlib.sha256(ends + stream.read()).hexdigest())
    return " ".join(parts).encode()


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)  # noqa: PLR2004 - SHA-256


ROWS = "simple-2"  # the kind under which they are kept: another number when rows change
