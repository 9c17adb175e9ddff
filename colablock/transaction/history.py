"""The records of the changes that colablock has made to an environment, and their stashes.

Whoever can write to an environment can write these files, too, and so can a wheel.  A record is
therefore read only if every path in it lies in that environment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from colablock._common.decoding import Malformed, decode, is_plain_name, read_bounded
from colablock._common.text import command_line
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.site import JOURNAL, Site, SiteBounds, python_words
from colablock.errors import InvalidInput, NotFound, Refused
from colablock.planning.plan import Action, Step
from colablock.transaction.disk_operations import Operation, OperationKind, Operations, remove_tree
from colablock.transaction.disk_space import tree_size

__all__ = [
    "CHANGES",
    "RECORD",
    "STAGE",
    "STASH",
    "UNDONE",
    "BegunChange",
    "Change",
    "DamagedChange",
    "DoneStep",
    "JournalFile",
    "damaged_changes",
    "drop",
    "facts_of",
    "interrupted_change",
    "misplaced",
    "next_folder",
    "read_changes",
    "read_history",
    "read_journal",
]

CHANGES = "changes"
STAGE = "stage"
STASH = "stash"
RECORD = "record.json"
UNDONE = "undone.json"

_SCHEMA = 1
_NUMBER = re.compile(r"[0-9]{1,18}")
_BECOMES = re.compile(rf"{CHANGES}/{_NUMBER.pattern}/(?:{re.escape(RECORD)}|{re.escape(UNDONE)})")
_LARGEST_MODE = 0o7777
_LONGEST_TIME = 64  # characters of a time in ISO 8601


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFile:
    """What recovery reads of a journal; see `journal.Journal`."""

    operations: tuple[Operation, ...]
    becomes: str
    forward: bool
    schema: int = _SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChangeFile:
    """What the history reads of ``record.json``; see `Change`."""

    when: str
    matrix: str
    stack: str
    lock: str | None
    steps: tuple[DoneStep, ...]
    before: Mapping[NormalizedName, str]
    runtime: str | None
    stashed: Mapping[str, str]
    created: tuple[str, ...]
    operations: tuple[Operation, ...]
    applied_before: str | None
    is_dropped: bool = False
    origins: Mapping[NormalizedName, str] = field(default_factory=dict)
    schema: int = _SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunChange:
    """What the journal of an apply tells that has not been committed; see `Change`."""

    becomes: str
    when: str
    matrix: str
    steps: tuple[DoneStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneStep:
    """One step of a committed change."""

    action: Action
    name: NormalizedName
    previous: str | None
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One committed change of an environment.

    *before* are the versions before the change, and *origins* the URLs (without credentials) of those
    distributions that came from a direct reference (PEP 610) then.  *runtime* is the recorded
    runtime with this state, if there is one.  *stashed* maps each entry of the
    stash to its original path.  *placed* are the paths of new files and folders,
    *created* the folders that the change created.
    """

    number: int
    folder: Path
    when: str  # UTC, ISO 8601
    matrix: str
    stack: str  # sha256 (hex) of the names and versions of the stack
    lock: str | None  # sha256 (hex) of the lock file that gave the pins
    steps: tuple[DoneStep, ...]
    before: Mapping[NormalizedName, str] = field(repr=False)
    runtime: str | None
    stashed: Mapping[str, str] = field(repr=False)
    placed: tuple[str, ...] = field(repr=False)
    created: tuple[str, ...] = field(repr=False)
    applied_before: str | None = field(repr=False)  # the apply record of the matrix before this change
    is_dropped: bool
    origins: Mapping[NormalizedName, str] = field(default_factory=dict, repr=False)

    @property
    def stash(self) -> Path:
        """The folder of the old files."""
        return self.folder / STASH

    @property
    def size(self) -> int:
        """The bytes in the stash."""
        return tree_size(self.stash).total

    @property
    def shared(self) -> int:
        """Those of the bytes in the stash that dropping it does not free: others have links to the files."""
        return tree_size(self.stash).shared


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedChange:
    """A committed change whose record cannot be read; *fault* says why."""

    number: int
    file: Path
    fault: str

    def error(self) -> InvalidInput:
        """Return the error that names the file."""
        return InvalidInput(
            f"`{self.file}` is not a valid record of a change: {self.fault}",
            hint=f"The old files of that change are in `{self.file.with_name(STASH)}`",
        )


def next_folder(state: Path) -> Path:
    """Return the path for the folder of the next change, which does not exist yet."""
    numbers = [int(path.name) for path in state.glob(f"{CHANGES}/*") if _NUMBER.fullmatch(path.name)]
    return state / CHANGES / f"{max(numbers, default=0) + 1:04}"


def facts_of(
    steps: Sequence[Step],
    operations: Sequence[Operation],
    **more: object,
) -> dict[str, object]:
    """Return the facts that the journal records for the history and for a later undo.

    *more* are the other fields of `Change` in their written form.
    """
    return {
        **more,
        "steps": [
            {
                "action": step.action.value,
                "name": step.name,
                "previous": step.previous,
                "version": step.version,
            }
            for step in steps
        ],
        "stashed": {
            os.path.basename(operation.destination): operation.source  # noqa: PTH119
            for operation in operations
            if operation.kind is OperationKind.OUT
        },
        "created": [
            operation.destination
            for operation in operations
            if operation.kind is OperationKind.MKDIR
            or (operation.kind is OperationKind.IN and os.path.isdir(operation.source))  # noqa: PTH112
        ],
    }


def read_history(site: Site) -> tuple[Change, ...]:
    """Return the changes that are in effect, oldest first, without those of `damaged_changes`."""
    return read_changes(site)[0]


def damaged_changes(site: Site) -> tuple[DamagedChange, ...]:
    """Return the changes that are in effect and whose record cannot be read, oldest first."""
    return read_changes(site)[1]


def read_changes(site: Site) -> tuple[tuple[Change, ...], tuple[DamagedChange, ...]]:
    """Return what `read_history` and `damaged_changes` return."""
    found = tuple(_changes(site))
    changes = tuple(one for one in found if isinstance(one, Change))
    return changes, tuple(one for one in found if isinstance(one, DamagedChange))


def drop(site: Site, number: int | None, disk: Operations | None = None) -> tuple[Change, ...]:
    """Drop the stashes up to change *number* (default: all), and return these changes.

    They stay in the history but cannot be undone any more.  A change whose
    record is damaged keeps its stash.  Raises NotFound if there is no such change.
    """
    found, damaged = read_changes(site)
    for one in damaged:
        if one.number == number:
            raise one.error()
    if number is not None and number not in {change.number for change in found}:
        listing = command_line("history", *python_words(site.python, site.prefix))
        raise NotFound(f"there is no change {number}", hint=f"`{listing}` lists them")
    dropped = [change for change in found if number is None or change.number <= number]
    for change in dropped:
        file = change.folder / RECORD
        try:
            record = {**decode(read_bounded(file), dict, by_python=True), "operations": [], "stashed": {}}
            (disk or Operations()).write(str(file), json.dumps({**record, "is_dropped": True}))
        except OSError as error:
            raise Refused(f"`{change.folder}` cannot be written: {error.strerror}") from error
        remove_tree(change.stash)
    return tuple(dropped)


def read_journal(path: Path, site: Site) -> JournalFile:
    """Return the journal in *path*.  Raises OSError, and Malformed also for a path outside of *site*."""
    journal = decode(read_bounded(path), JournalFile, by_python=True)
    _check_schema(journal.schema)
    bounds = SiteBounds(site)
    record = str(site.state / journal.becomes)
    if not (_BECOMES.fullmatch(journal.becomes) and bounds.in_state(record, CHANGES)):
        raise Malformed(f"`{journal.becomes}` is not the path of a record")
    wrong = misplaced(bounds, journal.operations)
    if wrong is not None:
        raise _outside(wrong, site)
    return journal


def interrupted_change(site: Site) -> BegunChange | None:
    """Return the apply whose journal is still there; None if there is none, or it was an undo."""
    try:
        begun = decode(read_bounded(site.state / JOURNAL), BegunChange, by_python=True)
    except (OSError, Malformed):
        return None
    is_ours = is_plain_name(begun.matrix) and len(begun.when) < _LONGEST_TIME
    return begun if is_ours and begun.becomes.endswith(f"/{RECORD}") else None


def misplaced(bounds: SiteBounds, operations: Iterable[Operation]) -> str | None:
    """Return the first path in *operations* that is not where a change of the site has its files, or None."""
    for operation in operations:
        source, destination = operation.source, operation.destination
        public = source if operation.kind in (OperationKind.OUT, OperationKind.RMDIR) else destination
        if not 0 <= operation.mode <= _LARGEST_MODE:
            return public
        if not operation.is_move and _is_private(bounds, public):
            continue  # of a folder whose files are moved one by one
        if not bounds.in_site(public):
            return public
        private = destination if operation.kind is OperationKind.OUT else source
        if operation.is_move and not _is_private(bounds, private):
            return private
    return None


def _is_private(bounds: SiteBounds, path: str) -> bool:
    """Whether *path* lies in the stash of a change, or in the stage."""
    _, _, folder, number, *_ = [*path[len(bounds.site.data) :].split("/"), "", "", ""]
    if folder == STAGE:
        return bounds.in_state(path, STAGE)
    return bool(_NUMBER.fullmatch(number)) and bounds.in_state(path, CHANGES, number, STASH)


def _changes(site: Site) -> Iterator[Change | DamagedChange]:
    bounds = SiteBounds(site)
    for folder in sorted(site.state.glob(f"{CHANGES}/*")):
        file = folder / RECORD
        if not _NUMBER.fullmatch(folder.name) or not os.path.lexists(file) or (folder / UNDONE).exists():
            continue
        try:
            if not bounds.in_state(str(file), CHANGES, folder.name):
                raise _outside(str(file), site)
            yield _read(folder, bounds)
        except OSError as error:
            yield DamagedChange(number=int(folder.name), file=file, fault=error.strerror or str(error))
        except Malformed as error:
            yield DamagedChange(number=int(folder.name), file=file, fault=str(error))


def _read(folder: Path, bounds: SiteBounds) -> Change:
    """Return the change in *folder*.  Raises OSError and Malformed."""
    record = decode(read_bounded(folder / RECORD), _ChangeFile, by_python=True)
    _check_schema(record.schema)
    placed = tuple(row.destination for row in record.operations if row.kind is OperationKind.IN)
    for name in record.stashed:
        if not is_plain_name(name):
            raise Malformed(f"`{name}` is not the name of a file in its stash")
    for path in (*record.stashed.values(), *placed, *record.created):
        if not bounds.in_site(path):
            raise _outside(path, bounds.site)
    return Change(
        number=int(folder.name),
        folder=folder,
        when=record.when,
        matrix=record.matrix,
        stack=record.stack,
        lock=record.lock,
        steps=record.steps,
        before=record.before,
        runtime=record.runtime,
        stashed=record.stashed,
        placed=placed,
        created=record.created,
        applied_before=record.applied_before,
        is_dropped=record.is_dropped,
        origins=record.origins,
    )


def _check_schema(schema: int) -> None:
    if schema != _SCHEMA:
        raise Malformed(f"it has schema {schema}, and this version reads {_SCHEMA}")


def _outside(path: str, site: Site) -> Malformed:
    return Malformed(f"`{path}` is outside of the environment `{site.prefix}`")
