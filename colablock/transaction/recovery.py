"""Recovery of a change that was interrupted: undo it, or finish it; and cleanup after a change.

A change is undone if its process dies before the commit.  A change that has
deleted files cannot be undone any more.  Its record says ``"forward": true``,
and recovery rolls it forward: it runs the remaining operations and commits.
"""

# Paths are strings here: a change of a whole stack has 30,000 of them.
# ruff: noqa: PTH104, PTH106, PTH108, PTH112, PTH118

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from colablock._common.child_environment import Purpose, child_environment
from colablock._common.decoding import Malformed
from colablock._common.fs import NEW
from colablock._common.process import ISOLATED, detach, start_session
from colablock.environment.site import JOURNAL, Site, check_state
from colablock.errors import NotRestored
from colablock.transaction.disk_operations import (
    TEMPORARY,
    TEMPORARY_BACK,
    Operation,
    OperationKind,
    Operations,
    complete_copy,
    delete_folder,
    make_folder,
    move,
    remove_tree,
)
from colablock.transaction.history import CHANGES, RECORD, STAGE, STASH, UNDONE, JournalFile, read_journal
from colablock.transaction.site_lock import locked

__all__ = [
    "RecoveryOutcome",
    "clean_up",
    "finish",
    "recover",
    "recover_locked",
    "restore",
]

_FINISHED = "finished.json"
_TRASH = "trash"
_PATIENCE = 0.1  # seconds
# Deletes the trash, then the state folder if it is empty, under the lock of the site.  It imports nothing of
# colablock, which may be changed or removed meanwhile, and therefore locks by itself.
_DELETE = """
import contextlib, fcntl, os, shutil, sys
state = os.path.dirname(sys.argv[1])
shutil.rmtree(sys.argv[1], ignore_errors=True)
if os.path.isdir(sys.argv[1]):  # folders without write permission still have their content
    for path, _, _ in os.walk(sys.argv[1]):
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
with contextlib.suppress(OSError):
    descriptor = os.open(os.path.dirname(state), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails during a change
    os.rmdir(state)
"""
_SHOWN = 10  # lost paths in a message


class RecoveryOutcome(Enum):
    """The outcome of the recovery of an interrupted change."""

    UNDONE = "was undone"
    FINISHED = "was finished"


def recover(site: Site, *, disk: Operations | None = None, wait: float = 0.0) -> RecoveryOutcome | None:
    """Undo or finish the interrupted change of *site*; return None if there is none.

    Raises Refused while another process changes the site, and NotRestored if
    the recovery fails.
    """
    check_state(site)
    if not site.state.is_dir():
        return None
    with locked(site, wait=wait):
        return recover_locked(site, disk or Operations())


def recover_locked(site: Site, disk: Operations) -> RecoveryOutcome | None:
    """Recover as ``recover`` does, while the caller holds the lock of the site."""
    state = site.state
    record = state / JOURNAL
    outcome = None
    if os.path.lexists(record):
        written = _read(record, site)
        outcome = RecoveryOutcome.FINISHED if written.forward else RecoveryOutcome.UNDONE
        if written.forward:
            finish(state, written.operations, disk, state / written.becomes, None)
        else:
            restore(state, written.operations, disk, None)
    clean_up(state)
    return outcome


def _read(record: Path, site: Site) -> JournalFile:
    try:
        return read_journal(record, site)
    except (OSError, Malformed) as error:
        stash = _stash_of(record.parent)
        raise NotRestored(
            f"a change of this environment was interrupted, and its journal is damaged: {error}\n"
            f"  the old files are in `{stash}`, the journal is `{record}`",
            stash=str(stash),
            hint=f"Move the files in the stash back by hand, or install them again. Then remove `{record}`",
        ) from error


def restore(
    state: Path, operations: Sequence[Operation], disk: Operations, cause: BaseException | None
) -> None:
    """Undo the operations that have run.  One interrupt by the user meanwhile does not stop it."""
    record = state / JOURNAL
    if not record.exists():
        return
    for attempt in (1, 2):
        try:
            lost = _undo(state, operations, disk)
            disk.rename(str(record), str(state / _FINISHED))
        except KeyboardInterrupt as error:  # noqa: PERF203 (at most two attempts)
            if attempt == 2:  # noqa: PLR2004 (the last attempt)
                raise _not_restored(state, error) from (cause or error)
        except Exception as error:  # noqa: BLE001 (any error must name the stash)
            raise _not_restored(state, error) from (cause or error)
        else:
            break
    if lost:
        raise _lost(state, lost) from cause


def finish(
    state: Path,
    operations: Sequence[Operation],
    disk: Operations,
    becomes: Path,
    cause: BaseException | None,
) -> None:
    """Run the remaining operations of a change that cannot be undone, and commit it."""
    record = state / JOURNAL
    if not record.exists():
        return
    try:
        _run_remaining(operations, disk)
        remove_tree(becomes.with_name(STASH))
        disk.rename(str(record), str(becomes))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (any error must name the journal)
        why = str(error) or type(error).__name__
        raise NotRestored(
            f"the change could not be finished, and it cannot be undone: {why}\n"
            f"  the remaining operations are in `{record}`",
            stash=str(becomes.with_name(STASH)),
            hint="Correct the cause. The next colablock call on this environment finishes the change",
        ) from (cause or error)


def _run_remaining(operations: Sequence[Operation], disk: Operations) -> None:
    for operation in operations:
        if operation.is_move:
            complete_copy(operation.source, operation.destination, TEMPORARY, disk)
    # All moves out run before the moves in.  Once one of those has run, no move out is left, and the sources
    # of moves out may be new files.
    has_come = any(operation.kind is OperationKind.IN and operation.has_run for operation in operations)
    for operation in operations:
        source, destination = operation.source, operation.destination
        if operation.kind is OperationKind.OUT:
            if not has_come and os.path.lexists(source) and not move(source, destination, disk):
                delete_folder(source, disk)
        elif operation.kind is OperationKind.IN:
            if not operation.has_run and not move(source, destination, disk):
                raise OSError(errno.EXDEV, "the folder cannot be renamed", source)
        elif operation.kind is OperationKind.MKDIR:
            make_folder(destination, operation.mode, disk)
        elif os.path.isdir(source):
            disk.rmdir(source)


def _lost(state: Path, paths: Sequence[str]) -> NotRestored:
    shown = [f"`{path}`" for path in paths[:_SHOWN]]
    more = [f"and {len(paths) - _SHOWN} more"] if len(paths) > _SHOWN else []
    stash = _stash_of(state)
    return NotRestored(
        "\n  ".join([f"all files were restored except those missing in `{stash}`:", *shown, *more]),
        stash=str(stash),
        hint="They were removed from the stash. Install the distributions of these files again",
    )


def _not_restored(state: Path, error: BaseException) -> NotRestored:
    stash = _stash_of(state)
    return NotRestored(
        f"the environment could not be restored: {str(error) or type(error).__name__}\n"
        f"  the old files are in `{stash}`; `{state / JOURNAL}` lists their original paths",
        stash=str(stash),
        hint="Correct the cause. The next colablock call on this environment restores the rest",
    )


def _stash_of(state: Path) -> Path:
    """Return the stash of the change in progress, the one without a record."""
    folders = [path for path in sorted(state.glob(f"{CHANGES}/*")) if not (path / RECORD).exists()]
    return folders[-1] / STASH if folders else state / CHANGES


def _undo(state: Path, operations: Sequence[Operation], disk: Operations) -> list[str]:
    """Move everything back, and return the paths whose old content is lost."""
    for operation in operations:
        if operation.is_move:
            complete_copy(operation.source, operation.destination, TEMPORARY, disk)
            complete_copy(operation.destination, operation.source, TEMPORARY_BACK, disk)
    moves = [
        (position, operation.has_run) for position, operation in enumerate(operations) if operation.is_move
    ]
    moved = max((position for position, has_run in moves if has_run), default=-1)
    # Folders were created and removed up to the first move that has not run.
    reached = next((position for position, _ in moves if position > moved), len(operations))
    # Moves run in order.  A move that has not run before one that has: others have emptied its stash.
    lost = [operations[position].source for position, has_run in moves if position < moved and not has_run]
    for position in reversed(range(reached)):
        operation = operations[position]
        if operation.kind is OperationKind.MKDIR:
            # After the last move that ran, others may have created the folder: remove it only if empty.
            _remove_created(operation.destination, disk, aside=state / "aside" if position < moved else None)
        elif operation.kind is OperationKind.RMDIR:
            make_folder(operation.source, operation.mode, disk)
        elif os.path.lexists(operation.destination) and operation.destination not in lost:
            _move_back(operation, state / "aside", disk)
    return lost


def _move_back(operation: Operation, aside: Path, disk: Operations) -> None:
    if os.path.lexists(operation.source):  # others have created something at the path of the old file
        _set_aside(operation.source, aside, disk)
    if not move(operation.destination, operation.source, disk, suffix=TEMPORARY_BACK):
        # It was renamed before, so this happens only if something else has changed.
        raise OSError(errno.EXDEV, "the folder cannot be renamed back", operation.destination)


def _remove_created(path: str, disk: Operations, *, aside: Path | None) -> None:
    try:
        disk.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if aside is not None:  # others have added files, such as bytecode
            _set_aside(path, aside, disk)


def _set_aside(path: str, aside: Path, disk: Operations) -> None:
    aside.mkdir(mode=0o700, exist_ok=True)
    disk.rename(path, str(aside / str(len(list(aside.iterdir())))))


def clean_up(state: Path, *, keep_stage: bool = False) -> None:
    """Remove the leftovers of finished changes.  If that fails, the next call tries again.

    With *keep_stage* a change that follows needs what is staged.

    Deleting gigabytes takes seconds.  After a fraction of a second, another
    process does the rest, so that the caller need not wait.
    """
    with suppress(OSError):  # the change itself has succeeded, or was undone
        _remove_finished(state, keep_stage=keep_stage)


def _remove_finished(state: Path, *, keep_stage: bool) -> None:
    if (state / JOURNAL).exists():
        return
    leftovers = [state / "aside", *([] if keep_stage else [state / STAGE])]
    changes = list(state.glob(f"{CHANGES}/*"))
    for change in changes:
        if change.is_symlink():  # not ours, and nothing is written through it
            leftovers.append(change)
            continue
        if (change / UNDONE).exists():
            (change / RECORD).unlink(missing_ok=True)  # first: without it the folder is a leftover
        if not os.path.lexists(change / RECORD):
            leftovers.append(change)
    _discard(state / _TRASH, leftovers)
    with suppress(OSError):
        for folder in (state, *(one for one in changes if not one.is_symlink())):
            for left in folder.glob(f"{NEW}*"):  # unfinished files of killed processes
                left.unlink(missing_ok=True)
        (state / _FINISHED).unlink(missing_ok=True)
    with suppress(OSError):
        (state / CHANGES).rmdir()


def _discard(trash: Path, folders: Iterable[Path]) -> None:
    """Delete *folders*.  They are moved to *trash* first, so that a later change can use their names."""
    for folder in folders:
        if folder.is_dir():
            try:
                trash.mkdir(mode=0o700, exist_ok=True)
                os.rename(folder, trash / f"{os.getpid()}-{time.monotonic_ns()}")
            except OSError:
                remove_tree(folder)
    if not trash.is_dir():
        return
    if _emptied(trash, time.monotonic() + _PATIENCE):
        remove_tree(trash)
    else:
        with suppress(OSError):
            variables = child_environment(Purpose.LOCAL, os.environ)
            command = [sys.executable, *ISOLATED, "-c", _DELETE, str(trash.absolute())]
            detach(start_session(command, environ=variables, folder=Path(os.sep)))


def _emptied(folder: Path, deadline: float) -> bool:
    """Delete the content of *folder* file by file; return False if *deadline* passes before the end."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            with suppress(OSError):
                os.unlink(os.path.join(path, name))
            if time.monotonic() > deadline:
                return False
        for name in folders:
            with suppress(OSError):
                os.rmdir(os.path.join(path, name))
    return True
