"""Compare two runtimes, and list the matrices that a change concerns: pure functions over snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment
from colablock.environment.snapshot import Snapshot, is_version
from colablock.matrix.model import Absent, Constraint, Matrix, PackageEntry

__all__ = [
    "Concern",
    "MatrixMention",
    "Moved",
    "RuntimeDiff",
    "diff_runtimes",
    "is_within",
    "names_of",
    "specifier_text",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One distribution at another version.  *is_up* is None if the versions cannot be compared."""

    name: NormalizedName
    before: str
    after: str
    is_up: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """One change that a matrix names.

    *kind* is the section that names it: ``packages``, ``constraints`` or
    ``absent``, or ``requires-python`` or ``driver``.  *before* and *after* are
    versions, None where it is not there; *met_before* and *met_after* whether
    they are within *specifier*, None where nothing is there or no version is
    asked.  *variants* are those that alone have this entry.
    """

    matrix: str
    name: str
    kind: str
    specifier: str
    before: str | None
    after: str | None
    met_before: bool | None
    met_after: bool | None
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeDiff:
    """The difference between *before* and *after*; every list is sorted by name."""

    before: Snapshot
    after: Snapshot
    added: Mapping[NormalizedName, str]
    removed: Mapping[NormalizedName, str]
    moved: tuple[Moved, ...]
    same: int
    concerns: tuple[Concern, ...]


class MatrixMention(NamedTuple):
    """A mention of one project in one matrix: the section, and the variants if it is not in all."""

    kind: str
    specifier: SpecifierSet
    variants: tuple[str, ...]


def diff_runtimes(before: Snapshot, after: Snapshot, matrices: Sequence[Matrix]) -> RuntimeDiff:
    """Return the difference between *before* and *after*, and the parts of it that *matrices* name."""
    old = {name: before.installed[name].version for name in sorted(before.installed)}
    new = {name: after.installed[name].version for name in sorted(after.installed)}
    moved = [
        Moved(name=name, before=old[name], after=new[name], is_up=_is_up(old[name], new[name]))
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name]
    ]
    return RuntimeDiff(
        before=before,
        after=after,
        added={name: version for name, version in new.items() if name not in old},
        removed={name: version for name, version in old.items() if name not in new},
        moved=tuple(moved),
        same=len(old.keys() & new.keys()) - len(moved),
        concerns=tuple(concern for matrix in matrices for concern in _concerns(matrix, before, after)),
    )


def names_of(matrix: Matrix, environment: Environment) -> dict[NormalizedName, tuple[MatrixMention, ...]]:
    """Return the mentions of each project in *matrix* and its variants, as far as the markers hold."""
    found: dict[NormalizedName, dict[tuple[str, SpecifierSet], list[str]]] = {}
    for variant, holder in (("", matrix), *matrix.variants.items()):
        for kind in ("packages", "constraints", "absent"):
            for entry in _holding(getattr(holder, kind), environment):
                said = found.setdefault(entry.name, {})
                said.setdefault((kind, entry.specifier), []).append(variant)
    return {
        name: tuple(
            MatrixMention(kind, specifier, () if "" in variants else tuple(variants))
            for (kind, specifier), variants in said.items()
        )
        for name, said in sorted(found.items())
    }


def _holding(
    entries: Iterable[PackageEntry | Constraint | Absent], environment: Environment
) -> Iterator[PackageEntry | Constraint | Absent]:
    markers = {**environment.markers, "extra": ""}
    for entry in entries:
        marker: Marker | None = getattr(entry, "marker", None)  # entries of [absent] have no marker
        if marker is None or marker.evaluate(markers):
            yield entry


def _concerns(matrix: Matrix, before: Snapshot, after: Snapshot) -> Iterator[Concern]:
    """Yield the changes that *matrix* names: Python, the driver, then distributions by name."""
    python = (str(before.environment.python_version), str(after.environment.python_version))
    if python[0] != python[1] and len(matrix.requires_python):
        named = MatrixMention("requires-python", matrix.requires_python, ())
        yield _concern(matrix, "Python", named, *python)
    driver = (before.accelerator.driver, after.accelerator.driver)
    if driver[0] != driver[1]:
        for variant in matrix.variants.values():
            if variant.system.driver is not None:
                yield _concern(
                    matrix, "driver", MatrixMention("driver", variant.system.driver, (variant.name,)), *driver
                )
    for name, said in names_of(matrix, after.environment).items():
        old, new = before.installed.get(name), after.installed.get(name)
        versions = (old.version if old else None, new.version if new else None)
        if versions[0] != versions[1]:
            yield from (_concern(matrix, name, one, *versions) for one in said)


def _concern(
    matrix: Matrix, name: str, named: MatrixMention, before: str | None, after: str | None
) -> Concern:
    return Concern(
        matrix=matrix.name,
        name=name,
        kind=named.kind,
        specifier=specifier_text(named.specifier),
        before=before,
        after=after,
        met_before=is_within(before, named.specifier),
        met_after=is_within(after, named.specifier),
        variants=named.variants,
    )


def specifier_text(specifier: SpecifierSet) -> str:
    """Return *specifier* with the lower bound first."""
    return ",".join(sorted(map(str, specifier), key=lambda clause: (clause.startswith("<"), clause)))


def is_within(version: str | None, specifier: SpecifierSet) -> bool | None:
    """Whether *version* meets *specifier*; None without a version."""
    if version is None:
        return None
    return is_version(version) and specifier.contains(version, prereleases=True)


def _is_up(before: str, after: str) -> bool | None:
    if not (is_version(before) and is_version(after)):
        return None
    old, new = Version(before), Version(after)
    return None if old == new else new > old
