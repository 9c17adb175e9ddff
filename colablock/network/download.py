"""Download one file to disk: hash the bytes as they arrive, and resume an interrupted download."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from colablock._common.fs import flock, open_private
from colablock._common.limits import LARGEST_FILE
from colablock._common.reporter import Reporter
from colablock._common.urls import redacted
from colablock.errors import BadDistribution, FetchFailed

if TYPE_CHECKING:
    from colablock.network.http import HttpResponse

__all__ = [
    "IDENTITY",
    "TRIES",
    "Download",
    "Fetchable",
    "HashChecker",
    "missing_file",
    "open_partial",
    "try_lock",
]

_STRONG = ("sha512", "sha384", "sha256")
# The strongest first.  They find a damaged file, and none of them is enough to install one.
_OTHERS = ("sha3_512", "sha3_384", "sha3_256", "blake2b", "blake2s", "sha224", "sha1", "md5")
TRIES = 8  # pruning may remove a new file before it is locked or linked, but hardly this often
IDENTITY = {"Accept-Encoding": "identity"}


class Fetchable(Protocol):
    """A file that ``Fetcher.download`` accepts: the file of an index or the artifact of a step."""

    @property
    def url(self) -> str:
        """The canonical URL, with ``file:`` for a local file."""

    @property
    def filename(self) -> str:
        """The file name."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """The expected hashes (hex) by algorithm."""

    @property
    def size(self) -> int | None:
        """The size in bytes, if known."""

    @property
    def index(self) -> str | None:
        """The URL of the index that lists the file, if any."""


class HashChecker:
    """Hashes data with SHA-256, the key of the cache, and with the algorithms of *hashes*.

    Every sha256, sha384 and sha512 has to match, without one of them the strongest other hash.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        known = {name.lower(): value.lower() for name, value in hashes.items()}
        chosen = [name for name in _STRONG if name in known] or [name for name in _OTHERS if name in known][
            :1
        ]
        self._expected = {name: known[name] for name in chosen}
        self._digests = {name: hashlib.new(name) for name in {"sha256", *chosen}}

    def update(self, data: bytes) -> None:
        for digest in self._digests.values():
            digest.update(data)

    def finish(self, filename: str, url: str) -> str:
        """Return the SHA-256.  Raises BadDistribution if the expected hash does not match."""
        for name, expected in self._expected.items():
            found = self._digests[name].hexdigest()
            if found != expected:
                message = (
                    f"`{filename}` from `{redacted(url)}` has the {name} hash {found}, expected {expected}"
                )
                hint = "The file was discarded. Try another mirror or proxy: this one may have changed it"
                raise BadDistribution(message, hint=hint)
        return self._digests["sha256"].hexdigest()


class Download:
    """The download of one file into a partial file; an interrupted one can be resumed."""

    def __init__(self, file: Fetchable, stream: IO[bytes], reporter: Reporter, stop: threading.Event) -> None:
        self.file = file
        self.checker = HashChecker(file.hashes)
        self._stream = stream
        self._reporter = reporter
        self._stop = stop
        self._etag: str | None = None
        self._done = 0
        # The size on the page may be wrong, but not by much.
        self._limit = 2 * file.size + (1 << 20) if file.size else LARGEST_FILE
        self.is_pieced = False  # whether it arrived in several responses

    def resume(self) -> None:
        """Continue with the bytes of an earlier attempt."""
        self._stream.seek(0)
        if not self.file.hashes:
            self.restart()  # without a hash nothing shows that the parts belong together
        while chunk := self._stream.read(1 << 20):
            self.checker.update(chunk)
            self._done += len(chunk)
            self.is_pieced = True

    def restart(self) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self.checker = HashChecker(self.file.hashes)
        self._done = 0
        self.is_pieced = False

    def headers(self) -> dict[str, str]:
        if self._done and not self.file.hashes and self._etag is None:
            self.restart()
        if not self._done:
            return dict(IDENTITY)
        condition = {"If-Range": self._etag} if self._etag else {}
        return {"Range": f"bytes={self._done}-", **condition, **IDENTITY}

    def receive(self, answer: HttpResponse) -> None:
        if answer.status == 404:  # noqa: PLR2004 - HTTP says so
            raise missing_file(self.file.url)
        if answer.status == 416:  # noqa: PLR2004 - no bytes are left, and the hash shows whether it is right
            return
        if answer.status != 206 or _first_byte(answer) != self._done:  # noqa: PLR2004
            if answer.status == 206:  # noqa: PLR2004
                message = f"`{redacted(self.file.url)}` sent another range than the requested one"
                raise FetchFailed(message, url=redacted(self.file.url), status=206)
            self.restart()
        self.is_pieced = self._done > 0
        etag = answer.headers.get("etag", "")
        self._etag = etag if etag.startswith('"') else None  # no weak one (RFC 9110, 13.1.5)
        for chunk in answer.chunks():
            if self._stop.is_set():
                raise FetchFailed("another file could not be fetched", url=redacted(self.file.url))
            if self._done + len(chunk) > self._limit:
                message = f"`{redacted(self.file.url)}` sends more than {self._limit} bytes"
                raise FetchFailed(message, url=redacted(self.file.url), hint="Check the URL of the index")
            self._stream.write(chunk)
            self.checker.update(chunk)
            self._done += len(chunk)
            self._reporter.fetched(self.file.filename, len(chunk))


@contextlib.contextmanager
def open_partial(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open the partial file *path*, or another one beside it if a process or thread is using that."""
    stream = open(path, "a+b", opener=open_private)  # noqa: SIM115 - closed below
    named = path
    for _ in range(TRIES):
        if try_lock(stream, path):
            break
        stream.close()
        path = named.with_name(f"{named.name}.{time.monotonic_ns():x}.{threading.get_ident():x}")
        stream = open(path, "w+b", opener=open_private)  # noqa: SIM115
    with stream:
        yield path, stream


def try_lock(stream: IO[bytes], path: Path) -> bool:
    """Lock *stream*; return whether this worked and *path* still is the same file."""
    try:
        # Without locks, no partial file is resumed.
        return flock(stream, wait=False) and os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False


def _first_byte(answer: HttpResponse) -> int | None:
    match = re.match(r"bytes (\d{1,15})-", answer.headers.get("content-range", ""))
    return int(match[1]) if match else None


def missing_file(url: str) -> FetchFailed:
    """Return the error for a listed file that does not exist (404)."""
    hint = "The index lists a file that it does not have. Try again later, or use another index or mirror"
    return FetchFailed(f"`{redacted(url)}` does not exist (404)", url=redacted(url), status=404, hint=hint)
