"""Requirements that were unmet before an apply, and those that an apply would break: whole commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from colablock.errors import ExitCode
from tests.support.runtime import Stub, build_site, make_venv, site_of
from tests.support.trees import listing
from tests.support.wheels import make_wheel
from tests.support.world import Done, World, open_world

pytestmark = pytest.mark.slow  # whole commands

MATRIX = """\
schema = 1
name = "painting"
[packages]
colours = "==2.0"
[verify]
imports = ["colours"]
"""
# The layout of `cudf` and `cuda-toolkit` in the recorded image colab-2026.04-gpu.
UNMET_EXTRA = (
    Stub(name="aaa", version="1", requires=("bbb[x]",)),
    Stub(name="bbb", version="1", requires=('ccc>=2; extra == "x"',), extras=("x",)),
    Stub(name="ccc", version="1"),
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path, tmp_path / "index") as found:
        yield found


def environment(world: World, stubs: Sequence[Stub]) -> Path:
    """Make an environment with *stubs*."""
    folder = world.folder / "env"
    make_venv(folder, sys.executable)
    build_site(site_of(folder), stubs)
    return folder


def call(world: World, command: str, folder: Path, *more: str) -> Done:
    (world.folder / "painting.toml").write_text(MATRIX)
    python = str(folder / "bin" / "python")
    return world.run(command, "painting.toml", "--into", "kernel", "--python", python, *more)


def test_an_extra_that_was_unmet_before_does_not_roll_back(world: World) -> None:
    make_wheel(world.folder / "index", "colours", "2.0", requires=["aaa"])
    folder = environment(world, UNMET_EXTRA)
    done = call(world, "apply", folder)
    assert done.code == ExitCode.DONE, done.err
    assert (site_of(folder) / "colours-2.0.dist-info").is_dir()
    assert "nothing was changed" in call(world, "apply", folder).out
    verified = world.run("verify", "painting")
    assert verified.code == ExitCode.DONE, verified.out


def test_the_extra_of_a_moved_version_is_judged_alike_by_the_plan_and_by_the_proof(world: World) -> None:
    index = world.folder / "index"
    make_wheel(index, "colours", "2.0", requires=["bbb>=2"])
    make_wheel(index, "bbb", "2", requires=['ddd; extra == "x"'], extras=["x"])
    whole = (*UNMET_EXTRA[:2], Stub(name="ccc", version="2"))
    folder = environment(world, whole)
    before = listing(folder)
    plan = call(world, "plan", folder, "--json").json
    (breakage,) = plan["breakages"]
    assert (breakage["name"], breakage["requirement"], breakage["remedy"]) == ("aaa", "bbb[x]", "remove")
    assert breakage["because"][1:] == ['bbb[x] needs ddd; extra == "x"', "aaa 1 needs bbb[x]"]
    left = call(world, "apply", folder, "--broken", "leave")
    assert left.code == ExitCode.DONE, left.err
    assert (site_of(folder) / "aaa-1.dist-info").is_dir()
    assert world.run("rollback", "--python", str(folder / "bin" / "python")).code == ExitCode.DONE
    assert listing(folder) == before


def test_an_extra_of_the_matrix_that_is_unmet_is_met_by_the_plan(world: World) -> None:
    index = world.folder / "index"
    make_wheel(index, "colours", "2.0", requires=["bbb[x]"])
    make_wheel(index, "ccc", "2")
    folder = environment(world, UNMET_EXTRA[1:])  # nothing installed asks for `bbb[x]`
    done = call(world, "apply", folder)
    assert done.code == ExitCode.DONE, done.err
    assert (site_of(folder) / "ccc-2.dist-info").is_dir()
