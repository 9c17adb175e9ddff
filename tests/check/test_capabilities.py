"""Capabilities are checked by versions and cards."""

from __future__ import annotations

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.check.capabilities import HOLDS, check_capability
from colablock.environment.accelerator import Accelerator
from tests.support.accelerators import card


@pytest.mark.parametrize(
    ("capability", "versions", "accelerator", "answer"),
    [
        ("nf4", {"bitsandbytes": "0.45.5"}, Accelerator(), "does not hold: bitsandbytes 0.45.5 needs CUDA"),
        ("nf4", {"bitsandbytes": "0.46.0"}, Accelerator(), HOLDS),
        ("nf4", {"bitsandbytes": "0.43.3"}, card("7.5"), HOLDS),
        ("nf4", {"bitsandbytes": "0.50.2"}, card("5.2"), "does not hold: T4 has compute capability 5.2"),
        (
            "nf4",
            {"bitsandbytes": "0.50.2"},
            card(""),
            "not known: the compute capability of the T4 is unknown",
        ),
        ("nf4", {}, card("7.5"), "does not hold: the stack has no bitsandbytes"),
        ("llama3-rope", {"transformers": "4.43.0"}, Accelerator(), HOLDS),
        (
            "llama3-rope",
            {"transformers": "4.41.0"},
            Accelerator(),
            "does not hold: transformers 4.41.0 does not support",
        ),
        ("flight", {}, Accelerator(), "not known: no rule for `flight`"),
    ],
)
def test_a_capability_is_checked(
    capability: str, versions: dict[str, str], accelerator: Accelerator, answer: str
) -> None:
    known = {canonicalize_name(name): version for name, version in versions.items()}
    assert check_capability(capability, known, accelerator).startswith(answer)
