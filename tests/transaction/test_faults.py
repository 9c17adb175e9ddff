"""A change of a runtime, stopped at every operation: it is undone, or it is complete.

With ``--every-fault`` it is a whole runtime, and each operation is stopped.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.site import read_site
from colablock.errors import ExitCode, Refused, RolledBack, Unmet
from colablock.transaction.disk_operations import Operations
from colablock.transaction.recovery import recover
from colablock.transaction.rollback import roll_back
from tests.conftest import EVERY_FAULT
from tests.support.faults import Faulty, die, has_own_mounts, in_a_child, in_own_mounts, mounted
from tests.support.ground import Ground, copy_tree, make_ground
from tests.support.paths import ROOT
from tests.support.scenes import FAULTS, Applying, Base, Scene, Watch, on, points
from tests.support.trees import Tree, differences

pytestmark = pytest.mark.slow  # hundreds of stops; runs on the newest Python only

Record = Callable[[str, object], None]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, *, is_thorough: bool) -> Ground:
    ground = make_ground(tmp_path_factory.mktemp("ground"), whole=is_thorough)
    found = len(list(ground.real.glob("lib/python*/site-packages/*.dist-info")))
    assert found >= (671 if is_thorough else 200)
    return ground


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory, *, is_thorough: bool) -> Ground:
    return make_ground(tmp_path_factory.mktemp("debian"), debian=True, whole=is_thorough)


@pytest.fixture(scope="session")
def is_thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption(EVERY_FAULT))


# Every operation is stopped.  Where this takes long, each of the three faults stops every third operation.
EVERY = {
    ("overlay", "swap"): 3,
    ("overlay", "rollback"): 3,
    ("overlay", "for good"): 3,
    ("overlay", "apply"): 50,
    ("plain", "swap"): 1,
    ("plain", "rollback"): 1,
    ("plain", "apply"): 10,
}


@pytest.mark.parametrize(("base", "change"), EVERY)
def test_a_stopped_change_is_undone_or_complete(
    *, base: str, change: str, ground: Ground, is_thorough: bool, record_property: Record
) -> None:
    every = EVERY[base, change] if is_thorough else None
    turn = [*EVERY].index((base, change))

    def stop(base: Base) -> Counter[str]:
        scene = Scene(ground, base, change)
        return Counter(
            f"{fault} at a {scene.operations[at]}, went {'forward' if scene.stop(fault, at) else 'back'}"
            for fault, at in points(scene.operations, every, turn)
        )

    for name, count in on(ground, base, stop).items():
        record_property(f"stopped: {change} on {base}, {name}", count)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("plain", "swap"),
        ("plain", "rollback"),
        ("overlay", "swap"),
        ("overlay", "rollback"),
        ("overlay", "for good"),
    ],
)
def test_the_next_recovery_completes_a_stopped_one(
    *, base: str, change: str, ground: Ground, is_thorough: bool, record_property: Record
) -> None:
    def stop(base: Base) -> Counter[str]:
        scene = Scene(ground, base, change)
        count = len(scene.operations)
        stopped: Counter[str] = Counter()
        for first in range(count - 1, 0, -(count // 5 if is_thorough else count)):
            recovery = scene.recovery(first)
            for number, name in enumerate(("killed", "killed midway", "ENOSPC", "EACCES")):
                places = FAULTS[name].places(recovery)
                step = max(1, len(places) // (25 if is_thorough else 1))
                for at in places[number * step // 4 :: step]:
                    scene.stop_recovery(first, name, at)
                    stopped[f"then {name} at a {recovery[at]} of the recovery"] += 1
        return stopped

    for name, count in on(ground, base, stop).items():
        record_property(f"stopped: {change} on {base}, {name}", count)


@pytest.mark.parametrize("base", ["plain", "overlay"])
def test_a_recovery_that_is_killed_repeatedly_completes(base: str, ground: Ground, is_thorough: bool) -> None:
    def stop(base: Base) -> int:
        scene = Scene(ground, base, "swap")
        last = len(scene.operations) - 1
        in_a_child(partial(scene.change, Faulty(last, die)))
        each = 10 if is_thorough else 100  # operations that a recovery can run
        recoveries = 1
        while in_a_child(partial(recover, scene.site, disk=Faulty(each, die))) != 0:
            recoveries += 1
        scene.watch.check(forward=False, about=f"{recoveries} recoveries")
        return recoveries

    assert on(ground, base, stop) > 3


# Whole commands


class Commands:
    """Runs the command line on the ground, each call in its own process group."""

    def __init__(self, ground: Ground, home: Path) -> None:
        self._ground = ground
        self._matrix = ground.write_matrix()
        self._there = ("--python", ground.python, "--yes")
        self.home = home
        self._number = 0

    def forget(self) -> None:
        """Let the next commands forget all applies."""
        self._number += 1

    def start(self, command: str, *argv: str) -> subprocess.Popen[str]:
        environ = {
            **os.environ,
            "COLUMNS": "1000",
            "COLABLOCK_HOME": str(self.home / str(self._number)),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.home),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "colablock", command, *argv],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def apply(self) -> subprocess.Popen[str]:
        links = str(self._ground.folder / "wheels")
        options = ("--into", "kernel", "--find-links", links, "--offline", *self._there)
        return self.start("apply", str(self._matrix), *options)

    def rollback(self) -> subprocess.Popen[str]:
        return self.start("rollback", *self._there)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command, and return its exit code and output."""
    _, said = process.communicate()
    return process.returncode, said


def killed_after(process: subprocess.Popen[str], seconds: float, *, file: Path | None = None) -> None:
    """Kill a command and its children some seconds after its start, or after *file* was written."""
    while file is not None and not file.exists() and process.poll() is None:
        time.sleep(0.0005)
    time.sleep(seconds)
    with suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_next_command_recovers_from_a_killed_one(
    ground: Ground, is_thorough: bool, record_property: Record, tmp_path: Path
) -> None:
    commands = Commands(ground, tmp_path)
    record = ground.real / ".colablock" / "journal.json"

    def kill(base: Base) -> Counter[str]:
        times: list[float] = []

        def apply() -> None:
            started = time.monotonic()
            assert ended(commands.apply())[0] == ExitCode.DONE
            times.append(time.monotonic() - started)

        watch = Watch(ground, base, apply)
        seeded = random.Random(0)
        found: Counter[str] = Counter()
        for number in range(100 if is_thorough else 4):
            commands.forget()
            if number % 2:
                killed_after(commands.apply(), seeded.uniform(0, times[0]))
            else:  # during the moves and the checks
                killed_after(commands.apply(), seeded.uniform(0, times[0] / 4), file=record)
            was = "in the change" if record.exists() else "before it"
            if any(ground.real.glob(".colablock/changes/*/record.json")):
                was = "after it"
            if number % 4 < 2:  # roll back a committed change, recover an interrupted one
                code, said = ended(commands.rollback())
                assert code == (ExitCode.USAGE if was == "before it" else ExitCode.DONE), said
            else:
                code, said = ended(commands.apply())
                assert code == ExitCode.DONE, said
            watch.check(forward=number % 4 >= 2, about=f"kill {number}, {was}")
            found[f"killed {was}, then {'apply' if number % 4 >= 2 else 'rollback'}"] += 1
        return found

    for name, count in on(ground, "plain", kill).items():
        record_property(f"stopped: by the clock, {name}", count)


def test_one_of_two_concurrent_applies_wins(ground: Ground, tmp_path: Path) -> None:
    def run(base: Base) -> None:
        commands = Commands(ground, tmp_path)
        watch = Watch(ground, base, lambda: ended(commands.apply()))
        commands.forget()
        results = [ended(process) for process in [commands.apply(), commands.apply()]]
        assert {code for code, _ in results} <= {ExitCode.DONE, ExitCode.UNMET}, results
        assert any(code == ExitCode.DONE for code, _ in results), results
        for code, said in results:
            if code == ExitCode.UNMET:
                assert re.search(
                    r"has changed since the plan was made|another process \(\d+\) is changing", said
                ), said
        code, said = ended(commands.start("verify", "big"))
        assert code == ExitCode.DONE, said
        watch.check(forward=True, about="two at once")

    on(ground, "plain", run)


def test_a_concurrent_call_names_the_process_that_holds_the_lock(ground: Ground) -> None:
    def run(_: Base) -> None:
        applying = Applying(ground, read_site(ground.python, os.environ))
        begun, goes_on = ground.real / "begun", ground.real / "goes-on"

        def hold() -> None:
            begun.touch()
            while not goes_on.exists():
                time.sleep(0.01)

        child = os.fork()
        if child == 0:
            applying(Operations(), prove=hold)
            os._exit(0)
        while not begun.exists():
            time.sleep(0.01)
        with pytest.raises(Refused, match=rf"another process \({child}\) is changing"):
            applying(Operations())
        goes_on.touch()
        assert os.waitpid(child, 0)[1] == 0

    on(ground, "plain", run)


# A disk that fills up


class Filling(Reporter):
    """Fills the disk up to some bytes when a stage of the work starts."""

    def __init__(self, disk: Path, *parts: str, leave: int = 0) -> None:
        self._disk = disk
        self._parts = parts
        self._leave = leave

    def stage(self, text: str) -> None:
        if text.startswith(self._parts):
            fill(self._disk, self._leave)


def fill(disk: Path, leave: int) -> None:
    """Fill a mount up to some free bytes."""
    status = os.statvfs(disk)
    free = status.f_bavail * status.f_frsize
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)


@pytest.mark.skipif(not has_own_mounts(), reason="a process here may not mount anything")
def test_a_disk_that_fills_up_leaves_the_old_state(ground: Ground, is_thorough: bool) -> None:
    def run() -> tuple[int, int]:
        with mounted("tmpfs", ground.real, "size=64m,mode=755"):
            copy_tree(ground.pristine, ground.real)
            return fill_up(ground, steps=64 if is_thorough else 6)

    failed, made = in_own_mounts(run)
    assert failed > 1
    assert made == 1


def fill_up(ground: Ground, steps: int) -> tuple[int, int]:
    """Apply with more and more free space until it works; return how often it failed, and worked."""
    tree = Tree(ground.real)
    before = tree.listing()
    applying = Applying(ground, read_site(ground.python, os.environ))
    for step in range(steps + 1):
        reporter = Filling(ground.real, "Staging", leave=step * (4 << 20) // steps)
        try:
            applying(Operations(), reporter=reporter)
        except (Unmet, RolledBack) as error:
            assert "o space left" in str(error), error  # noqa: PT017
            (ground.real / "filler").unlink()
            assert not differences(before, tree.listing()), step
        else:
            return step, 1
    return steps, 0


@pytest.mark.skipif(not has_own_mounts(), reason="a process here may not mount anything")
def test_a_disk_that_is_full_after_staging_leaves_the_old_state(ground: Ground) -> None:
    def run() -> None:
        with mounted("tmpfs", ground.real, "size=64m,mode=755"):
            copy_tree(ground.pristine, ground.real)
            stop_when_full(ground)

    in_own_mounts(run)


def stop_when_full(ground: Ground) -> None:
    """Fill the disk before the first move of an apply, of a rollback, and of a recovery."""
    tree = Tree(ground.real)
    filler = ground.real / "filler"
    site = read_site(ground.python, os.environ)
    before = tree.listing()
    applying = Applying(ground, site)
    with pytest.raises(RolledBack, match="No space left"):
        applying(Operations(), reporter=Filling(ground.real, "Changing"))
    filler.unlink()
    assert not differences(before, tree.listing())
    in_a_child(partial(applying, Faulty(300, die)))
    fill(ground.real, 0)
    assert recover(site) is not None
    filler.unlink()
    assert not differences(before, tree.listing())
    applying(Operations())
    after, snapshot = tree.listing(), ground.snapshot()
    with pytest.raises((RolledBack, Unmet), match="No space left"):
        roll_back(site, look=lambda: snapshot, reporter=Filling(ground.real, "Undoing"))
    filler.unlink()
    assert not differences(after, tree.listing())
    roll_back(site, look=lambda: snapshot)
    assert not differences(before, tree.listing())


# Apply and rollback in both layouts


@pytest.mark.parametrize("base", ["plain", "overlay"])
@pytest.mark.parametrize("layout", ["ground", "debian"])
def test_an_apply_and_its_rollback_restore_everything(
    base: str, layout: str, request: pytest.FixtureRequest
) -> None:
    there: Ground = request.getfixturevalue(layout)

    def run(base: Base) -> None:
        scene = Scene(there, base, "apply")
        for fault, at in points(scene.operations, None, turn=0):
            scene.stop(fault, at)
        scene.change(Operations())
        snapshot = there.snapshot()
        roll_back(scene.site, look=lambda: snapshot)
        scene.watch.check(forward=False, about="after the rollback")

    on(there, base, run)


def test_the_debian_layout_is_that_of_a_hosted_notebook(debian: Ground) -> None:
    site = read_site(debian.python, os.environ)
    python = Path(debian.python).name
    assert (site.is_venv, site.data) == (False, str(debian.real))
    assert site.purelib == str(debian.folder / "usr" / "local" / "lib" / python / "dist-packages")
    assert Path(debian.snapshot().installed[canonicalize_name("ed")].path or "").parent == Path(site.purelib)
