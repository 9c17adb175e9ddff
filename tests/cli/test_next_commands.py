"""The commands that messages name next can be typed as they are: they name the path and the options given."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from colablock.cli.main import build_parser
from colablock.lockfile.targets import PLATFORM
from tests.support.fixtures import venv_fixture, world_fixture
from tests.support.runtime import Stub, Venv
from tests.support.wheels import make_wheel
from tests.support.world import World

PATH = "own matrices/own.toml"
TARGET = ("--python-version", "3.12.0", "--platform", PLATFORM)
MATRIX = 'schema = 1\nname = "own"\nrequirements = ["shapes>=2"]\n'


def fill(folder: Path) -> None:
    make_wheel(folder / "index", "shapes", "2.0")
    (folder / PATH).parent.mkdir()
    (folder / PATH).write_text(MATRIX)
    (folder / "own matrices" / "req.txt").write_text("shapes\n")
    (folder / "own matrices" / "freeze.txt").write_text("shapes==2.0\n")
    (folder / "log.txt").write_text("ModuleNotFoundError: No module named 'elsewhere'\n")


world = world_fixture(fill)
venv = venv_fixture(Stub(name="colours", version="1.0"))

CASES = {
    "no command to run": (["run", PATH], ["run", PATH, "--", "python", "train.py"]),
    "not applied yet": (["verify", PATH], ["apply", PATH]),
    "no locks": (
        ["audit", PATH, "--all", "--find-links", "my wheels"],
        ["lock", PATH, "--all", "--find-links", "my wheels"],
    ),
    "a value that begins like an option": (
        ["audit", PATH, "--all", "--find-links=-d"],
        ["lock", PATH, "--all", "--find-links=-d"],
    ),
    "a stale lock": (["plan", PATH], ["lock", PATH, "--all"]),
    "no such change": (["history", "--python", "PYTHON", "--drop", "7"], ["history", "--python", "PYTHON"]),
    "an addition that contradicts": (
        ["plan", PATH, "--with", "shapes<2"],
        ["new", "NAME", "--extends", PATH],
    ),
    "the package before the matrix": (
        ["why", "shapes", "qlora-2026", "--runtime", "colab-2026.08-gpu", "--offline"],
        ["why", "qlora-2026", "shapes", "--offline", "--runtime", "colab-2026.08-gpu"],
    ),
    "a training config": (["new-config", PATH], ["train", PATH, "--config", "FILE"]),
    "the head of an export": (
        ["export", PATH, "--format", "constraints", *TARGET],
        ["export", PATH, *TARGET, "--format", "constraints"],
    ),
    "the head of a Dockerfile": (
        ["export", PATH, "--format", "dockerfile", *TARGET],
        ["export", PATH, *TARGET, "--format", "dockerfile"],
    ),
    "another file than a matrix": (
        ["plan", "own matrices/req.txt"],
        ["new", "NAME", "--from-requirements", "own matrices/req.txt"],
    ),
    "a failure in what was applied": (
        ["explain", "log.txt", "--python", "PYTHON"],
        ["plan", "FOLDER/own matrices/own.toml", "--with", "elsewhere"],
    ),
}


def test_a_path_of_a_matrix_is_one_everywhere(world: World, venv: Venv) -> None:
    """Also in a suggestion, below the home folder, and where an environment is removed."""
    near = world.run("plan", PATH.replace("own.toml", "owm.toml"))
    assert f"did you mean `{PATH}`?" in near.err
    (world.folder / "link").symlink_to(venv.folder)
    below = ("--python", "~/link", "--json")
    planned = world.run("plan", f"~/{PATH}", *below, HOME=str(world.folder))
    assert planned.code == 0, planned.err
    assert world.run("apply", f"~/{PATH}", "--into", "kernel", *below, HOME=str(world.folder)).code == 0
    assert world.run("verify", PATH).code == 0
    assert world.run("export", PATH, "--output=~/pins.txt", HOME=str(world.folder)).code == 0
    assert "shapes==2.0" in (world.folder / "pins.txt").read_text()
    made = ("new", "mine", "--from-requirements=~/own matrices/req.txt", "--output=~/mine.toml")
    assert world.run(*made, HOME=str(world.folder)).code == 0
    explained = world.run("explain", "~/log.txt", HOME=str(world.folder))
    assert explained.code == 0, explained.err
    frozen = ("~/own matrices/freeze.txt", "--name=lab-cpu", "--python-version=3.12.11", "--offline")
    imported = world.run("runtime", "import", *frozen, "--output=~/r.json", HOME=str(world.folder))
    assert imported.code == 0, imported.err
    assert world.run("runtime", "show", "~/r.json", HOME=str(world.folder)).code == 0
    assert world.run("apply", PATH, "--into", "env").code == 0
    removed = world.run("env", "remove", PATH)
    assert (removed.code, "removed" in removed.err) == (0, True), removed.err


def test_an_option_may_be_between_the_matrix_and_the_package(world: World, venv: Venv) -> None:
    place = ("--python", venv.python)
    done = world.run("why", PATH, *place, "shapes")
    assert (done.code, done.out) == (0, world.run("why", PATH, "shapes", *place).out)
    refused = world.run("why", PATH, *place, "shapes", "colours")
    assert (refused.code, "unexpected argument `colours`" in refused.err) == (2, True)


@pytest.mark.parametrize("case", CASES)
def test_the_next_command_can_be_typed(case: str, world: World, venv: Venv) -> None:
    given, expected = (
        [word.replace("PYTHON", venv.python).replace("FOLDER", str(world.folder)) for word in words]
        for words in CASES[case]
    )
    if "PYTHON" in CASES[case][0]:
        done = world.run("apply", PATH, "--into", "kernel", "--python", venv.python)
        assert done.code == 0, done.err
    if case == "a stale lock":
        assert world.run("lock", PATH).code == 0
        (world.folder / PATH).write_text(f'{MATRIX}summary = "changed"\n')
    (world.folder / "my wheels").mkdir()
    done = world.run(*given)
    assert f"`{shlex.join(['colablock', *expected])}`" in " ".join(f"{done.out} {done.err}".split())
    build_parser().parse_args(expected[: expected.index("--")] if "--" in expected else expected)
