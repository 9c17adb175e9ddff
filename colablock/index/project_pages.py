"""Read the page of a project, judge what its links prove, and name the index in errors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from colablock._common.urls import local_path, redacted
from colablock.index.candidates import STRONG_HASHES, Reason, Rejection
from colablock.index.simple_api import ACCEPT, Listing, parse_page
from colablock.network.cache import ROWS
from colablock.network.settings import mirror_variable

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.errors import FetchFailed
    from colablock.index.candidates import Candidate, File, ProjectCandidates
    from colablock.matrix.model import Index
    from colablock.network.fetcher import Fetcher

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
    page = read_page(fetcher, url, redacted(index))
    return page[0] if page is not None else []


def read_page(fetcher: Fetcher, url: str, index: str | None) -> tuple[list[File], str | None] | None:
    """Return the files that a page lists and the status of its project (PEP 792); None if there is no page.

    *index* is the URL that the files name as their index.  Raises FetchFailed.
    """
    page = fetcher.get_page(url, ACCEPT)
    if page is None:
        return None
    key = f"{page.base}\n{page.digest}"
    listing = fetcher.cache.read_record(ROWS, key, Listing)
    if listing is None:
        listing = parse_page(page.body, page.content_type, page.url, base=page.base)
        fetcher.cache.write_record(ROWS, key, listing)
    files = [_judged_link(file, page.base, fetcher) for file in listing.files(index, fetcher.naming(page))]
    return files, listing.status


def _judged_link(file: File, page: str, fetcher: Fetcher) -> File:
    """Return *file*, marked if what the page at *page* says of it does not suffice to install it.

    A hash proves a file only if it is a strong one, and a page over https must not hand over
    to http.  A local page, which the user or the matrix names, may list local files without hashes.
    """
    if file.url.startswith("https://") and "sha256" in file.hashes:
        return file  # the usual case, and a page may have thousands of files
    real = fetcher.place(file.url)
    is_mapped = real != file.url  # the user has set up a mirror
    if local_path(real) is not None:
        if is_mapped or local_path(page) is not None:
            return file
        return replace(file, untrusted="is a local file, and its page is remote")
    scheme = urlsplit(real).scheme
    if scheme not in {"http", "https"}:
        return replace(file, untrusted=f"has an address of the scheme `{scheme}`")
    if scheme == "http" and page.startswith("https:") and not is_mapped:
        return replace(file, untrusted="would be fetched over http, and its page is over https")
    if not STRONG_HASHES & file.hashes.keys():
        return replace(file, untrusted=UNHASHED)
    return file


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
