"""Compare the metadata that a plan was made from with the METADATA of the wheels that were fetched.

A solve reads the metadata that an index or a lock states, long before the wheel is
here.  What is installed has to be what was believed, or nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.requirements import applies, lines_under, parse_requirement
from colablock.errors import BadDistribution
from colablock.index.candidates import File
from colablock.index.core_metadata import CoreMetadata, read_wheel_metadata
from colablock.index.metadata_fetcher import contents_key

if TYPE_CHECKING:
    from pathlib import Path

    from colablock._vendor.packaging.requirements import Requirement
    from colablock.environment.markers_and_tags import Environment
    from colablock.network.cache import Cache
    from colablock.network.fetcher import Fetcher
    from colablock.planning.plan import Artifact

__all__ = ["check_believed", "known_metadata"]

_SHOWN = 5  # requirements in a message


def check_believed(
    artifact: Artifact,
    wheel: Path,
    *,
    fetcher: Fetcher,
    environment: Environment,
    states_requires: bool,
    known: CoreMetadata | None = None,
) -> None:
    """Raise BadDistribution if *wheel* is not what the plan believed it to be.

    The hash of *wheel* was compared already, so its METADATA is kept by that hash.
    With *states_requires* False, the source does not tell the requirements (a lock of
    another tool).  *known* is what `known_metadata` has returned already.  If the cache has other
    metadata of the file than the wheel, the entry is removed.
    """
    found = known or known_metadata(artifact, wheel.name, fetcher.cache)
    if found is None:
        with wheel.open("rb") as stream:
            found = read_wheel_metadata(stream, wheel.name)
        key = _own_key(artifact, wheel.name)
        if key is not None:
            fetcher.cache.write_record("metadata", key, found)
    found.check(artifact.name, Version(artifact.version), wheel.name)
    if not (artifact.build or artifact.rebuilt):
        _check_cached(artifact, found, fetcher)
    python = found.requires_python
    if python and not _admits(python, environment):
        believed = f"it fits Python {environment.python_version}"
        raise _differs(artifact, wheel.name, believed, f"it needs Python {python}")
    if states_requires:
        _check_requires(artifact, wheel.name, found, environment)


def known_metadata(artifact: Artifact, filename: str, cache: Cache) -> CoreMetadata | None:
    """Return the metadata that an earlier call has read in the wheel of that hash; None if none has."""
    key = _own_key(artifact, filename)
    return cache.read_record("metadata", key, CoreMetadata) if key is not None else None


def _own_key(artifact: Artifact, filename: str) -> str | None:
    """Return the cache key of the METADATA of a published wheel; None for one that is made here."""
    sha256 = artifact.hashes.get("sha256")
    is_made = bool(artifact.build or artifact.rebuilt) or artifact.filename != filename
    return None if is_made or not sha256 else f"METADATA in the wheel {filename}\nsha256 {sha256.lower()}"


def _admits(python: str, environment: Environment) -> bool:
    try:
        return SpecifierSet(python).contains(environment.python_version, prereleases=True)
    except InvalidSpecifier:
        return True  # pip ignores it as well


def _check_cached(artifact: Artifact, found: CoreMetadata, fetcher: Fetcher) -> None:
    """Compare with the metadata that the index gave when the plan was made."""
    file = File(
        filename=artifact.filename,
        url=artifact.url,
        hashes=artifact.hashes,
        size=artifact.size,
        index=artifact.index,
    )
    key = contents_key(fetcher, file)
    known = fetcher.cache.read_record("metadata", key, CoreMetadata) if key is not None else None
    if key is None or known is None:
        return
    for what, believed, true in (
        ("the project", canonicalize_name(known.name), canonicalize_name(found.name)),
        ("the version", known.version, found.version),
        ("Requires-Python", known.requires_python or "", found.requires_python or ""),
        ("Requires-Dist", frozenset(known.requires), frozenset(found.requires)),
        ("Provides-Extra", frozenset(known.extras), frozenset(found.extras)),
    ):
        if believed != true:
            fetcher.cache.remove("metadata", key)
            told, own = _only(believed, true), _only(true, believed)
            raise _differs(artifact, artifact.filename, f"{what} has {told}", f"{what} has {own}")


def _check_requires(
    artifact: Artifact, filename: str, metadata: CoreMetadata, environment: Environment
) -> None:
    """Compare the requirements that apply in *environment*, with those of the extras in use."""
    lines = (
        line
        for extra in ("", *map(canonicalize_name, artifact.extras))
        for line in lines_under(metadata.requires, extra)
    )
    found = replace(metadata, requires=tuple(dict.fromkeys(lines))).parsed(filename)
    parsed = (parse_requirement(line) for line in artifact.requires)
    believed = {text for one in parsed if one is not None for text in _as_wanted(one)}
    true = {
        text
        for extra in ("", *artifact.extras)
        for one in found.requires
        if applies(one, environment, extra)
        for text in _as_wanted(one)
    }
    if believed != true:
        raise _differs(
            artifact,
            filename,
            f"it requires {_listed(believed - true) or 'nothing else'}",
            f"it requires {_listed(true - believed) or 'nothing else'}",
        )


def _as_wanted(requirement: Requirement) -> list[str]:
    """Return a requirement as the resolver writes it: the distribution, then each extra."""
    name, tail = canonicalize_name(requirement.name), str(requirement.specifier)
    if requirement.url:
        tail = " @ direct"  # only the references of the matrix count
    extras = sorted(canonicalize_name(extra) for extra in requirement.extras)
    return [f"{name}{tail}", *(f"{name}[{extra}]{tail}" for extra in extras)]


def _only(one: str | frozenset[str], other: str | frozenset[str]) -> str:
    """Return what only *one* of two values of a field has."""
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return _listed(f"`{line}`" for line in one - other) or "no other line"
    return f"`{one}`" if one else "no value"


def _listed(lines: Iterable[str]) -> str:
    ordered = sorted(lines)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def _differs(artifact: Artifact, filename: str, believed: str, true: str) -> BadDistribution:
    source = f"`{artifact.index}`" if artifact.index else "its source"
    message = (
        f"`{filename}` is not what the plan was made for\n  according to {source} or the lock: {believed}\n"
        f"  according to the wheel itself: {true}"
    )
    hint = (
        "Nothing was installed.  Plan again; if it happens again, the index or the lock is not to be trusted"
    )
    return BadDistribution(message, hint=hint)
