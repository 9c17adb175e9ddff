"""Commands that are killed at random times: the next call recovers, and nothing of ours is left behind."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import EVERY_FAULT
from tests.support.killing import JOBS, Killing, make_wheels
from tests.support.server import IndexServer

pytestmark = pytest.mark.slow

SEED = 13
SHARES = {"apply": 20, "rollback": 16, "env": 10, "lock": 7, "cache": 7}  # sixty
MANY, FEW = 50, 16  # distributions; with few, a command does the same in less time


@pytest.fixture(scope="module")
def killing(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Killing]:
    folder = tmp_path_factory.mktemp("killing")
    (folder / "wheels").mkdir()
    count = MANY if request.config.getoption(EVERY_FAULT) else FEW
    make_wheels(folder / "wheels", count)
    with IndexServer(folder / "wheels") as server:
        made = Killing(folder, count, server, random.Random(SEED))
        made.prepare()
        yield made


@pytest.mark.parametrize("job", JOBS)
def test_a_killed_command_leaves_nothing_behind(
    job: str, killing: Killing, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    kills = SHARES[job] if request.config.getoption(EVERY_FAULT) else 2
    outcomes = [killing.kill(job) for _ in range(kills)]
    states = Counter(f"{one.state} state" for one in outcomes)
    record_property(
        "figures",
        f"{job}: killed {kills} times, after {min(one.after for one in outcomes):.1f} to"
        f" {max(one.after for one in outcomes):.1f} s; {killing.count} distributions, then {dict(states)}",
    )
    assert [one for one in outcomes if one.wrong] == []
