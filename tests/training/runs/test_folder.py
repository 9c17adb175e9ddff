from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import NotFound
from colablock.training.runs.folder import (
    RunFolder,
    State,
    find_run,
    list_runs,
    register,
    stop_run,
)
from colablock.training.runs.summary import summary_of
from colablock.training.scripts.ranks import start_time_of
from tests.support.runs import add_events, make_record, make_run, sleeping_process
from tests.support.timing import PATIENCE

pytestmark = pytest.mark.stdlib

ENDS: list[tuple[dict[str, Any] | None, State]] = [
    (None, State.KILLED),
    ({"state": "done", "step": 3}, State.DONE),
    ({"state": "stopped", "step": 3}, State.STOPPED),
    ({"state": "failed", "error": "E"}, State.FAILED),
    ({"state": "asleep"}, State.KILLED),
    ({}, State.KILLED),
]


def test_an_empty_folder_has_no_record_and_no_events(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "none")
    assert folder.state() is State.PREPARED
    assert folder.record() is None
    assert folder.end() == {}
    assert folder.metrics() == []
    assert not folder.is_alive()


def test_a_record_without_a_process_was_not_started(tmp_path: Path) -> None:
    assert make_run(tmp_path, process=0, process_started=0).state() is State.PREPARED


@pytest.mark.parametrize(("end", "state"), ENDS)
def test_a_run_without_a_process_has_the_state_of_its_end_file(
    end: dict[str, Any] | None, state: State, tmp_path: Path
) -> None:
    assert make_run(tmp_path, end=end).state() is state


def test_a_run_is_running_while_its_process_is(tmp_path: Path) -> None:
    with sleeping_process() as process:
        folder = make_run(tmp_path, end={"state": "done"}, **process)
        assert folder.state() is State.RUNNING
        other = {**process, "process_started": process["process_started"] + 1}
        make_run(tmp_path, end={"state": "failed"}, **other)  # the number was given to somebody else since
        assert folder.state() is State.FAILED
        make_run(tmp_path, **{**process, "process_started": 0})
        assert folder.state() is State.FAILED
        make_run(tmp_path, **process)
        assert folder.state() is State.RUNNING
    assert folder.state() is State.FAILED


def test_a_session_of_another_machine_is_ignored(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as other:
        folder = make_run(tmp_path, process=other.pid, process_started=start_time_of(other.pid) + 1)
        assert folder.state() is State.KILLED
        other.kill()


def test_a_zombie_process_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = start_time_of(child.pid)
        folder = make_run(tmp_path, process=child.pid, process_started=started)
        child.kill()
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.005)
        assert start_time_of(child.pid) == 0  # a zombie
        assert folder.state() is State.KILLED
    assert start_time_of(child.pid) == 0


def up() -> float:
    """Return the seconds since the machine was started."""
    return float(Path("/proc/uptime").read_text().split()[0])


def test_the_start_time_comes_from_the_kernel(tmp_path: Path) -> None:
    command = tmp_path / "a) b (c"  # the name of a command may hold anything
    command.symlink_to("/bin/sleep")
    ticks = os.sysconf("SC_CLK_TCK")
    before = up()
    with subprocess.Popen([str(command), "600"]) as child:
        assert before - 1 < start_time_of(child.pid) / ticks < up() + 1
        child.kill()


def test_a_record_round_trips(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record = make_record(workarounds=("a",), versions={"torch": "2.4.0"}, total_steps=9)
    folder.write_record(record)
    found = folder.record()
    assert found is not None
    assert json.dumps(found.config) == json.dumps(record.config)
    assert (found.workarounds, found.versions, found.total_steps) == (["a"], {"torch": "2.4.0"}, 9)
    known = json.loads(folder.record_file.read_text())
    folder.record_file.write_text(json.dumps({**known, "of_a_later_version": 1}))
    assert folder.record() == found
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"id": "a"}'])
def test_an_unreadable_record_is_none(content: bytes, tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    folder.record_file.write_bytes(content)
    assert folder.record() is None
    assert folder.state() is State.PREPARED


def test_incomplete_events_are_not_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    add_events(folder, {"event": "start", "step": 0}, {"event": "log", "step": 1})
    with folder.metrics_file.open("ab") as file:
        file.write(b'[1]\nnot json\n\xff\xfe\n{"event": "log", "step": 2}\n{"event": "log", "st')
    assert [event["step"] for event in folder.metrics()] == [0, 1, 2]


def test_a_stop_request_is_a_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    folder.request_stop()
    folder.request_stop()
    assert folder.stop_file.exists()


def test_a_launcher_that_waits_for_other_hosts_is_ended(tmp_path: Path) -> None:
    """It does not look for the file.  Once it has started a rank, that does."""
    command = ("python", "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    waiting = [sys.executable, "-c", "input()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, start_new_session=True) as child:
        facts: dict[str, Any] = {
            "command": command,
            "process": child.pid,
            "process_started": start_time_of(child.pid),
        }
        folder = make_run(tmp_path / "run", **facts)
        (ranks := folder.path / "ranks").mkdir()
        stop_run("run", folder)
        assert (folder.stop_file.exists(), child.poll()) == (True, None)
        ranks.rmdir()
        stop_run("run", folder)
        assert child.wait(PATIENCE) == -signal.SIGTERM


def test_runs_are_found_by_id_by_folder_or_as_the_newest(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert list(list_runs(home)) == []
    with pytest.raises(NotFound, match="there are no runs") as caught:
        find_run(home)
    assert caught.value.hint == "`colablock train NAME` starts one"
    for at, name in enumerate(("first", "second", "third")):
        make_run(tmp_path / name, home=home)
        os.utime(home / "runs" / f"{name}.json", (at, at))
    register(home, "gone", tmp_path / "gone")
    os.utime(home / "runs" / "gone.json", (9, 9))
    assert [name for name, _ in list_runs(home)] == ["gone", "third", "second", "first"]
    assert find_run(home) == ("gone", RunFolder(tmp_path / "gone"))
    assert find_run(home, "second") == ("second", RunFolder(tmp_path / "second"))
    make_run(tmp_path / "elsewhere", id="its-own")  # registered in another home
    assert find_run(home, str(tmp_path / "elsewhere")) == ("its-own", RunFolder(tmp_path / "elsewhere"))
    for asked, hint in (("secnod", "did you mean `second`?"), ("x", "`colablock runs list` lists them")):
        with pytest.raises(NotFound, match=f"there is no run `{asked}`") as caught:
            find_run(home, asked)
        assert caught.value.hint == hint


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"folder": 3}'])
def test_an_unreadable_registration_is_ignored(content: str, tmp_path: Path) -> None:
    register(tmp_path, "whole", tmp_path / "whole")
    (tmp_path / "runs" / "broken.json").write_text(content)
    assert [name for name, _ in list_runs(tmp_path)] == ["whole"]


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        ("{now}", State.RUNNING),
        ("{soon}", State.RUNNING),  # the clocks of two hosts differ
        ("1000000000", State.KILLED),
        ("", State.RUNNING),  # it is being written, or the disk is full
        ("inf", State.KILLED),
        ("nan", State.KILLED),
        ("99999999999", State.KILLED),
        ("9" * 600, State.KILLED),
        ("x", State.KILLED),
    ],
)
def test_a_run_on_another_host_is_known_by_its_signs(tmp_path: Path, sign: str, expected: State) -> None:
    folder, now = RunFolder(tmp_path), time.time()
    record = make_record(process=os.getpid(), process_started=5, started=1e9, host="elsewhere")
    (tmp_path / "alive").write_text(sign.format(now=now, soon=now + 60))
    assert folder.state(record) is expected
    assert summary_of("run", folder).state is State.PREPARED
    folder.write_record(record)
    assert summary_of("run", folder).state is expected
    (tmp_path / "end.json").write_text('{"state": "done"}')
    assert folder.state(record) is State.DONE


@pytest.mark.parametrize(("ends", "expected"), [(False, State.RUNNING), (True, State.DONE)])
def test_a_rank_whose_launcher_was_killed_is_the_run(tmp_path: Path, ends: bool, expected: State) -> None:
    """torch gives each of several ranks a session of its own; the id of the launcher may be reused."""
    folder = RunFolder(tmp_path)
    (tmp_path / "ranks").mkdir()
    with sleeping_process() as rank:
        process, began = rank["process"], rank["process_started"]
        (tmp_path / "ranks" / "1").write_text(f"{process} {began} {socket.gethostname()}")
        for launcher in (2**22 + 1, os.getpid()):
            record = make_record(process=launcher, process_started=5, processes=2)
            if ends:
                (tmp_path / "end.json").write_text('{"state": "done"}')
            assert folder.state(record) is expected
        (tmp_path / "ranks" / "1").write_text(f"{process} {began + 1} {socket.gethostname()}")
        assert folder.state(record) is (State.DONE if ends else State.KILLED)
