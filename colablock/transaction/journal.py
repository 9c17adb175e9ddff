"""The transaction of a change: move old files to a stash and new files in, and undo it on failure.

All operations are written to a journal and synced before the first one runs.
Recovery then finds out from the disk alone which operations have run, without a
log of progress: operations run in order, and one end of every move is private
(see ``disk_operations``).

The files of a change in its state folder::

    stage/  changes/0001/stash/    preparation: nothing has changed yet
    journal.json                   in progress: recovery moves everything back
    changes/0001/record.json       committed: the journal, renamed; the stash is kept for an undo
    changes/0001/undone.json       undone by a later change, whose journal this was; the folder is removed
    finished.json                  undone before the commit; the folder is removed
    trash/                         removed folders, while they are being deleted

A change may be allowed to delete what cannot be renamed as a whole.  From its
first deletion on, its record says ``"forward": true``, and recovery finishes the
change instead of undoing it.
"""

# Paths are strings here: a change of a whole stack has 30,000 of them.

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from colablock._common.fs import machine_error
from colablock.environment.site import JOURNAL
from colablock.errors import UNCHANGED, Unmet
from colablock.transaction.disk_operations import (
    Operation,
    OperationKind,
    Operations,
    delete_folder,
    expand,
    move,
    remove_tree,
)
from colablock.transaction.history import STASH
from colablock.transaction.recovery import clean_up, finish, restore

__all__ = ["Journal", "preparing"]


class Journal:
    """One change to an environment.  Leaving the block without ``commit()`` undoes it.

    *state* is the state folder, which exists on the mount of the site.
    *operations* that move out come before those that move in.  The commit
    renames the journal to *becomes*, a path in *state*.  *facts* are added to
    the record.  Without *undo*, a folder that cannot be renamed is deleted
    instead of copied.  From then on *is_forward* is true, and leaving the block
    finishes the change instead of undoing it.  *is_committed* tells whether it was final.
    With *keep_stage* the files in the stage are left for a change that follows.
    """

    def __init__(
        self,
        state: Path,
        operations: Iterable[Operation],
        *,
        becomes: Path,
        facts: Mapping[str, object] | None = None,
        undo: bool = True,
        keep_stage: bool = False,
        disk: Operations | None = None,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        self._state = state
        self.operations = list(operations)
        self._becomes = becomes
        self._facts = dict(facts or {})
        self._has_undo = undo
        self._keep_stage = keep_stage
        self.is_forward = False
        self._disk = disk or Operations()
        self._progress = progress
        self.is_committed = False

    def state_after(self) -> str:
        """Return the state of the environment after an interrupt of the block, for `Interrupted`."""
        if self.is_committed:
            return "The change is in place."
        if self.is_forward:
            return "The change could not be undone, so it was finished, without a proof."
        return UNCHANGED

    def __enter__(self) -> Journal:  # noqa: PYI034 (it has no subclasses)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not os.path.lexists(self._state / JOURNAL) and self._becomes.exists():
            self.is_committed = True  # also if an interrupt came right after the commit
        if not self.is_committed and self.is_forward:
            finish(self._state, self.operations, self._disk, self._becomes, error)
        elif not self.is_committed:
            restore(self._state, self.operations, self._disk, error)
        clean_up(self._state, keep_stage=self._keep_stage)

    def run(self) -> None:
        """Write the journal, then run all operations in order."""
        self._write()
        position = 0
        while position < len(self.operations):
            self._run_one(position)
            position += 1
            self._progress(position, len(self.operations))

    def commit(self) -> None:
        """Make the change final by renaming the journal."""
        record = self._state / JOURNAL
        if self.is_forward:
            remove_tree(self._becomes.with_name(STASH))  # it cannot be undone
        try:
            self._disk.rename(str(record), str(self._becomes))
        except OSError:
            if record.exists():
                raise
        self.is_committed = True

    def _write(self, *, is_forward: bool = False) -> None:
        rows = [asdict(operation) | {"kind": operation.kind.value} for operation in self.operations]
        own = {"schema": 1, "pid": os.getpid(), "forward": is_forward, "is_dropped": is_forward}
        becomes = self._becomes.relative_to(self._state).as_posix()
        record = {**own, "becomes": becomes, **self._facts, "operations": rows}
        self._disk.write(str(self._state / JOURNAL), json.dumps(record))

    def _run_one(self, position: int) -> None:
        operation = self.operations[position]
        if operation.kind is OperationKind.MKDIR:
            self._disk.mkdir(operation.destination, operation.mode)
        elif operation.kind is OperationKind.RMDIR:
            self._disk.rmdir(operation.source)
        elif not move(operation.source, operation.destination, self._disk):
            # The folder cannot be renamed: on overlayfs, it comes from the image.
            if operation.kind is OperationKind.OUT and not self._has_undo:
                self._go_forward()
                delete_folder(operation.source, self._disk)
                return
            # Move its files one by one, and those of the folders after it, which are mostly alike.  The new
            # operations are written to the journal first.
            rest = self.operations[position:]
            self.operations[position:] = [
                step for one in rest for step in (expand(one) if one.kind is operation.kind else [one])
            ]
            self._write(is_forward=self.is_forward)
            self._run_one(position)

    def _go_forward(self) -> None:
        if not self.is_forward:
            self._write(is_forward=True)
            self.is_forward = True  # only now: until this is written, the change can be undone


@contextmanager
def preparing(state: Path) -> Iterator[None]:
    """Clean up if the preparation of a change fails, and raise Unmet for an OSError."""
    try:
        yield
    except OSError as error:
        clean_up(state)
        hint = machine_error(error).hint
        raise Unmet(f"the change could not be prepared: {error}", hint=hint) from error
    except BaseException:
        clean_up(state)
        raise
