"""Fetches what a file says of itself, by the cheapest way that can be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    """Core metadata of wheels and sdists; kept on disk for ever by the file's hash.

    A wheel: the wheel itself where it was fetched before, else its announced
    metadata file (PEP 658), else a range request for its end, else the whole of it.  An sdist: what it states
    statically, else what a build tells, where *build* is given.
    """

    def __init__(self, fetcher: Fetcher, build: Callable[[Path], Path] | None = None) -> None:
        self._fetcher = fetcher
        self._build = build

    def read(self, name: NormalizedName, version: Version | None, file: File) -> CoreMetadata:
        """Return the metadata of *file*.  Raises BadDistribution when it is that of something else."""
        key = contents_key(self._fetcher, file)
        kept = self._kept(key) if key is not None else None
        if kept is not None:
            return kept
        found = self._read_wheel(file) if file.is_wheel else self._read_sdist(file)
        found.check(name, version, file.filename)
        if key is not None:
            self._fetcher.cache.write_json("metadata", key, found.to_json())
        return found

    def _kept(self, key: str) -> CoreMetadata | None:
        data: Any = self._fetcher.cache.read_json("metadata", key)
        return CoreMetadata.from_json(data) if data is not None else None

    def _read_wheel(self, file: File) -> CoreMetadata:
        sha256 = file.hashes.get("sha256")
        is_here = sha256 is not None and self._fetcher.cache.file(sha256) is not None
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
        """Return the metadata file's; None where it is announced and yet not there."""
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
            message = f"`{file.filename}` does not say what it needs without being built"
            raise BadDistribution(message, hint="name it in options.allow-build")
        wheel = self._build(path)
        with wheel.open("rb") as stream:
            return read_wheel_metadata(stream, wheel.name)


def contents_key(fetcher: Fetcher, file: File) -> str | None:
    """Return what the contents of *file* are known by; None where they may change under the same name."""
    sha256 = file.hashes.get("sha256")
    if sha256:
        # What a build says depends on who builds: that is kept with the built wheel.
        return sha256.lower() if file.is_wheel else f"sdist {sha256}"
    if fetcher.local(file.url) is not None or file.size is None:
        return None
    return f"{file.url}\n{file.size}"


def remote_wheel(fetcher: Fetcher, file: File) -> RemoteFile | None:
    """Return a wheel of which only what is read is fetched; None when its server serves no parts.

    None too for one that is here already, as a whole.
    """
    sha256 = file.hashes.get("sha256")
    if sha256 and fetcher.cache.file(sha256) is not None:
        return None
    start = -_TAIL if file.size is None else max(0, file.size - _TAIL)
    tail = fetcher.get_range(file.url, start)
    if tail is None:
        return None

    def more(start: int, end: int) -> bytes:
        part = fetcher.get_range(file.url, start, end)
        if part is None or part.start != start or len(part.data) != end - start or part.total != tail.total:
            raise BadDistribution(f"`{file.filename}` changed while it was read")
        return part.data

    if tail.start + len(tail.data) != tail.total:
        return None  # not the end, whatever it is: the index's size is not the file's
    return RemoteFile(more, tail.total, tail.data)
