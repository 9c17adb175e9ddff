"""The wire: HTTP exchanges with retries, redirects, proxies, credentials and mirrors.

Nothing else imports urllib3, and this module is imported at the first
request: a plan with a lock at hand never pays for it.
"""

from __future__ import annotations

import email.utils
import math
import netrc
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)

from colablock.errors import FetchFailed, InvalidInput
from colablock.urls import Mirrors, redacted, split_credentials

__all__ = ["Answer", "Wire"]

T = TypeVar("T")
_ATTEMPTS = 5
_REDIRECTS = 10
_LONGEST_WAIT = 60.0  # seconds: what a Retry-After may ask of somebody who looks on
_CHUNK = 1 << 18
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; its body is read at most once, through ``chunks`` or ``read``."""

    status: int
    headers: Mapping[str, str]
    url: str  # canonical, after redirects, without credentials
    chunks: Callable[[], Iterator[bytes]]

    def read(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.chunks())


class Wire:
    """Sends GET requests; may be used from several threads."""

    def __init__(
        self,
        environ: Mapping[str, str],
        mirrors: Mirrors,
        *,
        connections: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._environ = environ
        self._mirrors = mirrors
        self._sleep = sleep
        self._options: dict[str, object] = {
            "ssl_context": _ssl_context(environ),
            "timeout": urllib3.Timeout(connect=15, read=_timeout(environ)),
            "retries": False,  # both are done here: a cut body has to be retried too
            "maxsize": connections,
        }
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._credentials: dict[str, str] = {}
        self._netrc = _netrc(environ)
        self._lock = threading.Lock()
        self.received = 0

    def exchange(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        consume: Callable[[Answer], T],
        *,
        raw: bool = False,
    ) -> T:
        """Return what *consume* makes of the answer to a GET of *url*.

        Both functions are called anew after a broken connection, a cut body
        or a status that passes (429, 5xx); a ``Retry-After`` is waited for.
        Any other status than 2xx, 304, 404 and 416 raises FetchFailed;
        *consume* judges those.  *raw*: the body as sent, without decoding.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            wait = min(0.25 * 2**attempt, 8.0)
            try:
                status, after, value = self._once(url, dict(headers()), consume, raw=raw)
            except HTTPError as error:
                if attempt == _ATTEMPTS or _is_final(error):
                    raise _no_answer(url, error) from error
            else:
                if value is not None:
                    return value[0]
                if attempt == _ATTEMPTS or status not in _PASSING:
                    raise _refusal(url, status)
                wait = min(after, _LONGEST_WAIT) if after is not None else wait
            self._sleep(wait)
        raise AssertionError  # the last attempt returns or raises

    def _once(
        self, url: str, headers: dict[str, str], consume: Callable[[Answer], T], *, raw: bool
    ) -> tuple[int, float | None, tuple[T] | None]:
        """Return the status, the seconds that the server asks to wait, and what was made of the answer."""
        response, at = self._follow(url, headers)
        try:
            status = response.status
            usable = 200 <= status < 300 or status in {304, 404, 416}  # noqa: PLR2004 - HTTP says so
            if not usable:
                return status, _seconds(response.headers.get("Retry-After")), None
            head = {name.lower(): value for name, value in response.headers.items()}
            return status, None, (consume(Answer(status, head, at, lambda: self._chunks(response, raw=raw))),)
        finally:
            response.close()  # a body that nobody wanted is not drained
            response.release_conn()

    def _follow(self, url: str, headers: dict[str, str]) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Return the response after redirects, and the canonical URL that gave it."""
        at = self._learnt(url)
        for _ in range(_REDIRECTS):
            target = self._learnt(self._mirrors.to_wire(at))
            response = self._pool(target).request(
                "GET",
                target,
                headers={**headers, **self._authorization(target)},
                preload_content=False,
                redirect=False,
            )
            location = response.headers.get("Location")
            if response.status not in _MOVED or not location:
                return response, self._mirrors.to_canonical(at)
            response.close()
            response.release_conn()
            further = urljoin(target, location)
            if urlsplit(target).scheme == "https" and urlsplit(further).scheme != "https":
                raise FetchFailed(f"`{redacted(url)}` redirects to an unencrypted address", url=redacted(url))
            at = self._learnt(self._mirrors.to_canonical(further))
        raise FetchFailed(f"`{redacted(url)}` redirects more than {_REDIRECTS} times", url=redacted(url))

    def _chunks(self, response: urllib3.BaseHTTPResponse, *, raw: bool) -> Iterator[bytes]:
        for chunk in response.stream(_CHUNK, decode_content=not raw):
            with self._lock:
                self.received += len(chunk)
            yield chunk

    def _learnt(self, url: str) -> str:
        """Return *url* without its credentials, which are kept for its host."""
        plain, credentials = split_credentials(url)
        if credentials is not None:
            user, password = (unquote(part) for part in credentials)
            with self._lock:
                self._credentials[_origin(plain)] = f"{user}:{password}"
        return plain

    def learn(self, url: str) -> None:
        """Use the credentials that stand in *url* for its host from now on."""
        self._learnt(url)

    def _authorization(self, url: str) -> dict[str, str]:
        pair = self._credentials.get(_origin(url))
        if pair is None and self._netrc is not None:
            known = self._netrc.authenticators(urlsplit(url).hostname or "")
            pair = f"{known[0]}:{known[2]}" if known else None
        return urllib3.make_headers(basic_auth=pair) if pair is not None else {}

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy(url, self._environ)
        with self._lock:
            pool = self._pools.get(proxy)
            if pool is None:
                pool = self._pools[proxy] = self._new_pool(url, proxy)
            return pool

    def _new_pool(self, url: str, proxy: str) -> urllib3.PoolManager:
        options: dict[str, object] = self._options
        if not proxy:
            return urllib3.PoolManager(**options)  # type: ignore[arg-type]
        plain, credentials = split_credentials(proxy if "://" in proxy else f"http://{proxy}")
        if urlsplit(plain).scheme not in {"http", "https"}:
            message = f"the proxy `{plain}` is not an HTTP one"
            raise FetchFailed(
                message, url=redacted(url), hint="set HTTPS_PROXY to an http:// or https:// proxy"
            )
        pair = ":".join(unquote(part) for part in credentials) if credentials else None
        headers = urllib3.make_headers(proxy_basic_auth=pair) if pair else None
        return urllib3.ProxyManager(plain, proxy_headers=headers, **options)  # type: ignore[arg-type]


def _ssl_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts SSL_CERT_FILE and SSL_CERT_DIR, or else what the system trusts."""
    file, folder = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    file = file if file and Path(file).is_file() else None
    folder = folder if folder and Path(folder).is_dir() else None
    context = ssl.create_default_context(cafile=file, capath=folder)
    if environ.get("SSL_CLIENT_CERT"):
        context.load_cert_chain(environ["SSL_CLIENT_CERT"])
    return context


def _timeout(environ: Mapping[str, str]) -> float:
    text = environ.get("COLABLOCK_TIMEOUT") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        message = f"`{text}` in COLABLOCK_TIMEOUT is no number of seconds"
        raise InvalidInput(message, hint="Write it as `60`, or leave it out")
    return seconds


def _netrc(environ: Mapping[str, str]) -> netrc.netrc | None:
    named = environ.get("NETRC")
    path = Path(named) if named else Path(environ.get("HOME") or "/nonexistent") / ".netrc"
    try:
        return netrc.netrc(str(path)) if path.is_file() else None
    except (OSError, netrc.NetrcParseError):
        return None


def _proxy(url: str, environ: Mapping[str, str]) -> str:
    """Return the proxy for *url*, "" for none; names in lower case win, as everywhere."""
    parts = urlsplit(url)
    named = {
        key: environ.get(f"{key}_proxy") or environ.get(f"{key}_proxy".upper()) or ""
        for key in (parts.scheme, "all", "no")
    }
    excepted = {"no": named["no"]} if named["no"] else {}
    if excepted and urllib.request.proxy_bypass_environment(parts.netloc, excepted):  # type: ignore[attr-defined]
        return ""
    return named[parts.scheme] or named["all"]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _seconds(value: str | None) -> float | None:
    """Return what a Retry-After header asks for: seconds, or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_final(error: HTTPError) -> bool:
    """Whether asking again cannot help: an untrusted certificate, a URL that is none."""
    reason = error.reason if isinstance(error, MaxRetryError) else error
    untrusted = isinstance(reason, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(reason)
    return untrusted or isinstance(reason, LocationValueError)


def _no_answer(url: str, error: HTTPError) -> FetchFailed:
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    host = urlsplit(url).hostname
    if isinstance(reason, SSLError):
        hint = "set SSL_CERT_FILE to the certificates to trust" if _is_final(error) else None
        return FetchFailed(f"`{host}` cannot be trusted: {_plain(reason)}", url=redacted(url), hint=hint)
    if isinstance(reason, LocationValueError):
        return FetchFailed(f"`{redacted(url)}` cannot be fetched: {reason}", url=redacted(url))
    if isinstance(reason, NameResolutionError):
        hint = "check the network, and HTTPS_PROXY where there is a proxy"
        return FetchFailed(f"the host `{host}` is not known here", url=redacted(url), hint=hint)
    if isinstance(reason, NewConnectionError):
        hint = "check the network, and HTTPS_PROXY where there is a proxy"
        return FetchFailed(f"no connection to `{host}`: {_plain(reason)}", url=redacted(url), hint=hint)
    what = f"`{redacted(url)}` could not be read whole in {_ATTEMPTS} attempts: {_plain(reason)}"
    return FetchFailed(what, url=redacted(url))


def _plain(error: BaseException) -> str:
    """Return what an error of urllib3 says, without the object that it names first."""
    text = str(error.args[-1] if error.args else error)
    return text.rpartition("object at 0x")[2].partition(": ")[2] if "object at 0x" in text else text


def _refusal(url: str, status: int) -> FetchFailed:
    try:
        phrase = f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = str(status)
    hint = None
    if status in {401, 403}:
        hint = f"give a user and password for `{urlsplit(url).hostname}` in the URL of the index or in netrc"
    elif status == 407:  # noqa: PLR2004 - HTTP says so
        hint = "give a user and password in the URL of the proxy"
    return FetchFailed(f"`{redacted(url)}` answered {phrase}", url=redacted(url), status=status, hint=hint)
