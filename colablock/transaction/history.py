"""The changes that colablock has made to an environment, and their stashes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import InvalidInput, NotFound, Refused
from colablock.planning.plan import Action, Step
from colablock.transaction.disk_operations import Operation, OperationKind, Operations, remove_tree
from colablock.transaction.disk_space import tree_size
from colablock.transaction.recovery import CHANGES, RECORD, STASH, UNDONE

__all__ = ["Change", "DoneStep", "differences", "drop", "facts_of", "next_folder", "read_history"]


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

    *before* are the versions before the change.  *runtime* is the recorded
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

    @property
    def stash(self) -> Path:
        """The folder of the old files."""
        return self.folder / STASH

    @property
    def size(self) -> int:
        """The bytes in the stash."""
        return tree_size(self.stash)


def next_folder(state: Path) -> Path:
    """Return the path for the folder of the next change, which does not exist yet."""
    numbers = [int(path.name) for path in state.glob(f"{CHANGES}/*") if path.name.isdecimal()]
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


def read_history(state: Path) -> tuple[Change, ...]:
    """Return the changes that are in effect, oldest first.  Raises InvalidInput for an invalid record."""
    return tuple(_read(folder) for folder in _folders(state))


def drop(state: Path, number: int | None, disk: Operations | None = None) -> tuple[Change, ...]:
    """Drop the stashes up to change *number* (default: all), and return these changes.

    They stay in the history but cannot be undone any more.  Raises NotFound if
    there is no such change.
    """
    found = read_history(state)
    if number is not None and number not in {change.number for change in found}:
        raise NotFound(f"there is no change {number}", hint="`colablock history` lists them")
    dropped = [change for change in found if number is None or change.number <= number]
    for change in dropped:
        try:
            record = {**_json(change.folder / RECORD), "operations": [], "stashed": {}, "is_dropped": True}
            (disk or Operations()).write(str(change.folder / RECORD), json.dumps(record))
        except OSError as error:
            raise Refused(f"`{change.folder}` cannot be written: {error.strerror}") from error
        remove_tree(change.stash)
    return tuple(dropped)


def differences(before: Mapping[NormalizedName, str], now: Mapping[NormalizedName, str]) -> list[str]:
    """Return the differences between the versions *before* and *now*, one sentence each."""
    gone = [f"`{name}` {before[name]} is gone" for name in sorted(before.keys() - now.keys())]
    moved = [
        f"`{name}` is {now[name]}, and was {before[name]}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]
    return gone + moved + [f"`{name}` {now[name]} is new" for name in sorted(now.keys() - before.keys())]


def _folders(state: Path) -> Iterator[Path]:
    for folder in sorted(state.glob(f"{CHANGES}/*")):
        if (folder / RECORD).exists() and not (folder / UNDONE).exists():
            yield folder


def _read(folder: Path) -> Change:
    try:
        record = _json(folder / RECORD)
        return Change(
            number=int(folder.name),
            folder=folder,
            when=record["when"],
            matrix=record["matrix"],
            stack=record["stack"],
            lock=record["lock"],
            steps=tuple(DoneStep(**{**row, "action": Action(row["action"])}) for row in record["steps"]),
            before={NormalizedName(name): version for name, version in record["before"].items()},
            runtime=record["runtime"],
            stashed=dict(record["stashed"]),
            placed=tuple(
                row["destination"] for row in record["operations"] if row["kind"] == OperationKind.IN.value
            ),
            created=tuple(record["created"]),
            applied_before=record["applied_before"],
            is_dropped=record.get("is_dropped", False),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidInput(
            f"`{folder / RECORD}` is not a valid record of a change: {error}",
            hint=f"The old files of that change are in `{folder / STASH}`",
        ) from error


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    return dict(value)
