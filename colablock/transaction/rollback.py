"""Undo a committed change, as a transaction of its own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
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
from colablock.transaction.undo.leftovers import find_leftovers, setting_aside

__all__ = ["UndoneChange", "roll_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneChange:
    """One change that was undone, and the differences that are left to the state before it.

    *restart* are the modules that the kernel still holds in the old version.  *set_aside* are the
    paths of files that appeared since in folders that the change created, and that are now in the
    folder *aside*.  *left* are such files in folders that existed before the change: they stay.
    """

    change: Change
    differences: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    aside: str = ""
    left: tuple[str, ...] = ()


def roll_back(
    site: Site,
    *,
    look: Callable[[], Snapshot],
    to_first: bool = False,
    aside: Path | None = None,
    reporter: Reporter | None = None,
    disk: Operations | None = None,
    wait: float = 10.0,
) -> tuple[UndoneChange, ...]:
    """Undo the last change of *site*, or with *to_first* all changes, newest first.

    *look* returns a snapshot of the environment.  Distributions that others have
    installed since stay, unless the change concerned the same name.  Each change
    is undone atomically.  Files of no distribution, in folders that the change
    created, are moved to a new folder in *aside*; without it, they stay.

    Raises NotFound if there is nothing to undo, Refused if the stash was dropped
    or a rule forbids the change, RolledBack if the undo failed and the
    environment is unchanged, and NotRestored if that failed, too.
    """
    rollback = _Rollback(site=site, aside=aside, reporter=reporter or Reporter(), disk=disk or Operations())
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
    aside: Path | None
    reporter: Reporter
    disk: Operations

    def undo(self, change: Change, snapshot: Snapshot) -> UndoneChange:
        """Undo one change atomically."""
        distributions = count(len(change.steps), "distribution")
        self.reporter.stage(f"Undoing change {change.number} of {distributions} in {self.site.prefix}")
        state = self.site.state
        with preparing(state):
            removal = _files_to_remove(change, self.site, snapshot)
            leftovers = find_leftovers(change, self.site, removal.all, removal.since)
            moved = leftovers.unknown if self.aside is not None else frozenset()
            into = _new_folder(self.aside, change) if self.aside is not None and moved else Path()
            with setting_aside(moved, self.site, into):
                removal = replace(removal, left=leftovers.caches | moved)
                operations = _operations(change, self.site, removal, next_folder(state) / STASH)
                wrong = misplaced(SiteBounds(self.site), operations)
                if wrong is not None:
                    raise Refused(f"`{wrong}` is outside of the environment `{self.site.prefix}`")
                self._run(change, operations)
        self.reporter.step(f"Undid change {change.number}", 1, 1)
        importlib.invalidate_caches()  # the change may concern this interpreter
        names = {done.name for done in change.steps}
        loaded = [modules for name, modules in sorted(snapshot.loaded.items()) if name in names]
        now = installed_versions((self.site.purelib, self.site.platlib))
        return UndoneChange(
            change=change,
            differences=tuple(differences(change.before, now)),
            restart=tuple(module for modules in loaded for module in modules),
            set_aside=tuple(sorted(moved)),
            aside=str(into) if moved else "",
            left=tuple(sorted(leftovers.beside | (leftovers.unknown - moved))),
        )

    def _run(self, change: Change, operations: Sequence[Operation]) -> None:
        state = self.site.state
        try:
            with Journal(state, operations, becomes=change.folder / UNDONE, disk=self.disk) as journal:
                journal.run()
                journal.commit()
        except (RolledBack, NotRestored):
            raise
        except (OSError, ColablockError) as error:
            message = f"change {change.number} could not be undone, and the environment is unchanged: {error}"
            raise RolledBack(message) from error


def _new_folder(aside: Path, change: Change) -> Path:
    """Return the path of a folder in *aside* that does not exist yet."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    return aside / f"{stamp}-change-{change.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Removal:
    """The files that an undo removes: ours, those of others, and those *left* in folders of the change.

    *since* are the distributions that others have installed since, and that stay.
    """

    ours: frozenset[str]
    theirs: frozenset[str]
    since: tuple[Installed, ...] = ()
    left: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.ours | self.theirs | self.left


def _operations(change: Change, site: Site, removal: _Removal, stash: Path) -> list[Operation]:
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
    return [*outs, *emptied, *moves_back(change.stash, change.stashed, [*outs, *emptied], stash)]


def _files_to_remove(change: Change, site: Site, snapshot: Snapshot) -> _Removal:
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
    return _Removal(
        ours=placed_among(_owned(site, ours, since), frozenset(placed)),
        theirs=_owned(site, theirs, staying),
        since=tuple(since),
    )


def _is_ours(found: Installed, version: str | None) -> bool:
    return found.version == version and found.installer == "colablock"


def _owned(site: Site, removed: Sequence[Installed], staying: Sequence[Installed]) -> frozenset[str]:
    # Bytecode without a source may be older than the change, and an undo could not restore it.
    return owned_files(site, removed, staying, left_over=False) if removed else frozenset()
