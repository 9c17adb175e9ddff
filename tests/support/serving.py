"""A server on 127.0.0.1 for the time of a block."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TypeVar

__all__ = ["Serving", "refusing"]

S = TypeVar("S", bound="Serving")


@contextmanager
def refusing() -> Iterator[str]:
    """Give the URL of a server that refuses every connection, on a port that no other server can get."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and it does not listen
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


class Serving:
    """Answer each request with *handler* in a thread of its own, on a free port.

    *server* is the class that listens, where the usual one does not do.
    """

    scheme = "http"

    def __init__(
        self,
        handler: type[BaseHTTPRequestHandler],
        *,
        server: type[ThreadingHTTPServer] = ThreadingHTTPServer,
    ) -> None:
        self._http = server(("127.0.0.1", 0), handler)
        self._end, self._told = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self: S) -> S:  # noqa: PYI019  # typing.Self came with 3.11
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()
        self._thread.join()
        self._http.server_close()
        self._told.close()

    def _serve(self) -> None:
        """Serve until the block ends, which `serve_forever` would see only at its next poll."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._http, selectors.EVENT_READ)
            selector.register(self._told, selectors.EVENT_READ)
            while not any(key.fileobj is self._told for key, _ in selector.select()):
                self._http._handle_request_noblock()  # type: ignore[attr-defined]

    @property
    def root(self) -> str:
        """The server's URL without a path."""
        return f"{self.scheme}://127.0.0.1:{self._http.server_address[1]}"
