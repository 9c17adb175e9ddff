"""Runs are started, found and resumed, in the environment of stand-ins."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.environment.accelerator import Accelerator, declared
from colablock.errors import Interrupted, InvalidInput, NotFound, Refused
from colablock.training.find_or_start import Briefing, NamedRun, TrainOptions, train
from colablock.training.preflight.facts import ProvenEnvironment
from colablock.training.prepared_data import bytecode_folder
from colablock.training.runs.checkpoints.finder import list_checkpoints, newest_valid
from colablock.training.runs.checkpoints.mirror import Mirror, is_being_mirrored
from colablock.training.runs.checkpoints.stores import FolderStore
from colablock.training.runs.config import DataSource, TrainConfig, config_to
from colablock.training.runs.folder import RunFolder, State, find_run, list_runs
from colablock.training.runs.output_folder import lock_run_folder
from colablock.training.runs.summary import summary_of
from tests.support.hub import HubServer
from tests.support.mirrors import mirrored_names
from tests.support.reporters import Notes
from tests.support.timing import until
from tests.support.training_stack import (
    Bench,
    TrainingStack,
    build_training_stack,
    end_of,
    kill,
    losses_of,
    read_record,
    steps_of,
)


class Call:
    """One call of `train`, with its notes and briefings."""

    def __init__(
        self,
        bench: Bench,
        config: TrainConfig | None = None,
        *,
        proven: ProvenEnvironment | None = None,
        **asked: Any,
    ) -> None:
        extra, asked_to_show = asked.pop("environ", {}), asked.pop("show", None)
        self.briefings: list[Briefing] = []
        self.reporter = Notes()
        self.run: NamedRun = train(
            proven or bench.stack.proven(),
            TrainOptions(config=config or bench.config(), **asked),
            home=bench.home,
            environ=bench.environ(**extra),
            reporter=self.reporter,
            show=asked_to_show or self.briefings.append,
        )

    @property
    def notes(self) -> Sequence[str]:
        return [note for note in self.reporter.notes if not note.startswith("the secret")]

    @property
    def folder(self) -> RunFolder:
        return self.run.folder


def cut_off(bench: Bench, config: TrainConfig, *, at: int = 4, **asked: Any) -> RunFolder:
    """Return the folder of a run that was killed after it saved step *at*."""
    with bench.held(at=at) as held:
        folder = Call(bench, config, environ=held, **asked).folder
        until(lambda: at in steps_of(folder, "save"))
        kill(folder)
    return folder


def just_begun(bench: Bench, config: TrainConfig, **asked: Any) -> Call:
    """Return a call whose run was killed before it took a step after the fourth."""
    with bench.held(at=4) as held:
        call = Call(bench, config, environ=held, **asked)
        kill(call.folder)
    return call


def test_a_run_is_started_recorded_and_registered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    git = shutil.which("git") or pytest.skip("there is no git here")
    clone = bench.folder / "clone"
    clone.mkdir()
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([git, "-C", str(clone), *words], check=True)
    monkeypatch.chdir(clone)
    config = bench.config(val_set_size=0.2)
    proven = bench.stack.proven(workarounds=("load-in-4bit-twice",))
    call = Call(bench, config, proven=proven, environ={"COLAB_RELEASE_TAG": "release-colab_20260825"})
    assert call.run == ("run", RunFolder(bench.folder / "run"))
    assert find_run(bench.home) == call.run
    (briefing,) = call.briefings
    assert (briefing.runner, briefing.workarounds, briefing.resumed_from) == ("trl", proven.workarounds, None)
    assert briefing.preflight.passed
    assert briefing.prepared is not None
    assert briefing.prepared["train_rows"] == 10
    assert end_of(call.folder).state() is State.DONE
    record = read_record(call.folder)
    assert record.config == json.loads(json.dumps(config_to(config)))
    assert (record.id, record.matrix, record.runner, record.python) == ("run", "tiny", "trl", proven.python)
    assert (record.lock, record.workarounds, record.forms) == (proven.lock, ["load-in-4bit-twice"], ["text"])
    assert (record.precision, record.processes, record.total_steps, record.seed) == ("fp32", 1, 6, 42)
    assert (record.runtime, record.resumed_from) == ("release-colab_20260825", None)
    assert record.versions["trl"] == "1.16.0"
    assert record.estimate is not None
    assert record.git_revision is not None
    assert len(record.git_revision) == 40
    assert Path(record.command[1]).name == "launcher.py"
    assert [event for event in call.folder.metrics() if "eval_loss" in event]  # about ten times


def test_a_run_records_its_cards(bench: Bench) -> None:
    devices = declared("T4").devices + declared("H100").devices
    accelerator = Accelerator(kind="cuda", driver="580.82.07", devices=devices)
    call = Call(
        bench,
        proven=bench.stack.proven(accelerator=accelerator),
        environ={"CUDA_VISIBLE_DEVICES": "1"},
        anyway=True,  # the stack's torch is built without CUDA
    )
    record = read_record(call.folder)
    kill(call.folder)
    assert (record.cards, record.driver) == ([devices[1].name], "580.82.07")
    assert [briefing.cards for briefing in call.briefings] == [(devices[1].name,)]
    assert (record.precision, record.workarounds) == ("bf16", [])


def interrupt(_: Briefing) -> None:
    raise Interrupted("The call is interrupted before its run begins.")


def test_a_finished_run_is_found(bench: Bench) -> None:
    first = Call(bench)
    end_of(first.folder)
    before = read_record(first.folder)
    second = Call(bench, bench.config(logging_steps=2, save_total_limit=5))  # changes nothing that is learnt
    assert second.notes == ["the run `run` is already done: `--fresh` trains again"]
    assert (second.briefings, read_record(second.folder)) == ([], before)
    for asked in ({"config": bench.config(base_model=str(bench.folder))}, {"show": interrupt}):
        with pytest.raises((Interrupted, InvalidInput)):
            Call(bench, **asked, fresh=True)
        assert list(list_runs(bench.home)) == [first.run]
        assert (read_record(first.folder), (bench.folder / "run.1").exists()) == (before, False)
    third = Call(bench, fresh=True)
    assert list(list_runs(bench.home)) == [third.run, ("run.1", RunFolder(bench.folder / "run.1"))]
    assert third.notes == [f"moved the contents of `{bench.folder}/run` to `{bench.folder}/run.1`"]
    assert end_of(third.folder).state() is State.DONE
    assert read_record(RunFolder(bench.folder / "run.1")) == before
    assert steps_of(third.folder, "start") == [0]


def test_a_finished_run_cannot_be_resumed_with_changes(bench: Bench) -> None:
    end_of(Call(bench).folder)
    other = bench.config(max_steps=3)
    with pytest.raises(
        Refused,
        match=r"the run `run` is done, and the config \(max_steps: 6 → 3\) changed since it was started",
    ) as refused:
        Call(bench, other)
    assert "`--fresh` moves it aside and trains again" in str(refused.value.hint)
    call = Call(bench, other, resume_anyway=True)
    assert call.notes == [
        "the config (max_steps: 6 → 3) changed since the run was started",
        f"moved the contents of `{bench.folder}/run` to `{bench.folder}/run.1`",
    ]
    end_of(call.folder)
    assert list(losses_of(call.folder)) == [1, 2, 3]
    assert [path.name for path in list_checkpoints(call.folder.path)] == ["checkpoint-3"]


def test_a_running_run_is_found_and_not_disturbed(bench: Bench) -> None:
    config = bench.config(max_steps=1000)
    with bench.held() as held:
        first = Call(bench, config, environ=held)
        second = Call(bench, bench.config(seed=7))  # whatever it would be started with
        assert second.notes == ["following the run `run`, which is already running"]
        assert second.run == first.run
        assert second.briefings == []
        with pytest.raises(Refused, match="the run `run` is running") as caught:
            Call(bench, config, fresh=True)
        assert caught.value.hint == "`colablock runs stop run`"
        assert first.folder.state() is State.RUNNING
        kill(first.folder)


def test_a_killed_run_is_resumed(bench: Bench) -> None:
    config = bench.config(max_steps=8, save_steps=2)
    folder = cut_off(bench, config)
    made = (folder.data / "train.parquet").stat().st_mtime_ns
    call = Call(bench, config)
    assert [one.resumed_from for one in call.briefings] == ["checkpoint-4"]
    assert call.notes == []
    assert end_of(folder).state() is State.DONE
    assert read_record(folder).resumed_from == "checkpoint-4"
    assert list(losses_of(folder)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps_of(folder, "start") == [0, 4]
    assert (folder.data / "train.parquet").stat().st_mtime_ns == made  # the same tokens


@pytest.mark.parametrize(("damaged", "taken"), [(1, 2), (2, 0)])
def test_a_damaged_checkpoint_is_skipped(bench: Bench, damaged: int, taken: int) -> None:
    config = bench.config(max_steps=8, save_steps=2)
    folder = cut_off(bench, config)
    for path in list_checkpoints(folder.path)[:damaged]:
        (path / "optimizer.pt").write_text("[]")
    call = Call(bench, config)
    then = "using checkpoint-2 instead" if taken else "there is no valid checkpoint before it"
    assert call.notes[0].startswith("checkpoint-4 is damaged: `optimizer.pt` has 2 bytes instead of ")
    assert call.notes[0].endswith(f"; {then}")
    assert len(call.notes) == damaged
    assert end_of(folder).state() is State.DONE
    assert steps_of(folder, "start") == [0, taken]


def test_damaged_checkpoints_do_not_displace_new_ones(bench: Bench) -> None:
    config = bench.config(max_steps=8, save_steps=2, save_total_limit=3)
    folder = cut_off(bench, config, at=6)
    for path in list_checkpoints(folder.path):
        if path.name != "checkpoint-2":
            (path / "optimizer.pt").write_text("[]")
    with bench.held(at=3) as held:
        call = Call(bench, replace(config, save_steps=3, save_total_limit=2), environ=held)
        assert [one.resumed_from for one in call.briefings] == ["checkpoint-2"]
        until(lambda: 3 in steps_of(folder, "save"))
        kill(folder)
    assert newest_valid(folder.path, Notes()) == folder.path / "checkpoint-3"
    assert {path.name for path in folder.path.glob("unused-*")} >= {"unused-checkpoint-4"}


def test_a_stopped_run_is_resumed(bench: Bench) -> None:
    config = bench.config(max_steps=30)
    with bench.held() as held:
        first = Call(bench, config, environ=held)
        until(lambda: 2 in steps_of(first.folder))
        first.folder.request_stop()
    stopped = end_of(first.folder).end()["step"]
    assert first.folder.state() is State.STOPPED
    call = Call(bench, config)
    assert [one.resumed_from for one in call.briefings] == [f"checkpoint-{stopped}"]
    assert end_of(call.folder).state() is State.DONE
    assert not call.folder.stop_file.exists()


def test_a_stop_that_is_asked_for_before_the_start_is_kept(bench: Bench) -> None:
    """A job of Slurm may be warned while its call still reads the data; the old request is not meant."""
    config = bench.config()
    folder = RunFolder(Path(config.output_dir or ""))
    folder.path.mkdir()
    folder.request_stop()
    seen: list[bool] = []

    def asked(_: Briefing) -> None:
        seen.append(folder.stop_file.exists())
        folder.request_stop()

    with pytest.raises(Interrupted, match="was asked to stop, and has not been started"):
        Call(bench, config, show=asked)
    assert seen == [False]
    assert folder.state() is State.PREPARED
    assert end_of(Call(bench, config).folder).state() is State.DONE


def test_changes_are_refused_unless_allowed(bench: Bench) -> None:
    config = bench.config(max_steps=8, save_steps=2)
    folder = cut_off(bench, config)
    bench.data.write_text('{"text": "something else"}\n')
    changed = bench.config(max_steps=8, save_steps=2, learning_rate=1e-3)
    proven = bench.stack.proven(lock="another")
    words = (
        "cannot resume the run `run`: the config (learning_rate: 0.01 → 0.001), the data and "
        "the lock of the environment changed since it was started"
    )
    with pytest.raises(Refused) as caught:
        Call(bench, changed, proven=proven)
    assert str(caught.value) == words
    assert caught.value.hint is not None
    assert "--resume-anyway" in caught.value.hint
    assert folder.state() is State.KILLED
    call = Call(bench, changed, proven=proven, resume_anyway=True)
    assert call.notes == [
        "the config (learning_rate: 0.01 → 0.001) changed since the run was started",
        "the data changed since the run was started",
        "the lock of the environment changed since the run was started",
    ]
    assert [one.resumed_from for one in call.briefings] == ["checkpoint-4"]
    assert [(one.prepared or {})["rows"] for one in call.briefings] == [1]  # the tokens are made anew
    end_of(folder)
    record = read_record(folder)
    assert (record.lock, record.config["learning_rate"]) == ("another", 1e-3)
    assert Call(bench, changed, proven=proven).notes == [
        "the run `run` is already done: `--fresh` trains again"
    ]


def test_another_runner_is_refused_unless_allowed(bench: Bench) -> None:
    config = bench.config(max_steps=8, save_steps=2)
    folder = cut_off(bench, config)
    mended = bench.stack.proven(runner="axolotl", workarounds=("load-in-4bit-twice",))
    with pytest.raises(Refused, match="the run `run` used the runner trl, not axolotl") as caught:
        Call(bench, config, proven=mended)
    assert caught.value.hint is not None
    assert "--resume-anyway" in caught.value.hint
    with pytest.raises(Refused):
        Call(bench, config, runner="axolotl")
    call = Call(bench, config, proven=mended, resume_anyway=True)
    assert end_of(folder).state() is State.DONE
    assert read_record(folder).runner == "axolotl"
    assert [one.resumed_from for one in call.briefings] == ["checkpoint-4"]


def test_tokens_are_made_for_the_current_data(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    config = bench.config(max_steps=8, save_steps=2, val_set_size=0.2)
    proven = bench.stack.proven(runner="axolotl", workarounds=("load-in-4bit-twice",))
    cut_off(bench, config, proven=proven)  # which holds rows back by itself
    call = just_begun(bench, config, resume_anyway=True)
    assert (call.folder.data / "eval.parquet").is_file()
    made = (call.folder.data / "result.json").read_bytes()
    monkeypatch.setattr(
        "colablock.training.find_or_start.git_revision", lambda *_: 1 / 0
    )  # after the tokens are made
    with pytest.raises(ZeroDivisionError):
        Call(bench, replace(config, sequence_len=8), resume_anyway=True)
    monkeypatch.undo()
    assert (call.folder.data / "result.json").read_bytes() != made
    assert end_of(Call(bench, config).folder).state() is State.DONE
    assert (call.folder.data / "result.json").read_bytes() == made


def test_a_run_is_restored_from_its_mirror(bench: Bench) -> None:
    config, drive = bench.config(max_steps=8, save_steps=2), bench.folder / "drive"
    folder = cut_off(bench, config)
    Mirror(folder, FolderStore(drive), lambda _: None).mirror_newest()
    (kept,) = drive.glob("*.tar")
    step = int(kept.stem.split("-")[2])
    shutil.rmtree(folder.path)
    shutil.rmtree(bench.home)
    call = Call(bench, config, mirror=str(drive))
    assert [one.resumed_from for one in call.briefings] == [f"checkpoint-{step}"]
    assert end_of(folder).state() is State.DONE
    assert list(losses_of(folder)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_with_damaged_checkpoints_is_restored_from_its_mirror(bench: Bench) -> None:
    config, drive = bench.config(max_steps=8, save_steps=2), bench.folder / "drive"
    folder = cut_off(bench, config)
    Mirror(folder, FolderStore(drive), lambda _: None).mirror_newest()
    newest = newest_valid(folder.path, Notes())
    assert newest is not None
    for checkpoint in list_checkpoints(folder.path):
        (checkpoint / "trainer_state.json").unlink()
    call = Call(bench, config, mirror=str(drive))
    assert [one.resumed_from for one in call.briefings] == [newest.name]
    assert end_of(folder).state() is State.DONE
    assert list(losses_of(folder)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_checkpoints_of_an_earlier_run_in_the_mirror_are_not_of_this_one(bench: Bench) -> None:
    """With `--fresh`, another run has the same name, and may end before its first checkpoint."""
    drive = bench.folder / "drive"
    folder = cut_off(bench, bench.config(max_steps=8, save_steps=2))
    Mirror(folder, FolderStore(drive), lambda _: None).mirror_newest()
    changed = bench.config(max_steps=8, save_steps=8, learning_rate=1e-3)
    just_begun(bench, changed, fresh=True)
    call = Call(bench, changed, mirror=str(drive))
    assert [one.resumed_from for one in call.briefings] == [None]
    assert end_of(folder).state() is State.DONE


@pytest.mark.parametrize("has_checkpoint", [True, False])
@pytest.mark.parametrize("changes", [{}, {"learning_rate": 1e-3}], ids=["same config", "another config"])
def test_the_newest_run_of_a_mirror_is_restored_in_an_empty_folder(
    bench: Bench, changes: dict[str, Any], has_checkpoint: bool
) -> None:
    """An earlier run has the same name and later checkpoints; the machine of the newer one is lost."""
    drive = bench.folder / "drive"
    first = bench.config(max_steps=8, save_steps=2)
    folder = cut_off(bench, first, at=6)
    Mirror(folder, FolderStore(drive), lambda _: None).mirror_newest()
    earlier = mirrored_names(drive, folder)
    mark = read_record(folder).mark
    newer = bench.config(max_steps=8, save_steps=2 if has_checkpoint else 8, **changes)
    if has_checkpoint:
        cut_off(bench, newer, at=2, fresh=True, mirror=str(drive))
    else:
        just_begun(bench, newer, fresh=True, mirror=str(drive))
    until(lambda: not is_being_mirrored(folder.path))
    shutil.rmtree(folder.path)
    call = Call(bench, newer, mirror=str(drive))
    assert [one.resumed_from for one in call.briefings] == ["checkpoint-2" if has_checkpoint else None]
    assert end_of(folder).state() is State.DONE
    until(lambda: not is_being_mirrored(folder.path))
    # The earlier run is still there, for who asks for it.
    (drive / "run-newest.txt").write_text(f"{mark}\n")
    shutil.rmtree(folder.path)
    call = Call(bench, first, mirror=str(drive))
    assert {f"run-{one.resumed_from}.tar" for one in call.briefings} == earlier
    assert read_record(folder).mark == mark
    assert end_of(folder).state() is State.DONE


def test_a_start_from_the_beginning_is_another_run_in_a_mirror(bench: Bench) -> None:
    """Its checkpoints do not follow those that the folder has lost; a resumed run goes on as the same."""
    config = bench.config(max_steps=8, save_steps=2)
    first = read_record(cut_off(bench, config, at=2)).mark
    folder = cut_off(bench, config, at=4)
    assert read_record(folder).mark == first
    for checkpoint in list_checkpoints(folder.path):
        (checkpoint / "trainer_state.json").unlink()
    assert read_record(cut_off(bench, config, at=2)).mark not in ("", first)


def test_a_mirror_without_a_name_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="is not a mirror"):
        Call(bench, mirror="")


def test_another_host_restores_the_run_of_the_first(bench: Bench) -> None:
    config, drive = bench.config(max_steps=8, save_steps=2), bench.folder / "drive"
    folder = cut_off(bench, config)
    Mirror(folder, FolderStore(drive), lambda _: None).mirror_newest()
    folder.path.rename(bench.folder / "of-the-first")  # the hosts share their home, and not this disk
    several = (
        "--num_machines",
        "2",
        "--machine_rank",
        "1",
        "--main_process_ip",
        "h",
        "--main_process_port",
        "1",
    )
    call = Call(bench, config, mirror=str(drive), launch_arguments=several)
    kill(call.folder)
    assert call.run == ("run-host-1", RunFolder(bench.folder / "host-1" / "run"))
    assert read_record(call.folder).resumed_from is not None
    assert not [note for note in call.notes if "is called" in note]


@pytest.mark.slow
def test_a_finished_run_is_mirrored_on_request(bench: Bench) -> None:
    drive = bench.folder / "drive"
    end_of(Call(bench).folder)
    call = Call(bench, mirror=str(drive))
    assert call.notes == ["the run `run` is already done: `--fresh` trains again"]
    until(lambda: mirrored_names(drive, call.folder) == {"run-checkpoint-6.tar", "run-adapter.tar"})


def test_checkpoints_are_mirrored_while_a_run_trains(bench: Bench) -> None:
    drive = bench.folder / "drive"
    with bench.held(at=10) as held:
        call = Call(bench, bench.config(max_steps=40, save_steps=10), mirror=str(drive), environ=held)
        # Of a first start nothing is restored.
        until(lambda: mirrored_names(drive, call.folder) == {"run-checkpoint-10.tar"})
        kill(call.folder)
    with pytest.raises(InvalidInput, match="not a repository on the hub"):
        Call(bench, mirror="hf://nobody")


def test_a_second_concurrent_call_is_refused(bench: Bench) -> None:
    with (
        lock_run_folder(bench.folder / "run"),
        pytest.raises(Refused, match="another call is starting a run in `"),
    ):
        Call(bench)
    end_of(Call(bench).folder)
    with pytest.raises(Refused, match="another call"), lock_run_folder(bench.folder / "run"):
        Call(bench, fresh=True)


def test_a_run_that_would_fail_is_refused_unless_forced(tmp_path: Path) -> None:
    stack: TrainingStack = build_training_stack(tmp_path / "env", without=["bitsandbytes"])
    bench = Bench(stack=stack, folder=tmp_path)
    with pytest.raises(Refused) as caught:
        Call(bench)
    assert str(caught.value).splitlines() == [
        "not starting the run, which would fail",
        "  bitsandbytes is not installed in the target: `adapter: qlora` needs it",
        "    apply a QLoRA matrix, which has it, or `adapter: lora`",
    ]
    assert caught.value.hint == "`--anyway` starts the run despite these findings"
    assert RunFolder(tmp_path / "run").state() is State.PREPARED
    call = Call(bench, anyway=True)
    assert end_of(call.folder).state() is State.DONE  # the stand-ins do not need it
    assert not call.briefings[0].preflight.passed


def test_unusable_data_and_folders_are_refused(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"cannot use the output folder `.*/run`: Not a directory"):
        Call(bench, bench.config(output_dir=str(bench.folder / "file/run")))
    bench.data.write_text('{"question": "a"}\n')
    with pytest.raises(InvalidInput, match="cannot train on this data"):
        Call(bench)
    assert RunFolder(bench.folder / "run").state() is State.PREPARED


@pytest.mark.parametrize("anyway", [False, True])
def test_a_missing_model_folder_is_reported_as_such(bench: Bench, anyway: bool) -> None:
    with pytest.raises(NotFound, match=r"`\./none` is neither a folder nor a valid name"):
        Call(bench, bench.config(base_model="./none"), anyway=anyway)
    assert RunFolder(bench.folder / "run").state() is State.PREPARED


@pytest.mark.parametrize(
    ("file", "hint"),
    [("README.md", "the folder that has `config.json`"), ("adapter_config.json", "an adapter")],
)
def test_a_folder_without_a_config_is_no_model(bench: Bench, file: str, hint: str) -> None:
    model = bench.folder / "model"
    model.mkdir()
    (model / file).write_text("{}")
    with pytest.raises(InvalidInput, match=r"is not a model: it has no `config\.json`") as caught:
        Call(bench, bench.config(base_model=str(model)), anyway=True)
    assert hint in str(caught.value.hint)


def test_memory_is_reckoned_for_the_longest_row_that_there_is(bench: Bench) -> None:
    config = bench.config(sequence_len=1 << 20, micro_batch_size=64)  # 128 GiB for the logits alone
    call = Call(bench, config)
    estimate = call.briefings[0].preflight.estimate
    assert estimate is not None
    assert estimate.total < 2 * 2**30
    assert read_record(call.folder).estimate == estimate.total
    end_of(call.folder)


def test_facts_and_tokens_come_from_one_process(tmp_path: Path) -> None:
    stack = build_training_stack(tmp_path / "env")
    bench, called = Bench(stack=stack, folder=tmp_path), tmp_path / "called"
    torch = stack.site / "torch" / "version.py"
    torch.write_text(
        f"{torch.read_text()}\nimport os, sys\n"
        f"if sys.argv[0] == '-c':\n    print(os.getpid(), file=open({str(called)!r}, 'a'))\n"
    )
    config = bench.config(max_steps=2)
    call = Call(bench, config)
    end_of(call.folder)
    assert len(called.read_text().split()) == 1
    record, progress = read_record(call.folder), summary_of(call.run.id, call.folder).progress
    assert list(record.seconds) == ["facts", "tokens"]
    assert list(progress.beginning) == ["facts", "tokens", "launch", "load", "first step"]
    assert all(0 <= taken < 60 for taken in progress.beginning.values())
    made = (call.folder.data / "result.json").stat().st_mtime_ns
    again = Call(bench, replace(config, max_steps=3), resume_anyway=True)  # with the tokens that are there
    end_of(again.folder)
    assert (again.folder.data / "result.json").stat().st_mtime_ns > made  # in a folder of its own
    assert list(read_record(again.folder).seconds) == ["facts", "tokens"]
    assert len(called.read_text().split()) == 2


def bytecode_in(folder: Path) -> list[str]:
    return sorted(path.parts[-1].partition(".")[0] for path in folder.rglob("*.pyc"))


def test_bytecode_of_a_stack_without_it_is_kept_in_the_cache(tmp_path: Path) -> None:
    stack = build_training_stack(tmp_path / "env")
    bench = Bench(stack=stack, folder=tmp_path)
    cache = tmp_path / "cache"
    environ = {"COLABLOCK_CACHE_DIR": str(cache)}
    proven = stack.proven(sites=(str(stack.site),))
    assert end_of(Call(bench, proven=proven, environ=environ).folder).state() is State.DONE
    (folder,) = (cache / "bytecode").glob("*/*")
    kept = bytecode_in(folder)
    assert {"launch", "trainer", "trl"} <= set(kept)
    assert bytecode_in(stack.site) == []
    assert end_of(Call(bench, proven=proven, environ=environ, fresh=True).folder).state() is State.DONE
    assert (list((cache / "bytecode").glob("*/*")), bytecode_in(folder)) == ([folder], kept)

    assert bytecode_folder(proven, environ) == folder
    changed = replace(proven, versions={**proven.versions, "trl": "1.16.1"})
    assert bytecode_folder(changed, environ) not in (folder, None)
    assert bytecode_folder(replace(proven, sites=()), environ) is None
    assert bytecode_folder(proven, {"COLABLOCK_CACHE_DIR": str(stack.model / "config.json")}) is None
    cache.chmod(0o777)
    assert bytecode_folder(proven, environ) is None  # others could change it
    cache.chmod(0o700)
    (stack.site / "torch" / "__pycache__").mkdir()
    assert bytecode_folder(proven, environ) is None  # it has its own


def works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:  # it has ended, or is another user's
        return False


def test_a_refused_run_keeps_earlier_tokens_and_leaves_no_process(bench: Bench) -> None:
    config = bench.config(max_steps=8, save_steps=2)
    folder = cut_off(bench, config)
    before, log = (folder.data / "result.json").read_bytes(), folder.log.read_bytes()
    bench.data.write_text('{"text": "something else"}\n' * 400_000)  # takes a while
    with pytest.raises(Refused, match="no layer `none`"):
        Call(bench, replace(config, lora_target_modules=("none",)), resume_anyway=True)
    assert (folder.data / "result.json").read_bytes() == before
    assert folder.log.read_bytes() == log
    assert not list(folder.path.glob(".data"))
    # One that was killed is there for a moment, and one that was not would take longer than this.
    until(lambda: not any(works_in(one, folder.path) for one in Path("/proc").glob("[0-9]*")), patience=1.0)


def test_a_plain_run_takes_the_largest_batch_and_keeps_it(bench: Bench) -> None:
    on_card = bench.stack.proven(accelerator=Accelerator(kind="cuda", devices=declared("H100").devices))
    config = bench.config(micro_batch_size=1, gradient_accumulation_steps=8, max_steps=8, save_steps=2)
    asked: dict[str, Any] = {"proven": on_card, "anyway": True, "sizes_batch": True}  # torch has no CUDA
    several = just_begun(
        bench, config, **asked, launch_arguments=("--num_machines", "2", "--main_process_ip", "h")
    )
    assert read_record(several.folder).config["micro_batch_size"] == 1  # other hosts may not have its card
    with bench.held(at=4) as held:
        call = Call(bench, config, **asked, fresh=True, environ=held)
        until(lambda: 4 in steps_of(call.folder, "save"))
        kill(call.folder)
    record = read_record(call.folder)
    assert (record.config["micro_batch_size"], record.config["gradient_accumulation_steps"]) == (8, 1)
    assert [one.config.micro_batch_size for one in call.briefings] == [8]
    assert record.config_digest == config.digest()
    with pytest.raises(Refused, match=r"the config \(learning_rate: 0.01 → 0.001\) changed"):
        Call(bench, replace(config, learning_rate=1e-3), **asked)
    for proven, batch in ((bench.stack.proven(), 8), (on_card, 8)):  # also where it would not be chosen
        resumed = just_begun(bench, config, **{**asked, "proven": proven})
        assert resumed.briefings[0].resumed_from is not None
        assert read_record(resumed.folder).config["micro_batch_size"] == batch
    given = just_begun(bench, config, proven=on_card, anyway=True)
    assert read_record(given.folder).config["micro_batch_size"] == 1


def test_a_token_beyond_the_vocabulary_is_refused(bench: Bench) -> None:
    model = bench.folder / "model"
    shutil.copytree(bench.stack.model, model)
    shape = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**shape, "vocab_size": 3}))
    with pytest.raises(
        InvalidInput, match=r"the data have the token \d+, and the model has embeddings for 3"
    ):
        Call(bench, bench.config(base_model=str(model)))


def test_a_model_of_unknown_shape_is_trained(bench: Bench) -> None:
    model = bench.folder / "model"
    shutil.copytree(bench.stack.model, model)
    shape = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**shape, "hidden_size": None}))
    call = Call(bench, bench.config(base_model=str(model)))
    assert [note for note in call.notes if "cannot read the model's config" in note]
    assert read_record(call.folder).estimate is None
    assert end_of(call.folder).state() is State.DONE


def test_runs_of_two_working_folders_get_different_names(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for place in ("a", "b", "a"):
        (bench.folder / place).mkdir(exist_ok=True)
        monkeypatch.chdir(bench.folder / place)
        call = Call(bench, bench.config(output_dir=None))
        assert call.folder.path == bench.folder / place / "outputs" / call.run.id
        end_of(call.folder)
        names.append(call.run.id)
    assert names == ["model-data", "model-data-2", "model-data"]


def test_a_changed_file_of_a_template_is_a_changed_config(bench: Bench) -> None:
    data = bench.folder / "talk.jsonl"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    data.write_text(f"{json.dumps({'messages': talk})}\n" * 8)
    template = bench.folder / "mine.jinja"
    template.write_text("{{ messages[0].content }}")
    config = bench.config(datasets=(DataSource(path=str(data)),), chat_template=str(template))
    call = Call(bench, config)
    assert end_of(call.folder).state() is State.DONE
    assert read_record(call.folder).config["chat_template"] == "{{ messages[0].content }}"
    template.write_text("{{ messages[1].content }}")
    with pytest.raises(Refused, match="the config \\(chat_template: "):
        Call(bench, config)
    with pytest.raises(InvalidInput, match="has no Jinja tag"):
        Call(bench, bench.config(chat_template="a text"))


def test_a_dataset_that_the_hub_does_not_have_is_told_before_anything_is_fetched(bench: Bench) -> None:
    config = bench.config(datasets=(DataSource(path="me/lost"),))
    with HubServer({}) as hub:
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.root, "HF_HOME": str(bench.folder / "hub")}
        with pytest.raises(NotFound, match="the hub has no dataset `me/lost`"):
            Call(bench, config, environ=online)
        assert hub.asked == ["HEAD /datasets/me/lost/resolve/main/config.json"]


def test_another_number_of_processes_keeps_the_rows_of_a_step(bench: Bench) -> None:
    config = bench.config(micro_batch_size=2, gradient_accumulation_steps=1, max_steps=8, save_steps=2)
    two, three = (("--num_processes", number) for number in ("2", "3"))
    folder = cut_off(bench, config, launch_arguments=two)
    assert read_record(folder).processes == 2
    with pytest.raises(Refused, match="has 4 rows in a step, which 3 processes cannot share") as caught:
        Call(bench, config, launch_arguments=three)
    assert caught.value.hint == "Go on with 2, or another number that divides 4"
    call = just_begun(bench, config)
    batch = ("micro_batch_size", "gradient_accumulation_steps")
    assert [read_record(call.folder).config[key] for key in batch] == [2, 2]
    told = [note for note in call.notes if note.startswith("going on with")]
    kept = "`micro_batch_size: 2` and `gradient_accumulation_steps: 2`"
    assert told == [f"going on with 1 instead of 2 processes: a step has the same 4 rows, with {kept}"]
    four = just_begun(bench, config, launch_arguments=("--num_processes", "4"))  # each has one row
    assert [read_record(four.folder).config[key] for key in batch] == [1, 1]
    last = Call(bench, config, launch_arguments=two)
    assert end_of(last.folder).state() is State.DONE
    assert [read_record(last.folder).config[key] for key in batch] == [2, 1]
    assert list(losses_of(last.folder)) == list(range(1, 9))


def test_fewer_rows_at_a_time_are_not_those_of_the_checkpoint(bench: Bench) -> None:
    config = bench.config(micro_batch_size=4, gradient_accumulation_steps=1, max_steps=8, save_steps=2)
    folder = cut_off(bench, config)
    assert rows_at_a_time(folder, 4) == 4
    call = Call(bench, config, launch_arguments=("--num_processes", "2"))
    assert end_of(folder).state() is State.DONE
    assert any("the same 4 rows, with `micro_batch_size: 2` and" in note for note in call.notes)
    assert rows_at_a_time(folder, 8) == 2


def test_hosts_that_join_a_run_keep_the_rows_of_its_steps(bench: Bench) -> None:
    config = bench.config(micro_batch_size=1, gradient_accumulation_steps=4, max_steps=8, save_steps=2)
    cut_off(bench, config)
    calls = on_hosts(bench, config, 2)
    for call, change in zip(calls, ("2 instead of 1 process", "2 processes"), strict=True):
        assert end_of(call.folder).state() is State.DONE
        assert any(f"going on with {change}: a step has the same 4 rows" in note for note in call.notes)
        assert read_record(call.folder).config["gradient_accumulation_steps"] == 2
        assert read_record(call.folder).resumed_from == "checkpoint-4"


def on_hosts(bench: Bench, config: TrainConfig, hosts: int, **asked: Any) -> list[Call]:
    """Return the calls that start a run with a process on each of several hosts."""
    (store := bench.folder / "store").mkdir(exist_ok=True)
    place = ("--main_process_ip", "127.0.0.1", "--main_process_port", "1")
    found = []
    for rank in range(hosts):
        several = ("--num_machines", str(hosts), "--machine_rank", str(rank))
        environ = {"STAND_IN_STORE": str(store)}
        found.append(Call(bench, config, launch_arguments=(*several, *place), environ=environ, **asked))
    return found


def rows_at_a_time(folder: RunFolder, step: int) -> int:
    """Return the rows at a time that the trainer had in each process when it saved *step*."""
    state = json.loads((folder.path / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert isinstance(state["train_batch_size"], int)
    return state["train_batch_size"]


def test_a_run_goes_on_as_its_checkpoint_was_saved(bench: Bench) -> None:
    config = bench.config(max_steps=8, save_steps=2)
    with pytest.raises(
        InvalidInput, match="`zero3` is not a way to shard a model: it is one of `auto`, `fsdp`"
    ):
        Call(bench, config, shard="zero3")
    folder = cut_off(bench, config)
    with pytest.raises(Refused, match="is not sharded, and `--shard fsdp` cannot go on") as caught:
        Call(bench, config, shard="fsdp")
    assert "Leave `--shard` out" in str(caught.value.hint)
    asked = just_begun(bench, replace(config, fsdp_config={"reshard_after_forward": True}))
    assert asked.notes.count("checkpoint-4 is not sharded: the run goes on without sharding") == 1
    assert not read_record(asked.folder).is_sharded
    (folder.path / "checkpoint-4" / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(Refused, match="checkpoint-4 is sharded, and `--shard none` cannot go on"):
        Call(bench, config, shard="none")
    (folder.path / "checkpoint-4" / "pytorch_model_fsdp_0").rmdir()
    (folder.path / "checkpoint-4" / "pytorch_model_fsdp.bin").touch()  # saved as a whole, by axolotl
    with pytest.raises(Refused, match="checkpoint-4 is sharded, and `--shard none` cannot go on"):
        Call(bench, config, shard="none")
