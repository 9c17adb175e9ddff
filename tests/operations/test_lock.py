"""Locks of recorded runtimes and locks beside a matrix: how they are made, and when they are used."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.pylock import Pylock
from colablock.errors import ExitCode
from colablock.matrix.lock_pack import LOCK_PACK, pack_locks
from tests.support.fixtures import venv_fixture, world_fixture
from tests.support.runtime import Stub, Venv, build_site
from tests.support.wheels import make_sdist, make_wheel
from tests.support.world import Done, World

pytestmark = pytest.mark.slow  # whole commands

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TINY = """\
schema = 1
name = "tiny"

[packages.shapes]
version = ">=2"
why = "the newest draws in colour"

[absent]
monochrome = { version = "<2", why = "takes every colour away" }

[verify]
imports = ["shapes", "colours"]
"""
LOCK = "pylock.tiny--small-1.toml"


STUBS = (
    Stub(name="colours", version="1.0"),
    Stub(name="lines", version="1.0"),
    Stub(name="monochrome", version="1.0"),
    Stub(name="other", version="1.0", requires=("colours<2",)),
)


def fill(folder: Path) -> None:
    """Write a small index, and a matrix for it that changes and repairs the recorded runtime."""
    wheels, matrices = folder / "index", folder / "matrices"
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "colours", version)
    make_wheel(wheels, "shapes", "2.0", requires=["colours>=2", "lines"])
    make_wheel(wheels, "lines", "1.0")
    make_wheel(wheels, "other", "1.0", requires=["colours<2"])
    make_wheel(wheels, "other", "1.1", requires=["colours<3"])
    matrices.mkdir()
    (matrices / "tiny.toml").write_text(TINY)


world = world_fixture(fill)
venv = venv_fixture(*STUBS)


@pytest.fixture
def recorded(world: World, venv: Venv) -> Venv:
    """Record the environment as the runtime ``small-1``, and return it."""
    done = world.run("runtime", "record", "--python", venv.python, "--name", "small-1")
    assert done.code == ExitCode.DONE, done.err
    return venv


def locked(world: World, *options: str) -> dict[str, Any]:
    """Make the lock of the runtime, and return its content."""
    done = world.run("lock", "tiny", "--runtime", "small-1", *options)
    assert done.code == ExitCode.DONE, done.err
    return tomllib.loads((world.folder / "matrices" / LOCK).read_text())


def planned(world: World, venv: Venv, *options: str) -> Done:
    return world.run("plan", "tiny", "--into", "kernel", "--python", venv.python, *options)


def move_lines(venv: Venv) -> None:
    """Replace a distribution that the lock assumes by another version."""
    shutil.rmtree(venv.site / "lines-1.0.dist-info")
    build_site(venv.site, [Stub(name="lines", version="2.0")])


def pages(world: World) -> list[str]:
    """Return the index pages that were requested so far."""
    return [path for path in world.server.paths if not re.search(r"\.(whl|metadata)$", path)]


@pytest.mark.usefixtures("recorded")
def test_a_delta_lists_what_is_installed_and_what_it_assumes(world: World) -> None:
    lock = locked(world)
    Pylock.from_dict(lock).validate()
    assert [package["name"] for package in lock["packages"]] == ["colours", "other", "shapes"]
    about = lock["tool"]["colablock"]
    assert (about["kind"], about["runtime"]) == ("delta", "small-1")
    assert about["assumes"] == {"lines": "1.0"}
    assert about["index"] == world.server.url
    by_name = {package["name"]: package for package in lock["packages"]}
    assert by_name["other"]["tool"]["colablock"]["repair"] is True
    assert by_name["shapes"]["dependencies"] == [{"name": "colours"}]


def test_an_apply_uses_the_lock_and_no_index(world: World, recorded: Venv, tmp_path: Path) -> None:
    locked(world)
    make_wheel(world.folder / "index", "colours", "2.1")
    asked = pages(world)
    done = world.run(
        *("apply", "tiny", "--into", "kernel", "--python", recorded.python),
        COLABLOCK_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.code == ExitCode.DONE, done.err
    assert pages(world) == asked
    assert recorded.versions() == {"colours": "2.0", "lines": "1.0", "other": "1.1", "shapes": "2.0"}
    assert f"the versions are those of the lock `{LOCK}`" in " ".join(done.err.split())
    again = world.run("apply", "tiny", "--into", "kernel", "--python", recorded.python, "--json")
    assert again.json["report"]["changed"] is False


def test_no_lock_ignores_the_lock(world: World, recorded: Venv) -> None:
    locked(world)
    make_wheel(world.folder / "index", "colours", "2.1")
    assert "colours 2.1" not in planned(world, recorded).out
    done = planned(world, recorded, "--no-lock")
    assert "2.1" in done.out
    assert "the lock" not in done.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("matrix", f"the lock `{LOCK}` is stale: tiny has changed since"),
        (
            "state",
            f"no lock fits the installed distributions; the nearest, `{LOCK}`, differs: lines is 2.0",
        ),
        ("index", f"not using the lock `{LOCK}`: it was made from"),
    ],
)
def test_a_lock_that_does_not_fit_is_not_used_and_the_reason_is_noted(
    change: str, said: str, world: World, recorded: Venv
) -> None:
    locked(world)
    options: list[str] = []
    if change == "matrix":
        (world.folder / "matrices/tiny.toml").write_text(TINY.replace(">=2", ">=1"))
    elif change == "state":
        move_lines(recorded)
    else:
        options = ["--default-index", f"{world.server.url.rstrip('/')}/../simple/"]
    done = planned(world, recorded, *options)
    assert done.code == ExitCode.DONE, done.err
    assert said in " ".join(done.err.split())


@pytest.mark.parametrize("target", ["kernel", "env"])
def test_the_advice_about_a_stale_lock_makes_it_again(target: str, world: World, recorded: Venv) -> None:
    locked(world)
    assert world.run("lock", "tiny", "--all").code == ExitCode.DONE
    files = set(world.folder.glob("matrices/pylock.*"))
    (world.folder / "matrices/tiny.toml").write_text(TINY.replace(">=2", ">=1"))
    plan = ("plan", "tiny", "--into", target, "--python", recorded.python)
    said = " ".join(world.run(*plan).err.split())
    advised = re.search(r"is stale: .*?; `colablock ([^`]*)` makes it again", said)
    assert advised, said
    assert world.run(*shlex.split(advised[1])).code == ExitCode.DONE
    done = world.run(*plan)
    assert "is stale" not in done.err
    assert "the lock" in " ".join(done.out.split())
    assert set(world.folder.glob("matrices/pylock.*")) == files


def test_a_named_lock_is_refused_for_another_state(world: World, recorded: Venv) -> None:
    locked(world)
    move_lines(recorded)
    lock = str(world.folder / "matrices" / LOCK)
    done = planned(world, recorded, "--lock", lock)
    assert done.code == ExitCode.UNMET
    text = " ".join(done.err.split())
    assert f"the lock `{LOCK}` is a delta" in text
    assert "small-1, and this is another state" in text
    assert "lines is 2.0, not 1.0" in text
    env = world.run("plan", "tiny", "--into", "env", "--python", recorded.python, "--lock", lock)
    assert env.code == ExitCode.UNMET
    assert "nothing is installed in an isolated environment" in " ".join(env.err.split())


@pytest.mark.usefixtures("recorded")
def test_the_versions_of_a_lock_stay_until_they_are_upgraded(world: World) -> None:
    first = locked(world)
    make_wheel(world.folder / "index", "colours", "2.1")
    make_wheel(world.folder / "index", "shapes", "2.1", requires=["colours>=2", "lines"])

    def versions(lock: dict[str, Any]) -> dict[str, str]:
        return {package["name"]: package["version"] for package in lock["packages"]}

    done = world.run("lock", "tiny", "--runtime", "small-1")
    assert done.err.splitlines()[-2].startswith("up to date")
    checked = world.run("lock", "tiny", "--runtime", "small-1", "--check", "--upgrade")
    assert checked.code == ExitCode.UNMET
    assert "\nnot current  matrices/pylock.tiny" in f"\n{checked.err}"
    other = world.run("lock", "tiny", "--check", "--python-version", "3.12")
    assert (other.code, other.err.splitlines()[-2].split()[0]) == (ExitCode.UNMET, "missing")
    assert locked(world) == first
    assert versions(locked(world, "-P", "shapes")) == {**versions(first), "shapes": "2.1"}
    done = world.run("lock", "tiny", "--runtime", "small-1", "--upgrade")
    assert "colours 2.0 -> 2.1" in done.err
    current = world.run("lock", "tiny", "--runtime", "small-1", "--check", "--upgrade")
    assert current.code == ExitCode.DONE


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_locks_of_an_installed_package_are_checked(world: World, tmp_path: Path, is_packed: bool) -> None:
    """A lock in ``./matrices`` is checked in its place."""
    folder = tmp_path / "site-packages" / "x" / "matrices"
    shutil.copytree(world.folder / "matrices", folder)
    name = str(folder / "tiny.toml")

    def check() -> Done:
        runtimes = str(world.folder / "runtimes")
        options = ("--runtime", "small-1", "--check")
        return world.run("lock", name, *options, cwd=tmp_path, COLABLOCK_RUNTIMES=runtimes)

    assert "missing" in check().err
    locked(world)
    shutil.copy(world.folder / "matrices" / LOCK, folder)
    if is_packed:
        (folder / LOCK_PACK).write_bytes(pack_locks({LOCK: (folder / LOCK).read_text()}))
        (folder / LOCK).unlink()
    done = check()
    assert (done.code, f"up to date   {folder / LOCK}" in done.err) == (ExitCode.DONE, True), done.err
    (tmp_path / "matrices").mkdir()
    (tmp_path / "matrices" / LOCK).write_text("lock-version = '1.0'\ncreated-by = 'x'\npackages = []\n")
    done = check()
    assert (done.code, f"not current  matrices/{LOCK}" in done.err) == (ExitCode.UNMET, True), done.err


@pytest.mark.usefixtures("recorded")
def test_a_lock_made_again_lists_the_files_of_the_same_platforms(world: World) -> None:
    index = world.folder / "index"
    make_sdist(index, "colours", "2.0")
    make_wheel(index, "colours", "2.0", tag="cp39-cp39-win_amd64")

    def files(lock: dict[str, Any]) -> tuple[int, bool]:
        colours = next(package for package in lock["packages"] if package["name"] == "colours")
        return len(colours["wheels"]), "sdist" in colours

    assert files(locked(world)) == (1, False)
    asked = world.run("lock", "tiny", "--runtime", "small-1", "--all-files", "--check")
    assert asked.code == ExitCode.UNMET
    whole = locked(world, "--all-files")
    assert files(whole) == (2, True)
    assert whole["tool"]["colablock"]["files"] == "all"
    assert locked(world) == whole
    assert world.run("lock", "tiny", "--runtime", "small-1", "--check").code == ExitCode.DONE
    assert files(locked(world, "--no-all-files")) == (1, False)


def test_an_environment_uses_the_complete_lock_beside_the_matrix(world: World) -> None:
    short = f"{sys.version_info[0]}.{sys.version_info[1]}"
    done = world.run("lock", "tiny", "--python-version", short, "--platform", "manylinux_2_35_x86_64")
    assert done.code == ExitCode.DONE, done.err
    name = f"pylock.tiny--py{short.replace('.', '')}.toml"
    assert (world.folder / "matrices" / name).is_file()
    make_wheel(world.folder / "index", "colours", "2.1")
    done = world.run("plan", "tiny", "--into", "env", "--python", sys.executable, "--json")
    assert f"the versions are those of the lock `{name}`" in done.json["notes"]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--runtime", "small-2"], "no runtime is recorded as `small-2`"),
        (["--runtime", "small-1", "--python-version", "3.12"], "has its own Python and platform"),
        (["--all", "--runtime", "small-1"], "`--all` cannot be used with `--runtime`"),
        (["--exclude-newer", "yesterday"], "`yesterday` is not a date"),
    ],
)
def test_options_that_a_lock_does_not_accept(argv: list[str], said: str, world: World) -> None:
    done = world.run("lock", "tiny", *argv)
    assert done.code == ExitCode.USAGE
    assert said in " ".join(done.err.split())


@pytest.mark.usefixtures("recorded")
def test_a_lock_has_the_cutoff_that_was_asked_for(world: World) -> None:
    done = world.run("lock", "tiny", "--runtime", "small-1", "--exclude-newer", "2000-01-01")
    assert done.code == ExitCode.UNMET
    lock = locked(world, "--exclude-newer", "2099-01-01T12:00:00Z")
    assert lock["tool"]["colablock"]["exclude-newer"].year == 2099
