"""The provider that resolvelib asks for candidates, dependencies and preferences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.requirements import applies, parse_requirement
from colablock.errors import BadDistribution
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    CandidateSource,
    Reason,
    Rejection,
)
from colablock.resolver.constraints import constraints_of, protected_extras
from colablock.resolver.matching import CandidateMatcher, Lazy, SpecifierMemo, is_pin, is_yanked
from colablock.resolver.model import (
    ANY,
    PYTHON,
    UNUSABLE,
    Conflict,
    Edge,
    Key,
    Request,
    ResolverCandidate,
    ResolverRequirement,
)

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock.environment.dependency_graph import DependencyGraph

__all__ = ["Clauses", "Provider", "SolveMemo"]

_PROMOTED = 5  # the conflicts after which a name is decided before the others, as in pip


class Clauses(NamedTuple):
    """The *number* of clauses in requirements on one name, and whether any *pin* or *bound* the version."""

    number: int
    pin: bool
    bound: bool

    @classmethod
    def of(cls, wants: Iterable[ResolverRequirement]) -> Clauses:
        """Return those of *wants*."""
        found = [(one.operator, one.version) for want in wants for one in want.specifier]
        return cls(
            number=len(found),
            pin=any(op in {"==", "==="} and not version.endswith(".*") for op, version in found),
            bound=any(op in {"<", "<=", "~=", "=="} for op, _ in found),
        )


class SolveMemo(SpecifierMemo):
    """What the rounds of a solve share: which versions meet which specifiers, and the needs of candidates.

    What a candidate needs does not depend on the distributions that are released.
    """

    def __init__(self) -> None:
        super().__init__()
        self.needs: dict[ResolverCandidate, tuple[ResolverRequirement, ...]] = {}


class Provider:
    """Answers the questions of resolvelib from a request and a source of candidates.

    It has the methods of `resolvelib.AbstractProvider` that `bounded_search` needs, and is none, since a
    lock needs no resolvelib.
    """

    def __init__(
        self,
        request: Request,
        source: CandidateSource,
        reporter: Reporter,
        *,
        graph: DependencyGraph,
        memo: SolveMemo,
    ) -> None:
        self._request = request
        self._memo = memo
        self._source = source
        self._reporter = reporter
        # The installed distributions that stay as they are.
        self.held = (
            frozenset(request.installed) - request.released.keys() - request.damaged
            | request.protected & request.installed.keys()
        )
        self.graph = graph
        self._constraints = constraints_of(request, self.graph, self.held)
        self._protected_extras = protected_extras(request, self.graph, self.held)
        self.matcher = CandidateMatcher(
            request, source, graph=self.graph, constraints=self._constraints, held=self.held, memo=memo
        )
        self._entries = request.asked
        self._roots = frozenset(entry.name for entry in self._entries)
        self._direct = {entry.name: entry for entry in self._entries if entry.url}
        self._must_hold = {(name, parse_requirement(line)) for name, line in request.must_hold}
        self._python = ResolverCandidate(
            Candidate(
                name=PYTHON, version=request.environment.python_version, origin=CandidateOrigin.INSTALLED
            )
        )
        self._conflicts: Counter[Key] = Counter()
        self._satisfied: dict[tuple[int, int], tuple[ResolverRequirement, ResolverCandidate, bool]] = {}
        self._domains: dict[Key, tuple[Sequence[ResolverCandidate], Mapping[Version, int]]] = {}
        self._fitting: dict[tuple[object, ...], int] = {}
        self._asked: set[NormalizedName] = set()

    def roots(self) -> list[ResolverRequirement]:
        """Return the root requirements whose markers hold."""
        wants = [ResolverRequirement(PYTHON, self._request.requires_python, path="requires-python")]
        for entry in self._entries:
            wants += _wants(entry.name, entry.specifier, entry.extras, entry.url, entry.path)
        wants += self._protected_extras
        self._prefetch(wants)
        return wants

    def asker(self, root: ResolverRequirement) -> ResolverCandidate | None:
        """Return the protected distribution that asks for *root*; None if the user does."""
        return self._protected_extras.get(root)

    def domain(self, key: Key) -> tuple[Sequence[ResolverCandidate], Mapping[Version, int]]:
        """Return the candidates of *key* that some requirements may select, and their numbers by version."""
        if key not in self._domains:
            name, extra = key
            candidates = [self._python.candidate] if name == PYTHON else self.matcher.domain(name)
            numbers = {candidate.version: number for number, candidate in enumerate(candidates)}
            self._domains[key] = [ResolverCandidate(one, extra) for one in candidates], numbers
        return self._domains[key]

    def fitting(self, key: Key, want: ResolverRequirement) -> int:
        """Return the candidates of the domain that meet *want*, as the bits of an integer."""
        known = (key[0], self._memo.number(want.specifier), want.url, bool(want.path), want.exact)
        if known not in self._fitting:
            candidates, _ = self.domain(key)
            self._fitting[known] = sum(
                1 << number for number, one in enumerate(candidates) if self._satisfies(want, one)
            )
        return self._fitting[known]

    def matches(self, key: Key, wants: Sequence[ResolverRequirement]) -> Sequence[ResolverCandidate]:
        """Return the candidates of *key* that *wants* select, best first."""
        name, extra = key
        if name == PYTHON:
            return [self._python] if all(self.is_satisfied_by(want, self._python) for want in wants) else []
        return Lazy(ResolverCandidate(candidate, extra) for candidate in self.matcher.matching(name, wants))

    def may_admit(
        self, choice: ResolverCandidate, wants: Sequence[ResolverRequirement]
    ) -> Callable[[ResolverRequirement], bool]:
        """Return whether a requirement beside *wants*, which do not select *choice*, may admit it.

        A yanked version needs a pin.  A pre-release is not admitted as long as a final one meets all.
        """
        if is_yanked(choice.candidate) and not any(map(is_pin, wants)):
            return is_pin
        key = self.identify(choice)
        finals = (one for one in self.matches(key, wants) if not one.version.is_prerelease)
        final = next((one for one in finals if one.candidate.file and not is_yanked(one.candidate)), None)
        if choice.version.is_prerelease and final is not None:
            return lambda want: not self._satisfies(want, final)
        return lambda want: want not in wants

    def identify(
        self, requirement_or_candidate: ResolverRequirement | ResolverCandidate
    ) -> tuple[NormalizedName, str | None]:
        return requirement_or_candidate.name, requirement_or_candidate.extra

    def preference(
        self, identifier: Key, clauses: Clauses, resolutions: Container[Key]
    ) -> tuple[object, ...]:
        """Order decisions as pip does: often in conflict, direct, pinned, bounded, the user's own, name.

        The order of the lines in the matrix does not count: sorting a matrix must not change its lock.
        """
        name, extra = identifier
        base_undecided = extra is not None and (name, None) not in resolutions
        return (
            name != PYTHON,
            base_undecided,
            self._conflicts[identifier] < _PROMOTED,
            name not in self._direct,
            not (clauses.pin or name in self.held or name in self._request.fixed),
            not clauses.bound,
            name not in self._roots,
            not clauses.number,
            name,
            extra or "",
        )

    def narrow_requirement_selection(
        self,
        identifiers: Iterable[tuple[NormalizedName, str | None]],
        resolutions: Mapping[Any, ResolverCandidate],
        candidates: Mapping[Any, Iterator[ResolverCandidate]],  # noqa: ARG002
        information: Mapping[Any, Iterator[Any]],  # noqa: ARG002
        backtrack_causes: Sequence[Any],
    ) -> Iterable[tuple[NormalizedName, str | None]]:
        """Decide the names of the last conflict first, then those that were often in one, as pip does."""
        identifiers = list(identifiers)
        if any(name == PYTHON for name, _ in identifiers):
            return [identifier for identifier in identifiers if identifier[0] == PYTHON]
        if not backtrack_causes:
            return identifiers
        causes = {info.requirement.name for info in backtrack_causes}
        causes |= {info.parent.name for info in backtrack_causes if info.parent}
        self._conflicts.update(
            self.identify(one)
            for info in backtrack_causes
            for one in (info.requirement, info.parent)
            if one is not None and self.identify(one) not in resolutions
        )
        latest = [identifier for identifier in identifiers if identifier[0] in causes]
        often = [identifier for identifier in identifiers if self._conflicts[identifier] >= _PROMOTED]
        return latest or often or identifiers

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
        if name != PYTHON:
            self._reporter.resolving(name, len(self._asked))
            self._asked.add(name)
        return Lazy(choice for choice in self.matches(identifier, wants) if choice.version not in bad)

    def is_satisfied_by(self, requirement: ResolverRequirement, candidate: ResolverCandidate) -> bool:
        # resolvelib asks this for every pin in every round, with the same objects.
        key = id(requirement), id(candidate)
        known = self._satisfied.get(key)
        if known is None or known[0] is not requirement or known[1] is not candidate:
            known = self._satisfied[key] = requirement, candidate, self._satisfies(requirement, candidate)
        return known[2]

    def _satisfies(self, requirement: ResolverRequirement, candidate: ResolverCandidate) -> bool:
        if requirement.exact is not None:
            return candidate.version == requirement.exact
        if requirement.url and not self.matcher.follows(requirement, candidate.candidate):
            return False
        return self._memo.contains(requirement.specifier, candidate.version)

    def get_dependencies(self, candidate: ResolverCandidate) -> Iterable[ResolverRequirement]:
        known = self._memo.needs.get(candidate)
        if known is None:
            known = tuple(self._dependencies(candidate))
            if (candidate.name, candidate.version) not in self.matcher.unusable:  # each round notes it
                self._memo.needs[candidate] = known
            self._prefetch(known)
        return known

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
            self.matcher.unusable[candidate.name, candidate.version] = Rejection(
                name=candidate.name,
                version=candidate.version,
                filename=candidate.file.filename if candidate.file else "",
                reason=Reason.UNUSABLE,
                detail=str(error),
            )
            # No candidate meets this requirement, so resolvelib tries the next version.
            yield ResolverRequirement(candidate.name, SpecifierSet("<0.dev0"), extra=UNUSABLE)
            return
        if metadata.requires_python:
            yield ResolverRequirement(PYTHON, SpecifierSet(metadata.requires_python))
        if choice.extra is not None:
            yield ResolverRequirement(candidate.name, ANY, exact=candidate.version)
        for one in metadata.requires_under(choice.extra or ""):
            if applies(one, self._request.environment, choice.extra or ""):
                yield from _wants(canonicalize_name(one.name), one.specifier, one.extras, one.url, "")

    def _installed_needs(self, choice: ResolverCandidate) -> Iterator[ResolverRequirement]:
        """Yield the requirements of an installed distribution, or of one of its extras.

        A requirement for which an installed version is too old or too new may stay unmet, unless
        it is in `Request.must_hold`.  All requirements of an extra must be met if no installed
        distribution asks for that extra.
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
        """Return the requirements of the extras of *candidate*, if installed distributions ask for extras."""
        is_asked = any(name == candidate.name for name, _ in self.graph.asked)
        if candidate.installed is not None or not is_asked:
            return ()
        requires = self._source.metadata(candidate).requires
        return tuple(str(one) for one in requires if not applies(one, self._request.environment))

    def _prefetch(self, wants: Iterable[ResolverRequirement]) -> None:
        names = {want.name for want in wants} - self.held - {PYTHON}
        if names:
            self._source.prefetch(sorted(names))

    def refused(self) -> Iterator[Rejection]:
        """Yield the versions that were rejected for invalid metadata."""
        yield from self.matcher.unusable.values()

    def conflict(self, edges: Iterable[Edge], barred: Iterable[ResolverCandidate] = ()) -> Conflict:
        """Return requirements that have no solution, with the facts that explain them."""
        by_key: defaultdict[Key, list[Edge]] = defaultdict(list)
        order = {want: place for place, want in enumerate(self.roots())}
        for want, parent in sorted(edges, key=lambda edge: order.get(edge[0], len(order))):
            if want.exact is None:
                by_key[self.identify(want)].append((want, parent))
        causes = _unmeetable(by_key, self.matches)
        names = {want.name for want, _ in causes} - {PYTHON}
        listed = sorted({name for name, _ in by_key} - self.held - {PYTHON})
        judged = {name: self._source.judge(name) for name in listed}
        refused = [*self.matcher.unusable.values()]
        refused += [one for name in listed if name in names for one in judged[name].rejections]
        missing = frozenset(name for name in listed if name in names and not judged[name].found)
        by_name: defaultdict[NormalizedName, tuple[Edge, ...]] = defaultdict(tuple)
        for (name, _), found in by_key.items():
            by_name[name] += tuple(found)
        return Conflict(
            request=self._request,
            causes=tuple(causes),
            edges=by_name,
            refused=tuple(refused),
            missing=missing,
            constraints={n: tuple(self._constraints[n]) for n in sorted(by_name) if n in self._constraints},
            available={name: tuple(c.version for c in judged[name].candidates) for name in listed},
            where=tuple(dict.fromkeys(place for name in sorted(missing) for place in judged[name].where)),
            barred=tuple(barred),
        )


def _unmeetable(
    by_key: Mapping[Key, Sequence[Edge]],
    matches: Callable[[Key, Sequence[ResolverRequirement]], Sequence[ResolverCandidate]],
) -> list[Edge]:
    """Return the edges on the names of which no version meets all of them."""
    found: list[Edge] = []
    for key in sorted(by_key, key=lambda key: (key[0], key[1] or "")):
        name, extra = key
        base = by_key.get((name, None), ()) if extra not in {None, UNUSABLE} else ()
        if any(want.name == name for want, _ in found) or not by_key[key]:
            continue
        if not matches(key, [want for want, _ in (*by_key[key], *base)]):
            found += [*base, *by_key[key]]
    return found or [edge for edges in by_key.values() for edge in edges]


def _wants(
    name: NormalizedName, specifier: SpecifierSet, extras: Iterable[str], url: str | None, path: str
) -> list[ResolverRequirement]:
    """Return the requirement of a distribution, then one for each of its requested extras."""
    base = ResolverRequirement(name, specifier, None, url, path)
    return [
        base,
        *(
            ResolverRequirement(name, specifier, str(canonicalize_name(extra)), url, path)
            for extra in sorted(extras)
        ),
    ]
