"""A server on 127.0.0.1 for given pages."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from tests.support.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PageServer"]


class PageServer(Serving):
    """Serve *pages*, bytes by path.  Any other path is a 404."""

    def __init__(self, pages: Mapping[str, bytes]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                """Stay quiet."""

        super().__init__(Handler)
