"""`train` and `smoke` on the command line, in the environment of stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colablock.api.training import Run
from colablock.cli.main import main
from colablock.display import run_progress
from colablock.display.run_progress import RunDisplay, run_display_for
from colablock.training.find_or_start import NamedRun
from colablock.training.runs.checkpoints.mirror import is_being_mirrored
from colablock.training.runs.folder import RunFolder, State
from tests.support.mirrors import mirrored_names
from tests.support.paths import ROOT
from tests.support.timing import PATIENCE, until
from tests.support.training_stack import (
    Bench,
    kill,
    losses_of,
    read_record,
    steps_of,
)


class CommandLine:
    """Calls the command line, and keeps its output."""

    def __init__(self, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
        self.bench = bench
        self.matrix = bench.folder / "tiny.toml"
        self.matrix.write_text('schema = 1\nname = "tiny"\n[train]\nrunner = "trl"\n')
        bench.stack.apply(bench.home, self.matrix)
        bench.data  # noqa: B018 - the file is written
        self._capsys = capsys
        self.out = self.err = ""

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.bench.folder / "run")

    def environ(self, **more: str) -> dict[str, str]:
        return self.bench.environ(CI="true", **more)

    def argv(self, *argv: str) -> list[str]:
        """Return the arguments of a call of `train` for six steps, with more of them."""
        given = {
            "--model": str(self.bench.stack.model),
            "--dataset": str(self.bench.data),
            "--output-dir": str(self.folder.path),
        }
        words = [word for pair in given.items() for word in pair]
        steps = ("--set", "max_steps=6", "--set", "learning_rate=1e-2", "--set", "micro_batch_size=2")
        return ["train", "tiny", *words, *steps, "--set", "sequence_len=64", *argv]

    def __call__(self, *argv: str, **more: str) -> int:
        self._capsys.readouterr()
        code = main(argv, self.environ(**more))
        self.out, self.err = self._capsys.readouterr()
        return code

    def train(self, *argv: str, **more: str) -> int:
        return self(*self.argv(*argv), **more)

    @property
    def said(self) -> str:
        """Standard error as one line, without the references of errors."""
        return " ".join(re.sub(r" +\[[a-z-]+\]$", "", self.err, flags=re.MULTILINE).split())

    @property
    def told(self) -> str:
        """Standard output as one line."""
        return " ".join(self.out.split())

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def shell(bench: Bench, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(bench, capsys)


def test_a_run_is_briefed_followed_and_summarised(shell: CommandLine) -> None:
    assert shell.train() == 0
    (title,) = (line for line in shell.err.splitlines() if line.startswith("QLoRA of "))
    assert title == "QLoRA of model with trl, fp32, on the CPU"
    said = shell.said
    assert "data 12 rows (text)" in said
    assert re.search(r" steps 6, of \d+ rows? each.*, as `max_steps` says output ", said)
    assert "note training in fp32: this machine has no card" in said
    assert "the loss counts only what is trained trained <s>a kernel begins empty </s>" in said
    assert shell.out.startswith("run: done, 6 steps")
    assert f"adapter: {shell.folder.adapter}" in shell.told.replace("- ", "-")
    assert list(losses_of(shell.folder)) == [1, 2, 3, 4, 5, 6]
    assert read_record(shell.folder).matrix == "tiny"
    assert shell.train() == 0
    assert "the run `run` is already done: `--fresh` trains again" in shell.said
    assert shell.out.startswith("run: done, 6 steps")
    assert shell.train("--quiet", "--fresh") == 0
    assert shell.err == ""
    assert RunFolder(shell.bench.folder / "run.1").state() is State.DONE


def test_the_json_result_is_the_only_output(shell: CommandLine) -> None:
    assert shell.train("--json") == 0
    assert (shell.json["id"], shell.json["state"], shell.json["progress"]["step"]) == ("run", "done", 6)
    assert shell.json["adapter"] == str(shell.folder.adapter)
    assert shell.err == ""


def test_a_run_is_started_without_waiting(shell: CommandLine) -> None:
    asked = ("--no-wait", "--set", "max_steps=100000")
    assert shell.train(*asked, "--json", STAND_IN_PAUSE="0.05") == 0
    assert shell.json == {"id": "run", "folder": str(shell.folder.path), "state": "running"}
    assert shell.train(*asked) == 0
    assert shell.out == "run is running: `colablock runs follow run`\n"
    assert "following the run `run`, which is already running" in shell.said
    assert shell.train("--fresh") == 1
    assert "error: the run `run` is running" in shell.err
    assert "hint: `colablock runs stop run`" in shell.err
    assert shell("runs", "stop", "--wait") == 0
    assert shell.folder.state() is State.STOPPED


def test_a_failed_run_has_an_exit_code_and_a_reason(shell: CommandLine) -> None:
    assert shell.train("--set", "save_steps=2", STAND_IN_FAILS_AT="4") == 1
    assert "the disk is full" in shell.told
    assert shell.train("--set", "save_steps=2", "--json") == 0  # it goes on from what was saved before
    assert steps_of(shell.folder, "start") == [0, 2]
    assert shell.json["record"]["resumed_from"] == "checkpoint-2"


def test_changes_have_to_be_allowed(shell: CommandLine) -> None:
    assert shell.train("--set", "save_steps=2", STAND_IN_FAILS_AT="4") == 1
    assert shell.train("--set", "seed=7") == 1
    said = shell.said
    assert "cannot resume the run `run`: the config (seed: 42 → 7) changed since it was started" in said
    assert "hint: `--resume-anyway`" in said
    assert shell.train("--set", "seed=7", "--resume-anyway") == 0


def test_options_override_the_config_file(shell: CommandLine) -> None:
    config = shell.bench.folder / "train.yaml"
    config.write_text("base_model: other/model\ndatasets: [none.jsonl]\nmax_steps: 9\nlora_r: 4\nseed: 3\n")
    assert shell.train("--config", str(config), "--set", "seed=5", "--json") == 0
    found = shell.json["record"]["config"]
    assert (found["lora_r"], found["seed"], found["max_steps"]) == (4, 5, 6)
    assert found["base_model"] == str(shell.bench.stack.model)


def test_what_is_not_done_as_written_is_told_or_refused(shell: CommandLine) -> None:
    config = shell.bench.folder / "axolotl.yaml"
    text = (
        "load_in_8bit: true\nstrict: false\nbf16: auto\nsequence_len: 64\nlora_modules_to_save: [lm_head]\n"
    )
    config.write_text(text)
    assert shell.train("--config", str(config), "--strict") == 2
    assert "lora_modules_to_save" in shell.said
    assert not shell.folder.path.exists()
    assert shell.train("--config", str(config)) == 0
    assert "only the adapter is trained" in shell.told + shell.said


def test_arguments_after_two_dashes_go_to_the_launcher(shell: CommandLine) -> None:
    assert shell.train("--json", "--", "--num_cpu_threads_per_process", "3") == 0
    command = shell.json["record"]["command"]
    assert command[-4:-2] == ["--num_cpu_threads_per_process", "3"]
    assert Path(command[-2]).name == "shim.py"
    assert shell.train("--fresh", "--json", "--", "--no-such-argument") == 1  # the launcher refuses it
    assert "unrecognized arguments: --no-such-argument" in shell.folder.log.read_text()


def test_a_call_waits_until_the_mirror_has_the_result(shell: CommandLine) -> None:
    """The machine may be taken away after it, as that of a SkyPilot task."""
    drive = shell.bench.folder / "drive"
    assert shell.train("--mirror", str(drive)) == 0
    assert mirrored_names(drive, shell.folder) == {"run-checkpoint-6.tar", "run-adapter.tar"}
    assert "waiting for the mirror" in shell.said
    assert shell.train("--mirror", str(drive), "--json") == 0
    assert shell.json["mirror"] == "adapter is mirrored, not confirmed"


def test_who_follows_a_run_later_waits_for_its_mirror(shell: CommandLine) -> None:
    """`--no-wait` starts the mirror, and a later call in another process waits for it."""
    drive = shell.bench.folder / "drive"
    argv = [sys.executable, "-m", "colablock", *shell.argv("--mirror", str(drive), "--no-wait")]
    subprocess.run(argv, env=shell.environ(PYTHONPATH=str(ROOT)), check=True, capture_output=True)
    run = Run(NamedRun("run", shell.folder))
    assert run.follow(quiet=True).state == "done"
    assert mirrored_names(drive, shell.folder) == {"run-checkpoint-6.tar", "run-adapter.tar"}
    assert run.summary.mirror == "adapter is mirrored, not confirmed"
    assert not is_being_mirrored(shell.folder.path)
    assert shell("runs", "follow", "run") == 0  # nobody mirrors it any more
    assert "waiting for the mirror" not in shell.said


def test_a_mirror_of_another_process_that_is_killed_is_told(shell: CommandLine) -> None:
    drive = shell.bench.folder / "drive"
    argv = [sys.executable, "-m", "colablock", *shell.argv("--mirror", str(drive), "--no-wait")]
    with shell.bench.held() as held:
        environ = shell.environ(PYTHONPATH=str(ROOT), **held)
        subprocess.run(argv, env=environ, check=True, capture_output=True)
        until(lambda: is_being_mirrored(shell.folder.path) and 2 in steps_of(shell.folder))
        (mirror,) = mirrors_of(shell.folder)
        os.kill(mirror, signal.SIGSTOP)
    follow = [sys.executable, "-m", "colablock", "runs", "follow", "run"]
    environ = shell.environ(PYTHONPATH=str(ROOT), COLUMNS="400")
    with subprocess.Popen(follow, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as call:
        assert call.stderr is not None
        while line := call.stderr.readline():
            print("LINE", line)
            if b"waiting for the mirror" in line:
                break
        os.kill(mirror, signal.SIGKILL)
        out, err = call.communicate(timeout=PATIENCE)
    assert "the mirror has not got the whole result of the run `run`" in err.decode(), out.decode()
    assert call.returncode == 1


def test_a_result_that_does_not_reach_the_mirror_is_an_error(shell: CommandLine) -> None:
    drive = shell.bench.folder / "drive"
    argv = [sys.executable, "-m", "colablock", *shell.argv("--mirror", str(drive))]
    with shell.bench.held() as held:
        environ = shell.environ(PYTHONPATH=str(ROOT), COLUMNS="400", **held)
        call = subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: 2 in steps_of(shell.folder) and bool(mirrors_of(shell.folder)))
        for process in mirrors_of(shell.folder):
            os.kill(process, signal.SIGKILL)
    out, err = call.communicate(timeout=PATIENCE)
    assert (call.returncode, shell.folder.state()) == (1, State.DONE)
    assert out.decode().startswith("run: done, 6 steps")
    assert f"the mirror `{drive}` has not got the whole result of the run `run`; it" in err.decode()
    assert "the same call mirrors it again" in err.decode()


def mirrors_of(folder: RunFolder) -> list[int]:
    """Return the processes that mirror a run."""
    words = ("checkpoints.mirror", str(folder.path))
    commands = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [process for process, path in commands.items() if all(word in read(path) for word in words)]


def read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


USAGE: list[tuple[list[str], str]] = [
    (["train", "tiny", "--set", "seed"], "`--set seed` has no value: write `--set key=value`"),
    (["train", "tiny"], "no model and no dataset to train with hint: Pass them: `colablock train tiny"),
    (["train", "tiny", "--config", "none.yaml"], "cannot read the config `none.yaml`"),
    (["train", "tiny", "--model", "a", "--dataset", "d", "--set", "seedd=1"], "did you mean `seed`?"),
    (
        ["train", "tiny", "--model", "a/b", "--dataset", "d", "--mirror", "/no/such"],
        "hint: Create that folder, or mount the drive",
    ),
    (["train", "another", "--model", "a/b", "--dataset", "c/d"], "there is no matrix `another`"),
    (["smoke", "another"], "there is no matrix `another`"),
]


@pytest.mark.parametrize(("argv", "words"), USAGE)
def test_unusable_arguments_exit_with_2(shell: CommandLine, argv: list[str], words: str) -> None:
    assert shell(*argv) == 2
    assert words in shell.said
    assert shell(*argv, "--json") == 2
    assert shell.json["exit_code"] == 2


def test_a_stack_that_changed_since_its_proof_is_refused(shell: CommandLine) -> None:
    stack = shell.bench.stack
    info = stack.site / "peft-0.21.2.dist-info"
    moved = info.with_name("peft-0.22.0.dist-info")
    info.rename(moved)
    try:
        for argv in (shell.argv(), ["smoke", "tiny"]):
            assert shell(*argv) == 1
            assert "the stack of `tiny` has changed since it was proven" in shell.err
            assert f"hint: Run `colablock apply {shell.matrix}` to restore it" in " ".join(shell.err.split())
    finally:
        moved.rename(info)


def test_a_refusal_lists_every_reason_and_can_be_overridden(shell: CommandLine) -> None:
    asked = ("--set", "optimizer=paged_adamw_8bit", "--set", "adapter=qlora")
    assert shell.train(*asked) == 1
    said = shell.said
    assert "not starting the run, which would fail" in said
    assert "`optimizer: paged_adamw_8bit` needs a card" in said
    assert "hint: `--anyway` starts the run despite these findings" in said
    assert not shell.folder.log.exists()
    assert shell.train(*asked, "--anyway") == 0
    assert "refused `optimizer: paged_adamw_8bit` needs a card" in shell.said


def test_an_interrupt_stops_at_a_checkpoint(shell: CommandLine) -> None:
    """A second call resumes from it."""
    argv = [sys.executable, "-m", "colablock", *shell.argv("--set", "max_steps=100000")]
    environ = shell.environ(STAND_IN_PAUSE="0.05", PYTHONPATH=str(ROOT))
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as call:
        until(lambda: 2 in steps_of(shell.folder))
        assert os.getsid(read_record(shell.folder).process) == read_record(shell.folder).process
        assert call.stderr is not None
        lines = iter(call.stderr.readline, b"")
        assert next(line for line in lines if line.startswith((b"starting", b"step"))), "it follows the run"
        call.send_signal(signal.SIGINT)
        out, _ = call.communicate(timeout=PATIENCE)
    assert call.returncode == 0
    assert out.decode().startswith("run: stopped")
    assert shell.folder.state() is State.STOPPED
    stopped = shell.folder.end()["step"]
    assert shell.train("--set", "max_steps=100000", "--no-wait") == 0
    assert read_record(shell.folder).resumed_from == f"checkpoint-{stopped}"
    kill(shell.folder)


def test_an_interrupt_just_after_the_start_stops_the_run_too(
    shell: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def display_for(*arguments: Any, **options: Any) -> RunDisplay:
        calls.append("display")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return run_display_for(*arguments, **options)

    monkeypatch.setattr(run_progress, "run_display_for", display_for)
    assert shell.train("--set", "max_steps=100000", STAND_IN_PAUSE="0.02") == 0
    assert shell.folder.state() is State.STOPPED
    assert shell.out.startswith("run: stopped")


def test_verify_writes_a_receipt_of_the_apply(shell: CommandLine) -> None:
    receipt = shell.bench.folder / "applied.json"
    assert shell("verify", "tiny", "--receipt", str(receipt), "--json") == 0
    value = json.loads(receipt.read_text())
    report = json.loads(shell.out)
    assert (value["kind"], value["matrix"], value["card"]) == ("apply", "tiny", "cpu")
    assert value["checks"] == len([one for one in report["checks"] if not one["skipped"]])
    assert value["imports"] == [one["subject"] for one in report["checks"] if one["kind"] == "import"]
    assert value["python_version"] == report["python_version"]
    assert not [text for text in map(str, value.values()) if "/" in text]  # no path of this machine


@pytest.mark.parametrize(
    "more",
    ['[verify]\nimports = ["json"]\n', '[packages]\ntorch = ">=99"\n', '[constraints]\ntorch = "<99"\n'],
)
def test_a_receipt_is_of_one_file_of_the_matrix(shell: CommandLine, more: str) -> None:
    shell.matrix.write_text(shell.matrix.read_text() + more)
    receipt = shell.bench.folder / "applied.json"
    assert shell("verify", "tiny", "--receipt", str(receipt)) == 1
    assert "error: tiny has changed since it was applied, and a receipt is of the applied file" in shell.said
    assert f"Run `colablock apply {shell.matrix}` again, then verify it" in shell.said
    assert not receipt.exists()
    assert shell("verify", "tiny") == 0
    assert "the checks are those of its current version" in shell.told


def test_smoke_writes_a_receipt(shell: CommandLine) -> None:
    receipt = shell.bench.folder / "receipt.json"
    assert shell("smoke", "tiny", "--receipt", str(receipt)) == 0
    said = shell.told
    assert said.startswith("tiny trains: 10 steps of QLoRA with trl on the CPU, fp32, in ")
    assert "PASS the loss of fixed rows falls: " in said
    assert "PASS with learning rate 0 it stays: " in said
    assert f"receipt {receipt}" in said
    written = json.loads(receipt.read_text())
    assert (written["passed"], written["matrix"], written["runner"]) == (True, "tiny", "trl")
    assert written["versions"]["bitsandbytes"] == "0.50.2"
    assert shell("plan", str(shell.matrix), "--into", "kernel") == 0
    proof = f"training with it is proven on a CPU ({written['date'][:10]})"
    assert proof in shell.told
    assert shell("smoke", "tiny", "--runner", "unsloth") == 1  # it is refused
    assert shell("plan", str(shell.matrix), "--into", "kernel") == 0
    assert proof in shell.told
    assert shell("smoke", "tiny", "--json", "--quiet") == 0
    assert shell.json["passed"] is True
    assert shell.err == ""


@pytest.mark.parametrize("fails", [{"STAND_IN_SPEED": "0"}, {"STAND_IN_FAILS_AT": "10"}])
def test_a_smoke_run_that_does_not_pass_takes_the_proof_away(
    fails: dict[str, str], shell: CommandLine
) -> None:
    """Whether its loss does not fall, or it ends with an error."""
    assert shell("smoke", "tiny") == 0
    assert shell("smoke", "tiny", **fails) == 1
    lost = "an earlier smoke run of this stack passed, and no longer counts as a proof"
    assert lost in shell.said
    assert shell("plan", str(shell.matrix), "--into", "kernel") == 0
    assert "is proven on a CPU" not in shell.told
    assert shell("smoke", "tiny", **fails) == 1
    assert lost not in shell.said


def test_smoke_with_another_runner_may_fail(shell: CommandLine) -> None:
    assert shell("smoke", "tiny", "--runner", "axolotl") == 1  # without the mend
    assert "error: the smoke run failed" in shell.err
    assert "You can't pass `load_in_4bit`" in shell.said


def test_unsloth_is_refused_where_there_is_no_card(shell: CommandLine) -> None:
    assert shell("smoke", "tiny", "--runner", "unsloth") == 1
    assert "error: Unsloth needs a card, and this machine has none: its kernels are for CUDA" in shell.said
    assert "hint: Use `--runner trl`, or a runtime with a card" in shell.said
    assert shell.train("--runner", "unsloth") == 1
    assert "error: not starting the run, which would fail" in shell.said
    assert "Unsloth needs a card, and this machine has none: its kernels are for CUDA" in shell.said
    assert "use `--runner trl`, or a runtime with a card" in shell.said
    assert not (shell.folder.path / "job.json").exists()


def test_a_loss_that_does_not_fall_fails_the_smoke_run(shell: CommandLine) -> None:
    assert shell("smoke", "tiny", STAND_IN_SPEED="0") == 1
    assert shell.told.startswith("tiny does not train: 10 steps")
    assert "FAIL the loss of fixed rows falls: " in shell.told
    assert "error: `tiny` does not train here: the loss is not as expected" in shell.said
    assert shell("smoke", "tiny", "--json", STAND_IN_SPEED="0") == 1
    assert shell.json["passed"] is False
