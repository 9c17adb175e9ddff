"""Mask credentials in text that may be shown.

A valid URL enters the program as a `colablock._common.urls.Url`, whose text has no credentials.  This
module is for all other text: an invalid URL, a line of a file, the output of another program.  Each
error masks its own message.  The time is linear in the length of the text.
"""

from __future__ import annotations

import re
from functools import cache

__all__ = ["MASK", "is_secret_parameter", "masked"]

MASK = "****"

_LOOK = 256  # characters of a password, at most: the text before an `@` is searched so far back
_ENDS = "\"'`<>"  # an address ends there, and at white space
_NO_SECRETS = frozenset({"git", "hg", "svn"})  # users of ssh that everybody knows
_EXAMPLE = "USER:PASSWORD@"  # in our own hints


def masked(text: str) -> str:
    """Return *text* with user and password of every URL, secret parameters and known tokens masked."""
    if "@" in text:
        text = _without_users(text)
        text = _without_bare_users(text)
    if "://" in text or "netloc '" in text:
        text = _odd_port().sub(rf"\1{MASK}", text)
    if "=" in text:
        text = _parameter().sub(_mask_parameter, text)
    return _token().sub(lambda found: f"{found[1] or ''}{MASK}", text)


@cache
def is_secret_parameter(name: str) -> bool:
    """Return whether the parameter *name* of a query holds a secret: ``token``, ``X-Amz-Signature``."""
    decoded = re.sub(r"%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), name)
    return _secret_name().search(decoded) is not None


def _without_users(text: str) -> str:
    """Mask what stands between the slashes of a URL and its ``@``, also if the URL is invalid."""
    parts, done = [], 0
    for found in _slashes().finditer(text):
        start = found.end()
        if start < done:
            continue
        at = _end_of_user(text, start)
        if at <= start or text.startswith(_EXAMPLE, start):
            continue
        if text[start:at] in _NO_SECRETS and text.endswith("ssh:", done, found.start() + 1):
            continue
        parts += [text[done:start], MASK]
        done = at
    return "".join([*parts, text[done:]])


def _end_of_user(text: str, start: int) -> int:
    """Return the place of the ``@`` that ends user and password, or -1 without any."""
    stop = _host_end().search(text, start)
    authority = text[start : stop.start() if stop else len(text)]
    if "@" in authority:
        return start + authority.rindex("@")
    name, colon, port = authority.rpartition(":")
    is_port = re.fullmatch(r"\d{1,5}|[0-9a-fA-F:.]*\]", port) and not (stop and stop[0] in "#?")
    if not colon or not name or name.endswith("[") or is_port:
        return -1
    # The port is invalid, so this may be the start of a password with a slash or a space in it.
    end = min(len(text), start + _LOOK)
    for limit in ("://", "`"):
        found = text.find(limit, start, end)
        end = end if found < 0 else found
    at = text.find("@", start, end)
    while at >= 0 and (further := _next_at(text, at, end)) > 0:
        at = further
    return at


def _next_at(text: str, at: int, end: int) -> int:
    """Return the place of another ``@`` in the same word, or -1."""
    stop = _host_end().search(text, at + 1, end)
    return text.find("@", at + 1, stop.start() if stop else end)


def _without_bare_users(text: str) -> str:
    """Mask ``user:password@host`` and ``token@host/`` without a scheme."""
    parts, done = [], 0
    for found in re.finditer(r"@(?=[\w\[])", text):
        at = found.start()
        word = _words().split(text[max(done, at - _LOOK) : at])[-1]
        user, colon, password = word.partition(":")
        user = user.rpartition("=")[2]
        if not colon:  # half of a URL with a space in it
            if not user or "/" in user or not _address().match(text, at + 1):
                continue
            size = len(user)
        elif not password or "/" in password or text.startswith("sha256:", at + 1):
            continue
        else:
            size = len(user) + 1 + len(password)
        parts += [text[done : at - size], MASK]
        done = at
    return "".join([*parts, text[done:]])


def _mask_parameter(found: re.Match[str]) -> str:
    return f"{found[1]}={MASK}" if is_secret_parameter(found[1]) else found[0]


# Compiled at first use: most processes show no error.
@cache
def _slashes() -> re.Pattern[str]:
    return re.compile(r":[/\\]{1,8}|(?<![:/\\])//")


@cache
def _host_end() -> re.Pattern[str]:
    return re.compile(rf"[\s/\\?#{_ENDS}]")


@cache
def _odd_port() -> re.Pattern[str]:
    """Return a pattern for what stands in the place of a port: a password, if the ``@`` is not there.

    Examples are ``http://user:password/``, and an ``@`` that is percent-encoded or of another alphabet.
    """
    user = rf"[^\s/\\?#@:\[{_ENDS}]{{1,256}}"
    password = rf"[^\s/\\?#@{_ENDS}]{{1,256}}"
    before = rf"(?<!ssh)://{user}:(?!PASSWORD@)|\bnetloc '(?=[^']*:)"  # the latter in words of urllib
    return re.compile(rf"({before})(?!\d{{1,5}}(?:[\s/\\?#,;.)\]:}}{_ENDS}]|$)){password}")


@cache
def _words() -> re.Pattern[str]:
    return re.compile(rf"[\s,;(\[{{{_ENDS}]")


@cache
def _address() -> re.Pattern[str]:
    return re.compile(r"[\w.-]{1,253}(?::\d{1,5})?/")


@cache
def _parameter() -> re.Pattern[str]:
    return re.compile(rf"(?<=[?&;#])([\w.%~-]{{1,64}})=([^\s&#{_ENDS}]+)")


@cache
def _secret_name() -> re.Pattern[str]:
    return re.compile(
        r"(?i)token|secret|passw|pwd|signature|credential|api.?key|access.?key|bearer"
        r"|^(sig|key|auth|jwt|sas|pass|pat|code)$"
    )


@cache
def _token() -> re.Pattern[str]:
    """Return a pattern for the tokens that can be recognised, with what stands before them as group 1."""
    return re.compile(
        r"(?i:(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer|token)?\s*|\bbearer\s+))"
        r"[A-Za-z0-9._~+/=-]{8,}"
        r"|\bhf_[A-Za-z0-9]{16,}"
        r"|\bgh[pousr]_[A-Za-z0-9]{16,}"
        r"|\bgithub_pat_\w{16,}"
        r"|\bglpat-[\w-]{16,}"
        r"|\bpypi-A[\w-]{16,}"
        r"|\bxox[abprs]-[\w-]{10,}"
        r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    )
