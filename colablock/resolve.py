"""The resolvelib provider, and the least-change rule around it.

Without facts this is a plain solve: newest first, wheel tags, Requires-Python
and yanked judged inside it.  With installed distributions it is asked for the
least change first: every one of them stays where it is; where that has no
solution, what the conflict names is released, and the solve is asked again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from resolvelib import AbstractProvider, BaseReporter, ResolutionImpossible, ResolutionTooDeep, Resolver

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.errors import BadDistribution, NoSolution
from colablock.index import Candidate, CandidateSource, Metadata, Origin, Reason, Rejection
from colablock.progress import Reporter
from colablock.requirements import Dependents, applies, holding, parse_requirement

if TYPE_CHECKING:
    from colablock.environment import Environment
    from colablock.matrix import Absent, Constraint, PackageEntry
    from colablock.snapshot import Installed

__all__ = [
    "Conflict",
    "Parent",
    "Pin",
    "Request",
    "Resolution",
    "Want",
    "resolve",
]

PYTHON = NormalizedName("python")  # the interpreter, as a candidate like any other
_ANY = SpecifierSet()
_MAX_ROUNDS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that a solve depends on, apart from what the source can offer.

    *roots* and *constraints* are taken as they stand; their markers are judged
    here.  *installed* are facts (empty for a solve from nothing), *protected*
    the names among them that never move, *fixed* versions that a lock or an
    earlier solve has decided.
    """

    environment: Environment
    roots: tuple[PackageEntry, ...]
    constraints: tuple[Constraint, ...] = ()
    absent: tuple[Absent, ...] = ()
    requires_python: SpecifierSet = _ANY
    prerelease: str = "if-necessary-or-explicit"
    installed: Mapping[NormalizedName, Installed] = field(default_factory=dict)
    protected: frozenset[NormalizedName] = frozenset()
    released: Mapping[NormalizedName, str] = field(default_factory=dict)
    fixed: Mapping[NormalizedName, Version] = field(default_factory=dict)
    unfit: frozenset[NormalizedName] = frozenset()  # their installed version is no candidate


class Want(NamedTuple):
    """One requirement inside the solve.

    *extra* None asks for the distribution itself; else for what that extra adds.
    *path* is where the user wrote it, for roots.  *exact* ties an extra to its base.
    """

    name: NormalizedName
    specifier: SpecifierSet
    extra: str | None = None
    url: str | None = None
    path: str = ""
    exact: Version | None = None

    def __str__(self) -> str:
        extra = f"[{self.extra}]" if self.extra else ""
        tail = f" @ {self.url}" if self.url else str(self.specifier)
        return f"{self.name}{extra}{tail}"


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A candidate in the solve: a distribution, or what one of its extras adds.

    Two are the same when name, version, origin and extra are.
    """

    candidate: Candidate
    extra: str | None = None

    @property
    def name(self) -> NormalizedName:
        return self.candidate.name

    @property
    def version(self) -> Version:
        return self.candidate.version

    @property
    def _key(self) -> tuple[NormalizedName, Version, Origin, str | None]:
        return self.candidate.name, self.candidate.version, self.candidate.origin, self.extra

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """Who asked for a pin: another name, or (name None) the user at *path*."""

    name: NormalizedName | None
    requirement: str
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One name at one version, what it needs and who asked for it."""

    name: NormalizedName
    candidate: Candidate
    requires: tuple[str, ...] = ()  # what applies here, markers judged
    extras: frozenset[str] = frozenset()
    parents: tuple[Parent, ...] = ()

    @property
    def version(self) -> Version:
        return self.candidate.version

    @property
    def is_installed(self) -> bool:
        """Whether what is installed serves as it is."""
        return self.candidate.origin is Origin.INSTALLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What the solve found: a pin for every name, sorted by name."""

    request: Request
    pins: Mapping[NormalizedName, Pin]
    released: Mapping[NormalizedName, str]  # installed ones that had to move, and why
    rejections: tuple[Rejection, ...] = ()
    rounds: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Why there is no solution: the last conflict, and how each part came up.

    *causes* are (want, parent choice or None); *edges* map a name to the wants
    that brought it in; *refused* the rejections of the names concerned.
    """

    request: Request
    causes: tuple[tuple[Want, Choice | None], ...]
    edges: Mapping[NormalizedName, tuple[tuple[Want, Choice | None], ...]]
    refused: tuple[Rejection, ...]
    missing: frozenset[NormalizedName]
    guards: Mapping[NormalizedName, tuple[Guard, ...]]

    @property
    def names(self) -> tuple[NormalizedName, ...]:
        return tuple(sorted({want.name for want, _ in self.causes}))


class Guard(NamedTuple):
    """A narrowing that asks for nothing: a constraint, or what a protected one needs."""

    specifier: SpecifierSet
    text: str  # "google-colab keeps `pandas==2.2.2`"


class Unsolvable(NoSolution):
    """No solution, with the conflict as data: explain.py words it."""

    def __init__(self, conflict: Conflict) -> None:
        self.conflict = conflict
        super().__init__("no set of versions meets every requirement", names=conflict.names)


def resolve(
    request: Request, source: CandidateSource, reporter: Reporter | None = None, *, may_release: bool = True
) -> Resolution:
    """Return a pin for every name that *request* needs.

    With *may_release* False nothing installed moves but what *request* has
    released.  Raises Unsolvable (a NoSolution) when there is no solution, even
    with everything released that may be; FetchFailed when an index cannot be read.
    """
    reporter = reporter or Reporter()
    released = dict(request.released)
    if may_release:
        released = {**_forced_releases(request, source), **released}
    rounds = 0
    while True:
        rounds += 1
        provider = _Provider(replace(request, released=released), source, reporter)
        try:
            result: Any = Resolver(provider, BaseReporter()).resolve(provider.roots(), max_rounds=_MAX_ROUNDS)
        except ResolutionImpossible as error:
            conflict = provider.conflict(error.causes)
            more = _release(conflict, released) if may_release else {}
            if not more:
                raise Unsolvable(conflict) from error
            released = {**released, **more}
        except ResolutionTooDeep as error:
            message = f"no solution was found in {_MAX_ROUNDS} rounds"
            raise NoSolution(message, hint="Narrow the ranges of the matrix, or pin what it backtracks on") from error
        else:
            return Resolution(
                request=request,
                pins=_pins(result, provider),
                released=released,
                rejections=tuple(provider.refused()),
                rounds=rounds,
            )


def _release(conflict: Conflict, released: Mapping[NormalizedName, str]) -> dict[NormalizedName, str]:
    """Return what the conflict asks to be released: what is excluded, else what hangs on it."""
    request = conflict.request
    held = {
        name for name in request.installed if name not in released and name not in request.protected
    }
    excluded: dict[NormalizedName, str] = {}
    for want, parent in conflict.causes:
        if want.name in held and not want.specifier.contains(request.installed[want.name].version, prereleases=True):
            excluded[want.name] = _needs(want, parent)
    if excluded:
        return excluded
    guarded = {want.name: "its installed version is excluded" for want, _ in conflict.causes if want.name in held}
    parents = {
        parent.name: f"it needs {want}" for want, parent in conflict.causes if parent and parent.name in held
    }
    return guarded or parents


def _needs(want: Want, parent: Choice | None) -> str:
    return f"{parent.candidate} needs {want}" if parent else f"{want.path} asks for {want}"


def _forced_releases(request: Request, source: CandidateSource) -> dict[NormalizedName, str]:
    """Return the installed names that exact pins leave no choice about.

    Unit propagation: where the roots leave one version of a name, what that
    version needs is needed for certain.  It saves a round for each of them.
    """
    if not request.installed:
        return {}
    provider = _Provider(request, source, Reporter())
    forced: dict[NormalizedName, str] = {}
    known: defaultdict[NormalizedName, list[Want]] = defaultdict(list)
    queue: list[tuple[Want, Choice | None]] = [(want, None) for want in provider.roots()]
    expanded: set[tuple[NormalizedName, str | None]] = set()
    while queue:
        want, parent = queue.pop(0)
        known[want.name].append(want)
        if want.name == PYTHON or want.name in request.protected:
            continue
        installed = request.installed.get(want.name)
        if installed is not None and want.name not in forced:
            if provider.installed_serves(installed, known[want.name]):
                continue
            forced[want.name] = _needs(want, parent)
        exact = any(s.operator in {"==", "==="} and not s.version.endswith(".*") for s in want.specifier)
        if not exact or (want.name, want.extra) in expanded:
            continue
        expanded.add((want.name, want.extra))
        fitting = [c for c in provider.matching(want.name, known[want.name]) if c.origin is not Origin.INSTALLED]
        if len({c.version.public for c in fitting}) == 1:
            choice = Choice(fitting[0], want.extra)
            queue.extend((need, choice) for need in provider.get_dependencies(choice))
    return forced


class _Provider(AbstractProvider[Want, Choice, tuple[NormalizedName, "str | None"]]):
    """What resolvelib asks; the answers come from the request and the source."""

    def __init__(self, request: Request, source: CandidateSource, reporter: Reporter) -> None:
        self._request = request
        self._source = source
        self._reporter = reporter
        self._held = frozenset(request.installed) - request.released.keys() | request.protected & request.installed.keys()
        self._guards = _guards(request)
        self._excluded = {absent.name: absent for absent in request.absent}
        self._explicit_pre = {
            entry.name for entry in request.roots if any(spec.prereleases for spec in entry.specifier)
        }
        self._direct = {entry.name: entry for entry in request.roots if entry.url}
        self._indexed = {entry.name for entry in request.roots if entry.index}
        self._python = Choice(
            Candidate(name=PYTHON, version=request.environment.python_version, origin=Origin.INSTALLED)
        )
        self._needs: dict[Choice, tuple[Want, ...]] = {}
        self._edges: defaultdict[NormalizedName, dict[tuple[Want, Choice | None], None]] = defaultdict(dict)
        self._matching: dict[tuple[NormalizedName, frozenset[SpecifierSet], Any], tuple[Candidate, ...]] = {}
        self._asked: set[NormalizedName] = set()
        self._unusable: dict[tuple[NormalizedName, Version], Rejection] = {}
        self._dependents: Dependents | None = None

    def roots(self) -> list[Want]:
        """Return what the user asks for, where the markers hold."""
        environment = self._request.environment
        wants = [Want(PYTHON, self._request.requires_python, path="requires-python")]
        for entry in self._request.roots:
            if entry.marker is not None and not entry.marker.evaluate(dict(environment.markers)):
                continue
            wants += _wants(entry.name, entry.specifier, entry.extras, entry.url, entry.path)
        self._record(wants, None)
        self._prefetch(wants)
        return wants

    def identify(self, requirement_or_candidate: Want | Choice) -> tuple[NormalizedName, str | None]:
        return requirement_or_candidate.name, requirement_or_candidate.extra

    def get_preference(
        self,
        identifier: tuple[NormalizedName, str | None],
        resolutions: Mapping[Any, Choice],
        candidates: Mapping[Any, Iterator[Choice]],  # noqa: ARG002
        information: Mapping[Any, Iterator[Any]],
        backtrack_causes: Sequence[Any],  # noqa: ARG002
    ) -> tuple[Any, ...]:
        """Order decisions the way pip documents it: direct, pinned, bounded, the user's order, name."""
        name, extra = identifier
        wants = [info.requirement for info in information[identifier]]
        operators = [(s.operator, s.version) for want in wants for s in want.specifier]
        pinned = any(op in {"==", "==="} and not version.endswith(".*") for op, version in operators)
        bounded = any(op in {"<", "<=", "~=", "=="} for op, _ in operators)
        order = min((i for i, entry in enumerate(self._request.roots) if entry.name == name), default=1 << 30)
        base_undecided = extra is not None and (name, None) not in resolutions
        return (
            name != PYTHON,
            base_undecided,
            name not in self._direct,
            not (pinned or name in self._held or name in self._request.fixed),
            not bounded,
            order,
            not operators,
            name,
            extra or "",
        )

    def narrow_requirement_selection(
        self,
        identifiers: Iterable[tuple[NormalizedName, str | None]],
        resolutions: Mapping[Any, Choice],  # noqa: ARG002
        candidates: Mapping[Any, Iterator[Choice]],  # noqa: ARG002
        information: Mapping[Any, Iterator[Any]],  # noqa: ARG002
        backtrack_causes: Sequence[Any],
    ) -> Iterable[tuple[NormalizedName, str | None]]:
        """Decide first about what the last conflict was about."""
        identifiers = list(identifiers)
        if any(name == PYTHON for name, _ in identifiers):
            return [identifier for identifier in identifiers if identifier[0] == PYTHON]
        if not backtrack_causes:
            return identifiers
        causes = {info.requirement.name for info in backtrack_causes}
        causes |= {info.parent.name for info in backtrack_causes if info.parent}
        return [identifier for identifier in identifiers if identifier[0] in causes] or identifiers

    def find_matches(
        self,
        identifier: tuple[NormalizedName, str | None],
        requirements: Mapping[Any, Iterator[Want]],
        incompatibilities: Mapping[Any, Iterator[Choice]],
    ) -> Sequence[Choice]:
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
        return [Choice(c, extra) for c in self.matching(name, wants) if c.version not in bad]

    def is_satisfied_by(self, requirement: Want, candidate: Choice) -> bool:
        if requirement.exact is not None:
            return candidate.version == requirement.exact
        if requirement.url and not self._follows(requirement, candidate.candidate):
            return False
        return requirement.specifier.contains(candidate.version, prereleases=True)

    def get_dependencies(self, candidate: Choice) -> Iterable[Want]:
        known = self._needs.get(candidate)
        if known is None:
            known = self._needs[candidate] = tuple(self._dependencies(candidate))
            self._prefetch(known)
        self._record(known, candidate)
        return known

    def matching(self, name: NormalizedName, wants: Sequence[Want]) -> tuple[Candidate, ...]:
        """Return the candidates that meet *wants* and every guard, best first."""
        exact = frozenset(want.exact for want in wants if want.exact is not None)
        urls = frozenset(want.url for want in wants if want.url)
        specifiers = frozenset(want.specifier for want in wants)
        key = (name, specifiers, (exact, urls))
        if key not in self._matching:
            self._matching[key] = tuple(self._match(name, wants))
        return self._matching[key]

    def installed_serves(self, installed: Installed, wants: Iterable[Want]) -> bool:
        """Whether what is installed meets *wants*, the guards and the asked provenance."""
        version = Version(installed.version)
        fits = installed.name not in self._request.unfit
        fits = fits and self._request.fixed.get(installed.name, version) == version
        fits = fits and all(self._meets(want, version) for want in wants)
        fits = fits and all(guard.specifier.contains(version, prereleases=True) for guard in self._guards.get(installed.name, ()))
        return fits and self._allowed(installed.name, version) and self._provenance_fits(installed)

    def _match(self, name: NormalizedName, wants: Sequence[Want]) -> Iterator[Candidate]:
        """Yield candidates in order: what is installed, then what breaks least, then the newest."""
        installed = self._request.installed.get(name)
        if installed is not None and self.installed_serves(installed, wants):
            yield _installed_candidate(installed)
            if name in self._held:
                return
        elif name in self._held:
            return
        candidates = [c for c in self._source.judge(name).candidates if self._fits(c, wants)]
        candidates = self._without_prereleases(name, candidates)
        if installed is not None:
            candidates = [c for c in candidates if self._is_another_build(c, installed)]
            candidates.sort(key=lambda c: self._breaks(name, c.version))
        yield from candidates

    def _is_another_build(self, candidate: Candidate, installed: Installed) -> bool:
        if candidate.version != Version(installed.version):
            return True
        return installed.name not in self._request.unfit and not self._provenance_fits(installed)

    def _fits(self, candidate: Candidate, wants: Sequence[Want]) -> bool:
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
        return all(guard.specifier.contains(version, prereleases=True) for guard in self._guards.get(candidate.name, ()))

    @staticmethod
    def _meets(want: Want, version: Version) -> bool:
        if want.exact is not None:
            return version == want.exact
        return want.specifier.contains(version, prereleases=True)

    def _follows(self, want: Want, candidate: Candidate) -> bool:
        """Whether *candidate* is what a direct reference names; only the user's are followed."""
        if not want.url:
            return True
        if want.path:
            return candidate.origin in {Origin.DIRECT, Origin.INSTALLED, Origin.LOCK}
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

        ``explicit``: a root's own specifier names one.  ``if-necessary``: every
        version of the project is one.
        """
        mode = self._request.prerelease
        if mode == "allow" or ("explicit" in mode and name in self._explicit_pre):
            return candidates
        stable = [c for c in candidates if not c.version.is_prerelease]
        if stable or "if-necessary" not in mode:
            return stable
        judged = self._source.judge(name)
        known = [c.version for c in judged.candidates] + [r.version for r in judged.rejections if r.version]
        return candidates if all(version.is_prerelease for version in known) else []

    def _breaks(self, name: NormalizedName, version: Version) -> int:
        """Count the installed distributions whose holding requirement *version* would break."""
        if self._dependents is None:
            self._dependents = Dependents(self._request.installed, self._request.environment)
        there = self._request.installed[name].version
        holds = (d.requirement.specifier for d in self._dependents.of(name))
        return sum(s.contains(there, prereleases=True) and not s.contains(version, prereleases=True) for s in holds)

    def _dependencies(self, choice: Choice) -> Iterator[Want]:
        if choice.name == PYTHON:
            return
        candidate = choice.candidate
        try:
            metadata = self._metadata(candidate)
        except BadDistribution as error:
            self._unusable[candidate.name, candidate.version] = Rejection(
                name=candidate.name,
                version=candidate.version,
                filename=candidate.file.filename if candidate.file else "",
                reason=Reason.UNUSABLE,
                detail=str(error),
            )
            # Nothing can meet this one: resolvelib then goes on to the next candidate.
            yield Want(candidate.name, SpecifierSet("<0.dev0"), extra="unusable metadata")
            return
        if metadata.requires_python and candidate.origin is not Origin.INSTALLED:
            yield Want(PYTHON, SpecifierSet(metadata.requires_python))
        environment = self._request.environment
        if choice.extra is not None:
            yield Want(candidate.name, _ANY, exact=candidate.version)
        for requirement in metadata.requires:
            plain = applies(requirement, environment)
            if plain if choice.extra is None else (not plain and applies(requirement, environment, (choice.extra,))):
                yield from self._needed(candidate, requirement)

    def _needed(self, candidate: Candidate, requirement: Requirement) -> Iterator[Want]:
        """Yield what *requirement* asks for; what was unmet in the environment before stays so."""
        name = canonicalize_name(requirement.name)
        if candidate.origin is Origin.INSTALLED:
            there = self._request.installed.get(name)
            if there is not None and not requirement.specifier.contains(there.version, prereleases=True):
                return
            yield from _wants(name, requirement.specifier, requirement.extras, None, "")
        else:
            yield from _wants(name, requirement.specifier, requirement.extras, requirement.url, "")

    def _metadata(self, candidate: Candidate) -> Metadata:
        if candidate.installed is not None:
            lines = (parse_requirement(line) for line in candidate.installed.requires)
            return Metadata(requires=tuple(line for line in lines if line is not None))
        return self._source.metadata(candidate)

    def _prefetch(self, wants: Iterable[Want]) -> None:
        names = {want.name for want in wants} - self._held - {PYTHON}
        if names:
            self._source.prefetch(sorted(names))

    def _record(self, wants: Iterable[Want], parent: Choice | None) -> None:
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
        return Conflict(
            request=self._request,
            causes=pairs,
            edges={name: tuple(edges) for name, edges in self._edges.items()},
            refused=tuple(refused),
            missing=frozenset(name for name in asked if not judged[name].found),
            guards={name: tuple(self._guards[name]) for name in sorted(names) if name in self._guards},
        )


def _wants(
    name: NormalizedName, specifier: SpecifierSet, extras: Iterable[str], url: str | None, path: str
) -> list[Want]:
    """Return the want of a distribution, then one for each extra asked of it."""
    base = Want(name, specifier, None, url, path)
    return [base, *(Want(name, specifier, str(canonicalize_name(extra)), url, path) for extra in sorted(extras))]


def _installed_candidate(installed: Installed) -> Candidate:
    return Candidate(
        name=installed.name, version=Version(installed.version), origin=Origin.INSTALLED, installed=installed
    )


def _guards(request: Request) -> dict[NormalizedName, list[Guard]]:
    """Return the narrowings of each name: constraints, and what protected ones need and have."""
    guards: defaultdict[NormalizedName, list[Guard]] = defaultdict(list)
    for constraint in request.constraints:
        if constraint.marker is None or constraint.marker.evaluate(dict(request.environment.markers)):
            text = f"{constraint.path} keeps it {constraint.specifier}"
            guards[constraint.name].append(Guard(constraint.specifier, text))
    for name in sorted(request.protected & request.installed.keys()):
        keeper = request.installed[name]
        for requirement in holding(keeper, request.environment, request.installed):
            needed = canonicalize_name(requirement.name)
            text = f"{keeper.name} {keeper.version} is protected and needs {needed}{requirement.specifier}"
            guards[needed].append(Guard(requirement.specifier, text))
    return guards


def _pins(result: Any, provider: _Provider) -> dict[NormalizedName, Pin]:  # noqa: ANN401
    """Return the pins of a finished solve, sorted by name; extras joined to their base."""
    extras: defaultdict[NormalizedName, set[str]] = defaultdict(set)
    requires: defaultdict[NormalizedName, dict[str, None]] = defaultdict(dict)
    parents: defaultdict[NormalizedName, dict[Parent, None]] = defaultdict(dict)
    for (name, extra), choice in result.mapping.items():
        if extra is not None:
            extras[name].add(extra)
        for want in provider.get_dependencies(choice):
            if want.exact is None and want.name != PYTHON:
                requires[name][str(want)] = None
        for want, parent in _information(result, (name, extra)):
            if want.exact is None:
                asker = parent.name if parent else None
                parents[name][Parent(name=asker, requirement=str(want), path=want.path)] = None
    return {
        name: Pin(
            name=name,
            candidate=choice.candidate,
            requires=tuple(requires[name]),
            extras=frozenset(extras[name]),
            parents=tuple(parents[name]),
        )
        for (name, extra), choice in sorted(result.mapping.items(), key=lambda item: str(item[0]))
        if extra is None and name != PYTHON
    }


def _information(result: Any, identifier: Any) -> list[tuple[Want, Choice | None]]:  # noqa: ANN401
    return [(info.requirement, info.parent) for info in result.criteria[identifier].information]
