"""What preflight refuses for the runner Unsloth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from colablock.training.preflight.facts import Level
from colablock.training.preflight.model_config import from_config
from colablock.training.preflight.unsloth_rules import OWN_KERNELS
from tests.support.training import (
    H100,
    LLAMA_1B,
    OPEN,
    SHAPES,
    T4,
    TODAY,
    a_card,
    a_config,
    a_machine,
    check_run,
    of_level,
    refusal,
)

UNSLOTH = replace(
    TODAY,
    unsloth="2026.10.9",
    trl="1.15.0",
    arch_list=("sm_60", *TODAY.arch_list),
    model_types=TODAY.model_types | {"granite", "gemma"},
)


def test_a_machine_without_a_card_is_refused_with_trl_as_the_way_out() -> None:
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(), UNSLOTH, OPEN, "unsloth"))
    assert one.what == "Unsloth needs a card, and this machine has none"
    assert one.fix == "use `--runner trl`, or a runtime with a card"
    assert check_run(a_config(), SHAPES["1B"], a_machine(), UNSLOTH, OPEN, "trl").passed
    nothing_read = check_run(a_config(), None, a_machine(), UNSLOTH, OPEN, "unsloth")
    assert refusal(nothing_read).what == one.what


@pytest.mark.parametrize(
    ("card", "runs"),
    [
        (a_card("Tesla P100-PCIE-16GB", "6.0", 16), False),
        (a_card("Tesla V100", "7.0", 16), True),
        (T4, True),
        (H100, True),
        (replace(T4, compute_capability=None), True),  # unknown, so it is tried
    ],
)
def test_cards_older_than_triton_are_refused(card: Any, runs: bool) -> None:
    stack = replace(UNSLOTH, arch_list=(*UNSLOTH.arch_list, "sm_70"))
    found = check_run(a_config(sequence_len=256), SHAPES["1B"], a_machine(card), stack, OPEN, "unsloth")
    assert found.passed is runs
    if not runs:
        assert refusal(found).what == "Unsloth has no kernels for the Tesla P100-PCIE-16GB"
        assert refusal(found).fix == "use `--runner trl`, or a runtime with another card"


def test_a_model_for_images_is_refused() -> None:
    tower = {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304}
    shape = from_config({"model_type": "gemma3", "text_config": dict(LLAMA_1B), "vision_config": tower})
    refused = check_run(a_config(), shape, a_machine(H100), UNSLOTH, OPEN, "unsloth")
    (one,) = [one for one in of_level(refused, Level.REFUSE) if "for images" in one.what]
    assert one.fix == "use `--runner trl`"


@pytest.mark.parametrize("kind", [*OWN_KERNELS, "granite", "phi3"])
def test_a_model_without_kernels_of_unsloth_is_noted(kind: str) -> None:
    shape = from_config({**LLAMA_1B, "model_type": kind})
    found = check_run(a_config(), shape, a_machine(H100), UNSLOTH, OPEN, "unsloth")
    assert found.passed
    noted = [one.what for one in of_level(found, Level.NOTE) if "no kernels of its own" in one.what]
    expected = f"Unsloth has no kernels of its own for models of type `{kind}`"
    assert noted == ([] if kind in OWN_KERNELS else [expected])


@pytest.mark.parametrize(("runner", "level"), [("unsloth", Level.REFUSE), ("trl", Level.WARN)])
def test_longer_sequences_than_the_model_has_are_refused(runner: str, level: Level) -> None:
    shape = from_config({**LLAMA_1B, "max_position_embeddings": 2048})
    for length, refused in ((2048, False), (2049, True)):
        config = a_config(sequence_len=length)
        found = check_run(config, shape, a_machine(H100), UNSLOTH, OPEN, runner)
        worst = [one for one in of_level(found, level) if "positions" in one.what]
        assert bool(worst) is refused
        assert found.passed is not (refused and runner == "unsloth")
        if refused and runner == "unsloth":
            assert worst[0].fix == "set `sequence_len: 2048`, or use `--runner trl`"


def test_a_stack_without_unsloth_is_refused() -> None:
    stack = replace(UNSLOTH, unsloth=None)
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(H100), stack, OPEN, "unsloth"))
    assert one.what == "the runner `unsloth` is not installed in the target"
    assert one.fix == "apply a matrix that has unsloth, or use `--runner trl`"
