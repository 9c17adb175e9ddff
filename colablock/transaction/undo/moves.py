"""The moves of an undo: what it removes, what it moves back, and what it puts back beside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import make_private
from colablock.transaction.file_moves import (
    StagedTree,
    has_ancestor,
    moves_back,
    moves_out,
    owned_files,
    placed_among,
    removable_folders,
)

if TYPE_CHECKING:
    from colablock.environment.site import Site
    from colablock.environment.snapshot import Installed, Snapshot
    from colablock.transaction.disk_operations import Operation
    from colablock.transaction.history import Change

__all__ = ["Removal", "files_to_remove", "undo_operations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The files that an undo removes: ours, those of others, and those *left* in folders of the change.

    *since* are the distributions that others have installed since, and that stay.
    """

    ours: frozenset[str]
    theirs: frozenset[str]
    since: tuple[Installed, ...] = ()
    left: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """Every file that goes."""
        return self.ours | self.theirs | self.left


def undo_operations(
    change: Change, site: Site, removal: Removal, stash: Path, *, beside: StagedTree | None = None
) -> list[Operation]:
    """Return the operations that remove the files of *removal*, and restore those of *change*.

    *beside* are the staged files of companions, which are put back, too.
    """
    make_private(stash)
    created = frozenset(change.created)
    of_others = {str(folder) for path in removal.theirs for folder in Path(path).parents}
    full = {path.rpartition("/")[0] for path in change.stashed.values()}

    def may_go(folder: str) -> bool:
        """Return whether the change, or others since, created a folder: others may have existed, empty."""
        is_cache = folder.endswith("/__pycache__") and folder not in full
        return is_cache or folder in of_others or folder in created or has_ancestor(folder, created)

    outs = moves_out(site, removal.all, stash, may_go=may_go)
    emptied = removable_folders(change.created, outs, change.stashed.values())
    before = [*outs, *emptied]
    return [*before, *moves_back(change.stash, change.stashed, before, stash, beside=beside)]


def files_to_remove(
    change: Change, site: Site, snapshot: Snapshot, companions: Sequence[Installed] = ()
) -> Removal:
    """Return the current files of the distributions that the change concerned: ours, and those of others.

    The files of *companions*, which others have moved, count as those of others.
    A file that the change has placed is removed even if another, older
    distribution lists it: the stash has the previous file, or there was none.  A
    file that was the same before, and was therefore left in place, stays.
    """
    versions = {done.name: done.version for done in change.steps}
    installed = snapshot.installed.values()
    here = [found for found in installed if found.path and site.holds(os.path.realpath(found.path))]
    concerned = [found for found in here if found.name in versions or found in companions]
    staying = [found for found in here if found not in concerned]
    ours = [found for found in concerned if _is_ours(found, versions.get(found.name))]
    theirs = [found for found in concerned if found not in ours]
    since = [found for found in staying if change.before.get(found.name) != found.version]
    placed = [str(Path(os.path.realpath(path.parent), path.name)) for path in map(Path, change.placed)]
    return Removal(
        ours=placed_among(_owned(site, ours, since), frozenset(placed)),
        theirs=_owned(site, theirs, staying),
        since=tuple(since),
    )


def _is_ours(found: Installed, version: str | None) -> bool:
    return found.version == version and found.installer == "colablock"


def _owned(site: Site, removed: Sequence[Installed], staying: Sequence[Installed]) -> frozenset[str]:
    # Bytecode without a source may be older than the change, and an undo could not restore it.
    return owned_files(site, removed, staying, left_over=False) if removed else frozenset()
