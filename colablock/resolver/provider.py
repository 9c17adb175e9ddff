"""What resolvelib asks, answered from a request and a source."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resolvelib import AbstractProvider

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.requirements import applies, parse_requirement
from colablock.errors import BadDistribution
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    CandidateSource,
    Reason,
    Rejection,
)
from colablock.resolver.constraints import constraints_of, installed_candidate, protected_extras
from colablock.resolver.model import (
    ANY,
    PYTHON,
    UNUSABLE,
    Conflict,
    Request,
    ResolverCandidate,
    ResolverRequirement,
)

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock.environment.snapshot import Installed
    from colablock.matrix.model import Constraint, PackageEntry

__all__ = ["Provider"]


class Provider(AbstractProvider[ResolverRequirement, ResolverCandidate, tuple[NormalizedName, "str | None"]]):
    """What resolvelib asks; the answers come from the request and the source."""

    def __init__(
        self,
        request: Request,
        source: CandidateSource,
        reporter: Reporter,
        *,
        before: Provider | None = None,
    ) -> None:
        self._request = request
        self._source = source
        self._reporter = reporter
        self._held = (
            frozenset(request.installed) - request.released.keys()
            | request.protected & request.installed.keys()
        )
        # The graph does not depend on what is released: a round *before* may have built it.
        self.graph: DependencyGraph = (
            before.graph if before else DependencyGraph(request.installed, request.environment)
        )
        self._constraints = constraints_of(request, self.graph, self._held)
        self._protected_extras = protected_extras(request, self.graph, self._held)
        self._excluded = {absent.name: absent for absent in request.absent}
        self._entries = request.asked
        narrowed: tuple[PackageEntry | Constraint, ...] = (*self._entries, *request.constraints)
        self._explicit_pre = {one.name for one in narrowed if any(s.prereleases for s in one.specifier)}
        self._roots = frozenset(entry.name for entry in self._entries)
        self._direct = {entry.name: entry for entry in self._entries if entry.url}
        self._indexed = {entry.name for entry in self._entries if entry.index}
        self._must_hold = {(name, parse_requirement(line)) for name, line in request.must_hold}
        self._python = ResolverCandidate(
            Candidate(
                name=PYTHON, version=request.environment.python_version, origin=CandidateOrigin.INSTALLED
            )
        )
        self._needs: dict[ResolverCandidate, tuple[ResolverRequirement, ...]] = {}
        self._edges: defaultdict[
            NormalizedName, dict[tuple[ResolverRequirement, ResolverCandidate | None], None]
        ] = defaultdict(dict)
        self._matching: dict[tuple[NormalizedName, frozenset[SpecifierSet], Any], tuple[Candidate, ...]] = {}
        self._blamed: Counter[tuple[ResolverRequirement, ResolverCandidate | None]] = Counter()
        self._satisfied: dict[tuple[int, int], tuple[ResolverRequirement, ResolverCandidate, bool]] = {}
        self._asked: set[NormalizedName] = set()
        self._unusable: dict[tuple[NormalizedName, Version], Rejection] = {}

    def roots(self) -> list[ResolverRequirement]:
        """Return what the user asks for, where the markers hold."""
        wants = [ResolverRequirement(PYTHON, self._request.requires_python, path="requires-python")]
        for entry in self._entries:
            wants += _wants(entry.name, entry.specifier, entry.extras, entry.url, entry.path)
        wants += self._protected_extras
        for want in wants:
            self._record([want], self.asker(want))
        self._prefetch(wants)
        return wants

    def asker(self, root: ResolverRequirement) -> ResolverCandidate | None:
        """Return the protected distribution that asks for *root*; None if the user does."""
        return self._protected_extras.get(root)

    def identify(
        self, requirement_or_candidate: ResolverRequirement | ResolverCandidate
    ) -> tuple[NormalizedName, str | None]:
        return requirement_or_candidate.name, requirement_or_candidate.extra

    def get_preference(
        self,
        identifier: tuple[NormalizedName, str | None],
        resolutions: Mapping[Any, ResolverCandidate],
        candidates: Mapping[Any, Iterator[ResolverCandidate]],  # noqa: ARG002
        information: Mapping[Any, Iterator[Any]],
        backtrack_causes: Sequence[Any],  # noqa: ARG002
    ) -> tuple[Any, ...]:
        """Order decisions the way pip documents it: direct, pinned, bounded, the user's own, name.

        Not in the order of the user's lines: to sort a matrix must not change its lock.
        """
        name, extra = identifier
        wants = [info.requirement for info in information[identifier]]
        operators = [(s.operator, s.version) for want in wants for s in want.specifier]
        pinned = any(op in {"==", "==="} and not version.endswith(".*") for op, version in operators)
        bounded = any(op in {"<", "<=", "~=", "=="} for op, _ in operators)
        base_undecided = extra is not None and (name, None) not in resolutions
        return (
            name != PYTHON,
            base_undecided,
            name not in self._direct,
            not (pinned or name in self._held or name in self._request.fixed),
            not bounded,
            name not in self._roots,
            not operators,
            name,
            extra or "",
        )

    def narrow_requirement_selection(
        self,
        identifiers: Iterable[tuple[NormalizedName, str | None]],
        resolutions: Mapping[Any, ResolverCandidate],  # noqa: ARG002
        candidates: Mapping[Any, Iterator[ResolverCandidate]],  # noqa: ARG002
        information: Mapping[Any, Iterator[Any]],  # noqa: ARG002
        backtrack_causes: Sequence[Any],
    ) -> Iterable[tuple[NormalizedName, str | None]]:
        """Decide first about what the last conflict was about."""
        identifiers = list(identifiers)
        if any(name == PYTHON for name, _ in identifiers):
            return [identifier for identifier in identifiers if identifier[0] == PYTHON]
        if not backtrack_causes:
            return identifiers
        self._blame(backtrack_causes)
        causes = {info.requirement.name for info in backtrack_causes}
        causes |= {info.parent.name for info in backtrack_causes if info.parent}
        return [identifier for identifier in identifiers if identifier[0] in causes] or identifiers

    def _blame(self, causes: Iterable[Any]) -> None:
        """Count what asks for another version of a distribution that is held where it is."""
        for info in causes:
            want = info.requirement
            held = self._request.installed.get(want.name) if want.name in self._held else None
            if held is None or want.name in self._request.protected:
                continue
            if not want.specifier.contains(held.version, prereleases=True):
                self._blamed[want, info.parent] += 1

    def most_blamed(self) -> tuple[ResolverRequirement, ResolverCandidate | None] | None:
        """Return who asked most often for another version of what is held; None where nobody did."""
        return self._blamed.most_common(1)[0][0] if self._blamed else None

    def find_matches(
        self,
        identifier: tuple[NormalizedName, str | None],
        requirements: Mapping[Any, Iterator[ResolverRequirement]],
        incompatibilities: Mapping[Any, Iterator[ResolverCandidate]],
    ) -> Sequence[ResolverCandidate]:
        name, extra = identifier
        wants = list(requirements[identifier])
        if extra is not None:
            wants += requirements.get((name, None), ())
        bad = {choice.version for choice in incompatibilities[identifier]}
        if name == PYTHON:
            fits = all(self.is_satisfied_by(want, self._python) for want in wants) and not bad
            return [self._python] if fits else []
        self._reporter.resolving(name, len(self._asked))
        self._asked.add(name)
        return [ResolverCandidate(c, extra) for c in self.matching(name, wants) if c.version not in bad]

    def is_satisfied_by(self, requirement: ResolverRequirement, candidate: ResolverCandidate) -> bool:
        # resolvelib asks this of every pin in every round, of the same objects.
        key = id(requirement), id(candidate)
        known = self._satisfied.get(key)
        if known is None or known[0] is not requirement or known[1] is not candidate:
            known = self._satisfied[key] = requirement, candidate, self._satisfies(requirement, candidate)
        return known[2]

    def _satisfies(self, requirement: ResolverRequirement, candidate: ResolverCandidate) -> bool:
        if requirement.exact is not None:
            return candidate.version == requirement.exact
        if requirement.url and not self._follows(requirement, candidate.candidate):
            return False
        return requirement.specifier.contains(candidate.version, prereleases=True)

    def get_dependencies(self, candidate: ResolverCandidate) -> Iterable[ResolverRequirement]:
        known = self._needs.get(candidate)
        if known is None:
            known = self._needs[candidate] = tuple(self._dependencies(candidate))
            self._prefetch(known)
        self._record(known, candidate)
        return known

    def matching(self, name: NormalizedName, wants: Sequence[ResolverRequirement]) -> tuple[Candidate, ...]:
        """Return the candidates that meet *wants* and every guard, best first."""
        exact = frozenset(want.exact for want in wants if want.exact is not None)
        urls = frozenset(want.url for want in wants if want.url)
        specifiers = frozenset(want.specifier for want in wants)
        key = (name, specifiers, (exact, urls))
        if key not in self._matching:
            self._matching[key] = tuple(self._match(name, wants))
        return self._matching[key]

    def installed_serves(self, installed: Installed, wants: Iterable[ResolverRequirement]) -> bool:
        """Whether what is installed meets *wants*, the guards and the asked provenance."""
        version = Version(installed.version)
        fits = installed.name not in self._request.unfit
        fits = fits and self._request.fixed.get(installed.name, version) == version
        fits = fits and all(self._meets(want, version) for want in wants)
        fits = fits and all(
            guard.specifier.contains(version, prereleases=True)
            for guard in self._constraints.get(installed.name, ())
        )
        return fits and self._allowed(installed.name, version) and self._provenance_fits(installed)

    def _match(self, name: NormalizedName, wants: Sequence[ResolverRequirement]) -> Iterator[Candidate]:
        """Yield candidates in order: what is installed, then what breaks least, then the newest."""
        installed = self._request.installed.get(name)
        if installed is not None and self.installed_serves(installed, wants):
            yield installed_candidate(installed)
            if name in self._held:
                return
        elif name in self._held:
            return
        candidates = [c for c in self._source.judge(name).candidates if self._fits(c, wants)]
        candidates = self._without_prereleases(name, candidates)
        if installed is not None:
            candidates = [c for c in candidates if self._is_another_build(c, installed)]
            if len(candidates) > 1:
                candidates.sort(key=lambda c: self._breaks(name, c.version))
        preferred = self._request.preferred.get(name)
        if preferred is not None:
            candidates.sort(key=lambda c: c.version != preferred)
        yield from candidates

    def _is_another_build(self, candidate: Candidate, installed: Installed) -> bool:
        if candidate.version != Version(installed.version):
            return True
        return installed.name not in self._request.unfit and not self._provenance_fits(installed)

    def _fits(self, candidate: Candidate, wants: Sequence[ResolverRequirement]) -> bool:
        version = candidate.version
        key = (candidate.name, version)
        if key in self._unusable or not self._allowed(candidate.name, version):
            return False
        fixed = self._request.fixed.get(candidate.name)
        if fixed is not None and version != fixed:
            return False
        if not all(self._meets(want, version) and self._follows(want, candidate) for want in wants):
            return False
        if candidate.files and all(file.yanked is not None for file in candidate.files):
            pinned = (s for want in wants for s in want.specifier)
            if not any(s.operator in {"==", "==="} and not s.version.endswith(".*") for s in pinned):
                return False
        return all(
            guard.specifier.contains(version, prereleases=True)
            for guard in self._constraints.get(candidate.name, ())
        )

    @staticmethod
    def _meets(want: ResolverRequirement, version: Version) -> bool:
        if want.exact is not None:
            return version == want.exact
        return want.specifier.contains(version, prereleases=True)

    def _follows(self, want: ResolverRequirement, candidate: Candidate) -> bool:
        """Whether *candidate* is what a direct reference names; only the user's are followed."""
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
        """Whether the installed build is the one asked for (PEP 610, PEP 440 local versions).

        A direct reference has to be the one that was installed, or our own
        rebuild of it.  Where the matrix names an index, an equal public version
        is not enough: the same hash, or a local label that the index lists.
        """
        name, version = installed.name, Version(installed.version)
        entry = self._direct.get(name)
        if entry is not None:
            recorded = str((installed.direct_url or {}).get("url", ""))
            ours = entry.is_rebuilt and any(c.version == version for c in self._source.judge(name).candidates)
            return ours or (not entry.is_rebuilt and recorded == entry.url)
        if name not in self._indexed:
            return True
        same = [c for c in self._source.judge(name).candidates if c.version == version]
        if installed.sha256 is not None:
            return any(installed.sha256 == file.hashes.get("sha256") for c in same for file in c.all_files)
        return version.local is not None and bool(same)

    def _without_prereleases(self, name: NormalizedName, candidates: list[Candidate]) -> list[Candidate]:
        """Leave pre-releases out unless the mode lets them in; the modes are uv's.

        ``explicit``: the user's own specifier names one.  ``if-necessary``: no
        final release meets what is asked (PEP 440, handling of pre-releases).
        """
        mode = self._request.prerelease
        if mode == "allow" or ("explicit" in mode and name in self._explicit_pre):
            return candidates
        stable = [candidate for candidate in candidates if not candidate.version.is_prerelease]
        return candidates if not stable and "if-necessary" in mode else stable

    def _breaks(self, name: NormalizedName, version: Version) -> int:
        """Count the installed distributions whose holding requirement *version* would break."""
        demands = filter(self.graph.is_met, self.graph.demands_on(name))
        return sum(not d.requirement.specifier.contains(version, prereleases=True) for d in demands)

    def _dependencies(self, choice: ResolverCandidate) -> Iterator[ResolverRequirement]:
        if choice.name == PYTHON:
            return
        candidate = choice.candidate
        if candidate.origin is CandidateOrigin.INSTALLED:
            yield from self._installed_needs(choice)
            return
        try:
            metadata = self._source.metadata(candidate)
        except BadDistribution as error:
            self._unusable[candidate.name, candidate.version] = Rejection(
                name=candidate.name,
                version=candidate.version,
                filename=candidate.file.filename if candidate.file else "",
                reason=Reason.UNUSABLE,
                detail=str(error),
            )
            # Nothing can meet this one: resolvelib then goes on to the next candidate.
            yield ResolverRequirement(candidate.name, SpecifierSet("<0.dev0"), extra=UNUSABLE)
            return
        if metadata.requires_python:
            yield ResolverRequirement(PYTHON, SpecifierSet(metadata.requires_python))
        if choice.extra is not None:
            yield ResolverRequirement(candidate.name, ANY, exact=candidate.version)
        for one in metadata.requires:
            if applies(one, self._request.environment, choice.extra or ""):
                yield from _wants(canonicalize_name(one.name), one.specifier, one.extras, one.url, "")

    def _installed_needs(self, choice: ResolverCandidate) -> Iterator[ResolverRequirement]:
        """Yield what an installed distribution, or one of its extras, needs.

        A requirement on an installed distribution that is unmet already may stay unmet, unless
        the request says that it must hold. Of an extra that nothing installed asks for,
        everything must be met.
        """
        if choice.extra is not None:
            yield ResolverRequirement(choice.name, ANY, exact=choice.version)
        node = choice.name, choice.extra or ""
        may_stay = not choice.extra or node in self.graph.asked
        for demand in self.graph.demands_of(node):
            is_unmet = demand.target in self._request.installed and not self.graph.is_met(demand)
            if not (is_unmet and may_stay) or (choice.name, demand.requirement) in self._must_hold:
                requirement = demand.requirement
                yield from _wants(demand.target, requirement.specifier, requirement.extras, None, "")

    def optional(self, candidate: Candidate) -> tuple[str, ...]:
        """Return what only extras of *candidate* require, if installed distributions ask for its extras."""
        is_asked = any(name == candidate.name for name, _ in self.graph.asked)
        if candidate.installed is not None or not is_asked:
            return ()
        requires = self._source.metadata(candidate).requires
        return tuple(str(one) for one in requires if not applies(one, self._request.environment))

    def _prefetch(self, wants: Iterable[ResolverRequirement]) -> None:
        names = {want.name for want in wants} - self._held - {PYTHON}
        if names:
            self._source.prefetch(sorted(names))

    def _record(self, wants: Iterable[ResolverRequirement], parent: ResolverCandidate | None) -> None:
        for want in wants:
            self._edges[want.name][want, parent] = None

    def refused(self) -> Iterator[Rejection]:
        """Yield what was refused of the names that were asked for."""
        yield from self._unusable.values()

    def conflict(self, causes: Sequence[Any]) -> Conflict:
        """Return why there is no solution, as data."""
        pairs = tuple(dict.fromkeys((info.requirement, info.parent) for info in causes))
        names = {want.name for want, _ in pairs} - {PYTHON}
        asked = [name for name in sorted(names) if name not in self._held]
        judged = {name: self._source.judge(name) for name in asked}
        refused = [*self._unusable.values(), *(r for name in asked for r in judged[name].rejections)]
        missing = frozenset(name for name in asked if not judged[name].found)
        return Conflict(
            request=self._request,
            causes=pairs,
            edges={name: tuple(edges) for name, edges in self._edges.items()},
            refused=tuple(refused),
            missing=missing,
            guards={n: tuple(self._constraints[n]) for n in sorted(names) if n in self._constraints},
            available={name: tuple(c.version for c in judged[name].candidates) for name in asked},
            where=tuple(dict.fromkeys(place for name in sorted(missing) for place in judged[name].where)),
        )


def _wants(
    name: NormalizedName, specifier: SpecifierSet, extras: Iterable[str], url: str | None, path: str
) -> list[ResolverRequirement]:
    """Return the want of a distribution, then one for each extra asked of it."""
    base = ResolverRequirement(name, specifier, None, url, path)
    return [
        base,
        *(
            ResolverRequirement(name, specifier, str(canonicalize_name(extra)), url, path)
            for extra in sorted(extras)
        ),
    ]
