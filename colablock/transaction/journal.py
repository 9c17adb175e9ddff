"""The transaction of a change: old files out to a stash, new ones in, and back again.

Every operation is written down and synced before the first one runs.  Two
facts make the way back decidable from the disk alone, with no log of progress:
operations run strictly in order, and one end of every move is private to us
(a stash for what goes out, a stage or an older stash for what comes in), so
whether a move has run is whether its private end holds something.

The life of a change in its state folder::

    stage/  changes/0001/stash/    being prepared: nothing has changed yet
    journal.json                   under way: recovery moves everything back
    changes/0001/record.json       committed: the same file, renamed; the stash stays, for the way back
    changes/0001/undone.json       rolled back by a later change, whose journal this was: tidied away
    finished.json                  undone on the way: tidied away
    trash/                         what was tidied away and is being deleted

A change may be told to keep nothing that cannot be moved as a whole.  From the
first folder that it takes away on, its record says ``"forward": true``, and
recovery finishes it in place of moving everything back.
"""

# Paths are strings here: a change of a whole stack has 30,000 of them.
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH112, PTH114, PTH116, PTH118

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from colablock._common.fs import NEW, replace_file, sync
from colablock._common.process import start_session
from colablock.environment.site import JOURNAL, Site
from colablock.errors import NotRestored, Unmet
from colablock.transaction.site_lock import locked

__all__ = [
    "CHANGES",
    "RECORD",
    "STASH",
    "UNDONE",
    "Journal",
    "Operation",
    "OperationKind",
    "Operations",
    "RecoveryOutcome",
    "preparing",
    "recover",
    "remove_tree",
    "settle_unfinished",
    "tidy",
]

CHANGES = "changes"
STASH = "stash"
RECORD = "record.json"
UNDONE = "undone.json"

_FINISHED = "finished.json"
_TRASH = "trash"
_PATIENCE = 0.1  # seconds
# Deletes the trash, then the state folder where nothing is left in it: under the lock of whoever changes it.
# It imports nothing of colablock, which may be changing itself, so it locks by its own line.
_DELETE = """
import contextlib, fcntl, os, shutil, sys
state = os.path.dirname(sys.argv[1])
shutil.rmtree(sys.argv[1], ignore_errors=True)
if os.path.isdir(sys.argv[1]):  # folders without write permission keep what is in them
    for path, _, _ in os.walk(sys.argv[1]):
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
with contextlib.suppress(OSError):
    descriptor = os.open(os.path.dirname(state), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a change that is under way leaves as it finds
    os.rmdir(state)
"""
_SHOWN = 10  # paths of a loss that are worth reading
_TEMPORARY = ".colablock-new"
# Another name on the way back: a path may be where one thing was taken from and another put.
_TEMPORARY_BACK = ".back.colablock-new"


class OperationKind(Enum):
    """What an operation does to the environment."""

    OUT = "out"  # into the stash: `destination` is the private end
    IN = "in"  # out of the stage: `source` is the private end
    MKDIR = "mkdir"
    RMDIR = "rmdir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One move of a file or of a whole folder, or a folder made or taken away."""

    kind: OperationKind
    source: str = ""
    destination: str = ""
    mode: int = 0o755

    @property
    def is_move(self) -> bool:
        """Whether something goes from one place to another."""
        return self.kind in (OperationKind.OUT, OperationKind.IN)

    @property
    def has_run(self) -> bool:
        """Whether a move has run, as its private end tells."""
        if self.kind is OperationKind.OUT:
            return os.path.lexists(self.destination)
        return not os.path.lexists(self.source)


class RecoveryOutcome(Enum):
    """What became of a change that was interrupted."""

    UNDONE = "has been put back"
    FINISHED = "has been finished"


class Operations:
    """What a change does to the disk, one method each; a test replaces it to make one fail."""

    def rename(self, source: str, destination: str) -> None:
        """Move within one mount; *destination* does not exist."""
        os.rename(source, destination)

    def copy(self, source: str, destination: str) -> None:
        """Copy one file or link with its mode and times, and sync it."""
        shutil.copy2(source, destination, follow_symlinks=False)
        if not os.path.islink(destination):
            sync(destination)

    def unlink(self, path: str) -> None:
        """Take away one file or link."""
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        """Make one folder with exactly these permissions."""
        os.mkdir(path)
        os.chmod(path, mode)

    def rmdir(self, path: str) -> None:
        """Take away one empty folder."""
        os.rmdir(path)

    def write(self, path: str, text: str) -> None:
        """Write a whole file, synced, in place of what was there."""
        replace_file(Path(path), text.encode("utf-8", "surrogateescape"), synced=True)


class Journal:
    """One change to an environment.  Leaving it without ``commit()`` undoes everything.

    *state* is the state folder, which exists on the site's mount.  Its commit
    renames the record to *becomes*, in that folder.  *facts* are written into
    the record beside the operations.  Without *undo*, a folder that cannot be
    moved as a whole is taken away in place of being copied; from then on the
    change *is_forward*: it is finished however it is left.  *operations* that
    move out come before those that move in.
    """

    def __init__(
        self,
        state: Path,
        operations: Iterable[Operation],
        *,
        becomes: Path,
        facts: Mapping[str, object] | None = None,
        undo: bool = True,
        disk: Operations | None = None,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        self._state = state
        self._operations = list(operations)
        self._becomes = becomes
        self._facts = dict(facts or {})
        self._has_undo = undo
        self.is_forward = False
        self._disk = disk or Operations()
        self._progress = progress
        self._committed = False

    def __enter__(self) -> Journal:  # noqa: PYI034 (nobody derives from it)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed and self.is_forward:
            _finish(self._state, self._operations, self._disk, self._becomes, error)
        elif not self._committed:
            _restore(self._state, self._operations, self._disk, error)
        tidy(self._state)

    def swap(self) -> None:
        """Write the intent, then run every operation in order."""
        self._write()
        position = 0
        while position < len(self._operations):
            self._run(position)
            position += 1
            self._progress(position, len(self._operations))

    def commit(self) -> None:
        """Make the change final: renaming the record is what counts."""
        record = self._state / JOURNAL
        if self.is_forward:
            remove_tree(self._becomes.with_name(STASH))  # nothing leads back to it
        try:
            self._disk.rename(str(record), str(self._becomes))
        except OSError:
            if record.exists():
                raise
        self._committed = True

    def _write(self, *, is_forward: bool = False) -> None:
        rows = [asdict(operation) | {"kind": operation.kind.value} for operation in self._operations]
        own = {"schema": 1, "pid": os.getpid(), "forward": is_forward, "is_dropped": is_forward}
        becomes = self._becomes.relative_to(self._state).as_posix()
        record = {**own, "becomes": becomes, **self._facts, "operations": rows}
        self._disk.write(str(self._state / JOURNAL), json.dumps(record))

    def _run(self, position: int) -> None:
        operation = self._operations[position]
        if operation.kind is OperationKind.MKDIR:
            self._disk.mkdir(operation.destination, operation.mode)
        elif operation.kind is OperationKind.RMDIR:
            self._disk.rmdir(operation.source)
        elif not _move(operation.source, operation.destination, self._disk):
            # A folder that cannot be renamed as a whole: on overlayfs, one that came with the image.
            if operation.kind is OperationKind.OUT and not self._has_undo:
                self._go_forward()
                _take_away(operation.source, self._disk)
                return
            # Its files go one by one, and so do those of the folders after it, which mostly are like it.  The
            # record says so before the first of them does.
            rest = self._operations[position:]
            self._operations[position:] = [
                step for one in rest for step in (_expand(one) if one.kind is operation.kind else [one])
            ]
            self._write()
            self._run(position)

    def _go_forward(self) -> None:
        if not self.is_forward:
            self._write(is_forward=True)
            self.is_forward = True  # not before: what is not written can still go back


@contextmanager
def preparing(state: Path) -> Iterator[None]:
    """Leave nothing behind when preparing a change fails; raise Unmet where the disk did."""
    try:
        yield
    except OSError as error:
        tidy(state)
        raise Unmet(f"the change could not be prepared: {error}") from error
    except BaseException:
        tidy(state)
        raise


def recover(site: Site, *, disk: Operations | None = None, wait: float = 0.0) -> RecoveryOutcome | None:
    """Put back, or finish, the change of *site* that was interrupted; None where none was.

    Raises Refused while another process changes the site, NotRestored when
    it cannot be.
    """
    if not site.state.is_dir():
        return None
    with locked(site, wait=wait):
        return settle_unfinished(site.state, disk or Operations())


def settle_unfinished(state: Path, disk: Operations) -> RecoveryOutcome | None:
    """Recover under a lock that is held; what became of an unfinished change, None where there was none."""
    record = state / JOURNAL
    settled = None
    if record.is_file():
        written = _read(record)
        settled = RecoveryOutcome.FINISHED if written.is_forward else RecoveryOutcome.UNDONE
        if written.is_forward:
            _finish(state, written.operations, disk, state / written.becomes, None)
        else:
            _restore(state, written.operations, disk, None)
    tidy(state)
    return settled


@dataclass(frozen=True, slots=True)
class _Written:
    operations: list[Operation]
    becomes: str
    is_forward: bool


def _read(record: Path) -> _Written:
    try:
        value: dict[str, Any] = json.loads(record.read_text(encoding="utf-8", errors="surrogateescape"))
        operations = [Operation(**{**row, "kind": OperationKind(row["kind"])}) for row in value["operations"]]
        return _Written(operations, value["becomes"], is_forward=value["forward"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        stash = _stash_of(record.parent)
        raise NotRestored(
            f"a change of this environment was interrupted, and its record cannot be read: {error}\n"
            f"  what was moved away is kept in `{stash}`; the record is `{record}`",
            stash=str(stash),
            hint=f"Move what is in the stash back by hand, or install it again, then remove `{record}`",
        ) from error


def _restore(
    state: Path, operations: Sequence[Operation], disk: Operations, cause: BaseException | None
) -> None:
    """Undo what has run.  A second interrupt by the user does not stop it half way."""
    record = state / JOURNAL
    if not record.exists():
        return
    for attempt in (1, 2):
        try:
            lost = _undo(state, operations, disk)
            disk.rename(str(record), str(state / _FINISHED))
        except KeyboardInterrupt as error:  # noqa: PERF203 (it is tried twice at most)
            if attempt == 2:  # noqa: PLR2004 (the last of the two)
                raise _not_restored(state, error) from (cause or error)
        except Exception as error:  # noqa: BLE001 (whatever it was, the stash must be named)
            raise _not_restored(state, error) from (cause or error)
        else:
            break
    if lost:
        raise _lost(state, lost) from cause


def _finish(
    state: Path,
    operations: Sequence[Operation],
    disk: Operations,
    becomes: Path,
    cause: BaseException | None,
) -> None:
    """Run what is left of a change that cannot go back, and commit it."""
    record = state / JOURNAL
    if not record.exists():
        return
    try:
        _go_on(operations, disk)
        remove_tree(becomes.with_name(STASH))
        disk.rename(str(record), str(becomes))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (whatever it was, the record must be named)
        why = str(error) or type(error).__name__
        raise NotRestored(
            f"the change could not be finished, and there is no way back: {why}\n"
            f"  what is to be done is in `{record}`",
            stash=str(becomes.with_name(STASH)),
            hint="Once the cause is mended, the next colablock call on this environment does the rest",
        ) from (cause or error)


def _go_on(operations: Sequence[Operation], disk: Operations) -> None:
    for operation in operations:
        if operation.is_move:
            _settle(operation.source, operation.destination, _TEMPORARY, disk)
    # What goes out goes first: where something has come in, nothing is left to go, and its place is taken.
    has_come = any(operation.kind is OperationKind.IN and operation.has_run for operation in operations)
    for operation in operations:
        source, destination = operation.source, operation.destination
        if operation.kind is OperationKind.OUT:
            if not has_come and os.path.lexists(source) and not _move(source, destination, disk):
                _take_away(source, disk)
        elif operation.kind is OperationKind.IN:
            if not operation.has_run and not _move(source, destination, disk):
                raise OSError(errno.EXDEV, "the folder cannot be moved as a whole", source)
        elif operation.kind is OperationKind.MKDIR:
            _make(destination, operation.mode, disk)
        elif os.path.isdir(source):
            disk.rmdir(source)


def _make(folder: str, mode: int, disk: Operations) -> None:
    """Make a folder, or end the making of one: a recovery may have been killed before its permissions."""
    if not os.path.isdir(folder):
        disk.mkdir(folder, mode)
    elif stat.S_IMODE(os.stat(folder).st_mode) != mode:
        os.chmod(folder, mode)


def _take_away(folder: str, disk: Operations) -> None:
    for inner, folders, files in os.walk(folder, topdown=False):
        for name in files:
            disk.unlink(f"{inner}/{name}")
        for name in folders:
            path = f"{inner}/{name}"
            if os.path.islink(path):
                disk.unlink(path)
            else:
                disk.rmdir(path)
    disk.rmdir(folder)


def _lost(state: Path, paths: Sequence[str]) -> NotRestored:
    shown = [f"`{path}`" for path in paths[:_SHOWN]]
    more = [f"and {len(paths) - _SHOWN} more"] if len(paths) > _SHOWN else []
    stash = _stash_of(state)
    return NotRestored(
        "\n  ".join([f"all was put back but what is no longer in `{stash}`:", *shown, *more]),
        stash=str(stash),
        hint="Somebody took it away from there: install again the distributions that these belong to",
    )


def _not_restored(state: Path, error: BaseException) -> NotRestored:
    stash = _stash_of(state)
    return NotRestored(
        f"the environment could not be put back: {str(error) or type(error).__name__}\n"
        f"  what was moved away is kept in `{stash}`; `{state / JOURNAL}` says where it was",
        stash=str(stash),
        hint="Once the cause is mended, the next colablock call on this environment puts the rest back",
    )


def _stash_of(state: Path) -> Path:
    """Return the stash of the change that is under way: the one that no record tells of yet."""
    folders = [path for path in sorted(state.glob(f"{CHANGES}/*")) if not (path / RECORD).exists()]
    return folders[-1] / STASH if folders else state / CHANGES


def _undo(state: Path, operations: Sequence[Operation], disk: Operations) -> list[str]:
    """Move back what has run, and return the paths whose old content is not to be found."""
    for operation in operations:
        if operation.is_move:
            _settle(operation.source, operation.destination, _TEMPORARY, disk)
            _settle(operation.destination, operation.source, _TEMPORARY_BACK, disk)
    moves = [
        (position, operation.has_run) for position, operation in enumerate(operations) if operation.is_move
    ]
    moved = max((position for position, has_run in moves if has_run), default=-1)
    # Folders are made and removed up to the first move that has not run.
    reached = next((position for position, _ in moves if position > moved), len(operations))
    # They run in order: one that has not, before one that has, is one whose stash somebody emptied.
    lost = [operations[position].source for position, has_run in moves if position < moved and not has_run]
    for position in reversed(range(reached)):
        operation = operations[position]
        if operation.kind is OperationKind.MKDIR:
            # After the last move that ran, a folder may be somebody else's: only an empty one goes.
            _unmake(operation.destination, disk, aside=state / "aside" if position < moved else None)
        elif operation.kind is OperationKind.RMDIR:
            _make(operation.source, operation.mode, disk)
        elif os.path.lexists(operation.destination) and operation.destination not in lost:
            _move_back(operation, state / "aside", disk)
    return lost


def _settle(source: str, destination: str, suffix: str, disk: Operations) -> None:
    """End a copy that was cut short between *source* and *destination*."""
    temporary = destination + suffix
    if not os.path.lexists(temporary):
        return
    if os.path.lexists(source):
        disk.unlink(temporary)
    else:
        disk.rename(temporary, destination)


def _move_back(operation: Operation, aside: Path, disk: Operations) -> None:
    if os.path.lexists(operation.source):  # somebody else put something where our old file was
        _set_aside(operation.source, aside, disk)
    if not _move(operation.destination, operation.source, disk, suffix=_TEMPORARY_BACK):
        # It was renamed as a whole on its way here, so this is not a thing that happens by itself.
        raise OSError(errno.EXDEV, "the folder cannot be moved back as a whole", operation.destination)


def _unmake(path: str, disk: Operations, *, aside: Path | None) -> None:
    try:
        disk.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if aside is not None:  # what others put into a folder of ours since, such as bytecode
            _set_aside(path, aside, disk)


def _set_aside(path: str, aside: Path, disk: Operations) -> None:
    aside.mkdir(exist_ok=True)
    disk.rename(path, str(aside / str(len(list(aside.iterdir())))))


def _move(source: str, destination: str, disk: Operations, *, suffix: str = _TEMPORARY) -> bool:
    """Move by a rename, a file by a copy where that cannot be; False for a folder where it cannot be."""
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, "something stands in the way", destination)
    try:
        disk.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if os.path.isdir(source) and not os.path.islink(source):
            return False
        # Never both ends at once: has_run relies on it.  The copy is synced before the source goes.
        disk.copy(source, destination + suffix)
        disk.unlink(source)
        disk.rename(destination + suffix, destination)
    return True


def _expand(operation: Operation) -> list[Operation]:
    """Return the move of a folder as the moves of what is in it, and that of a file as it is."""
    source, destination = operation.source, operation.destination
    if not os.path.isdir(source) or os.path.islink(source):
        return [operation]
    mode = os.stat(source).st_mode & 0o7777
    steps = [Operation(kind=OperationKind.MKDIR, destination=destination, mode=mode)]
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            move = Operation(
                kind=operation.kind, source=entry.path, destination=f"{destination}/{entry.name}"
            )
            steps += _expand(move)
    return [*steps, Operation(kind=OperationKind.RMDIR, source=source, mode=mode)]


def tidy(state: Path) -> None:
    """Take away what a finished change leaves; what cannot be taken away now is tried again next time.

    Gigabytes take seconds to delete.  Nobody waits for more than a moment of
    that: a process of its own does the rest.
    """
    if (state / JOURNAL).exists():
        return
    leftovers = [state / "stage", state / "aside"]
    for change in state.glob(f"{CHANGES}/*"):
        if (change / UNDONE).exists():
            (change / RECORD).unlink(missing_ok=True)  # first, so that a rest of it counts for nothing
        if not (change / RECORD).exists():
            leftovers.append(change)
    _discard(state / _TRASH, leftovers)
    with suppress(OSError):
        for left in state.glob(f"{NEW}*"):  # a record that a killed process was writing
            left.unlink(missing_ok=True)
        (state / _FINISHED).unlink(missing_ok=True)
    with suppress(OSError):
        (state / CHANGES).rmdir()


def _discard(trash: Path, folders: Iterable[Path]) -> None:
    """Delete *folders*, which go into *trash* first: there no later change uses their names."""
    for folder in folders:
        if folder.is_dir():
            try:
                trash.mkdir(exist_ok=True)
                os.rename(folder, trash / f"{os.getpid()}-{time.monotonic_ns()}")
            except OSError:
                remove_tree(folder)
    if not trash.is_dir():
        return
    if _emptied(trash, time.monotonic() + _PATIENCE):
        remove_tree(trash)
    else:
        with suppress(OSError):
            start_session([sys.executable, "-I", "-c", _DELETE, str(trash)], environ=os.environ)


def _emptied(folder: Path, deadline: float) -> bool:
    """Delete what is in *folder* file by file; return False when the time is over before that ends."""
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


def remove_tree(folder: Path) -> None:
    """Take away a whole folder as far as that goes, folders without write permission included."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        for path, _, _ in os.walk(folder):
            with suppress(OSError):
                os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)
