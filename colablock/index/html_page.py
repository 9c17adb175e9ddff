"""Read the tags of an HTML page in linear time.

`html.parser` takes quadratic time for some pages, such as one of 100,000 times ``<!--`` before Python 3.13.6.
An index page needs four tags of it, so this reads no more: comments, scripts and text are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

__all__ = ["start_tags"]

_NAME = re.compile(r"[A-Za-z][^\s/>]*")
_SPACE = re.compile(r"[\s/]*")
_KEY = re.compile(r"[^\s/>=]+")
_EQUALS = re.compile(r"\s*=\s*")
_BARE = re.compile(r"[^\s>]*")
#: The end of elements that hold text only.
_ENDS = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "title")}


def start_tags(text: str, limit: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and attributes of each start tag of *text*, names in lower case; the first of a name counts.

    An attribute without a value is "", and so is one whose value has more than *limit* characters or names
    an invalid character.  What is not closed ends the page.
    """
    at = text.find("<")
    while at >= 0:
        if text.startswith("<!--", at):
            at = _after(text, "-->", at + 4)
        elif (found := _NAME.match(text, at + 1)) is None:
            at += 1
        else:
            name = found[0].lower()
            at, attributes = _attributes(text, found.end(), limit)
            if at < 0:
                return
            yield name, attributes
            if name in _ENDS:
                end = _ENDS[name].search(text, at)
                at = end.start() if end else -1
        at = text.find("<", at) if at >= 0 else -1


def _after(text: str, end: str, start: int) -> int:
    at = text.find(end, start)
    return at + len(end) if at >= 0 else -1


def _attributes(text: str, at: int, limit: int) -> tuple[int, dict[str, str]]:
    """Return the place after the tag whose attributes start at *at*, or -1 if it is not closed, and they."""
    found: dict[str, str] = {}
    while True:
        space = _SPACE.match(text, at)
        at = space.end() if space else at
        if at >= len(text):
            return -1, found
        if text[at] == ">":
            return at + 1, found
        key = _KEY.match(text, at)
        if key is None:  # a stray `=`
            at += 1
            continue
        at, value = _value(text, key.end(), limit)
        if at < 0:
            return -1, found
        found.setdefault(key[0].lower(), value)


def _value(text: str, at: int, limit: int) -> tuple[int, str]:
    """Return the place after the value of an attribute, or -1 if it is not closed, and the value."""
    equals = _EQUALS.match(text, at)
    if equals is None:
        return at, ""
    at = equals.end()
    quote = text[at : at + 1]
    if quote in {'"', "'"} and quote:
        end = text.find(quote, at + 1)
        return (end + 1, _text(text[at + 1 : end], limit)) if end >= 0 else (-1, "")
    bare = _BARE.match(text, at)
    end = bare.end() if bare else at
    return end, _text(text[at:end], limit)


def _text(raw: str, limit: int) -> str:
    """Return the value that *raw* stands for."""
    if len(raw) > limit:
        return ""
    try:
        return unescape(raw) if "&" in raw else raw
    except ValueError:  # a reference to a number with thousands of digits
        return ""
