"""Undo committed changes, list and drop them, and recover an interrupted change."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from colablock._common.scratch import scratch_folder
from colablock.environment.accelerator import Accelerator
from colablock.environment.site import check_state
from colablock.errors import NotFound
from colablock.operations.session import Session
from colablock.planning.options import UndoOptions
from colablock.planning.plan import steps_text
from colablock.transaction import apply_record as applied
from colablock.transaction.history import (
    BegunChange,
    Change,
    DamagedChange,
    damaged_changes,
    drop,
    interrupted_change,
    read_history,
)
from colablock.transaction.isolated_envs import sweep_home
from colablock.transaction.recovery import RecoveryOutcome, recover
from colablock.transaction.rollback import UndoneChange, changes_to_undo, roll_back
from colablock.transaction.site_lock import locked
from colablock.transaction.undo.preview import UndoPreview, preview_undo

if TYPE_CHECKING:
    from pathlib import Path

    from colablock.environment.site import Site
    from colablock.transaction.apply_record import PastChange
    from colablock.transaction.undo.companions import Companions

__all__ = [
    "drop_stashes",
    "list_changes",
    "list_damaged",
    "list_undone",
    "preview_changes",
    "recover_interrupted",
    "undo_changes",
]


def undo_changes(
    session: Session, python: str | None = None, options: UndoOptions | None = None
) -> tuple[UndoneChange, ...]:
    """Undo the last change of the environment of *python* (default: this one), or as *options* say.

    An interrupted change is recovered first.  Where that undoes it and all changes
    are not asked for, nothing else is undone and the result is empty.
    Raises what `roll_back` and `fetch_companions` raise: NotFound, Refused,
    FetchFailed, BadDistribution, RolledBack, NotRestored.
    """
    options = options or UndoOptions()
    sweep_home(session.home)
    if recover_interrupted(session, python) is RecoveryOutcome.UNDONE and not options.to_first:
        return ()
    site = session.site(python)
    with scratch_folder() as folder:
        return roll_back(
            site,
            look=lambda: session.snapshot(python, accelerator=Accelerator()),
            environ=session.environ,
            to_first=options.to_first,
            companions=_companions(session, python, options, folder) if options.companions else None,
            leave_broken=options.leave_broken,
            aside=session.home / applied.SET_ASIDE,
            when_undone=partial(_put_back, session, site),
            reporter=session.reporter,
        )


def _put_back(session: Session, site: Site, change: Change) -> None:
    """Restore the record of the apply before *change*, which is undone."""
    try:
        applied.put_back(change.matrix, session.home, change.applied_before, prefix=site.prefix)
        _note_undone(session, site, change, "rolled back")
    except OSError as error:
        session.reporter.note(f"undone, but not recorded in {session.home}: {error.strerror}")


def preview_changes(session: Session, python: str | None = None, *, to_first: bool = False) -> UndoPreview:
    """Return what an undo would break because others have changed the environment since.

    Raises NotFound, InvalidInput and Refused as `roll_back` does.
    """
    site = session.site(python)
    check_state(site)
    snapshot = session.snapshot(python, accelerator=Accelerator())
    return preview_undo(changes_to_undo(site, to_first=to_first), site, snapshot)


def _companions(
    session: Session, python: str | None, options: UndoOptions, folder: Path
) -> Companions | None:
    """Fetch what others moved since and an undo would break or be broken by; None if there is nothing."""
    from colablock.operations.companions import fetch_companions  # noqa: PLC0415 - it loads the HTTP client

    site = session.site(python)
    check_state(site)
    changes = changes_to_undo(site, to_first=options.to_first)
    snapshot = session.snapshot(python, accelerator=Accelerator())
    preview = partial(preview_undo, changes, site, snapshot)
    if not preview().companions:
        return None
    return fetch_companions(session, options, preview, snapshot=snapshot, folder=folder)


def list_changes(session: Session, python: str | None = None) -> tuple[Change, ...]:
    """Return the committed changes of the environment of *python* (default: this one), oldest first."""
    site = session.site(python)
    check_state(site)
    return read_history(site)


def list_interrupted(session: Session, python: str | None = None) -> BegunChange | None:
    """Return the change of that environment that is under way, or was interrupted; None if there is none."""
    return interrupted_change(session.site(python))


def list_undone(session: Session, python: str | None = None) -> tuple[PastChange, ...]:
    """Return the changes of that environment that were undone, oldest first."""
    site = session.site(python)
    return applied.past_changes(session.home, site.prefix, site.purelib)


def list_damaged(session: Session, python: str | None = None) -> tuple[DamagedChange, ...]:
    """Return the committed changes of that environment whose record cannot be read, oldest first."""
    return damaged_changes(session.site(python))


def drop_stashes(
    session: Session, python: str | None = None, number: int | None = None
) -> tuple[Change, ...]:
    """Delete the stashes of change *number* and of those before it (default: all); return these changes.

    A change without its stash cannot be undone.  Raises NotFound for a change
    that does not exist, Refused while another process changes the environment.
    """
    site = session.site(python)
    check_state(site)
    if not read_history(site) and not damaged_changes(site):
        raise NotFound(f"colablock has changed nothing in `{site.prefix}`, so there is no stash to drop")
    with locked(site):
        return drop(site, number)


def recover_interrupted(session: Session, python: str | None = None) -> RecoveryOutcome | None:
    """Undo or finish an interrupted change of the environment of *python*; None where there is none."""
    site = session.site(python)
    begun = interrupted_change(site)
    outcome = recover(site)
    if outcome is not None:
        session.reporter.note(f"an interrupted change of {site.prefix} {outcome.value}")
    if outcome is RecoveryOutcome.UNDONE and begun is not None:
        with suppress(OSError):
            _note_undone(session, site, begun, "it was interrupted")
    return outcome


def _note_undone(session: Session, site: Site, change: Change | BegunChange, why: str) -> None:
    """Keep in the history that *change* was undone.  Raises OSError."""
    steps = steps_text(step.action for step in change.steps)
    facts = {"matrix": change.matrix, "when": change.when, "why": why, "steps": steps}
    applied.note_undone(session.home, site.prefix, site.purelib, facts)
