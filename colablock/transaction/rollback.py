"""Undo a committed change, as a transaction of its own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from colablock._common.fs import machine_errors, make_private
from colablock._common.reporter import Reporter
from colablock._common.text import count
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.dependency_graph import unmet_text
from colablock.environment.site import Site, SiteBounds, check_state
from colablock.environment.snapshot import Snapshot, installed_versions
from colablock.errors import (
    UNCHANGED,
    ColablockError,
    NotFound,
    NotRestored,
    Refused,
    RolledBack,
    interrupted_as,
)
from colablock.transaction.disk_operations import Operation, Operations
from colablock.transaction.drift import differences
from colablock.transaction.history import (
    RECORD,
    STASH,
    UNDONE,
    Change,
    misplaced,
    next_folder,
    read_changes,
)
from colablock.transaction.journal import Journal, preparing
from colablock.transaction.recovery import recover_locked
from colablock.transaction.site_lock import locked
from colablock.transaction.staging import Staged
from colablock.transaction.undo.companions import Companions, current_of, stage_companions
from colablock.transaction.undo.leftovers import Leftovers, find_leftovers, setting_aside
from colablock.transaction.undo.moves import files_to_remove, undo_operations
from colablock.transaction.undo.preview import UndoPreview, newly_broken, preview_undo

__all__ = ["UndoneChange", "changes_to_undo", "roll_back", "state_after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneChange:
    """One change that was undone, and the differences that are left to the state before it.

    *restart* are the modules that the kernel still holds in the old version.  *set_aside* are the
    paths of files that appeared since in folders that the change created, and that are now in the
    folder *aside*.  *left* are such files that stay: in folders that existed before the change, or
    without a folder for them.
    *companions* are the distributions that were put back as well, and *broken* says which
    requirements the undo left unmet that were met before it.
    """

    change: Change
    differences: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    aside: str = ""
    left: tuple[str, ...] = ()
    companions: Mapping[NormalizedName, str] = field(default_factory=dict)
    broken: tuple[str, ...] = ()


def roll_back(
    site: Site,
    *,
    look: Callable[[], Snapshot],
    environ: Mapping[str, str] | None = None,
    to_first: bool = False,
    companions: Companions | None = None,
    leave_broken: bool = False,
    aside: Path | None = None,
    when_undone: Callable[[Change], None] = lambda _: None,
    reporter: Reporter | None = None,
    disk: Operations | None = None,
    wait: float = 10.0,
) -> tuple[UndoneChange, ...]:
    """Undo the last change of *site*, or with *to_first* all changes, newest first.

    *look* returns a snapshot of the environment.  Distributions that others have
    installed since stay, unless the change concerned the same name.  Each change
    is undone atomically.  Files of no distribution, in folders that the change
    created, are moved to a new folder in *aside*; without it, or if it cannot be
    written, they stay.  *when_undone* is called after each undo, also if a later one fails.

    Where others have moved distributions since, the undo may leave requirements
    unmet that are met now.  Those of *companions* that repair this are put back
    in the same transaction, in an environment of the variables *environ*.

    Raises NotFound if there is nothing to undo, Refused if the stash was dropped,
    a rule forbids the change or, without *leave_broken*, if requirements would be
    left unmet, RolledBack if the undo of a change failed and that change is in
    place as before, and NotRestored if that failed, too.
    """
    rollback = _Rollback(
        site=site,
        look=look,
        environ=environ or {},
        companions=companions or Companions(),
        leave_broken=leave_broken,
        aside=aside,
        when_undone=when_undone,
        reporter=reporter or Reporter(),
        disk=disk or Operations(),
    )
    check_state(site)
    if not site.state.is_dir():  # do not create the folder just for the lock
        raise _nothing(site)
    with locked(site, wait=wait, reporter=rollback.reporter):
        outcome = recover_locked(site, rollback.disk)
        if outcome is not None:
            rollback.reporter.note(f"an interrupted change {outcome.value} first")
        return rollback.undo_all(changes_to_undo(site, to_first=to_first))


def changes_to_undo(site: Site, *, to_first: bool = False) -> tuple[Change, ...]:
    """Return the last change of *site*, or with *to_first* all changes, newest first.

    Raises NotFound if there is none, InvalidInput for a damaged record, and
    Refused if the stash of one was dropped.
    """
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
    return chosen


def _nothing(site: Site) -> NotFound:
    hint = "An isolated environment is not undone but removed: `colablock env list` lists them"
    return NotFound(f"there is nothing to undo: no change is in place in `{site.prefix}`", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Undo:
    """The undo of one change: *staged* are the files of *companions*, *check* runs before the commit."""

    change: Change
    snapshot: Snapshot
    companions: frozenset[NormalizedName] = frozenset()
    staged: Staged | None = None
    check: Callable[[], tuple[str, ...]] = tuple
    is_last: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rollback:
    site: Site
    look: Callable[[], Snapshot]
    environ: Mapping[str, str]
    companions: Companions
    leave_broken: bool
    aside: Path | None
    when_undone: Callable[[Change], None]
    reporter: Reporter
    disk: Operations

    def undo_all(self, changes: Sequence[Change]) -> tuple[UndoneChange, ...]:
        """Undo *changes*, newest first; the companions are put back with the oldest."""
        snapshot = self.look()
        preview = preview_undo(
            changes, self.site, snapshot, self.companions.installed, self.companions.refused
        )
        chosen = preview.companions.keys() & self.companions.wheels.keys()
        if self.companions.wheels and chosen != preview.companions.keys():
            raise Refused(
                f"`{self.site.prefix}` has changed since the rollback was prepared",
                hint="Run the command again",
            )
        left = preview.beyond if chosen else preview.broken
        if left and not self.leave_broken:
            raise _would_break(self.site, preview, left, is_rest=bool(chosen))
        state = self.site.state
        with preparing(state):  # before anything is undone
            staged = stage_companions(
                self.companions,
                chosen,
                site=self.site,
                state=state,
                environ=self.environ,
                reporter=self.reporter,
            )
        last = _Undo(
            change=changes[-1],
            snapshot=snapshot,
            companions=frozenset(chosen),
            staged=staged,
            check=partial(self._check, preview, snapshot, chosen, left),
        )
        undone: list[UndoneChange] = []
        with _telling(undone):
            for change in changes[:-1]:
                self._undo_next(_Undo(change=change, snapshot=last.snapshot, is_last=False), undone)
                with interrupted_as(state_after(undone)), preparing(state):
                    last = replace(last, snapshot=self.look())
            self._undo_next(last, undone)
        return tuple(undone)

    def _undo_next(self, one: _Undo, undone: list[UndoneChange]) -> None:
        """Undo *one* after *undone*, and add it to them."""
        into = _new_folder(self.aside, one.change) if self.aside is not None else None
        with interrupted_as(partial(_state, one.change, into, undone)):
            try:
                undone.append(self._undo(one, into))
            finally:
                if _is_undone(one.change):
                    self.when_undone(one.change)

    def _check(
        self,
        preview: UndoPreview,
        before: Snapshot,
        companions: Collection[NormalizedName],
        expected: Collection[str],
    ) -> tuple[str, ...]:
        """Return the requirements that the undo left unmet.  Raises RolledBack for any not *expected*."""
        if not preview.drifted:
            return ()
        importlib.invalidate_caches()
        after = self.look().installed
        found = newly_broken(before, after, preview.drifted - set(companions))
        texts = tuple(sorted({unmet_text(one, after) for one in found}))
        if not (self.leave_broken or set(texts) <= set(expected)):
            lines = "\n  ".join(texts)
            raise RolledBack(
                f"the undo would leave requirements unmet, so the change is still in place:\n  {lines}"
            )
        return texts

    def _undo(self, one: _Undo, aside: Path | None) -> UndoneChange:
        """Undo one change atomically, put companions back, and move the user's files to *aside*."""
        change, state = one.change, self.site.state
        distributions = count(len(change.steps), "distribution")
        self.reporter.stage(f"Undoing change {change.number} of {distributions} in {self.site.prefix}")
        with preparing(state):
            current = current_of(one.companions, self.site, one.snapshot)
            removal = files_to_remove(change, self.site, one.snapshot, current)
            leftovers = find_leftovers(change, self.site, removal.all, removal.since)
            into = self._made(aside, leftovers)
            moved = leftovers.unknown if into is not None else frozenset()
            with setting_aside(moved, self.site, into or Path(), is_done=partial(_is_undone, change)):
                operations = undo_operations(
                    change,
                    self.site,
                    replace(removal, left=leftovers.caches | moved),
                    next_folder(state) / STASH,
                    beside=one.staged.tree if one.staged is not None else None,
                )
                wrong = misplaced(SiteBounds(self.site), operations)
                if wrong is not None:
                    raise Refused(f"`{wrong}` is outside of the environment `{self.site.prefix}`")
                broken = self._run(one, operations)
        return self._undone(one, leftovers, aside=into, broken=broken)

    def _made(self, aside: Path | None, leftovers: Leftovers) -> Path | None:
        """Create the folder *aside* if files go there; None if they stay where they are."""
        if aside is None or not leftovers.unknown:
            return None
        try:
            return make_private(aside)
        except OSError as error:
            files = count(len(leftovers.unknown), "file")
            why = f"`{aside.parent}` cannot be written: {error.strerror}"
            self.reporter.note(f"left {files} of no distribution in folders of the change: {why}")
            return None

    def _undone(
        self, one: _Undo, leftovers: Leftovers, *, aside: Path | None, broken: tuple[str, ...]
    ) -> UndoneChange:
        """Return the result of an undo that is done, with what differs from the state before the change."""
        change = one.change
        moved = leftovers.unknown if aside is not None else frozenset()
        self.reporter.step(f"Undid change {change.number}", 1, 1)
        importlib.invalidate_caches()  # the change may concern this interpreter
        names = {done.name for done in change.steps} | one.companions
        now = installed_versions((self.site.purelib, self.site.platlib))
        loaded = [one.snapshot.loaded_otherwise(name, now.get(name)) for name in sorted(names)]
        return UndoneChange(
            change=change,
            differences=tuple(differences(change.before, now)),
            restart=tuple(module for modules in loaded for module in modules),
            set_aside=tuple(sorted(moved)),
            aside=str(aside or ""),
            left=tuple(sorted(leftovers.beside | (leftovers.unknown - moved))),
            companions={name: self.companions.artifacts[name].version for name in sorted(one.companions)},
            broken=broken,
        )

    def _run(self, one: _Undo, operations: Sequence[Operation]) -> tuple[str, ...]:
        change = one.change
        broken: tuple[str, ...] = ()
        try:
            journal = Journal(
                self.site.state,
                operations,
                becomes=change.folder / UNDONE,
                keep_stage=not one.is_last,
                disk=self.disk,
            )
            with machine_errors(), journal:
                journal.run()
                broken = one.check()
                journal.commit()
        except (RolledBack, NotRestored):
            raise
        except (OSError, ColablockError) as error:
            if _is_undone(change):  # the next call removes the rest
                return broken
            message = f"change {change.number} could not be undone, and is in place as before: {error}"
            raise RolledBack(message) from error
        return broken


def state_after(undone: Sequence[UndoneChange]) -> str:
    """Return the state of the environment once the changes *undone* are undone, for `Interrupted`."""
    return _before(undone[-1].change, *(one.aside for one in undone)) if undone else UNCHANGED


def _is_undone(change: Change) -> bool:
    """Whether the undo of *change* is committed."""
    return os.path.lexists(change.folder / UNDONE) or not os.path.lexists(change.folder / RECORD)


def _state(change: Change, aside: Path | None, undone: Sequence[UndoneChange]) -> str:
    """Return the state after an interrupt of the undo of *change*, after that of the changes *undone*."""
    if not _is_undone(change):
        return state_after(undone)
    asides = {one.aside: None for one in undone}
    if aside is not None and aside.is_dir():
        asides[str(aside)] = None
    return _before(change, *asides)


def _before(change: Change, *asides: str) -> str:
    folders = ", ".join(f"`{folder}`" for folder in asides if folder)
    moved = f" Files of no distribution were moved to {folders}." if folders else ""
    return f"The environment is as it was before change {change.number}.{moved}"


@contextmanager
def _telling(undone: Sequence[UndoneChange]) -> Iterator[None]:
    """Say in the error of an undo which changes are *undone* nevertheless."""
    try:
        yield
    except ColablockError as error:
        if not undone:
            raise
        numbers = ", ".join(str(one.change.number) for one in undone)
        what = f"change {numbers} was" if len(undone) == 1 else f"changes {numbers} were"
        message = f"{error}\n  {what} undone before that. {state_after(undone)}"
        if isinstance(error, NotRestored):
            raise NotRestored(message, stash=error.stash, undone=undone, hint=error.hint) from error
        raise RolledBack(message, undone=undone, hint=error.hint) from error


def _would_break(site: Site, preview: UndoPreview, left: Sequence[str], *, is_rest: bool) -> Refused:
    """Return why the undo is refused: it would leave the requirements *left* unmet."""
    one = preview.changes[-1].number
    what = f"undoing change {one}" if len(preview.changes) == 1 else "undoing all changes"
    lines = [
        f"{what} would leave {count(len(left), 'requirement')} unmet, since others changed `{site.prefix}`"
    ]
    back = ", ".join(f"{name} {version}" for name, version in preview.companions.items())
    anyway = "`--leave-broken` (`leave_broken=True`) undoes it anyway, with exit code 5"
    if back and not is_rest and not preview.beyond:
        anyway = f"`--with-companions` (`with_companions=True`) also puts back {back}. {anyway}"
    return Refused("\n  ".join([*lines, *left, *preview.refused.values()]), hint=anyway)


def _new_folder(aside: Path, change: Change) -> Path:
    """Return the path of a folder in *aside* that does not exist yet."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    return aside / f"{stamp}-change-{change.number}"
