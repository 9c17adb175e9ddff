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
colours = "{version}"
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


def call(world: World, command: str, folder: Path, *more: str, version: str = "==2.0") -> Done:
    (world.folder / "painting.toml").write_text(MATRIX.format(version=version))
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


# Members of the stack that were installed before, with a requirement that a user has since made unmet: the
# stack has `colours` and what it needs.  `beside` is no member.
STANDS = Stub(name="beside", version="1", requires=("old-thing>=2",))
OLD = Stub(name="old-thing", version="1")
MEMBERS = {
    "of the requested one": (
        (Stub(name="colours", version="2.0", requires=("shades>=0.8",)), Stub(name="shades", version="0.7")),
        {"shades": "0.8"},
    ),
    "of one that it needs": (
        (
            Stub(name="colours", version="2.0", requires=("palette",)),
            Stub(name="palette", version="1", requires=("shades>=0.8", "colours>=2")),
            Stub(name="shades", version="0.7"),
        ),
        {"shades": "0.8"},
    ),
    "of an extra that it asks for": (
        (
            Stub(name="colours", version="2.0", requires=("palette[fine]",)),
            Stub(name="palette", version="1", requires=('shades>=0.8; extra == "fine"',), extras=("fine",)),
            Stub(name="shades", version="0.7"),
        ),
        {"shades": "0.8"},
    ),
    "of two that exclude each other": (
        (
            Stub(name="colours", version="2.0", requires=("palette", "shades>=0.8")),
            Stub(name="palette", version="1", requires=("shades<0.8",)),
            Stub(name="shades", version="0.7"),
        ),
        {"shades": "0.8", "palette": "2"},
    ),
    "of nobody in the stack": ((Stub(name="colours", version="2.0"),), {}),
}


@pytest.mark.parametrize(("stubs", "moved"), MEMBERS.values(), ids=MEMBERS)
def test_the_members_of_a_stack_get_what_they_need(
    stubs: Sequence[Stub], moved: dict[str, str], world: World
) -> None:
    index = world.folder / "index"
    for name, version in (("shades", "0.7"), ("shades", "0.8"), ("palette", "2"), ("old-thing", "2")):
        make_wheel(index, name, version)
    folder = environment(world, (*stubs, STANDS, OLD))
    before = listing(folder)
    done = call(world, "apply", folder, "--json", version=">=2")
    assert done.code == ExitCode.DONE, done.err
    assert {step["name"]: step["version"] for step in done.json["plan"]["steps"]} == moved
    if moved:
        assert world.run("rollback", "--python", str(folder / "bin" / "python")).code == ExitCode.DONE
    assert listing(folder) == before


def test_a_kernel_in_which_the_stack_lacks_something_is_not_taken(world: World) -> None:
    """Without a version that would do, the stack gets an environment of its own."""
    index = world.folder / "index"
    make_wheel(index, "colours", "2.0", requires=["shades>=0.8"])
    folder = environment(world, MEMBERS["of the requested one"][0])
    (world.folder / "painting.toml").write_text(MATRIX.format(version=">=2"))
    make_wheel(index, "shades", "0.9", requires=["colours>=3"])
    python = str(folder / "bin" / "python")
    done = world.run("plan", "painting.toml", "--python", python, "--into", "kernel", "--json")
    left = "colours 2.0 needs shades>=0.8, shades 0.7 is installed, and no version can replace it"
    assert left in done.json["notes"]
    refused = world.run("plan", "painting.toml", "--python", python)
    assert refused.code == ExitCode.UNMET
    assert "shades" in refused.err
