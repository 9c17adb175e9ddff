"""HTTP exchanges with retries, redirects, proxies, credentials and mirrors.

Only this module and `http_errors` import urllib3.  They are imported at the
first request, so a plan from a lock does not pay for it.
"""

from __future__ import annotations

import email.utils
import http.client
import math
import re
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from colablock._common.limits import PAGE, SHOWN, SLOWEST
from colablock._common.urls import Mirrors, split_credentials
from colablock._records import dataclass
from colablock.errors import FetchFailed, InvalidInput
from colablock.network.auth import Credentials
from colablock.network.connections import POOLS
from colablock.network.http_errors import TEMPORARY, Route, is_final, no_answer, refusal
from colablock.network.slow_servers import watched
from colablock.network.tls import ssl_context

__all__ = ["HttpClient", "HttpResponse"]

T = TypeVar("T")
_RETRIES = 4
_REDIRECTS = 10
_LONGEST_WAIT = 60.0  # seconds: limit for Retry-After
_CHUNK = 1 << 18
_LONGEST_BODY = 10  # timeouts for a whole page: no honest index needs ten minutes for one
_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})  # those that are asked for
_LONGEST_REST = 1 << 16  # bytes that are read to keep a connection, such as the page of a 404
_REST_SECONDS = 1.0  # for these bytes, which usually are here already
_MOVED = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One response; its body is read at most once, through ``chunks`` or ``read``.

    *url* is canonical, after redirects, without credentials.  *base* is the URL
    that the body came from, which may be a mirror; relative links start there.
    """

    status: int
    headers: Mapping[str, str]
    url: str
    base: str
    chunks: Callable[[], Iterator[bytes]]

    def read(self, limit: int, what: str = "the page of an index") -> bytes:
        """Return the body.  Raises FetchFailed if it has more than *limit* bytes, too much for *what*."""
        parts, size = [], 0
        for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                much = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
                message = f"`{self.url}` sends more than {much}, too much for {what}"
                raise FetchFailed(message, url=self.url, hint="Check the URL of the index")
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The outcome of one request: *after* is the Retry-After in seconds, *value* is empty for a refusal."""

    status: int
    after: float | None = None
    value: tuple[object, ...] = ()


class HttpClient:
    """Sends requests.  May be used from several threads."""

    def __init__(
        self,
        environ: Mapping[str, str],
        mirrors: Mirrors,
        credentials: Credentials,
        *,
        connections: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._environ = environ
        self._mirrors = mirrors
        self._credentials = credentials
        self._sleep = sleep
        self._timeout = _number(environ, "COLABLOCK_TIMEOUT", 60.0, "seconds", least=0.001)
        self._attempts = 1 + int(_number(environ, "COLABLOCK_RETRIES", _RETRIES, "retries"))
        self._options: dict[str, object] = {
            "ssl_context": ssl_context(environ),
            "timeout": urllib3.Timeout(connect=min(15.0, self._timeout), read=self._timeout),
            "retries": False,  # done here: an incomplete body is retried, too
            "maxsize": connections,
        }
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self.received = 0

    def exchange(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        consume: Callable[[HttpResponse], T],
        *,
        raw: bool = False,
    ) -> T:
        """Send a GET for *url* and return the result of *consume* for the response.

        Both functions are called again after a broken connection, an incomplete
        body or a temporary status (429, 5xx).  ``Retry-After`` is respected.
        *consume* gets responses with status 2xx, 304, 404 and 416; any other
        status raises FetchFailed.  With *raw* the body is not decoded.
        """
        url = self._credentials.learn(url)
        for attempt in range(1, self._attempts + 1):
            route, wait = Route(url), min(0.25 * 2**attempt, 8.0)
            with self._retried(route, attempt):
                outcome = self._once(route, dict(headers()), consume, raw=raw)
                if outcome.value:
                    return outcome.value[0]  # type: ignore[return-value]
                if attempt == self._attempts or outcome.status not in TEMPORARY:
                    advice = self._credentials.advice(route.target)
                    raise refusal(route, outcome.status, advice=advice)
                wait = wait if outcome.after is None else min(outcome.after, _LONGEST_WAIT)
            self._sleep(wait)
        raise AssertionError  # unreachable: the last attempt returns or raises

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> HttpResponse:
        """Return the response to one request, whatever its status is, with its body read.

        Redirects are not followed, so that no other host gets *headers*, and no
        password is added.  A broken connection or a temporary status is retried.
        Raises FetchFailed if there is no response.
        """
        route = Route(url, target=url)
        for attempt in range(1, self._attempts + 1):
            with self._retried(route, attempt):
                response = self._request_once(route, method, dict(headers))
                try:
                    body = b"".join(_limited(self._chunks(response, url, raw=False), PAGE, url))
                finally:
                    response.close()
                    response.release_conn()
                if attempt == self._attempts or response.status not in TEMPORARY:
                    head = {name.lower(): value for name, value in response.headers.items()}
                    return HttpResponse(response.status, head, url, url, partial(iter, (body,)))
            self._sleep(min(0.25 * 2**attempt, 8.0))
        raise AssertionError  # unreachable: the last attempt returns or raises

    @contextmanager
    def _retried(self, route: Route, attempt: int) -> Iterator[None]:
        """Ignore a broken connection in the block.  Raises FetchFailed if another attempt is useless."""
        try:
            yield
        except HTTPError as error:
            if attempt == self._attempts or is_final(error):
                raise no_answer(
                    route, error, environ=self._environ, attempts=attempt, timeout=self._timeout
                ) from error

    def _once(
        self, route: Route, headers: dict[str, str], consume: Callable[[HttpResponse], T], *, raw: bool
    ) -> _Outcome:
        """Send one request and return the result of *consume*, or the refusal."""
        response = self._follow(route, headers)
        try:
            status = response.status
            usable = 200 <= status < 300 or status in {304, 404, 416}  # noqa: PLR2004 - HTTP says so
            if not usable:
                _read_rest(response)
                return _Outcome(status, _seconds(response.headers.get("Retry-After")))
            head = {name.lower(): value for name, value in response.headers.items()}
            canonical = self._mirrors.to_canonical(route.at, route.asked)
            answer = HttpResponse(
                status, head, canonical, route.target, lambda: self._chunks(response, route.url, raw=raw)
            )
            found = consume(answer)
            _read_rest(response)
            return _Outcome(status, value=(found,))
        finally:
            response.close()
            response.release_conn()

    def _follow(self, route: Route, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Follow redirects and return the last response; *route* is updated on the way."""
        route.at = route.asked
        for route.hops in range(_REDIRECTS):
            route.target = self._credentials.learn(self._mirrors.to_mirror(route.at))
            response = self._request(route, headers)
            location = response.headers.get("Location")
            if response.status not in _MOVED or not location:
                return response
            _read_rest(response)
            response.close()
            response.release_conn()
            further = self._credentials.learn(_joined(route, location))
            if urlsplit(further).scheme not in {"http", "https"}:
                message = f"`{route.url}` redirects to an address that is neither http nor https"
                hint = "Use another index, or ask the operator of this one to correct the redirect"
                raise FetchFailed(message, url=route.url, hint=hint)
            if urlsplit(route.target).scheme == "https" and urlsplit(further).scheme != "https":
                message = (
                    f"`{route.url}` redirects to an unencrypted address at `{urlsplit(further).hostname}`"
                )
                hint = "Use another index, or ask the operator of this one to correct the redirect"
                raise FetchFailed(message, url=route.url, hint=hint)
            route.at = self._mirrors.to_canonical(further, route.asked)
        message = f"`{route.url}` redirects more than {_REDIRECTS} times"
        raise FetchFailed(message, url=route.url, hint="Check the URL of the index: it redirects in a loop")

    def _request(self, route: Route, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send one request; if it is refused, send it again with credentials of the keyring."""
        pair = self._credentials.find(route.target)
        response = self._send(route, headers, pair)
        if response.status in {401, 403} and self._credentials.find_others(route.target, pair):
            response.close()
            response.release_conn()
            return self._send(route, headers, self._credentials.find(route.target))
        return response

    def _send(
        self, route: Route, headers: dict[str, str], pair: tuple[str, str] | None
    ) -> urllib3.BaseHTTPResponse:
        own = {"Authorization": _basic(*pair)} if pair is not None else {}
        return self._request_once(route, "GET", {**headers, **own})

    def _request_once(self, route: Route, method: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send one request.  Raises HTTPError, and FetchFailed for a URL or a response that is not HTTP."""
        url = self._credentials.with_query(route.target)
        _check_host(route, url)
        try:
            return self._pool(route).request(
                method,
                url,
                headers=headers,
                preload_content=False,
                redirect=False,
            )
        except HTTPError:
            raise
        except (ValueError, http.client.HTTPException) as error:  # UnicodeError among them
            raise FetchFailed(f"`{route.url}` cannot be fetched: {error}", url=route.url) from error

    def _chunks(self, response: urllib3.BaseHTTPResponse, url: str, *, raw: bool) -> Iterator[bytes]:
        """Yield the body in pieces.  Raises FetchFailed if it is too slow or has another encoding."""
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if not raw and encoding not in _ENCODINGS:
            raise FetchFailed(f"`{url}` sent a body in the encoding `{encoding[:SHOWN]}`", url=url)
        received = 0
        try:
            fileno = response.fileno()
        except OSError:  # a response without a body is closed already
            yield from response.stream(_CHUNK, decode_content=not raw)
            return
        longest = math.inf if raw else _LONGEST_BODY * self._timeout
        with watched(fileno, self._timeout, lambda: received, slowest=SLOWEST, longest=longest) as late:
            try:
                # A small piece may be a thousand times larger when it is decompressed.
                for chunk in response.stream(_CHUNK if raw else _CHUNK >> 3, decode_content=not raw):
                    received += len(chunk)
                    with self._lock:
                        self.received += len(chunk)
                    yield chunk
            except (HTTPError, OSError, ValueError, http.client.HTTPException) as error:
                if late.is_set():
                    raise _too_slow(url) from error
                if isinstance(error, (HTTPError, OSError)):
                    raise
                raise FetchFailed(f"`{url}` sent a body that is not HTTP: {error}", url=url) from error
            if late.is_set():
                raise _too_slow(url)

    def _pool(self, route: Route) -> urllib3.PoolManager:
        proxy, variable = _proxy(route.target, self._environ)
        plain, credentials = split_credentials(proxy if "://" in proxy or not proxy else f"http://{proxy}")
        route.proxy = (plain, variable)
        with self._lock:
            pool = self._pools.get(proxy)
            if pool is None:
                pool = self._pools[proxy] = self._new_pool(route, credentials)
            return pool

    def _new_pool(self, route: Route, credentials: tuple[str, str] | None) -> urllib3.PoolManager:
        options: dict[str, object] = self._options
        proxy, variable = route.proxy
        if not proxy:
            return _timed(urllib3.PoolManager(**options))  # type: ignore[arg-type]
        if urlsplit(proxy).scheme not in {"http", "https"}:
            message = f"the proxy `{proxy}` is not an HTTP proxy"
            hint = f"Set {variable} to an http:// or https:// proxy"
            raise FetchFailed(message, url=route.url, hint=hint)
        headers = {"Proxy-Authorization": _basic(*map(unquote, credentials))} if credentials else None
        return _timed(urllib3.ProxyManager(proxy, proxy_headers=headers, **options))  # type: ignore[arg-type]


def _read_rest(response: urllib3.BaseHTTPResponse) -> None:
    """Read what is left of a body that nobody has read, so that other requests can use its connection.

    That is not worth waiting for, or much of it.
    """
    left = response.length_remaining if response.connection is not None else None
    if left is None or left > _LONGEST_REST:
        return
    with (
        suppress(HTTPError, OSError, ValueError, http.client.HTTPException),  # the response has been judged
        watched(response.fileno(), _LONGEST_WAIT, lambda: 0, slowest=0.0, longest=_REST_SECONDS),
    ):
        for _ in response.stream(_CHUNK, decode_content=False):
            pass


def _timed(pools: urllib3.PoolManager) -> urllib3.PoolManager:
    """Return *pools*, whose connections end a response whose head takes too long."""
    pools.pool_classes_by_scheme = POOLS
    return pools


def _joined(route: Route, location: str) -> str:
    """Return the URL of a redirect.  Raises FetchFailed if it is invalid."""
    try:
        further = urljoin(route.target, location)
        split_credentials(further)
    except (ValueError, FetchFailed) as error:
        message = f"`{route.url}` redirects to an invalid URL: {error}"
        raise FetchFailed(message, url=route.url) from error
    return further


def _place(url: str) -> tuple[str, str | None, int | None] | None:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return None
    return parts.scheme, parts.hostname, port


def _check_host(route: Route, url: str) -> None:
    """Raise FetchFailed if urllib3 would send the request for *url* to another host than `urlsplit` finds.

    What a URL may name is decided by the host that `urlsplit` finds: sources, credentials, proxies.
    """
    try:
        found = urllib3.util.parse_url(url)
    except HTTPError:
        return  # nothing is sent to an invalid URL
    host = (found.host or "").strip("[]").lower() or None
    if (found.scheme, host, found.port) != _place(url):
        message = f"`{route.url}` is not a valid URL: it is not clear which host it names"
        raise FetchFailed(message, url=route.url)


def _limited(chunks: Iterator[bytes], limit: int, url: str) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise FetchFailed(f"`{url}` sends more than {limit >> 20} MiB", url=url)
        yield chunk


def _too_slow(url: str) -> FetchFailed:
    message = f"`{url}` sends its body too slowly"
    hint = "Try again later, use a mirror, or raise the limit with COLABLOCK_TIMEOUT (in seconds)"
    return FetchFailed(message, url=url, hint=hint, is_passing=True)


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def _number(
    environ: Mapping[str, str], variable: str, default: float, what: str, *, least: float = 0.0
) -> float:
    """Return the number in *variable*.  Raises InvalidInput for an invalid one."""
    text = environ.get(variable)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        message = f"`{text}` in {variable} is not a number of {what}"
        raise InvalidInput(message, hint=f"Write for example `{default:g}`, or unset it")
    return number


def _proxy(url: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the proxy for *url* and the variable that names it.  Lower-case variables win, as in curl."""
    parts = urlsplit(url)
    named = {}
    for key in (parts.scheme, "all", "no"):
        spelled = (f"{key}_proxy", f"{key}_proxy".upper())
        named[key] = next(((environ[name], name) for name in spelled if environ.get(name)), ("", ""))
    excepted = {"no": named["no"][0]} if named["no"][0] else {}
    if excepted and urllib.request.proxy_bypass_environment(parts.netloc, excepted):  # type: ignore[attr-defined]
        return "", ""
    return named[parts.scheme] if named[parts.scheme][0] else named["all"]


def _seconds(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number of seconds or a date."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]+", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError, OSError):  # not a date, or one of no calendar
        return None
