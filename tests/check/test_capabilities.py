"""Claims judged from versions and cards alone."""

from __future__ import annotations

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.check.capabilities import HOLDS, judge_capability
from colablock.environment.accelerator import Accelerator
from tests.support.accelerators import card


@pytest.mark.parametrize(
    ("claim", "versions", "accelerator", "answer"),
    [
        ("nf4", {"bitsandbytes": "0.45.5"}, Accelerator(), "does not hold: bitsandbytes 0.45.5 quantises on"),
        ("nf4", {"bitsandbytes": "0.46.0"}, Accelerator(), HOLDS),
        ("nf4", {"bitsandbytes": "0.43.3"}, card("7.5"), HOLDS),
        ("nf4", {"bitsandbytes": "0.50.2"}, card("5.2"), "does not hold: T4 has compute capability 5.2"),
        (
            "nf4",
            {"bitsandbytes": "0.50.2"},
            card(""),
            "not known: nobody tells the compute capability of the T4",
        ),
        ("nf4", {}, card("7.5"), "does not hold: bitsandbytes is no part of the stack"),
        ("llama3-rope", {"transformers": "4.43.0"}, Accelerator(), HOLDS),
        (
            "llama3-rope",
            {"transformers": "4.41.0"},
            Accelerator(),
            "does not hold: transformers 4.41.0 reads",
        ),
        ("flight", {}, Accelerator(), "not known: no rule for `flight`"),
    ],
)
def test_a_claimed_capability_is_judged(
    claim: str, versions: dict[str, str], accelerator: Accelerator, answer: str
) -> None:
    known = {canonicalize_name(name): version for name, version in versions.items()}
    assert judge_capability(claim, known, accelerator).startswith(answer)
