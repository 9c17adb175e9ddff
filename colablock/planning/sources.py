"""The sources of candidates of one request: a lock, an index, or a lock whose packages find-links replace."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from colablock.errors import FetchFailed
from colablock.index.candidates import CandidateOrigin
from colablock.index.finder import IndexSource
from colablock.lockfile.overridden_lock import OverriddenLock
from colablock.matrix.model import roots

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock._vendor.packaging.version import Version
    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Snapshot
    from colablock.index.build import Builder
    from colablock.index.candidates import CandidateSource
    from colablock.lockfile.lock_source import LockSource
    from colablock.lockfile.standing import StandingLocks
    from colablock.matrix.model import Matrix
    from colablock.network.fetcher import Fetcher
    from colablock.network.settings import Settings
    from colablock.resolver.model import Conflict, Resolution

__all__ = ["candidate_source", "check_reached", "linked_notes", "managed_note", "without_linked"]

_SHOWN = 5  # names in a message


def candidate_source(
    matrix: Matrix,
    environment: Environment,
    *,
    settings: Settings,
    fetcher: Fetcher,
    builder: Builder,
    with_: Sequence[str],
    settled: Container[NormalizedName],
    standing: StandingLocks,
    locked: LockSource | None,
    is_named: bool,
    takes_unhashed: bool = False,
) -> IndexSource | LockSource:
    """Return the source of the candidates: the lock *locked*, or the indexes without one.

    Find-links of this call replace packages of the lock, unless the user has named the lock (*is_named*).
    """
    if locked is not None and settings.offline:
        locked.is_at_hand = fetcher.is_here
    if locked is not None and (is_named or not settings.links_override):
        return locked
    index = IndexSource.for_matrix(
        matrix,
        environment=environment,
        fetcher=fetcher,
        default_index=settings.default_index,
        find_links=settings.find_links,
        links_override=settings.links_override,
        additions=roots(matrix, with_)[len(matrix.packages) :],
        build=builder,
        settled=settled,
        known=standing,
        takes_unhashed=takes_unhashed,
    )
    return OverriddenLock(locked, index) if locked is not None else index


def check_reached(conflict: Conflict, source: CandidateSource) -> None:
    """Raise FetchFailed if *conflict* is about names that cannot be looked up, since colablock is offline."""
    if not isinstance(source, (IndexSource, OverriddenLock)):
        return
    errors = [source.unreached[name] for name in sorted(conflict.edges) if name in source.unreached]
    if not errors:
        return
    first = errors[0]
    lines = list(dict.fromkeys(error.message for error in errors))
    if len(lines) > 1:
        lines = ["no solution with the files that are available", *lines[:_SHOWN]]
        lines += [f"and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
    raise FetchFailed("\n  ".join(lines), url=first.url, hint=first.hint) from first


def linked_notes(resolution: Resolution, source: CandidateSource) -> tuple[str, ...]:
    """Return which pins are from find-links in place of the lock, and which of their files are not used."""
    if not isinstance(source, OverriddenLock):
        return ()
    used, unused = [], []
    for name, pin in resolution.pins.items():
        linked = source.links(name)
        if pin.candidate.origin is CandidateOrigin.FIND_LINKS:
            used.append(str(pin.candidate))
        elif linked and linked[0].version != pin.version:
            unused.append(str(linked[0]))
    notes = [f"from find-links, not from the lock: {', '.join(used)}"] if used else []
    if unused:
        notes.append(
            f"not using {', '.join(unused)} from find-links: it does not fit the matrix and the lock"
        )
    return tuple(notes)


def managed_note(kernel: Snapshot) -> tuple[str, ...]:
    """Return a note if the environment is externally managed."""
    if kernel.externally_managed is None:
        return ()
    where = kernel.prefix or "this runtime"
    return (
        f"{where} is externally managed (PEP 668): `apply` changes it with `--break-system-packages` only",
    )


def without_linked(
    versions: Mapping[NormalizedName, Version], source: CandidateSource, settings: Settings
) -> Mapping[NormalizedName, Version]:
    """Return the preferred *versions* without the names that find-links of this call replace."""
    if not (settings.links_override and isinstance(source, IndexSource)):
        return versions
    return {name: version for name, version in versions.items() if not source.linked(name).candidates}
