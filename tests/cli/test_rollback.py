"""A rollback over the changes of others: exit codes, options, questions, and the Python function."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.errors import ExitCode
from tests.support.runtime import Stub, Venv
from tests.support.server import IndexServer
from tests.support.trees import installed_listing, listing
from tests.support.wheels import make_wheel
from tests.support.world import World, open_world

MATRIX = """\
schema = 1
name = "tiny"
[packages]
dantic = "==2.12"
"""
BEFORE = (
    Stub(name="dantic", version="2.11", requires=("core==2.33",)),
    Stub(name="core", version="2.33", requires=("deep<2",)),
    Stub(name="deep", version="1.0"),
)
BROKEN = "dantic 2.11 requires `core==2.33`, but 2.50 is installed"


def fill(index: Path) -> None:
    make_wheel(index, "dantic", "2.12", requires=["core>=2.33"])
    make_wheel(index, "core", "2.33", requires=["deep<2"])
    make_wheel(index, "core", "2.50", requires=["deep>=2"])
    make_wheel(index, "deep", "1.0")
    make_wheel(index, "deep", "2.0")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Venv]]:
    """Give a world, and an environment in which somebody has moved `core` and `deep` since an apply."""
    folder = tmp_path_factory.mktemp("moved")
    fill(folder / "index")
    with open_world(folder, folder / "index") as world:
        (folder / "tiny.toml").write_text(MATRIX)
        made = Venv.make(folder / "env", *BEFORE)
        done = world.run("apply", "tiny.toml", "--into", "kernel", "--python", made.python)
        assert done.code == ExitCode.DONE, done.err
        links = ("--no-index", "--find-links", str(folder / "index"))
        since = world.uv("pip", "install", "--python", made.python, *links, "core==2.50")
        assert since.code == 0, since.err
        made.copy(folder / "kept")
        yield world, made


@pytest.fixture
def world(moved: tuple[World, Venv]) -> World:
    return moved[0]


@pytest.fixture
def venv(moved: tuple[World, Venv]) -> Venv:
    """Give the environment of `moved` as it was made."""
    world, venv = moved
    shutil.rmtree(venv.folder)
    shutil.copytree(world.folder / "kept", venv.folder, symlinks=True)
    return venv


def test_a_rollback_that_would_break_something_is_refused(world: World, venv: Venv) -> None:
    before = listing(venv.folder)
    refused = world.run("rollback", "--yes", "--python", venv.python)
    assert refused.code == ExitCode.UNMET
    assert BROKEN in refused.err
    # What the companions need in turn is known only when they are here.
    assert "`--with-companions` (`with_companions=True`) also puts back core 2.33" in refused.err
    assert listing(venv.folder) == before
    missing = world.run("rollback", "--with-companions", "--offline", "--python", venv.python)
    assert missing.code == ExitCode.UNMET, missing.err
    assert listing(venv.folder) == before


def test_companions_are_put_back_from_the_index(world: World, venv: Venv) -> None:
    done = world.run("rollback", "--yes", "--with-companions", "--python", venv.python, "--json")
    assert done.code == ExitCode.DONE, done.err
    (undone,) = done.json["undone"]
    assert undone["companions"] == {"core": "2.33", "deep": "1.0"}
    assert (undone["broken"], undone["differences"]) == ([], [])
    assert venv.versions() == {"dantic": "2.11", "core": "2.33", "deep": "1.0"}
    assert not (venv.folder / ".colablock").exists()


def test_what_is_left_broken_gives_its_own_exit_code(world: World, venv: Venv) -> None:
    done = world.run("rollback", "--leave-broken", "--python", venv.python)
    assert done.code == ExitCode.NOT_PROVEN, done.err
    assert f"broken now: {BROKEN}" in done.out
    assert venv.versions() == {"dantic": "2.11", "core": "2.50", "deep": "2.0"}


def test_a_version_that_the_index_has_no_more_is_named(world: World, venv: Venv) -> None:
    before = installed_listing(venv.folder)
    links = world.folder / "links"
    make_wheel(links, "core", "2.33", requires=["deep<2"])
    empty = ("--default-index", (world.folder / "empty").as_uri(), "--python", venv.python)
    (world.folder / "empty").mkdir()
    refused = world.run("rollback", "--with-companions", *empty)
    assert refused.code == ExitCode.UNMET
    assert "`core` 2.33 cannot be put back" in refused.err
    make_wheel(links, "deep", "1.0")
    assert installed_listing(venv.folder) == before
    done = world.run("rollback", "--with-companions", "--find-links", str(links), *empty)
    assert done.code == ExitCode.DONE, done.err
    assert "put back as well: core 2.33, deep 1.0" in done.out


@pytest.mark.parametrize("name", ["core", "deep"])
def test_a_name_of_a_private_index_is_not_replaced(world: World, venv: Venv, name: str) -> None:
    """The default index has a project of that name, but not the version that is installed."""
    before = installed_listing(venv.folder)
    public = world.folder / f"public-{name}"
    fill(public)
    for newer in public.glob(f"{name}-2.[05]*"):
        newer.unlink()
    with IndexServer(public) as server:
        options = ("--with-companions", "--default-index", server.url, "--python", venv.python)
        refused = world.run("rollback", *options)
    assert refused.code == ExitCode.UNMET, refused.err
    version = {"core": "2.50", "deep": "2.0"}[name]
    assert f"does not list {name} {version}, so it may be another project of that name" in " ".join(
        refused.err.split()
    )
    assert installed_listing(venv.folder) == before


@pytest.mark.parametrize(
    ("answers", "code", "core"), [("y\ny\n", ExitCode.DONE, "2.33"), ("n\ny\n", ExitCode.UNMET, "2.50")]
)
def test_a_terminal_is_asked(world: World, venv: Venv, answers: str, code: ExitCode, core: str) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answers.encode())
    done = subprocess.run(
        [sys.executable, "-m", "colablock", "rollback", "--python", venv.python],
        env=world.environ(),
        cwd=world.folder,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=False,
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # the terminal goes with the process
        while data := os.read(ours, 1 << 16):
            said += data
    os.close(ours)
    assert done.returncode == code, said
    assert b"Put these back as well? [y/N]" in said
    assert venv.versions()[canonicalize_name("core")] == core


CALL = """\
import json, sys
import colablock
from colablock.errors import Refused
python = sys.argv[1]
try:
    colablock.rollback(python=python, quiet=True)
except Refused as error:
    refused = str(error)
(undone,) = colablock.rollback(python=python, with_companions=True, quiet=True)
print(json.dumps([refused, dict(undone.companions), list(undone.broken)]))
"""


def test_the_python_function_has_the_same_options(world: World, venv: Venv) -> None:
    command = [sys.executable, "-c", CALL, venv.python]
    done = subprocess.run(
        command, env=world.environ(), cwd=world.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, companions, broken = json.loads(done.stdout.splitlines()[-1])
    assert BROKEN in refused
    assert (companions, broken) == ({"core": "2.33", "deep": "1.0"}, [])
