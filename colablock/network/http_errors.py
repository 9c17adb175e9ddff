"""Map urllib3 errors and HTTP statuses to FetchFailed."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    IncompleteRead,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
    TimeoutError,  # noqa: A004 - urllib3's own
)

from colablock._common.urls import redacted
from colablock.errors import FetchFailed
from colablock.network.tls import trust_advice

__all__ = ["Route", "is_final", "no_answer", "refusal"]

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Statuses with which a firewall, a proxy or the host of an index refuses a network or a region.
FORBIDDEN = frozenset({403, 407, 451})
_NO_TLS = frozenset({"HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"})
_LATER = "Try again later"
_NETWORK = "Check the network connection, and HTTPS_PROXY if you use a proxy"


@dataclass(slots=True)
class Route:
    """The URLs of one exchange: the requested one, and those after mirrors and redirects.

    *at* is the canonical URL, *target* the one that the request goes to; neither
    has credentials.  *proxy* is the proxy and the variable that names it, both
    "" without a proxy.
    """

    asked: str
    at: str = ""
    target: str = ""
    hops: int = 0
    proxy: tuple[str, str] = ("", "")

    @property
    def url(self) -> str:
        """The requested URL, without credentials."""
        return redacted(self.asked)

    @property
    def host(self) -> str:
        """The host of the request as text, with the original one if it is a mirror or a redirect target."""
        host, asked = urlsplit(self.target).hostname, urlsplit(self.asked).hostname
        if host == asked or not host:
            return f"`{asked}`"
        return f"`{host}` (`{asked}` redirects there)" if self.hops else f"`{host}` (the mirror of `{asked}`)"


def is_final(error: HTTPError) -> bool:
    """Return whether a retry is useless: an untrusted certificate, an invalid URL, a proxy that refuses."""
    reason = _reason(error)
    if isinstance(reason, ProxyError):
        return " 407 " in f"{reason.original_error} "
    if isinstance(reason, SSLError):
        return isinstance(_cause(reason), ssl.SSLCertVerificationError) or _has_no_tls(reason)
    return isinstance(reason, LocationValueError)


def no_answer(
    route: Route, error: HTTPError, *, environ: Mapping[str, str], attempts: int, timeout: float
) -> FetchFailed:
    """Return the error for *route* after *error* in the last of *attempts* attempts."""
    message, hint = _message(route, _reason(error), environ=environ, attempts=attempts, timeout=timeout)
    passing = not is_final(error)
    blocked = not passing and not isinstance(_reason(error), LocationValueError)
    return FetchFailed(message, url=route.url, hint=hint, is_passing=passing, is_blocked=blocked)


def _message(
    route: Route, reason: BaseException, *, environ: Mapping[str, str], attempts: int, timeout: float
) -> tuple[str, str | None]:
    times = f", {attempts} times" if attempts > 1 else ""
    why = _plain(reason)
    if isinstance(reason, ProxyError):
        return _proxy_message(route, reason)
    if isinstance(reason, LocationValueError):
        return f"`{route.url}` cannot be fetched: {reason}", None
    if isinstance(reason, SSLError):
        return _tls_message(route, reason, environ)
    if isinstance(reason, NameResolutionError):
        return f"the host {route.host} cannot be resolved", _NETWORK
    if isinstance(reason, NewConnectionError):
        return f"no connection to {route.host}: {why}", _NETWORK
    if isinstance(reason, ConnectTimeoutError):
        return f"no connection to {route.host} within a few seconds{times}", _NETWORK
    if isinstance(reason, TimeoutError):
        more = "Try again later, or raise the limit with COLABLOCK_TIMEOUT (in seconds)"
        return f"`{route.url}` sent nothing for {timeout:g} seconds{times}", more
    if isinstance(reason, DecodeError):
        return f"`{route.url}` sent a body that cannot be decompressed{times}: {why}", _LATER
    tries = f" in {attempts} attempts" if attempts > 1 else ""
    return f"the response of `{route.url}` was incomplete{tries}: {why}", _LATER


def _proxy_message(route: Route, reason: ProxyError) -> tuple[str, str]:
    proxy, variable = route.proxy
    host = urlsplit(route.target).hostname
    inner = reason.original_error
    if " 407 " in f"{inner} ":
        return _wants_password(proxy, variable)
    message = f"the proxy `{proxy}` does not connect to `{host}`: {_plain(inner)}"
    return message, f"Correct {variable}, or add `{host}` to NO_PROXY"


def _wants_password(proxy: str, variable: str) -> tuple[str, str]:
    message = f"the proxy `{proxy}` requires a user and password (407)"
    scheme, _, rest = proxy.rpartition("://")
    return message, f"Give them in {variable}, as `{scheme or 'http'}://USER:PASSWORD@{rest}`"


def _tls_message(route: Route, reason: SSLError, environ: Mapping[str, str]) -> tuple[str, str | None]:
    cause = _cause(reason)
    if _has_no_tls(reason):
        message = f"no encrypted connection to {route.host}: the server does not use TLS"
        return message, "Use a URL with `http://` if the server has no encryption"
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return f"no encrypted connection to {route.host}: {_plain(reason)}", _NETWORK
    why = cause.verify_message.rstrip(".").replace("self signed", "self-signed")
    message = f"the certificate of {route.host} is not trusted: {why}"
    if "mismatch" in why:
        return message, "Use a host name that the certificate contains"
    return message, trust_advice(environ)


def _cause(reason: SSLError) -> object:
    return reason.args[0] if reason.args else reason


def _has_no_tls(reason: SSLError) -> bool:
    return getattr(_cause(reason), "reason", "") in _NO_TLS


def refusal(route: Route, status: int, *, advice: str) -> FetchFailed:
    """Return the error for the *status* of a response; *advice* is the hint about credentials."""
    try:
        phrase = f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = str(status)
    message, hint = f"`{route.url}` answered {phrase}", None
    if route.hops:
        message = f"`{route.url}` redirects to `{urlsplit(route.target).hostname}`, which answered {phrase}"
    if status in {401, 403}:
        hint = advice
    elif status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED and route.proxy[0]:
        message, hint = _wants_password(*route.proxy)
    elif status in TEMPORARY:
        hint = _LATER
    return FetchFailed(
        message,
        url=route.url,
        status=status,
        hint=hint,
        is_passing=status in TEMPORARY,
        is_blocked=status in FORBIDDEN,
    )


def _reason(error: HTTPError) -> BaseException:
    return error.reason if isinstance(error, MaxRetryError) and error.reason else error


def _plain(error: BaseException) -> str:
    """Return the message of an error without the object and errno that urllib3 puts before it."""
    last = error.args[-1] if error.args else error
    if isinstance(last, IncompleteRead):
        return f"the body ended after {last.partial} of {last.partial + (last.expected or 0)} bytes"
    return re.sub(r"^.*(\[Errno -?[0-9]+\] |object at 0x[0-9a-f]+>: )", "", str(last))
