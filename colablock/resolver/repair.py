"""A version of one broken distribution that fits a new state, moving nothing else."""

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

# An older release of the last year or two may be what the user had in mind; one of a decade ago is not.
_VERSIONS = 10
_AHEAD = 3  # of these, as many as are fetched before they are asked for
_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Repairer:
    """Asks for one name again, with everything else held where the plan puts it.

    A repair takes one of the newest versions, and brings nothing that is not
    there: what needs more than that is not a repair.
    """

    request: Request
    source: CandidateSource

    def look_ahead(self, names: Iterable[NormalizedName]) -> None:
        """Fetch what repairing *names* will likely ask for, all at once; with a lock all is here."""
        if self.request.fixed:
            return
        with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
            list(pool.map(self._fetch, names))

    def __call__(self, name: NormalizedName, after: Mapping[NormalizedName, Installed]) -> Resolution | None:
        """Return a resolution in which *name* fits *after*; None where no version does."""
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
            return None  # a repair is a favour: where none can be had, the plan says what happens instead
        return found if not found.pins.keys() - after.keys() else None

    def _broken_extras(
        self, after: Mapping[NormalizedName, Installed]
    ) -> frozenset[tuple[NormalizedName, str]]:
        """Return the requirements of extras that were met before, and are not met in the state *after*.

        A distribution whose extra is broken is not repaired itself, so a repaired one that asks
        for the extra needs a version for which the extra is met.
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
            return  # it is asked again where the answer counts


@dataclass(frozen=True, slots=True)
class _Newest:
    """A source that offers the newest versions of one name only."""

    source: CandidateSource
    name: NormalizedName

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        judged = self.source.judge(name)
        return replace(judged, candidates=judged.candidates[:_VERSIONS]) if name == self.name else judged

    def metadata(self, candidate: Candidate) -> Metadata:
        return self.source.metadata(candidate)

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        self.source.prefetch(names)
