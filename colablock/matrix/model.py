"""A declared compatibility set, its variants, and the requirements that it and a user stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol, TypeVar

from colablock._common.text import near
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.accelerator import Accelerator
from colablock.errors import InvalidInput, NotFound, Refused
from colablock.matrix.schema import SCHEMA

__all__ = [
    "SCHEMA",
    "Absent",
    "Constraint",
    "HasName",
    "Index",
    "Matrix",
    "Options",
    "PackageEntry",
    "SystemRequirements",
    "Train",
    "Variant",
    "Verify",
    "entry_of",
    "merged",
    "roots",
    "select_variant",
]


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
    def requirement(self) -> str:
        """The PEP 508 line of this entry, without its marker."""
        extras = f"[{','.join(sorted(self.extras))}]" if self.extras else ""
        return f"{self.name}{extras} @ {self.url}" if self.url else f"{self.name}{extras}{self.specifier}"

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
    workarounds: tuple[str, ...] = ()


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
    variant: str | None = None  # the one merged in by select_variant()
    verify: Verify = field(default_factory=Verify)
    train: Train = field(default_factory=Train)


class HasName(Protocol):
    """What a matrix holds by project name."""

    @property
    def name(self) -> NormalizedName:
        """The normalized name."""


N = TypeVar("N", bound=HasName)


def merged(base: Sequence[N], nearer: Sequence[N]) -> tuple[N, ...]:
    """Return both, where every entry of a name in *nearer* replaces all of that name in *base*.

    What replaces stands where the replaced stood; the rest of *nearer* follows.
    """
    replacing: dict[NormalizedName, list[N]] = {}
    for entry in nearer:
        replacing.setdefault(entry.name, []).append(entry)
    replaced = frozenset(replacing)
    result: list[N] = []
    for entry in base:
        if entry.name not in replaced:
            result.append(entry)
        else:
            result += replacing.pop(entry.name, [])
    return (*result, *(entry for entries in replacing.values() for entry in entries))


def entry_of(requirement: Requirement, *, path: str) -> PackageEntry:
    """Return a PEP 508 requirement as an entry that stands at *path*."""
    url, _, fragment = (requirement.url or "").partition("#")
    hashes = dict(part.partition("=")[::2] for part in fragment.split("&"))
    return PackageEntry(
        name=canonicalize_name(requirement.name),
        path=path,
        specifier=requirement.specifier,
        extras=frozenset(canonicalize_name(extra) for extra in requirement.extras),
        marker=requirement.marker,
        url=url or None,
        sha256=hashes.get("sha256"),
    )


def roots(matrix: Matrix, extra: Sequence[str] = ()) -> tuple[PackageEntry, ...]:
    """Return what one solve asks for: the matrix, then the user's own additions (PEP 508).

    An addition's path is ``with: wandb>=0.17``.  Raises InvalidInput that names every unreadable one.
    """
    wrong: list[str] = []
    read = ((line.strip(), _requirement(line, wrong)) for line in extra)
    additions = tuple(entry_of(found, path=f"with: {line}") for line, found in read if found)
    if wrong:
        raise InvalidInput("\n".join(wrong))
    return (*matrix.packages, *additions)


def _requirement(line: str, wrong: list[str]) -> Requirement | None:
    try:
        return Requirement(line)
    except InvalidRequirement as error:
        wrong.append(f"`{line}` is no requirement (PEP 508): {str(error).splitlines()[0]}")
        return None


def select_variant(matrix: Matrix, accelerator: Accelerator, name: str | None = None) -> Matrix:
    """Return *matrix* with one variant merged in: the one called *name*, else the first that fits.

    A matrix without variants is returned as it is.  Raises NotFound for a
    name that no variant has, and Refused where none fits *accelerator*.
    """
    if name is not None:
        return _with_variant(matrix, _named(matrix, name))
    if not matrix.variants or matrix.variant is not None:
        return matrix
    misfits = []
    for variant in matrix.variants.values():
        failing = tuple(_failing(variant.system, accelerator))
        if not failing:
            return _with_variant(matrix, variant)
        misfits.append(f"  {variant.name}: {', '.join(failing)}")
    lines = [f"no variant of `{matrix.name}` fits this accelerator", *misfits]
    raise Refused("\n".join(lines), hint=f"choose one with `--variant`: {', '.join(matrix.variants)}")


def _named(matrix: Matrix, name: str) -> Variant:
    variant = matrix.variants.get(name)
    if variant is None:
        known = ", ".join(matrix.variants)
        hint = near(name, matrix.variants) or (f"its variants are {known}" if known else "it has none")
        raise NotFound(f"`{matrix.name}` has no variant `{name}`", hint=hint)
    return variant


def _with_variant(matrix: Matrix, variant: Variant) -> Matrix:
    return replace(
        matrix,
        variant=variant.name,
        packages=merged(matrix.packages, variant.packages),
        constraints=merged(matrix.constraints, variant.constraints),
        absent=merged(matrix.absent, variant.absent),
    )


def _failing(system: SystemRequirements, accelerator: Accelerator) -> Iterator[str]:
    """Yield the facts that speak against a variant.  An unknown fact speaks against none."""
    has_card = accelerator.kind == "cuda"
    if system.accelerator == "none":
        if has_card:
            yield "there is a CUDA device here"
        return
    if not has_card:
        if system != SystemRequirements():
            yield "there is no CUDA device here"
        return
    if accelerator.driver is not None and system.driver is not None:
        yield from _outside("driver", accelerator.driver, system.driver)
    for device in accelerator.devices if system.compute_capability is not None else ():
        what = f"compute capability of {device.name}"
        yield from _outside(what, device.compute_capability, system.compute_capability or SpecifierSet())


def _outside(what: str, value: str, specifier: SpecifierSet) -> Iterator[str]:
    """Yield how *value* fails *specifier*, in the clause that it fails first; nothing when it does not."""
    try:
        version = Version(value)
    except InvalidVersion:
        return  # a vendor's own numbering proves nothing
    for clause in sorted(specifier, key=str):
        if not clause.contains(version, prereleases=True):
            side = {">": "below", "<": "above"}.get(clause.operator[0], "outside")
            yield f"{what} {value} is {side} {clause}"
            return
