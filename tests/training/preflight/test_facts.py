"""The precision of a run."""

from __future__ import annotations

import pytest

from colablock.training.preflight.facts import BF16, FP16, FP32, precision_for


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ([], FP32),
        ([(6, 0)], FP16),
        ([(7, 5)], FP16),
        ([(7, 5), (8, 0)], FP16),
        ([(8, 0)], BF16),
        ([(8, 9)], BF16),
        ([(12, 0)], BF16),
        ([None], FP16),  # what every card can
        ([(9, 0), None], FP16),
    ],
)
def test_precision_follows_from_compute_capability(
    capabilities: list[tuple[int, int] | None], precision: object
) -> None:
    assert precision_for(capabilities) is precision


def test_a_precision_sets_every_type_and_flag() -> None:
    assert (BF16.compute, BF16.adapters) == ("bfloat16", "bfloat16")
    assert (BF16.bf16, BF16.fp16, BF16.cast_trainable, BF16.size) == (True, False, False, 2)
    assert (FP16.compute, FP16.adapters) == ("float16", "float32")
    assert (FP16.bf16, FP16.fp16, FP16.cast_trainable, FP16.size) == (False, True, True, 2)
    assert (FP32.bf16, FP32.fp16, FP32.cast_trainable, FP32.size) == (False, False, True, 4)
