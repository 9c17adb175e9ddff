"""Copies of listed files that need no network: those of the cache, and those in folders of find-links.

A copy counts only by its hash, so it does not matter which index or lock lists the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import file_digest
from colablock._common.urls import local_path, redacted
from colablock.errors import BadDistribution, FetchFailed

if TYPE_CHECKING:
    from colablock.network.cache import Cache
    from colablock.network.download import Fetchable

__all__ = ["LocalCopies", "check_name"]

#: The hashes that prove a copy, the one by which the cache keeps files first.
_PROVING = ("sha256", "sha512", "sha384")
_SHOWN = 5  # files in a message
_ONLINE = "run this once without `--offline` and COLABLOCK_OFFLINE"


class LocalCopies:
    """The copies in *cache* and in the folders of *links*, which are find-links.

    Of a page of links on this machine, the files beside it count.
    """

    def __init__(self, cache: Cache, links: Iterable[str]) -> None:
        self._cache = cache
        self._links = tuple(links)
        self._folders = [_folder(path) for path in map(local_path, self._links) if path is not None]

    def find(self, file: Fetchable, *, hash_again: bool = False) -> Path | None:
        """Return the copy of *file*; None if there is none, or the file is listed without a strong hash.

        Without *hash_again*, the hash of a copy in a folder may be that of an earlier call, if the
        size and mtime of the copy are the same.  That is for listing only: other users may write there.
        """
        expected = _strong(file.hashes)
        if not expected:
            return None
        sha256 = expected.get("sha256") or self._cache.sha256_of(expected)
        cached = self._cache.file(sha256) if sha256 else None
        return cached or self._beside(file, expected, hash_again=hash_again)

    def _beside(self, file: Fetchable, expected: Mapping[str, str], *, hash_again: bool) -> Path | None:
        check_name(file.filename)
        for folder in self._folders:
            path = folder / file.filename
            try:
                if path.is_file() and self._is_same(path, expected, hash_again=hash_again):
                    return path
            except (OSError, ValueError):  # unreadable, or no valid path
                continue
        return None

    def _is_same(self, path: Path, expected: Mapping[str, str], *, hash_again: bool) -> bool:
        if "sha256" in expected and not hash_again:
            return self._cache.local_digest(path) == expected["sha256"]
        return all(file_digest(path, name) == value for name, value in expected.items())

    def missing(self, files: Sequence[Fetchable]) -> FetchFailed:
        """Return the error for *files* of which there is no copy, while colablock is offline."""
        names = ", ".join(f"`{file.filename}`" for file in files)
        lines = [f"not in the cache, and colablock is offline: {names}"]
        lines += [line for file in files if (line := self._another(file)) is not None][:_SHOWN]
        return FetchFailed("\n  ".join(lines), url=redacted(files[0].url), hint=self.hint(len(files)))

    def _another(self, file: Fetchable) -> str | None:
        """Return a sentence about the file in a folder that has the name of *file* and another hash."""
        expected = _strong(file.hashes)
        for folder in self._folders if expected else ():
            path = folder / file.filename
            try:
                if path.is_file():
                    name, value = next(iter(expected.items()))
                    return f"`{path}` has the {name} {file_digest(path, name)}, expected {value}"
            except (OSError, ValueError):
                continue
        return None

    def hint(self, number: int = 0) -> str:
        """Return what helps while colablock is offline: *number* files are missing, or a page of an index."""
        if not self._links:
            return f"{_ONLINE[0].upper()}{_ONLINE[1:]}, or name a folder with `--find-links`"
        it = {0: "the files", 1: "it"}.get(number, "them")
        places = " or ".join(f"`{redacted(link)}`" for link in self._links)
        return f"Put {it} into {places}, or {_ONLINE}"


def check_name(filename: str) -> None:
    """Raise BadDistribution unless *filename* is a plain file name."""
    if filename in {"", ".", ".."} or re.search(r"[/\\\0]", filename):
        raise BadDistribution(f"{filename!r} is not a valid file name")


def _folder(path: Path) -> Path:
    try:
        return path.parent if path.is_file() else path
    except (OSError, ValueError):
        return path


def _strong(hashes: Mapping[str, str]) -> dict[str, str]:
    known = {name.lower(): value.lower() for name, value in hashes.items()}
    return {name: known[name] for name in _PROVING if name in known}
