"""A declared compatibility set: TOML → Matrix, every fault reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName

__all__ = ["Absent", "Constraint", "Index", "Matrix", "Options", "PackageEntry", "SystemRequirements", "Train", "Variant", "Verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A package index.  *exclude_newer* False: this index gives no upload times."""

    name: str
    url: str
    default: bool = False
    exclude_newer: datetime | bool | None = None  # None: the matrix's own


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageEntry:
    """One requirement of the matrix.  *path* is where it stands (``packages.torch``)."""

    name: NormalizedName
    path: str
    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    extras: frozenset[str] = frozenset()
    marker: Marker | None = None
    index: str | None = None  # name of an [[index]]
    prefer_local: str | None = None  # local version label that is tried first, such as "cpu"
    url: str | None = None  # direct reference (PEP 508 `name @ url`)
    version: str | None = None  # only with url: what the archive is, when it does not say so itself
    sha256: str | None = None  # only with url
    source_root: str | None = None
    requires_dist: tuple[Requirement, ...] | None = None  # replaces Requires-Dist
    why: str | None = None

    @property
    def is_rebuilt(self) -> bool:
        """Whether we make our own wheel of it (metadata or modules replaced)."""
        return self.source_root is not None or self.requires_dist is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Narrows the versions of a project without asking for it."""

    name: NormalizedName
    path: str
    specifier: SpecifierSet
    marker: Marker | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """Versions of a project that must not be importable beside this stack."""

    name: NormalizedName
    path: str
    specifier: SpecifierSet  # empty: any version
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be built.  ``:all:`` stands for any name."""

    allow_build: frozenset[str] = frozenset()
    no_binary: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRequirements:
    """The accelerator that a variant is for: ``"cuda"``, ``"none"`` or None (any)."""

    accelerator: str | None = None
    driver: SpecifierSet | None = None
    compute_capability: SpecifierSet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What one accelerator changes; *entries* replace whole entries of the same name."""

    name: str
    summary: str | None = None
    system: SystemRequirements = field(default_factory=SystemRequirements)
    packages: tuple[PackageEntry, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    absent: tuple[Absent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """How the stack is proven: import names (``module`` or ``module:attribute``), commands, claims."""

    imports: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """The hand-off: the runner and the named corrections that it needs."""

    runner: str | None = None
    mends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A declared compatibility set (schema 1), one variant at most merged into it."""

    name: str
    source: str  # the file, or "<text>"
    digest: str  # sha256 of the file's bytes (with those it extends)
    summary: str | None = None
    requires_python: SpecifierSet = field(default_factory=SpecifierSet)
    prerelease: str = "if-necessary-or-explicit"
    exclude_newer: datetime | None = None
    indexes: tuple[Index, ...] = ()
    packages: tuple[PackageEntry, ...] = ()  # of [packages] and of requirements, in file order
    constraints: tuple[Constraint, ...] = ()
    absent: tuple[Absent, ...] = ()
    options: Options = field(default_factory=Options)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    variant: str | None = None  # the one merged in by select()
    verify: Verify = field(default_factory=Verify)
    train: Train = field(default_factory=Train)
