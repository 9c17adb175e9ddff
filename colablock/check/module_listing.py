"""List the modules of distributions, without downloading whole wheels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, cast

from colablock._common.archives import UNREADABLE, open_zip
from colablock.check.import_names import ImportProvider, Modules, modules_of
from colablock.errors import BadDistribution
from colablock.index.archive import SourceArchive, open_archive
from colablock.index.candidates import File
from colablock.index.metadata_fetcher import contents_key, remote_wheel
from colablock.network.fetcher import Fetcher
from colablock.resolver.model import Pin

__all__ = ["ModuleSource"]

_KIND = "provides"
_WORKERS = 8


class ModuleSource:
    """Lists the modules of wheels, sdists and installed distributions.  Results are cached by file hash.

    For a wheel, a range request reads the directory at its end.  An sdist is downloaded whole;
    modules that a build would compile are not found.  For installed distributions only the
    top-level names are known.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def providers(self, pins: Iterable[Pin]) -> list[ImportProvider]:
        """Return the modules of each pin, read concurrently.  Raises FetchFailed, BadDistribution."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            return list(pool.map(self._provider, pins))

    def read(self, file: File) -> Modules:
        """Return the modules of *file*."""
        key = contents_key(self._fetcher, file)
        cached = self._fetcher.cache.read_record(_KIND, key, Modules) if key is not None else None
        if cached is not None:
            return cached
        found = self._of_wheel(file) if file.is_wheel else self._of_sdist(file)
        if key is not None:
            self._fetcher.cache.write_record(_KIND, key, found)
        return found

    def _provider(self, pin: Pin) -> ImportProvider:
        installed, file = pin.candidate.installed, pin.candidate.file
        modules = Modules(partial=True)
        if file is not None:
            modules = self.read(file)
        elif installed is not None:
            modules = Modules(names=frozenset(installed.import_names), partial=True)
        return ImportProvider(name=pin.name, version=str(pin.version), modules=modules)

    def _of_wheel(self, file: File) -> Modules:
        is_local = self._fetcher.local(file.url) is not None
        stream = None if is_local else remote_wheel(self._fetcher, file)
        try:
            if stream is not None:
                return _directory(cast("IO[bytes]", stream))
            with self._fetcher.fetch(file).open("rb") as whole:
                return _directory(whole)
        except UNREADABLE as error:
            raise BadDistribution(f"`{file.filename}` cannot be read as a wheel: {error}") from error

    def _of_sdist(self, file: File) -> Modules:
        with open_archive(self._fetcher.fetch_named(file)) as archive:
            return modules_of(_sources(archive), partial=True)


def _directory(stream: IO[bytes]) -> Modules:
    with open_zip(stream) as wheel:
        return modules_of(wheel.namelist())


def _sources(archive: SourceArchive) -> Iterator[str]:
    """Yield the paths at which the files of an sdist are probably installed.

    The root of a package is the parent of its outermost ``__init__.py``; other files are relative
    to the top folder or ``src``.  Files that ``top_level.txt`` does not list are omitted.
    """
    listed = [path for path in archive.members if path.endswith(".egg-info/top_level.txt")]
    tops = {line for path in listed for line in (archive.read_text(path) or "").split()}
    for path in archive.members:
        parts = path.split("/")
        folders = range(1, len(parts))
        root = next((n for n in folders if "/".join([*parts[:n], "__init__.py"]) in archive.members), 0)
        found = "/".join(parts[root - 1 :]) if root else path.removeprefix("src/")
        if not tops or found.split("/")[0].removesuffix(".py") in tops:
            yield found
