"""A change of a whole runtime that is interrupted again and again, and the ways to interrupt it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from colablock._common.reporter import Reporter
from colablock.environment.site import Site, read_site
from colablock.errors import AppliedNotProven, NotRestored, RolledBack
from colablock.transaction.apply import apply_plan
from colablock.transaction.disk_operations import Operation, OperationKind, Operations
from colablock.transaction.journal import Journal
from colablock.transaction.recovery import RecoveryOutcome, recover
from colablock.transaction.rollback import roll_back
from colablock.transaction.site_lock import locked
from colablock.transaction.staging import stage
from colablock.verification.verify import Check
from tests.support.faults import (
    WRITING,
    Faulty,
    Moment,
    die,
    error_of,
    has_own_mounts,
    in_a_child,
    in_own_mounts,
    mounted,
)
from tests.support.ground import Ground, copy_tree
from tests.support.trees import StrictListing, Tree, differences, timeless

__all__ = [
    "CHANGES",
    "FAULTS",
    "Applying",
    "Base",
    "Scene",
    "Watch",
    "on",
    "points",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """A way to interrupt a change.  With *stays* every later operation that *only* names fails too."""

    error: Callable[[], BaseException]
    moment: Moment = Moment.BEFORE
    stays: bool = False
    only: frozenset[str] | None = None

    def places(self, operations: Sequence[str]) -> list[int]:
        """Return the positions at which it applies."""
        only = self.only if self.moment is Moment.MIDWAY else None
        return [at for at, name in enumerate(operations) if only is None or name in only]

    def disk(self, at: int) -> Faulty:
        """Return operations that fail at that position."""
        return Faulty(at, self.error, moment=self.moment, stays=self.stays, only=self.only)


FAULTS = {
    "killed": Interruption(error=die),
    "killed midway": Interruption(error=die, moment=Moment.MIDWAY, only=WRITING),
    "killed after": Interruption(error=die, moment=Moment.AFTER),
    "ENOSPC": Interruption(error=error_of(errno.ENOSPC)),
    "ENOSPC midway": Interruption(error=error_of(errno.ENOSPC), moment=Moment.MIDWAY, only=WRITING),
    "ENOSPC that stays": Interruption(error=error_of(errno.ENOSPC), stays=True, only=WRITING | {"rename"}),
    "EACCES": Interruption(error=error_of(errno.EACCES)),
    "EACCES that stays": Interruption(error=error_of(errno.EACCES), stays=True),
    "EIO, yet done": Interruption(error=error_of(errno.EIO), moment=Moment.AFTER),
}

OFTEN = ("killed", "ENOSPC", "EACCES")


# File systems


class Base(Protocol):
    """The file system of the environment, and the way back to the initial state."""

    def keep(self) -> None:
        """Keep the current state as the initial one."""

    def reset(self, *, moved: bool) -> None:
        """Restore the initial state.  Unless *moved*, the listing says that nothing changed."""


class Plain:
    """A plain file system: a folder is renamed as a whole."""

    def __init__(self, ground: Ground, mounts: ExitStack) -> None:
        self._real, self._start = ground.real, ground.folder / "start"
        if has_own_mounts():  # in memory: faster, and the original stays as it was built
            for folder in (self._real, self._start):
                folder.mkdir(exist_ok=True)
                mounts.enter_context(mounted("tmpfs", folder, "size=1g,mode=755"))
        copy_tree(ground.pristine, self._real)

    def keep(self) -> None:
        copy_tree(self._real, self._start)

    def reset(self, *, moved: bool) -> None:
        if moved:
            copy_tree(self._start, self._real)


class Overlay:
    """The lower layer of an overlay: a folder cannot be renamed, and a file is copied up."""

    def __init__(self, ground: Ground, mounts: ExitStack) -> None:
        self._real, self._layers = ground.real, ground.folder / "layers"
        self._layers.mkdir(exist_ok=True)
        mounts.enter_context(mounted("tmpfs", self._layers, "size=1g"))
        self._mount = ExitStack()
        self.reset(moved=True)

    def keep(self) -> None:
        copy_tree(self._layers / "upper", self._layers / "start")

    def reset(self, *, moved: bool) -> None:  # noqa: ARG002 (files are copied up in any case)
        self._mount.close()
        shutil.rmtree(self._layers / "work", ignore_errors=True)
        for name in ("start", "upper", "work"):
            (self._layers / name).mkdir(exist_ok=True)
        copy_tree(self._layers / "start", self._layers / "upper")
        layers = {"lowerdir": self._real, **{f"{n}dir": self._layers / n for n in ("upper", "work")}}
        options = ",".join(f"{name}={folder}" for name, folder in layers.items())
        self._mount.enter_context(mounted("overlay", self._real, options))


# Changes


class Change(Protocol):
    def __call__(self, disk: Operations) -> None:
        """Change the environment."""


class Applying:
    """A whole apply, staged by uv each time."""

    def __init__(self, ground: Ground, _site: Site) -> None:
        self._ground = ground
        self._snapshot = ground.snapshot()

    def __call__(
        self, disk: Operations, *, prove: Callable[[], object] = tuple, reporter: Reporter | None = None
    ) -> None:
        def checks(_: object) -> tuple[Check, ...]:
            prove()
            return ()

        ground = self._ground
        apply_plan(
            ground.plan,
            self._snapshot,
            ground.files,
            prove=checks,
            environ=os.environ,
            reporter=reporter,
            disk=disk,
            wait=0,
        )


class Swapping:
    """The part of an apply after staging, with a copied stage; *undo* as in `Journal`."""

    def __init__(self, ground: Ground, site: Site, *, undo: bool = True) -> None:
        self._site = site
        self._undo = undo
        self._stage = ground.folder / "staged"
        if not self._stage.exists():
            stage(ground.plan, ground.files, python=ground.python, into=self._stage, environ=os.environ)
        assert in_a_child(partial(Applying(ground, site), Faulty(1, die))) < 0
        self._facts: dict[str, Any] = json.loads((site.state / "journal.json").read_text())
        rows = self._facts.pop("operations")
        self._operations = [Operation(**{**row, "kind": OperationKind(row["kind"])}) for row in rows]
        for own in ("forward", "is_dropped"):
            del self._facts[own]
        assert recover(site) is RecoveryOutcome.UNDONE

    def __call__(self, disk: Operations) -> None:
        with locked(self._site, wait=0) as state:
            shutil.copytree(self._stage, state / "stage", symlinks=True)
            folder = state / "changes" / "0001"
            (folder / "stash").mkdir(parents=True)
            with Journal(
                state,
                self._operations,
                becomes=folder / "record.json",
                facts=self._facts,
                undo=self._undo,
                disk=disk,
            ) as journal:
                journal.run()
                journal.commit()


class RollingBack:
    """A whole rollback."""

    def __init__(self, ground: Ground, site: Site) -> None:
        self._site = site
        Applying(ground, site)(Operations())
        self._snapshot = ground.snapshot()

    def __call__(self, disk: Operations) -> None:
        roll_back(self._site, look=lambda: self._snapshot, disk=disk, wait=0)


CHANGES: Mapping[str, Callable[[Ground, Site], Change]] = {
    "apply": Applying,
    "swap": Swapping,
    "for good": partial(Swapping, undo=False),
    "rollback": RollingBack,
}


class Watch:
    """The listing of an environment before a change and after it, with bytes, owners and times."""

    def __init__(self, ground: Ground, base: Base, change: Callable[[], object]) -> None:
        self._base = base
        self._tree = Tree(ground.real)
        self._tree.listing()  # waits for a background deletion, which must not be part of the initial state
        base.keep()
        base.reset(moved=True)
        self.before = self._tree.listing()
        change()
        self.after = self._tree.listing()
        assert differences(self.before, self.after)
        base.reset(moved=True)

    def check(self, *, forward: bool, about: object) -> None:
        """Compare every path with the expected state, and restore the initial one."""
        expected, found = self.before, self._tree.listing()
        if forward:
            expected, found = self._without_new_times(self.after), self._without_new_times(found)
        wrong = differences(expected, found)
        assert not wrong, f"{about}: {len(wrong)} paths, such as\n" + "\n".join(wrong[:10])
        self._base.reset(moved=forward)

    def _without_new_times(self, found: StrictListing) -> StrictListing:
        """Drop the times of the files that the change brought: they differ each time."""

        def without_time(path: str, what: tuple[object, ...]) -> tuple[object, ...]:
            content = what[3] if len(what) > 3 else None
            return (*what[:3], timeless(path, content)) if isinstance(content, bytes) else what[:4]

        return {
            path: what if self.before.get(path) == what else without_time(path, what)
            for path, what in found.items()
        }


class Scene:
    """A change that is interrupted again and again, each time from the same initial state."""

    def __init__(self, ground: Ground, base: Base, change: str) -> None:
        self.site = read_site(ground.python, os.environ)
        self.change = CHANGES[change](ground, self.site)
        disk = Faulty(-1, die)
        self.watch = Watch(ground, base, partial(self.change, disk))
        self.operations = tuple(disk.names)
        # From this operation on, a change without undo is finished instead: its record is written again.
        writes = [at for at, name in enumerate(self.operations) if name == "write"]
        self._turns = writes[1] if change == "for good" else len(self.operations)

    def stop(self, name: str, at: int) -> bool:
        """Interrupt the change at one operation, and recover; return whether the change was made."""
        fault = FAULTS[name]
        is_made = self._is_made(fault, at)
        about = f"{name} at operation {at} of {len(self.operations)}, {self.operations[at]}"
        if fault.error is die:
            assert in_a_child(partial(self.change, fault.disk(at))) < 0, about
            self._recover(is_made=is_made)
        else:
            self._fail(fault, at, is_made=is_made)
        self.watch.check(forward=is_made, about=about)
        return is_made

    def _is_made(self, fault: Interruption, at: int) -> bool:
        if at == self._turns and fault.moment is Moment.AFTER:
            return fault.error is die  # written, but a living process can still go back
        return at > self._turns or (at == len(self.operations) - 1 and fault.moment is Moment.AFTER)

    def _recover(self, *, is_made: bool) -> None:
        has_begun = (self.site.state / "journal.json").exists()
        settled = RecoveryOutcome.FINISHED if is_made else RecoveryOutcome.UNDONE
        assert recover(self.site) is (settled if has_begun else None)

    def _fail(self, fault: Interruption, at: int, *, is_made: bool) -> None:
        disk = fault.disk(at)
        try:
            self.change(disk)
        except NotRestored as error:
            assert fault.stays, "a failure that is over kept the change from being undone"
            self._mend(disk, Path(error.stash), is_made=is_made)
        except (OSError, RolledBack, AppliedNotProven):
            assert not (self.site.state / "journal.json").exists()
        else:
            assert is_made

    def _mend(self, disk: Faulty, stash: Path, *, is_made: bool) -> None:
        """Recover from a failed undo, which works only once the cause is gone."""
        assert stash.is_dir() or is_made
        with pytest.raises(NotRestored):
            recover(self.site, disk=disk)
        self._recover(is_made=is_made)

    def recovery(self, first: int) -> tuple[str, ...]:
        """Return the operations of the recovery after a kill at the operation *first*."""
        disk = Faulty(-1, die)
        self._kill(first)
        assert recover(self.site, disk=disk) is not None
        self.watch.check(forward=first > self._turns, about=f"killed at operation {first}")
        return tuple(disk.names)

    def stop_recovery(self, first: int, name: str, at: int) -> None:
        """Kill the change at *first*, interrupt its recovery at one operation, and recover again."""
        fault = FAULTS[name]
        self._kill(first)
        if fault.error is die:
            assert in_a_child(partial(recover, self.site, disk=fault.disk(at))) < 0
        else:
            with pytest.raises(NotRestored) as caught:
                recover(self.site, disk=fault.disk(at))
            assert Path(caught.value.stash).is_dir() or first > self._turns
        assert recover(self.site) is not None
        about = f"killed at operation {first}, then {name} at operation {at} of the recovery"
        self.watch.check(forward=first > self._turns, about=about)

    def _kill(self, at: int) -> None:
        assert in_a_child(partial(self.change, FAULTS["killed"].disk(at))) < 0


def on(ground: Ground, base: str, work: Callable[[Base], T]) -> T:
    """Run *work* with the environment on the *base* of that name."""
    if base == "overlay" and not has_own_mounts():
        pytest.skip("a process here may not mount anything")

    def in_mounts() -> T:
        with ExitStack() as mounts:
            return work((Plain if base == "plain" else Overlay)(ground, mounts))

    return in_own_mounts(in_mounts) if has_own_mounts() else in_mounts()


def points(operations: Sequence[str], every: int | None, turn: int) -> Iterator[tuple[str, int]]:
    """Yield faults and positions: one in *every* of all, or without it one each of some faults.

    Those of OFTEN come at *every* position in turn, the others at 40 of them.
    Which faults a sample has goes by *turn*.
    """
    for number, (name, fault) in enumerate(FAULTS.items()):
        places = fault.places(operations)
        if every is None:
            if number % 3 != turn % 3:
                continue
            step = len(places)
        else:
            step = every if name in OFTEN else max(every, len(places) // 40)
        chosen = set(places[number * step // len(FAULTS) :: max(step, 1)])
        if fault.moment is Moment.AFTER:
            chosen.add(places[-1])  # the commit
        yield from ((name, at) for at in sorted(chosen))
