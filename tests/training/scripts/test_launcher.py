"""The launcher of a run, which may start before its arguments are known."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from colablock.training.runs.crash_facts import signal_in
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.launch import (
    EarlyLauncher,
    StartedProcess,
    exit_code_of,
    launch_command,
    ranks_of,
    start_early,
    start_process,
)
from tests.support.paths import DATA
from tests.support.timing import until

SCRIPT = """
import json, os, sys
facts = {
    "arguments": sys.argv[1:],
    "beside": sys.path[0],
    "launched by": os.getppid(),
    "early": sorted({"heavy", "heavy_too"} & sys.modules.keys()),
    "variables": dict(os.environ),
}
print("told", json.dumps(facts))
"""
HEAVY = "print('importing')\nclass Trainer: pass\n"


class Ground:
    """A folder of modules with a launcher like that of accelerate, a script, and a run folder."""

    def __init__(self, folder: Path) -> None:
        self.site, self.script = folder / "site", folder / "scripts" / "script.py"
        self.run = RunFolder(folder / "run")
        for one in (self.site / "accelerate" / "commands", self.script.parent, self.run.path):
            one.mkdir(parents=True)
        source = DATA / "training_stack" / "accelerate" / "commands" / "launch.py"
        (self.site / "accelerate" / "commands" / "launch.py").write_text(source.read_text())
        self.module("heavy", HEAVY)
        self.module("heavy_too", HEAVY)
        self.script.write_text(SCRIPT)

    def module(self, name: str, text: str) -> None:
        (self.site / f"{name}.py").write_text(text)

    def environ(self, **more: str) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.site), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        return {"PATH": os.environ["PATH"], **own, **more}

    def command(self, *extra: str) -> list[str]:
        command = launch_command(
            sys.executable,
            self.run,
            precision="bf16",
            ranks=ranks_of(1, extra),
            has_card=False,
            threads=1,
            extra=extra,
        )
        return [*command[:-2], str(self.script), "one", "two"]

    def start(self, *extra: str, early: EarlyLauncher | None = None, **more: str) -> StartedProcess:
        started = start_process(self.command(*extra), self.run, self.environ(**more), early)
        until(lambda: exit_code_of(started.process, started.process_started) is not None)
        return started

    def early(self, *modules: str) -> Any:
        return start_early(sys.executable, self.run, self.environ(), modules)

    @property
    def log(self) -> list[str]:
        return self.run.log.read_text().splitlines()[2:]  # after an empty line, and that of the start

    @property
    def told(self) -> dict[str, Any]:
        (line,) = (line for line in self.log if line.startswith("told "))
        found: dict[str, Any] = json.loads(line.removeprefix("told "))
        return found


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def variables_of(told: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of the script without those that Python or the shell set."""
    return {name: text for name, text in told["variables"].items() if name not in ("LC_CTYPE", "_")}


def test_the_script_runs_in_the_process_of_the_launcher(ground: Ground) -> None:
    started = ground.start()
    told = ground.told
    assert told["launched by"] == started.process
    assert (told["arguments"], told["beside"]) == (["one", "two"], str(ground.script.parent))
    own = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "True"}
    assert variables_of(told) == {**ground.environ(), **own}
    assert exit_code_of(started.process, started.process_started) == 0


def test_a_launcher_imports_before_its_arguments_are_known(ground: Ground) -> None:
    late = ground.start()
    variables = variables_of(ground.told)
    ground.run.log.unlink()
    with ground.early("heavy", "heavy_too:Trainer") as early:
        started = ground.start(early=early)
    assert started.command == late.command
    assert ground.log[:2] == ["importing", "importing"]
    told = ground.told
    assert told["early"] == ["heavy", "heavy_too"]
    assert told["launched by"] == started.process
    assert (told["arguments"], told["beside"]) == (["one", "two"], str(ground.script.parent))
    assert variables_of(told) == variables


@pytest.mark.parametrize(
    ("extra", "more"),
    [
        ((), {"CUDA_VISIBLE_DEVICES": "1"}),  # preflight has chosen another card
        (("--num_cpu_threads_per_process", "3"), {}),  # read when torch is loaded
    ],
)
def test_a_launcher_starts_over_if_it_had_other_variables(
    ground: Ground, extra: Sequence[str], more: Mapping[str, str]
) -> None:
    with ground.early("heavy") as early:
        started = ground.start(*extra, early=early, **more)
    told = ground.told
    assert told["early"] == []
    assert told["launched by"] == started.process
    threads = {"OMP_NUM_THREADS": extra[1]} if extra else {}
    assert told["variables"].items() >= {**more, **threads}.items()


@pytest.mark.parametrize("module", ["broken", "heavy:Nothing", "missing"])
def test_an_import_that_fails_is_done_anew(ground: Ground, module: str) -> None:
    ground.module("broken", "raise ImportError('broken for good')")
    ground.script.write_text(f"{SCRIPT}\nimport broken")
    with ground.early("heavy_too", module) as early:
        started = ground.start(early=early)
    assert ground.told["early"] == []
    assert exit_code_of(started.process, started.process_started) == 1
    failed = [line for line in ground.log if not line.startswith(" ")]
    assert failed[-4:-2] == ["Traceback (most recent call last):", "ImportError: broken for good"]


def test_a_launcher_that_is_not_needed_changes_nothing(ground: Ground) -> None:
    with ground.early("heavy") as early:
        assert early is not None
    assert list(ground.run.path.iterdir()) == []


def test_a_launcher_that_was_killed_is_replaced(ground: Ground) -> None:
    ground.module("deadly", "import os; os.kill(os.getppid(), 9)")
    with ground.early("deadly") as early:
        assert early is not None
        until(lambda: early.has_ended)
        started = ground.start(early=early)
    assert ground.told["launched by"] == started.process


WAITS = """
import os, time
print("importing", flush=True)
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 11)", "os.kill(os.getpid(), 9)", "os._exit(0)"])
@pytest.mark.parametrize("is_launched", [False, True])
def test_an_import_that_kills_its_process_is_done_anew(ground: Ground, end: str, is_launched: bool) -> None:
    go = ground.run.path / "go"
    ground.module("deadly", f"{WAITS}\nprint('dies', flush=True)\n{end}")
    environ = ground.environ(GO=str(go))
    with start_early(sys.executable, ground.run, environ, ["deadly"]) as early:
        if not is_launched:
            go.touch()
        started = start_process(ground.command(), ground.run, environ, early)
        go.touch()
    until(lambda: exit_code_of(started.process, started.process_started) is not None)
    assert ground.log[:2] == ["importing", "dies"]
    assert ground.told["launched by"] == started.process
    assert exit_code_of(started.process, started.process_started) == 0


def test_a_launch_with_many_variables_does_not_wait_for_the_imports(ground: Ground) -> None:
    go = ground.run.path / "go"
    ground.module("slow", WAITS)
    long = {f"LONG_{number}": "x" * 60_000 for number in range(3)}  # more than a pipe holds
    environ = ground.environ(GO=str(go))
    with start_early(sys.executable, ground.run, environ, ["slow"]) as early:
        started = start_process(ground.command(), ground.run, {**environ, **long}, early)
        go.touch()
    until(lambda: exit_code_of(started.process, started.process_started) is not None)
    assert ground.told["variables"].items() >= long.items()


@pytest.mark.parametrize("is_early", [False, True])
def test_a_signal_that_ends_the_training_is_in_the_log(tmp_path: Path, is_early: bool) -> None:
    ground = Ground(tmp_path)
    ground.script.write_text("import os; os.kill(os.getpid(), 11)")
    if is_early:
        with ground.early("heavy") as early:
            started = ground.start(early=early)
    else:
        started = ground.start()
    assert exit_code_of(started.process, started.process_started) == 1
    assert signal_in(ground.run.log.read_text()) == 11
