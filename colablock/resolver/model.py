"""The values of a solve: the request, the resolution, and the conflict if there is no solution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, NamedTuple

from colablock._records import dataclass
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.errors import NoSolution
from colablock.index.candidates import Candidate, CandidateOrigin, Reason, Rejection

if TYPE_CHECKING:
    from collections import Counter

    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Installed
    from colablock.matrix.model import Absent, Constraint, PackageEntry

__all__ = [
    "ANY",
    "LOCK",
    "PYTHON",
    "UNUSABLE",
    "Conflict",
    "Edge",
    "Impossible",
    "Key",
    "Parent",
    "Pin",
    "Request",
    "Resolution",
    "ResolverCandidate",
    "ResolverConstraint",
    "ResolverRequirement",
    "SearchEnded",
    "Unsolvable",
]

PYTHON = NormalizedName("python")  # the interpreter, which is a candidate too
ANY = SpecifierSet()
UNUSABLE = "unusable metadata"  # an extra that no candidate has
LOCK = "the lock"  # the name of a lock among the places that were searched


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The input of a solve, except the candidates of the source.

    *roots* and *constraints* have markers, which the solve evaluates.  *installed* are the
    installed distributions, empty for a solve from nothing.  *protected* are those that must
    not change, and *released* those that may, with the reason.  *fixed* are the versions of a
    lock or of an earlier solve, *preferred* the versions that are tried first.

    A requirement of an installed distribution that is unmet may stay unmet, except
    those in *must_hold*.  *builds* maps an installed distribution to others that own the same
    files, so that two of them have one version.
    """

    environment: Environment
    roots: tuple[PackageEntry, ...]
    constraints: tuple[Constraint, ...] = ()
    absent: tuple[Absent, ...] = ()
    requires_python: SpecifierSet = ANY
    prerelease: str = "if-necessary-or-explicit"
    installed: Mapping[NormalizedName, Installed] = field(default_factory=dict)
    protected: frozenset[NormalizedName] = frozenset()
    released: Mapping[NormalizedName, str] = field(default_factory=dict)
    fixed: Mapping[NormalizedName, Version] = field(default_factory=dict)
    preferred: Mapping[NormalizedName, Version] = field(default_factory=dict)
    unfit: frozenset[NormalizedName] = frozenset()  # names whose installed version is not a candidate
    damaged: frozenset[NormalizedName] = frozenset()  # names whose installed files are no candidate
    must_hold: frozenset[tuple[NormalizedName, str]] = frozenset()  # the owner and the line of each
    builds: Mapping[NormalizedName, frozenset[NormalizedName]] = field(default_factory=dict)

    @property
    def asked(self) -> tuple[PackageEntry, ...]:
        """The roots whose markers hold in the environment (PEP 508)."""
        markers = dict(self.environment.markers)
        return tuple(one for one in self.roots if one.marker is None or one.marker.evaluate(markers))


class ResolverRequirement(NamedTuple):
    """One requirement inside the solve.

    With *extra* None it is on the distribution itself, else on what that extra adds.
    *path* is the place in the matrix, for roots.  *exact* ties an extra to the version
    of its distribution.
    """

    name: NormalizedName
    specifier: SpecifierSet
    extra: str | None = None
    url: str | None = None
    path: str = ""
    exact: Version | None = None

    def __hash__(self) -> int:
        # Without the specifier, whose hash builds the canonical text of each version in it.
        return hash((self.name, self.extra, self.url, self.path, self.exact))

    def __str__(self) -> str:
        extra = f"[{self.extra}]" if self.extra else ""
        tail = f" @ {self.url}" if self.url else str(self.specifier)
        return f"{self.name}{extra}{tail}"


@dataclass(frozen=True, slots=True, eq=False)
class ResolverCandidate:
    """A candidate in the solve: a distribution, or what one of its extras adds.

    Two are equal if their names, versions, origins and extras are equal.
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
    def _key(self) -> tuple[NormalizedName, Version, CandidateOrigin, str | None]:
        return self.candidate.name, self.candidate.version, self.candidate.origin, self.extra

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResolverCandidate) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"ResolverCandidate({self.candidate}{f'[{self.extra}]' if self.extra else ''})"


Key = tuple[NormalizedName, "str | None"]  # a project, or what one of its extras adds
Edge = tuple[ResolverRequirement, "ResolverCandidate | None"]  # a requirement, and what has it; None: a root


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What requires a pin: another name, or the user at *path* if *name* is None."""

    name: NormalizedName | None
    requirement: str
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One name at one version, with its requirements and what requires it."""

    name: NormalizedName
    candidate: Candidate
    requires: tuple[str, ...] = ()  # the requirements that apply here, without markers
    optional: tuple[str, ...] = ()  # requirements of its extras, if installed distributions ask for extras
    extras: frozenset[str] = frozenset()
    parents: tuple[Parent, ...] = ()

    @property
    def version(self) -> Version:
        return self.candidate.version

    @property
    def is_installed(self) -> bool:
        """Whether the installed version stays."""
        return self.candidate.origin is CandidateOrigin.INSTALLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The result of a solve: a pin for every name, sorted by name."""

    request: Request
    pins: Mapping[NormalizedName, Pin]
    released: Mapping[NormalizedName, str]  # installed distributions that may change, with the reason
    rejections: tuple[Rejection, ...] = ()
    rounds: int = 1
    left: tuple[str, ...] = ()  # sentences about requirements of kept distributions that nothing meets
    # The builds that the matrix prefers and that are not used, by name: each build, and why.
    unused: Mapping[NormalizedName, tuple[str, str]] = field(default_factory=dict)

    def remarks(self) -> tuple[str, ...]:
        """Return a sentence for each yanked file, inactive project (PEP 592, 792) and unusable version."""
        files = [(pin.candidate, pin.candidate.file) for pin in self.pins.values()]
        said = [
            f"{chosen} was yanked from its index" + (f": {file.yanked}" if file.yanked else "")
            for chosen, file in files
            if file is not None and file.yanked is not None
        ]
        said += self.left
        said += [
            f"the index marks {chosen.name} as not active: {file.status}"
            for chosen, file in files
            if file is not None and file.status is not None
        ]
        for refused in self.rejections:
            pin = self.pins.get(refused.name)
            is_newer = pin is not None and refused.version is not None and refused.version > pin.version
            if refused.reason is Reason.UNUSABLE and is_newer:
                said.append(f"not using {refused.name} {refused.version}: {refused}")
        return tuple(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """The reason why there is no solution: requirements that have none alone.

    *edges* map a name to these requirements on it, each with the candidate that has it (None
    for a root).  *causes* are those of them on names of which no version meets all.  *refused*
    are the rejections of the names in *causes*.  *available* are the available versions,
    newest first.  *missing* names are in no index, and *where* are the places that were
    searched for them.  *barred* are pre-releases and yanked versions that only other
    requirements would admit.
    """

    request: Request
    causes: tuple[Edge, ...]
    edges: Mapping[NormalizedName, tuple[Edge, ...]]
    refused: tuple[Rejection, ...]
    missing: frozenset[NormalizedName]
    constraints: Mapping[NormalizedName, tuple[ResolverConstraint, ...]]
    available: Mapping[NormalizedName, tuple[Version, ...]] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    barred: tuple[ResolverCandidate, ...] = ()

    @property
    def names(self) -> tuple[NormalizedName, ...]:
        return tuple(sorted({want.name for want, _ in self.causes}))


class ResolverConstraint(NamedTuple):
    """A range for a name that does not require the name: of the user, or of a protected distribution."""

    specifier: SpecifierSet
    text: str  # "google-colab 1.0 is protected and needs `pandas==2.2.2`"
    owner: NormalizedName | None = None  # the unprotected distribution whose extra requires it


class Unsolvable(NoSolution):
    """No solution.  *conflict* is the reason as data, and ``conflict_report.explain`` turns it into text."""

    def __init__(self, conflict: Conflict) -> None:
        self.conflict = conflict
        super().__init__("no set of versions meets every requirement", names=conflict.names)


class Impossible(Exception):
    """There is no solution.  The requirements in *edges* alone have none.

    *barred* are pre-releases and yanked versions that these requirements do not admit.
    """

    def __init__(self, edges: Iterable[Edge], barred: Iterable[ResolverCandidate]) -> None:
        self.edges = tuple(dict.fromkeys(edges))
        self.barred = tuple(dict.fromkeys(barred))
        super().__init__(f"{len(self.edges)} requirements have no solution")


class SearchEnded(Exception):
    """The search ended after *steps* steps without a result.

    *tried* counts the versions of each project whose requirements were read, and *conflicts* the
    conflicts in which the project took part.
    """

    def __init__(
        self, steps: int, tried: Counter[NormalizedName], conflicts: Counter[NormalizedName]
    ) -> None:
        self.steps = steps
        self.tried = tried
        self.conflicts = conflicts
        super().__init__(f"no result after {steps} steps")
