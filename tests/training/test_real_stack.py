"""Interrupted runs in a real stack: `nox -s training` applies a stack and runs this in it.

A start of a training process takes half a minute, so tests share runs and each looks at much of one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from colablock.training.runs.checkpoints.finder import list_checkpoints, newest_valid, verify_checkpoint
from colablock.training.runs.folder import MANIFEST, RunFolder, State
from colablock.training.runs.launch import (
    accelerate_config,
    free_port,
    launch_command,
    launch_environment,
    start_process,
    write_job,
)
from colablock.training.runs.runners import runner_of
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.verification.launch import Ranks
from tests.support.paths import DATA
from tests.support.reporters import Notes
from tests.support.stack import NEEDS_STACK, Stack, kill, losses_of, wait_for

pytestmark = NEEDS_STACK
EXACT = 1e-6


@pytest.fixture(scope="module")
def uninterrupted(stack: Stack) -> RunFolder:
    done = stack.train("uninterrupted", lora_dropout=0.1)
    assert done.code == 0, done.err
    return stack.run_folder("uninterrupted")


@pytest.fixture(scope="module")
def killed(stack: Stack) -> RunFolder:
    """Return a run that was killed (SIGKILL) after its second checkpoint."""
    done = stack.train("killed", "--no-wait", lora_dropout=0.1)
    assert done.code == 0, done.err
    folder = stack.run_folder("killed")
    wait_for(folder, lambda events: sum(event["event"] == "save" for event in events) > 1)
    kill(folder)
    assert folder.state() is State.KILLED
    assert not folder.adapter.exists()
    return folder


@pytest.fixture(scope="module")
def damaged(killed: RunFolder) -> RunFolder:
    """Return a copy of that run with a file of the newest valid checkpoint overwritten by zeros."""
    copy = RunFolder(killed.path.with_name("damaged"))
    shutil.copytree(killed.path, copy.path)
    newest = newest_valid(copy.path, Notes())
    assert newest is not None
    file = newest / "optimizer.pt"
    file.write_bytes(bytes(file.stat().st_size))
    return copy


def test_a_run_writes_events_and_manifests(uninterrupted: RunFolder) -> None:
    assert uninterrupted.state() is State.DONE
    assert list(losses_of(uninterrupted)) == list(range(1, 9))
    assert [path.name for path in list_checkpoints(uninterrupted.path)] == ["checkpoint-8", "checkpoint-6"]
    assert all(verify_checkpoint(path) == () for path in list_checkpoints(uninterrupted.path))
    assert (uninterrupted.adapter / "adapter_model.safetensors").exists()
    record = uninterrupted.record()
    assert record is not None
    assert (record.runner, record.processes, record.total_steps) == ("trl", 1, 8)


def test_a_checkpoint_with_any_damaged_file_is_skipped(killed: RunFolder, tmp_path: Path) -> None:
    newest = newest_valid(killed.path, Notes())
    assert newest is not None
    before = next(path for path in list_checkpoints(killed.path) if path.name < newest.name)
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", MANIFEST} <= set(
        map(str, files)
    )
    for number, file in enumerate(files):
        for how in ("deleted", "truncated", "zeroed"):
            run = tmp_path / f"{number}-{how}"
            for checkpoint in (newest, before):
                shutil.copytree(checkpoint, run / checkpoint.name)
            damage(run / newest.name / file, how)
            told = Notes()
            taken = newest_valid(run, told)
            assert taken == run / before.name, f"{file} {how}"
            assert [note.partition(":")[0] for note in told.notes] == [f"{newest.name} is damaged"]
            assert told.notes[0].endswith(f"; using {before.name} instead")


def damage(file: Path, how: str) -> None:
    size = file.stat().st_size
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, size // 2)
    else:
        file.write_bytes(bytes(size))


def test_a_killed_run_resumes_with_the_same_losses(
    stack: Stack, uninterrupted: RunFolder, damaged: RunFolder, killed: RunFolder
) -> None:
    del damaged  # copied before it goes on
    newest = newest_valid(killed.path, Notes())
    assert newest is not None
    goes_on_from(stack, killed, newest.name, as_in=uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_resumes_from_the_one_before(
    stack: Stack, uninterrupted: RunFolder, damaged: RunFolder
) -> None:
    (newest, *_), whole = list_checkpoints(damaged.path), newest_valid(damaged.path, Notes())
    assert whole is not None
    said = goes_on_from(stack, damaged, whole.name, as_in=uninterrupted)
    assert "`optimizer.pt` has changed since it was saved" in said
    assert newest.name != whole.name


def goes_on_from(stack: Stack, folder: RunFolder, checkpoint: str, *, as_in: RunFolder) -> str:
    """Assert that the same call ends the run like the uninterrupted one; return its output."""
    done = stack.train(folder.path.name, lora_dropout=0.1)
    assert done.code == 0, done.err
    assert f"resuming from {checkpoint}" in done.err
    record = folder.record()
    assert record is not None
    assert record.resumed_from == checkpoint
    assert folder.state() is State.DONE
    starts = [event["step"] for event in folder.metrics() if event["event"] == "start"]
    assert starts == [0, int(checkpoint.partition("-")[2])]
    expected = losses_of(as_in)
    for step, (loss, norm) in losses_of(folder).items():
        assert loss == pytest.approx(expected[step][0], abs=EXACT), step
        assert norm == pytest.approx(expected[step][1], abs=EXACT), step
    assert len(losses_of(folder)) == len(expected)
    return done.err


def test_the_script_for_unsloth_trains_in_it(stack: Stack, uninterrupted: RunFolder, tmp_path: Path) -> None:
    """The stand-in of Unsloth is transformers and peft behind Unsloth's names."""
    folder = stack.run_folder("unsloth")
    shutil.copytree(uninterrupted.data, folder.data)
    shutil.copytree(DATA / "training_stack" / "unsloth", tmp_path / "unsloth")
    runner = runner_of("unsloth")
    job = json.loads(uninterrupted.job_file.read_text().replace(str(uninterrupted.path), str(folder.path)))
    job |= {"entry": str(SCRIPTS / "run_unsloth.py"), "imports_first": ["unsloth"]}
    folder.job_file.write_text(json.dumps(job))
    environ = launch_environment(
        stack.python, stack.environ(), reports=False, has_card=False, runner=runner.variables(folder)
    )
    done = subprocess.run(
        [stack.python, SCRIPTS / "shim.py", folder.path],
        env={**environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert folder.end()["state"] == "done"
    losses, expected = losses_of(folder), losses_of(uninterrupted)
    assert losses.keys() == expected.keys()
    assert losses[1][0] == pytest.approx(expected[1][0], abs=EXACT)  # the same rows, labels and weights
    assert losses[8][0] < losses[1][0] - 0.05
    tokens = [[one["tokens"] for one in each.metrics() if "loss" in one] for each in (folder, uninterrupted)]
    assert tokens[0] == tokens[1]
    adapters = [one.adapter / "adapter_model.safetensors" for one in (folder, uninterrupted)]
    assert tensors_of(adapters[0]) == tensors_of(adapters[1])
    assert verify_checkpoint(folder.path / "checkpoint-8") == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unsloth"]  # nothing in the working folder


def tensors_of(file: Path) -> dict[str, list[int]]:
    """Return the names and the shapes of the tensors in a file of safetensors."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {name: one["shape"] for name, one in header.items() if name != "__metadata__"}


# Several hosts


@pytest.mark.slow
def test_a_folder_that_is_like_a_pattern_has_its_own_data(stack: Stack, tmp_path: Path) -> None:
    """datasets would take the tokens of `run-1` too, and expand the variable."""
    first = stack.train("of $HOME [1]/run-1", max_steps=2)
    assert first.code == 0, first.err
    (data := tmp_path / "one.jsonl").write_text('{"text": "The only row there is."}\n')
    other = stack.train("of $HOME [1]/run-?", data=data, max_steps=2)
    assert other.code == 0, other.err
    events = stack.run_folder("of $HOME [1]/run-?").metrics()
    tokens = [event["tokens"] for event in events if event["event"] == "log"]
    assert tokens[1] == 2 * tokens[0]  # each step has the one row


def test_a_rank_with_another_lock_fails(stack: Stack, uninterrupted: RunFolder) -> None:
    port = free_port()
    hosts = [share(stack, uninterrupted, f"host-{rank}", rank=rank, port=port) for rank in range(2)]
    for folder in hosts:
        while folder.is_alive():
            time.sleep(0.1)
        assert folder.state() is State.FAILED
        assert "rank 1 has a different lock than rank 0: other-1 instead of" in folder.end()["error"]
        assert not folder.metrics()


def share(stack: Stack, of: RunFolder, name: str, *, rank: int, port: int) -> RunFolder:
    """Start one host's ranks of a prepared run, the second host with another lock."""
    folder = stack.run_folder(name)
    folder.path.mkdir()
    job = json.loads(of.job_file.read_text().replace(str(of.path), str(folder.path)))
    if rank:
        job["lock"] = f"other-{rank}"
    ranks = Ranks(total=2, hosts=2, host=rank, address="127.0.0.1", port=port)
    write_job(folder, job, accelerate_config(precision="fp32", ranks=ranks, has_card=False))
    command = launch_command(
        stack.python,
        folder,
        precision="fp32",
        ranks=ranks,
        has_card=False,
        threads=1,
    )
    environment = launch_environment(stack.python, stack.environ(), reports=False, has_card=False)
    started = start_process(command, folder, environment)
    record = of.record()
    assert record is not None
    folder.write_record(
        replace(record, process=started.process, process_started=started.process_started, id=name)
    )
    return folder
