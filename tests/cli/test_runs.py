from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from colablock.cli.main import main
from colablock.training.runs.folder import register
from tests.support.runs import events_of, make_run, sleeping_process, train


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environ(home: Path) -> Mapping[str, str]:
    return {**os.environ, "COLABLOCK_HOME": str(home), "COLUMNS": "80", "CI": "true"}


def run(environ: Mapping[str, str], *args: str) -> int:
    return main(["runs", *args], environ)


def failed(path: Path, home: Path) -> None:
    error = "OSError: [Errno 28] No space left on device"
    make_run(path, home=home, events=events_of([5.0, 4.0]), end={"state": "failed", "error": error})


def test_the_list_is_newest_first_and_includes_deleted_runs(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(environ, "list") == 0
    assert capsys.readouterr().out == "no runs yet\n"
    make_run(tmp_path / "old", home=home, events=events_of([5.0, 4.0]), end={"state": "done", "step": 2})
    register(home, "lost", tmp_path / "lost")
    failed(tmp_path / "new", home)
    for at, name in enumerate(("old", "lost", "new")):
        os.utime(home / "runs" / f"{name}.json", (at, at))
    assert run(environ, "list") == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["new", "failed", "2/2"], ["lost", "gone", "-"], ["old", "done", "2/2"]]
    assert run(environ, "list", "--json") == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [(one["id"], one["state"]) for one in found] == [
        ("new", "failed"),
        ("lost", "gone"),
        ("old", "done"),
    ]
    assert found[0]["explanation"]["cause"] == "disk-full"
    assert found[2]["progress"]["step"] == 2


def test_the_list_reads_each_file_once_and_no_log(
    tmp_path: Path, home: Path, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(tmp_path / "tiny", home)
    opened: list[str] = []
    really = os.open

    def noted(path: Any, *args: Any, **options: Any) -> Any:
        if Path(path).parent == tmp_path / "tiny":
            opened.append(Path(path).name)
        return really(path, *args, **options)

    monkeypatch.setattr(os, "open", noted)
    assert run(environ, "list") == 0
    assert sorted(name for name in opened if not name.startswith("mirror")) == [
        "end.json",
        "metrics.jsonl",
        "run.json",
    ]


def test_a_run_is_shown_by_id_or_by_folder(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    failed(tmp_path / "tiny", home)
    assert run(environ, "show", "tiny") == 0
    text = capsys.readouterr().out
    assert "Why: the disk is full" in text
    assert run(environ, "show", str(tmp_path / "tiny")) == 0
    assert capsys.readouterr().out == text
    assert run(environ, "show", "tiny", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["record"]["model"] == "some/tiny-llama"
    assert value["progress"]["loss"] == 4.0
    assert run(environ, "show", "tinyy") == 2
    assert "did you mean `tiny`?" in capsys.readouterr().err


def test_nan_is_null_in_json(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "tiny", home=home, events=events_of([5.0, float("nan")]), end={"state": "done"})
    assert run(environ, "show", "--json") == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert json.loads(text)["progress"]["loss"] is None


def test_a_run_is_followed_to_its_end(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with train(tmp_path / "tiny", steps=60, home=home):
        assert run(environ, "follow") == 0
    said = capsys.readouterr()
    assert said.out.startswith("tiny: done, 60 steps")
    assert "adapter: " in said.out
    assert "saved checkpoint-" in said.err
    assert run(environ, "follow", "tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"


def test_a_failed_run_has_its_own_exit_code(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    failed(tmp_path / "tiny", home)
    assert run(environ, "follow", "tiny") == 1
    assert "what to do:" in capsys.readouterr().out


def test_a_run_is_stopped_at_a_checkpoint(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with train(tmp_path / "tiny", steps=100_000, home=home):
        assert run(environ, "stop", "--wait") == 0
    assert "the same call continues from checkpoint-" in capsys.readouterr().out
    assert run(environ, "stop") == 1
    assert "the run `tiny` is not running: it is stopped" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "tiny")
    assert run(environ, "stop") == 1
    assert "the run `tiny` is not running: its folder is gone" in capsys.readouterr().err


def test_a_stop_can_be_requested_without_waiting(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with sleeping_process() as process:
        folder = make_run(tmp_path / "tiny", home=home, **process)
        make_run(tmp_path / "newer", home=home, end={"state": "done"})
        assert run(environ, "stop", "--json") == 0  # the one that runs, though another is newer
        assert json.loads(capsys.readouterr().out) == {"id": "tiny", "asked_to_stop": True}
        assert folder.stop_file.exists()
        assert run(environ, "stop") == 0
        assert capsys.readouterr().err.startswith("asked tiny to stop")
        make_run(tmp_path / "other", home=home, **process)
        assert run(environ, "stop") == 2
        said = capsys.readouterr().err
    assert "2 runs are in progress" in said
    assert "`tiny`" in said


def test_an_interrupt_leaves_the_run_running(tmp_path: Path, home: Path, environ: Mapping[str, str]) -> None:
    with sleeping_process() as process:
        folder = make_run(tmp_path / "tiny", home=home, events=events_of([5.0], total=3), **process)
        command = [sys.executable, "-m", "colablock", "runs", "follow"]
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as following:
            assert following.stderr is not None
            first = following.stderr.readline()
            time.sleep(0.2)
            following.send_signal(signal.SIGINT)
            rest = " ".join(
                following.stderr.read().split()
            )  # the length of the command decides where it wraps
        assert first.startswith(("starting", "step 1/3"))
        assert "the run continues; `colablock.attach('tiny')` or `" in rest
        assert "colablock runs follow tiny` follows it again" in rest  # called as this command was
        assert following.returncode == 130
        assert not folder.stop_file.exists()
        assert folder.is_alive()


def test_the_curve_is_written_to_a_file(
    tmp_path: Path, home: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "tiny", home=home, events=events_of([5.0, 4.0]), end={"state": "done"})
    output = tmp_path / "curve.svg"
    assert run(environ, "plot", "tiny", "-o", str(output)) == 0
    assert "tiny: tiny-llama" in output.read_text()
    assert capsys.readouterr().err.startswith("wrote ")
    assert run(environ, "plot", "--json", "-o", str(output)) == 0
    assert json.loads(capsys.readouterr().out)["written"] == str(output)
    assert run(environ, "plot", "-o", str(tmp_path / "curve.gif")) == 2
    assert "must end in" in capsys.readouterr().err
