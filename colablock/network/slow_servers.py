"""End the exchange with a server that sends too slowly.

The timeout of a socket starts anew with each byte, so a server that sends one now and
then would never be given up.
"""

from __future__ import annotations

import http.client
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import urllib3
from urllib3.connection import HTTPConnection

__all__ = ["watched", "watched_head"]

_WINDOWS = 2  # timeouts: an honest server that stalls runs into the timeout first
_LATE = "the head of the response takes too long"
_USUAL = 60.0  # seconds: the timeout of a connection that has none


@dataclass(slots=True, eq=False)
class _Exchange:
    """One exchange that is watched: at the moment *due* at least *least* more bytes must have arrived."""

    fileno: int
    received: Callable[[], int]
    window: float  # seconds
    least: float
    before: int
    due: float
    end: float  # the moment at which it is too late in any case
    late: threading.Event

    def look(self, now: float) -> None:
        """Shut the socket down if it is too slow."""
        received = self.received()
        if received - self.before < self.least or now >= self.end:
            self.late.set()
            _shut_down(self.fileno)
            self.due = math.inf
        else:
            self.before, self.due = received, min(now + self.window, self.end)


class _Watcher:
    """Looks at all exchanges from one thread: a solve has hundreds, and a thread of each would slow it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exchanges: set[_Exchange] = set()
        self._sleeps_until = math.inf
        self._thread: threading.Thread | None = None

    def add(self, exchange: _Exchange) -> None:
        with self._changed:
            self._exchanges.add(exchange)
            if self._thread is None or not self._thread.is_alive():  # none is after a fork
                self._sleeps_until = math.inf
                self._thread = threading.Thread(target=self._watch, daemon=True, name="colablock-slow-server")
                self._thread.start()
            if exchange.due < self._sleeps_until:
                self._changed.notify()

    def remove(self, exchange: _Exchange) -> None:
        with self._changed:
            self._exchanges.discard(exchange)

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for one in self._exchanges:
                    if one.due <= now:
                        one.look(now)
                self._sleeps_until = min((one.due for one in self._exchanges), default=math.inf)
                is_idle = self._sleeps_until == math.inf
                self._changed.wait(None if is_idle else self._sleeps_until - now)


_WATCHER = _Watcher()


@contextmanager
def watched(
    fileno: int, timeout: float, received: Callable[[], int], *, slowest: float, longest: float
) -> Iterator[threading.Event]:
    """Shut the socket *fileno* down during the block if it is too slow; the event then is set.

    That is so if *received* grows by less than *slowest* bytes per second over two
    timeouts, and after *longest* seconds.
    """
    window, now = _WINDOWS * timeout, time.monotonic()
    exchange = _Exchange(
        fileno=fileno,
        received=received,
        window=window,
        least=slowest * window,
        before=received(),
        due=now + min(window, longest),
        end=now + longest,
        late=threading.Event(),
    )
    _WATCHER.add(exchange)
    try:
        yield exchange.late
    finally:
        _WATCHER.remove(exchange)


def _shut_down(fileno: int) -> None:
    """Let every read of the socket end at once."""
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def watched_head(
    connection: HTTPConnection, read: Callable[[], urllib3.BaseHTTPResponse]
) -> urllib3.BaseHTTPResponse:
    """Return the response of *read*.  Raises TimeoutError if its head takes longer than two timeouts."""
    timeout = connection.timeout if isinstance(connection.timeout, (int, float)) else _USUAL
    if connection.sock is None:
        return read()
    fileno = connection.sock.fileno()
    with watched(fileno, timeout, lambda: 0, slowest=1.0, longest=_WINDOWS * timeout) as late:
        try:
            response = read()
        except (OSError, http.client.HTTPException) as error:
            if late.is_set():
                raise TimeoutError(_LATE) from error
            raise
        if late.is_set():  # the head ends where the connection does
            response.close()
            raise TimeoutError(_LATE)
        return response
