"""Connections that look a host up once, and that end a response whose head takes too long.

A solve opens a connection in each of its threads at the same moment.  A lookup of each would be a burst of
packets, and the loss of one costs five seconds.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError
from urllib3.util.connection import allowed_gai_family

from colablock._common.once_map import OnceMap
from colablock.network.slow_servers import watched_head

__all__ = ["POOLS"]

_MINUTE = 60  # seconds for which an address is known
_ADDRESSES: OnceMap[tuple[str, int, int], list[str]] = OnceMap()


def _connected(connection: HTTPConnection, connect: Callable[[], socket.socket]) -> socket.socket:
    """Return the result of *connect* for the first address of the host that takes the connection."""
    host, port = connection._dns_host, connection.port  # noqa: SLF001 - what urllib3 looks up
    key = host, port, int(time.monotonic() // _MINUTE)
    try:
        addresses = _ADDRESSES.get(key, lambda: _looked_up(host, port))
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except UnicodeError:
        return connect()  # which names the part of the host at fault
    for number, address in enumerate(addresses, 1):
        connection._dns_host = address  # noqa: SLF001
        try:
            return connect()
        except HTTPError:
            if number == len(addresses):
                raise
        finally:
            connection._dns_host = host  # noqa: SLF001
    return connect()


def _looked_up(host: str, port: int) -> list[str]:
    """Return the addresses of *host* in the order of the system.  Raises OSError and UnicodeError."""
    found = socket.getaddrinfo(host.strip("[]"), port, allowed_gai_family(), socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self, super()._new_conn)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return watched_head(self, super().getresponse)  # type: ignore[return-value]


class _TlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self, super()._new_conn)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return watched_head(self, super().getresponse)  # type: ignore[return-value]


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


#: The pools of a pool manager, by scheme.
POOLS = {"http": _Pool, "https": _TlsPool}
