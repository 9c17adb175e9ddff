"""Parse pages of the simple repository API to File records.  Nothing is fetched here.

JSON after PEP 691, 700 and 792; HTML after PEP 503, 592, 629, 658 and 714.
A parsed page is kept as plain *rows*, which load many times faster than the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from colablock._common.urls import basename, redacted, split_fragment
from colablock.errors import FetchFailed
from colablock.index.candidates import File

__all__ = ["ACCEPT", "Listing", "parse_page"]

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
_NO_INDEX = "Check that the URL is that of a simple index (PEP 503): it often ends with `/simple/`"
_MAJOR = "1"  # of the API (PEP 629): a page of another one must not be read

Row = list[Any]  # filename, url, hashes, size, upload time (epoch), requires-python, yanked, core-metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of one page, as rows.  *status* is the project's (PEP 792), None when active."""

    rows: Sequence[Row]
    status: str | None = None

    def files(self, index: str | None, naming: Callable[[str], str] | None = None) -> list[File]:
        """Return the files, listed by the index of that URL; *naming* tells what a link stands for."""
        return [_file(row, index, naming, self.status) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` reads."""
        return {"rows": self.rows, "status": self.status}

    @classmethod
    def from_json(cls, data: Any) -> Listing | None:
        """Return the listing that ``to_json`` gave; None when *data* is nothing of the kind."""
        if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
            return None
        if any(not isinstance(row, list) or len(row) != 8 for row in data["rows"]):  # noqa: PLR2004 - see Row
            return None
        return cls(rows=data["rows"], status=data.get("status"))


def parse_page(body: bytes, content_type: str, url: str, *, base: str | None = None) -> Listing:
    """Return the files of a project page or a page of links.

    *url* is where the page came from, *base* what its links are relative to
    where that is another one.  Raises FetchFailed for a page that cannot be read
    or is of a later major version.
    """
    base = base or url
    kind = content_type.partition(";")[0].strip().lower()
    if kind.endswith("json"):
        return _parse_json(body, url, base)
    if kind in {"text/html", "application/vnd.pypi.simple.v1+html", "application/xhtml+xml", ""}:
        return _parse_html(body, content_type, url, base)
    raise FetchFailed(
        f"`{redacted(url)}` is neither a JSON nor an HTML page but `{kind}`",
        url=redacted(url),
        hint=_NO_INDEX,
    )


def _parse_json(body: bytes, url: str, base: str) -> Listing:
    try:
        page = json.loads(body)
        version = str(page["meta"]["api-version"])
        _check_version(version, url)
        status = page.get("project-status") or {}
        rows = [_json_row(entry, base) for entry in page["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"`{redacted(url)}` is not a page of a simple index: {_fault(body, error)}"
        raise FetchFailed(message, url=redacted(url), hint=_NO_INDEX) from error
    return Listing(rows=rows, status=_status(status))


def _fault(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "it is empty"
    if isinstance(error, ValueError):
        return f"it is not JSON ({error})"
    return f"it has no `{error.args[0]}`" if isinstance(error, KeyError) else f"it has another form ({error})"


def _status(status: Any) -> str | None:
    """Return the status of a project and its reason (PEP 792); None if it is active."""
    name = status.get("status", "active") if isinstance(status, dict) else str(status)
    if name == "active":
        return None
    reason = status.get("reason") if isinstance(status, dict) else None
    return f"{name}: {reason}" if reason else name


def _json_row(entry: Mapping[str, Any], page: str) -> Row:
    url = entry["url"]
    # urljoin is slow, and nearly every link of a large index is absolute.
    url = url if url.startswith(("https://", "http://")) else urljoin(page, url)
    url, fragment_hashes = split_fragment(url) if "#" in url else (url, {})
    announced = entry.get(
        "core-metadata", entry.get("dist-info-metadata", entry.get("data-dist-info-metadata"))
    )
    yanked = entry.get("yanked", False)
    return [
        entry["filename"],
        url,
        entry.get("hashes") or fragment_hashes,
        entry.get("size"),
        _epoch(entry.get("upload-time")),
        entry.get("requires-python") or None,
        None if yanked is False else "" if yanked is True else str(yanked),
        announced if isinstance(announced, dict) else bool(announced),
    ]


def _parse_html(body: bytes, content_type: str, url: str, base: str) -> Listing:
    parameters = content_type.lower().partition("charset=")
    charset = parameters[2].split(";")[0].strip().strip("\"'") or "utf-8"
    parser = _Anchors(url, base)
    try:
        parser.feed(body.decode(charset, "replace"))
    except LookupError:
        parser.feed(body.decode("utf-8", "replace"))
    parser.close()
    return Listing(rows=parser.rows, status=parser.status)


class _Anchors(HTMLParser):
    """Collects the anchors of a page (PEP 503)."""

    def __init__(self, url: str, base: str) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._status: dict[str, str] = {}
        self._page = url
        self._base = base

    @property
    def status(self) -> str | None:
        return _status(self._status)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "a" and attributes.get("href"):
            self.rows.append(self._row(attributes["href"] or "", attributes))
        elif tag == "base" and attributes.get("href"):
            self._base = urljoin(self._base, attributes["href"] or "")
        elif tag == "meta" and attributes.get("name") == "pypi:repository-version":
            _check_version(attributes.get("content") or "", self._page)
        elif tag == "meta" and attributes.get("name") == "pypi:project-status":
            self._status["status"] = attributes.get("content") or "active"
        elif tag == "meta" and attributes.get("name") == "pypi:project-status-reason":
            self._status["reason"] = attributes.get("content") or ""

    def _row(self, href: str, attributes: Mapping[str, str | None]) -> Row:
        url, hashes = split_fragment(urljoin(self._base, href.strip()))
        announced = attributes.get("data-core-metadata", attributes.get("data-dist-info-metadata"))
        name, _, value = (announced or "").partition("=")
        metadata: Mapping[str, str] | bool = {name: value} if value else announced == "true"
        yanked = attributes.get("data-yanked") or "" if "data-yanked" in attributes else None
        filename = unquote(urlsplit(url).path).rpartition("/")[2] or basename(url)
        return [
            filename,
            url,
            hashes,
            None,
            None,
            attributes.get("data-requires-python") or None,
            yanked,
            metadata,
        ]


def _check_version(version: str, url: str) -> None:
    if version.partition(".")[0] != _MAJOR:
        message = (
            f"`{redacted(url)}` has version {version} of the simple API, and colablock reads version {_MAJOR}"
        )
        raise FetchFailed(message, url=redacted(url), hint="a newer colablock may read it")


def _epoch(text: str | None) -> float | None:
    """Return a PEP 700 upload time as seconds; None if it is missing or invalid."""
    if not text:
        return None
    try:
        # Before 3.11 fromisoformat takes no `Z` and only 0, 3 or 6 digits of a second.
        head, _, fraction = text.removesuffix("Z").partition(".")
        moment = datetime.fromisoformat(f"{head}.{fraction[:6]:0<6}" if fraction else head)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _file(row: Row, index: str | None, naming: Callable[[str], str] | None, status: str | None) -> File:
    filename, url, hashes, size, uploaded, requires_python, yanked, core_metadata = row
    return File(
        filename=filename,
        url=naming(url) if naming is not None else url,
        hashes=hashes,
        size=size,
        upload_time=None if uploaded is None else datetime.fromtimestamp(uploaded, timezone.utc),
        requires_python=requires_python,
        yanked=yanked,
        core_metadata=core_metadata,
        index=index,
        status=status,
    )
