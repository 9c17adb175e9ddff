"""The page of a project in an index: fetched, parsed, and kept in the cache already parsed."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from colablock._common.urls import redacted
from colablock.index.simple_api import ACCEPT, Listing, parse_page
from colablock.network.cache import ROWS

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.index.candidates import File
    from colablock.network.fetcher import Fetcher

__all__ = ["project_files", "project_url", "read_page"]


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
    listing = Listing.from_json(fetcher.cache.read_json(ROWS, key))
    if listing is None:
        listing = parse_page(page.body, page.content_type, page.url, base=page.base)
        fetcher.cache.write_json(ROWS, key, listing.to_json())
    return listing.files(index, fetcher.naming(page)), listing.status
