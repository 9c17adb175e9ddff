"""Read the page of a project, judge what its links prove, and name the index in errors.

A page may have thousands of files, and a solve looks at those of a few versions.  So a page is kept as lines
of JSON: the versions, then the files of each, which are decoded when somebody asks for them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlsplit

import msgspec

from colablock._common import limits
from colablock._common.decoding import Malformed, decode, encode
from colablock._common.urls import local_path, redacted
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.requirements import version_of
from colablock.index.candidates import STRONG_HASHES, Reason, Rejection
from colablock.index.evaluator import FilesByVersion, version_in
from colablock.index.simple_api import ACCEPT, Listing, first_upload, not_a_page, parse_page
from colablock.network.settings import mirror_variable

if TYPE_CHECKING:
    from colablock._vendor.packaging.version import Version
    from colablock.errors import FetchFailed
    from colablock.index.candidates import Candidate, File, ProjectCandidates
    from colablock.index.simple_api import FileRow
    from colablock.matrix.model import Index
    from colablock.network.fetcher import Fetcher, Page

__all__ = [
    "UNHASHED",
    "of_index",
    "project_files",
    "project_url",
    "read_page",
    "unread_metadata",
    "with_status",
]

#: Why a file without a strong hash is not installed.  A lock may record the hash of the file that it fetched.
UNHASHED = "is listed without a sha256, sha384 or sha512 (`colablock lock` can fetch it and record its hash)"


def project_url(index: str, name: NormalizedName) -> str:
    """Return the URL of a project's page (PEP 503).  A query of the index's URL stays at the end."""
    head, mark, query = index.partition("?")
    return f"{head.rstrip('/')}/{quote(name)}/{mark}{query}"


def project_files(fetcher: Fetcher, index: str, name: NormalizedName) -> list[File]:
    """Return the files of every version that the index at the URL *index* lists; none if it has no page.

    Raises FetchFailed.
    """
    url = project_url(fetcher.learn_credentials(index), name)
    page = read_page(fetcher, url, redacted(index), name)
    return page[0].all() if page is not None else []


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a page in the cache: the *project* by whose name its files have *versions*.

    *uploaded* are the times of the first upload of each version, in microseconds since the epoch; None
    where no file has a valid one.
    """

    project: str
    versions: Annotated[list[str], msgspec.Meta(max_length=limits.FILES)]
    uploaded: Annotated[list[int | None], msgspec.Meta(max_length=limits.FILES)]
    status: str | None = None


def read_page(
    fetcher: Fetcher, url: str, index: str | None, name: NormalizedName | None = None
) -> tuple[FilesByVersion, str | None] | None:
    """Return the files that a page lists and the status of its project (PEP 792); None if there is no page.

    *index* is the URL that the files name as their index.  *name* is the project; None for a page of links,
    whose files have no version here.  Raises FetchFailed.
    """
    project = name or NormalizedName("")
    page = fetcher.get_page(url, ACCEPT, partial(_compact, project))
    if page is None:
        return None
    try:
        head, lines = _read_lines(page.body, project)
        versions = [version_of(one) for one in head.versions]
    except ValueError as error:  # Malformed or InvalidVersion
        raise not_a_page(url, str(error)) from error
    naming, line_of = fetcher.naming(page), dict(zip(versions, lines[1:], strict=True))

    def files(line: bytes) -> list[File]:
        return [_judged_link(file, page.base, fetcher) for file in _rows(line).files(index, naming)]

    found = FilesByVersion(
        versions=versions,
        uploaded=head.uploaded,
        read=lambda version: files(line_of[version]),
        others=lambda: files(lines[0]),
    )
    return found, head.status


def _compact(project: NormalizedName, page: Page) -> bytes:
    """Return the lines in which a page is kept.  Raises FetchFailed."""
    return _lines(project, parse_page(page.body, page.content_type, page.url, base=page.base))


def _lines(project: NormalizedName, listing: Listing) -> bytes:
    """Return the head, then the files without a version, then those of each version."""
    by_version: dict[Version | None, list[FileRow]] = {None: []}
    for row in listing.rows:
        by_version.setdefault(version_in(project, row.filename) if project else None, []).append(row)
    others = by_version.pop(None)
    versions = sorted(filter(None, by_version), reverse=True)
    head = _Head(
        project=project,
        versions=[str(one) for one in versions],
        uploaded=[first_upload(by_version[one]) for one in versions],
        status=listing.status,
    )
    groups = (others, *(by_version[one] for one in versions))
    # A `Listing` would check its rows once more.
    lines = ({"rows": rows, "status": listing.status} for rows in groups)
    return b"\n".join([encode(head), *map(encode, lines)])


def _read_lines(body: bytes, project: NormalizedName) -> tuple[_Head, list[bytes]]:
    """Return the head and the other lines of a page.  Raises Malformed."""
    first, *lines = body.split(b"\n")
    head = decode(first, _Head)
    if not len(head.uploaded) == len(head.versions) == len(lines) - 1:
        raise Malformed("it has another number of versions")
    if head.project == project:
        return head, lines
    # The URL is that of a page of links and that of a project.
    rows = [row for line in lines for row in _rows(line).rows]
    return _read_lines(_lines(project, Listing(rows=rows, status=head.status)), project)


def _rows(line: bytes) -> Listing:
    try:
        return decode(line, Listing)
    except Malformed:
        return Listing(rows=[])  # the cache has a checksum: somebody has written that


def _judged_link(file: File, page: str, fetcher: Fetcher) -> File:
    """Return *file*, marked if what the page at *page* says of it does not suffice to install it."""
    if file.url.startswith("https://") and "sha256" in file.hashes:
        return file  # the usual case, and a page may have thousands of files
    why = _distrust(file, page, fetcher)
    return file.replaced(untrusted=why) if why is not None else file


def _distrust(file: File, page: str, fetcher: Fetcher) -> str | None:
    """Return why the link of the page at *page* does not suffice to install *file*; None if it does.

    A hash proves a file only if it is a strong one, and a page over https must not hand over
    to http.  A local page, which the user or the matrix names, may list local files without hashes.
    """
    real = fetcher.place(file.url)
    is_mapped = real != file.url  # the user has set up a mirror
    if local_path(real) is not None:
        if is_mapped or local_path(page) is not None:
            return None
        return "is a local file, and its page is remote"
    scheme = urlsplit(real).scheme
    if scheme not in {"http", "https"}:
        return f"has an address of the scheme `{scheme}`"
    if scheme == "http" and page.startswith("https:") and not is_mapped:
        return "would be fetched over http, and its page is over https"
    return None if STRONG_HASHES & file.hashes.keys() else UNHASHED


def of_index(error: FetchFailed, what: str, index: Index) -> FetchFailed:
    """Return *error* with the request and the index, and a hint at a mirror."""
    url = redacted(index.url)
    where = f"the index `{index.name}`" + ("" if url in error.message else f" at `{url}`")
    hint = error.hint
    if error.is_passing:
        other = f"set {mirror_variable(index.name)} to a mirror of it"
        hint = f"{hint}, or {other}" if hint else other
    return error.reworded(f"{what} in {where}: {error.message}", hint=hint)


def unread_metadata(error: FetchFailed, candidate: Candidate, file: File) -> FetchFailed:
    """Return *error* with the candidate whose metadata was requested, and the index that lists the file."""
    where = f", which the index `{file.index}` lists" if file.index else ""
    message = f"the metadata of {candidate} cannot be read from `{file.filename}`{where}: {error.message}"
    return error.reworded(message)


def with_status(
    name: NormalizedName, status: str | None, judged: ProjectCandidates, url: str
) -> ProjectCandidates:
    """Return *judged* according to the status of its project (PEP 792).

    A quarantined project has no candidates.  A page without files, such as a login
    page, becomes a rejection.
    """
    if status is not None and status.startswith("quarantined"):
        reason, detail = Reason.EXCLUDED, f"its index has put {name} in quarantine ({status})"
        judged = replace(judged, candidates=())
    elif not (judged.candidates or judged.rejections):
        reason, detail = Reason.UNREADABLE, f"its page at `{redacted(url)}` lists no files"
    else:
        return judged
    refusal = Rejection(name=name, version=None, filename="", reason=reason, detail=detail)
    return replace(judged, rejections=(refusal, *judged.rejections))
