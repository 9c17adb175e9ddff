"""The state that an undo leads to, and the requirements that are met now and would not be met then.

An undo restores the distributions that its change moved.  Others may have moved since, and fit the
change but not the state before it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.decoding import Malformed, read_bounded
from colablock._common.limits import METADATA
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion
from colablock.environment.dependency_graph import DependencyGraph, UnmetRequirement, newly_unmet, unmet_text
from colablock.environment.requirements import version_of
from colablock.environment.snapshot import Installed, is_version
from colablock.index.core_metadata import parse_core_metadata
from colablock.resolver.origin import direct_refusal

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.site import Site
    from colablock.environment.snapshot import Snapshot
    from colablock.transaction.history import Change

__all__ = ["UndoPreview", "newly_broken", "preview_undo"]

_DIST_INFO = ".dist-info"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoPreview:
    """What the undo of *changes*, newest first, would break because others have changed something since.

    *broken* are sentences, one for each requirement.  *companions* are the distributions that moved
    since and take part in it, with the versions before the changes: put back as well, they leave
    only *beyond* broken.  *refused* says why others that take part are no companions: the index is
    not where they come from.  *drifted* are all distributions that differ from the state before.
    """

    changes: tuple[Change, ...]
    drifted: frozenset[NormalizedName] = frozenset()
    broken: tuple[str, ...] = ()
    companions: Mapping[NormalizedName, str] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
    refused: Mapping[NormalizedName, str] = field(default_factory=dict)


def preview_undo(
    changes: Sequence[Change],
    site: Site,
    snapshot: Snapshot,
    known: Mapping[NormalizedName, Installed] | None = None,
    refused: Mapping[NormalizedName, str] | None = None,
) -> UndoPreview:
    """Return what the undo of *changes* (newest first) in the state *snapshot* would break.

    *known* has the metadata of companions; without it, one is believed to require nothing.
    *refused* are names that must not be companions, each with its reason; those that came from a
    direct reference, before the changes or since, are known here.
    """
    before = changes[-1].before
    after = _undone(changes, site, _readable(snapshot.installed))
    drifted = _drifted(site, before, after)
    broken = newly_broken(snapshot, after, drifted) if drifted else []
    refusals = {**dict(_from_elsewhere(drifted, changes[-1], snapshot)), **(refused or {})}
    may_return = drifted - refusals.keys() - snapshot.protected
    companions: dict[NormalizedName, Installed] = {}
    beyond = broken
    while more := _companions(beyond, may_return - companions.keys(), before):
        for name in more:
            fallback = Installed(name=name, version=before[name])
            companions[name] = (known or {}).get(name, fallback)
        beyond = newly_broken(snapshot, {**after, **companions}, drifted - companions.keys())
    return UndoPreview(
        changes=tuple(changes),
        drifted=drifted,
        broken=_sentences(broken, after),
        companions={name: before[name] for name in sorted(companions)},
        beyond=_sentences(beyond, {**after, **companions}),
        refused={
            name: refusals[name]
            for name in sorted(refusals)
            if name in before and any(name in _involved(one) for one in beyond)
        },
    )


def newly_broken(
    snapshot: Snapshot, after: Mapping[NormalizedName, Installed], drifted: Collection[NormalizedName]
) -> list[UnmetRequirement]:
    """Return the requirements that *after* does not meet, *snapshot* does, and *drifted* names take part in.

    Without them it is a requirement that the state before the changes did not meet either.
    """
    now = DependencyGraph.of(snapshot).with_installed(_readable(snapshot.installed))
    after = _readable(after)
    changed = {
        name
        for name in now.installed.keys() | after.keys()
        if not _same(now.installed.get(name), after.get(name))
    }
    found = newly_unmet(after.keys(), now, now.with_installed(after), changed)
    return [one for one in found if not _involved(one).isdisjoint(drifted)]


def _involved(unmet: UnmetRequirement) -> frozenset[NormalizedName]:
    return frozenset({unmet.name, unmet.demand.target, *(demand.owner for demand in unmet.chain)})


def _companions(
    broken: Sequence[UnmetRequirement],
    drifted: Collection[NormalizedName],
    before: Mapping[NormalizedName, str],
) -> set[NormalizedName]:
    """Return the names to put back: the required ones, else those that require them."""
    found: set[NormalizedName] = set()
    for one in broken:
        known = [
            name
            for name in (one.demand.target, *(demand.owner for demand in reversed(one.chain)))
            if name in drifted and name in before and is_version(before[name])
        ]
        found.update(known[:1])
    return found


def _from_elsewhere(
    names: Iterable[NormalizedName], change: Change, snapshot: Snapshot
) -> Iterator[tuple[NormalizedName, str]]:
    """Yield those of *names* that an index must not replace, each with the reason."""
    for name in names:
        there = snapshot.installed.get(name)
        refusal = direct_refusal(there, by="a rollback") if there is not None else None
        if refusal is None and name in change.origins:
            origin = change.origins[name]
            refusal = f"{name} came from `{origin}`, and a rollback takes it from nowhere else"
        if refusal is not None:
            yield name, refusal


def _sentences(
    broken: Sequence[UnmetRequirement], after: Mapping[NormalizedName, Installed]
) -> tuple[str, ...]:
    return tuple(sorted({unmet_text(one, after) for one in broken}))


def _readable(installed: Mapping[NormalizedName, Installed]) -> dict[NormalizedName, Installed]:
    """Return *installed* without versions that no specifier can be compared with."""
    return {name: there for name, there in installed.items() if is_version(there.version)}


def _drifted(
    site: Site, before: Mapping[NormalizedName, str], after: Mapping[NormalizedName, Installed]
) -> frozenset[NormalizedName]:
    folders = (site.purelib, site.platlib)
    here = {
        name: there.version
        for name, there in after.items()
        if there.path
        and there.path.endswith(_DIST_INFO)
        and os.path.realpath(Path(there.path).parent) in folders
    }
    # Installations without a .dist-info folder are not in *before*, and those elsewhere do not count.
    gone = before.keys() - after.keys()
    moved = (name for name, version in here.items() if not _agree(before.get(name), version))
    return frozenset((*gone, *moved))


def _same(one: Installed | None, other: Installed | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.version == other.version and one.requires == other.requires


def _agree(one: str | None, other: str) -> bool:
    try:
        return one is not None and version_of(one) == version_of(other)
    except InvalidVersion:
        return one == other


def _undone(
    changes: Sequence[Change], site: Site, installed: Mapping[NormalizedName, Installed]
) -> dict[NormalizedName, Installed]:
    """Return what is installed after the undo of *changes*, newest first."""
    after = dict(installed)
    for change in changes:
        for step in change.steps:
            there = after.get(step.name)
            if there is not None and (there.path is None or site.holds(os.path.realpath(there.path))):
                del after[step.name]
        stashed = {one.name: one for one in _stashed(change)}
        for step in change.steps:
            if step.name in stashed:
                after[step.name] = stashed[step.name]
            elif step.previous is not None and step.name not in after:  # a legacy installation
                after[step.name] = Installed(name=step.name, version=step.previous)
    return after


def _stashed(change: Change) -> Iterator[Installed]:
    """Yield the distributions in the stash of *change*, by their METADATA."""
    for name, path in change.stashed.items():
        folder, _, last = path.rpartition("/")
        if path.endswith(_DIST_INFO):
            file, info = change.stash / name / "METADATA", path
        elif last == "METADATA" and folder.endswith(_DIST_INFO):
            file, info = change.stash / name, folder
        else:
            continue
        try:
            found = parse_core_metadata(read_bounded(file, METADATA))
        except (OSError, Malformed):
            continue
        yield Installed(
            name=canonicalize_name(found.name),
            version=found.version,
            requires=found.requires,
            extras=found.extras,
            path=info,
        )
