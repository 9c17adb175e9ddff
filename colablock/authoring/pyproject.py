"""What a ``pyproject.toml`` (PEP 621, PEP 735) or a lock (PEP 751) asks for, from values alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from colablock._common.text import near
from colablock._common.urls import redacted
from colablock._vendor.packaging.dependency_groups import DependencyGroupInclude, DependencyGroupResolver
from colablock._vendor.packaging.errors import ExceptionGroup
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.pylock import Package, Pylock
from colablock._vendor.packaging.requirements import Requirement
from colablock.authoring.requirements_txt import FoundRequirement, parse_named
from colablock.errors import Fault, InvalidInput

__all__ = [
    "LockedPin",
    "default_index_of",
    "group_requirements",
    "hash_texts",
    "locked_requirements",
    "pins_of",
    "project_requirements",
]


def project_requirements(
    data: Mapping[str, Any], source: str, folder: Path
) -> tuple[list[FoundRequirement], list[Fault]]:
    """Return ``[project].dependencies``, and what is wrong with them (PEP 621)."""
    project = data.get("project", {})
    where = f"{source}:project.dependencies"
    lines = project.get("dependencies") if isinstance(project, dict) else None
    if lines is None:
        is_dynamic = isinstance(project, dict) and "dependencies" in project.get("dynamic", ())
        message = "its build decides them (`dynamic`)" if is_dynamic else "there are none"
        groups = data.get("dependency-groups", {})
        hint = f"a group is named `{source}:{min(groups)}`" if groups else None
        return [], [Fault(path=where, message=message, hint=hint)]
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return [], [Fault(path=where, message="must be an array of strings (PEP 621)")]
    return _parsed([(line, f"{where}[{place}]") for place, line in enumerate(lines)], folder)


def group_requirements(
    data: Mapping[str, Any], group: str, source: str, folder: Path
) -> tuple[list[FoundRequirement], list[Fault]]:
    """Return what the dependency group *group* asks for, those that it includes with it (PEP 735)."""
    groups = data.get("dependency-groups", {})
    try:
        resolver = DependencyGroupResolver(groups)
        resolver.resolve(group)
    except ExceptionGroup as error:
        return [], [_group_fault(one, group, source, groups) for one in error.exceptions]
    except (AttributeError, TypeError) as error:
        message = f"must be a table of arrays (PEP 735): {error}"
        return [], [Fault(path=f"{source}:dependency-groups", message=message)]
    return _parsed(list(_placed(resolver, group, source)), folder)


def _group_fault(error: Exception, group: str, source: str, groups: Mapping[str, Any]) -> Fault:
    hint = None
    if isinstance(error, LookupError):
        known = ", ".join(f"`{name}`" for name in groups) or "none"
        hint = near(group, groups) or f"groups there: {known}"
    what, *shown = str(error).splitlines()  # of a requirement, the line itself comes next
    message = f"`{shown[0].strip()}` is no requirement (PEP 508): {what}" if shown else what
    return Fault(path=f"{source}:dependency-groups", message=message, hint=hint)


def _placed(resolver: DependencyGroupResolver, group: str, source: str) -> Iterator[tuple[str, str]]:
    """Yield each requirement of a group that can be resolved, with the place of its line."""
    for place, item in enumerate(resolver.lookup(group)):
        if isinstance(item, DependencyGroupInclude):
            yield from _placed(resolver, item.include_group, source)
        else:
            yield str(item), f"{source}:dependency-groups.{group}[{place}]"


def _parsed(lines: Sequence[tuple[str, str]], folder: Path) -> tuple[list[FoundRequirement], list[Fault]]:
    found, faults = [], []
    for line, where in lines:
        try:
            found.append(FoundRequirement(requirement=parse_named(line, folder), where=where))
        except InvalidInput as error:  # noqa: PERF203 - each line has a fault of its own
            faults.append(Fault(path=where, message=error.message, hint=error.hint))
    return found, faults


def locked_requirements(lock: Pylock, source: str) -> tuple[list[FoundRequirement], list[Fault]]:
    """Return what a lock pins when no extra and only its default groups are asked for (PEP 751).

    A package that comes from another index than most names it.
    """
    pins, faults = pins_of(lock, source)
    default = default_index_of(lock.packages)
    found = []
    for pin in pins:
        index = redacted(pin.package.index) if pin.package.index else None
        one = FoundRequirement(
            requirement=pin.requirement,
            where=pin.where,
            hashes=pin.hashes,
            index=index if index != default else None,
        )
        found.append(one)
    return found, faults


class LockedPin(NamedTuple):
    """A *package* of a lock as an exact *requirement*; see `FoundRequirement` for the rest."""

    package: Package
    requirement: Requirement
    where: str

    @property
    def hashes(self) -> tuple[str, ...]:
        """The sha256 of each file, or its stronger hashes where the lock gives no such one; sorted."""
        package = self.package
        files = [*(package.wheels or ()), package.sdist, package.archive]
        return tuple(sorted({text for file in files if file for text in hash_texts(file.hashes)}))


def pins_of(lock: Pylock, source: str) -> tuple[list[LockedPin], list[Fault]]:
    """Return what a lock pins, no extra and only its default groups asked for, and what cannot be a pin."""
    pins, faults = [], []
    for place, package in enumerate(lock.packages):
        where = f"{source}:packages[{place}]"
        try:
            marker = _reduced(package.marker, lock)
            if marker is not False:
                line = _pinned(package) if marker is True else f"{_pinned(package)} ; {marker}"
                pins.append(LockedPin(package, Requirement(line), where))
        except InvalidInput as error:
            faults.append(Fault(path=where, message=error.message, hint=error.hint))
    return pins, faults


def default_index_of(packages: Sequence[Package]) -> str | None:
    """Return the index that most of *packages* come from, without user and password."""
    counted = Counter(redacted(package.index) for package in packages if package.index)
    return min(counted, key=lambda url: (-counted[url], url), default=None)


def _pinned(package: Package) -> str:
    if package.vcs is not None or package.directory is not None:
        kind = "repository" if package.vcs is not None else "folder"
        raise InvalidInput(f"{package.name} is locked to a {kind}, not to an archive")
    if package.archive is not None and package.archive.url is not None:
        return f"{package.name} @ {redacted(package.archive.url)}"
    if package.version is None:
        raise InvalidInput(f"the lock does not say which version of {package.name} it is")
    return f"{package.name}=={package.version}"


def hash_texts(hashes: Mapping[str, str]) -> list[str]:
    """Return the sha256 of a file as ``sha256:...``, its stronger hashes where there is none; sorted."""
    names = ["sha256"] if "sha256" in hashes else sorted({"sha384", "sha512"} & hashes.keys())
    return [f"{name}:{hashes[name]}" for name in names]


def _reduced(marker: Marker | None, lock: Pylock) -> Marker | bool:
    """Return *marker* with what it says of extras and groups decided; those PEP 508 does not know."""
    if marker is None:
        return True
    asked = {"extras": frozenset[str](), "dependency_groups": frozenset(lock.default_groups or ())}
    reduced = _decided(marker._markers, asked)  # noqa: SLF001 - no public way leads into a marker
    return reduced if isinstance(reduced, bool) else Marker._from_markers(reduced)  # noqa: SLF001


def _decided(markers: list[Any], asked: Mapping[str, frozenset[str]]) -> list[Any] | bool:
    """Return a marker's parsed form, alternatives of conjunctions, without what *asked* decides."""
    alternatives: list[list[Any]] = []
    for alternative in _split(markers):
        terms = [_decided(t, asked) if isinstance(t, list) else _clause(t, asked) for t in alternative]
        if False in terms:
            continue
        kept = [term for term in terms if term is not True]
        if not kept:
            return True
        alternatives.append(kept)
    if not alternatives:
        return False
    return _joined([_joined(kept, "and") for kept in alternatives], "or")


def _split(markers: list[Any]) -> list[list[Any]]:
    alternatives: list[list[Any]] = [[]]
    for part in markers:
        if part == "or":
            alternatives.append([])
        elif part != "and":
            alternatives[-1].append(part)
    return alternatives


def _joined(terms: list[Any], word: str) -> list[Any]:
    joined: list[Any] = []
    for term in terms:
        joined += [word, term] if joined else [term]
    return joined


def _clause(clause: tuple[Any, Any, Any], asked: Mapping[str, frozenset[str]]) -> Any:
    left, operator, right = clause
    if right.value not in asked:
        return clause
    return (left.value in asked[right.value]) is (operator.value == "in")
