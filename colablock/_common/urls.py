"""URLs: credentials, fragments, local paths and mirrors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from colablock._common.limits import SHOWN
from colablock._masking import MASK, is_secret_parameter, masked
from colablock._records import dataclass
from colablock.errors import FetchFailed, InvalidInput

__all__ = [
    "Mirrors",
    "Url",
    "basename",
    "checked_index",
    "is_loopback",
    "is_unclear",
    "local_path",
    "redacted",
    "split_credentials",
    "split_fragment",
    "unquoted_path",
]

#: Scheme, at most one ``user:password@``, and a host with its port.  Readers of URLs differ on other texts.
_HOST = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^@/?#\s]*@)?(?:\[[^@/?#\s]*\]|[^@/?#\s%\[\]])*(?:[/?#]|\Z)"
)


class Url(str):
    """A URL whose text has no credentials: no user, no password, no secret parameter of a query.

    Every URL that enters the program becomes one.  Only ``with_credentials`` gives the whole URL, and
    only a request, or the child process that sends it, may call that.  Copies and pickles have no
    credentials, and neither has what is made of the text.
    """

    __slots__ = ("_whole",)

    _whole: str

    def __new__(cls, url: str) -> Url:  # noqa: PYI034 - never of a subclass
        """Return *url* without its credentials, or *url* itself if it is a ``Url``."""
        if isinstance(url, Url):
            return url
        is_path = url.startswith(("/", "./", "../", "~")) and not url.startswith("//")
        # The usual case.  A second colon is a port, or a password without its `@`.
        has_none = is_path or not ("@" in url or "=" in url or url.count(":") > 1)
        self = super().__new__(cls, url if has_none else _plain_text(url))
        self._whole = url
        return self

    def with_credentials(self) -> str:
        """Return the URL as it was given."""
        return self._whole

    def __reduce__(self) -> tuple[type[Url], tuple[str]]:
        return Url, (str(self),)


def _plain_text(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return _without_marks(url)
    netloc, query = parts.netloc, parts.query
    user, at, host = netloc.rpartition("@")
    if at and (":" in user or not parts.scheme.endswith("ssh")):  # `git` in `git+ssh://git@` is no secret
        netloc = host
    if "=" in query:
        query = "&".join(one for one in query.split("&") if not is_secret_parameter(one.partition("=")[0]))
    if (netloc, query) != (parts.netloc, parts.query):
        url = urlunsplit(parts._replace(netloc=netloc, query=query))
    return _without_marks(url)


def _without_marks(url: str) -> str:
    """Return *url*, which may be invalid, without what looks like user and password in it."""
    return masked(url).replace(f"{MASK}@", "")


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return *url* without credentials, and user and password (percent-encoded), or None without any.

    Raises FetchFailed for an invalid URL.
    """
    plain = Url(url)
    whole = plain.with_credentials()
    try:
        parts = urlsplit(whole)
    except ValueError as error:
        raise FetchFailed(f"`{plain}` is not a valid URL: {error}", url=plain) from error
    if parts.scheme in {"http", "https"} and (
        "\\" in whole or not whole.isprintable() or is_unclear(str(plain))
    ):
        raise FetchFailed(f"`{plain}` is not a valid URL: it is not clear which host it names", url=plain)
    userinfo, at, _ = parts.netloc.rpartition("@")
    if not at:
        return str(plain), None
    user, _, password = userinfo.partition(":")
    return str(plain), (user, password)


def redacted(url: str) -> str:
    """Return *url* without credentials, as it may be shown and kept."""
    return str(Url(url))


def split_fragment(url: str) -> tuple[str, dict[str, str]]:
    """Return *url* without its fragment, and the hashes in the fragment (``#sha256=...``)."""
    plain, _, fragment = url.partition("#")
    pairs = (part.partition("=") for part in fragment.split("&"))
    known = {"md5", "sha1", "sha224", "sha256", "sha384", "sha512"}
    return plain, {name: value.lower() for name, _, value in pairs if name in known and value}


def basename(url: str) -> str:
    """Return the file name at the end of a URL or path."""
    local = local_path(url)
    path = local.as_posix() if local is not None else unquote(_path_of(url))
    return path.rstrip("/").rpartition("/")[2]


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:  # whoever requests it reports that
        return url.partition("?")[0].partition("#")[0]


def unquoted_path(path: str) -> str:
    """Return the local path that *path*, the path of a ``file:`` URL, stands for.

    `urllib.request` has this too, and takes as long to import as a tenth of a plan.
    """
    plain = unquote(path, errors="surrogateescape")
    return plain.lstrip("/") if os.name == "nt" else plain


def local_path(url: str) -> Path | None:
    """Return the local path of a ``file:`` URL or a plain path, or None for a remote URL."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme.lower() == "file":
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        return Path(unquoted_path(parts.path)) if parts.netloc in {"", "localhost"} else None
    # A single letter before the colon is a drive, not a scheme.
    if colon and len(scheme) > 1 and scheme.replace("+", "").isalnum() and rest.startswith("/"):
        return None
    try:
        return Path(url).expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"the home folder of `{url[:SHOWN]}` is not known") from error


def is_unclear(url: str) -> bool:
    """Return whether two programs may find different hosts in *url*, which has a scheme.

    A backslash ends the host for a browser and urllib3 (WHATWG URL), and not for `urllib.parse`
    (RFC 3986), which also drops tabs and line ends.  A valid URL has none of these, one ``@`` at most
    before its host, and no password with a ``#``, a ``?`` or a slash.
    """
    if "\\" in url or not url.isprintable():
        return True
    if "//" in url and _HOST.match(url) is None:
        return True
    return ("@" in url or "=" in url) and not _keeps_host(url)


def _keeps_host(url: str) -> bool:
    """Whether *url* without what looks like credentials has the host that *url* has."""
    plain = str(Url(url))
    try:
        host = urlsplit(url).netloc.rpartition("@")[2]
        return urlsplit(plain).netloc == host and str(Url(plain)) == plain
    except ValueError:
        return False


def is_loopback(url: str) -> bool:
    """Whether the host of *url* is this machine, so that nobody on the network can change the answer."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # an invalid URL is reported where it is used
        return False
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def checked_index(index: str | None, what: str = "the default index") -> str | None:
    """Return *index*, a URL or an existing folder.  Raises InvalidInput for anything else."""
    path = None if index is None else local_path(index)
    if path is not None and not os.path.isdir(path):  # noqa: PTH112 - Path raises of a long name
        message = f"{what} `{index}` is neither a URL nor an existing folder"
        raise InvalidInput(message, hint="Write the full URL, with `https://`")
    try:
        urlsplit(index or "")
    except ValueError as error:
        message = f"{what} `{redacted(str(index))}` is not a valid URL: {error}"
        raise InvalidInput(message, hint="Write the full URL, with `https://`") from error
    return index


@dataclass(frozen=True, slots=True)
class Mirrors:
    """URL prefixes and the mirrors that requests go to.  Locks and messages keep the canonical URLs."""

    pairs: tuple[tuple[str, Url], ...] = ()

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
            pairs.append((redacted(prefix), Url(replacement)))
        return cls(_longest_first(pairs))

    def and_indexes(self, places: Iterable[tuple[str, str]]) -> Mirrors:
        """Return these mirrors and the mirrors of whole indexes: pairs of canonical URL and mirror URL."""
        pairs = [
            (_folder(redacted(url)), Url(_folder(Url(place).with_credentials()))) for url, place in places
        ]
        return Mirrors(_longest_first([*pairs, *self.pairs]))

    def to_mirror(self, url: str) -> str:
        """Return the URL that a request for *url* goes to, without credentials."""
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
        found = [(prefix, place) for prefix, place in self.pairs if url.startswith(place)]
        if not found or "/../" in url:  # `..` may lead out of the mirror
            return url
        prefix, place = max(found, key=lambda pair: (len(pair[1]), asked.startswith(pair[0])))
        return prefix + url[len(place) :]


def _folder(url: str) -> str:
    return f"{url.rstrip('/')}/"


def _longest_first(pairs: Iterable[tuple[str, Url]]) -> tuple[tuple[str, Url], ...]:
    return tuple(sorted(pairs, key=lambda pair: -len(pair[0])))
