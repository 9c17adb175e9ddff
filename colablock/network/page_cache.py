"""Cache the pages of indexes by HTTP's rules: fresh for their max-age, then revalidated (RFC 9111).

A page whose caller names a compact form is kept in that form only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from colablock._common.decoding import Malformed, decode
from colablock._common.limits import PAGE, URL
from colablock._records import dataclass
from colablock.network.cache import PARSED, Cache

if TYPE_CHECKING:
    from colablock.network.http import HttpResponse

__all__ = ["Compact", "Page", "PageCache", "page_of"]

_LONGEST_FRESH = 3600.0  # seconds: limit for the max-age of a page
_AS_SENT = "pages"
# The kind of the facts of a page that was revalidated: its body is not written again.
_CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of an index.

    *url* is canonical, after redirects.  *base* is the URL that the page came
    from, which may be a mirror; relative links start there.  *digest* is the
    SHA-256 of the body as it was sent; *body* is that or its compact form.
    """

    url: str
    base: str
    content_type: str
    body: bytes
    digest: str


Compact: TypeAlias = Callable[[Page], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPage:
    """A page with its caching headers: when it was stored, its max-age, and its validators."""

    page: Page
    facts: Mapping[str, str]

    @property
    def validators(self) -> dict[str, str]:
        """The headers of a conditional request (RFC 9110)."""
        names = {"If-None-Match": "etag", "If-Modified-Since": "modified"}
        return {header: self.facts[name] for header, name in names.items() if self.facts.get(name)}


class PageCache:
    """Reads and stores pages in *cache*; *now* returns the time in seconds since the epoch.

    *compact* returns the form of a page that is stored in place of its body.
    """

    def __init__(self, cache: Cache, now: Callable[[], float]) -> None:
        self._cache = cache
        self._now = now

    def read(self, key: str, compact: Compact | None = None) -> CachedPage | None:
        """Return the page stored under *key*; None if there is none, or another release wrote it."""
        data = self._cache.read(_kind(compact), key)
        if data is None:
            return None
        head, _, body = data.partition(b"\n")
        try:
            facts = decode(head, dict[str, str])
            later = self._cache.read_record(_CONFIRMED, key, dict[str, str])
            if later is not None and later.keys() == facts.keys() and _is_same(later, facts):
                facts = later
            page = Page(
                url=facts["url"],
                base=facts["base"],
                content_type=facts["type"],
                body=body,
                digest=facts["sha256"],
            )
        except (Malformed, KeyError):
            return None
        is_sound = all(len(value) <= URL and value.isprintable() for value in facts.values())
        return CachedPage(page=page, facts=facts) if is_sound and len(body) <= PAGE else None

    def is_fresh(self, cached: CachedPage) -> bool:
        """Whether the max-age of a page has not passed."""
        age = self._now() - _number(cached.facts.get("stored", "0"))
        return 0 <= age < min(_number(cached.facts.get("max-age", "0")), _LONGEST_FRESH)

    def store(
        self, key: str, answer: HttpResponse, cached: CachedPage | None, compact: Compact | None = None
    ) -> Page | None:
        """Return the page of a response and store it; None if the page does not exist.

        A response with status 304, or with the same body, confirms the *cached* page.
        """
        if answer.status == 304 and cached is not None:  # noqa: PLR2004 - HTTP says so
            sent = cached.page
        elif answer.status == 200:  # noqa: PLR2004
            sent = page_of(answer.url, answer.base, answer.headers.get("content-type", ""), answer.read(PAGE))
        else:
            return None
        return self.keep(key, sent, cached, answer.headers, compact)

    def keep(
        self,
        key: str,
        sent: Page,
        cached: CachedPage | None,
        headers: Mapping[str, str],
        compact: Compact | None = None,
    ) -> Page:
        """Return the page *sent* in its compact form and store it, unless it is the *cached* one."""
        before = cached.facts if cached is not None else {}
        control = headers.get("cache-control", "")
        facts = {
            "url": sent.url,
            "base": sent.base,
            "type": sent.content_type,
            "sha256": sent.digest,
            "stored": str(self._now()),
            "max-age": _max_age(control),
            "etag": headers.get("etag") or before.get("etag", ""),
            "modified": headers.get("last-modified") or before.get("modified", ""),
        }
        is_stored = "no-store" not in control
        if cached is not None and _is_same(facts, before):
            if is_stored and (facts["max-age"] != "0" or not _has_same_headers(facts, before)):
                self._cache.write_record(_CONFIRMED, key, facts)
            if is_stored:
                self._cache.note_use(_kind(compact), key)
            return cached.page
        page = sent if compact is None else replace(sent, body=compact(sent))
        if is_stored:
            self._cache.remove(_CONFIRMED, key)
            self._cache.write(_kind(compact), key, json.dumps(facts).encode() + b"\n" + page.body)
        return page


def page_of(url: str, base: str, content_type: str, body: bytes) -> Page:
    """Return a page as it was sent."""
    digest = hashlib.sha256(body).hexdigest()
    return Page(url=url, base=base, content_type=content_type, body=body, digest=digest)


def _kind(compact: Compact | None) -> str:
    return _AS_SENT if compact is None else PARSED


def _is_same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether both facts are about one body from one place."""
    return all(one[name] == other[name] for name in ("url", "base", "type", "sha256"))


def _has_same_headers(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return all(one[name] == other.get(name) for name in ("max-age", "etag", "modified"))


def _number(text: str) -> float:
    """Return the number in *text*; infinity or 0 if it is none, which both make a page stale."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if number == number else 0.0  # noqa: PLR0124 - NaN


def _max_age(control: str) -> str:
    match = re.search(r"(?:^|[\s,])max-age=(\d{1,9})", control)
    return match[1] if match and "no-cache" not in control else "0"
