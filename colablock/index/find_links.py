"""Files in ``--find-links`` folders and pages of links, by project."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from colablock._common.once_map import OnceMap
from colablock._common.urls import redacted
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.errors import FetchFailed
from colablock.index.candidates import File
from colablock.network.fetcher import Fetcher

__all__ = ["WHEELS_AND_SDISTS", "FindLinks"]

WHEELS_AND_SDISTS = (".whl", ".tar.gz", ".zip", ".tgz", ".tar.bz2", ".tar.xz")
_NO_LINKS = "correct `--find-links`, or the setting it was taken from"


class FindLinks:
    """The files of folders and pages of links.  Each *link* is read once; safe to use from several threads.

    *list_page* returns the files that the page at a URL lists, None if there is no page.
    With *may_be_missing* a folder or a page that is not there has no files.
    """

    def __init__(
        self,
        links: Sequence[str],
        fetcher: Fetcher,
        list_page: Callable[[str], Sequence[File] | None],
        *,
        may_be_missing: bool = False,
    ) -> None:
        self._links = tuple(links)
        self._fetcher = fetcher
        self._list_page = list_page
        self._may_be_missing = may_be_missing
        self._read_once: OnceMap[str, Mapping[NormalizedName, Sequence[File]]] = OnceMap()

    @property
    def places(self) -> tuple[str, ...]:
        """The folders and URLs, without passwords."""
        return tuple(redacted(link) for link in self._links)

    def files(self, name: NormalizedName) -> list[File]:
        """Return the files that may be of *name*, local ones with their sha256; of equal names the first.

        Raises FetchFailed.
        """
        files: dict[str, File] = {}
        for link in self._links:
            for file in self._of_link(link).get(name, ()):
                files.setdefault(file.filename, file)
        return [self._hashed(file) for file in files.values()]

    def _of_link(self, link: str) -> Mapping[NormalizedName, Sequence[File]]:
        return self._read_once.get(link, lambda: self._read(link))

    def _read(self, link: str) -> Mapping[NormalizedName, Sequence[File]]:
        """Return the files of a folder or of a page of links, by project."""
        found: dict[NormalizedName, list[File]] = {}
        for file in self._listed(link):
            for name in _possible_names(file.filename):
                found.setdefault(name, []).append(file)
        return found

    def _listed(self, link: str) -> Sequence[File]:
        path = self._fetcher.local(link)
        if path is not None and not os.path.exists(path):  # noqa: PTH110 - Path raises if a name is too long
            if self._may_be_missing:
                return ()
            message = f"there is no folder `{path}` to find files in"
            raise FetchFailed(message, url=link, hint=_NO_LINKS)
        if path is not None and path.is_dir():
            return [
                File(filename=file.name, url=file.resolve().as_uri(), size=file.stat().st_size)
                for file in sorted(path.iterdir())
                if file.name.endswith(WHEELS_AND_SDISTS) and file.is_file()
            ]
        listed = self._list_page(link)
        if listed is None and self._may_be_missing:
            return ()
        if listed is None:
            message = f"the page of files `{redacted(link)}` is not there (404)"
            raise FetchFailed(message, url=redacted(link), status=404, hint=_NO_LINKS)
        return listed

    def _hashed(self, file: File) -> File:
        """Return a local *file* with its sha256, which a lock needs; any other file as it is."""
        path = self._fetcher.local(file.url)
        if path is None or "sha256" in file.hashes:
            return file
        try:
            return file.replaced(hashes={"sha256": self._fetcher.cache.local_digest(path)})
        except OSError as error:
            raise FetchFailed(f"`{path}` cannot be read: {error.strerror}", url=file.url) from error


def _possible_names(filename: str) -> set[NormalizedName]:
    """Return the projects that a file may belong to: the name of an sdist may contain dashes."""
    stem = re.sub(r"(\.whl|\.tar\.gz|\.zip|\.tgz|\.tar\.bz2|\.tar\.xz)$", "", filename)
    if filename.endswith(".whl"):
        return {canonicalize_name(stem.partition("-")[0])}
    return {canonicalize_name(stem[: match.start()]) for match in re.finditer("-", stem)}
