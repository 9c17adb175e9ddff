"""A model that two processes share by FSDP, on the CPU with gloo: `nox -s training` runs this."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colablock.training.adapter import adapter_of, merge
from colablock.training.runs.checkpoints.finder import (
    is_sharded,
    list_checkpoints,
    newest_valid,
    verify_checkpoint,
)
from colablock.training.runs.folder import RunFolder, State
from colablock.training.runs.launch import free_port
from colablock.training.scripts import FOLDER as SCRIPTS
from tests.support.reporters import Notes
from tests.support.stack import NEEDS_STACK, USUAL, Stack, kill, losses_of, wait_for
from tests.support.timing import until
from tests.support.training_stack import read_record, steps_of
from tests.training.test_real_stack_adapter import in_stack

pytestmark = NEEDS_STACK
UNUSED_HEAD = """\
import os, runpy, sys
from types import SimpleNamespace
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK="0", WORLD_SIZE="1")
torch.distributed.init_process_group("gloo")
mesh = torch.distributed.init_device_mesh("cpu", (1,))
plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
state = SimpleNamespace(fsdp_plugin=plugin)
runpy.run_path(sys.argv[1])["keep_precision"](SimpleNamespace(state=state), torch)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Identity())
model.head = torch.nn.Linear(4, 4)
model.forward = lambda batch: model[0](batch)
for module in (model[0], model.head, model):
    fully_shard(module, mp_policy=plugin.mixed_precision_policy, mesh=mesh)
for is_last in (False, True):
    model.set_requires_gradient_sync(is_last)
    model(torch.ones(2, 4)).sum().backward()
print(model[0].weight.grad.full_tensor().sum().item(), model[0].weight.grad.dtype, model.head.weight.grad)
"""
PRECISION = """\
import os, runpy, sys
from pathlib import Path
import torch
from transformers import Trainer, TrainingArguments

scripts, port, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
other = os.fork()
rank = "0" if other else "1"
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", ACCELERATE_USE_CPU="true")
names = ("shards", "training_watch", "workarounds")
shards, watching, mends = (runpy.run_path(str(scripts / f"{name}.py")) for name in names)
mends["WORKAROUNDS"]["fsdp-on-cpu"]()
job = {"config": {"seed": 0}}
watching["hook_trainer"](watching["TrainingWatch"](folder, job, rank=0, world=1, shards=shards, began=0), job)

class OfAnyRunner(Trainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.state.fsdp_plugin.set_mixed_precision("bf16")  # as accelerate does on cards

trainer = OfAnyRunner(torch.nn.Linear(1, 1), TrainingArguments(str(folder), use_cpu=True, bf16=True))
policy = trainer.accelerator.state.fsdp_plugin.mixed_precision_policy
if other:
    print(policy.param_dtype, policy.output_dtype, policy.reduce_dtype)
    os.waitpid(other, 0)
"""
GATHERED_BITS = """\
import os, runpy, sys
import torch
from torch.distributed.fsdp import fully_shard

def copy_as_cards_do(to, given, non_blocking=False):
    for one, other in zip(to, given):
        is_number = not one.is_floating_point() or ~other.isnan()
        one.copy_(other if is_number is True else torch.where(is_number, other, torch.nan))

other = os.fork()
rank = "0" if other else "1"
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK=rank, WORLD_SIZE="2")
torch.distributed.init_process_group("gloo")
torch._foreach_copy_ = copy_as_cards_do
if sys.argv[3] == "mended":
    runpy.run_path(sys.argv[1])["copy_bits"]()
bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
module = torch.nn.ParameterDict({"packed": torch.nn.Parameter(bits.view(torch.bfloat16).clone())})
module.forward = lambda: None
fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
module.unshard()
if other:
    print((module["packed"].detach().view(torch.int16) != bits).sum().item())
    os.waitpid(other, 0)
"""
NOISE = 2e-5  # of losses and gradient norms in float32, added up in another order
SECONDS = 20.0  # in which all end after one was killed, on a busy machine
BATCH: dict[str, Any] = {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
TWO = ("--", "--num_processes", "2")


@pytest.fixture(scope="module")
def whole(stack: Stack) -> RunFolder:
    """Return a run in one process with the rows of a step that two have with `BATCH`."""
    done = stack.train("whole", micro_batch_size=2, gradient_accumulation_steps=2)
    assert done.code == 0, done.err
    return stack.run_folder("whole")


@pytest.fixture(scope="module")
def cut(stack: Stack) -> RunFolder:
    """Return a sharded run of which one rank was killed after the second checkpoint."""
    done = stack.train("cut", "--shard", "fsdp", "--no-wait", *TWO, **BATCH)
    assert done.code == 0, done.err
    folder = stack.run_folder("cut")
    wait_for(folder, lambda events: sum(event["event"] == "save" for event in events) > 1)
    os.kill(int((folder.path / "ranks" / "1").read_text().split()[0]), signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: not folder.is_alive(), patience=2 * SECONDS)
    assert time.monotonic() - killed < SECONDS
    for name in ("alone", "alone-without-launcher"):
        shutil.copytree(folder.path, folder.path.with_name(name))
    return folder


def test_two_processes_learn_like_one_with_twice_the_batch(stack: Stack, whole: RunFolder) -> None:
    """Each has the whole model, and they do not shard it."""
    done = stack.train("two", *TWO, micro_batch_size=2, save_steps=1000)
    assert done.code == 0, done.err
    folder = stack.run_folder("two")
    record = folder.record()
    assert record is not None
    assert (record.processes, record.is_sharded) == (2, False)
    (start,) = [event for event in folder.metrics() if event["event"] == "start"]
    assert start["world_size"] == 2
    assert verify_checkpoint(folder.path / "checkpoint-8") == ()
    alone, together = losses_of(whole), losses_of(folder)
    assert list(together) == list(alone) == list(range(1, USUAL["max_steps"] + 1))
    for step, (loss, norm) in together.items():
        assert loss == pytest.approx(alone[step][0], abs=1e-3), step
        assert norm == pytest.approx(alone[step][1], rel=0.02), step


def test_all_ranks_end_with_a_clear_word_if_one_is_killed(stack: Stack, cut: RunFolder) -> None:
    assert cut.state() is State.FAILED
    assert cut.end()["error"] == "RankKilled: the process of rank 1 was killed"
    shown = stack.run("runs", "show", "cut")
    assert "a process of the run was killed (SIGKILL)" in shown.out
    assert not cut.adapter.exists()


def test_a_sharded_checkpoint_is_whole_only_with_every_part(cut: RunFolder, tmp_path: Path) -> None:
    newest = newest_valid(cut.path, Notes())
    assert newest is not None
    assert is_sharded(newest)
    manifest = json.loads((newest / "colablock.json").read_text())
    parts = sorted(name for name in manifest["files"] if name.endswith(".distcp"))
    assert [name.rpartition("/")[2] for name in parts] == ["__0_0.distcp", "__1_0.distcp"] * 2
    assert "adapter_model.safetensors" in manifest["files"]
    assert adapter_of(cut.path, reporter=Notes()) == newest  # what `generate` and `merge` read
    assert min(tensors_of(newest)) > 0
    for number, name in enumerate(parts):
        copy = tmp_path / str(number) / newest.name
        shutil.copytree(newest, copy)
        (copy / name).unlink()
        assert verify_checkpoint(copy) == (f"`{name}` is missing",)


def test_it_goes_on_with_the_losses_of_one_process(stack: Stack, whole: RunFolder, cut: RunFolder) -> None:
    refused = stack.train("cut", "--shard", "none", *TWO, **BATCH)
    assert (refused.code, "is sharded, and `--shard none` cannot go on from it" in refused.err) == (1, True)
    refused = stack.train("cut", "--", "--num_processes", "3", **BATCH)
    assert (refused.code, "has 4 rows in a step, which 3 processes cannot share" in refused.err) == (1, True)
    done = stack.train("cut", *TWO, **BATCH)
    assert done.code == 0, done.err
    assert_equal(cut, whole)
    (peaks,) = (event["ranks"] for event in cut.metrics() if event["event"] == "memory")
    assert [one["memory"] > 0 for one in peaks] == [True, True]
    assert all(verify_checkpoint(path) == () for path in list_checkpoints(cut.path))
    record = cut.record()
    assert record is not None
    assert (record.processes, record.is_sharded) == (2, True)
    assert tensors_of(cut.adapter) == pytest.approx(tensors_of(whole.adapter), abs=1e-3)


def test_batches_add_up_in_float32_though_the_head_is_not_gathered() -> None:
    """As on cards with bf16: trl computes with the head, and does not call its module."""
    assert (
        in_stack("-c", UNUSED_HEAD, str(SCRIPTS / "shards.py"), str(free_port()))
        == "64.0 torch.float32 None\n"
    )


def test_the_trainer_of_any_runner_keeps_the_precision_of_the_loss(tmp_path: Path) -> None:
    """accelerate has FSDP round what the model returns, and so the losses of axolotl were of 16 bits."""
    said = in_stack("-c", PRECISION, str(SCRIPTS), str(free_port()), str(tmp_path))
    assert said == "torch.bfloat16 None torch.float32\n"


@pytest.mark.parametrize(("how", "changed"), [("as it is", 252), ("mended", 0)])
def test_packed_weights_are_gathered_bit_by_bit(how: str, changed: int) -> None:
    """Of bf16, 254 values are no number, and cards copy all as one of two; it is done by hand here."""
    said = in_stack("-c", GATHERED_BITS, str(SCRIPTS / "shards.py"), str(free_port()), how)
    assert int(said) == pytest.approx(changed, abs=1)


@pytest.mark.slow
def test_it_goes_on_in_one_process(stack: Stack, whole: RunFolder, cut: RunFolder) -> None:
    alone = RunFolder(cut.path.with_name("alone"))
    done = stack.train("alone", **BATCH)
    assert done.code == 0, done.err
    assert "going on with 1 instead of 2 processes: a step has the same 4 rows" in " ".join(done.err.split())
    assert_equal(alone, whole)
    record = alone.record()
    assert record is not None
    assert (record.processes, record.is_sharded, record.config["gradient_accumulation_steps"]) == (1, True, 4)
    assert is_sharded(list_checkpoints(alone.path)[0])


def end_rank_0(folder: RunFolder) -> tuple[State, str]:
    os.kill(int((folder.path / "ranks" / "0").read_text().split()[0]), signal.SIGKILL)
    return State.FAILED, "RankKilled: the process of rank 0 was killed"


def end_all(folder: RunFolder) -> tuple[State, str]:
    """As the loss of the machine does."""
    kill(folder)
    return State.KILLED, ""


def ask_to_stop(folder: RunFolder) -> tuple[State, str]:
    folder.request_stop()
    return State.STOPPED, ""


def damage_newest(folder: RunFolder) -> tuple[State, str]:
    """A disk was full, or a part was not copied: the checkpoint before it counts."""
    kill(folder)
    newest = list_checkpoints(folder.path)[0]
    (newest / "optimizer_0" / "__1_0.distcp").unlink()
    return State.KILLED, ""


@pytest.mark.slow
@pytest.mark.parametrize("end", [end_rank_0, end_all, ask_to_stop, damage_newest])
def test_a_shared_run_that_ends_early_goes_on(
    stack: Stack, whole: RunFolder, end: Callable[[RunFolder], tuple[State, str]]
) -> None:
    """The losses are those of a run that nobody stopped."""
    name = end.__name__
    done = stack.train(name, "--shard", "fsdp", "--no-wait", *TWO, **BATCH)
    assert done.code == 0, done.err
    folder = stack.run_folder(name)
    wait_for(folder, lambda events: sum(event["event"] == "save" for event in events) > 1)
    state, error = end(folder)
    until(lambda: not folder.is_alive(), patience=3 * SECONDS)
    assert (folder.state(), folder.end().get("error", "")) == (state, error)
    saved = [path.name for path in list_checkpoints(folder.path) if not verify_checkpoint(path)]
    assert all(is_sharded(path) for path in list_checkpoints(folder.path))
    done = stack.train(name, *TWO, **BATCH)
    assert done.code == 0, done.err
    assert_equal(folder, whole)
    record = folder.record()
    assert record is not None
    assert record.resumed_from == saved[0]
    assert (folder.path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_ranks_go_on_without_their_launcher_and_no_second_run_begins(stack: Stack, whole: RunFolder) -> None:
    """Only the launcher was killed, as for want of memory; torch gives each rank a session of its own."""
    name = "without-launcher"
    done = stack.train(name, "--shard", "fsdp", "--no-wait", *TWO, **BATCH)
    assert done.code == 0, done.err
    folder = stack.run_folder(name)
    wait_for(folder, lambda events: any(event["event"] == "save" for event in events))
    os.kill(read_record(folder).process, signal.SIGKILL)
    assert folder.state() is State.RUNNING
    done = stack.train(name, *TWO, **BATCH)
    assert done.code == 0, done.err
    assert_equal(folder, whole)
    assert len(steps_of(folder, "start")) == 1


@pytest.mark.slow
def test_one_rank_goes_on_without_its_launcher_too(stack: Stack, whole: RunFolder, cut: RunFolder) -> None:
    folder = RunFolder(cut.path.with_name("alone-without-launcher"))
    done = stack.train(folder.path.name, "--no-wait", **BATCH)
    assert done.code == 0, done.err
    wait_for(folder, lambda events: sum(event["event"] == "start" for event in events) > 1)
    os.kill(read_record(folder).process, signal.SIGKILL)
    assert folder.state() is State.RUNNING
    done = stack.train(folder.path.name, **BATCH)
    assert done.code == 0, done.err
    assert_equal(folder, whole)
    assert len(steps_of(folder, "start")) == 2


@pytest.mark.slow
def test_the_adapter_of_a_shared_run_is_merged(stack: Stack, whole: RunFolder, tmp_path: Path) -> None:
    """Its merged weights are those of one process."""
    done = stack.train("merged", "--shard", "fsdp", *TWO, **BATCH)
    assert done.code == 0, done.err
    merged = [
        merge(run.path, tmp_path / run.path.name, environ=stack.environ(), reporter=Notes())
        for run in (stack.run_folder("merged"), whole)
    ]
    shared, alone = (tensors_of(folder, "model.safetensors") for folder in merged)
    assert shared == pytest.approx(alone, abs=1e-2)


@pytest.mark.slow
def test_weights_in_full_precision_are_sharded(stack: Stack) -> None:
    settings: dict[str, Any] = {"adapter": "lora", "lora_dropout": 0.1, "max_steps": 2}
    done = stack.train("whole-lora", micro_batch_size=2, gradient_accumulation_steps=2, **settings)
    assert done.code == 0, done.err
    done = stack.train("shared-lora", "--shard", "fsdp", *TWO, **BATCH, **settings)
    assert done.code == 0, done.err
    shared, whole = (losses_of(stack.run_folder(name)) for name in ("shared-lora", "whole-lora"))
    assert shared[1][0] == pytest.approx(whole[1][0], abs=0.05)  # each rank drops values of its own
    assert tensors_of(stack.run_folder("shared-lora").adapter)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])  # sgd has no states to save
def test_other_optimizers_train_a_shared_model(stack: Stack, optimizer: str) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "max_steps": 4}
    whole, shared = f"whole-{optimizer}", f"shared-{optimizer}"
    done = stack.train(whole, micro_batch_size=2, gradient_accumulation_steps=2, **settings)
    assert done.code == 0, done.err
    done = stack.train(shared, "--shard", "fsdp", *TWO, **BATCH, **settings)
    assert done.code == 0, done.err
    assert newest_valid(stack.run_folder(shared).path, Notes()) is not None
    assert_equal(stack.run_folder(shared), stack.run_folder(whole))


def assert_equal(folder: RunFolder, expected: RunFolder) -> None:
    """Assert that two runs have the same losses and gradient norms, but for noise."""
    assert folder.state() is State.DONE
    found, whole = losses_of(folder), losses_of(expected)
    assert found.keys() == whole.keys()
    for step, (loss, norm) in found.items():
        assert loss == pytest.approx(whole[step][0], abs=NOISE), step
        assert norm == pytest.approx(whole[step][1], abs=NOISE), step


def tensors_of(folder: Path, name: str = "adapter_model.safetensors") -> list[float]:
    """Return the norm of each tensor of an adapter or of a model, by its name."""
    data = (folder / name).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    norms = []
    for key in sorted(header.keys() - {"__metadata__"}):
        begin, end = header[key]["data_offsets"]
        part = data[start + begin : start + end]
        if header[key]["dtype"] == "BF16":  # the upper half of the number in 32 bits
            part = array("I", (half << 16 for half in array("H", part))).tobytes()
        norms.append(math.hypot(*array("f", part)))
    return norms
