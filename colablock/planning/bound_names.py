"""Names that come in only through packages of a named index: they stay with that index.

The default index may have another project of the same name, which nobody asked for.
A name that a package of the default index requires as well, or that the matrix
declares, comes from where it would come from without the named index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock.errors import InvalidInput
from colablock.index.candidates import CandidateOrigin
from colablock.resolver.members import resolve_members
from colablock.resolver.model import Unsolvable

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.index.finder import IndexSource
    from colablock.lockfile.overridden_lock import OverriddenLock
    from colablock.matrix.package_sources import PackageSources
    from colablock.resolver.model import Pin, Request, Resolution

__all__ = ["check_bound", "resolve_bound"]


def resolve_bound(
    request: Request, source: IndexSource | OverriddenLock, sources: PackageSources, reporter: Reporter
) -> Resolution:
    """Solve until no name that comes in through a named index alone is from the default index.

    Raises Unsolvable, and FetchFailed if an index cannot be read.
    """
    while True:
        try:
            resolution = resolve_members(request, source, reporter)
        except Unsolvable as error:
            if not source.bind_missing(error.conflict.names):
                raise
            continue
        astray = _astray(resolution, sources)
        if not astray:
            return resolution
        source.bind(astray)


def check_bound(resolution: Resolution, sources: PackageSources) -> None:
    """Raise InvalidInput if a lock has a name from another index than the one it has to come from."""
    astray = _astray(resolution, sources)
    if astray:
        names = ", ".join(f"`{name}` (index `{index}`)" for name, index in sorted(astray.items()))
        message = f"the lock takes names from an index that they do not belong to: {names}"
        raise InvalidInput(message, hint="Make the lock again with `colablock lock NAME`")


def _astray(resolution: Resolution, sources: PackageSources) -> dict[NormalizedName, str]:
    """Return the names that were taken from the default index, and the index that each has to come from."""
    pins = resolution.pins
    own = {name: _index(name, pin, sources) for name, pin in pins.items()}
    needs: dict[NormalizedName, set[NormalizedName]] = {name: set() for name in pins}
    for name, pin in pins.items():
        for parent in pin.parents:
            if parent.name in needs:
                needs[parent.name].add(name)
    declared = {name for name in pins if sources.declares(name) or pins[name].is_installed}
    free = _reached({name for name in declared if own[name] is None}, needs, declared)
    found: dict[NormalizedName, str] = {}
    for index in sorted({index for index in own.values() if index is not None}):
        start = {name for name in declared if own[name] == index}
        for name in _reached(start, needs, declared) - free - declared:
            found.setdefault(name, index)
    urls = {index.name: index.url for index in sources.indexes}
    return {name: index for name, index in found.items() if _is_astray(pins[name], urls[index])}


def _index(name: NormalizedName, pin: Pin, sources: PackageSources) -> str | None:
    """Return the named index that *name* belongs to with its requirements; None for the default index."""
    index = sources.index_of(name)
    if index is None or index.default or pin.is_installed or sources.is_rebuilt(name):
        return None
    return index.name


def _reached(
    start: set[NormalizedName],
    needs: dict[NormalizedName, set[NormalizedName]],
    declared: set[NormalizedName],
) -> set[NormalizedName]:
    """Return *start* and the undeclared names that it leads to."""
    found, waiting = set(start), list(start)
    while waiting:
        more = needs[waiting.pop()] - found - declared
        found |= more
        waiting += more
    return found


def _is_astray(pin: Pin, url: str) -> bool:
    file = pin.candidate.file
    return (
        file is not None
        and (pin.candidate.origin is CandidateOrigin.INDEX or _is_of_lock(pin))
        and (file.index or "").rstrip("/") != url.rstrip("/")
    )


def _is_of_lock(pin: Pin) -> bool:
    file = pin.candidate.file
    return pin.candidate.origin is CandidateOrigin.LOCK and file is not None and file.index is not None
