"""Undo committed changes, list and drop them, and recover an interrupted change."""

from __future__ import annotations

from colablock.environment.accelerator import Accelerator
from colablock.environment.site import check_state
from colablock.errors import NotFound
from colablock.operations.session import Session
from colablock.transaction import apply_record as applied
from colablock.transaction.history import Change, DamagedChange, damaged_changes, drop, read_history
from colablock.transaction.isolated_envs import sweep_home
from colablock.transaction.recovery import RecoveryOutcome, recover
from colablock.transaction.rollback import UndoneChange, roll_back
from colablock.transaction.site_lock import locked

__all__ = ["drop_stashes", "list_changes", "list_damaged", "recover_interrupted", "undo_changes"]


def undo_changes(
    session: Session, python: str | None = None, *, to_first: bool = False
) -> tuple[UndoneChange, ...]:
    """Undo the last change of the environment of *python* (default: this one), or with *to_first* every one.

    An interrupted change is recovered first.  Where that undoes it and
    *to_first* is not set, nothing else is undone and the result is empty.
    Raises what `roll_back` raises: NotFound, Refused, RolledBack, NotRestored.
    """
    sweep_home(session.home)
    if recover_interrupted(session, python) is RecoveryOutcome.UNDONE and not to_first:
        return ()
    site = session.site(python)
    undone = roll_back(
        site,
        look=lambda: session.snapshot(python, accelerator=Accelerator()),
        to_first=to_first,
        aside=session.home / applied.SET_ASIDE,
        reporter=session.reporter,
    )
    try:
        for change in (one.change for one in undone):
            applied.put_back(change.matrix, session.home, change.applied_before, prefix=site.prefix)
    except OSError as error:
        session.reporter.note(f"undone, but not recorded in {session.home}: {error.strerror}")
    return undone


def list_changes(session: Session, python: str | None = None) -> tuple[Change, ...]:
    """Return the committed changes of the environment of *python* (default: this one), oldest first."""
    site = session.site(python)
    check_state(site)
    return read_history(site)


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
    outcome = recover(site)
    if outcome is not None:
        session.reporter.note(f"an interrupted change of {site.prefix} {outcome.value}")
    return outcome
