"""Copies of listed files that need no network: in the cache, in folders of find-links, in a bundle.

A copy counts only by its hash, so it does not matter which index or lock lists the file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from colablock._common.fs import NEW, file_digest, make_private
from colablock._common.urls import local_path, redacted
from colablock.errors import BadDistribution, FetchFailed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from colablock.bundles.manifest import BundleMember
    from colablock.bundles.reader import Bundle
    from colablock.network.cache import Cache
    from colablock.network.download import Fetchable

__all__ = ["LocalCopies", "check_name"]

#: The hashes that prove a copy, the one by which the cache keeps files first.
_PROVING = ("sha256", "sha512", "sha384")
_SHOWN = 5  # files in a message
_ONLINE = "run this once without `--offline` and COLABLOCK_OFFLINE"


class LocalCopies:
    """The copies in *cache*, in the folders of *links*, which are find-links, and in *bundle*.

    Of a page of links on this machine, the files beside it count.  With *offline*, a file that nothing
    lists a hash of is the one that its URL gave before.
    """

    def __init__(
        self, cache: Cache, links: Iterable[str], bundle: Bundle | None = None, *, offline: bool = False
    ) -> None:
        self._cache = cache
        self._offline = offline
        self._bundle = bundle
        self._links = tuple(links)
        self._folders = [_folder(path) for path in map(local_path, self._links) if path is not None]

    def find(self, file: Fetchable, *, hash_again: bool = False) -> Path | None:
        """Return the copy of *file* on disk; None if there is none, or it is listed without a strong hash.

        Without *hash_again*, the hash of a copy in a folder may be that of an earlier call, if the
        size and mtime of the copy are the same.  That is for listing only: other users may write there.
        """
        expected = _strong(file.hashes)
        if not expected:
            known = self._cache.sha256_at(redacted(file.url)) if self._offline else None
            return self._cache.file(known) if known else None
        sha256 = expected.get("sha256") or self._cache.sha256_of(expected)
        cached = self._cache.file(sha256) if sha256 else None
        return cached or self._beside(file, expected, hash_again=hash_again)

    def by_name(self, filename: str) -> Path | None:
        """Return the file of that name in a folder, whatever its hash: the caller proves it otherwise."""
        check_name(filename)
        paths = (folder / filename for folder in self._folders)
        return next((path for path in paths if path.is_file()), None)

    def has(self, file: Fetchable) -> bool:
        """Whether there is a copy of *file* on disk or in the bundle."""
        return self._packed(file) is not None or self.find(file) is not None

    def unpack(self, file: Fetchable, to: Path, progress: Callable[[int], None] | None = None) -> bool:
        """Copy *file* from the bundle to *to* and check its hashes; return whether this was done.

        A file that is on disk already is left in the bundle.  Raises BadDistribution, and
        FetchFailed if *to* cannot be written.
        """
        member = self._packed(file)
        if member is None or self._bundle is None or self.find(file, hash_again=True) is not None:
            return False
        try:
            self._bundle.copy(member, to, progress=progress)
            for name, value in _strong(file.hashes).items():
                if name != "sha256" and file_digest(to, name) != value:
                    to.unlink()
                    message = f"`{file.filename}` in the bundle `{self._bundle.path}` has another {name}"
                    raise BadDistribution(f"{message} than its lock lists")
        except OSError as error:
            raise FetchFailed(f"`{to}` cannot be written: {error.strerror or error}", url=file.url) from error
        return True

    def into_cache(self, file: Fetchable) -> Path | None:
        """Return *file* from the bundle, copied into the cache; None if the bundle has none."""
        member = self._packed(file)
        if member is None:
            return None
        with tempfile.TemporaryDirectory(prefix=NEW, dir=make_private(self._cache.unfinished)) as folder:
            copy = Path(folder) / file.filename
            return self._cache.keep_file(member.sha256, copy) if self.unpack(file, copy) else None

    def packed(self, file: Fetchable) -> AbstractContextManager[IO[bytes]] | None:
        """Return *file* to be read in the bundle, where only parts of it are needed; None if it has none."""
        member = self._packed(file)
        return self._bundle.opened(member) if member is not None and self._bundle is not None else None

    def _packed(self, file: Fetchable) -> BundleMember | None:
        is_proven = self._bundle is not None and bool(_strong(file.hashes))
        return self._bundle.file(file.filename, file.hashes) if self._bundle and is_proven else None

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
        if self._bundle is not None:
            message = f"`{self._bundle.path}` lacks files that this environment needs: {names}"
            hint = "Make the bundle on such an environment, or for it, with `--runtime` or `--python`"
            return FetchFailed(message, url=redacted(files[0].url), hint=hint)
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
