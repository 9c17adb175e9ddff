"""A change of a whole runtime, stopped at every operation in every way: it leads back, or it was made."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from colablock.errors import NotRestored, RolledBack
from colablock.execute import apply_plan, stage
from colablock.journal import Journal, Operations, read_operations, recover
from colablock.locking import locked
from colablock.rollback import roll_back
from colablock.site import Site, read_site
from colablock.verify import Check
from tests.conftest import EVERY_FAULT
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
from tests.support.ground import Ground, make_ground
from tests.support.trees import Tree, differences

T = TypeVar("T")
Count = Counter[str]
Listing = Mapping[str, tuple[object, ...]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A way to be stopped.  With *stays* everything later fails too, of what *only* names."""

    error: Callable[[], BaseException]
    moment: Moment = Moment.BEFORE
    stays: bool = False
    only: frozenset[str] | None = None

    def disk(self, at: int) -> Faulty:
        return Faulty(at, self.error, moment=self.moment, stays=self.stays, only=self.only)


FAULTS = {
    "killed": Fault(error=die),
    "killed midway": Fault(error=die, moment=Moment.MIDWAY, only=WRITING),
    "killed after": Fault(error=die, moment=Moment.AFTER),
    "ENOSPC": Fault(error=error_of(errno.ENOSPC)),
    "ENOSPC midway": Fault(error=error_of(errno.ENOSPC), moment=Moment.MIDWAY, only=WRITING),
    "ENOSPC that stays": Fault(error=error_of(errno.ENOSPC), stays=True, only=WRITING | {"rename"}),
    "EACCES": Fault(error=error_of(errno.EACCES)),
    "EACCES that stays": Fault(error=error_of(errno.EACCES), stays=True),
    "EIO, yet done": Fault(error=error_of(errno.EIO), moment=Moment.AFTER),
}

OFTEN = ("killed", "ENOSPC", "EACCES")


# Where the environment stands


class Base(Protocol):
    """Where the environment stands, and how it gets back to where every point starts."""

    def keep(self) -> None:
        """Take what stands now as the start."""

    def reset(self, *, moved: bool) -> None:
        """Go back to the start; unless *moved*, everything stands as it did, by its listing."""


class Plain:
    """On a plain file system, where a folder is renamed as a whole."""

    def __init__(self, ground: Ground, mounts: ExitStack) -> None:
        self._real, self._start = ground.real, ground.folder / "start"
        if has_own_mounts():  # in memory: faster, and the one on disk stays as it was built
            for folder in (self._real, self._start):
                folder.mkdir(exist_ok=True)
                mounts.enter_context(mounted("tmpfs", folder, "size=1g,mode=755"))
        _fill(self._real, ground.pristine)

    def keep(self) -> None:
        _fill(self._start, self._real)

    def reset(self, *, moved: bool) -> None:
        if moved:
            _fill(self._real, self._start)


class Overlay:
    """As the lower layer of a mount, where a folder cannot be renamed and a file is copied up."""

    def __init__(self, ground: Ground, mounts: ExitStack) -> None:
        self._real, self._layers = ground.real, ground.folder / "layers"
        self._layers.mkdir(exist_ok=True)
        mounts.enter_context(mounted("tmpfs", self._layers, "size=1g"))
        self._mount = ExitStack()
        self.reset(moved=True)

    def keep(self) -> None:
        _fill(self._layers / "start", self._layers / "upper")

    def reset(self, *, moved: bool) -> None:  # noqa: ARG002 (what was copied up is there even so)
        self._mount.close()
        shutil.rmtree(self._layers / "work", ignore_errors=True)
        for name in ("start", "upper", "work"):
            (self._layers / name).mkdir(exist_ok=True)
        _fill(self._layers / "upper", self._layers / "start")
        layers = {"lowerdir": self._real, **{f"{n}dir": self._layers / n for n in ("upper", "work")}}
        options = ",".join(f"{name}={folder}" for name, folder in layers.items())
        self._mount.enter_context(mounted("overlay", self._real, options))


def _fill(folder: Path, source: Path) -> None:
    """Let *folder* hold what *source* holds, and nothing else."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    subprocess.run(["cp", "--archive", f"{source}/.", str(folder)], check=True)  # noqa: S607


# What is done there


class Change(Protocol):
    def __call__(self, disk: Operations) -> None:
        """Change the environment from the start to the end."""


class Applying:
    """All of an apply: staged by uv each time."""

    def __init__(self, ground: Ground, _site: Site) -> None:
        self._ground = ground
        self._snapshot = ground.snapshot()

    def __call__(self, disk: Operations, prove: Callable[[], object] = tuple) -> None:
        def checks() -> tuple[Check, ...]:
            prove()
            return ()

        ground = self._ground
        apply_plan(
            ground.plan, self._snapshot, ground.files, prove=checks, environ=os.environ, disk=disk, wait=0
        )


class Swapping:
    """What an apply does once it has staged, with a stage that is copied."""

    def __init__(self, ground: Ground, site: Site) -> None:
        self._site = site
        self._stage = ground.folder / "staged"
        if not self._stage.exists():
            stage(ground.plan, ground.files, python=ground.python, into=self._stage, environ=os.environ)
        in_a_child(partial(Applying(ground, site), Operations(), prove=die))
        record = site.state / "journal.json"
        self._facts: dict[str, Any] = json.loads(record.read_text())
        self._operations = read_operations(self._facts)
        assert recover(site)

    def __call__(self, disk: Operations) -> None:
        with locked(self._site, wait=0) as state:
            shutil.copytree(self._stage, state / "stage", symlinks=True)
            folder = state / "changes" / "0001"
            (folder / "stash").mkdir(parents=True)
            record = folder / "record.json"
            with Journal(state, self._operations, becomes=record, facts=self._facts, disk=disk) as journal:
                journal.swap()
                journal.commit()


class RollingBack:
    """All of a rollback."""

    def __init__(self, ground: Ground, site: Site) -> None:
        self._site = site
        Applying(ground, site)(Operations())
        self._snapshot = ground.snapshot()

    def __call__(self, disk: Operations) -> None:
        roll_back(self._site, look=lambda: self._snapshot, disk=disk, wait=0)


CHANGES: Mapping[str, Callable[[Ground, Site], Change]] = {
    "apply": Applying,
    "swap": Swapping,
    "rollback": RollingBack,
}


class Scene:
    """A change that is stopped again and again, each time from the same start."""

    def __init__(self, ground: Ground, base: Base, change: str) -> None:
        self.base = base
        self.site = read_site(ground.python, os.environ)
        self.change = CHANGES[change](ground, self.site)
        base.keep()
        base.reset(moved=True)
        self._tree = Tree(ground.real)
        self.before = self._tree.listing()
        disk = Faulty(-1, die)
        self.change(disk)
        self.operations = tuple(disk.names)
        self.after = self._tree.listing()
        assert differences(self.before, self.after)
        self.base.reset(moved=True)

    def check(self, *, forward: bool, about: object) -> None:
        """Compare every path with what is to be there, and make ready for the next time."""
        expected: Listing = self.before
        found: Listing = self._tree.listing()
        if forward:
            expected, found = self._without_new_times(self.after), self._without_new_times(found)
        wrong = differences(expected, found)
        assert not wrong, f"{about}: {len(wrong)} paths, such as\n" + "\n".join(wrong[:10])
        self.base.reset(moved=forward)

    def _without_new_times(self, found: Listing) -> Listing:
        return {path: what if self.before.get(path) == what else what[:4] for path, what in found.items()}

    def stop(self, name: str, at: int) -> bool:
        """Stop the change at one operation and do as the next call does; whether the change was made."""
        fault, is_last = FAULTS[name], at == len(self.operations) - 1
        about = f"{name} at operation {at} of {len(self.operations)}, {self.operations[at]}"
        if fault.error is die:
            assert in_a_child(partial(self.change, fault.disk(at))) < 0, about
            is_made = is_last and fault.moment is Moment.AFTER
            has_begun = at > 0 or fault.moment is Moment.AFTER
            assert recover(self.site) is (has_begun and not is_made), about
        else:
            is_made = self._fail(fault, at)
            assert fault.stays or is_made is (is_last and fault.moment is Moment.AFTER), about
        self.check(forward=is_made, about=about)
        return is_made

    def _fail(self, fault: Fault, at: int) -> bool:
        try:
            self.change(fault.disk(at))
        except NotRestored as error:
            self._mend(fault, Path(error.stash))
        except (OSError, RolledBack):
            assert not (self.site.state / "journal.json").exists()
        else:
            return True
        return False

    def _mend(self, fault: Fault, stash: Path) -> None:
        """Recover from a failed undo, when the cause is mended and not before."""
        assert fault.stays, "a failure that is over kept the change from being undone"
        assert stash.is_dir()
        with pytest.raises(NotRestored):
            recover(self.site, disk=fault.disk(0))
        assert recover(self.site)


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    ground = make_ground(tmp_path_factory.mktemp("ground"))
    assert len(list(ground.site.glob("*.dist-info"))) >= 671
    return ground


def on(ground: Ground, base: str, work: Callable[[Base], T]) -> T:
    """Do *work* where the environment stands on a *base* of that name."""
    if base == "overlay" and not has_own_mounts():
        pytest.skip("a process here may not mount anything")

    def in_mounts() -> T:
        with ExitStack() as mounts:
            return work((Plain if base == "plain" else Overlay)(ground, mounts))

    return in_own_mounts(in_mounts) if has_own_mounts() else in_mounts()


def points(operations: Sequence[str], every: int | None) -> Iterator[tuple[str, int]]:
    """Yield faults and positions: a sample, or with *every* each one, some faults at each such one only.

    Each fault comes to other places than the one before it, and each kind of
    operation is among the places of those that happen most.
    """
    for number, (name, fault) in enumerate(FAULTS.items()):
        only = fault.only if fault.moment is Moment.MIDWAY else None
        places = [at for at, kind in enumerate(operations) if only is None or kind in only]
        step = len(places)
        if every is not None:
            step = every if name in OFTEN else max(every, len(places) // 40)
        chosen = set(places[number * step // len(FAULTS) :: step])
        if fault.moment is Moment.AFTER:
            chosen.add(places[-1])  # the commit
        yield from ((name, at) for at in sorted(chosen))


@pytest.fixture
def is_thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption(EVERY_FAULT))


# Of all operations each one, but where it takes long each third by one fault, the next by another.
EVERY = {
    ("plain", "swap"): 1,
    ("plain", "rollback"): 1,
    ("plain", "apply"): 10,
    ("overlay", "swap"): 3,
    ("overlay", "rollback"): 3,
    ("overlay", "apply"): 50,
}


@pytest.mark.parametrize(("base", "change"), EVERY)
def test_a_change_that_is_stopped_leads_back_or_was_made(
    *,
    base: str,
    change: str,
    ground: Ground,
    is_thorough: bool,
    record_property: Callable[[str, object], None],
) -> None:
    every = EVERY[base, change] if is_thorough else None

    def stop(base: Base) -> Count:
        scene = Scene(ground, base, change)
        return Counter(
            f"{fault} at a {scene.operations[at]}, went {'forward' if scene.stop(fault, at) else 'back'}"
            for fault, at in points(scene.operations, every)
        )

    for name, count in on(ground, base, stop).items():
        record_property(f"stopped: {change} on {base}, {name}", count)
