"""Fetching pages, ranges and files: HTTP with its failures, and local files."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock._common.urls import Mirrors, basename, local_path, redacted, split_fragment
from colablock.errors import BadDistribution, FetchFailed, InvalidInput
from colablock.network.cache import PARSED
from colablock.network.fetcher import Fetcher, Page
from tests.support.fetching import DEMO_WHEEL, Wanted, fetcher_in, received, wanted
from tests.support.fixtures import index_fixture
from tests.support.paths import ROOT
from tests.support.server import Fault, IndexServer
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.requirements


class Log(Reporter):
    """Records the progress."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.bytes = 0
        self.finished = 0

    def fetch_started(self, files: int, size: int) -> None:
        self.started.append((files, size))

    def fetched(self, filename: str, size: int) -> None:  # noqa: ARG002
        self.bytes += size

    def fetch_finished(self) -> None:
        self.finished += 1


def fill(folder: Path) -> None:
    make_wheel(folder, "demo", "1.0", modules={"demo.py": f"text = {'x' * 700_000!r}\n"})


index = index_fixture(fill)


@pytest.fixture
def wheel(index: Path) -> Path:
    return index / DEMO_WHEEL


def fresh(tmp_path: Path, **environ: str) -> Fetcher:
    """Return a new fetcher with the same cache, as another process has it."""
    return fetcher_in(tmp_path, environ)


# -- pages


def test_a_page_is_revalidated_by_its_etag(server: IndexServer, fetcher: Fetcher) -> None:
    url = f"{server.url}demo/"
    first, second = fetcher.get_page(url), fetcher.get_page(url)
    assert first == second
    assert [request.status for request in server.requests] == [200, 304]


def test_a_revalidated_page_is_not_written_again(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    url = f"{server.url}demo/"
    page = fetcher.get_page(url)
    (stored,) = (path for path in (tmp_path / "cache" / "pages").rglob("*") if path.is_file())
    os.utime(stored, (0, 0))
    inode = stored.stat().st_ino
    assert [fresh(tmp_path).get_page(url) for _ in range(2)] == [page, page]
    assert [request.status for request in server.requests] == [200, 304, 304]
    assert stored.stat().st_ino == inode
    assert stored.stat().st_mtime > 0  # `cache prune` sees that it is used


@pytest.mark.parametrize("etags", [True, False])
def test_a_page_is_made_compact_only_when_its_body_changes(
    etags: bool, server: IndexServer, tmp_path: Path
) -> None:
    server.etags = etags
    url, sent = f"{server.url}demo/", fresh(tmp_path).get_page(f"{server.url}demo/")
    assert sent is not None
    made: list[bytes] = []

    def compact(page: Page) -> bytes:
        made.append(page.body)
        return b"small"

    found = [fresh(tmp_path).get_page(url, "*/*", compact) for _ in range(3)]
    assert [page and (page.body, page.digest) for page in found] == [(b"small", sent.digest)] * 3
    assert made == [sent.body]
    (stored,) = (path for path in (tmp_path / "cache" / PARSED).rglob("*") if path.is_file())
    assert stored.read_bytes().endswith(b"\nsmall")
    server.fault("/simple/demo/", Fault(body=b"other", content_type="text/html"))
    fresh(tmp_path).get_page(url, "*/*", compact)
    assert made == [sent.body, b"other"]


@pytest.mark.parametrize("entry", [b"", b"{}", b'{"sha256": "0"}'])
def test_a_damaged_note_of_a_revalidation_does_not_count(
    entry: bytes, server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    url = f"{server.url}demo/"
    server.fault("/simple/demo/", Fault(headers={"Cache-Control": "max-age=60"}))
    server.etags = False
    page = fetcher.get_page(url)

    def page_at(seconds: float) -> Page | None:
        later = time.time() + seconds
        return Fetcher(os.environ, cache=tmp_path / "cache", now=lambda: later).get_page(url)

    found = [page_at(seconds) for seconds in (30, 100, 130)]
    assert (found, len(server.requests)) == ([page] * 3, 2)
    (note,) = (path for path in (tmp_path / "cache" / "confirmed").rglob("*") if path.is_file())
    note.write_bytes(f"{zlib.crc32(entry):08x} {len(entry)}\n".encode() + entry)
    assert (page_at(130), len(server.requests)) == (page, 3)


def test_a_note_of_a_revalidation_is_written_only_if_it_says_something_new(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    for etags in (True, True, False):
        server.etags = etags
        fetcher.get_page(f"{server.url}demo/")
    assert len(server.requests) == 3
    assert not list((tmp_path / "cache").glob("confirmed/*/*"))


def test_a_missing_page_is_none(server: IndexServer, fetcher: Fetcher) -> None:
    assert fetcher.get_page(f"{server.url}unknown/") is None


@pytest.mark.parametrize(("path", "status"), [("demo", 304), ("unknown", 404), ("moved", 302)])
def test_a_connection_is_kept_whatever_the_answer(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path, path: str, status: int
) -> None:
    server.redirect("/simple/moved/", f"{server.url}demo/")
    fetcher.get_page(f"{server.url}demo/")
    server.forget_requests()
    other = fetcher_in(tmp_path)
    for _ in range(3):
        other.get_page(f"{server.url}{path}/")
    assert [one.status for one in server.requests].count(status) == 3
    assert len({one.port for one in server.requests}) == 1


def test_threads_share_the_lookup_of_a_host(
    server: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is lost takes seconds.  The first address may refuse the connection."""
    look_up, asked = socket.getaddrinfo, []

    def counted(host: str, port: int, *rest: object) -> list[object]:
        if host != "index.test":
            return look_up(host, port, *rest)  # type: ignore[arg-type, return-value]
        asked.append(host)
        first = look_up("127.0.0.2", port, *rest)  # type: ignore[arg-type]
        return [*first, *look_up("127.0.0.1", port, *rest)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    fetcher = fetcher_in(tmp_path, {"NO_PROXY": "*"})
    url = server.url.replace("127.0.0.1", "index.test")
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(fetcher.get_page, [f"{url}demo/"] * 8))
    assert all(page is not None for page in pages)
    assert asked == ["index.test"]


def test_a_page_has_the_url_after_a_redirect(server: IndexServer, fetcher: Fetcher) -> None:
    server.redirect("/old/demo/", "/simple/demo/")
    page = fetcher.get_page(f"{server.root}/old/demo/")
    assert page is not None
    assert page.url == f"{server.url}demo/"


def test_a_redirect_loop_is_an_error(server: IndexServer, fetcher: Fetcher) -> None:
    server.redirect("/a/", "/b/")
    server.redirect("/b/", "/a/")
    with pytest.raises(FetchFailed, match="redirects more than"):
        fetcher.get_page(f"{server.root}/a/")


def test_a_damaged_page_in_the_cache_is_fetched_again(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    url = f"{server.url}demo/"
    whole = fetcher.get_page(url)
    for path in (tmp_path / "cache" / "pages").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
    assert fresh(tmp_path).get_page(url) == whole
    assert [request.status for request in server.requests] == [200, 200]


def test_offline_uses_the_cache(server: IndexServer, fetcher: Fetcher, tmp_path: Path) -> None:
    url = f"{server.url}demo/"
    page = fetcher.get_page(url)
    offline = Fetcher(os.environ, cache=tmp_path / "cache", offline=True)
    assert offline.get_page(url) == page
    with pytest.raises(FetchFailed, match="not in the cache, and colablock is offline"):
        offline.get_page(f"{server.url}other/")
    assert len(server.requests) == 1


def test_offline_names_all_missing_files(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    kept = wanted(server, wheel)
    fetcher.download([kept], tmp_path / "into")
    gone = [Wanted(url=server.file_url(name), filename=name) for name in ("a-1.whl", "b-1.whl")]
    offline = Fetcher(os.environ, cache=tmp_path / "cache", offline=True)
    with pytest.raises(FetchFailed, match=r"offline: `a-1\.whl`, `b-1\.whl`$"):
        offline.download([kept, *gone], tmp_path / "offline")
    assert offline.download([kept], tmp_path / "offline")


# -- failures and retries


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_status_is_retried(
    server: IndexServer, fetcher: Fetcher, waits: list[float], status: int
) -> None:
    server.fault("/simple/demo/", Fault(status=status, times=2))
    assert fetcher.get_page(f"{server.url}demo/") is not None
    assert waits == sorted(waits)
    assert len(waits) == 2


def test_retry_after_is_respected(server: IndexServer, fetcher: Fetcher, waits: list[float]) -> None:
    server.fault("/simple/demo/", Fault(status=429, times=1, retry_after="7"))
    fetcher.get_page(f"{server.url}demo/")
    assert waits == [7.0]


@pytest.mark.parametrize(
    ("after", "waited"),
    [
        ("86400", 60.0),  # the limit
        ("9" * 400, 60.0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 60.0),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0.0),
        ("soon", 0.5),
        ("\N{SUPERSCRIPT TWO}", 0.5),
        ("-1", 0.5),
    ],
)
def test_retry_after_is_limited(
    server: IndexServer, fetcher: Fetcher, waits: list[float], after: str, waited: float
) -> None:
    server.fault("/simple/demo/", Fault(status=429, times=1, retry_after=after))
    fetcher.get_page(f"{server.url}demo/")
    assert waits == [waited]


def test_the_number_of_retries_can_be_set(server: IndexServer, waits: list[float], tmp_path: Path) -> None:
    server.fault("/simple/demo/", Fault(status=503))
    for retries in (0, 1, 2):
        environ = {**os.environ, "COLABLOCK_RETRIES": str(retries)}
        fetcher = Fetcher(environ, cache=tmp_path / "cache", sleep=waits.append)
        with pytest.raises(FetchFailed):
            fetcher.get_page(f"{server.url}demo/")
    assert waits == [0.5, 0.5, 1.0]
    with pytest.raises(InvalidInput, match="`often` in COLABLOCK_RETRIES is not a number of retries"):
        fresh(tmp_path, COLABLOCK_RETRIES="often").get_page(f"{server.url}demo/")


@pytest.mark.parametrize(
    ("status", "hint"), [(403, "netrc"), (401, "netrc"), (418, None), (500, "later"), (503, "later")]
)
def test_a_refusal_names_url_and_status(
    server: IndexServer, fetcher: Fetcher, status: int, hint: str | None
) -> None:
    server.fault("/simple/demo/", Fault(status=status))
    with pytest.raises(FetchFailed, match=str(status)) as caught:
        fetcher.get_page(f"{server.url}demo/")
    assert caught.value.status == status
    assert caught.value.url == f"{server.url}demo/"
    assert (hint or "") in (caught.value.hint or "")
    assert (caught.value.hint is None) == (hint is None)


def test_an_unreachable_host_is_named(fetcher: Fetcher, waits: list[float]) -> None:
    with pytest.raises(FetchFailed, match=r"no connection to `127\.0\.0\.1`") as caught:
        fetcher.get_page("http://127.0.0.1:9/simple/demo/")
    assert caught.value.hint is not None
    assert len(waits) == 4


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/demo/", "http:///demo/", "https://[half/"])
def test_an_invalid_url_is_not_retried(fetcher: Fetcher, waits: list[float], url: str) -> None:
    with pytest.raises(FetchFailed):
        fetcher.get_page(url)
    assert waits == []


def test_an_incomplete_page_is_fetched_again(server: IndexServer, fetcher: Fetcher) -> None:
    server.fault("/simple/demo/", Fault(truncate=10, times=1))
    page = fetcher.get_page(f"{server.url}demo/")
    assert page is not None
    assert DEMO_WHEEL.encode() in page.body


# -- credentials


def test_credentials_in_a_url_are_used_and_never_shown(wheel: Path, fetcher: Fetcher, tmp_path: Path) -> None:
    with IndexServer(wheel.parent, auth=("user@x", "se:cret")) as server:
        url = server.url.replace("http://", "http://user%40x:se%3Acret@")
        page = fetcher.get_page(f"{url}demo/")
        assert page is not None
        assert page.url == f"{server.url}demo/"
        # They are used for a file of the same host, too.
        assert fetcher.get_bytes(server.file_url(DEMO_WHEEL)) == wheel.read_bytes()
        server.auth = ("user@x", "another")
        with pytest.raises(FetchFailed) as caught:
            fresh(tmp_path).get_page(f"{url}demo/")
    assert "se%3Acret" not in f"{caught.value} {caught.value.url} {caught.value.hint}"


def test_credentials_come_from_netrc(wheel: Path, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n", encoding="utf-8")
    with IndexServer(wheel.parent, auth=("user", "secret")) as server:
        ours = fresh(tmp_path, NETRC=str(netrc))
        ours.learn_credentials(server.url)
        assert ours.get_page(f"{server.url}demo/") is not None
        with pytest.raises(FetchFailed):
            fresh(tmp_path).get_page(f"{server.url}demo/")


def test_a_proxy_is_used_unless_no_proxy_names_the_host(server: IndexServer, tmp_path: Path) -> None:
    through = fresh(tmp_path, **{**PLAIN, "HTTP_PROXY": server.root})
    through.get_page("http://index.invalid/simple/demo/")
    assert server.paths == ["/simple/demo/"]
    assert server.requests[0].headers["host"] == "index.invalid"
    around = fresh(tmp_path, **{**PLAIN, "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"})
    assert around.get_page(f"{server.url}demo/") is not None


PLAIN = dict.fromkeys(("NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "")


def test_the_password_of_a_proxy_is_used_and_never_shown(server: IndexServer, tmp_path: Path) -> None:
    proxy = server.root.replace("://", "://me:se%3Acret@")
    through = fresh(tmp_path, **{**PLAIN, "ALL_PROXY": proxy})
    through.get_page("http://index.invalid/simple/demo/")
    sent = server.requests[0].headers["proxy-authorization"]
    assert b64decode(sent.removeprefix("Basic ")) == b"me:se:cret"
    server.fault("/simple/demo/", Fault(status=407))
    with pytest.raises(FetchFailed, match="requires a user and password") as caught:
        fresh(tmp_path, **{**PLAIN, "HTTP_PROXY": proxy}).get_page("http://index.invalid/simple/demo/")
    assert server.root in str(caught.value)
    assert caught.value.hint == f"Give them in HTTP_PROXY, as `http://USER:PASSWORD@{server.root[7:]}`"
    assert "cret" not in f"{caught.value}{caught.value.hint}"


def test_a_proxy_that_refuses_a_tunnel_is_reported(server: IndexServer, tmp_path: Path) -> None:
    # The server answers CONNECT with 501, as a proxy that refuses.
    fetcher = fresh(tmp_path, **{**PLAIN, "HTTPS_PROXY": server.root, "https_proxy": ""})
    with pytest.raises(FetchFailed, match=f"the proxy `{server.root}` does not connect") as caught:
        fetcher.get_page("https://index.invalid/simple/demo/")
    assert caught.value.hint == "Correct HTTPS_PROXY, or add `index.invalid` to NO_PROXY"


def test_a_socks_proxy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="is not an HTTP proxy") as caught:
        fresh(tmp_path, **{**PLAIN, "http_proxy": "socks5://me:secret@127.0.0.1:9"}).get_page(
            "http://x.invalid/"
        )
    assert "secret" not in str(caught.value)


# -- ranges


def test_a_range_from_the_start_and_from_the_end(server: IndexServer, wheel: Path, fetcher: Fetcher) -> None:
    content = wheel.read_bytes()
    for url in (server.file_url(DEMO_WHEEL), wheel.as_uri(), str(wheel)):
        middle, tail = fetcher.get_range(url, 10, 30), fetcher.get_range(url, -20)
        assert middle is not None
        assert tail is not None
        assert (middle.data, middle.start, middle.total) == (content[10:30], 10, len(content))
        assert (tail.data, tail.start) == (content[-20:], len(content) - 20)


def test_a_server_without_ranges_is_asked_for_one_only_once(wheel: Path, fetcher: Fetcher) -> None:
    with IndexServer(wheel.parent, ranges=False) as server:
        assert fetcher.get_range(server.file_url(DEMO_WHEEL), -20) is None
        assert fetcher.get_range(server.file_url(DEMO_WHEEL), 0, 20) is None
        assert len(server.requests) == 1
    # The body was not read to its end.
    assert received(fetcher) < wheel.stat().st_size


# -- downloads


def test_a_download_gets_its_file_name_and_is_cached(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    log = Log()
    file = wanted(server, wheel)
    (path,) = fetcher.download([file], tmp_path / "one", log)
    assert path == tmp_path / "one" / DEMO_WHEEL
    assert path.read_bytes() == wheel.read_bytes()
    assert (log.started, log.bytes, log.finished) == ([(1, file.size)], file.size, 1)
    assert received(fetcher) == file.size
    again = Log()
    (path,) = fresh(tmp_path).download([file], tmp_path / "two", again)
    assert path.read_bytes() == wheel.read_bytes()
    assert again.started == []
    assert len(server.requests) == 1


def test_an_interrupted_download_is_resumed(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    server.fault(f"/files/{DEMO_WHEEL}", Fault(truncate=400_000, times=1))
    (path,) = fetcher.download([wanted(server, wheel)], tmp_path / "into")
    assert path.read_bytes() == wheel.read_bytes()
    first, second = server.requests
    assert second.headers["range"].startswith("bytes=")
    assert second.headers["if-range"].startswith('"')
    assert second.status == 206
    assert "range" not in first.headers


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("hashes", [True, False])
def test_parts_of_different_files_are_not_joined(
    server: IndexServer, wheel: Path, tmp_path: Path, *, etags: bool, hashes: bool
) -> None:
    old, new = bytes(500_000), wheel.read_bytes()
    server.etags = etags
    file = wanted(server, wheel) if hashes else wanted(server, wheel, hashes={})
    server.fault(f"/files/{DEMO_WHEEL}", Fault(body=old, truncate=400_000, times=1))
    (path,) = Fetcher(os.environ, cache=tmp_path / "cache", sleep=lambda _: None).download(
        [file], tmp_path / "into"
    )
    assert path.read_bytes() == new


def test_another_process_resumes_a_download(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    server.fault(f"/files/{DEMO_WHEEL}", Fault(truncate=1000, times=5))
    with pytest.raises(FetchFailed):
        fetcher.download([wanted(server, wheel)], tmp_path / "into")
    server.forget_requests()
    server.fault(f"/files/{DEMO_WHEEL}", Fault(times=0))
    (path,) = fresh(tmp_path).download([wanted(server, wheel)], tmp_path / "into")
    assert path.read_bytes() == wheel.read_bytes()
    assert server.requests[0].status == 206
    assert server.requests[0].headers["range"] != "bytes=0-"


def test_a_partial_file_with_other_content_is_discarded(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    file = wanted(server, wheel)
    partial = fetcher.cache.path("partial", file.hashes["sha256"])
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"something else")
    (path,) = fetcher.download([file], tmp_path / "into")
    assert path.read_bytes() == wheel.read_bytes()
    assert [request.status for request in server.requests] == [206, 200]


def test_without_ranges_an_interrupted_download_starts_again(
    wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    with IndexServer(wheel.parent, ranges=False) as server:
        server.fault(f"/files/{DEMO_WHEEL}", Fault(truncate=400_000, times=1))
        (path,) = fetcher.download([wanted(server, wheel)], tmp_path / "into")
    assert path.read_bytes() == wheel.read_bytes()


def test_an_interrupted_download_without_a_hash_is_completed(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    server.fault(f"/files/{DEMO_WHEEL}", Fault(truncate=400_000, times=1))
    (path,) = fetcher.download([wanted(server, wheel, hashes={})], tmp_path / "into")
    assert path.read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake2b", "md5"])
def test_a_file_with_a_wrong_hash_is_refused_and_not_cached(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path, algorithm: str
) -> None:
    wrong = hashlib.new(algorithm, b"other").hexdigest()
    with pytest.raises(BadDistribution, match=f"{algorithm} hash .* expected"):
        fetcher.download([wanted(server, wheel, hashes={algorithm: wrong})], tmp_path / "into")
    assert not (tmp_path / "into" / DEMO_WHEEL).exists()
    right = hashlib.new(algorithm, wheel.read_bytes()).hexdigest()
    (path,) = fetcher.download([wanted(server, wheel, hashes={algorithm: right})], tmp_path / "into")
    assert path.exists()


def test_the_strongest_hash_is_checked(server: IndexServer, wheel: Path, fetcher: Fetcher) -> None:
    content = wheel.read_bytes()
    hashes = {"md5": "0" * 32, "sha256": hashlib.sha256(content).hexdigest()}
    assert fetcher.get_bytes(server.file_url(DEMO_WHEEL), hashes) == content


def test_a_damaged_file_in_the_cache_is_fetched_again(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    file = wanted(server, wheel)
    fetcher.download([file], tmp_path / "one")
    kept = fetcher.cache.path("files", file.hashes["sha256"])
    kept.unlink()
    kept.write_bytes(b"not what it was")
    (path,) = fresh(tmp_path).download([file], tmp_path / "two")
    assert path.read_bytes() == wheel.read_bytes()
    assert len(server.requests) == 2


def test_a_missing_file_is_an_error(server: IndexServer, fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed) as caught:
        fetcher.download([Wanted(url=server.file_url("gone-1.0.whl"), filename="gone-1.0.whl")], tmp_path)
    assert caught.value.status == 404


def test_one_failure_stops_the_other_downloads_and_is_reported(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    files = [wanted(server, wheel) for _ in range(4)]
    files.append(Wanted(url=server.file_url("gone-1.0.whl"), filename="gone-1.0.whl"))
    with pytest.raises(FetchFailed, match="does not exist"):
        fetcher.download(files, tmp_path / "into")
    # The fetcher can be used again.
    assert fetcher.download([wanted(server, wheel)], tmp_path / "into")


def test_downloads_are_returned_in_the_requested_order(fetcher: Fetcher, tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path / "many", f"p{i}", "1.0") for i in range(20)]
    with IndexServer(tmp_path / "many") as server:
        files = [Wanted(url=server.file_url(path.name), filename=path.name) for path in wheels]
        paths = fetcher.download(files, tmp_path / "into")
    assert [path.name for path in paths] == [path.name for path in wheels]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(paths, wheels, strict=True))


def test_several_threads_can_fetch_the_same_file(server: IndexServer, wheel: Path, tmp_path: Path) -> None:
    file = wanted(server, wheel)
    errors: list[BaseException] = []

    def fetch(number: int) -> None:
        try:
            (path,) = fresh(tmp_path).download([file], tmp_path / str(number))
            assert path.read_bytes() == wheel.read_bytes()
        except BaseException as error:  # noqa: BLE001 - the test asserts that there is none
            errors.append(error)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("form", ["uri", "path"])
def test_local_files_are_linked_and_checked(wheel: Path, fetcher: Fetcher, tmp_path: Path, form: str) -> None:
    url = wheel.as_uri() if form == "uri" else str(wheel)
    (path,) = fetcher.download([Wanted(url=url)], tmp_path / "into")
    assert path.read_bytes() == wheel.read_bytes()
    with pytest.raises(BadDistribution):
        fetcher.download([Wanted(url=url, hashes={"sha256": "0" * 64})], tmp_path / "into")
    with pytest.raises(FetchFailed):
        fetcher.download([Wanted(url=f"{url}.gone")], tmp_path / "into")


def test_a_copy_in_a_folder_is_hashed_at_each_fetch(tmp_path: Path) -> None:
    """The replacement has the size and the mtime of the good file, which may be listed still."""
    copy = tmp_path / "links" / DEMO_WHEEL
    copy.parent.mkdir()
    copy.write_bytes(b"good!")
    there = copy.stat()
    digest = hashlib.sha256(b"good!").hexdigest()
    file = Wanted(url=f"https://index.invalid/{DEMO_WHEEL}", hashes={"sha256": digest})
    fetcher = Fetcher(os.environ, cache=tmp_path / "cache", folders=[str(copy.parent)], offline=True)
    assert fetcher.copies.find(file) == fetcher.fetch(file) == copy
    copy.write_bytes(b"evil!")
    os.utime(copy, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert fetcher.copies.find(file, hash_again=True) is None
    for take in (fetcher.fetch, fetcher.fetch_named, lambda one: fetcher.download([one], tmp_path / "into")):
        with pytest.raises(FetchFailed):
            take(file)


@pytest.mark.parametrize("name", ["../x.whl", "a/b.whl", "..", "", "a\\b.whl"])
def test_a_file_name_with_a_path_is_refused(wheel: Path, fetcher: Fetcher, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadDistribution, match="not a valid file name"):
        fetcher.download([Wanted(url=str(wheel), filename=name)], tmp_path / "into")


def test_downloads_work_without_a_writable_cache(server: IndexServer, wheel: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder would be", encoding="utf-8")
    fetcher = Fetcher(os.environ, cache=blocked)
    assert fetcher.download([wanted(server, wheel)], tmp_path / "into")


# -- mirrors


def test_a_mirror_is_used_for_requests_only(server: IndexServer, wheel: Path, tmp_path: Path) -> None:
    fetcher = fresh(tmp_path, COLABLOCK_MIRRORS=f"https://index.invalid/={server.root}/")
    page = fetcher.get_page("https://index.invalid/simple/demo/")
    assert page is not None
    assert page.url == "https://index.invalid/simple/demo/"
    file = wanted(server, wheel, url=f"https://index.invalid/files/{DEMO_WHEEL}")
    assert fetcher.download([file], tmp_path / "into")
    server.fault("/simple/other/", Fault(status=403))
    with pytest.raises(FetchFailed) as caught:
        fetcher.get_page("https://index.invalid/simple/other/")
    assert caught.value.url == "https://index.invalid/simple/other/"
    assert "127.0.0.1" not in str(caught.value)


def test_mirrors_map_in_both_directions_longest_prefix_first() -> None:
    mirrors = Mirrors.parse("https://a.example/=http://b/ https://a.example/deep/=http://u:p@c/")
    assert mirrors.to_mirror("https://a.example/x") == "http://b/x"
    assert mirrors.to_mirror("https://a.example/deep/x") == "http://c/x"
    assert mirrors.to_mirror("https://other.example/x") == "https://other.example/x"
    assert mirrors.to_canonical("http://c/x") == "https://a.example/deep/x"
    assert mirrors.to_canonical("http://d/x") == "http://d/x"


@pytest.mark.parametrize("text", ["https://a.example/", "a=b", "=http://x/"])
def test_an_invalid_mirror_is_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInput, match="COLABLOCK_MIRRORS"):
        Mirrors.parse(text)


# -- URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@host/x", "https://host/x"),
        ("https://token@host:8080/x?y#z", "https://host:8080/x?y#z"),
        ("https://host/a@b", "https://host/a@b"),
        ("/a/path@x", "/a/path@x"),
    ],
)
def test_redacted_urls_have_no_credentials(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b%20c.whl", "/a/b c.whl"),
        ("/a/b", "/a/b"),
        ("relative/x", "relative/x"),
        ("https://host/x", None),
        ("git+https://host/x", None),
        ("file://elsewhere/x", None),
    ],
)
def test_local_paths_are_distinguished_from_urls(url: str, path: str | None) -> None:
    found = local_path(url)
    assert (None if found is None else found.as_posix()) == path


def test_the_hashes_and_the_file_name_of_a_url() -> None:
    assert split_fragment("https://h/x.whl#sha256=AB&egg=x") == ("https://h/x.whl", {"sha256": "ab"})
    assert basename("https://h/a/b%2Bc-1.0.tar.gz?x=y") == "b+c-1.0.tar.gz"


def test_importing_the_fetcher_does_not_import_urllib3() -> None:
    code = "import sys, colablock.network.fetcher, colablock.index.finder; sys.exit('urllib3' in sys.modules)"
    root = ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_file_can_be_fetched_under_its_own_name(server: IndexServer, wheel: Path, fetcher: Fetcher) -> None:
    file = wanted(server, wheel)
    for _ in range(2):
        path = fetcher.fetch_named(file)
        assert path.name == DEMO_WHEEL
        assert path.read_bytes() == wheel.read_bytes()
    assert fetcher.fetch_named(Wanted(url=str(wheel))) == wheel
    with pytest.raises(BadDistribution, match="not a valid file name"):
        fetcher.fetch_named(wanted(server, wheel, filename="../x.whl"))
