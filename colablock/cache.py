"""What was fetched before, on disk: pages, metadata and whole files, by key."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Cache", "cache_folder", "file_digest", "place"]

_CHUNK = 1 << 20


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

    An entry is written under a name of its own and put in place by one
    rename.  A folder that cannot be written to is replaced by a temporary one:
    the cache saves time, and is never needed for an answer.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        self._temporary = None if writable else tempfile.TemporaryDirectory(prefix="colablock-")
        self.folder = Path(self._temporary.name) if self._temporary else folder

    def path(self, kind: str, key: str) -> Path:
        """Return where the entry of *key* stands, be it there or not; any text serves as a key."""
        name = key if _is_digest(key) else hashlib.sha256(key.encode()).hexdigest()
        return self.folder / kind / name[:2] / name

    def read(self, kind: str, key: str) -> bytes | None:
        """Return an entry, None when there is none."""
        try:
            return self.path(kind, key).read_bytes()
        except OSError:
            return None

    def write(self, kind: str, key: str, data: bytes) -> None:
        """Keep an entry; a disk that is full or read-only is no reason to stop."""
        path = self.path(kind, key)
        with contextlib.suppress(OSError), self.new(path) as temporary:
            temporary.write_bytes(data)

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

    @contextlib.contextmanager
    def new(self, path: Path) -> Iterator[Path]:
        """Give a name to write to; it becomes *path* when the block ends well, and goes when it does not."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def file(self, sha256: str) -> Path | None:
        """Return the kept file of that hash, None when there is none.

        It is hashed again unless size and time are those of when it was last
        seen whole; one that is no longer what it was is thrown away.
        """
        path = self.path("files", sha256)
        try:
            stamp = _stamp(path)
            if self.read("stamps", sha256) == stamp:
                return path
            if file_digest(path) == sha256:
                self.write("stamps", sha256, stamp)
                return path
            path.unlink()
        except OSError:
            pass
        return None

    def keep_file(self, sha256: str, temporary: Path) -> Path:
        """Move *temporary*, whose hash was checked, into the cache and return its new path."""
        path = self.path("files", sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        self.write("stamps", sha256, _stamp(path))
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


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file's contents."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def place(source: Path, target: Path) -> None:
    """Put *source* at *target* as a hard link, or a copy where that cannot be; an older file there goes."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    # A rename between two links of one file does nothing, so the new name may remain.
    temporary.replace(target)
    temporary.unlink(missing_ok=True)


def _stamp(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)  # noqa: PLR2004 - SHA-256
