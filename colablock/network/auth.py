"""Credentials for a host: from a URL, from netrc and, if enabled, from the keyring."""

from __future__ import annotations

import netrc
import threading
from collections.abc import Mapping
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from colablock._common.child_environment import Purpose, child_environment
from colablock._common.process import ChildFailed, find_program, run_child
from colablock._common.urls import Url, split_credentials

__all__ = ["Credentials"]

Pair: TypeAlias = tuple[str, str]

_KEYRING_SECONDS = 60.0  # limit for a keyring that opens a dialog


class Credentials:
    """The credentials for each host.  May be used from several threads.

    Credentials in a URL of the host come first, then netrc, then the keyring.
    If several URLs of a host have credentials, the one with the longest common
    path is used.  The keyring command runs without a terminal, at most once per
    index and user, and only if a host refuses a request or its URL has a user
    without a password.
    """

    def __init__(self, environ: Mapping[str, str], *, keyring: bool = False) -> None:
        self._environ = environ
        self._keyring = keyring
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Pair | None]] = {}
        self._answers: dict[tuple[str, str | None], Pair | None] = {}
        self._refusing: set[str] = set()
        self._own: set[str] = set()  # origins of the indexes and mirrors that the user names
        self._queries: dict[str, str] = {}
        self._fault = ""

    def learn(self, url: str, *, is_index: bool = False) -> str:
        """Return *url* without user and password, and use those for its host from now on.

        The URL of an index is recorded even without credentials: the keyring is
        queried for it.
        """
        plain, found = split_credentials(url)
        self._learn_query(plain, url)
        pair = (unquote(found[0]), unquote(found[1])) if found is not None else None
        if is_index:
            self._own.add(_origin(plain))
        if is_index or (pair is not None and self._from_urls(plain) != pair):
            with self._lock:
                known = self._known.setdefault(_origin(plain), {})
                path = urlsplit(plain).path
                known[path] = pair or known.get(path)
        return plain

    def with_query(self, url: str) -> str:
        """Return *url*, which has no credentials, with the secret parameters that a URL gave for it."""
        return self._queries.get(url.partition("#")[0], url) if self._queries else url

    def with_credentials(self, url: str) -> str:
        """Return *url*, which has no credentials, with those known for it."""
        pair, whole = self.find(url), self.with_query(url)
        if pair is None:
            return whole
        parts = urlsplit(whole)
        user = ":".join(quote(one, safe="") for one in pair)
        return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc}"))

    def _learn_query(self, plain: str, url: str) -> None:
        """Record the secret parameters of *url*, whose text without credentials is *plain*."""
        parts = urlsplit(Url(url).with_credentials())
        bare = plain.partition("#")[0]
        if parts.query and parts.query != urlsplit(bare).query:
            netloc = parts.netloc.rpartition("@")[2]
            with self._lock:
                self._queries[bare] = urlunsplit(parts._replace(netloc=netloc, fragment=""))

    def find(self, url: str) -> Pair | None:
        """Return user and password for *url*, or None if there are none."""
        pair = self._from_urls(url)
        if pair is not None and (pair[1] or not self._keyring):
            return pair
        if not self._is_trusted(url):
            return pair
        if pair is None:
            pair = self._from_netrc(url)
            if pair is not None:
                return pair
        if self._keyring and (pair is not None or _origin(url) in self._refusing):
            return self._from_keyring(url, pair[0] if pair else None) or pair
        return pair

    def find_others(self, url: str, sent: Pair | None) -> bool:
        """Return whether there are other credentials to try after *url* was refused with *sent*."""
        if not self._keyring:
            return False
        self._refusing.add(_origin(url))
        return self.find(url) != sent

    def advice(self, url: str) -> str:
        """Return the hint for a refused request of *url*."""
        host = urlsplit(url).hostname
        if self.find(url) is not None:
            return f"Correct the user and password for `{host}`: the server does not accept them"
        text = f"Give a user and password for `{host}` in the URL of the index or in netrc{self._fault}"
        if not self._is_trusted(url) and self._from_netrc(url):
            return f"{text}: netrc is not used for `{_origin(url)}`, which is not an address of your indexes"
        if not self._keyring:
            return f"{text}, or query the keyring with `COLABLOCK_KEYRING_PROVIDER=subprocess`"
        if self._command is None:
            return f"{text}, or install `keyring`: it is enabled, but there is no such command"
        return f"{text}, or add them to the keyring: it has none for this host"

    def _is_trusted(self, url: str) -> bool:
        """Return whether *url* may get a password of netrc or of the keyring, which know hosts only.

        It may with https on the usual port, and at the addresses that the user names.  A link or a
        redirect to another port, or to http, gets none.
        """
        parts = urlsplit(url)
        return (parts.scheme == "https" and parts.port in {None, 443}) or _origin(url) in self._own

    def _from_urls(self, url: str) -> Pair | None:
        """Return the credentials in a URL of the same host, the one that shares most of its path."""
        path = urlsplit(url).path
        with self._lock:
            known = [(at, pair) for at, pair in self._known.get(_origin(url), {}).items() if pair]
        return max(known, key=lambda item: _common_parts(item[0], path), default=("", None))[1]

    def _from_netrc(self, url: str) -> Pair | None:
        known = self._netrc.authenticators(urlsplit(url).hostname or "") if self._netrc else None
        return (known[0], known[2] or "") if known else None

    def _from_keyring(self, url: str, user: str | None) -> Pair | None:
        """Return the keyring's entry for the index that *url* belongs to, or else for its host."""
        origin, path = _origin(url), urlsplit(url).path
        with self._lock:
            index = origin + max(
                self._known.get(origin, {}), key=lambda at: _common_parts(at, path), default="/"
            )
            key = (index, user)
            if key not in self._answers:
                services = (index, urlsplit(url).netloc)
                found = (self._ask_keyring(one, user) for one in services if not one.startswith("-"))
                self._answers[key] = next((pair for pair in found if pair is not None), None)
            return self._answers[key]

    def _ask_keyring(self, service: str, user: str | None) -> Pair | None:
        """Return the answer of ``keyring get``, in one of the two forms that pip and uv use."""
        if self._command is None:
            return None
        question = ["get", service, user] if user else ["--mode", "creds", "get", service]
        try:
            output = run_child(
                [self._command, *question],
                environ=child_environment(Purpose.KEYRING, self._environ, PYTHONIOENCODING="utf-8"),
                timeout=_KEYRING_SECONDS,
                own_session=True,  # without a terminal it cannot prompt for a password
            )
        except ChildFailed:
            return None
        lines = output.text.splitlines()
        if user:
            return (user, lines[-1]) if lines and lines[-1] else None
        return (lines[0], lines[1]) if len(lines) > 1 else None

    @cached_property
    def _command(self) -> str | None:
        return find_program("keyring", self._environ)

    @cached_property
    def _netrc(self) -> netrc.netrc | None:
        named = self._environ.get("NETRC")
        path = Path(named) if named else Path(self._environ.get("HOME") or "/nonexistent") / ".netrc"
        try:
            return netrc.netrc(str(path)) if path.is_file() else None
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
            why = error.msg if isinstance(error, netrc.NetrcParseError) else "it is not readable"
            self._fault = f" (`{path}` is invalid: {why})"
            return None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _common_parts(one: str, other: str) -> int:
    """Return the number of leading parts that two paths have in common."""
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
