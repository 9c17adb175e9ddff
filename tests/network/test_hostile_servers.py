"""Servers that send without end, too slowly, too much, or what is no HTTP: each ends in a FetchFailed."""

from __future__ import annotations

import gzip
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from colablock.errors import BadDistribution, FetchFailed
from colablock.network.fetcher import Fetcher
from tests.support.fetching import Wanted, fetcher_in
from tests.support.timing import PATIENCE

Answer = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
IMPATIENT = {"COLABLOCK_TIMEOUT": "0.5", "COLABLOCK_RETRIES": "1"}
PATIENT = {"COLABLOCK_TIMEOUT": f"{PATIENCE}", "COLABLOCK_RETRIES": "1"}


@contextmanager
def raw_server(answer: Answer) -> Iterator[str]:
    """Yield the URL of a server that reads each request and then does what *answer* does."""
    stopped = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while b"\r\n\r\n" not in (said := connection.recv(65536)):
                if not said:
                    return
            answer(connection)

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            if stopped.is_set():
                connection.close()
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        place = listener.getsockname()
        try:
            yield f"http://127.0.0.1:{place[1]}/simple/"
        finally:
            stopped.set()
            socket.create_connection(place).close()
            thread.join()


def drip(head: bytes, piece: bytes, every: float = 0.1) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(6000):
            connection.sendall(piece)
            time.sleep(every)

    return answer


def send(*parts: bytes, times: int = 1) -> Answer:
    def answer(connection: socket.socket) -> None:
        for part in (*parts[:-1], *(parts[-1:] * times)):
            connection.sendall(part)

    return answer


LENGTH = b"Content-Length: 100000\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(100 << 20), 9)
# Its first piece can be decompressed.
BROKEN = gzip.compress(random.Random(0).randbytes(40_000))[:36_000] + b"\xff" * 30_000
SLOW = {
    "a byte of the body now and then": drip(HEAD + LENGTH, b"x"),
    "without a length": drip(HEAD + b"\r\n", b"x"),
    "in chunks": drip(HEAD + CHUNKED, b"1\r\nx\r\n"),
    "a byte of the head now and then": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers without end": drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "fast enough, but for ever": drip(HEAD + b"\r\n", b"x" * 1000),
}
BAD = {
    "more than a page": send(HEAD + CHUNKED, b"100000\r\n" + bytes(1 << 20) + b"\r\n", times=70),
    "a bomb": send(HEAD + b"Content-Encoding: gzip\r\n\r\n", BOMB),
    "a body that is gzip only at its start": send(
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 66000\r\n\r\n", BROKEN
    ),
    "bombs in each other": send(HEAD + b"Content-Encoding: gzip, gzip\r\n\r\n", gzip.compress(BOMB)),
    "an encoding that nobody asked for": send(HEAD + b"Content-Encoding: br\r\n\r\n", b"xxxx"),
    "less than announced": send(HEAD + LENGTH, b"x"),
    "no HTTP": send(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a negative chunk": send(HEAD + CHUNKED, b"-5\r\nxxxxx\r\n"),
    "ten thousand headers": send(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", times=10_000),
    "a huge header": send(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 100_000, b"\r\n\r\n"),
    "a redirect to no URL": send(b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n"),
    "a redirect to no host": send(
        b"HTTP/1.1 302 Found\r\nLocation: http://\xff\r\nContent-Length: 0\r\n\r\n"
    ),
    "a redirect to no port": send(b"HTTP/1.1 302 Found\r\nLocation: //h:99999/\r\nContent-Length: 0\r\n\r\n"),
    "a redirect to two hosts": send(
        b"HTTP/1.1 302 Found\r\nLocation: http://a.example\\@127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    ),
    "a date of no calendar": send(
        b"HTTP/1.1 429 Wait\r\nRetry-After: Mon, 99 Foo 99999 99:99:99\r\nContent-Length: 0\r\n\r\n"
    ),
}


def fetched(folder: Path, url: str) -> float:
    """Return the seconds until the page at *url* is refused."""
    started = time.monotonic()
    with pytest.raises(FetchFailed) as caught:
        fetcher_in(folder, IMPATIENT).get_page(url)
    assert caught.value.url.startswith("http://127.0.0.1")
    return time.monotonic() - started


@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_a_slow_server_is_given_up(tmp_path: Path, answer: Answer) -> None:
    with raw_server(answer) as url:
        assert fetched(tmp_path, url) < PATIENCE  # it sends for longer


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_a_bad_answer_is_refused(tmp_path: Path, answer: Answer) -> None:
    with raw_server(answer) as url:
        fetched(tmp_path, url)


def test_the_page_of_a_404_is_not_waited_for(tmp_path: Path) -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 50000\r\n\r\n"
    started = time.monotonic()
    with raw_server(drip(head, b"x")) as url:
        assert fetcher_in(tmp_path, PATIENT).get_page(url) is None
    assert time.monotonic() - started < PATIENCE  # it sends for longer


def test_bytes_beyond_the_announced_length_are_not_read(tmp_path: Path) -> None:
    with raw_server(send(HEAD + b"Content-Length: 4\r\n\r\n", b"page and more")) as url:
        page = fetcher_in(tmp_path, PATIENT).get_page(url)
    assert page is not None
    assert page.body == b"page"


FILES = {
    "an endless file": (send(HEAD + CHUNKED, b"10000\r\n" + bytes(1 << 16) + b"\r\n", times=60), 1000),
    "a slow file": (drip(HEAD + LENGTH, b"x"), None),
    "another file": (send(HEAD + b"Content-Length: 4\r\n\r\n", b"evil"), 4),
}


@pytest.mark.parametrize(("answer", "size"), FILES.values(), ids=FILES)
def test_a_file_that_does_not_end_or_fit_is_refused(tmp_path: Path, answer: Answer, size: int | None) -> None:
    fetcher = fetcher_in(tmp_path, IMPATIENT)
    with raw_server(answer) as url:
        file = Wanted(url=f"{url}demo-1.0-py3-none-any.whl", hashes={"sha256": "0" * 64}, size=size)
        with pytest.raises((FetchFailed, BadDistribution)):
            fetcher.download([file], tmp_path / "into")
    assert not list((tmp_path / "into").iterdir())


def test_a_range_that_is_larger_than_asked_for_is_refused(tmp_path: Path) -> None:
    head = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-9/10\r\n" + CHUNKED
    with raw_server(send(head, b"100000\r\n" + bytes(1 << 20) + b"\r\n", times=70)) as url:
        fetcher = fetcher_in(tmp_path, PATIENT)
        with pytest.raises(FetchFailed, match="too much for the part"):
            fetcher.get_range(url, 0, 10)


URLS = (
    *("http://[", "http://[::1", "http://h:99999999/", "http://h:x/", "http://\udc80/", "http://h\0/"),
    *(
        "http://" + "a." * 200,
        "http://" + "a" * 300 + "/",
        "http://ü\ud800/",
        "http://h/\r\nX: y",
        "http:///x",
    ),
    *("http://", "file://\0", "x" * 5000, "http://xn--a/", "ftp://h/x", "http://%/", "http://h/%zz"),
)


@pytest.mark.parametrize("url", URLS)
def test_an_invalid_url_is_refused(tmp_path: Path, url: str) -> None:
    fetcher: Fetcher = fetcher_in(tmp_path, {**IMPATIENT, "COLABLOCK_RETRIES": "0"})
    try:
        page = fetcher.get_page(url)
    except FetchFailed:
        return
    assert page is None
