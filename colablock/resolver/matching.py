"""Match candidates: which versions of a project meet its requirements, and in which order they are tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar, overload

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.snapshot import Installed
from colablock.index.candidates import Candidate, CandidateOrigin, Candidates, CandidateSource, Rejection
from colablock.matrix.model import Constraint, PackageEntry
from colablock.resolver.constraints import installed_candidate
from colablock.resolver.model import Request, ResolverRequirement

__all__ = ["CandidateMatcher", "Lazy", "SpecifierMemo", "is_pin", "is_yanked"]

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


class _Known(NamedTuple):
    """A specifier, the number of those equal to it, and whether versions meet it.

    *meets* is None for a specifier with `===`, which compares texts: `2.0` and `2.0.0` are one version
    (PEP 440), and only one of them meets `===2.0`.
    """

    specifier: SpecifierSet
    number: int
    meets: dict[Version, bool] | None

    def contains(self, version: Version) -> bool:
        """Whether *version* meets the specifier; pre-releases may."""
        if self.meets is None:
            return self.specifier.contains(version, prereleases=True)
        fits = self.meets.get(version)
        if fits is None:
            fits = self.meets[version] = self.specifier.contains(version, prereleases=True)
        return fits


class SpecifierMemo:
    """Which versions meet which specifiers.  The rounds of a solve ask the same again.

    The hash of a specifier builds the canonical text of each version in it, so each object is hashed once.
    """

    def __init__(self) -> None:
        self._equal: dict[SpecifierSet | str, _Known] = {}
        self._known: dict[int, _Known] = {}

    def _of(self, specifier: SpecifierSet) -> _Known:
        known = self._known.get(id(specifier))
        if known is None:
            by_text = any(one.operator == "===" for one in specifier)
            new = _Known(specifier, len(self._equal), None if by_text else {})
            same = self._equal.setdefault(str(specifier) if by_text else specifier, new)
            # The object is kept, so no other gets its id.
            known = self._known[id(specifier)] = same._replace(specifier=specifier)
        return known

    def number(self, specifier: SpecifierSet) -> int:
        """Return the number of *specifier*; equal ones have the same."""
        return self._of(specifier).number

    def contains(self, specifier: SpecifierSet, version: Version) -> bool:
        """Whether *version* meets *specifier*; pre-releases may."""
        return self._of(specifier).contains(version)

    def all_contain(self, specifiers: Iterable[SpecifierSet]) -> Callable[[Version], bool]:
        """Return whether a version meets all of *specifiers*; pre-releases may."""
        every = {known.number: known for known in map(self._of, specifiers)}.values()
        return lambda version: all(known.contains(version) for known in every)

    def counted(self, specifiers: Iterable[SpecifierSet]) -> list[tuple[Callable[[Version], bool], int]]:
        """Return whether a version meets each of *specifiers*, and how many of them are equal."""
        known = [self._of(specifier) for specifier in specifiers]
        numbers = Counter(one.number for one in known)
        return [(one.contains, numbers[one.number]) for one in {one.number: one for one in known}.values()]


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
        memo: SpecifierMemo,
    ) -> None:
        self._request = request
        self._memo = memo
        self._source = source
        self._graph = graph
        self._constraints = constraints
        self._held = held
        self._excluded = {absent.name: absent for absent in request.absent}
        self._direct = {entry.name: entry for entry in request.asked if entry.url}
        self._indexed = {entry.name for entry in request.asked if entry.index}
        narrowed: tuple[PackageEntry | Constraint, ...] = (*request.asked, *request.constraints)
        self._explicit_pre = {one.name for one in narrowed if any(s.prereleases for s in one.specifier)}
        self._matching: dict[tuple[NormalizedName, frozenset[int], Any], Sequence[Candidate]] = {}
        # What installed distributions ask for, and get, each with the number of those that do.
        self._met: dict[NormalizedName, Sequence[tuple[Callable[[Version], bool], int]]] = {}
        self.unusable: dict[tuple[NormalizedName, Version], Rejection] = {}

    def matching(self, name: NormalizedName, wants: Sequence[ResolverRequirement]) -> Sequence[Candidate]:
        """Return the candidates of *name* that meet *wants* and every constraint, best first.

        Each is judged when it is read first.
        """
        exact = frozenset(want.exact for want in wants if want.exact is not None)
        urls = frozenset(want.url for want in wants if want.url)
        specifiers = frozenset(self._memo.number(want.specifier) for want in wants)
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
            candidates = candidates.select(self._test(name, (), read=False))
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
        fits = installed.name not in self._request.unfit | self._request.damaged
        fits = fits and self._request.fixed.get(installed.name, version) == version
        fits = fits and all(self._meets(want, version) for want in wants)
        fits = fits and all(
            self._memo.contains(constraint.specifier, version)
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
        test = self._test(name, wants)
        candidates = candidates.select(test) if installed is None else candidates.only(test)
        candidates = candidates.select_judged(lambda candidate: self._file_fits(candidate, wants))
        candidates = self._without_prereleases(name, candidates)
        if installed is not None:
            candidates = candidates.select_judged(
                lambda candidate: self._is_another_build(candidate, installed)
            )
            candidates = candidates.ordered(lambda version: self._breaks(name, version))
        preferred = self._request.preferred.get(name)
        if preferred is not None:
            candidates = candidates.ordered(lambda version: version != preferred)
        yield from candidates

    def _is_another_build(self, candidate: Candidate, installed: Installed) -> bool:
        if installed.name in self._request.damaged or candidate.version != Version(installed.version):
            return True
        return installed.name not in self._request.unfit and not self._provenance_fits(installed)

    def _fits(self, candidate: Candidate, wants: Sequence[ResolverRequirement]) -> bool:
        return self._test(candidate.name, wants)(candidate.version) and self._file_fits(candidate, wants)

    def _file_fits(self, candidate: Candidate, wants: Sequence[ResolverRequirement]) -> bool:
        """Whether *candidate* comes from where *wants* have it from; a yanked one must be pinned."""
        if not all(self.follows(want, candidate) for want in wants):
            return False
        return not is_yanked(candidate) or any(map(is_pin, wants))

    def _test(
        self, name: NormalizedName, wants: Sequence[ResolverRequirement], *, read: bool = True
    ) -> Callable[[Version], bool]:
        """Return whether a version meets *wants*, and the matrix, the constraints and a lock allow it.

        With *read*, a version whose metadata was read and is invalid does not.
        """
        fixed = self._request.fixed.get(name)
        exact = {one for one in (fixed, *(want.exact for want in wants)) if one is not None}
        specifiers = [want.specifier for want in wants if want.exact is None]
        specifiers += [constraint.specifier for constraint in self._constraints.get(name, ())]
        meets, absent = self._memo.all_contain(specifiers), self._excluded.get(name)
        unusable = self.unusable if read else {}

        def fits(version: Version) -> bool:
            if (exact and {version} != exact) or not meets(version):
                return False
            if absent is not None and self._memo.contains(absent.specifier, version):
                return False
            return not unusable or (name, version) not in unusable

        return fits

    def _meets(self, want: ResolverRequirement, version: Version) -> bool:
        if want.exact is not None:
            return version == want.exact
        return self._memo.contains(want.specifier, version)

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
        return absent is None or not self._memo.contains(absent.specifier, version)

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
        return candidates if "if-necessary" in mode and not stable else stable

    def _breaks(self, name: NormalizedName, version: Version) -> int:
        """Count the installed distributions whose holding requirement *version* would break."""
        if name not in self._met:
            self._met[name] = self._memo.counted(self._graph.met_on(name))
        return sum(number for meets, number in self._met[name] if not meets(version))
