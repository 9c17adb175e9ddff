"""Fetch the metadata of a file in the cheapest trustworthy way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.errors import BadDistribution, FetchFailed
from colablock.index.candidates import File
from colablock.index.core_metadata import (
    CoreMetadata,
    RemoteFile,
    parse_core_metadata,
    read_wheel_metadata,
    static_metadata,
)
from colablock.network.fetcher import Fetcher

__all__ = ["MetadataSource", "contents_key", "remote_wheel"]

_TAIL = 1 << 16  # holds the directory and the metadata of all but the largest wheels


class MetadataSource:
    """The core metadata of wheels and sdists, cached on disk by index, URL and hash.

    For a wheel: the wheel if it is at hand, else its metadata file (PEP 658), else a range
    request for its end, else the whole wheel.  For an sdist: its static metadata,
    else the result of *build*, if given.
    """

    def __init__(self, fetcher: Fetcher, build: Callable[[Path], Path] | None = None) -> None:
        self._fetcher = fetcher
        self._build = build

    def read(self, name: NormalizedName, version: Version | None, file: File) -> CoreMetadata:
        """Return the metadata of *file*.  Raises BadDistribution if it is of another project or version."""
        key = contents_key(self._fetcher, file)
        cached = self._cached(key) if key is not None else None
        if cached is not None:
            return cached
        found = self._read_wheel(file) if file.is_wheel else self._read_sdist(file)
        found.check(name, version, file.filename)
        if key is not None:
            found = found.judged()
            self._fetcher.cache.write_record("metadata", key, found)
        return found

    def _cached(self, key: str) -> CoreMetadata | None:
        return self._fetcher.cache.read_record("metadata", key, CoreMetadata)

    def _read_wheel(self, file: File) -> CoreMetadata:
        is_here = self._fetcher.copies.find(file) is not None
        if file.core_metadata is not False and not is_here:
            announced = self._announced(file)
            if announced is not None:
                return announced
        if self._fetcher.local(file.url) is None and not is_here:
            partly = remote_wheel(self._fetcher, file)
            if partly is not None:
                return read_wheel_metadata(partly, file.filename)
        path = self._fetcher.fetch(file)
        with path.open("rb") as stream:
            return read_wheel_metadata(stream, file.filename)

    def _announced(self, file: File) -> CoreMetadata | None:
        """Return the metadata file of a wheel (PEP 658); None if the index announces it but has none."""
        hashes: Mapping[str, str] = file.core_metadata if isinstance(file.core_metadata, Mapping) else {}
        try:
            return parse_core_metadata(self._fetcher.get_bytes(f"{file.url}.metadata", hashes))
        except FetchFailed as error:
            if error.status == 404:  # noqa: PLR2004 - HTTP says so
                return None
            raise

    def _read_sdist(self, file: File) -> CoreMetadata:
        path = self._fetcher.fetch_named(file)
        static = static_metadata(path)
        if static is not None:
            return static
        if self._build is None:
            message = f"`{file.filename}` has no static metadata, so it has to be built"
            raise BadDistribution(message, hint="Add it to options.allow-build")
        wheel = self._build(path)
        with wheel.open("rb") as stream:
            return read_wheel_metadata(stream, wheel.name)


def contents_key(fetcher: Fetcher, file: File) -> str | None:
    """Return the cache key of the metadata of *file*; None if its contents may change under the same name.

    The hash alone is not enough: an index may list the hash of a file of another
    index beside metadata of its own.
    """
    where = f"{file.index or ''}\n{fetcher.place(file.url)}\n{file.filename}"
    sha256 = file.hashes.get("sha256")
    if sha256:
        # The metadata that a build gives depends on the interpreter: it is cached with the built wheel.
        return f"{where}\nsha256 {sha256.lower()}"
    if fetcher.local(file.url) is not None or file.size is None:
        return None
    return f"{where}\n{file.size}"


def remote_wheel(fetcher: Fetcher, file: File) -> RemoteFile | None:
    """Return a wheel that is fetched in parts; None if its server does not support range requests.

    Also None for a wheel that is in the cache, or in a folder of find-links.
    """
    if fetcher.copies.find(file) is not None:
        return None
    start = -_TAIL if file.size is None else max(0, file.size - _TAIL)
    tail = fetcher.get_range(file.url, start)
    if tail is None:
        return None

    def more(start: int, end: int) -> bytes:
        part = fetcher.get_range(file.url, start, end)
        if part is None or part.start != start or len(part.data) != end - start or part.total != tail.total:
            raise BadDistribution(f"`{file.filename}` changed while it was being read")
        return part.data

    if tail.start + len(tail.data) != tail.total:
        return None  # not the end of the file: the index gives a wrong size
    return RemoteFile(more, tail.total, tail.data)
