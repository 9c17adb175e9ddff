"""A change of a whole runtime, stopped at every operation in every way: it leads back, or it was made."""

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
from functools import partial
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.site import read_site
from colablock.errors import ExitCode, Refused, RolledBack, Unmet
from colablock.transaction.journal import Operations, recover
from colablock.transaction.rollback import roll_back
from tests.conftest import EVERY_FAULT
from tests.support.faults import Faulty, die, has_own_mounts, in_a_child, in_own_mounts, mounted
from tests.support.ground import Ground, copy_tree, make_ground
from tests.support.paths import ROOT
from tests.support.scenes import FAULTS, Applying, Base, Scene, Watch, on, points
from tests.support.trees import Tree, differences

pytestmark = pytest.mark.slow  # hundreds of stops: on the newest Python

Record = Callable[[str, object], None]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    ground = make_ground(tmp_path_factory.mktemp("ground"))
    assert len(list(ground.real.glob("lib/python*/site-packages/*.dist-info"))) >= 671
    return ground


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("debian"), debian=True)


@pytest.fixture
def is_thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption(EVERY_FAULT))


# Of all operations each one, but where it takes long each third by one fault, the next by another.
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
def test_a_change_that_is_stopped_leads_back_or_was_made(
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
def test_a_recovery_that_is_stopped_is_ended_by_the_next(
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
def test_a_recovery_that_is_killed_again_and_again_gets_there(
    base: str, ground: Ground, is_thorough: bool
) -> None:
    def stop(base: Base) -> int:
        scene = Scene(ground, base, "swap")
        last = len(scene.operations) - 1
        in_a_child(partial(scene.change, Faulty(last, die)))
        each = 10 if is_thorough else 100  # operations that a recovery gets done
        recoveries = 1
        while in_a_child(partial(recover, scene.site, disk=Faulty(each, die))) != 0:
            recoveries += 1
        scene.watch.check(forward=False, about=f"{recoveries} recoveries")
        return recoveries

    assert on(ground, base, stop) > 3


# Whole commands


class Commands:
    """The command line on the ground, each call in a process group of its own."""

    def __init__(self, ground: Ground, home: Path) -> None:
        self._ground = ground
        self._matrix = ground.write_matrix()
        self._there = ("--python", ground.python, "--yes")
        self.home = home
        self._number = 0

    def forget(self) -> None:
        """Let the next commands know nothing of what was applied before."""
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
    """Wait for a command, and return its exit code and what it said."""
    _, said = process.communicate()
    return process.returncode, said


def killed_after(process: subprocess.Popen[str], seconds: float, *, file: Path | None = None) -> None:
    """Kill a command and its children some seconds after it began, or after *file* was written."""
    while file is not None and not file.exists() and process.poll() is None:
        time.sleep(0.0005)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_command_killed_at_any_time_is_put_back_by_the_next(
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
            else:  # during the swap and the proofs
                killed_after(commands.apply(), seeded.uniform(0, times[0] / 4), file=record)
            was = "in the change" if record.exists() else "before it"
            if any(ground.real.glob(".colablock/changes/*/record.json")):
                was = "after it"
            if number % 4 < 2:  # what was made is undone, what was not is put back
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


def test_of_two_applies_at_once_one_wins(ground: Ground, tmp_path: Path) -> None:
    def run(base: Base) -> None:
        commands = Commands(ground, tmp_path)
        watch = Watch(ground, base, lambda: ended(commands.apply()))
        commands.forget()
        results = [ended(process) for process in [commands.apply(), commands.apply()]]
        assert {code for code, _ in results} <= {ExitCode.DONE, ExitCode.UNMET}, results
        assert any(code == ExitCode.DONE for code, _ in results), results
        for code, said in results:
            if code == ExitCode.UNMET:
                assert re.search(r"is no longer as it was|another process \(\d+\) is changing", said), said
        code, said = ended(commands.start("verify", "big"))
        assert code == ExitCode.DONE, said
        watch.check(forward=True, about="two at once")

    on(ground, "plain", run)


def test_while_one_changes_another_is_told_who(ground: Ground) -> None:
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
    """Fills the disk when a part of the work begins, but for some bytes."""

    def __init__(self, disk: Path, *parts: str, leave: int = 0) -> None:
        self._disk = disk
        self._parts = parts
        self._leave = leave

    def stage(self, text: str) -> None:
        if text.startswith(self._parts):
            fill(self._disk, self._leave)


def fill(disk: Path, leave: int) -> None:
    """Leave so many bytes of a mount free."""
    status = os.statvfs(disk)
    free = status.f_bavail * status.f_frsize
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)


@pytest.mark.skipif(not has_own_mounts(), reason="a process here may not mount anything")
def test_a_disk_that_fills_up_leaves_the_state_before(ground: Ground, is_thorough: bool) -> None:
    def run() -> tuple[int, int]:
        with mounted("tmpfs", ground.real, "size=64m,mode=755"):
            copy_tree(ground.pristine, ground.real)
            return fill_up(ground, steps=64 if is_thorough else 6)

    failed, made = in_own_mounts(run)
    assert failed > 1
    assert made == 1


def fill_up(ground: Ground, steps: int) -> tuple[int, int]:
    """Apply, with more and more room to stage in, until it is enough; how often it failed, and was made."""
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
def test_a_disk_that_is_full_once_all_is_staged_leaves_the_state_before(ground: Ground) -> None:
    def run() -> None:
        with mounted("tmpfs", ground.real, "size=64m,mode=755"):
            copy_tree(ground.pristine, ground.real)
            stop_when_full(ground)

    in_own_mounts(run)


def stop_when_full(ground: Ground) -> None:
    """Fill the disk before the first move of an apply and of a rollback, and before a recovery."""
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


# There and back, in both layouts


@pytest.mark.parametrize("base", ["plain", "overlay"])
@pytest.mark.parametrize("layout", ["ground", "debian"])
def test_an_apply_and_its_rollback_leave_all_as_it_was(
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


def test_a_site_as_on_debian_is_where_a_hosted_notebook_has_it(debian: Ground) -> None:
    site = read_site(debian.python, os.environ)
    python = Path(debian.python).name
    assert (site.is_venv, site.data) == (False, str(debian.real))
    assert site.purelib == str(debian.folder / "usr" / "local" / "lib" / python / "dist-packages")
    assert Path(debian.snapshot().installed[canonicalize_name("ed")].path or "").parent == Path(site.purelib)
