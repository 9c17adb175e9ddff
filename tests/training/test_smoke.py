"""The smoke run in the environment of stand-ins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from colablock._common.reporter import Reporter
from colablock.environment.accelerator import Accelerator, declared
from colablock.errors import Refused, TrainingFailed, Unmet
from colablock.training.receipts import Receipt
from colablock.training.smoke import STEPS, smoke
from tests.support.timing import processes_of, until
from tests.support.training_stack import Bench, TrainingStack, build_training_stack


class Stages(Reporter):
    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


def smoked(
    bench: Bench, *, runner: str = "trl", accelerator: Accelerator | None = None, **more: Any
) -> Receipt:
    environ = more.pop("environ", {})
    reporter = more.pop("reporter", Reporter())
    return smoke(
        bench.stack.proven(runner=runner, matrix_digest="d", variant="cpu", python_version="3.12.3", **more),
        runner=runner,
        accelerator=accelerator or Accelerator(),
        environ=bench.environ(TMPDIR=str(bench.folder), **environ),
        reporter=reporter,
    )


def test_a_smoke_run_proves_that_a_stack_trains(bench: Bench) -> None:
    reporter = Stages()
    receipt = smoked(bench, reporter=reporter, environ={"COLAB_RELEASE_TAG": "release-colab_20260825"})
    assert receipt.passed
    assert receipt.after < receipt.before - 0.05
    assert receipt.held[0] == receipt.held[1] == receipt.before
    assert len(receipt.losses) == receipt.steps == STEPS
    assert (receipt.matrix, receipt.matrix_digest, receipt.variant) == ("tiny", "d", "cpu")
    assert (receipt.runner, receipt.workarounds, receipt.lock) == ("trl", (), "l" * 64)
    assert (receipt.card, receipt.compute_capability, receipt.driver, receipt.cuda) == ("cpu", *[None] * 3)
    assert (receipt.precision, receipt.quantized, receipt.notes) == ("fp32", True, ())
    assert (receipt.python_version, receipt.runtime) == ("3.12.3", "release-colab_20260825")
    assert receipt.versions["torch"] == "2.11.0"
    assert receipt.memory > 0
    assert receipt.date.endswith("Z")
    assert reporter.stages == [
        "Making a tiny model and its data",
        "Training 10 steps, and 10 with learning rate 0",
    ]
    assert not (bench.folder / "home").exists()  # no run of the user's


def test_card_and_bitsandbytes_decide_between_lora_and_qlora(bench: Bench) -> None:
    receipt = smoked(bench, versions={"bitsandbytes": "0.45.5"})
    assert not receipt.quantized
    assert receipt.notes == (
        "bitsandbytes 0.45.5 needs a card to quantise: trained LoRA without quantisation",
    )
    assert receipt.passed
    receipt = smoked(bench, accelerator=declared("T4"), versions={"bitsandbytes": "0.43.3"})
    assert (receipt.card, receipt.compute_capability, receipt.precision) == ("Tesla T4", "7.5", "fp16")
    assert receipt.workarounds == ("gqa-before-ampere",)
    assert receipt.quantized
    assert receipt.passed  # its adapters are cast, or the scaler would refuse them


def test_a_card_for_one_process_trains_one_after_the_other(bench: Bench) -> None:
    smi = bench.folder / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho Exclusive_Process\n")
    smi.chmod(0o755)
    notes = bench.folder / "notes"
    environ = {"PATH": f"{smi.parent}:{os.environ['PATH']}", "STAND_IN_NOTES": str(notes)}
    assert smoked(bench, accelerator=declared("T4"), environ=environ).passed
    assert notes.read_text().split() == ["begin", "end"] * 2


def test_unsloth_trains_on_a_card_only(bench: Bench) -> None:
    receipt = smoked(bench, runner="unsloth", accelerator=declared("T4"))
    assert (receipt.runner, receipt.card, receipt.precision) == ("unsloth", "Tesla T4", "fp16")
    assert receipt.passed
    with pytest.raises(Refused, match="Unsloth needs a card") as caught:
        smoked(bench, runner="unsloth")
    assert caught.value.hint == "Use `--runner trl`, or a runtime with a card"


def test_axolotl_needs_its_workaround(bench: Bench) -> None:
    receipt = smoked(bench, runner="axolotl", workarounds=("load-in-4bit-twice",))
    assert receipt.passed
    assert len(receipt.losses) == receipt.steps == STEPS  # the epochs do not end it
    with pytest.raises(TrainingFailed) as caught:
        smoked(bench, runner="axolotl")
    first, *rest = str(caught.value).splitlines()
    assert first == "the smoke run failed"
    assert rest[-1].startswith("  ValueError: You can't pass `load_in_4bit`or `load_in_8bit` as a kwarg")


def test_a_stack_without_bitsandbytes_trains_lora(bench: Bench) -> None:
    receipt = smoked(bench, versions={})
    assert receipt.notes == ("this stack has no bitsandbytes: trained LoRA without quantisation",)
    assert receipt.passed


def test_a_stack_that_cannot_make_the_model_is_an_error(tmp_path: Path) -> None:
    stack: TrainingStack = build_training_stack(tmp_path / "env", without=["tokenizers"])
    message = "could not make a tiny model and its data: ModuleNotFoundError: No module named 'tokenizers'"
    with pytest.raises(Unmet, match=message):
        smoked(Bench(stack=stack, folder=tmp_path))


def test_a_smoke_run_times_out(bench: Bench) -> None:
    with pytest.raises(TrainingFailed, match="the smoke run timed out"):
        smoke(
            bench.stack.proven(),
            runner="trl",
            accelerator=Accelerator(),
            environ=bench.environ(STAND_IN_PAUSE="60", TMPDIR=str(bench.folder)),
            reporter=Reporter(),
            timeout=0.5,
        )
    until(lambda: not processes_of(bench.folder))
