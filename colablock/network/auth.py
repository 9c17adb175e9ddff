"""User and password for a host: from a URL, from netrc, and from the keyring where that is asked for."""

from __future__ import annotations

import netrc
import os
import shutil
import threading
from collections.abc import Mapping
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from colablock._common.process import ChildFailed, run_child
from colablock._common.urls import split_credentials

__all__ = ["Credentials"]

Pair: TypeAlias = tuple[str, str]

_KEYRING_SECONDS = 60.0  # a keyring that asks at a screen is not waited for longer


class Credentials:
    """Says who we are to a host; may be used from several threads.

    What stood in a URL of that host comes first (of several the one whose path
    is nearest), then netrc, then the keyring.  The keyring is asked in a
    subprocess, only for a host that refuses us or whose URL names a user without
    a password, once for each, and never at a terminal.
    """

    def __init__(self, environ: Mapping[str, str], *, keyring: bool = False) -> None:
        self._environ = environ
        self._keyring = keyring
        self._lock = threading.Lock()
        self._learnt: dict[str, dict[str, Pair | None]] = {}
        self._answers: dict[tuple[str, str | None], Pair | None] = {}
        self._refusing: set[str] = set()
        self._fault = ""

    def learn(self, url: str, *, is_index: bool = False) -> str:
        """Return *url* without user and password, which are used for its host from now on.

        Of an index it is kept even without any: it is what a keyring knows it by.
        """
        plain, found = split_credentials(url)
        pair = (unquote(found[0]), unquote(found[1])) if found is not None else None
        if is_index or (pair is not None and self._told(plain) != pair):
            with self._lock:
                known = self._learnt.setdefault(_origin(plain), {})
                path = urlsplit(plain).path
                known[path] = pair or known.get(path)
        return plain

    def find(self, url: str) -> Pair | None:
        """Return user and password for *url*, None where nobody told of any."""
        pair = self._told(url)
        if pair is not None and (pair[1] or not self._keyring):
            return pair
        if pair is None:
            pair = self._in_netrc(url)
            if pair is not None:
                return pair
        if self._keyring and (pair is not None or _origin(url) in self._refusing):
            return self._in_keyring(url, pair[0] if pair else None) or pair
        return pair

    def find_others(self, url: str, sent: Pair | None) -> bool:
        """Whether, after *url* was refused to *sent*, there is another user or password to try."""
        if not self._keyring:
            return False
        self._refusing.add(_origin(url))
        return self.find(url) != sent

    def advice(self, url: str) -> str:
        """Return what to do about a refusal of *url*."""
        host = urlsplit(url).hostname
        if self.find(url) is not None:
            return f"correct the user and password for `{host}`: they were sent, and they are not accepted"
        text = f"give a user and password for `{host}` in the URL of the index or in netrc{self._fault}"
        if not self._keyring:
            return f"{text}, or have the keyring asked with `COLABLOCK_KEYRING_PROVIDER=subprocess`"
        if self._command is None:
            return f"{text}, or install `keyring`: it is to be asked, and there is no such command"
        return f"{text}, or to the keyring: it was asked and knows none"

    def _told(self, url: str) -> Pair | None:
        """Return what stood in the URL of the same host whose path is nearest to that of *url*."""
        path = urlsplit(url).path
        with self._lock:
            known = [(at, pair) for at, pair in self._learnt.get(_origin(url), {}).items() if pair]
        return max(known, key=lambda item: _shared(item[0], path), default=("", None))[1]

    def _in_netrc(self, url: str) -> Pair | None:
        known = self._netrc.authenticators(urlsplit(url).hostname or "") if self._netrc else None
        return (known[0], known[2] or "") if known else None

    def _in_keyring(self, url: str, user: str | None) -> Pair | None:
        """Return what the keyring has for the index that *url* belongs to, or else for its host."""
        origin, path = _origin(url), urlsplit(url).path
        with self._lock:
            index = origin + max(self._learnt.get(origin, {}), key=lambda at: _shared(at, path), default="/")
            key = (index, user)
            if key not in self._answers:
                services = (index, urlsplit(url).netloc)
                found = (self._ask_keyring(service, user) for service in services)
                self._answers[key] = next((pair for pair in found if pair is not None), None)
            return self._answers[key]

    def _ask_keyring(self, service: str, user: str | None) -> Pair | None:
        """Return what ``keyring get`` says, in the two forms in which pip and uv ask it."""
        if self._command is None:
            return None
        question = ["get", service, user] if user else ["--mode", "creds", "get", service]
        try:
            output = run_child(
                [self._command, *question],
                environ={**self._environ, "PYTHONIOENCODING": "utf-8"},
                timeout=_KEYRING_SECONDS,
                own_session=True,  # without a terminal it cannot ask for a password there either
            )
        except ChildFailed:
            return None
        lines = output.text.splitlines()
        if user:
            return (user, lines[-1]) if lines and lines[-1] else None
        return (lines[0], lines[1]) if len(lines) > 1 else None

    @cached_property
    def _command(self) -> str | None:
        return shutil.which("keyring", path=self._environ.get("PATH", os.defpath))

    @cached_property
    def _netrc(self) -> netrc.netrc | None:
        named = self._environ.get("NETRC")
        path = Path(named) if named else Path(self._environ.get("HOME") or "/nonexistent") / ".netrc"
        try:
            return netrc.netrc(str(path)) if path.is_file() else None
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
            why = error.msg if isinstance(error, netrc.NetrcParseError) else "it cannot be read"
            self._fault = f" (`{path}` is no use as it is: {why})"
            return None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _shared(one: str, other: str) -> int:
    """Return how many of the first parts of two paths are the same."""
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
