"""Undo a committed change, as a transaction of its own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colablock._common.fs import make_private
from colablock._common.reporter import Reporter
from colablock._common.text import count
from colablock.environment.site import Site, SiteBounds, check_state
from colablock.environment.snapshot import Installed, Snapshot, installed_versions
from colablock.errors import ColablockError, NotFound, NotRestored, Refused, RolledBack
from colablock.transaction.disk_operations import Operation, Operations
from colablock.transaction.file_moves import (
    has_ancestor,
    moves_back,
    moves_out,
    owned_files,
    placed_among,
    removable_folders,
)
from colablock.transaction.history import (
    STASH,
    UNDONE,
    Change,
    differences,
    misplaced,
    next_folder,
    read_changes,
)
from colablock.transaction.journal import Journal, preparing
from colablock.transaction.recovery import recover_locked
from colablock.transaction.site_lock import locked

__all__ = ["UndoneChange", "roll_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneChange:
    """One change that was undone, and the differences that are left to the state before it.

    *restart* are the modules that the kernel still holds in the old version.
    """

    change: Change
    differences: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


def roll_back(
    site: Site,
    *,
    look: Callable[[], Snapshot],
    to_first: bool = False,
    reporter: Reporter | None = None,
    disk: Operations | None = None,
    wait: float = 10.0,
) -> tuple[UndoneChange, ...]:
    """Undo the last change of *site*, or with *to_first* all changes, newest first.

    *look* returns a snapshot of the environment.  Distributions that others have
    installed since stay, unless the change concerned the same name.  Each change
    is undone atomically.

    Raises NotFound if there is nothing to undo, Refused if the stash was dropped
    or a rule forbids the change, RolledBack if the undo failed and the
    environment is unchanged, and NotRestored if that failed, too.
    """
    rollback = _Rollback(site=site, reporter=reporter or Reporter(), disk=disk or Operations())
    check_state(site)
    if not site.state.is_dir():  # do not create the folder just for the lock
        raise _nothing(site)
    with locked(site, wait=wait, reporter=rollback.reporter):
        outcome = recover_locked(site, rollback.disk)
        if outcome is not None:
            rollback.reporter.note(f"an interrupted change {outcome.value} first")
        changes, damaged = read_changes(site)
        # Older changes can be undone only after this one.
        for one in damaged:
            if to_first or not changes or one.number > changes[-1].number:
                raise one.error()
        if not changes:
            raise _nothing(site)
        chosen = changes[::-1] if to_first else changes[-1:]
        for change in chosen:
            if change.is_dropped:
                raise Refused(
                    f"change {change.number} of `{site.prefix}` cannot be undone: its stash was dropped",
                    hint="In a hosted notebook, delete the runtime: a new one starts from the image",
                )
        return tuple(rollback.undo(change, look()) for change in chosen)


def _nothing(site: Site) -> NotFound:
    return NotFound(f"there is nothing to undo: colablock has not changed `{site.prefix}`")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rollback:
    site: Site
    reporter: Reporter
    disk: Operations

    def undo(self, change: Change, snapshot: Snapshot) -> UndoneChange:
        """Undo one change atomically."""
        distributions = count(len(change.steps), "distribution")
        self.reporter.stage(f"Undoing change {change.number} of {distributions} in {self.site.prefix}")
        state = self.site.state
        with preparing(state):
            operations = _operations(change, self.site, snapshot, next_folder(state) / STASH)
            wrong = misplaced(SiteBounds(self.site), operations)
            if wrong is not None:
                raise Refused(f"`{wrong}` is outside of the environment `{self.site.prefix}`")
        try:
            with Journal(state, operations, becomes=change.folder / UNDONE, disk=self.disk) as journal:
                journal.run()
                journal.commit()
        except (RolledBack, NotRestored):
            raise
        except (OSError, ColablockError) as error:
            message = f"change {change.number} could not be undone, and the environment is unchanged: {error}"
            raise RolledBack(message) from error
        self.reporter.step(f"Undid change {change.number}", 1, 1)
        importlib.invalidate_caches()  # the change may concern this interpreter
        names = {done.name for done in change.steps}
        loaded = [modules for name, modules in sorted(snapshot.loaded.items()) if name in names]
        now = installed_versions((self.site.purelib, self.site.platlib))
        return UndoneChange(
            change=change,
            differences=tuple(differences(change.before, now)),
            restart=tuple(module for modules in loaded for module in modules),
        )


def _operations(change: Change, site: Site, snapshot: Snapshot, stash: Path) -> list[Operation]:
    make_private(stash)
    ours, theirs = _files_to_remove(change, site, snapshot)
    created = frozenset(change.created)
    of_others = {str(folder) for path in theirs for folder in Path(path).parents}

    def may_go(folder: str) -> bool:
        """Return whether the change, or others since, created a folder: others may have existed, empty."""
        return folder in of_others or folder in created or has_ancestor(folder, created)

    outs = moves_out(site, ours | theirs, stash, may_go=may_go)
    emptied = removable_folders(change.created, outs, change.stashed.values())
    return [*outs, *emptied, *moves_back(change.stash, change.stashed, [*outs, *emptied], stash)]


def _files_to_remove(change: Change, site: Site, snapshot: Snapshot) -> tuple[frozenset[str], frozenset[str]]:
    """Return the current files of the distributions that the change concerned: ours, and those of others.

    A file that the change has placed is removed even if another, older
    distribution lists it: the stash has the previous file, or there was none.  A
    file that was the same before, and was therefore left in place, stays.
    """
    versions = {done.name: done.version for done in change.steps}
    installed = snapshot.installed.values()
    here = [found for found in installed if found.path and site.holds(os.path.realpath(found.path))]
    concerned = [found for found in here if found.name in versions]
    staying = [found for found in here if found.name not in versions]
    ours = [found for found in concerned if _is_ours(found, versions[found.name])]
    theirs = [found for found in concerned if found not in ours]
    since = [found for found in staying if change.before.get(found.name) != found.version]
    placed = [str(Path(os.path.realpath(path.parent), path.name)) for path in map(Path, change.placed)]
    return placed_among(_owned(site, ours, since), frozenset(placed)), _owned(site, theirs, staying)


def _is_ours(found: Installed, version: str | None) -> bool:
    return found.version == version and found.installer == "colablock"


def _owned(site: Site, removed: Sequence[Installed], staying: Sequence[Installed]) -> frozenset[str]:
    # Bytecode without a source may be older than the change, and an undo could not restore it.
    return owned_files(site, removed, staying, left_over=False) if removed else frozenset()
