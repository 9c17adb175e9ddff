"""The front door of training, outside a notebook, in the environment of stand-ins."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import colablock
from colablock.api_train import Run
from colablock.errors import InvalidConfig, NotFound, Refused, TrainingFailed
from colablock.training.checkpoints import write_manifest
from colablock.training.run import Named
from tests.support.run_folders import make_checkpoint, make_run
from tests.support.runs import a_run, a_sleeper
from tests.support.training_stack import Bench, end_of, kill, losses_of, steps_of, until


@pytest.fixture
def applied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Give a place where `tiny` was applied; this process has its variables."""
    matrix = bench.folder / "tiny.toml"
    matrix.write_text('schema = 1\nname = "tiny"\n[train]\nrunner = "trl"\n')
    bench.stack.apply(bench.home, matrix)
    for name in ("COLABLOCK_HOME", "COLUMNS", "NO_COLOR", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, bench.environ()[name])
    monkeypatch.setenv("CI", "true")
    return bench


def asked(bench: Bench, **more: Any) -> dict[str, Any]:
    """Return the arguments of a call for six steps."""
    return {
        "model": str(bench.stack.model),
        "dataset": bench.data,
        "output_dir": bench.folder / "run",
        "max_steps": 6,
        "learning_rate": 1e-2,
        "micro_batch_size": 2,
        "sequence_len": 64,
        **more,
    }


def test_a_run_is_followed_to_its_end_and_at_hand_afterwards(
    applied: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    run = colablock.train("tiny", **asked(applied))
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("QLoRA of ")
    assert "one row as it is trained on:" in said
    assert isinstance(run, Run)
    assert (run.id, run.state, run.folder) == ("run", "done", applied.folder / "run")
    assert run.record is not None
    assert (run.record.matrix, run.record.runner) == ("tiny", "trl")
    assert run.metrics[-1]["event"] == "end"
    assert run.summary.progress.step == 6
    assert repr(run).startswith("run: done, 6 steps")
    assert "done" in run._repr_html_()
    assert run.plot(applied.folder / "loss.svg").read_text().lstrip().startswith("<")
    assert [one.id for one in colablock.runs()] == ["run"]
    assert colablock.attach().id == "run"
    assert colablock.attach("run").state == "done"
    assert colablock.attach(applied.folder / "run").folder == run.folder
    archive = run.download(applied.folder / "learnt.zip")
    assert archive.stat().st_size > 0


def test_one_that_is_left_is_attached_to_and_stopped(applied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_PAUSE", "0.05")
    run = colablock.train("tiny", wait=False, quiet=True, **asked(applied, max_steps=100))
    assert run.state == "running"
    assert colablock.attach(wait=False).id == run.id
    until(lambda: steps_of(run._folder))
    run.stop()
    assert colablock.attach().state == "stopped"
    monkeypatch.setenv("STAND_IN_PAUSE", "0")
    resumed = colablock.train("tiny", quiet=True, **asked(applied, max_steps=100))
    assert resumed.state == "done"
    assert resumed.record is not None
    assert resumed.record.resumed_from == f"checkpoint-{steps_of(run._folder, 'save')[0]}"


CELLS = """\
import sys
from pathlib import Path
from colablock.api_train import Run
from colablock.training.run import Named
from colablock.training.run_folder import RunFolder
run = Run(Named("tiny", RunFolder(Path(sys.argv[1]))))
print("follows", flush=True)
run.follow(**eval(sys.argv[2]))
print("the cell behind")
"""


@pytest.mark.parametrize("options", [{}, {"quiet": True}])
def test_one_that_is_not_over_ends_the_cell_that_waits_for_it(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    with a_sleeper() as process:
        folder = a_run(tmp_path / "tiny", **process)
        command = [sys.executable, "-c", CELLS, str(folder.path), repr(options)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as user:
            assert user.stdout is not None
            assert user.stdout.readline() == "follows\n"
            time.sleep(0.3)
            user.send_signal(signal.SIGINT)
            until(folder.stop_file.exists)
            time.sleep(0.1)
            user.send_signal(signal.SIGINT)
            out, err = user.communicate(timeout=30)
        assert out == ""
        assert "KeyboardInterrupt: the run `tiny` goes on; `colablock.attach('tiny')`" in err
        assert folder.is_alive()


def test_only_one_that_runs_is_asked_to_stop(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "tiny", end={"state": "done"})
    run = Run(Named("tiny", folder))
    with pytest.raises(Refused, match="`tiny` does not run: it is done"):
        run.stop()
    assert not folder.stop_file.exists()
    shutil.rmtree(folder.path)
    with pytest.raises(Refused, match="`tiny` does not run: its folder is gone"):
        run.stop()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Return what the cells of a notebook show; this process is its kernel."""
    sent: list[Mapping[str, Any]] = []
    shell = SimpleNamespace(
        kernel=object(),
        display_pub=SimpleNamespace(publish=lambda data, *_, **__: sent.append(data)),
    )
    monkeypatch.setitem(sys.modules, "IPython", cast("Any", SimpleNamespace(get_ipython=lambda: shell)))
    return sent


def test_what_was_passed_over_is_said(tmp_path: Path, published: list[Mapping[str, Any]]) -> None:
    folder = make_run(tmp_path / "run", process=0, python=sys.executable)
    checkpoint = make_checkpoint(folder.path, 20)
    (checkpoint / "adapter_config.json").write_text("{}")
    write_manifest(checkpoint)
    make_checkpoint(folder.path, 40, is_whole=False)
    Run(Named("run", folder)).download(tmp_path / "learnt.zip")
    said = str(published[-1]["text/plain"])
    assert "the run is not done: the adapter is that of checkpoint-20" in said
    assert "checkpoint-40" in said


def test_a_failure_is_raised_with_its_reason(applied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_FAILS_AT", "4")
    for quiet in (True, False):
        with pytest.raises(TrainingFailed, match="the run `run` failed: the disk was full") as caught:
            colablock.train("tiny", quiet=quiet, save_steps=2, fresh=True, **asked(applied))
        assert caught.value.folder == str(applied.folder / "run")
        assert caught.value.hint
    run = colablock.attach(wait=False)
    with pytest.raises(TrainingFailed):
        run.follow()


def test_one_that_was_killed_is_a_failure(applied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_PAUSE", "0.05")
    run = colablock.train("tiny", wait=False, quiet=True, **asked(applied, max_steps=1000))
    until(lambda: steps_of(run._folder))
    kill(run._folder)
    assert run.state == "killed"
    with pytest.raises(TrainingFailed, match=r"the run `run` failed: .* was killed from outside \(SIGKILL\)"):
        run.follow()


@pytest.mark.parametrize("as_file", [True, False])
def test_a_config_is_a_file_or_a_mapping(applied: Bench, as_file: bool) -> None:
    keys = {"base_model": "other/model", "datasets": ["none"], "lora_r": 4, "seed": 3, "max_steps": 2}
    config: Any = keys
    if as_file:
        config = applied.folder / "train.yaml"
        config.write_text(json.dumps(keys))  # which is YAML, too
    given = asked(applied, seed=5, quiet=True)
    del given["max_steps"]
    run = colablock.train("tiny", config=config, **given)
    assert run.record is not None
    found = run.record.config
    assert (found["lora_r"], found["seed"], found["max_steps"]) == (4, 5, 2)
    assert found["datasets"] == [{"path": str(applied.data)}]
    assert list(losses_of(run._folder)) == [1, 2]


def test_several_files_and_launcher_arguments_are_taken(applied: Bench) -> None:
    other = applied.folder / "other.csv"
    other.write_text("prompt,completion\na,b\n")
    run = colablock.train(
        "tiny",
        quiet=True,
        launch_arguments=["--num_cpu_threads_per_process", "3"],
        **asked(applied, dataset=[applied.data, str(other)]),
    )
    assert run.record is not None
    assert run.record.forms == ["text", "completion"]
    assert run.record.command[-4:-2] == ["--num_cpu_threads_per_process", "3"]
    end_of(run._folder)


def test_what_cannot_be_is_raised(applied: Bench) -> None:
    with pytest.raises(InvalidConfig, match="seedd: no such key"):
        colablock.train("tiny", quiet=True, **asked(applied, seedd=1))
    with pytest.raises(NotFound):
        colablock.train("another", quiet=True, **asked(applied))
    with pytest.raises(Refused, match="works on a card only"):
        colablock.train("tiny", quiet=True, **asked(applied, optimizer="paged_adamw_8bit"))
    with pytest.raises(NotFound, match="no run was started here"):
        colablock.attach()
    assert colablock.runs() == []


def test_smoke_returns_and_shows_a_receipt(applied: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = colablock.smoke("tiny")
    assert receipt.passed
    said = capsys.readouterr().out
    assert said.startswith("tiny trains: 10 steps of QLoRA with trl on the CPU, fp32")
    with pytest.raises(TrainingFailed, match="the tiny training run failed"):
        colablock.smoke("tiny", runner="axolotl", quiet=True)
    assert capsys.readouterr().out == ""
    assert not (Path(applied.home) / "runs").exists()
