"""One file on its way onto the disk: hashed while it arrives, taken up again where it was cut."""

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

from colablock._common.fs import flock
from colablock._common.reporter import Reporter
from colablock._common.urls import redacted
from colablock.errors import BadDistribution, FetchFailed

if TYPE_CHECKING:
    from colablock.network.http import HttpResponse

__all__ = ["WHOLE", "Download", "Fetchable", "HashChecker", "gone", "locked", "open_partial"]

_STRONG = ("sha512", "sha384", "sha256", "sha3_512", "sha3_384", "sha3_256", "blake2b", "blake2s", "sha224")
_WEAK = ("sha1", "md5")  # better than nothing where an index has no other
_TRIES = 8  # a sweep of the cache may take a new file away before it is locked, though hardly so often
WHOLE = {"Accept-Encoding": "identity"}


class Fetchable(Protocol):
    """What ``download`` takes: a File of an index, or the artifact of a step."""

    @property
    def url(self) -> str:
        """Canonical; ``file:`` for local ones."""

    @property
    def filename(self) -> str:
        """The last part of its path."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """Expected hashes by algorithm."""

    @property
    def size(self) -> int | None:
        """Bytes, where known."""

    @property
    def index(self) -> str | None:
        """The index that lists it, where one does."""


class HashChecker:
    """Hashes what passes, for the strongest of the hashes given and for the cache's own key."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        known = {name.lower(): value.lower() for name, value in hashes.items()}
        chosen = next((name for name in (*_STRONG, *_WEAK) if name in known), None)
        self._expected = (chosen, known[chosen]) if chosen else None
        self._digests = {name: hashlib.new(name) for name in {"sha256", chosen or "sha256"}}

    def update(self, data: bytes) -> None:
        for digest in self._digests.values():
            digest.update(data)

    def finish(self, filename: str, url: str) -> str:
        """Return the SHA-256.  Raises BadDistribution when the expected hash is another."""
        if self._expected is not None:
            name, expected = self._expected
            found = self._digests[name].hexdigest()
            if found != expected:
                message = (
                    f"`{filename}` from `{redacted(url)}` has {name} {found}, and {expected} was promised"
                )
                hint = "it was not kept: a proxy or mirror may have changed it on the way, so try another"
                raise BadDistribution(message, hint=hint)
        return self._digests["sha256"].hexdigest()


class Download:
    """One file on its way into a partial file; survives cuts."""

    def __init__(self, file: Fetchable, stream: IO[bytes], reporter: Reporter, stop: threading.Event) -> None:
        self.file = file
        self.checker = HashChecker(file.hashes)
        self._stream = stream
        self._reporter = reporter
        self._stop = stop
        self._etag: str | None = None
        self._done = 0
        self.is_pieced = False  # whether it came in more than one piece

    def resume(self) -> None:
        """Take up what an earlier run left."""
        self._stream.seek(0)
        if not self.file.hashes:
            self.restart()  # nothing could tell whether the two halves belong together
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
            return dict(WHOLE)
        condition = {"If-Range": self._etag} if self._etag else {}
        return {"Range": f"bytes={self._done}-", **condition, **WHOLE}

    def receive(self, answer: HttpResponse) -> None:
        if answer.status == 404:  # noqa: PLR2004 - HTTP says so
            raise gone(self.file.url)
        if answer.status == 416:  # noqa: PLR2004 - all is here already, or too much: the hash tells
            return
        if answer.status != 206 or _first_byte(answer) != self._done:  # noqa: PLR2004
            if answer.status == 206:  # noqa: PLR2004
                message = f"`{redacted(self.file.url)}` was asked for another part than it sent"
                raise FetchFailed(message, url=redacted(self.file.url), status=206)
            self.restart()
        self.is_pieced = self._done > 0
        etag = answer.headers.get("etag", "")
        self._etag = etag if etag.startswith('"') else None  # a weak one does not serve (RFC 9110, 13.1.5)
        for chunk in answer.chunks():
            if self._stop.is_set():
                raise FetchFailed("another file could not be fetched", url=redacted(self.file.url))
            self._stream.write(chunk)
            self.checker.update(chunk)
            self._done += len(chunk)
            self._reporter.fetched(self.file.filename, len(chunk))


@contextlib.contextmanager
def open_partial(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open the partial file at *path*, or one beside it while another process or thread fills that."""
    stream = path.open("a+b")
    named = path
    for _ in range(_TRIES):
        if locked(stream, path):
            break
        stream.close()
        path = named.with_name(f"{named.name}.{time.monotonic_ns():x}.{threading.get_ident():x}")
        stream = path.open("w+b")
    with stream:
        yield path, stream


def locked(stream: IO[bytes], path: Path) -> bool:
    """Whether *stream* is now ours alone, and still what *path* names."""
    try:
        # Where there are no locks, no partial file is continued.
        return flock(stream, wait=False) and os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False


def _first_byte(answer: HttpResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
    return int(match[1]) if match else None


def gone(url: str) -> FetchFailed:
    """Return what to raise for a file that is listed and not there."""
    hint = "who lists it does not have it: try again later, or have it from another index or mirror"
    return FetchFailed(f"`{redacted(url)}` is not there (404)", url=redacted(url), status=404, hint=hint)
