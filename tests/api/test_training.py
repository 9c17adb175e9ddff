"""The public training API outside a notebook, in the environment of stand-ins."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import colablock
from colablock.api.training import Run
from colablock.display.notebook import register_displays
from colablock.errors import ColablockError, InvalidConfig, InvalidInput, NotFound, Refused, TrainingFailed
from colablock.training.find_or_start import NamedRun
from colablock.training.receipts import Receipt
from colablock.training.runs.config import values_from
from colablock.training.runs.summary import watch
from tests.support.checkpoints import make_checkpoint, write_manifest
from tests.support.runs import events_of, make_run, process_facts, sleeping_process
from tests.support.slurm import in_job, write_commands
from tests.support.timing import until
from tests.support.training_stack import Bench, end_of, kill, losses_of, steps_of


@pytest.fixture
def applied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a bench where `tiny` was applied; this process has its variables."""
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


def test_a_run_is_followed_to_its_end_and_returned(
    applied: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    run = colablock.train("tiny", **asked(applied))
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("QLoRA of ")
    assert "One training row; " in said
    assert isinstance(run, Run)
    assert (run.id, run.state, run.folder) == ("run", "done", applied.folder / "run")
    assert run.record is not None
    assert (run.record.matrix, run.record.runner) == ("tiny", "trl")
    assert run.metrics[-1]["event"] == "end"
    assert run.summary.progress.step == 6
    assert str(run).startswith("run: done, 6 steps")
    assert "done" in run._repr_html_()
    assert run.plot(applied.folder / "loss.svg").read_text().lstrip().startswith("<")
    assert [one.id for one in colablock.runs()] == ["run"]
    assert colablock.attach().id == "run"
    assert colablock.attach("run").state == "done"
    assert colablock.attach(applied.folder / "run").folder == run.folder
    archive = run.download(applied.folder / "learnt.zip")
    assert archive.stat().st_size > 0


def test_a_run_that_was_left_is_attached_and_stopped(applied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with applied.held() as held:
        for name, value in held.items():
            monkeypatch.setenv(name, value)
        run = colablock.train("tiny", wait=False, quiet=True, **asked(applied, max_steps=100))
        assert run.state == "running"
        assert colablock.attach(wait=False).id == run.id
        until(lambda: steps_of(run._folder))
        run.stop()
    left = colablock.attach()
    assert left.state == "stopped"
    assert "fresh=True" in left._repr_html_()
    assert "--fresh" not in left._repr_html_()
    resumed = colablock.train("tiny", quiet=True, **asked(applied, max_steps=100))
    assert resumed.state == "done"
    assert resumed.record is not None
    assert resumed.record.resumed_from == f"checkpoint-{steps_of(run._folder, 'save')[0]}"


@pytest.mark.parametrize("quiet", [True, False])
def test_leaving_a_running_run_ends_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("colablock.api.training.watch", partial(watch, sleep=interrupt))
    with sleeping_process() as process:
        folder = make_run(tmp_path / "tiny", **process)
        with pytest.raises(
            KeyboardInterrupt,
            match=r"Interrupted\. The run `tiny` saves a checkpoint and stops; `colablock\.attach\('tiny'\)`",
        ):
            Run(NamedRun("tiny", folder)).follow(quiet=quiet)
        assert folder.stop_file.exists()
        assert folder.is_alive()


def test_only_a_running_run_can_be_stopped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "tiny", end={"state": "done"})
    run = Run(NamedRun("tiny", folder))
    with pytest.raises(Refused, match="the run `tiny` is not running: it is done"):
        run.stop()
    assert not folder.stop_file.exists()
    shutil.rmtree(folder.path)
    with pytest.raises(Refused, match="the run `tiny` is not running: its folder is gone"):
        run.stop()


class NotebookShell:
    """A stand-in for the shell of a notebook's kernel, which records what it shows."""

    def __init__(self) -> None:
        self.kernel = object()
        self.sent: list[Mapping[str, Any]] = []
        self.display_pub = self
        self.formatters = {kind: self.Formatter() for kind in ("text/html", "text/plain")}
        self.display_formatter = self
        self.ipython_display_formatter = self.Formatter()

    class Formatter(dict[type, Any]):
        for_type = dict.__setitem__

    def publish(self, data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self.sent.append(data)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> NotebookShell:
    """Make this process the kernel of a notebook."""
    shell = NotebookShell()
    monkeypatch.setitem(sys.modules, "IPython", cast("Any", SimpleNamespace(get_ipython=lambda: shell)))
    monkeypatch.setattr(ColablockError, "_render_traceback_", None, raising=False)  # it goes again
    return shell


def test_a_run_that_a_cell_has_shown_is_no_result_of_it(tmp_path: Path, shell: NotebookShell) -> None:
    folder = make_run(tmp_path / "tiny", events=events_of([5.0, 4.0]), end={"state": "done"})
    run = Run(NamedRun("tiny", folder))
    register_displays()
    whole = run._repr_html_()
    assert "<svg" in whole
    run.follow(quiet=True)
    with pytest.raises(NotImplementedError):  # IPython goes on to its HTML
        shell.ipython_display_formatter[Run](run)
    run.follow()
    shown = shell.sent[-1]["text/html"]
    assert "<svg" in shown or "data:image/png" in shown  # drawn by matplotlib, where that is to be found
    assert shell.ipython_display_formatter[Run](run) is None
    with pytest.raises(NotImplementedError):
        shell.ipython_display_formatter[Run](Run(NamedRun("tiny", folder)))
    assert run._repr_html_() == whole


@pytest.mark.usefixtures("applied")
def test_a_receipt_that_a_cell_has_shown_is_no_result_of_it(shell: NotebookShell) -> None:
    receipt = colablock.smoke("tiny")
    assert "the loss of fixed rows falls" in shell.sent[-1]["text/html"]
    assert shell.ipython_display_formatter[Receipt](receipt) is None
    assert "tiny trains: 10 steps" in shell.formatters["text/html"][Receipt](receipt)
    other = replace(receipt, matrix="another")
    assert "the loss of fixed rows falls" in shell.formatters["text/html"][Receipt](other)


def test_skipped_checkpoints_are_reported(tmp_path: Path, shell: NotebookShell) -> None:
    folder = make_run(tmp_path / "run", process=0, python=sys.executable)
    checkpoint = make_checkpoint(folder.path, 20)
    (checkpoint / "adapter_config.json").write_text("{}")
    write_manifest(checkpoint)
    make_checkpoint(folder.path, 40, is_valid=False)
    Run(NamedRun("run", folder)).download(tmp_path / "learnt.zip")
    said = str(shell.sent[-1]["text/plain"])
    assert "the run is not done: using the adapter of checkpoint-20" in said
    assert "checkpoint-40" in said


def test_a_failure_is_raised_with_its_reason(applied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_FAILS_AT", "4")
    for quiet in (True, False):
        with pytest.raises(TrainingFailed, match="the run `run` failed: the disk is full") as caught:
            colablock.train("tiny", quiet=quiet, save_steps=2, fresh=True, **asked(applied))
        assert caught.value.folder == str(applied.folder / "run")
        assert caught.value.hint
    run = colablock.attach(wait=False)
    with pytest.raises(TrainingFailed):
        run.follow()


def test_a_killed_run_is_a_failure(applied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with applied.held() as held:
        for name, value in held.items():
            monkeypatch.setenv(name, value)
        run = colablock.train("tiny", wait=False, quiet=True, **asked(applied))
        until(lambda: steps_of(run._folder))
        kill(run._folder)
    assert run.state == "killed"
    with pytest.raises(TrainingFailed, match=r"the run `run` failed: .* was killed \(SIGKILL\)"):
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


def test_several_files_and_launcher_arguments_are_accepted(applied: Bench) -> None:
    other = applied.folder / "other.csv"
    other.write_text("prompt,completion\na,b\n")
    run = colablock.train(
        "tiny",
        quiet=True,
        launch_arguments=["--num_cpu_threads_per_process", "3"],
        shard="none",
        **asked(applied, dataset=[applied.data, str(other)]),
    )
    assert run.record is not None
    assert run.record.forms == ["text", "completion"]
    assert run.record.command[-4:-2] == ["--num_cpu_threads_per_process", "3"]
    end_of(run._folder)


ODD = {
    "learning_rate": 2e-5,
    "chat_template": "a: {b} # 'c' \"d\"\nwörter",
    "lora_target_modules": ["q", "v"],
    "lr_scheduler_kwargs": {"min_lr": 1e-7, "a": [1e16, 0.5, -3e-20, True, None]},
    "special_tokens": {"a\x85\U0001f600": "\x7f\x85\u2028\udce9\ufeff\ufffe", "b": [math.inf, -math.inf]},
}


def test_a_stopped_run_of_a_job_does_not_wait_for_its_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm queues the job again, and the next start mirrors what is left."""
    run = make_run(tmp_path, end={"state": "stopped", "step": 1})
    facts = process_facts()  # a mirror that goes on longer than this test
    words = f"{facts['process']} {facts['process_started']} {socket.gethostname()}"
    (run.path / "mirror.process").write_text(words)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert colablock.attach(str(tmp_path)).follow(quiet=True).state == "stopped"


def test_the_commands_for_several_hosts_make_the_same_call(
    applied: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `--hosts` prints them; nothing is started, and no stack is needed here."""
    given = asked(applied, **{**ODD, "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "dataset": None})
    options: dict[str, Any] = {"hosts": ["a", "10.0.0.2"], "fresh": True, "shard": "fsdp", "mirror": "/m"}
    run = colablock.train(str(applied.folder / "tiny.toml"), **options, **given)
    said = capsys.readouterr().out
    expected = {**given, "base_model": given["model"], "output_dir": str(applied.folder / "run")}
    expected = {key: value for key, value in expected.items() if key not in ("model", "dataset")}
    assert list(run.commands) == ["a", "10.0.0.2"]
    for host, command in run.commands.items():
        assert f"on {host}" in said
        words = shlex.split(command)
        assert words[:3] == ["colablock", "train", str(applied.folder / "tiny.toml")]
        assert (words[words.index("--shard") + 1], words[words.index("--mirror") + 1]) == ("fsdp", "/m")
        assert "--fresh" in words
        assert words[words.index("--main_process_ip") + 1] == "a"
        assert values_from(words[at + 1] for at, word in enumerate(words) if word == "--set") == expected
    assert (run.folder, run.state) == (applied.folder / "run", "prepared")
    assert "10.0.0.2" in str(run)
    with pytest.raises(Refused, match="the run `run` has not begun"):
        run.follow()


def test_a_job_of_slurm_is_submitted_from_python(
    applied: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = write_commands(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    options = ["nodes=2", "comment=a b"]
    template = {"chat_template": ODD["chat_template"]}
    run = colablock.train("tiny", launcher="slurm", sbatch=options, anyway=True, **asked(applied, **template))
    assert (run.job, run.state) == ("42", "prepared")
    assert "submitted job 42" in capsys.readouterr().out
    assert "submitted job 42" in str(run)
    script = applied.folder / "run.sbatch"
    text = script.read_text()
    assert "#SBATCH --nodes=2\n#" in text
    assert "#SBATCH --comment='a b'\n" in text
    subprocess.run(["/bin/bash", "-n", str(script)], check=True)
    with pytest.raises(Refused, match="has not begun") as caught:
        run.follow()
    assert "squeue --job 42" in (caught.value.hint or "")
    # The job makes the same call, and follows the run.
    (line,) = (line for line in text.splitlines() if " -m colablock train tiny " in line)
    words = shlex.split(line.removesuffix("&"))
    given = values_from(words[at + 1] for at, word in enumerate(words) if word == "--set")
    assert (given["chat_template"], "--anyway" in words) == (ODD["chat_template"], True)
    for name, value in in_job(commands, os.environ["PATH"], tasks=1).items():
        monkeypatch.setenv(name, value)
    assert colablock.train("tiny", launcher="slurm", quiet=True, **asked(applied)).state == "done"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"launcher": "pbs"}, "`pbs` is not a launcher"),
        ({"sbatch": ["nodes=2"]}, "is an option of a batch script"),
        ({"launcher": "slurm", "hosts": ["a", "b"]}, "Slurm chooses the hosts"),
        ({"hosts": ["a"], "runner": "trl"}, "names one host only"),
        ({"hosts": ["a", "b;rm"], "runner": "trl"}, "is not the name or the address of a host"),
        ({"hosts": "a,b"}, "must be a list"),
        ({"hosts": [1, 2]}, "must be a list"),
    ],
)
def test_places_that_cannot_be_are_refused(applied: Bench, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        colablock.train("tiny", quiet=True, **given, **asked(applied))


def test_invalid_calls_raise(applied: Bench) -> None:
    with pytest.raises(InvalidConfig, match="seedd: unknown key"):
        colablock.train("tiny", quiet=True, **asked(applied, seedd=1))
    with pytest.raises(NotFound):
        colablock.train("another", quiet=True, **asked(applied))
    with pytest.raises(Refused, match="needs a card"):
        colablock.train("tiny", quiet=True, **asked(applied, optimizer="paged_adamw_8bit"))
    with pytest.raises(InvalidInput, match="`tensor` is not a way to shard a model"):
        colablock.train("tiny", quiet=True, shard="tensor", **asked(applied))
    with pytest.raises(NotFound, match="there are no runs"):
        colablock.attach()
    assert colablock.runs() == []


def test_smoke_returns_and_shows_a_receipt(applied: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = colablock.smoke("tiny")
    assert receipt.passed
    said = capsys.readouterr().out
    assert said.startswith("tiny trains: 10 steps of QLoRA with trl on the CPU, fp32")
    with pytest.raises(TrainingFailed, match="the smoke run failed"):
        colablock.smoke("tiny", runner="axolotl", quiet=True)
    assert capsys.readouterr().out == ""
    assert not (Path(applied.home) / "runs").exists()
