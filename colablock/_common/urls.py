"""URLs: credentials, fragments, local paths and mirrors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from colablock.errors import FetchFailed, InvalidInput

__all__ = [
    "Mirrors",
    "basename",
    "checked_index",
    "is_loopback",
    "local_path",
    "redacted",
    "split_credentials",
    "split_fragment",
]


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return *url* without user and password, and the pair of them (percent-encoded), or None without any."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        shown = re.sub(r"//[^/]*@", "//", url)
        raise FetchFailed(f"`{shown}` is not a valid URL: {error}", url=shown) from error
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = userinfo.partition(":")
    return urlunsplit(parts._replace(netloc=host)), (user, password)


def redacted(url: str) -> str:
    """Return *url* without user and password, as it may be shown."""
    return split_credentials(url)[0]


def split_fragment(url: str) -> tuple[str, dict[str, str]]:
    """Return *url* without its fragment, and the hashes in the fragment (``#sha256=...``)."""
    plain, _, fragment = url.partition("#")
    pairs = (part.partition("=") for part in fragment.split("&"))
    known = {"md5", "sha1", "sha224", "sha256", "sha384", "sha512"}
    return plain, {name: value.lower() for name, _, value in pairs if name in known and value}


def basename(url: str) -> str:
    """Return the file name at the end of a URL or path."""
    local = local_path(url)
    path = local.as_posix() if local is not None else unquote(urlsplit(url).path)
    return path.rstrip("/").rpartition("/")[2]


def local_path(url: str) -> Path | None:
    """Return the local path of a ``file:`` URL or a plain path, or None for a remote URL."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme.lower() == "file":
        parts = urlsplit(url)
        return Path(url2pathname(parts.path)) if parts.netloc in {"", "localhost"} else None
    # A single letter before the colon is a drive, not a scheme.
    if colon and len(scheme) > 1 and scheme.replace("+", "").isalnum() and rest.startswith("//"):
        return None
    return Path(url).expanduser()


def is_loopback(url: str) -> bool:
    """Whether the host of *url* is this machine, so that nobody on the network can change the answer."""
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def checked_index(index: str | None, what: str = "the default index") -> str | None:
    """Return *index*, a URL or an existing folder.  Raises InvalidInput for anything else."""
    path = None if index is None else local_path(index)
    if path is not None and not os.path.isdir(path):  # noqa: PTH112 - Path raises of a long name
        message = f"{what} `{index}` is neither a URL nor an existing folder"
        raise InvalidInput(message, hint="Write the full URL, with `https://`")
    return index


@dataclass(frozen=True, slots=True)
class Mirrors:
    """URL prefixes and the mirrors that requests go to.  Locks and messages keep the canonical URLs."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mirrors:
        """Return the mirrors of ``COLABLOCK_MIRRORS``: ``https://a/=http://b/ ...``.  Raises InvalidInput."""
        pairs = []
        for part in text.split():
            prefix, equals, replacement = part.partition("=")
            if not equals or "://" not in prefix or ":" not in replacement:
                message = f"`{redacted(part)}` in COLABLOCK_MIRRORS is not a mirror"
                raise InvalidInput(
                    message, hint="Write it as `https://index.example/=http://mirror.example/`"
                )
            pairs.append((prefix, replacement))
        return cls(_longest_first(pairs))

    def and_indexes(self, places: Iterable[tuple[str, str]]) -> Mirrors:
        """Return these mirrors and the mirrors of whole indexes: pairs of canonical URL and mirror URL."""
        pairs = [(_folder(redacted(url)), _folder(place)) for url, place in places]
        return Mirrors(_longest_first([*pairs, *self.pairs]))

    def to_mirror(self, url: str) -> str:
        """Return the URL that a request for *url* goes to."""
        for prefix, replacement in self.pairs:
            if url.startswith(prefix):
                return replacement + url[len(prefix) :]
        return url

    def to_canonical(self, url: str, asked: str = "") -> str:
        """Return the canonical URL of *url*, a link on a page of a mirror.

        A URL outside of every mirror is canonical itself.  One mirror may serve
        several indexes: the prefix of *asked*, the canonical URL of the page,
        is then preferred.
        """
        found = [(prefix, _plain(place)) for prefix, place in self.pairs]
        found = [(prefix, place) for prefix, place in found if url.startswith(place)]
        if not found or "/../" in url:  # `..` may lead out of the mirror
            return url
        prefix, place = max(found, key=lambda pair: (len(pair[1]), asked.startswith(pair[0])))
        return prefix + url[len(place) :]


_plain = lru_cache(maxsize=64)(redacted)


def _folder(url: str) -> str:
    return f"{url.rstrip('/')}/"


def _longest_first(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pairs, key=lambda pair: -len(pair[0])))
