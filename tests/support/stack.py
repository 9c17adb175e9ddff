"""A real training stack that colablock applied in COLABLOCK_TEST_HOME, and a tiny model for it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colablock.environment.target_script import ask_target
from colablock.training.runs.folder import RunFolder, State
from colablock.training.scripts import FOLDER as SCRIPTS
from tests.support.paths import ROOT
from tests.support.timing import until
from tests.support.warm import run_warm
from tests.support.world import Done

__all__ = [
    "NAME",
    "NEEDS_STACK",
    "TEST_HOME",
    "TEXT",
    "USUAL",
    "Stack",
    "kill",
    "losses_of",
    "make_stack",
    "needs_stack",
    "stack_python",
    "wait_for",
]

NAME = "qlora-2026"
TEST_HOME = os.environ.get("COLABLOCK_TEST_HOME")  # read before the tests' own machine begins
NEEDS_STACK = [
    pytest.mark.stack,
    pytest.mark.skipif(
        not TEST_HOME, reason=f"COLABLOCK_TEST_HOME names no home in which {NAME} was applied"
    ),
]
TEXT = ROOT / "colablock" / "training" / "toy.jsonl"
USUAL: Mapping[str, Any] = {
    "sequence_len": 64,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.01,
    "max_steps": 8,
    "save_steps": 2,
}
_OVER = (State.DONE, State.FAILED, State.KILLED)
_PATIENCE = 240.0


def needs_stack(test: Callable[..., None]) -> Callable[..., None]:
    """Mark one test as `NEEDS_STACK` marks a module."""
    for mark in NEEDS_STACK:
        test = mark(test)
    return test


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The stack with a home of its own that has no runs.  All files are written below *folder*."""

    folder: Path
    python: str
    model: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment variables of a colablock process that is offline."""
        mine = {
            "COLABLOCK_HOME": str(self.home),
            "COLUMNS": "100",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT),
            **threads_of_a_worker(),
        }
        return {**os.environ, **mine, **more}

    def run(self, *argv: str | Path, **more: str) -> Done:
        """Run colablock's command line in a process of its own."""
        code, out, err = run_warm(tuple(map(str, argv)), self.environ(**more), self.folder)
        return Done(code=code, out=out, err=err)

    def train(
        self, out: str, *argv: str | Path, model: Path | None = None, data: Path = TEXT, **settings: Any
    ) -> Done:
        """Train the tiny model into the folder *out*; *settings* replace the defaults."""
        pairs = [f"--set={key}={json.dumps(value)}" for key, value in {**USUAL, **settings}.items()]
        where = ("--model", model or self.model, "--dataset", data, "--output-dir", self.folder / out)
        return self.run("train", NAME, *where, *pairs, *argv)

    def run_folder(self, out: str) -> RunFolder:
        return RunFolder(self.folder / out)


def applied_in_home() -> Path:
    """Return where the applies of `TEST_HOME` are recorded."""
    assert TEST_HOME is not None
    return Path(TEST_HOME) / "applied"


def stack_python() -> str:
    """Return the interpreter of the stack."""
    applied = json.loads((applied_in_home() / f"{NAME}.json").read_text(encoding="utf-8"))
    return str(applied["python"])


def make_stack(folders: pytest.TempPathFactory) -> Stack:
    """Return the stack of `TEST_HOME` with a folder of its own.  The model is made once for all workers."""
    folder, shared = folders.mktemp("stack"), folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    shutil.copytree(applied_in_home(), folder / "home" / "applied")
    stack = Stack(folder=folder, python=stack_python(), model=shared / "tiny-model")
    with (shared / "tiny-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stack.model.is_dir():
            toy = {"folder": str(stack.model), "text": str(TEXT), "seed": 0}
            job = {"toy": toy, "data": None}
            ask_target(
                stack.python, SCRIPTS / "prepare.py", job, doing="make the model", environ=stack.environ()
            )
    return stack


def threads_of_a_worker() -> dict[str, str]:
    """Return the variable that keeps this worker to its share of the cores; none without workers.

    The processes may run on every core: a worker with two processes uses what another one leaves idle.
    """
    if "PYTEST_XDIST_WORKER_COUNT" not in os.environ:
        return {}
    share = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    return {"OMP_NUM_THREADS": str(max(1, share))}


def losses_of(folder: RunFolder) -> dict[int, tuple[float, float]]:
    """Return the loss and the gradient norm of each step.  Of a repeated step the later one counts."""
    logs = [event for event in folder.metrics() if event["event"] == "log" and "loss" in event]
    return {event["step"]: (event["loss"], event["grad_norm"]) for event in logs}


def wait_for(folder: RunFolder, holds: Callable[[list[dict[str, Any]]], object]) -> None:
    """Wait until *holds* is true of the events of a run."""

    def it_holds() -> object:
        if holds(folder.metrics()):
            return True
        assert folder.state() not in _OVER, folder.end()
        return False

    def log() -> str:
        return folder.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    until(it_holds, patience=_PATIENCE, told=log)


def kill(folder: RunFolder) -> None:
    """Kill every process of a run, as the loss of the runtime does."""
    record = folder.record()
    assert record is not None
    os.killpg(record.process, signal.SIGKILL)
    for rank in (folder.path / "ranks").glob("*"):  # each has a session of its own
        with suppress(OSError, ValueError, IndexError):
            os.kill(int(rank.read_text().split()[0]), signal.SIGKILL)
    until(lambda: not folder.is_alive(), patience=_PATIENCE)
