"""Every command on a machine that fails ends with a documented exit code and a message."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from colablock.errors import ExitCode
from tests.conftest import EVERY_FAULT
from tests.support.every_command import CONDITIONS
from tests.support.machine import UNPRIVILEGED, Machine, is_root
from tests.support.paths import ROOT

Failing = Callable[[str, Sequence[Sequence[str]]], list[str]]

DOCUMENTED = {int(code) for code in ExitCode} - {ExitCode.BUG}
UNFLUSHED = 120  # the status of Python, which `run` passes on, if its output cannot be written
#: Libraries, by the placeholder for their path in `Condition.environ`, that refuse what a machine may refuse.
LIBRARIES = {
    "no_locks": "int flock(int file, int operation) { errno = ENOLCK; return -1; }",
    "no_threads": "int pthread_create(void *a, void *b, void *c, void *d) { return EAGAIN; }",
    "no_processes": "int fork(void) { errno = EAGAIN; return -1; } int vfork(void) { return fork(); }",
}
SILENT = {"a closed output", "closed errors", "nothing open", "a full output"}  # a message may be lost
SAMPLE = 20  # one of so many commands is tried under a condition, unless all are asked for
#: The conditions that the quick tests try, with the commands that use what is spoiled.
QUICK = {
    "a deleted working folder": ("list", "apply", "env", "export"),
    "a home without permission": ("apply", "env", "runs"),
    "a drive without locks": ("apply", "rollback", "env"),
    "no more threads": ("apply",),
    "state without permission": ("apply", "rollback", "history"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Path]:
    folder = tmp_path_factory.mktemp("machine")
    made = Machine(folder / "machine").prepare()
    made.copy(folder / "kept")
    return made, folder / "kept"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give the paths of `LIBRARIES`, as placeholders and what they stand for."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    for name, source in LIBRARIES.items():
        (folder / f"{name}.c").write_text(f"#include <errno.h>\n{source}\n")
        command = [compiler, "-shared", "-fPIC", "-w", "-o", f"{name}.so", f"{name}.c"]
        subprocess.run(command, cwd=folder, check=True)
    return {name: str(folder / f"{name}.so") for name in LIBRARIES}


@pytest.fixture(scope="module")
def failing(prepared: tuple[Machine, Path], libraries: dict[str, str]) -> Iterator[Failing]:
    """Give what runs commands under a condition, in one process for all tests."""
    machine, kept = prepared
    command = [*(UNPRIVILEGED if is_root() else ()), sys.executable, "-m", "tests.support.every_command"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=machine.environ(),
            text=True,
        ) as runner,
    ):
        yield partial(
            failures, runner, {"folder": str(machine.folder), "kept": str(kept), "libraries": libraries}
        )
        _, _ = runner.communicate()
        errors.seek(0)
        assert runner.returncode == 0, errors.read().decode(errors="replace")


def failures(
    runner: subprocess.Popen[str],
    job: Mapping[str, object],
    condition: str,
    commands: Sequence[Sequence[str]],
) -> list[str]:
    """Run *commands* under *condition* and return what is wrong with how they ended."""
    assert runner.stdin is not None
    assert runner.stdout is not None
    print(json.dumps({**job, "condition": condition, "commands": commands}), file=runner.stdin, flush=True)
    found = [json.loads(line) for line in islice(runner.stdout, len(commands))]
    assert len(found) == len(commands), f"the process that runs them has ended with {runner.wait()}"
    wrong = []
    for one in found:
        text = one["out"] + one["err"]
        is_bug = "bug in colablock" in text or f'File "{ROOT}' in text
        is_told = one["code"] in (0, 1) or "error: " in text or condition in SILENT
        documented = DOCUMENTED | ({UNFLUSHED} if one["argv"][0] == "run" else set())
        if os.strerror(errno.EAGAIN) in text:  # no process or thread, which is no fault of the request
            documented -= {int(ExitCode.USAGE)}
        if one["code"] not in documented or is_bug or not is_told:
            wrong.append(f"{' '.join(one['argv'][:4])}: {one['code']}\n{text[-1500:]}")
    return wrong


@pytest.mark.parametrize("condition", QUICK)
def test_commands_on_a_machine_that_fails(
    prepared: tuple[Machine, Path], failing: Failing, condition: str
) -> None:
    commands = [argv for argv in prepared[0].commands if argv[0] in QUICK[condition]]
    assert failing(condition, commands) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "condition"), list(enumerate(CONDITIONS)), ids=CONDITIONS)
def test_every_command_on_a_machine_that_fails(
    prepared: tuple[Machine, Path],
    failing: Failing,
    number: int,
    condition: str,
    request: pytest.FixtureRequest,
) -> None:
    commands = prepared[0].commands
    if not request.config.getoption(EVERY_FAULT):  # then each condition tries others
        commands = commands[number % SAMPLE :: SAMPLE]
    assert failing(condition, commands) == []


@pytest.mark.parametrize("size", ["9" * 5000, "99999999999", "²", "-1", "\x1b[2J"])
def test_an_absurd_size_of_the_terminal_is_ignored(size: str, prepared: tuple[Machine, Path]) -> None:
    done = prepared[0].run("list", environ=prepared[0].environ(COLUMNS=size, LINES=size))
    assert done.code == 0, done
    assert "tiny" in done.out


@pytest.mark.parametrize("url", ["http://[::1", "http://[x]/simple/"])
def test_a_malformed_default_index_is_an_error(url: str, prepared: tuple[Machine, Path]) -> None:
    machine = prepared[0]
    done = machine.run("plan", "tiny", "--into", "env", environ=machine.environ(COLABLOCK_DEFAULT_INDEX=url))
    assert done.code in (ExitCode.UNMET, ExitCode.USAGE), done
    assert "error: " in done.err
