"""Bytes from indexes and folders: pages, ranges and whole files, cached and hash-checked."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from colablock._common.reporter import Reporter
from colablock._common.urls import Mirrors, basename, local_path, redacted
from colablock.errors import BadDistribution, FetchFailed
from colablock.network.auth import Credentials
from colablock.network.cache import Cache, cache_folder, place
from colablock.network.download import WHOLE, Download, Fetchable, HashChecker, gone, open_partial

if TYPE_CHECKING:
    from colablock.network.http import HttpClient, HttpResponse
    from colablock.network.settings import Settings

__all__ = ["ByteRange", "Fetcher", "Page"]

T = TypeVar("T")
_LONGEST_FRESH = 3600.0  # seconds that a page may be used without asking, whatever its max-age
_LONGEST_PAGE = 1 << 27  # bytes, unpacked: several times the largest page of the largest index
_GO_ONLINE = (
    "go online once (without `--offline` and COLABLOCK_OFFLINE), or name a folder with `--find-links`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page as it came.

    *url* is canonical, after redirects; *base* is where it really came from,
    a mirror perhaps: what its links are relative to.  *digest* is the SHA-256
    of the body.
    """

    url: str
    base: str
    content_type: str
    body: bytes
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A part of a file: *data* from byte *start* of *total*."""

    data: bytes
    start: int
    total: int


class Fetcher:
    """Reads URLs (``http:``, ``https:``, ``file:``) and plain paths; may be used from several threads.

    Environment variables come in as *environ*: ``COLABLOCK_CACHE_DIR``,
    ``COLABLOCK_MIRRORS``, ``COLABLOCK_TIMEOUT``, ``COLABLOCK_RETRIES``, proxies,
    certificates, netrc.  *mirrors* are further ones, of whole indexes.  With
    *offline* only the cache and local paths are read; with *keyring* the keyring
    is asked for passwords.  Raises FetchFailed when something cannot be read and
    BadDistribution when it is not what its hash promises.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        cache: Path | None = None,
        offline: bool = False,
        keyring: bool = False,
        mirrors: Iterable[tuple[str, str]] = (),
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.cache = Cache(cache or cache_folder(environ))
        self.offline = offline
        self._environ = environ
        self._sleep = sleep
        self._now = now
        self._mirrors = Mirrors.parse(environ.get("COLABLOCK_MIRRORS", "")).and_indexes(mirrors)
        self._credentials = Credentials(environ, keyring=keyring)
        for _, place_of_mirror in self._mirrors.pairs:
            self.learn_credentials(place_of_mirror)
        self._lock = threading.Lock()
        self._made: HttpClient | None = None
        self._rangeless: set[str] = set()

    @classmethod
    def for_settings(cls, settings: Settings, environ: Mapping[str, str]) -> Fetcher:
        """Return a fetcher as the settings want it."""
        return cls(environ, offline=settings.offline, keyring=settings.keyring, mirrors=settings.mirrors)

    @property
    def bytes_fetched(self) -> int:
        """The bytes of all bodies that came over the network so far."""
        return self._made.received if self._made is not None else 0

    def local(self, url: str) -> Path | None:
        """Return the local path that *url* is read from, None where the network is needed."""
        return local_path(self._mirrors.to_wire(url))

    def learn_credentials(self, url: str) -> str:
        """Return *url* without user and password, which are used for its host from now on."""
        return self._credentials.learn(url, is_index=True)

    def address(self, index: str) -> str:
        """Return the URL at which somebody else finds *index*: its mirror's where it has one."""
        plain = f"{redacted(index).rstrip('/')}/"
        found = self._mirrors.to_wire(plain)
        return index if found == plain else found

    def naming(self, page: Page) -> Callable[[str], str] | None:
        """Return what turns a link of *page* into the URL that it stands for; None: all are that already.

        User and password that stand in a link are kept for its host.
        """
        if not self._mirrors.pairs and b"@" not in page.body:
            return None  # as nearly always, and there may be thousands of links

        def name(url: str) -> str:
            plain = self._credentials.learn(url) if "@" in url else url
            return self._mirrors.to_canonical(plain, page.url)

        return name

    def get_page(self, url: str, accept: str = "*/*") -> Page | None:
        """Return a page, None where there is none (404).

        A cached page is used as it is while its ``max-age`` lasts or when
        offline, and revalidated by ETag and Last-Modified after that.
        """
        path = self.local(url)
        if path is not None:
            return _local_page(path, url, self._mirrors.to_wire(url))
        # What a mirror has is not what the index itself has, though both are known by one name.
        key = f"{redacted(self._mirrors.to_wire(url))}\n{accept}"
        kept = self._kept_page(key)
        if kept is not None and (self.offline or self._is_fresh(kept[0])):
            return kept[1]

        def headers() -> dict[str, str]:
            validators: dict[str, str] = {}
            if kept is not None:
                etag, modified = kept[0].get("etag"), kept[0].get("modified")
                validators |= {"If-None-Match": etag} if etag else {}
                validators |= {"If-Modified-Since": modified} if modified else {}
            return {"Accept": accept, "Accept-Encoding": "gzip", **validators}

        return self._exchange(url, headers, lambda answer: self._page(key, answer, kept))

    def get_bytes(self, url: str, hashes: Mapping[str, str] | None = None) -> bytes:
        """Return a small file whole, hash-checked, uncached."""
        path = self.local(url)
        data = _read_local(path, url) if path is not None else self._exchange(url, dict, _whole)
        if data is None:
            raise gone(url)
        checker = HashChecker(hashes or {})
        checker.update(data)
        checker.finish(basename(url), url)
        return data

    def get_range(self, url: str, start: int, end: int | None = None) -> ByteRange | None:
        """Return the bytes from *start* up to *end*; a negative *start* counts from the file's end.

        None when the server does not serve parts; it is not asked again then.
        """
        path = self.local(url)
        if path is not None:
            return _local_span(path, url, start, end)
        host = url.partition("://")[2].partition("/")[0]
        if host in self._rangeless:
            return None
        wanted = f"bytes={start}" if start < 0 else f"bytes={start}-{'' if end is None else end - 1}"
        span = self._exchange(url, lambda: {"Range": wanted, **WHOLE}, _span)
        if span is None:
            self._rangeless.add(host)
        return span

    def download(
        self,
        files: Sequence[Fetchable],
        into: Path,
        reporter: Reporter | None = None,
        *,
        workers: int = 8,
    ) -> list[Path]:
        """Return the paths of *files* in the folder *into*, in the order given, each under its file name.

        Hashes are checked while the bytes arrive; what was fetched before is
        linked from the cache; a cut download goes on where it stopped, at the
        next attempt or the next call.
        """
        reporter = reporter or Reporter()
        into.mkdir(parents=True, exist_ok=True)
        missing = [file for file in files if self.local(file.url) is None and self._cached(file) is None]
        if self.offline and missing:
            raise _not_at_hand(missing)
        stop = threading.Event()
        if not missing:
            return [self._obtain(file, into, reporter, stop) for file in files]
        reporter.fetch_started(len(missing), sum(file.size or 0 for file in missing))
        pool = ThreadPoolExecutor(max_workers=min(workers, len(files)))
        jobs = [pool.submit(self._obtain, file, into, reporter, stop) for file in files]
        patient = True
        try:
            for job in as_completed(jobs):
                job.result()
        except KeyboardInterrupt:
            patient = False  # a server that does not answer is not waited for
            raise
        finally:
            stop.set()  # after a failure or an interrupt the others end soon
            pool.shutdown(wait=patient, cancel_futures=True)
        reporter.fetch_finished()
        return [job.result() for job in jobs]

    def fetch(
        self, file: Fetchable, reporter: Reporter | None = None, stop: threading.Event | None = None
    ) -> Path:
        """Return a path to read one file from: the local file itself, or the cached one."""
        path = self.local(file.url)
        if path is not None:
            _check_local(path, file)
            return path
        return self._cached(file) or self._stream(file, reporter or Reporter(), stop or threading.Event())

    def fetch_named(self, file: Fetchable) -> Path:
        """Return what ``fetch`` does under the file's own name: a build reads the format from it."""
        _check_name(file.filename)
        path = self.fetch(file)
        if path.name == file.filename:
            return path
        named = self.cache.path("named", path.name) / file.filename
        try:
            if not (named.exists() and named.samefile(path)):
                place(path, self.cache.make_way(named))
        except OSError as error:
            raise _disk(named, error) from error
        return named

    # -- pages

    def _kept_page(self, key: str) -> tuple[dict[str, str], Page] | None:
        data = self.cache.read("pages", key)
        if data is None:
            return None
        head, _, body = data.partition(b"\n")
        try:
            facts = {str(name): str(value) for name, value in json.loads(head).items()}
            digest = facts["sha256"]
            return facts, Page(
                url=facts["url"], base=facts["base"], content_type=facts["type"], body=body, digest=digest
            )
        except (ValueError, KeyError, AttributeError):
            return None  # of another release of colablock

    def _is_fresh(self, facts: Mapping[str, str]) -> bool:
        age = self._now() - float(facts.get("stored", "0"))
        return 0 <= age < min(float(facts.get("max-age", "0")), _LONGEST_FRESH)

    def _page(self, key: str, answer: HttpResponse, kept: tuple[dict[str, str], Page] | None) -> Page | None:
        if answer.status == 304 and kept is not None:  # noqa: PLR2004 - HTTP says so
            page = kept[1]
        elif answer.status == 200:  # noqa: PLR2004
            body = answer.read(_LONGEST_PAGE)
            content_type = answer.headers.get("content-type", "")
            digest = hashlib.sha256(body).hexdigest()
            page = Page(url=answer.url, base=answer.base, content_type=content_type, body=body, digest=digest)
        else:
            return None
        facts = {
            "url": page.url,
            "base": page.base,
            "type": page.content_type,
            "sha256": page.digest,
            "stored": str(self._now()),
            "max-age": _max_age(answer.headers.get("cache-control", "")),
            "etag": answer.headers.get("etag") or (kept[0].get("etag", "") if kept else ""),
            "modified": answer.headers.get("last-modified") or (kept[0].get("modified", "") if kept else ""),
        }
        if "no-store" not in answer.headers.get("cache-control", ""):
            self.cache.write("pages", key, json.dumps(facts).encode() + b"\n" + page.body)
        return page

    # -- whole files

    def _cached(self, file: Fetchable) -> Path | None:
        sha256 = file.hashes.get("sha256", "").lower()
        return self.cache.file(sha256) if sha256 else None

    def _obtain(self, file: Fetchable, into: Path, reporter: Reporter, stop: threading.Event) -> Path:
        _check_name(file.filename)
        target = into / file.filename
        for last in (False, True):
            source = self.fetch(file, reporter, stop)
            try:
                if not (target.exists() and target.samefile(source)):
                    place(source, target)
            except OSError as error:
                if last or source.exists():
                    raise _disk(target, error) from error
            else:
                return target
        raise AssertionError

    def _stream(self, file: Fetchable, reporter: Reporter, stop: threading.Event) -> Path:
        """Fetch a file into the cache and return its path there."""
        key = file.hashes.get("sha256", "").lower() or redacted(file.url)
        try:
            with open_partial(self.cache.make_way(self.cache.path("partial", key))) as (path, stream):
                download = Download(file, stream, reporter, stop)
                sha256 = self._whole(download)
                stream.flush()
                return self.cache.keep_file(sha256, path)
        except OSError as error:
            raise _disk(self.cache.folder, error) from error
        except FetchFailed as error:
            raise _of_index(error, file) from error

    def _whole(self, download: Download) -> str:
        """Return the SHA-256 of the file once it is there and its hashes hold."""
        download.resume()
        for last in (False, True):
            self._exchange(download.file.url, download.headers, download.receive, raw=True)
            try:
                return download.checker.finish(download.file.filename, download.file.url)
            except BadDistribution:
                pieced = download.is_pieced
                download.restart()  # never keep it
                if last or not pieced:  # of two pieces the first may have been of another file
                    raise
        raise AssertionError

    # -- the wire

    @property
    def _wire(self) -> HttpClient:
        with self._lock:
            if self._made is None:
                # urllib3 takes longer to import than a plan from a lock may take in all.
                from colablock.network.http import HttpClient  # noqa: PLC0415

                self._made = HttpClient(self._environ, self._mirrors, self._credentials, sleep=self._sleep)
            return self._made

    def _exchange(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        consume: Callable[[HttpResponse], T],
        *,
        raw: bool = False,
    ) -> T:
        if self.offline:
            message = f"`{redacted(url)}` is not in the cache, and colablock is offline"
            raise FetchFailed(message, url=redacted(url), hint=_GO_ONLINE)
        return self._wire.exchange(url, headers, consume, raw=raw)


def _check_name(filename: str) -> None:
    if filename in {"", ".", ".."} or re.search(r"[/\\\0]", filename):
        raise BadDistribution(f"{filename!r} is no file name")


def _whole(answer: HttpResponse) -> bytes | None:
    return answer.read(_LONGEST_PAGE) if answer.status == 200 else None  # noqa: PLR2004 - HTTP says so


def _span(answer: HttpResponse) -> ByteRange | None:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("content-range", ""))
    if answer.status == 404:  # noqa: PLR2004 - HTTP says so
        raise gone(answer.url)
    if answer.status != 206 or match is None:  # noqa: PLR2004
        return None
    return ByteRange(data=answer.read(), start=int(match[1]), total=int(match[3]))


def _max_age(control: str) -> str:
    match = re.search(r"(?:^|[\s,])max-age=(\d+)", control)
    return match[1] if match and "no-cache" not in control else "0"


def _of_index(error: FetchFailed, file: Fetchable) -> FetchFailed:
    """Return *error* with the index that lists *file*, where it does not name that already."""
    if file.index is None or file.index in error.message:
        return error
    message = f"{error.message} (`{file.filename}` is listed by the index `{file.index}`)"
    return FetchFailed(
        message, url=error.url, status=error.status, hint=error.hint, is_passing=error.is_passing
    )


def _not_at_hand(files: Sequence[Fetchable]) -> FetchFailed:
    names = ", ".join(f"`{file.filename}`" for file in files)
    message = f"not in the cache, and colablock is offline: {names}"
    return FetchFailed(message, url=redacted(files[0].url), hint=_GO_ONLINE)


def _disk(path: Path, error: OSError) -> FetchFailed:
    hints = dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "make room, with `colablock cache prune` for example, or"
    )
    hint = f"{hints.get(error.errno or 0, '')} set COLABLOCK_CACHE_DIR to a folder on another disk".strip()
    return FetchFailed(f"`{path}` cannot be written: {error.strerror or error}", url=path.as_uri(), hint=hint)


def _read_local(path: Path, url: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FetchFailed(f"`{path}` cannot be read: {error.strerror}", url=url) from error


def _local_page(path: Path, url: str, base: str) -> Page | None:
    """Return a page of an index in a folder: the folder's ``index.html``, found at the URL *base*."""
    file = path / "index.html" if path.is_dir() else path
    if not file.is_file():
        return None
    body = _read_local(file, url)
    content_type = "application/vnd.pypi.simple.v1+json" if file.suffix == ".json" else "text/html"
    digest = hashlib.sha256(body).hexdigest()
    tail = "" if path == file or url.endswith("/") else "/"
    return Page(url=url + tail, base=base + tail, content_type=content_type, body=body, digest=digest)


def _local_span(path: Path, url: str, start: int, end: int | None) -> ByteRange:
    try:
        with path.open("rb") as stream:
            total = stream.seek(0, 2)
            first = max(0, total + start) if start < 0 else start
            stream.seek(first)
            return ByteRange(data=stream.read(-1 if end is None else end - first), start=first, total=total)
    except OSError as error:
        raise FetchFailed(f"`{path}` cannot be read: {error.strerror}", url=url) from error


def _check_local(path: Path, file: Fetchable) -> None:
    if not path.is_file():
        raise FetchFailed(f"there is no file `{path}`", url=file.url)
    checker = HashChecker(file.hashes)
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                checker.update(chunk)
    except OSError as error:
        raise FetchFailed(f"`{path}` cannot be read: {error.strerror}", url=file.url) from error
    checker.finish(file.filename, file.url)
