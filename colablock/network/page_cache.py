"""Cache the pages of indexes by HTTP's rules: fresh for their max-age, then revalidated (RFC 9111)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colablock._common.decoding import Malformed, decode
from colablock._common.limits import PAGE, URL
from colablock.network.cache import Cache

if TYPE_CHECKING:
    from colablock.network.http import HttpResponse

__all__ = ["Page", "PageCache"]

_LONGEST_FRESH = 3600.0  # seconds: limit for the max-age of a page
_KIND = "pages"
_CONFIRMED = (
    "confirmed"  # the kind of the facts of a page that was revalidated: its body is not written again
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of an index.

    *url* is canonical, after redirects.  *base* is the URL that the page came
    from, which may be a mirror; relative links start there.  *digest* is the
    SHA-256 of the body.
    """

    url: str
    base: str
    content_type: str
    body: bytes
    digest: str


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
    """Reads and stores pages in *cache*; *now* returns the time in seconds since the epoch."""

    def __init__(self, cache: Cache, now: Callable[[], float]) -> None:
        self._cache = cache
        self._now = now

    def read(self, key: str) -> CachedPage | None:
        """Return the page stored under *key*; None if there is none, or another release wrote it."""
        data = self._cache.read(_KIND, key)
        if data is None:
            return None
        head, _, body = data.partition(b"\n")
        try:
            facts = decode(head, dict[str, str])
            later = self._cache.read_record(_CONFIRMED, key, dict[str, str])
            facts = (
                later
                if later is not None and later.keys() == facts.keys() and _is_same(later, facts)
                else facts
            )
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

    def store(self, key: str, answer: HttpResponse, cached: CachedPage | None) -> Page | None:
        """Return the page of a response and store it; None if the page does not exist.

        A response with status 304 confirms the *cached* page.
        """
        if answer.status == 304 and cached is not None:  # noqa: PLR2004 - HTTP says so
            page = cached.page
        elif answer.status == 200:  # noqa: PLR2004
            body = answer.read(PAGE)
            page = Page(
                url=answer.url,
                base=answer.base,
                content_type=answer.headers.get("content-type", ""),
                body=body,
                digest=hashlib.sha256(body).hexdigest(),
            )
        else:
            return None
        before = cached.facts if cached is not None else {}
        before_page = cached.page if cached is not None else None
        control = answer.headers.get("cache-control", "")
        facts = {
            "url": page.url,
            "base": page.base,
            "type": page.content_type,
            "sha256": page.digest,
            "stored": str(self._now()),
            "max-age": _max_age(control),
            "etag": answer.headers.get("etag") or before.get("etag", ""),
            "modified": answer.headers.get("last-modified") or before.get("modified", ""),
        }
        if page is before_page and "no-store" not in control:
            self._cache.write_record(_CONFIRMED, key, facts)
            self._cache.note_use(_KIND, key)
        elif "no-store" not in control:
            self._cache.remove(_CONFIRMED, key)
            self._cache.write(_KIND, key, json.dumps(facts).encode() + b"\n" + page.body)
        return page


def _is_same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether both facts are about one body from one place."""
    return all(one[name] == other[name] for name in ("url", "base", "type", "sha256"))


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
