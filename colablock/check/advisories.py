"""Known vulnerabilities of exact releases, from the JSON API of an index.

PyPI publishes the advisories of a release (from the OSV database) in
``vulnerabilities`` of ``/pypi/NAME/VERSION/json``.  An index without that page
says nothing about a release, which is not the same as "none known".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

from colablock._common.decoding import Malformed, decode
from colablock._common.limits import ADVISORIES, ADVISORY_PAGE, VERSION
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.errors import FetchFailed
from colablock.network.fetcher import Fetcher

__all__ = ["Advisory", "AuditResult", "AuditedRelease", "ReleaseNews", "Unchecked", "news_of", "read_news"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """One vulnerability: its id, its ids in other databases, and the releases that mend it, oldest first."""

    id: str
    aliases: tuple[str, ...] = ()
    summary: str = ""
    fixed_in: tuple[str, ...] = ()
    link: str | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, with its own first."""
        return (self.id, *self.aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseNews:
    """What an index says of a release: its advisories, and why it was yanked, if it was."""

    advisories: tuple[Advisory, ...] = ()
    yanked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedRelease:
    """A pin with what is known of its release.

    *required_by* are the names that require it, that of the matrix among them if
    the matrix names it (*is_direct*).  *asked* is the version that the index was
    asked for: that of the pin without its local label.  *ignored* are the
    advisories that the user wants to hear nothing of.  *yanked* and *status* say
    why the release was yanked and that its project is archived or quarantined
    (PEP 792), None if not.
    """

    name: str
    version: str
    asked: str
    index: str
    is_direct: bool = False
    required_by: tuple[str, ...] = ()
    advisories: tuple[Advisory, ...] = ()
    ignored: tuple[Advisory, ...] = ()
    yanked: str | None = None
    status: str | None = None
    locks: tuple[str, ...] = ()

    @property
    def is_quarantined(self) -> bool:
        """Whether the index offers no files of the project, which may be malware (PEP 792)."""
        return (self.status or "").startswith("quarantined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A package of a lock that no index could be asked about, and why."""

    name: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """The audit of the locks *locks* of a matrix.

    *checked* counts the releases whose advisories were read; *findings* are those
    of them with something to tell.  *assumed* counts the distributions of a
    recorded runtime that the locks rely on, which are not audited.
    *unused_ignores* are ids to ignore that no advisory has.
    """

    matrix: str
    locks: tuple[str, ...]
    checked: int
    findings: tuple[AuditedRelease, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()
    assumed: int = 0
    unused_ignores: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether no advisory is known that is not ignored, and no project is quarantined as malware."""
        return not any(one.advisories or one.is_quarantined for one in self.findings)

    def facts(self) -> dict[str, object]:
        """Return the result as plain values, for JSON."""
        return {**asdict(self), "is_clean": self.is_clean}


# -- the page


class _AdvisoryEntry(msgspec.Struct):
    id: str
    aliases: list[str] = []
    summary: str | None = None
    details: str | None = None
    fixed_in: list[str] = []
    withdrawn: str | None = None
    link: str | None = None


class _Info(msgspec.Struct):
    yanked: bool | None = False
    yanked_reason: str | None = None


class _ReleasePage(msgspec.Struct):
    info: _Info = msgspec.field(default_factory=_Info)
    vulnerabilities: list[_AdvisoryEntry] | None = None


def news_of(fetcher: Fetcher, index: str, name: NormalizedName, version: str) -> ReleaseNews | None:
    """Return what the index at the URL *index* says of a release; None if it has no page about it.

    Raises FetchFailed if the index does not answer, or answers with another
    format.
    """
    url = _page_url(fetcher.address(index), name, version)
    if url is None:
        return None
    page = fetcher.get_page(url, "application/json")
    if page is None:
        return None
    return read_news(page.body, page.url)


def read_news(data: bytes, url: str) -> ReleaseNews | None:
    """Return what the JSON page *data* at *url* says of a release; None if it has no advisories.

    Raises FetchFailed for a page of another form.
    """
    try:
        if len(data) > ADVISORY_PAGE:
            raise Malformed(f"it is larger than {ADVISORY_PAGE} bytes")  # noqa: TRY301 - one place words it
        found = decode(data, _ReleasePage)
    except Malformed as error:
        hint = "If the index has no JSON API, audit on a machine that reaches PyPI"
        raise FetchFailed(f"`{url}` has no advisories: {error}", url=url, hint=hint) from error
    if found.vulnerabilities is None or len(found.vulnerabilities) > ADVISORIES:
        return None
    entries = [_advisory(entry) for entry in found.vulnerabilities if not entry.withdrawn]
    yanked = (found.info.yanked_reason or "no reason given") if found.info.yanked else None
    return ReleaseNews(advisories=tuple(_merged(entries)), yanked=yanked)


def _page_url(index: str, name: str, version: str) -> str | None:
    """Return the URL of the page about a release, for the simple index at *index*; None if it has none.

    PyPI, devpi, Artifactory and Nexus have both below one folder: ``simple/`` and ``pypi/``.
    """
    parts = urlsplit(index)
    head, _, last = parts.path.rstrip("/").rpartition("/")
    if last != "simple" or parts.scheme not in {"http", "https"}:
        return None
    path = f"{head}/pypi/{quote(name)}/{quote(version)}/json"
    return urlunsplit(parts._replace(path=path))


def _advisory(entry: _AdvisoryEntry) -> Advisory:
    summary = entry.summary or (entry.details or "").strip().partition("\n")[0]
    return Advisory(
        id=entry.id,
        aliases=tuple(sorted(set(entry.aliases) - {entry.id})),
        summary=summary,
        fixed_in=_ordered(entry.fixed_in),
        link=entry.link,
    )


def _merged(advisories: Iterable[Advisory]) -> list[Advisory]:
    """Return the advisories with those of one vulnerability joined: databases name each other's ids."""
    merged: list[Advisory] = []
    place: dict[str, int] = {}  # of each id
    for advisory in sorted(advisories, key=lambda one: one.id):
        at = next((place[one] for one in advisory.ids if one in place), len(merged))
        if at == len(merged):
            merged.append(advisory)
        else:
            same = merged[at]
            merged[at] = replace(
                same,
                aliases=tuple(sorted({*same.ids, *advisory.ids} - {same.id})),
                summary=same.summary or advisory.summary,
                fixed_in=_ordered({*same.fixed_in, *advisory.fixed_in}),
            )
        place |= dict.fromkeys(advisory.ids, at)
    return merged


def _ordered(versions: Iterable[str]) -> tuple[str, ...]:
    def place(text: str) -> tuple[int, Version, str]:
        try:
            return 0, Version(text[:VERSION]), text
        except InvalidVersion:
            return 1, Version("0"), text

    return tuple(sorted(set(versions), key=place))
