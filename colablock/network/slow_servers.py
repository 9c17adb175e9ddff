"""End the exchange with a server that sends too slowly.

The timeout of a socket starts anew with each byte, so a server that sends one now and
then would never be given up.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["POOLS", "watched"]

_WINDOWS = 2  # timeouts: an honest server that stalls runs into the timeout first
_LATE = "the head of the response takes too long"
_USUAL = 60.0  # seconds: the timeout of a connection that has none


@contextmanager
def watched(
    fileno: int, timeout: float, received: Callable[[], int], *, slowest: float, longest: float
) -> Iterator[threading.Event]:
    """Shut the socket *fileno* down during the block if it is too slow; the event then is set.

    That is so if *received* grows by less than *slowest* bytes per second over two
    timeouts, and after *longest* seconds.
    """
    done, late = threading.Event(), threading.Event()
    window = _WINDOWS * timeout

    def watch() -> None:
        before, left = received(), longest
        while not done.wait(min(window, left)):
            now = received()
            left -= window
            if now - before < slowest * window or left <= 0:
                late.set()
                _shut_down(fileno)
                return
            before = now

    watcher = threading.Thread(target=watch, daemon=True, name="colablock-slow-server")
    watcher.start()
    try:
        yield late
    finally:
        done.set()


def _shut_down(fileno: int) -> None:
    """Let every read of the socket end at once."""
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _head(
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


class _Connection(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return _head(self, super().getresponse)  # type: ignore[return-value]


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return _head(self, super().getresponse)  # type: ignore[return-value]


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


#: The pools of a pool manager, by scheme.
POOLS = {"http": _Pool, "https": _TlsPool}
