"""Repair one broken distribution: find a version that fits the new state, and change nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from colablock.environment.dependency_graph import DependencyGraph, newly_unmet
from colablock.errors import ColablockError, FetchFailed, NoSolution
from colablock.matrix.model import PackageEntry
from colablock.resolver.resolver import resolve

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed
    from colablock.index.candidates import Candidate, CandidateSource, Metadata, ProjectCandidates
    from colablock.resolver.model import Request, Resolution

__all__ = ["Repairer"]

# A release of the last year or two may serve the user, one of a decade ago does not.
_VERSIONS = 10
_AHEAD = 3  # the number of versions that are prefetched
_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Repairer:
    """Solves for one name again, with everything else held at the version of the plan.

    A repair selects one of the newest versions and installs no new distribution.
    """

    request: Request
    source: CandidateSource

    def look_ahead(self, names: Iterable[NormalizedName]) -> None:
        """Prefetch the metadata that repairs of *names* are likely to need.  A lock has all of it."""
        if self.request.fixed:
            return
        with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
            list(pool.map(self._fetch, names))

    def __call__(self, name: NormalizedName, after: Mapping[NormalizedName, Installed]) -> Resolution | None:
        """Return a resolution in which *name* fits the state *after*; None if no version does."""
        asked = replace(
            self.request,
            roots=(PackageEntry(name=name, path=f"repair of {name}"),),
            installed=after,
            released={name: "it is broken"},
            unfit=frozenset({name}),
            must_hold=self.request.must_hold | self._broken_extras(after),
        )
        try:
            found = resolve(asked, _Newest(self.source, name), may_release=False)
        except (NoSolution, FetchFailed):
            return None  # without a repair the plan removes or keeps the broken distribution
        return found if not found.pins.keys() - after.keys() else None

    def _broken_extras(
        self, after: Mapping[NormalizedName, Installed]
    ) -> frozenset[tuple[NormalizedName, str]]:
        """Return the requirements of extras that were met before and are not met in the state *after*.

        A distribution with a broken extra is not repaired itself.  So a repaired distribution must
        not ask for that extra.
        """
        installed = self.request.installed
        before = DependencyGraph(installed, self.request.environment)
        changed = {name for name in installed.keys() | after.keys() if installed.get(name) != after.get(name)}
        found = newly_unmet(after, before, before.with_installed(after), changed)
        return frozenset(one.key for one in found if one.demand.extra)

    def _fetch(self, name: NormalizedName) -> None:
        try:
            for candidate in self.source.judge(name).candidates[:_AHEAD]:
                self.source.metadata(candidate)
        except ColablockError:
            return  # the repair itself asks again and handles the error


@dataclass(frozen=True, slots=True)
class _Newest:
    """A source that limits one name to its newest versions."""

    source: CandidateSource
    name: NormalizedName

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        judged = self.source.judge(name)
        return replace(judged, candidates=judged.candidates[:_VERSIONS]) if name == self.name else judged

    def metadata(self, candidate: Candidate) -> Metadata:
        return self.source.metadata(candidate)

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        self.source.prefetch(names)
