"""The cache on disk: pages, metadata and files by key."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from colablock._common.decoding import Malformed, decode, encode, read_bounded
from colablock._common.fs import (
    atomic_path,
    expanded,
    file_digest,
    make_private,
    open_locked,
    replace_file,
)
from colablock._common.limits import PAGE
from colablock._common.ownership import distrust
from colablock._common.scratch import Scratch

__all__ = [
    "MANIFEST",
    "PARSED",
    "UNFINISHED",
    "UNPACKED",
    "Cache",
    "cache_folder",
    "decoded",
    "distrusted",
    "link_or_copy",
    "sweep_cache",
]

UNFINISHED = "unfinished"
"""The folder, in the cache, of files that are being written."""

UNPACKED = "unpacked"
"""The kind of unpacked wheels: folders with a manifest, see `unpacking.store`."""

MANIFEST = "manifest.json"

T = TypeVar("T")
_LONGEST_ENTRY = PAGE + (1 << 20)  # a page with its headers
_SAMPLE = 1 << 16
_ALIASES = frozenset({"sha512", "sha384"})  # strong hashes that are no keys of the cache


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of the cache: ``COLABLOCK_CACHE_DIR``, or ``colablock`` in the XDG cache folder."""
    if environ.get("COLABLOCK_CACHE_DIR"):
        return Path(environ["COLABLOCK_CACHE_DIR"])
    # XDG base directory specification: ignore a relative path.
    base = Path(environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():
        base = expanded(environ.get("HOME") or "~", "HOME") / ".cache"
    return base / "colablock"


class Cache:
    """Entries by kind and key.  Readers get a complete entry or none, also with several processes.

    An entry is written atomically, with a checksum that is verified on reading.
    A damaged entry counts as missing and is written again.  Whatever blocks the
    path of an entry is removed.  If the folder is read-only, new entries go to a
    temporary folder: the cache saves time, and no result depends on it.  If
    other users can change the folder, it is not read either, and *distrust* is
    the reason.

    The object holds a shared lock on the folder while it exists.  Other
    processes therefore do not prune the files that it has returned.
    """

    def __init__(self, folder: Path) -> None:
        self.distrust = distrusted(folder)
        try:
            writable = self.distrust is None and os.access(make_private(folder), os.W_OK)
        except OSError:
            writable = False
        self._temporary = None if writable else Scratch()
        self.folder = self._temporary.path if self._temporary else folder
        self._read_only: tuple[Path, ...] = () if writable or self.distrust else (folder,)
        self._verified: dict[str, tuple[int, int, int]] = {}  # the files that this process has verified
        if self.distrust is not None:
            return
        _remove_unfinished(folder)
        held = open_locked(folder, shared=True)
        if held is not None:
            weakref.finalize(self, os.close, held)

    @property
    def unfinished(self) -> Path:
        """The folder for files that are being written.  The next process empties it, if no other uses it."""
        return self.folder / UNFINISHED

    def path(self, kind: str, key: str) -> Path:
        """Return the path of the entry for *key*, whether it exists or not.  Any text can be a key."""
        return self.folder / _place_of(kind, key)

    def clear_path(self, path: Path) -> Path:
        """Return *path* (in the cache) after removing whatever prevents writing to it.  Raises OSError."""
        try:
            make_private(path.parent)
        except (FileExistsError, NotADirectoryError):
            for folder in path.relative_to(self.folder).parents:
                above = self.folder / folder
                if above.is_file() or above.is_symlink():
                    with contextlib.suppress(OSError):  # another thread or process has removed it
                        above.unlink()
            make_private(path.parent)
        if path.is_dir():
            shutil.rmtree(path)
        return path

    def read(self, kind: str, key: str) -> bytes | None:
        """Return an entry, or None if there is no complete one."""
        for folder in (self.folder, *self._read_only):
            with contextlib.suppress(OSError, Malformed):
                data = decoded(read_bounded(folder / _place_of(kind, key), _LONGEST_ENTRY))
                if data is not None:
                    return data
        return None

    def write(self, kind: str, key: str, data: bytes) -> None:
        """Write an entry.  A full or read-only disk is ignored."""
        path = self.path(kind, key)
        with contextlib.suppress(OSError):
            replace_file(
                self.clear_path(path),
                _checksum(data) + b"\n" + data,
                private=True,
                unfinished=self.unfinished,
            )

    def remove(self, kind: str, key: str) -> None:
        """Remove an entry, if there is one."""
        with contextlib.suppress(OSError):
            self.path(kind, key).unlink()

    def read_record(self, kind: str, key: str, type_: type[T]) -> T | None:
        """Return an entry as a *type_*; None if it is missing or does not fit and has to be written anew."""
        data = self.read(kind, key)
        try:
            return None if data is None else decode(data, type_)
        except Malformed:
            return None

    def write_record(self, kind: str, key: str, value: object) -> None:
        """Write an entry of a record."""
        self.write(kind, key, encode(value))

    def file(self, sha256: str) -> Path | None:
        """Return the cached file with this hash, or None.

        The file is hashed again unless its size, mtime, start and end are those
        of the last verification.  This object looks at start and end once, for zeros that a crash
        has left.  A file that has changed is removed.
        """
        for folder in (self.folder, *self._read_only):
            path = folder / _place_of("files", sha256)
            with contextlib.suppress(OSError):
                state = _state(path)
                if self._verified.get(str(path)) == state:
                    return path
                stamp = _stamp(path, sampled=True)
                if self.read("stamps", sha256) == stamp:
                    self.note_use("stamps", sha256)
                elif file_digest(path) == sha256:
                    self.write("stamps", sha256, stamp)
                else:
                    path.unlink()
                    continue
                self._verified[str(path)] = state
                return path
        return None

    def note_use(self, kind: str, key: str) -> None:
        """Note that an entry was used: one that is not is pruned after some time."""
        with contextlib.suppress(OSError):  # a read-only cache is not pruned
            os.utime(self.path(kind, key))

    def keep_file(self, sha256: str, temporary: Path) -> Path:
        """Move *temporary*, whose hash the caller has verified, into the cache and return its new path."""
        path = self.clear_path(self.path("files", sha256))
        temporary.replace(path)
        self.write("stamps", sha256, _stamp(path, sampled=True))
        return path

    def note_hashes(self, hashes: Mapping[str, str], sha256: str, *, url: str) -> None:
        """Remember that the file with these other strong *hashes* is the one with this *sha256*.

        Of a file without a strong hash, remember that *url*, without a password, gave it.
        """
        if not {"sha256", *_ALIASES} & {name.lower() for name in hashes}:
            self.write("digests", f"url {url}", sha256.encode())
        for name, value in hashes.items():
            if name.lower() in _ALIASES:
                self.write("digests", f"{name.lower()} {value.lower()}", sha256.encode())

    def sha256_of(self, hashes: Mapping[str, str]) -> str | None:
        """Return the sha256 of the file with these other strong *hashes*; None if it was never fetched."""
        keys = (
            f"{name.lower()} {value.lower()}" for name, value in hashes.items() if name.lower() in _ALIASES
        )
        known = [data for key in keys if (data := self.read("digests", key)) is not None]
        text = known[0].decode("ascii", "replace") if known and len(set(known)) == 1 else ""
        return text if _is_digest(text) else None

    def sha256_at(self, url: str) -> str | None:
        """Return the sha256 of the file that *url* gave the last time; None if it was never fetched."""
        text = (self.read("digests", f"url {url}") or b"").decode("ascii", "replace")
        return text if _is_digest(text) else None

    def local_digest(self, path: Path) -> str:
        """Return the SHA-256 of a local file, cached while its size and mtime are the same."""
        key = f"{path}\n{_stamp(path).decode()}"
        known = self.read("digests", key)
        if known is not None and _is_digest(text := known.decode("ascii", "replace")):
            return text
        digest = file_digest(path)
        self.write("digests", key, digest.encode())
        return digest


def distrusted(folder: Path) -> str | None:
    """Return why the cache *folder* is not used, since other users can change it; None if it is used."""
    with contextlib.suppress(OSError):  # it is not readable either
        for inner in (folder, *(folder / kind for kind in _KINDS)):
            why = distrust(inner)
            if why is not None:
                return why
    return None


def sweep_cache(environ: Mapping[str, str]) -> None:
    """Remove what killed processes were writing in the cache.  Raises InvalidInput."""
    folder = cache_folder(environ)
    if distrusted(folder) is None:
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing, unless another process uses the cache."""
    try:
        is_empty = not os.listdir(folder / UNFINISHED)  # noqa: PTH208 - every call looks here
    except OSError:
        return
    held = None if is_empty else open_locked(folder, wait=False)
    if held is not None:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        os.close(held)


def link_or_copy(source: Path, target: Path, *, unfinished: Path | None = None) -> None:
    """Hard-link *source* to *target*, or copy it if that fails.  Replaces an existing file."""
    with atomic_path(target, unfinished=unfinished) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def decoded(data: bytes) -> bytes | None:
    """Return the data of an entry, or None if its checksum does not match."""
    checksum, _, rest = data.partition(b"\n")
    return rest if checksum == _checksum(rest) else None


def _checksum(data: bytes) -> bytes:
    """Return the checksum of *data*.  It is a fast one: every solve reads large parsed pages."""
    return f"{zlib.crc32(data):08x} {len(data)}".encode()


def _place_of(kind: str, key: str) -> str:
    name = key if _is_digest(key) else hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kind}/{name[:2]}/{name}"


def _stamp(path: Path, *, sampled: bool = False) -> bytes:
    """Return the size and mtime of a file, and with *sampled* a hash of its start and end.

    After a crash, a file may have the same size and mtime but contain zeros.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        parts = [str(status.st_size), str(status.st_mtime_ns)]
        if sampled:
            ends = stream.read(_SAMPLE)
            stream.seek(max(0, status.st_size - _SAMPLE))
            parts.append(hashlib.sha256(ends + stream.read()).hexdigest())
    return " ".join(parts).encode()


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)  # noqa: PLR2004 - SHA-256


PARSED = "simple-6"  # the kind of parsed pages; the number changes with their form
_KINDS = (
    "built",
    "bytecode",
    "confirmed",
    "digests",
    "files",
    "locks",
    "metadata",
    "named",
    "pages",
    "partial",
    "probes",
    "rebuilt",
    PARSED,
    "stamps",
    UNFINISHED,
    UNPACKED,
)
