"""Fetch pages, byte ranges and files from indexes and folders, with cache and hash checks."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from colablock._common.decoding import read_bounded
from colablock._common.limits import METADATA, PAGE, URL
from colablock._common.reporter import Reporter
from colablock._common.urls import Mirrors, basename, local_path, redacted
from colablock._records import dataclass
from colablock.errors import BadDistribution, FetchFailed
from colablock.network.auth import Credentials
from colablock.network.cache import Cache, cache_folder, link_or_copy
from colablock.network.download import (
    IDENTITY,
    TRIES,
    Download,
    Fetchable,
    HashChecker,
    missing_file,
    open_partial,
)
from colablock.network.local_copies import LocalCopies, check_name
from colablock.network.page_cache import Compact, Page, PageCache, page_of

if TYPE_CHECKING:
    from colablock.bundles.reader import Bundle
    from colablock.network.http import HttpClient, HttpResponse
    from colablock.network.settings import Settings

__all__ = ["ByteRange", "Fetcher", "Page"]

T = TypeVar("T")
_LONGEST_SPAN = 1 << 20  # bytes: the end of a file


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A part of a file: *data* starts at byte *start* of *total*."""

    data: bytes
    start: int
    total: int


class Fetcher:
    """Reads URLs (``http:``, ``https:``, ``file:``) and plain paths; may be used from several threads.

    It reads these variables of *environ*: ``COLABLOCK_CACHE_DIR``,
    ``COLABLOCK_MIRRORS``, ``COLABLOCK_TIMEOUT``, ``COLABLOCK_RETRIES``, those for
    proxies and certificates, ``NETRC``.  *mirrors* are additional mirrors of
    whole indexes.  *folders* and *bundle* may have copies of files: one with the name and
    the hash of a file is taken in place of a download.  With *offline*, only the
    cache and local paths are read.  With *keyring*, the keyring is queried for
    passwords.  Raises FetchFailed if a URL
    cannot be read, and BadDistribution if a hash does not match.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        cache: Path | None = None,
        offline: bool = False,
        keyring: bool = False,
        mirrors: Iterable[tuple[str, str]] = (),
        folders: Iterable[str] = (),
        bundle: Bundle | None = None,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.cache = Cache(cache or cache_folder(environ))
        self.offline = offline
        self._environ = environ
        self._sleep = sleep
        self._pages = PageCache(self.cache, now)
        self._mirrors = Mirrors.parse(environ.get("COLABLOCK_MIRRORS", "")).and_indexes(mirrors)
        self._credentials = Credentials(environ, keyring=keyring)
        for _, place_of_mirror in self._mirrors.pairs:
            self.learn_credentials(place_of_mirror)
        self._lock = threading.Lock()
        self._client: HttpClient | None = None
        self._rangeless: set[str] = set()
        self.copies = LocalCopies(self.cache, folders, bundle, offline=offline)

    @classmethod
    def for_settings(cls, settings: Settings, environ: Mapping[str, str]) -> Fetcher:
        """Return a fetcher with these settings."""
        return cls(
            environ,
            offline=settings.offline,
            keyring=settings.keyring,
            mirrors=settings.mirrors,
            folders=settings.find_links,
            bundle=settings.bundle,
        )

    def local(self, url: str) -> Path | None:
        """Return the local path of *url*, or None if it needs the network."""
        if len(url) > URL:
            raise FetchFailed(f"a URL has {len(url)} characters, more than {URL}", url="")
        return local_path(self._mirrors.to_mirror(url))

    def place(self, url: str) -> str:
        """Return the URL that a request for *url* goes to: that of a mirror, if it has one."""
        return self._mirrors.to_mirror(url)

    def learn_credentials(self, url: str) -> str:
        """Return *url*, an index, without user and password, and use those for its host from now on."""
        return self._credentials.learn(url, is_index=True)

    def address(self, index: str) -> str:
        """Return the URL of *index*, or of its mirror if it has one, without credentials."""
        plain = f"{redacted(index).rstrip('/')}/"
        found = self._mirrors.to_mirror(plain)
        return redacted(index) if found == plain else found

    def for_child(self, place: str) -> str:
        """Return the URL of an index or of find-links with its credentials.

        It is for the process that downloads from there, which must not get it on its command line.
        """
        path = self.local(place)
        if path is not None:
            return str(path.absolute())
        self.learn_credentials(place)
        return self._credentials.with_credentials(self.address(place))

    def naming(self, page: Page) -> Callable[[str], str] | None:
        """Return a function from a link of *page* to its canonical URL, or None if all links are canonical.

        The function uses credentials in a link for its host.
        """
        if not self._mirrors.pairs and b"@" not in page.body and b"?" not in page.body:
            return None  # the usual case, and a page may have thousands of links

        def name(url: str) -> str:
            plain = self._credentials.learn(url) if "@" in url or "?" in url else url
            return self._mirrors.to_canonical(plain, page.url)

        return name

    def get_page(self, url: str, accept: str = "*/*", compact: Compact | None = None) -> Page | None:
        """Return a page, or None if it does not exist (404).

        A cached page is used until its ``max-age`` has passed, or offline.  After
        that it is revalidated by ETag and Last-Modified.  With *compact* the page
        has the form that *compact* returns for the page as it was sent.
        """
        path, place = self.local(url), self._mirrors.to_mirror(url)
        local = None if path is None else _local_page(path, url, place)
        if path is not None and (local is None or compact is None):
            return local
        # A mirror may have another page than the index, although both have the same canonical URL.
        key = f"{redacted(place)}\n{accept}"
        cached = self._pages.read(key, compact)
        if local is not None:
            return self._pages.keep(key, local, cached, {}, compact)
        if cached is not None and (self.offline or self._pages.is_fresh(cached)):
            return cached.page
        headers = {"Accept": accept, "Accept-Encoding": "gzip", **(cached.validators if cached else {})}
        return self._exchange(
            url, lambda: headers, lambda answer: self._pages.store(key, answer, cached, compact)
        )

    def get_bytes(self, url: str, hashes: Mapping[str, str] | None = None) -> bytes:
        """Return the content of a small file after checking its hashes; it is not cached."""
        path = self.local(url)
        data = _read_local(path, url) if path is not None else self._exchange(url, dict, _whole)
        if data is None:
            raise missing_file(url)
        checker = HashChecker(hashes or {})
        checker.update(data)
        checker.finish(basename(url), url)
        return data

    def get_range(self, url: str, start: int, end: int | None = None) -> ByteRange | None:
        """Return the bytes from *start* to *end* (exclusive); a negative *start* counts from the end.

        Returns None if the server does not support ranges.  It is not asked again.
        """
        path = self.local(url)
        if path is not None:
            return _local_span(path, url, start, end)
        host = url.partition("://")[2].partition("/")[0]
        if host in self._rangeless:
            return None
        wanted = f"bytes={start}" if start < 0 else f"bytes={start}-{'' if end is None else end - 1}"
        limit = -start if start < 0 else (_LONGEST_SPAN if end is None else end - start)
        span = self._exchange(url, lambda: {"Range": wanted, **IDENTITY}, lambda answer: _span(answer, limit))
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
        """Put *files* into the folder *into*, under their file names, and return the paths in the same order.

        Hashes are checked.  Cached files are linked.  An interrupted download is
        resumed by the next attempt or the next call.
        """
        reporter = reporter or Reporter()
        into.mkdir(parents=True, exist_ok=True)
        self.require_offline(files)
        moved = [file for file in files if not self.is_on_disk(file)]
        stop = threading.Event()
        if not moved:
            return [self._obtain(file, into, reporter, stop) for file in files]
        reporter.fetch_started(len(moved), sum(file.size or 0 for file in moved))
        pool = ThreadPoolExecutor(max_workers=min(workers, len(files)))
        jobs = [pool.submit(self._obtain, file, into, reporter, stop) for file in files]
        waits = True
        try:
            for job in as_completed(jobs):
                job.result()
        except KeyboardInterrupt:
            waits = False  # do not wait for a server that does not answer
            raise
        finally:
            stop.set()  # after a failure or an interrupt, the other downloads stop soon
            pool.shutdown(wait=waits, cancel_futures=True)
        reporter.fetch_finished()
        return [job.result() for job in jobs]

    def fetch(
        self, file: Fetchable, reporter: Reporter | None = None, stop: threading.Event | None = None
    ) -> Path:
        """Return the path of a file: the local file itself, a copy of it, or the downloaded one."""
        path = self.local(file.url)
        if path is not None:
            try:
                _check_local(path, file)
            except (BadDistribution, FetchFailed):
                copy = self.copies.find(file, hash_again=True) or self.copies.into_cache(file)
                if copy is None:
                    raise
                return copy
            return path
        path = self.copies.find(file, hash_again=True) or self.copies.into_cache(file)
        return path or self._stream(file, reporter or Reporter(), stop or threading.Event())

    def is_on_disk(self, file: Fetchable) -> bool:
        """Whether `download` only links or copies *file*."""
        return self.local(file.url) is not None or self.copies.find(file) is not None

    def is_here(self, file: Fetchable) -> bool:
        """Whether *file* needs no network: it is a local file, or there is a copy of it."""
        path = self.local(file.url)
        return (path is not None and path.is_file()) or self.copies.has(file)

    def require_offline(self, files: Iterable[Fetchable]) -> None:
        """Raise FetchFailed with those of *files* that have to be downloaded, if colablock is offline."""
        missing = [file for file in files if not self.is_here(file)] if self.offline else []
        if missing:
            raise self.copies.missing(missing)

    def fetch_named(self, file: Fetchable) -> Path:
        """Return a path as ``fetch`` does, with the file's own name: builds need its extension."""
        check_name(file.filename)
        path = self.fetch(file)
        if path.name == file.filename:
            return path
        named = self.cache.path("named", path.name) / file.filename
        try:
            if not (named.exists() and named.samefile(path)):
                link_or_copy(path, self.cache.clear_path(named), unfinished=self.cache.unfinished)
        except OSError as error:
            raise _disk(named, error) from error
        return named

    # -- whole files

    def _obtain(self, file: Fetchable, into: Path, reporter: Reporter, stop: threading.Event) -> Path:
        check_name(file.filename)
        target = into / file.filename
        count = partial(reporter.fetched, file.filename)
        is_new = self.local(file.url) is None and not target.exists()
        if is_new and self.copies.unpack(file, target, count):
            return target
        for tries in range(TRIES):
            source = self.fetch(file, reporter, stop)
            try:
                if not (target.exists() and target.samefile(source)):
                    link_or_copy(source, target)
            except OSError as error:
                if tries == TRIES - 1 or source.exists():
                    raise _disk(target, error) from error
            else:
                return target
        raise AssertionError

    def _stream(self, file: Fetchable, reporter: Reporter, stop: threading.Event) -> Path:
        """Download a file into the cache and return its path there."""
        key = file.hashes.get("sha256", "").lower() or redacted(file.url)
        try:
            with open_partial(self.cache.clear_path(self.cache.path("partial", key))) as (path, stream):
                download = Download(file, stream, reporter, stop)
                sha256 = _completed(download, self._exchange)
                stream.flush()
                self.cache.note_hashes(file.hashes, sha256, url=redacted(file.url))
                return self.cache.keep_file(sha256, path)
        except OSError as error:
            raise _disk(self.cache.folder, error) from error
        except FetchFailed as error:
            raise _of_index(error, file) from error

    # -- HTTP

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
            raise FetchFailed(message, url=redacted(url), hint=self.copies.hint())
        with self._lock:
            if self._client is None:
                # Importing urllib3 takes longer than a whole plan from a lock.
                from colablock.network.http import HttpClient  # noqa: PLC0415

                self._client = HttpClient(self._environ, self._mirrors, self._credentials, sleep=self._sleep)
        return self._client.exchange(url, headers, consume, raw=raw)


def _completed(download: Download, exchange: Callable[..., object]) -> str:
    """Complete the download, check the hashes and return the SHA-256."""
    download.resume()
    for last in (False, True):
        exchange(download.file.url, download.headers, download.receive, raw=True)
        try:
            return download.checker.finish(download.file.filename, download.file.url)
        except BadDistribution:
            pieced = download.is_pieced
            download.restart()  # never keep a wrong file
            if last or not pieced:  # the first part may be of another file: try once more
                raise
    raise AssertionError


def _whole(answer: HttpResponse) -> bytes | None:
    return answer.read(METADATA, "a metadata file") if answer.status == 200 else None  # noqa: PLR2004 - HTTP


def _span(answer: HttpResponse, limit: int) -> ByteRange | None:
    match = re.fullmatch(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", answer.headers.get("content-range", ""))
    if answer.status == 404:  # noqa: PLR2004 - HTTP says so
        raise missing_file(answer.url)
    if answer.status != 206 or match is None:  # noqa: PLR2004
        return None
    return ByteRange(
        data=answer.read(limit, "the part that was asked for"), start=int(match[1]), total=int(match[3])
    )


def _of_index(error: FetchFailed, file: Fetchable) -> FetchFailed:
    """Return *error* with the index that lists *file*, unless it names the index already."""
    if file.index is None or file.index in error.message:
        return error
    message = f"{error.message} (the index `{file.index}` lists `{file.filename}`)"
    return error.reworded(message)


def _disk(path: Path, error: OSError) -> FetchFailed:
    hint = "Set COLABLOCK_CACHE_DIR to a folder on another disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"Free space, for example with `colablock cache prune`, or s{hint[1:]}"
    return FetchFailed(f"`{path}` cannot be written: {error.strerror or error}", url=path.as_uri(), hint=hint)


def _read_local(path: Path, url: str) -> bytes:
    try:
        return read_bounded(path, PAGE)
    except OSError as error:
        raise FetchFailed(f"`{path}` cannot be read: {error.strerror}", url=url) from error
    except ValueError as error:  # too large, no regular file, or a name with a null character
        raise FetchFailed(f"`{path}` cannot be read: {error}", url=url) from error


def _local_page(path: Path, url: str, base: str) -> Page | None:
    """Return a page of an index in a folder: its ``index.html``, with the URL *base*."""
    try:
        file = path / "index.html" if path.is_dir() else path
        if not file.is_file():
            return None
    except OSError as error:  # a name that is too long, before Python 3.14
        raise FetchFailed(f"`{path}` cannot be read: {error.strerror}", url=url) from error
    body = _read_local(file, url)
    content_type = "application/vnd.pypi.simple.v1+json" if file.suffix == ".json" else "text/html"
    tail = "" if path == file or url.endswith("/") else "/"
    return page_of(url + tail, base + tail, content_type, body)


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
        raise FetchFailed(f"the file `{path}` does not exist", url=file.url, is_passing=True)
    checker = HashChecker(file.hashes)
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                checker.update(chunk)
    except OSError as error:
        raise FetchFailed(f"`{path}` cannot be read: {error.strerror}", url=file.url) from error
    checker.finish(file.filename, file.url)
