"""Wheels that must not be installed, into the kernel or into an environment of their own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.support.hostile import INTO, Target, refused
from tests.support.hostile_wheels import HostileWheel

pytestmark = pytest.mark.slow  # whole commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A wheel, and the words of its refusal."""

    wheel: HostileWheel
    says: str


CASES = {
    "a RECORD with another hash": Case(
        wheel=HostileWheel(
            files={"evil/data.txt": "what is packed"}, record=lambda text: text.replace("sha256=", "sha256=A")
        ),
        says="RECORD",
    ),
}


@pytest.mark.parametrize("into", INTO)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_hostile_wheel_is_refused(case: Case, into: str, target: Target) -> None:
    case.wheel.write(target.wheels)
    target.write_matrix("evil")
    with target.unchanged():
        done = target.apply(into)
    refused(done, case.says)
