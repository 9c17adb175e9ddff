"""Write a bundle: a zip archive without compression, since wheels are compressed, and without dates."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from colablock._common.fs import flock
from colablock.bundles.manifest import NAME, BundleManifest, BundleMember
from colablock.errors import BadDistribution

__all__ = ["Source", "write_bundle"]

_BLOCK = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest of a zip archive
_UNIX = 3
_NEW = 60.0  # seconds: another process may have created it, and not locked it yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What becomes a member: a file, or its *content*, with its SHA-256."""

    sha256: str
    size: int
    path: Path | None = None
    content: bytes = b""

    @classmethod
    def of(cls, content: bytes) -> Source:
        """Return the source of these bytes."""
        return cls(sha256=hashlib.sha256(content).hexdigest(), size=len(content), content=content)


def write_bundle(
    output: Path,
    manifest: BundleManifest,
    sources: Mapping[str, Source],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> BundleManifest:
    """Write the archive *output* with a member for each of *sources*, and return its manifest.

    *manifest* is completed by the members, which are sorted by path.  *output* is replaced
    atomically.  *progress* gets the path, the bytes so far and their total.  Raises
    BadDistribution if a file has changed since it was hashed, and OSError.
    """
    members = tuple(
        BundleMember(path=path, sha256=source.sha256, size=source.size)
        for path, source in sorted(sources.items())
    )
    manifest = msgspec.structs.replace(manifest, members=members)
    done = 0
    with _unfinished(output) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(NAME), manifest.encoded())
        for member in members:
            _add(archive, member, sources[member.path])
            done += member.size
            if progress is not None:
                progress(member.path, done, manifest.size)
    return manifest


@contextmanager
def _unfinished(output: Path) -> Iterator[IO[bytes]]:
    """Yield a new file beside *output* to write to.  It becomes *output* unless the block raises.

    What killed processes have left there is removed: it may have gigabytes.
    """
    _sweep(output)
    path = output.with_name(f"{_left(output)}{os.urandom(8).hex()}")
    try:
        with path.open("x+b") as stream:
            with suppress(OSError):  # a file system without locks
                flock(stream)
            yield stream
            stream.flush()
            path.replace(output)  # while the lock is held
    finally:
        with suppress(OSError):
            path.unlink()


def _left(output: Path) -> str:
    return f".{output.name}.unfinished-"


def _sweep(output: Path) -> None:
    """Remove the unfinished archives for *output* that this user owns and no process writes."""
    with suppress(OSError):
        for path in output.parent.iterdir():
            status = path.lstat()
            if not path.name.startswith(_left(output)) or not stat.S_ISREG(status.st_mode):
                continue
            if time.time() - status.st_mtime < _NEW:
                continue
            with suppress(OSError), path.open("rb") as stream:
                if status.st_uid == os.geteuid() and flock(stream, wait=False):
                    path.unlink()


def _add(archive: zipfile.ZipFile, member: BundleMember, source: Source) -> None:
    entry = _entry(member.path)
    entry.file_size = member.size  # so that a large member gets the fields of ZIP64
    if source.path is None:
        archive.writestr(entry, source.content)
        return
    digest = hashlib.sha256()
    with archive.open(entry, "w") as target, source.path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            target.write(block)
    if digest.hexdigest() != member.sha256:
        raise BadDistribution(
            f"`{source.path}` has changed while it was copied", hint="Run the command again"
        )


def _entry(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path, _DATE)
    entry.create_system = _UNIX
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry
