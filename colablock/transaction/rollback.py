"""The way back over a committed change: a transaction of its own, in the other direction."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colablock._common.reporter import Reporter
from colablock._common.text import count
from colablock.environment.site import Site
from colablock.environment.snapshot import Installed, Snapshot, installed_versions
from colablock.errors import ColablockError, NotFound, NotRestored, Refused, RolledBack
from colablock.transaction.file_moves import (
    has_ancestor,
    moves_back,
    moves_out,
    owned_files,
    placed_among,
    removable_folders,
)
from colablock.transaction.history import Change, differences, next_folder, read_history
from colablock.transaction.journal import (
    STASH,
    UNDONE,
    Journal,
    Operation,
    Operations,
    preparing,
    settle_unfinished,
)
from colablock.transaction.site_lock import locked

__all__ = ["UndoneChange", "roll_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneChange:
    """One change that was undone, and what is still not as it was before it.

    *restart* names the modules that the kernel holds as they were.
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
    """Undo the last change of *site*, or with *to_first* every one, newest first.

    *look* takes the snapshot of the environment as it stands.  What was
    installed since by others stays, unless it goes by the name of something
    that the change concerned.  Each change is undone as a whole or not at all.

    Raises NotFound where there is nothing to undo; Refused where the stash was
    dropped, or a rule forbids it; RolledBack when it failed and all is as it
    was; NotRestored when that failed too.
    """
    way = _Rollback(site=site, reporter=reporter or Reporter(), disk=disk or Operations())
    if not site.state.is_dir():  # the lock would make the folder, only to take it away again
        raise _nothing(site)
    with locked(site, wait=wait, reporter=way.reporter) as state:
        settled = settle_unfinished(state, way.disk)
        if settled is not None:
            way.reporter.note(f"a change that was interrupted {settled.value} first")
        changes = read_history(state)
        if not changes:
            raise _nothing(site)
        chosen = changes[::-1] if to_first else changes[-1:]
        for change in chosen:
            if change.is_dropped:
                raise Refused(
                    f"change {change.number} of `{site.prefix}` cannot be undone: its stash was dropped",
                    hint="A hosted notebook has its image back in a new runtime (delete this one)",
                )
        return tuple(way.undo(change, look()) for change in chosen)


def _nothing(site: Site) -> NotFound:
    return NotFound(f"colablock has changed nothing in `{site.prefix}`, so there is nothing to undo")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rollback:
    site: Site
    reporter: Reporter
    disk: Operations

    def undo(self, change: Change, snapshot: Snapshot) -> UndoneChange:
        """Undo one change as a whole, or not at all."""
        distributions = count(len(change.steps), "distribution")
        self.reporter.stage(f"Undoing change {change.number} of {distributions} in {self.site.prefix}")
        state = self.site.state
        with preparing(state):
            operations = _operations(change, self.site, snapshot, next_folder(state) / STASH)
        try:
            with Journal(state, operations, becomes=change.folder / UNDONE, disk=self.disk) as journal:
                journal.swap()
                journal.commit()
        except (RolledBack, NotRestored):
            raise
        except (OSError, ColablockError) as error:
            message = f"undoing change {change.number} failed, and the environment is as it was: {error}"
            raise RolledBack(message) from error
        self.reporter.step(f"Undid change {change.number}", 1, 1)
        importlib.invalidate_caches()  # this interpreter may be the one that changed
        names = {done.name for done in change.steps}
        loaded = [modules for name, modules in sorted(snapshot.loaded.items()) if name in names]
        now = installed_versions((self.site.purelib, self.site.platlib))
        return UndoneChange(
            change=change,
            differences=tuple(differences(change.before, now)),
            restart=tuple(module for modules in loaded for module in modules),
        )


def _operations(change: Change, site: Site, snapshot: Snapshot, stash: Path) -> list[Operation]:
    stash.mkdir(parents=True)
    ours, theirs = _goes(change, site, snapshot)
    created = frozenset(change.created)
    of_others = {str(folder) for path in theirs for folder in Path(path).parents}

    def may_go(folder: str) -> bool:
        """Whether a folder was made by the change, or since: another one may have stood empty before."""
        return folder in of_others or folder in created or has_ancestor(folder, created)

    outs = moves_out(site, ours | theirs, stash, may_go=may_go)
    emptied = removable_folders(change.created, outs, change.stashed.values())
    return [*outs, *emptied, *moves_back(change.stash, change.stashed, [*outs, *emptied], stash)]


def _goes(change: Change, site: Site, snapshot: Snapshot) -> tuple[frozenset[str], frozenset[str]]:
    """Return the files of what stands now under the names that the change concerned: its own, and others'.

    What the change placed goes even where a distribution lists it that stood
    there before: then either the stash has the file of before, or there was none.
    What it found alike and left there stays.
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
    # Bytecode of sources that are gone may have stood before the change, and nobody would put it back.
    return owned_files(site, removed, staying, left_over=False) if removed else frozenset()
