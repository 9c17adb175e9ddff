"""Repair one broken distribution: find a version that fits the new state, and change nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from colablock._common.text import count
from colablock._records import dataclass
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import DependencyGraph, newly_unmet
from colablock.environment.requirements import applies, parse_requirement
from colablock.errors import BadDistribution, ColablockError, FetchFailed, NoSolution
from colablock.matrix.model import PackageEntry
from colablock.resolver.origin import direct_refusal, refusal_of
from colablock.resolver.resolver import resolve

if TYPE_CHECKING:
    from colablock._vendor.packaging.specifiers import Specifier
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed
    from colablock.index.candidates import Candidate, CandidateSource, Metadata, ProjectCandidates
    from colablock.resolver.model import Request, Resolution

__all__ = ["Repairer"]

# A release of the last year or two may serve the user, one of a decade ago does not, unless it names a
# version that moved: torchvision 0.22.1 needs torch==2.7.1, and is the only one that does.
_VERSIONS = 10
_PARTNERS = 4  # the versions from the newest on that is not too new
_CLAUSES = 3  # requirements in the reason why no version fits
_AHEAD = 3  # the number of versions that are prefetched
_WORKERS = 8
_BOUNDING = {"==", "~=", "<", "<="}


@dataclass(frozen=True)
class Repairer:
    """Solves for one name again, with everything else held at the version of the plan.

    A repair selects one of the newest versions, or one whose requirements name the versions that
    moved.  It installs no new distribution.
    """

    request: Request
    source: CandidateSource
    _tried: dict[NormalizedName, str] = field(default_factory=dict)

    def look_ahead(self, names: Iterable[NormalizedName]) -> None:
        """Prefetch the metadata that repairs of *names* are likely to need.  A lock has all of it."""
        if self.request.fixed:
            return
        with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
            list(pool.map(self._fetch, names))

    def refusal(self, name: NormalizedName) -> str | None:
        """Return why *name* must not be replaced: it was not installed from the source; None if it may be.

        See `refusal_of`.
        """
        there = self.request.installed.get(name)
        if there is None:
            return None
        if self.request.fixed:  # the solve that made the lock has asked the index
            return direct_refusal(there, by="a repair")
        return refusal_of(there, self.source, by="a repair")

    def versions(self, name: NormalizedName) -> frozenset[Version]:
        """Return the versions of *name* that the source has; none if it cannot be read."""
        try:
            return frozenset(candidate.version for candidate in self.source.judge(name).candidates)
        except FetchFailed:
            return frozenset()

    def __call__(
        self,
        name: NormalizedName,
        after: Mapping[NormalizedName, Installed],
        *,
        versions: Collection[Version] | None = None,
    ) -> Resolution | None:
        """Return a resolution in which *name* fits the state *after*; None if no version does.

        With *versions*, only these are tried.  The installed version may be one of them: its files
        are then installed once more.
        """
        if self.refusal(name) is not None:
            return None
        there = self.request.installed.get(name)
        if versions is not None and there is not None and Version(there.version) in versions:
            after = {other: one for other, one in after.items() if other != name}
        self._tried.pop(name, None)
        try:
            candidates = self.source.judge(name).candidates
            if versions is not None:
                candidates = tuple(one for one in candidates if one.version in versions)
            if not candidates:  # as for most: a lock lists only the repairs that it found
                return None
            graph = self._before.with_installed(after)
            found, tried = self._found(self._asked(name, graph), name, candidates, graph)
        except FetchFailed:
            return None  # without a repair the plan removes or keeps the broken distribution
        if found is None and versions is None:
            why = self._obstacles(tried, after)
            self._tried[name] = _told(name, tried, len(candidates)) + (f": {why}" if why else "")
        return found

    def _asked(self, name: NormalizedName, after: DependencyGraph) -> Request:
        """Return the request for a version of *name* in the state *after*."""
        return replace(
            self.request,
            roots=(PackageEntry(name=name, path=f"repair of {name}"),),
            installed=after.installed,
            released={name: "it is broken"},
            unfit=frozenset({name}),
            damaged=frozenset(),  # the plan has installed them again
            must_hold=self.request.must_hold | self._broken_extras(after),
        )

    def _found(
        self,
        asked: Request,
        name: NormalizedName,
        candidates: Sequence[Candidate],
        graph: DependencyGraph,
    ) -> tuple[Resolution | None, Sequence[Candidate]]:
        """Return the resolution with one of *candidates*, and those that were tried."""
        newest = candidates[:_VERSIONS]
        found = self._resolved(asked, name, newest, graph)
        if found is not None or len(candidates[: _VERSIONS + 1]) <= _VERSIONS:  # without judging them all
            return found, newest
        partners = tuple(self._partners(candidates, asked.installed))
        found = self._resolved(asked, name, partners, graph) if partners else None
        return found, (*newest, *partners)

    def tried(self, name: NormalizedName) -> str | None:
        """Return a sentence about the versions that do not repair *name*; None if none was tried."""
        return self._tried.get(name)

    def _resolved(
        self,
        asked: Request,
        name: NormalizedName,
        candidates: Sequence[Candidate],
        graph: DependencyGraph,
    ) -> Resolution | None:
        source = _Limited(self.source, name, candidates, partial(self._silence, asked.installed))
        try:
            found = resolve(asked, source, may_release=False, graph=graph)
        except NoSolution:
            return None
        return found if not found.pins.keys() - asked.installed.keys() - {name} else None

    def _silence(self, after: Mapping[NormalizedName, Installed], candidate: Candidate) -> str | None:
        """Return why nothing says that *candidate* fits the state *after*; None if it may fit.

        The installed version pins one that moved, since it is built for it, and this one, which is
        compiled, too, does not mention it.  Then only releases of one version belong together:
        torchaudio 2.9 to 2.11.0 do not say which torch they are built for.
        """
        if candidate.file is None or candidate.file.filename.endswith("-none-any.whl"):
            return None
        before = self.request.installed
        there = before.get(candidate.name)
        pinned = [
            canonicalize_name(one.name)
            for one in map(parse_requirement, there.requires if there is not None else ())
            if one is not None
            and any(specifier.operator in {"==", "==="} for specifier in one.specifier)
            and applies(one, self.request.environment)
        ]
        moved = [
            name
            for name in pinned
            if name in after and (name not in before or before[name].version != after[name].version)
        ]
        mentioned = self._bounds(candidate, moved) if moved else {}
        for name in moved:
            if name not in mentioned and Version(after[name].version).public != candidate.version.public:
                return f"{candidate} does not say which {name} it is for"
        return None

    def _partners(
        self, candidates: Sequence[Candidate], after: Mapping[NormalizedName, Installed]
    ) -> Iterator[Candidate]:
        """Yield the candidates whose requirements name a version that moved, newest first.

        A bisection finds them by the metadata of a few, since newer versions of a project need
        newer versions of others.
        """
        before = self.request.installed
        candidates = tuple(candidates)  # they are read in no order
        moved = {
            name: Version(there.version)
            for name, there in after.items()
            if name not in before or before[name].version != there.version
        }
        low, high = _VERSIONS, len(candidates)
        while low < high:
            middle = (low + high) // 2
            if self._is_too_new(candidates[middle], moved):
                low = middle + 1
            else:
                high = middle
        for candidate in candidates[low : low + _PARTNERS]:
            bounds = self._bounds(candidate, moved).values()
            if any(one.operator in _BOUNDING for specifiers in bounds for one in specifiers):
                yield candidate

    def _is_too_new(self, candidate: Candidate, moved: Mapping[NormalizedName, Version]) -> bool:
        """Whether *candidate* needs a newer version of a name than the one that the name moved to."""
        return any(
            Version(specifier.version.removesuffix(".*")) > moved[name]
            for name, specifiers in self._bounds(candidate, moved).items()
            for specifier in specifiers
            if specifier.operator in {"==", "~=", ">=", ">"}
        )

    def _bounds(
        self, candidate: Candidate, moved: Container[NormalizedName]
    ) -> dict[NormalizedName, list[Specifier]]:
        """Return the specifiers of *candidate* on the names that moved; none if it has no valid metadata."""
        found: defaultdict[NormalizedName, list[Specifier]] = defaultdict(list)
        try:
            requires = self.source.metadata(candidate).requires_under()
        except BadDistribution:
            return found
        for one in requires:
            name = canonicalize_name(one.name)
            if name in moved and applies(one, self.request.environment):
                found[name] += one.specifier
        return found

    def _obstacles(self, tried: Sequence[Candidate], after: Mapping[NormalizedName, Installed]) -> str:
        """Return the requirements that the versions *tried* have and the state *after* does not meet.

        The one that excludes the most versions comes first, then the one that excludes the most others.
        """
        by_target: defaultdict[NormalizedName, dict[Version, str]] = defaultdict(dict)
        for candidate in tried:
            for target, specifiers in self._bounds(candidate, _Every()).items():
                unmet = _unmet(target, specifiers, after)
                if unmet is not None:
                    by_target[target][candidate.version] = unmet
        clauses: list[str] = []
        left = {candidate.version for candidate in tried}
        while by_target and len(clauses) < _CLAUSES:
            target = max(by_target, key=lambda name: (len(left & by_target[name].keys()), name))
            found = {version: line for version, line in by_target.pop(target).items() if version in left}
            if not found:
                break
            left -= found.keys()
            there = after.get(target)
            state = f"{target} is {there.version}" if there else f"a repair installs no {target}"
            clauses.append(f"{_needs(found)}, and {state}")
        silent = (self._silence(after, one) for one in tried if one.version in left)
        return "; ".join([*clauses, *list(filter(None, silent))[:1]])

    @cached_property
    def _before(self) -> DependencyGraph:
        return DependencyGraph(self.request.installed, self.request.environment)

    def _broken_extras(self, after: DependencyGraph) -> frozenset[tuple[NormalizedName, str]]:
        """Return the requirements of extras that were met before and are not met in the state *after*.

        A distribution with a broken extra is not repaired itself.  So a repaired distribution must
        not ask for that extra.
        """
        before = self._before
        names = before.installed.keys() | after.installed.keys()
        changed = {name for name in names if _differs(before.installed.get(name), after.installed.get(name))}
        found = newly_unmet(after.installed, before, after, changed, of_extras=True)
        return frozenset(one.key for one in found)

    def _fetch(self, name: NormalizedName) -> None:
        there = self.request.installed.get(name)
        if there is not None and there.direct_url is not None:
            return  # its name is nobody's business, unless it turns out to be a published build
        try:
            for candidate in self.source.judge(name).candidates[:_AHEAD]:
                self.source.metadata(candidate)
        except ColablockError:
            return  # the repair itself asks again and handles the error


class _Every:
    """Contains everything."""

    def __contains__(self, _one: object) -> bool:
        return True


def _differs(one: Installed | None, other: Installed | None) -> bool:
    return one is not other and one != other


def _unmet(
    target: NormalizedName, specifiers: Sequence[Specifier], after: Mapping[NormalizedName, Installed]
) -> str | None:
    """Return the requirement on *target* that *after* does not meet; None if it is met."""
    there = after.get(target)
    excluding = [one for one in specifiers if there and not one.contains(there.version, prereleases=True)]
    if there is not None and not excluding:
        return None
    return f"{target}{','.join(sorted(map(str, excluding or specifiers)))}"


def _needs(found: Mapping[Version, str]) -> str:
    """Return which versions have which requirements: each if all have the same, else that of the newest."""
    oldest, newest = min(found), max(found)
    which = f"{oldest} to {newest} need" if len(found) > 1 else f"{newest} needs"
    lines = set(found.values())
    if len(lines) == 1:
        return f"{which} {lines.pop()}"
    target = canonicalize_name(Requirement(found[newest]).name)
    return f"{which} another {target} ({newest}: {found[newest]})"


def _told(name: NormalizedName, tried: Sequence[Candidate], number: int) -> str:
    versions = sorted({candidate.version for candidate in tried})
    if number == 1:
        return f"no repair of {name}: its only version, {versions[0]}, does not fit"
    which = f"{versions[0]} to {versions[-1]}" if len(versions) > 1 else str(versions[0])
    some = "" if len(versions) == number else f"{len(versions)} of "
    return f"no repair of {name}: none of {some}its {count(number, 'version')} fits ({which})"


@dataclass(frozen=True, slots=True)
class _Limited:
    """A source that limits one name to some of its versions."""

    source: CandidateSource
    name: NormalizedName
    candidates: Sequence[Candidate]
    silence: Callable[[Candidate], str | None]

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        judged = self.source.judge(name)
        return replace(judged, candidates=self.candidates) if name == self.name else judged

    def metadata(self, candidate: Candidate) -> Metadata:
        if candidate.name == self.name and (why := self.silence(candidate)) is not None:
            raise BadDistribution(why)
        return self.source.metadata(candidate)

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        self.source.prefetch(names)
