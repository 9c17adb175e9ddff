"""Read the pins of a lock (PEP 751): exact requirements with their hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from colablock._common.urls import redacted
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.pylock import Package, Pylock
from colablock._vendor.packaging.requirements import Requirement
from colablock.errors import Fault, InvalidInput

__all__ = ["LockedPin", "applicable_packages", "default_index_of", "hash_texts", "pins_of"]


class LockedPin(NamedTuple):
    """A *package* of a lock as an exact *requirement*; *where* is its place in the file, for messages."""

    package: Package
    requirement: Requirement
    where: str

    @property
    def hashes(self) -> tuple[str, ...]:
        """The sha256 of each file, sorted.  A file without a sha256 has its sha384 and sha512 instead."""
        package = self.package
        files = [*(package.wheels or ()), package.sdist, package.archive]
        return tuple(sorted({text for file in files if file for text in hash_texts(file.hashes)}))


def pins_of(lock: Pylock, source: str) -> tuple[list[LockedPin], list[Fault]]:
    """Return the pins of a lock for no extra and its default groups, and the packages that are no pins."""
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


def applicable_packages(lock: Pylock) -> list[Package]:
    """Return the packages of a lock that apply for no extra and its default groups, in their order."""
    return [package for package in lock.packages if _reduced(package.marker, lock) is not False]


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
    """Return the sha256 of a file as ``sha256:...``; its sha384 and sha512 if it has none."""
    names = ["sha256"] if "sha256" in hashes else sorted({"sha384", "sha512"} & hashes.keys())
    return [f"{name}:{hashes[name]}" for name in names]


def _reduced(marker: Marker | None, lock: Pylock) -> Marker | bool:
    """Return *marker* without its clauses about extras and groups, which PEP 508 does not define."""
    if marker is None:
        return True
    asked = {"extras": frozenset[str](), "dependency_groups": frozenset(lock.default_groups or ())}
    reduced = _decided(marker._markers, asked)  # noqa: SLF001 - packaging has no public access to the clauses
    return reduced if isinstance(reduced, bool) else Marker._from_markers(reduced)  # noqa: SLF001


def _decided(markers: list[Any], asked: Mapping[str, frozenset[str]]) -> list[Any] | bool:
    """Evaluate the clauses about extras and groups in a parsed marker (alternatives of conjunctions).

    Returns the clauses that are left, or True or False if none is.
    """
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
