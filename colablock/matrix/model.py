"""The matrix: a declared compatibility set with its variants, as requirements for the resolver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from typing import Protocol, TypeVar

from colablock._common.text import near
from colablock._common.urls import Url, split_fragment
from colablock._records import dataclass
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion
from colablock.environment.accelerator import Accelerator
from colablock.environment.requirements import requirement_of, version_of
from colablock.errors import InvalidInput, NotFound, Refused

__all__ = [
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
    "is_addition",
    "merged",
    "roots",
    "select_variant",
    "shadow_text",
    "variant_choices",
]

_ADDED = "with: "  # what the path of an addition begins with


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A package index.  *exclude_newer* is False for an index without upload times."""

    name: str
    url: Url
    default: bool = False
    exclude_newer: datetime | bool | None = None  # None: as in the matrix
    file_hosts: tuple[str, ...] = ()  # other hosts on which it keeps its files


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageEntry:
    """One requirement of the matrix.  *path* is its place in the file (``packages.torch``)."""

    name: NormalizedName
    path: str
    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    extras: frozenset[str] = frozenset()
    marker: Marker | None = None
    index: str | None = None  # name of an [[index]]
    prefer_local: str | None = None  # preferred local version label, such as "cpu"
    url: Url | None = None  # direct reference (PEP 508 `name @ url`)
    version: str | None = None  # only with url: for an archive without a static version
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
        """Whether its wheel is rebuilt, with other metadata or modules."""
        return self.source_root is not None or self.requires_dist is not None

    @property
    def pinned_sha256(self) -> str | None:
        """The SHA-256 that the matrix pins for a direct reference; None if it pins none."""
        promised = self.sha256 or split_fragment(self.url or "")[1].get("sha256")
        return promised.lower() if promised else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Narrows the versions of a project without requiring it."""

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
    """The projects that may be built, or must be.  ``:all:`` means any project."""

    allow_build: frozenset[str] = frozenset()
    no_binary: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRequirements:
    """The accelerator that a variant requires: ``"cuda"``, ``"none"`` or None (any).

    *why* is the reason, with what to use where it does not fit.
    """

    accelerator: str | None = None
    driver: SpecifierSet | None = None
    compute_capability: SpecifierSet | None = None
    why: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The differences for one accelerator; its entries replace those of the same name."""

    name: str
    summary: str | None = None
    system: SystemRequirements = field(default_factory=SystemRequirements)
    packages: tuple[PackageEntry, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    absent: tuple[Absent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """The proofs of a stack: imports (``module`` or ``module:attribute``), commands, capabilities."""

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
    """A declared compatibility set (schema 1), with at most one variant merged in."""

    name: str
    source: str  # the file, or "<text>"
    digest: str  # SHA-256 of the file, and of the files it extends
    summary: str | None = None
    requires_python: SpecifierSet = field(default_factory=SpecifierSet)
    prerelease: str = "if-necessary-or-explicit"
    exclude_newer: datetime | None = None
    indexes: tuple[Index, ...] = ()
    packages: tuple[PackageEntry, ...] = ()  # from [packages] and requirements, in file order
    constraints: tuple[Constraint, ...] = ()
    absent: tuple[Absent, ...] = ()
    options: Options = field(default_factory=Options)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    variant: str | None = None  # the variant that select_variant() merged in
    replaces_shipped: bool = False  # a matrix of this name is shipped, and this is another one
    copies_shipped: bool = False  # the same text
    verify: Verify = field(default_factory=Verify)
    train: Train = field(default_factory=Train)

    @property
    def own_indexes(self) -> tuple[Index, ...]:
        """The indexes beside the default one that its packages name, with its variant merged in."""
        named = {entry.index for entry in self.packages}
        return tuple(index for index in self.indexes if index.name in named and not index.default)


def shadow_text(matrix: Matrix) -> str | None:
    """Return the sentence that *matrix* is used in place of the shipped one; None if it is not."""
    if not matrix.replaces_shipped:
        return None
    source = matrix.source if matrix.source.startswith(("/", ".")) else f"./{matrix.source}"
    if matrix.copies_shipped:
        return f"using {source}, a copy of the shipped {matrix.name}, and the locks beside it"
    return f"using {source}, which replaces the shipped {matrix.name}"


class HasName(Protocol):
    """An entry that has the name of a project."""

    @property
    def name(self) -> NormalizedName:
        """The normalized name."""


N = TypeVar("N", bound=HasName)


def merged(base: Sequence[N], nearer: Sequence[N]) -> tuple[N, ...]:
    """Return *base* with the entries of *nearer*, which replace all entries of the same name.

    A replacement keeps the position of the entry it replaces; other entries are appended.
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
    """Return the entry of a PEP 508 requirement; *path* is its place."""
    url, _, fragment = Url(requirement.url or "").with_credentials().partition("#")
    hashes = dict(part.partition("=")[::2] for part in fragment.split("&"))
    return PackageEntry(
        name=canonicalize_name(requirement.name),
        path=path,
        specifier=requirement.specifier,
        extras=frozenset(canonicalize_name(extra) for extra in requirement.extras),
        marker=requirement.marker,
        url=Url(url) if url else None,
        sha256=hashes.get("sha256"),
    )


def roots(matrix: Matrix, extra: Sequence[str] = ()) -> tuple[PackageEntry, ...]:
    """Return the root requirements: those of the matrix, then the user's additions (PEP 508).

    The path of an addition is ``with: wandb>=0.17``.  Raises InvalidInput with every invalid line.
    """
    wrong: list[str] = []
    read = ((line.strip(), _requirement(line, wrong)) for line in extra)
    additions = tuple(entry_of(found, path=f"{_ADDED}{line}") for line, found in read if found)
    if wrong:
        raise InvalidInput("\n".join(wrong))
    return (*matrix.packages, *additions)


def is_addition(path: str) -> bool:
    """Whether *path* is that of an addition of the user, not of an entry of the matrix."""
    return path.startswith(_ADDED)


def _requirement(line: str, wrong: list[str]) -> Requirement | None:
    try:
        return requirement_of(line)
    except InvalidRequirement as error:
        wrong.append(f"`{line}` is not a valid requirement (PEP 508): {str(error).splitlines()[0]}")
        return None


def select_variant(matrix: Matrix, accelerator: Accelerator, name: str | None = None) -> Matrix:
    """Return *matrix* with one variant merged in: the one called *name*, else the first that fits.

    A matrix without variants is returned unchanged.  Raises NotFound if no variant
    has that name, Refused if none fits *accelerator*.
    """
    if name is not None:
        return _with_variant(matrix, _named(matrix, name))
    if not matrix.variants or matrix.variant is not None:
        return matrix
    misfits, reasons = [], []
    for variant in matrix.variants.values():
        failing = tuple(_failing(variant.system, accelerator))
        if not failing:
            return _with_variant(matrix, variant)
        misfits.append(f"  {variant.name}: {', '.join(failing)}")
        reasons += [variant.system.why] if variant.system.why else []
    lines = [f"no variant of `{matrix.name}` fits this accelerator", *misfits]
    hint = "; ".join(reasons) or f"choose one with `--variant`: {', '.join(matrix.variants)}"
    raise Refused("\n".join(lines), hint=hint)


def variant_choices(matrix: Matrix, accelerator: Accelerator) -> tuple[Matrix, ...]:
    """Return *matrix* with the variant that `select_variant` takes, then with those that may replace it.

    A later variant that fits *accelerator* replaces one whose own index cannot be
    reached, if it takes nothing from that index.  Raises Refused if none fits.
    """
    choices = [select_variant(matrix, accelerator)]
    taken = set(choices[0].own_indexes)
    for variant in matrix.variants.values() if matrix.variant is None else ():
        if variant.name == choices[0].variant or any(_failing(variant.system, accelerator)):
            continue
        other = _with_variant(matrix, variant)
        if choices[-1].own_indexes and taken.isdisjoint(other.own_indexes):
            choices.append(other)
            taken |= set(other.own_indexes)
    return tuple(choices)


# What people call a variant that most matrices name otherwise.
_VARIANT_WORDS = {"gpu": "cuda", "nvidia": "cuda", "t4": "cuda", "none": "cpu"}


def _named(matrix: Matrix, name: str) -> Variant:
    variant = matrix.variants.get(name)
    if variant is None:
        known = ", ".join(matrix.variants)
        hint = near(_VARIANT_WORDS.get(name.lower(), name), matrix.variants) or (
            f"its variants are {known}" if known else "it has none"
        )
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
    """Yield the facts that exclude a variant.  An unknown fact excludes none."""
    has_card = accelerator.kind == "cuda"
    if system.accelerator == "none":
        if has_card:
            yield "there is a CUDA device"
        return
    if not has_card:
        if system != SystemRequirements():
            yield "there is no CUDA device"
        return
    if accelerator.driver is not None and system.driver is not None:
        yield from _outside("driver", accelerator.driver, system.driver)
    for device in accelerator.devices if system.compute_capability is not None else ():
        what = f"compute capability of {device.name}"
        yield from _outside(what, device.compute_capability, system.compute_capability or SpecifierSet())


def _outside(what: str, value: str, specifier: SpecifierSet) -> Iterator[str]:
    """Yield the first clause of *specifier* that *value* does not meet, in words; nothing if it meets all."""
    try:
        version = version_of(value)
    except InvalidVersion:
        return  # a version scheme of the vendor cannot be compared
    for clause in sorted(specifier, key=str):
        if not clause.contains(version, prereleases=True):
            side = {">": "below", "<": "above"}.get(clause.operator[0], "outside")
            yield f"{what} {value} is {side} {clause}"
            return
