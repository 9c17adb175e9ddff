"""Parse pages of the simple repository API to File records.  Nothing is fetched here.

JSON after PEP 691, 700 and 792; HTML after PEP 503, 592, 629, 658 and 714.

A page without the form of an index page is refused.  A file whose entry does not fit is
left out: uv and pip skip a file whose name or URL they cannot read, too, and one bad
upload must not make the whole project unusable.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Annotated, Generic, TypeAlias, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import msgspec

from colablock._common import limits
from colablock._common.decoding import Malformed, decode
from colablock._common.urls import basename, is_unclear, redacted, split_fragment
from colablock.errors import FetchFailed
from colablock.index.candidates import File

__all__ = ["ACCEPT", "FileRow", "Listing", "first_upload", "microseconds", "not_a_page", "parse_page"]

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
_NO_INDEX = "Check that the URL is that of a simple index (PEP 503): it often ends with `/simple/`"
_MAJOR = "1"  # of the API (PEP 629): a page of another one must not be read
#: Before 3.11 fromisoformat takes no `Z` and only 0, 3 or 6 digits of a second.
_READS_Z = sys.version_info >= (3, 11)

T = TypeVar("T")
_Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.FILE_NAME)]
_Url: TypeAlias = Annotated[str, msgspec.Meta(max_length=limits.URL)]
_Field: TypeAlias = Annotated[str, msgspec.Meta(max_length=limits.FIELD)]
_Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=limits.SIZE)]
_Hashes: TypeAlias = Annotated[dict[_Field, _Field], msgspec.Meta(max_length=20)]


class FileRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One file of a page.  *uploaded* is the text of the page (PEP 700); see `File` for the others."""

    filename: _Name
    url: _Url
    hashes: _Hashes
    size: _Size | None = None
    uploaded: str | None = None
    requires_python: _Field | None = None
    yanked: _Field | None = None
    core_metadata: bool | _Hashes = False


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one page, as rows.  *status* is the project's (PEP 792), None when active."""

    rows: Annotated[list[FileRow], msgspec.Meta(max_length=limits.FILES)]
    status: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a name that is no file name, and for a URL that cannot be split."""
        if not _are_valid(self.rows):
            message = "the name or the URL of a file is not valid"
            raise ValueError(message)

    def files(self, index: str | None, naming: Callable[[str], str] | None = None) -> list[File]:
        """Return the files, listed by the index of that URL; *naming* tells what a link stands for."""
        return [_file(row, index, naming, self.status) for row in self.rows]


class _Meta(msgspec.Struct):
    api_version: str | int | float = msgspec.field(name="api-version")


class _ProjectStatus(msgspec.Struct):
    status: str = "active"
    reason: str | None = None


class _Entry(msgspec.Struct, gc=False):
    """A file as a page has it (PEP 691, PEP 700)."""

    filename: _Name
    url: _Url
    hashes: _Hashes | None = None
    size: _Size | None = None
    upload_time: str | None = msgspec.field(name="upload-time", default=None)
    requires_python: _Field | None = msgspec.field(name="requires-python", default=None)
    yanked: bool | str | None = False
    core_metadata: bool | _Hashes | None = msgspec.field(name="core-metadata", default=None)
    dist_info_metadata: bool | _Hashes | None = msgspec.field(name="dist-info-metadata", default=None)
    data_dist_info_metadata: bool | _Hashes | None = msgspec.field(
        name="data-dist-info-metadata", default=None
    )


class _Page(msgspec.Struct, Generic[T]):
    """A page; *T* is `_Entry`, or `Raw` to leave out an entry that does not fit."""

    meta: _Meta
    files: Annotated[list[T], msgspec.Meta(max_length=limits.FILES)]
    project_status: _ProjectStatus | str | None = msgspec.field(name="project-status", default=None)


class _AnyPage(msgspec.Struct):
    meta: _Meta


def parse_page(body: bytes, content_type: str, url: str, *, base: str | None = None) -> Listing:
    """Return the files of a project page or a page of links.

    *url* is where the page came from, *base* what its links are relative to
    where that is another one.  Raises FetchFailed for a page that cannot be read,
    is too large or is of a later major version.
    """
    base = base or url
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind.endswith("json"):
            return _parse_json(body, url, base)
        if kind in {"text/html", "application/vnd.pypi.simple.v1+html", "application/xhtml+xml", ""}:
            return _parse_html(body, content_type, url, base)
    except Malformed as error:
        raise not_a_page(url, "it is empty" if not body.strip() else str(error)) from error
    raise FetchFailed(
        f"`{redacted(url)}` is neither a JSON nor an HTML page but `{kind[: limits.SHOWN]}`",
        url=redacted(url),
        hint=_NO_INDEX,
    )


def not_a_page(url: str, why: str) -> FetchFailed:
    """Return the error for what *url* sent, which is not a page."""
    message = f"`{redacted(url)}` is not a page of a simple index: {why}"
    return FetchFailed(message, url=redacted(url), hint=_NO_INDEX)


def _parse_json(body: bytes, url: str, base: str) -> Listing:
    try:
        page = decode(body, _Page[_Entry])
    except Malformed:
        return _parse_loosely(body, url, base)
    _check_version(str(page.meta.api_version), url)
    rows = [row for entry in page.files if (row := _row(entry, base)) is not None]
    return _listing(rows, page.project_status)


def _parse_loosely(body: bytes, url: str, base: str) -> Listing:
    """Return the files of a page some of whose entries do not fit."""
    _check_version(str(decode(body, _AnyPage).meta.api_version), url)
    page = decode(body, _Page[msgspec.Raw])
    rows: list[FileRow] = []
    faults: list[str] = []
    for raw in page.files:
        try:
            row = _row(decode(bytes(raw), _Entry), base)
            rows += [row] if row is not None else []
        except Malformed as error:  # noqa: PERF203 - each entry has its own fault
            faults.append(str(error))
    if faults and not rows:
        raise Malformed(f"none of its {len(faults)} files can be read: {faults[0]}")
    return _listing(rows, page.project_status)


def _status(status: _ProjectStatus | str | None) -> str | None:
    """Return the status of a project and its reason (PEP 792); None if it is active."""
    name = status.status if isinstance(status, _ProjectStatus) else status
    if not name or name == "active":
        return None
    reason = status.reason if isinstance(status, _ProjectStatus) else None
    return (f"{name}: {reason}" if reason else name)[: limits.FIELD]


def _are_valid(rows: Sequence[FileRow]) -> bool:
    """Whether the names of all *rows* are file names, and their URLs can be split.

    They are checked together, since that takes a tenth of the time.
    """
    names, urls = "".join([row.filename for row in rows]), "".join([row.url for row in rows])
    if "/" in names or "\\" in names or not names.isprintable() or not urls.isprintable():
        return False
    if urls.isascii() and not ("@" in urls or "[" in urls or "]" in urls or "\\" in urls):
        return True  # it has nothing that urlsplit may refuse or misread
    return all(map(_has_clear_host, rows))


def _has_clear_host(row: FileRow) -> bool:
    try:
        return not (urlsplit(row.url).scheme in {"http", "https"} and is_unclear(row.url))
    except ValueError:
        return False


def _listing(rows: list[FileRow], status: _ProjectStatus | str | None) -> Listing:
    """Return the listing of *rows* without those that are not valid."""
    kept = rows if _are_valid(rows) else [row for row in rows if _are_valid([row])]
    kept = [row for row in kept if len(row.filename) <= limits.FILE_NAME and len(row.url) <= limits.URL]
    return Listing(rows=kept, status=_status(status))


def _row(entry: _Entry, page: str) -> FileRow | None:
    """Return the row of *entry*; None if its URL is invalid."""
    url, hashes = entry.url, entry.hashes
    # urljoin is slow, and nearly every link of a large index is absolute.
    if not url.startswith(("https://", "http://")):
        joined = _joined(page, url)
        if joined is None:
            return None
        url = joined
    if "#" in url:
        url, named = split_fragment(url)
        hashes = hashes or named
    announced = entry.core_metadata
    if announced is None:
        announced = entry.dist_info_metadata
    if announced is None:
        announced = entry.data_dist_info_metadata or False
    yanked = entry.yanked
    if yanked is not None and not isinstance(yanked, str):
        yanked = "" if yanked else None
    return FileRow(
        entry.filename,
        url,
        hashes or {},
        entry.size,
        entry.upload_time,
        entry.requires_python or None,
        yanked[: limits.FIELD] if yanked else yanked,
        announced,
    )


def _parse_html(body: bytes, content_type: str, url: str, base: str) -> Listing:
    if len(body) > limits.HTML_PAGE:
        raise Malformed(f"it is larger than {limits.HTML_PAGE >> 20} MiB")
    parameters = content_type.lower().partition("charset=")
    charset = parameters[2].split(";")[0].strip().strip("\"'") or "utf-8"
    try:
        text = body.decode(charset, "replace")
    except (
        LookupError,
        ValueError,
    ):  # unknown, no text encoding, or a NUL in its name
        text = body.decode("utf-8", "replace")
    return _anchors(text, url, base)


def _anchors(text: str, page: str, base: str) -> Listing:
    """Return the anchors of a page (PEP 503)."""
    from colablock.index.html_page import start_tags  # noqa: PLC0415 - most indexes send JSON

    rows: list[FileRow] = []
    status: dict[str, str] = {}
    for tag, attributes in start_tags(text, limits.URL):
        if tag == "a" and attributes.get("href"):
            rows += _anchor(base, attributes)
            if len(rows) > limits.FILES:
                raise Malformed(f"it has more than {limits.FILES} files")
        elif tag == "base" and attributes.get("href"):
            base = _joined(base, attributes["href"]) or base
        elif tag == "meta" and attributes.get("name") == "pypi:repository-version":
            _check_version(attributes.get("content", ""), page)
        elif tag == "meta":
            status[attributes.get("name", "")] = attributes.get("content", "")
    found = _ProjectStatus(
        status=status.get("pypi:project-status") or "active", reason=status.get("pypi:project-status-reason")
    )
    return _listing(rows, found)


def _anchor(base: str, attributes: Mapping[str, str]) -> Iterator[FileRow]:
    """Yield the row of an anchor; nothing if its name or URL is invalid."""
    announced = attributes.get("data-core-metadata", attributes.get("data-dist-info-metadata", ""))
    announced = announced[: limits.FIELD]
    name, _, value = announced.partition("=")
    try:
        url, hashes = split_fragment(urljoin(base, attributes["href"].strip()))
        yield FileRow(
            unquote(urlsplit(url).path).rpartition("/")[2] or basename(url),
            url,
            hashes,
            None,
            None,
            attributes.get("data-requires-python", "")[: limits.FIELD] or None,
            attributes["data-yanked"][: limits.FIELD] if "data-yanked" in attributes else None,
            {name: value} if value else announced == "true",
        )
    except ValueError:  # an invalid URL
        return


def _joined(base: str, href: str) -> str | None:
    try:
        return urljoin(base, href)
    except ValueError:
        return None


def _check_version(version: str, url: str) -> None:
    if version.partition(".")[0] != _MAJOR:
        message = (
            f"`{redacted(url)}` has version {version[: limits.SHOWN]} of the simple API,"
            f" and colablock reads version {_MAJOR}"
        )
        raise FetchFailed(message, url=redacted(url), hint="a newer colablock may read it")


_MICROSECOND = timedelta(microseconds=1)
_IN_UTC = re.compile(r"2[0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?Z")
_EPOCH = datetime.fromtimestamp(0, timezone.utc)


def _moment(text: str | None) -> datetime | None:
    """Return a PEP 700 upload time in UTC; None if it is missing or invalid."""
    if not text:
        return None
    try:
        if not _READS_Z:
            head, _, fraction = text.removesuffix("Z").partition(".")
            text = f"{head}.{fraction[:6]:0<6}" if fraction else head
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is timezone.utc:  # as good as always
            return moment if moment >= _EPOCH else None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
        return datetime.fromtimestamp(seconds, timezone.utc) if seconds >= 0 else None
    except (ValueError, OverflowError):
        return None


def microseconds(moment: datetime) -> int:
    """Return the time since the epoch."""
    return (moment - _EPOCH) // _MICROSECOND


def first_upload(rows: Sequence[FileRow]) -> int | None:
    """Return the time of the first upload in microseconds; None if no file has a valid time (PEP 700)."""
    texts = [row.uploaded for row in rows if row.uploaded]
    if len({len(text) for text in texts}) == 1 and all(map(_IN_UTC.fullmatch, texts)):
        first = _moment(min(texts))
        if first is not None:  # in the usual form, the texts have the order of the times
            return microseconds(first)
    times = [moment for moment in map(_moment, texts) if moment is not None]
    return microseconds(min(times)) if times else None


def _file(row: FileRow, index: str | None, naming: Callable[[str], str] | None, status: str | None) -> File:
    return File(
        filename=row.filename,
        url=naming(row.url) if naming is not None else row.url,
        hashes=row.hashes,
        size=row.size,
        upload_time=_moment(row.uploaded),
        requires_python=row.requires_python,
        yanked=row.yanked,
        core_metadata=row.core_metadata,
        index=index,
        status=status,
    )
