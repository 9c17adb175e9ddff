"""Read once and ahead of the resolver: pages, and the metadata of the likeliest candidates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import field
from typing import TYPE_CHECKING

from colablock._common.once_map import OnceMap
from colablock._records import dataclass
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.errors import ColablockError
from colablock.index.candidates import CandidateSource, likeliest

if TYPE_CHECKING:
    from colablock._vendor.packaging.version import Version
    from colablock.environment.markers_and_tags import Environment
    from colablock.index.candidates import Metadata, ProjectCandidates
    from colablock.index.evaluator import FilesByVersion
    from colablock.matrix.model import PackageEntry

__all__ = ["Prefetcher", "ReadOnce"]

_WORKERS = 16  # threads; most of them wait for the network


@dataclass(slots=True, eq=False)
class ReadOnce:
    """What the solves of one call share: pages, the judged files of projects, metadata, and threads.

    All of it is read through one fetcher.  The judged files are those for one environment, the last.
    """

    pages: OnceMap[tuple[str, str | None, str], tuple[FilesByVersion, str | None] | None] = field(
        default_factory=OnceMap
    )
    metadata: OnceMap[tuple[str, str], Metadata] = field(default_factory=OnceMap)
    _judged: tuple[Environment | None, OnceMap[tuple[object, ...], ProjectCandidates]] = field(
        default_factory=lambda: (None, OnceMap())
    )
    _pool: ThreadPoolExecutor | None = None
    _is_closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def judged(self, environment: Environment) -> OnceMap[tuple[object, ...], ProjectCandidates]:
        """Return the judged files for *environment*."""
        if self._judged[0] is not environment:
            self._judged = environment, OnceMap()
        return self._judged[1]

    def ahead(self, work: Callable[..., None], *arguments: object) -> None:
        """Do *work* in the background, unless this is closed."""
        with self._lock:
            if self._is_closed:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="colablock-index")
            with suppress(RuntimeError):  # the interpreter shuts down
                self._pool.submit(work, *arguments)

    def close(self, *, wait: bool = False) -> None:
        """Start no further work in the background: at its end, a process does all that is waiting."""
        with self._lock:
            self._is_closed = True
        if self._pool is not None:  # its work may ask for more meanwhile
            self._pool.shutdown(wait=wait, cancel_futures=True)


class Prefetcher:
    """Has a source read what it will probably be asked for.

    It gets the source with each call: one that it kept would refer to itself, and keep the cache locked until
    a collection.  *reads* has the threads.  *entries* are the packages of the matrix.  Nothing is fetched for
    names in *settled*, which are installed.  *expected* are versions that will probably be chosen.
    """

    def __init__(
        self,
        reads: ReadOnce,
        entries: Mapping[NormalizedName, PackageEntry],
        settled: Container[NormalizedName],
        environment: Environment,
        *,
        offline: bool,
    ) -> None:
        self._reads, self._entries, self._settled = reads, entries, settled
        self._environment, self._offline = environment, offline
        self._started: set[NormalizedName] = set()
        self._lock = threading.Lock()
        self.expected: Mapping[NormalizedName, Version | None] = {}

    def start(self, source: CandidateSource, name: NormalizedName, specifier: SpecifierSet) -> None:
        """Have *source* read *name* and its requirements, once."""
        with self._lock:
            if name in self._started or self._offline:
                return
            self._started.add(name)
        self._reads.ahead(self._fetch_likely, source, name, specifier)

    def _fetch_likely(self, source: CandidateSource, name: NormalizedName, specifier: SpecifierSet) -> None:
        """Fetch the page of *name*, the metadata of its likeliest candidate, and the requirements of that."""
        try:
            likely = likeliest(source.judge(name).candidates, specifier, self.expected.get(name))
            if likely is None or likely.file is None or not likely.file.is_wheel:
                return  # an sdist may have to be built, which is not worth doing in advance
            needed = source.metadata(likely).requires_under()
        except ColablockError:
            return  # the error is raised again when the resolver asks for it
        markers = {**self._environment.markers, "extra": ""}
        for requirement in needed:
            further = canonicalize_name(requirement.name)
            if further in self._settled or further in self._started:
                continue
            if requirement.marker is None or requirement.marker.evaluate(markers):
                own = self._entries.get(further)
                both = requirement.specifier & own.specifier if own else requirement.specifier
                self.start(source, further, both)
