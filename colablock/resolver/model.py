"""The values of a solve: what is asked, what was found, and why there is nothing to find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.errors import NoSolution
from colablock.index.candidates import Candidate, CandidateOrigin, Reason, Rejection

if TYPE_CHECKING:
    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Installed
    from colablock.matrix.model import Absent, Constraint, PackageEntry

__all__ = [
    "ANY",
    "LOCK",
    "PYTHON",
    "UNUSABLE",
    "Conflict",
    "Parent",
    "Pin",
    "Request",
    "Resolution",
    "ResolverCandidate",
    "ResolverConstraint",
    "ResolverRequirement",
    "Unsolvable",
]

PYTHON = NormalizedName("python")  # the interpreter, as a candidate like any other
ANY = SpecifierSet()
UNUSABLE = "unusable metadata"  # as an extra: what no candidate has
LOCK = "the lock"  # as a place that was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that a solve depends on, apart from what the source can offer.

    *roots* and *constraints* are taken as they stand; their markers are judged
    here.  *installed* are facts (empty for a solve from nothing), *protected*
    the names among them that never move, *fixed* versions that a lock or an
    earlier solve has decided, *preferred* ones that are tried first.  *must_hold* are
    requirements of installed ones that do not hold and have to: elsewhere, what
    was unmet before may stay so.
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
    unfit: frozenset[NormalizedName] = frozenset()  # their installed version is no candidate
    must_hold: frozenset[tuple[NormalizedName, str]] = frozenset()  # name and line

    @property
    def asked(self) -> tuple[PackageEntry, ...]:
        """The roots whose markers hold here (PEP 508)."""
        markers = dict(self.environment.markers)
        return tuple(one for one in self.roots if one.marker is None or one.marker.evaluate(markers))


class ResolverRequirement(NamedTuple):
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
class ResolverCandidate:
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
    def _key(self) -> tuple[NormalizedName, Version, CandidateOrigin, str | None]:
        return self.candidate.name, self.candidate.version, self.candidate.origin, self.extra

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResolverCandidate) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Choice({self.candidate}{f'[{self.extra}]' if self.extra else ''})"


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
    optional: tuple[str, ...] = ()  # what only its extras require, if installed ones ask for extras of it
    extras: frozenset[str] = frozenset()
    parents: tuple[Parent, ...] = ()

    @property
    def version(self) -> Version:
        return self.candidate.version

    @property
    def is_installed(self) -> bool:
        """Whether what is installed serves as it is."""
        return self.candidate.origin is CandidateOrigin.INSTALLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What the solve found: a pin for every name, sorted by name."""

    request: Request
    pins: Mapping[NormalizedName, Pin]
    released: Mapping[NormalizedName, str]  # installed ones that had to move, and why
    rejections: tuple[Rejection, ...] = ()
    rounds: int = 1

    def remarks(self) -> tuple[str, ...]:
        """Return what indexes hold against the chosen files (PEP 592, 792), one sentence each."""
        files = [(pin.candidate, pin.candidate.file) for pin in self.pins.values()]
        said = [
            f"{chosen} was yanked from its index" + (f": {file.yanked}" if file.yanked else "")
            for chosen, file in files
            if file is not None and file.yanked is not None
        ]
        said += [
            f"{chosen.name} is no active project of its index: {file.status}"
            for chosen, file in files
            if file is not None and file.status is not None
        ]
        for refused in self.rejections:
            pin = self.pins.get(refused.name)
            is_newer = pin is not None and refused.version is not None and refused.version > pin.version
            if refused.reason is Reason.UNUSABLE and is_newer:
                said.append(f"{refused.name} {refused.version} was passed over: {refused}")
        return tuple(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Why there is no solution: the last conflict, and how each part came up.

    *causes* are (want, parent choice or None); *edges* map a name to the wants
    that brought it in; *refused* the rejections of the names concerned;
    *available* their versions that can be had, newest first; *where* the
    places that were asked for the missing.
    """

    request: Request
    causes: tuple[tuple[ResolverRequirement, ResolverCandidate | None], ...]
    edges: Mapping[NormalizedName, tuple[tuple[ResolverRequirement, ResolverCandidate | None], ...]]
    refused: tuple[Rejection, ...]
    missing: frozenset[NormalizedName]
    guards: Mapping[NormalizedName, tuple[ResolverConstraint, ...]]
    available: Mapping[NormalizedName, tuple[Version, ...]] = field(default_factory=dict)
    where: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[NormalizedName, ...]:
        return tuple(sorted({want.name for want, _ in self.causes}))


class ResolverConstraint(NamedTuple):
    """A narrowing that asks for nothing: a constraint, or what a protected one needs."""

    specifier: SpecifierSet
    text: str  # "google-colab keeps `pandas==2.2.2`"
    owner: NormalizedName | None = None  # whose extra requires it, unless that is protected itself


class Unsolvable(NoSolution):
    """No solution, with the conflict as data: explain.py words it."""

    def __init__(self, conflict: Conflict) -> None:
        self.conflict = conflict
        super().__init__("no set of versions meets every requirement", names=conflict.names)
