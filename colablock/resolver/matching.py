"""Match candidates: which versions of a project meet its requirements, and in which order they are tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, overload

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.snapshot import Installed
from colablock.index.candidates import Candidate, CandidateOrigin, Candidates, CandidateSource, Rejection
from colablock.matrix.model import Constraint, PackageEntry
from colablock.resolver.constraints import installed_candidate
from colablock.resolver.model import Request, ResolverRequirement

__all__ = ["CandidateMatcher", "Lazy", "is_pin", "is_yanked"]

T = TypeVar("T")


class Lazy(Sequence[T]):
    """The values of an iterator, read as far as somebody asks.  Not safe to use from several threads.

    An exception of the iterator ends it, so whoever asks for more gets the exception again.
    """

    def __init__(self, values: Iterable[T]) -> None:
        self._values = iter(values)
        self._read: list[T] = []
        self._failure: BaseException | None = None

    def __iter__(self) -> Iterator[T]:
        number = 0
        while self._has(number):
            yield self._read[number]
            number += 1

    def __bool__(self) -> bool:
        return self._has(0)

    def __len__(self) -> int:
        self._extend(self._values)
        return len(self._read)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice) or index < 0 or not self._has(index):
            self._extend(self._values)
        return self._read[index]

    def _has(self, number: int) -> bool:
        if number >= len(self._read):
            self._extend(islice(self._values, number + 1 - len(self._read)))
        return number < len(self._read)

    def _extend(self, values: Iterable[T]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self._read.extend(values)
        except BaseException as error:
            self._failure = error
            raise


def is_pin(want: ResolverRequirement) -> bool:
    """Whether *want* names one version, so that it admits a yanked one (PEP 592)."""
    return any(s.operator in {"==", "==="} and not s.version.endswith(".*") for s in want.specifier)


def is_yanked(candidate: Candidate) -> bool:
    """Whether every file of *candidate* was yanked."""
    return bool(candidate.files) and all(file.yanked is not None for file in candidate.files)


class CandidateMatcher:
    """The candidates of a request that meet given requirements; results are cached.

    *held* names stay at their installed version.  *unusable* collects the
    versions whose metadata is invalid; they match nothing from then on.
    """

    def __init__(
        self,
        request: Request,
        source: CandidateSource,
        *,
        graph: DependencyGraph,
        constraints: Mapping[NormalizedName, Sequence[Any]],
        held: frozenset[NormalizedName],
    ) -> None:
        self._request = request
        self._source = source
        self._graph = graph
        self._constraints = constraints
        self._held = held
        self._excluded = {absent.name: absent for absent in request.absent}
        self._direct = {entry.name: entry for entry in request.asked if entry.url}
        self._indexed = {entry.name for entry in request.asked if entry.index}
        narrowed: tuple[PackageEntry | Constraint, ...] = (*request.asked, *request.constraints)
        self._explicit_pre = {one.name for one in narrowed if any(s.prereleases for s in one.specifier)}
        self._matching: dict[tuple[NormalizedName, frozenset[SpecifierSet], Any], Sequence[Candidate]] = {}
        self.unusable: dict[tuple[NormalizedName, Version], Rejection] = {}

    def matching(self, name: NormalizedName, wants: Sequence[ResolverRequirement]) -> Sequence[Candidate]:
        """Return the candidates of *name* that meet *wants* and every constraint, best first.

        Each is judged when it is read first.
        """
        exact = frozenset(want.exact for want in wants if want.exact is not None)
        urls = frozenset(want.url for want in wants if want.url)
        specifiers = frozenset(want.specifier for want in wants)
        key = (name, specifiers, (exact, urls))
        if key not in self._matching:
            self._matching[key] = Lazy(self._match(name, wants))
        return self._matching[key]

    def domain(self, name: NormalizedName) -> tuple[Candidate, ...]:
        """Return the candidates that `matching` returns for some requirements, in the order of the source.

        Whether a pre-release or a yanked version is one depends on all requirements together.
        """
        installed = self._request.installed.get(name)
        found = [installed_candidate(installed)] if installed and self.installed_serves(installed, ()) else []
        if name not in self._held:
            candidates = Candidates.of(self._source.judge(name).candidates)
            candidates = candidates.select(lambda version: self._may_fit(name, version))
            if "if-necessary" not in self._request.prerelease:
                candidates = self._without_prereleases(name, candidates)
            found += [c for c in candidates if not installed or self._is_another_build(c, installed)]
        return tuple(found)

    def admits(self, candidate: Candidate, wants: Sequence[ResolverRequirement]) -> bool:
        """Whether `matching` returns *candidate*, the only one of its domain, for *wants*."""
        if candidate.installed is not None:
            return self.installed_serves(candidate.installed, wants)
        return self._fits(candidate, wants)

    def installed_serves(self, installed: Installed, wants: Iterable[ResolverRequirement]) -> bool:
        """Whether *installed* meets *wants* and every constraint, and is the requested build."""
        version = Version(installed.version)
        fits = installed.name not in self._request.unfit
        fits = fits and self._request.fixed.get(installed.name, version) == version
        fits = fits and all(self._meets(want, version) for want in wants)
        fits = fits and all(
            constraint.specifier.contains(version, prereleases=True)
            for constraint in self._constraints.get(installed.name, ())
        )
        return fits and self._allowed(installed.name, version) and self._provenance_fits(installed)

    def _match(self, name: NormalizedName, wants: Sequence[ResolverRequirement]) -> Iterator[Candidate]:
        """Yield candidates: the installed one, then those that break the fewest others, the newest first."""
        installed = self._request.installed.get(name)
        if installed is not None and self.installed_serves(installed, wants):
            yield installed_candidate(installed)
            if name in self._held:
                return
        elif name in self._held:
            return
        candidates = Candidates.of(self._source.judge(name).candidates)
        candidates = candidates.select(lambda version: self._version_fits(name, version, wants))
        candidates = candidates.select_judged(lambda candidate: self._file_fits(candidate, wants))
        candidates = self._without_prereleases(name, candidates)
        if installed is not None:
            others = [c for c in candidates if self._is_another_build(c, installed)]
            if len(others) > 1:
                others.sort(key=lambda c: self._breaks(name, c.version))
            candidates = Candidates.of(others)
        preferred = self._request.preferred.get(name)
        if preferred is not None:
            candidates = candidates.ordered(lambda version: version != preferred)
        yield from candidates

    def _is_another_build(self, candidate: Candidate, installed: Installed) -> bool:
        if candidate.version != Version(installed.version):
            return True
        return installed.name not in self._request.unfit and not self._provenance_fits(installed)

    def _fits(self, candidate: Candidate, wants: Sequence[ResolverRequirement]) -> bool:
        return self._version_fits(candidate.name, candidate.version, wants) and self._file_fits(
            candidate, wants
        )

    def _file_fits(self, candidate: Candidate, wants: Sequence[ResolverRequirement]) -> bool:
        """Whether *candidate* comes from where *wants* have it from; a yanked one must be pinned."""
        if not all(self.follows(want, candidate) for want in wants):
            return False
        return not is_yanked(candidate) or any(map(is_pin, wants))

    def _version_fits(
        self, name: NormalizedName, version: Version, wants: Sequence[ResolverRequirement]
    ) -> bool:
        is_usable = (name, version) not in self.unusable
        return (
            is_usable and all(self._meets(want, version) for want in wants) and self._may_fit(name, version)
        )

    def _may_fit(self, name: NormalizedName, version: Version) -> bool:
        """Whether the matrix, the constraints and a lock allow a version."""
        fixed = self._request.fixed.get(name)
        return (
            (fixed is None or version == fixed)
            and self._allowed(name, version)
            and all(
                constraint.specifier.contains(version, prereleases=True)
                for constraint in self._constraints.get(name, ())
            )
        )

    @staticmethod
    def _meets(want: ResolverRequirement, version: Version) -> bool:
        if want.exact is not None:
            return version == want.exact
        return want.specifier.contains(version, prereleases=True)

    def follows(self, want: ResolverRequirement, candidate: Candidate) -> bool:
        """Whether *candidate* comes from the direct reference of *want*; only the user's references count."""
        if not want.url:
            return True
        if want.path:
            return candidate.origin in {
                CandidateOrigin.DIRECT,
                CandidateOrigin.INSTALLED,
                CandidateOrigin.LOCK,
            }
        entry = self._direct.get(want.name)
        return entry is not None and entry.url == want.url

    def _allowed(self, name: NormalizedName, version: Version) -> bool:
        absent = self._excluded.get(name)
        return absent is None or not absent.specifier.contains(version, prereleases=True)

    def _provenance_fits(self, installed: Installed) -> bool:
        """Whether the installed build is the requested one (PEP 610, PEP 440 local versions).

        A direct reference must be the one that was installed, or a rebuilt wheel of
        it.  If the matrix names an index, an equal public version is not enough: the
        hash must match, or the index must list the local label.
        """
        name, version = installed.name, Version(installed.version)
        entry = self._direct.get(name)
        if entry is not None:
            recorded = installed.direct_url.url if installed.direct_url is not None else ""
            ours = entry.is_rebuilt and any(c.version == version for c in self._source.judge(name).candidates)
            return ours or (not entry.is_rebuilt and recorded == entry.url)
        if name not in self._indexed:
            return True
        same = [c for c in self._source.judge(name).candidates if c.version == version]
        if installed.sha256 is not None:
            return any(installed.sha256 == file.hashes.get("sha256") for c in same for file in c.all_files)
        return version.local is not None and bool(same)

    def _without_prereleases(self, name: NormalizedName, candidates: Candidates) -> Candidates:
        """Drop pre-releases unless the mode admits them; the modes are those of uv.

        ``explicit``: the user's specifier names one.  ``if-necessary``: no final
        release meets the requirements (PEP 440, handling of pre-releases).
        """
        mode = self._request.prerelease
        if mode == "allow" or ("explicit" in mode and name in self._explicit_pre):
            return candidates
        stable = candidates.select(lambda version: not version.is_prerelease)
        return candidates if not stable and "if-necessary" in mode else stable

    def _breaks(self, name: NormalizedName, version: Version) -> int:
        """Count the installed distributions whose holding requirement *version* would break."""
        demands = filter(self._graph.is_met, self._graph.demands_on(name))
        return sum(not d.requirement.specifier.contains(version, prereleases=True) for d in demands)
