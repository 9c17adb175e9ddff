from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colablock._common.process import (
    ChildFailed,
    detach,
    exit_words,
    kill_session,
    last_lines,
    run_child,
    run_python,
    run_uv,
    source_command,
    start_session,
)
from colablock.errors import Unmet
from colablock.training.scripts.ranks import start_time_of
from tests.support.timing import until

pytestmark = pytest.mark.stdlib


def test_uv_ignores_preset_variables() -> None:
    environ = {**os.environ, "UV_CONFIG_FILE": "/nowhere/uv.toml", "UV_OFFLINE": "nonsense"}
    assert run_uv(["--version"], environ=environ).startswith("uv ")


def test_the_error_of_uv_is_quoted() -> None:
    with pytest.raises(Unmet, match=r"uv could not list: it\n(.*\n)*.*unrecognized subcommand") as caught:
        run_uv(["no-such-thing"], environ=os.environ, doing="list: it")
    assert "Traceback" not in str(caught.value)


def test_uv_is_stopped_at_its_timeout(tmp_path: Path) -> None:
    fifo = tmp_path / "requirements.txt"
    os.mkfifo(fifo)
    with pytest.raises(Unmet, match=r"within 0\.2 seconds"):
        run_uv(["pip", "compile", str(fifo)], environ=os.environ, timeout=0.2)


@pytest.mark.parametrize(("text", "last"), [("a\n\nb\n \nc\n", "b\nc"), ("", ""), ("a", "a")])
def test_last_lines_are_not_blank(text: str, last: str) -> None:
    assert last_lines(text, 2) == last


def test_run_python_isolates_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    code = "import json, sys; print(json.dumps([sys.flags.isolated, sys.stdin.read()]))"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere"}
    assert run_python(sys.executable, ["-c", code], environ=environ, timeout=60).text == '[1, ""]\n'


def test_run_child_passes_data_and_returns_output(tmp_path: Path) -> None:
    code = "import os, sys; sys.stdout.write(sys.stdin.read() + os.getcwd()); print('aside', file=sys.stderr)"
    command = source_command(sys.executable, code)
    output = run_child(command, environ=os.environ, folder=tmp_path, data="é ".encode())
    assert output.text == f"é {os.path.realpath(tmp_path)}"
    assert output.error_text == "aside\n"


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("raise SystemExit(3)", "it ended with status 3", 3),
        ("import os; os.kill(os.getpid(), 9)", "it was ended by SIGKILL", -9),
        ("import time; print('x', flush=True); time.sleep(60)", "it did not end within 0.5 seconds", None),
    ],
)
def test_each_failure_of_a_child_has_a_reason_and_a_status(
    code: str, reason: str, status: int | None
) -> None:
    with pytest.raises(ChildFailed) as caught:
        run_child([sys.executable, "-c", code], environ=os.environ, timeout=60 if status else 0.5)
    assert str(caught.value) == reason
    assert caught.value.status == status


def test_a_child_that_cannot_start_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="No such file or directory") as caught:
        run_child([tmp_path / "missing"], environ={})
    assert caught.value.status is None


def test_kill_session_kills_descendants(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys; assert os.getsid(0) == os.getpid()\n"
        "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    )
    reading, writing = os.pipe()
    with os.fdopen(reading) as told:
        process = start_session(
            source_command(sys.executable, code), environ=os.environ, folder=tmp_path, output=writing
        )
        os.close(writing)
        child = int(told.readline())
        kill_session(process)
        assert process.wait() == -signal.SIGKILL
        assert told.read() == ""  # no process has the other end open, so the child has ended, too
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert child != process.pid


def test_a_detached_process_outlives_this_one_without_a_warning() -> None:
    script = (
        "import os; from colablock._common.process import detach, start_session\n"
        "for _ in range(2):\n"
        "    process = start_session(['sleep', '60'], environ=os.environ)\n"
        "    detach(process); print(process.pid, flush=True)"
    )
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for process in map(int, done.stdout.split()):
        os.kill(process, signal.SIGKILL)  # it is there


def test_a_detached_process_that_has_ended_is_reaped_with_the_next() -> None:
    first, second = (start_session(["true"], environ=os.environ) for _ in range(2))
    detach(first)
    until(lambda: start_time_of(first.pid) == 0)
    detach(second)
    assert first.returncode == 0
    assert second.wait() == 0


def test_exit_words() -> None:
    assert exit_words(0) == "ended with status 0"
    assert exit_words(-15) == "was ended by SIGTERM"
    assert exit_words(-99) == "was ended by signal 99"
