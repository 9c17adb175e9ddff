"""The command line in processes of its own: output, exit codes, signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.pylock import Pylock
from colablock.cli.main import main
from colablock.errors import ExitCode
from tests.support.fixtures import venv_fixture, world_fixture
from tests.support.paths import DATA, ROOT
from tests.support.recorded_index import RecordedIndex
from tests.support.runtime import Stub, Venv, find_python, make_venv
from tests.support.server import JSON, Fault
from tests.support.timing import PATIENCE, processes_of, until
from tests.support.trees import installed_listing, listing
from tests.support.wheels import make_wheel, metadata_text
from tests.support.world import World, open_world

pytestmark = pytest.mark.slow  # whole commands, in stand-ins of whole runtimes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OUTPUTS = DATA / "cli"
LOCKED = {"target", "variant", "moved", "changed", "refusal"}
UPDATE = "UPDATE_SNAPSHOTS"

TINY = """\
schema = 1
name = "{name}"
summary = "Shapes of many colours"

[packages.shapes]
version = "{shapes}"
why = "the newest draws in colour"

[constraints]
colours = {{ version = "<3", why = "three is too many" }}

[absent]
monochrome = {{ version = "<2", why = "takes every colour away" }}

[verify]
imports = {imports}
"""
BAD = """\
schema = 1
name = "bad"

[packages]
shapes = "=>2"
colours = { verison = "==1" }

[constraint]
setuptools = "<81"

[verify]
imports = "shapes"
"""


def fill(folder: Path) -> None:
    """Write a small index, and matrices for it in the folder where commands are run."""
    wheels, matrices = folder / "index", folder / "matrices"
    for version in ("1.0", "2.0", "3.0"):
        make_wheel(wheels, "colours", version)
    make_wheel(wheels, "shapes", "1.0", requires=["colours"])
    drawing = {"shapes/__init__.py": "def main():\n    print('a square')\n"}
    script = {"shapes": "shapes:main"}
    make_wheel(wheels, "shapes", "2.0", requires=["colours>=2"], modules=drawing, scripts=script)
    make_wheel(wheels, "other", "1.0", requires=["colours<2"])
    matrices.mkdir()
    tiny = {"shapes": ">=2", "imports": ["shapes", "colours"]}
    texts = {
        "tiny": TINY.format(name="tiny", **tiny),
        "unproven": TINY.format(name="unproven", **{**tiny, "imports": ["shapes", "triangles"]}),
        "nowhere": TINY.format(name="nowhere", **{**tiny, "shapes": ">=9"}),
        "empty": 'schema = 1\nname = "empty"\nrequirements = ["shapes; python_version < \'3\'"]\n',
    }
    for name, text in texts.items():
        (matrices / f"{name}.toml").write_text(text)
    (folder / "bad.toml").write_text(BAD)


world = world_fixture(fill, scope="module")
today = world_fixture(source=lambda: RecordedIndex("qlora-2026", "qlora-2024"), scope="module")
# What the small matrices replace, keep away and break.
venv = venv_fixture(
    Stub(name="colours", version="1.0"),
    Stub(name="monochrome", version="1.0"),
    Stub(name="other", version="1.0", requires=("colours<2",)),
    Stub(name="beside", version="1.0", requires=("other",)),
)


def filtered(text: str, world: World) -> str:
    """Return *text* without what differs from machine to machine."""
    text = text.replace(str(world.folder), "[FOLDER]").replace(world.server.root, "[INDEX]")
    text = re.sub(r"\b(\d+ min )?\d+(\.\d)? s\b", "[TIME]", text)
    text = re.sub(r"\b\d+(\.\d+)? (bytes|kB|MB)(/s)?", "[SIZE]", text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def check_snapshot(name: str, world: World, *argv: str, code: ExitCode = ExitCode.DONE) -> None:
    """Compare all that a command says with what is kept under *name*."""
    done = world.run(*argv)
    title = f"$ colablock {' '.join(argv)}\nexit code {done.code}\n"
    found = filtered(f"{title}\n-- stdout\n{done.out}\n-- stderr\n{done.err}", world)
    path = OUTPUTS / f"{name}.txt"
    if os.environ.get(UPDATE):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")
    assert done.code == code


# What is said


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("show", ["show", "tiny"]),
        ("plan-env", ["plan", "tiny", "--into", "env", "--runtime", "colab-2026.08-gpu"]),
        ("why-in", ["why", "tiny", "colours", "--runtime", "colab-2026.08-gpu", "--into", "kernel"]),
    ],
)
def test_what_is_asked_for_is_said(name: str, argv: list[str], world: World) -> None:
    check_snapshot(name, world, *argv)


@pytest.mark.parametrize(
    ("name", "code", "argv"),
    [
        ("error-invalid-matrix", ExitCode.USAGE, ["plan", "bad.toml"]),
        ("error-unknown-matrix", ExitCode.USAGE, ["plan", "tinny"]),
        ("error-unknown-runtime", ExitCode.USAGE, ["plan", "tiny", "--runtime", "colab-2026.8-gpu"]),
        ("error-unknown-variant", ExitCode.USAGE, ["plan", "qlora-2024", "--variant", "cu121x"]),
        ("error-no-solution", ExitCode.UNMET, ["plan", "nowhere", "--runtime", "colab-2026.08-gpu"]),
        ("error-not-applied", ExitCode.USAGE, ["run", "tiny", "--", "python"]),
        ("error-no-command", ExitCode.USAGE, ["run", "tiny"]),
        ("why-not", ExitCode.USAGE, ["why", "tiny", "unheard-of", "--runtime", "colab-2026.08-gpu"]),
        ("error-usage", ExitCode.USAGE, ["plan"]),
    ],
)
def test_what_stands_in_the_way_is_said(name: str, code: ExitCode, argv: list[str], world: World) -> None:
    check_snapshot(name, world, *argv, code=code)


@pytest.mark.parametrize(
    ("name", "code", "argv"),
    [
        ("today-plan", ExitCode.DONE, ["plan", "qlora-2026"]),
        ("today-why-added", ExitCode.DONE, ["why", "qlora-2026", "trl"]),
        ("today-why-removed", ExitCode.DONE, ["why", "qlora-2026", "torchao"]),
        ("today-why-kept", ExitCode.DONE, ["why", "qlora-2026", "numpy"]),
        ("today-refused", ExitCode.UNMET, ["plan", "qlora-2024", "--variant", "cu121", "--into", "kernel"]),
    ],
)
def test_what_is_said_of_a_recorded_runtime(name: str, code: ExitCode, argv: list[str], today: World) -> None:
    check_snapshot(name, today, *argv, "--runtime", "colab-2026.08-gpu", code=code)


def test_everything_that_can_be_named_is_listed(world: World) -> None:
    wide = world.run("list", COLUMNS="1000")
    assert wide.code == ExitCode.DONE
    assert re.search(r"^tiny +Shapes of many colours$", wide.out, re.MULTILINE)
    assert re.search(r"^tiny +- +- +- +-$", wide.out, re.MULTILINE)  # nothing is proven of it
    for name in ("qlora-2024", "qlora-2026", "qlora-2026-axolotl", "colab-2026.08-gpu", "colab-2025.07-cpu"):
        assert re.search(rf"^{re.escape(name)} ", wide.out, re.MULTILINE)
    narrow = world.run("list")
    paths = [line for line in narrow.out.splitlines() if "/" in line]
    assert all(len(line) <= 80 for line in narrow.out.splitlines() if line not in paths)


def test_what_is_seen_here_is_told_without_secrets(world: World) -> None:
    index = "http://me:secret@127.0.0.1:9/simple/"
    done = world.run("info", COLABLOCK_DEFAULT_INDEX=index)
    assert done.code == ExitCode.DONE
    for fact in ("colablock ", "python ", "host ", "accelerator", "default index"):
        assert fact in done.out.lower()
    assert "secret" not in done.out + done.err


# JSON


@pytest.mark.parametrize(
    ("argv", "code", "keys"),
    [
        (["list"], 0, {"matrices", "runtimes"}),
        (["show", "tiny"], 0, {"name", "packages", "constraints", "absent", "verify"}),
        (["info"], 0, {"colablock", "python", "accelerator", "protected"}),
        (["plan", "tiny", "--into", "env"], 0, {"version", "steps", "fetch_size", "needs_restart"}),
        (["why", "tiny", "shapes", "--into", "env"], 0, {"package", "because"}),
        (["lock", "tiny", "-o", "-"], 0, {"lock", "bytes", "packages", *LOCKED}),
        (["lock", "tiny", "-o", "pylock.tiny.toml"], 0, {"output", "bytes", "packages", *LOCKED}),
        (["plan", "bad.toml"], 2, {"error", "exit_code"}),
        (["plan", "nowhere"], 1, {"error", "exit_code"}),
        (["verify", "nowhere"], 2, {"error", "exit_code"}),
    ],
)
def test_json_is_all_there_is_on_standard_output(
    argv: list[str], code: int, keys: set[str], world: World
) -> None:
    done = world.run(*argv, "--json")
    assert done.code == code, done.err
    assert keys <= done.json.keys()
    assert done.err == ""
    if "error" in done.json:
        assert done.json["exit_code"] == code
        assert done.json["error"].keys() == {"reference", "message", "hint"}


def test_all_faults_of_a_matrix_are_told_at_once(world: World) -> None:
    message = world.run("plan", "bad.toml", "--json").json["error"]["message"]
    for path in ("packages.shapes", "packages.colours.verison", "constraint", "verify.imports"):
        assert f"\n  {path}: " in message
    assert "did you mean `version`" in message


# The way of one environment: applied, found done, used, proven, broken


def test_an_isolated_environment_from_first_to_last(world: World, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    first = world.run("apply", "tiny", "--json", COLABLOCK_HOME=home)
    assert (first.code, first.err) == (0, "")
    report = first.json["report"]
    assert (report["target"], report["changed"], report["passed"]) == ("env", True, True)
    assert [step["name"] for step in first.json["plan"]["steps"]] == ["colours", "shapes"]
    world.server.forget_requests()
    again = world.run("apply", "tiny", "--json", COLABLOCK_HOME=home)
    assert again.code == 0
    assert again.json.keys() == {"report"}
    assert again.json["report"]["changed"] is False
    assert world.server.paths == []
    code = "import sys, colours; print(colours.__version__); sys.exit(7)"
    ran = world.run("run", "tiny", "--", "python", "-c", code, COLABLOCK_HOME=home)
    assert (ran.code, ran.out) == (7, "2.0\n")
    python = [sys.executable, "-m", "colablock", "verify", "tiny"]
    environ = world.environ(COLABLOCK_HOME=home, PATH="/usr/bin")
    merged = subprocess.run(
        python,
        cwd=world.folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # The last line is what to do, as it was called, and no progress.
    last = f"next: {sys.executable} -m colablock run tiny -- python YOUR_SCRIPT.py"
    assert merged.stdout.splitlines()[-1] == last
    proven = world.run("verify", "tiny", COLABLOCK_HOME=home)
    assert proven.code == 0
    assert "proven" in proven.out
    site = Venv(Path(report["python"]).parent.parent).site
    (site / "colours" / "__init__.py").write_text("raise ImportError('gone pale')\n")
    broken = world.run("verify", "tiny", "--json", COLABLOCK_HOME=home)
    assert broken.code == ExitCode.UNMET
    failed = [check for check in broken.json["checks"] if not check["passed"]]
    assert [(check["kind"], check["subject"]) for check in failed] == [
        ("files", "colours"),
        ("import", "colours"),
    ]
    assert "`colours/__init__.py` has 31 bytes instead of 20" in failed[0]["detail"]
    assert "ImportError: gone pale" in failed[1]["detail"]
    anew = "after `colablock env remove tiny`, `colablock apply tiny` builds the environment anew"
    assert broken.json["notes"][-1] == anew


def test_a_damaged_package_of_a_kernel_is_installed_again(world: World, venv: Venv, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    kernel = ("--into", "kernel", "--python", venv.python)
    assert world.run("apply", "tiny", *kernel, COLABLOCK_HOME=home).code == ExitCode.DONE
    file = venv.site / "shapes" / "__init__.py"
    whole = file.read_text()
    file.write_text("raise ImportError('damaged')\n")
    same = world.run("apply", "tiny", *kernel, COLABLOCK_HOME=home)
    said = " ".join(same.out.split())
    assert "was proven: 6 checks passed when it was applied; it has the same versions, and nothing" in said
    again = world.run("apply", "tiny", *kernel, "--json", COLABLOCK_HOME=home).json["report"]
    assert (again["changed"], again["is_recorded"]) == (False, True)
    broken = world.run("verify", "tiny", "--json", COLABLOCK_HOME=home).json
    command = f"colablock apply tiny --into kernel --python {venv.python} --reinstall shapes"
    assert broken["notes"][-1] == f"`{command}` installs shapes again"
    planned = world.run(*command.replace("apply", "plan").split()[1:], "--json", COLABLOCK_HOME=home).json
    assert [(one["action"], one["name"], one["version"]) for one in planned["steps"]] == [
        ("replace", "shapes", "2.0")
    ]
    mended = world.run(*command.split()[1:], COLABLOCK_HOME=home)
    assert (mended.code, file.read_text()) == (ExitCode.DONE, whole), mended.err
    assert world.run("verify", "tiny", COLABLOCK_HOME=home).code == ExitCode.DONE
    assert "nothing was changed" in " ".join(
        world.run("apply", "tiny", *kernel, COLABLOCK_HOME=home).out.split()
    )
    assert world.run("rollback", "--python", venv.python, COLABLOCK_HOME=home).code == ExitCode.DONE
    assert "damaged" in file.read_text()  # as it was before
    for options, fault in {
        (*kernel, "--reinstall", "shades"): "`shades` cannot be reinstalled: it is not installed in",
        (*kernel, "--reinstall", "beside"): "`beside` cannot be reinstalled: it is not part of tiny",
        ("--into", "env", "--reinstall", "shapes"): "`colablock env remove tiny` and another apply build it",
    }.items():
        refused = world.run("apply", "tiny", *options, COLABLOCK_HOME=home)
        assert fault in " ".join(refused.err.split())


def test_what_was_applied_by_its_path_has_a_name(world: World, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(TINY.format(name="own", shapes=">=2", imports=["shapes"]))
    home = str(tmp_path / "home")
    absent = world.run("verify", "./own.toml", cwd=tmp_path, COLABLOCK_HOME=home)
    assert "Run `colablock apply ./own.toml` first" in " ".join(absent.err.split())
    assert world.run("apply", "own.toml", cwd=tmp_path, COLABLOCK_HOME=home).code == ExitCode.DONE
    assert world.run("run", "own", "--", "shapes", COLABLOCK_HOME=home).out == "a square\n"
    proven = world.run("verify", "own", "--json", COLABLOCK_HOME=home)
    assert proven.code == ExitCode.DONE
    (facts,) = Venv(Path(proven.json["python"]).parent.parent).site.glob("colours-*.dist-info")
    shutil.rmtree(facts)
    broken = world.run("verify", "own", "--json", COLABLOCK_HOME=home).json
    mend = f"`colablock apply {shlex.quote(str(own))}` restores the versions of the stack"
    assert broken["notes"][-1] == mend
    assert world.run("apply", str(own), COLABLOCK_HOME=home).code == ExitCode.DONE


def test_an_environment_is_changed_and_undone(world: World, venv: Venv) -> None:
    before = listing(venv.folder)
    options = ("--into", "kernel", "--python", venv.python)
    planned = world.run("plan", "tiny", *options, "--json").json
    assert [(step["action"], step["name"]) for step in planned["steps"]] == [
        ("remove", "other"),
        ("remove", "monochrome"),
        ("replace", "colours"),
        ("install", "shapes"),
    ]
    assert [(item["name"], item["direct"], item["remedy"]) for item in planned["breakages"]] == [
        ("other", True, "remove"),
        ("beside", False, "leave"),
    ]
    undone = world.run("apply", "unproven", *options)
    assert undone.code == ExitCode.ROLLED_BACK
    assert "No module named 'triangles'" in undone.err
    assert listing(venv.folder) == before
    kept = world.run("apply", "unproven", *options, "--keep")
    assert kept.code == ExitCode.NOT_PROVEN
    assert "FAIL" in kept.out
    assert f"undo: colablock rollback --python {venv.python}" in kept.out
    done = world.run("apply", "tiny", *options)
    assert done.code == ExitCode.DONE, done.err
    assert venv.versions() == {"colours": "2.0", "shapes": "2.0", "beside": "1.0"}
    assert "undo:" not in done.out  # it changed nothing


def check_undone(world: World, venv: Venv, home: str, folder: Path) -> None:
    """Check that the history has the changes that were undone, and only those of this environment."""
    past = world.run("history", "--python", venv.python, "--json", COLABLOCK_HOME=home).json
    assert past["changes"] == []
    assert [(one["matrix"], one["why"]) for one in past["undone"]] == [
        ("tiny", "rolled back"),
        ("unproven", "rolled back"),
        ("unproven", "1 proof failed, and the change was undone"),
    ]
    text = world.run("history", "--python", venv.python, COLABLOCK_HOME=home).out
    assert text.startswith("colablock has changed nothing in this environment that is not undone\n\nUndone\n")
    title = r"^  \d{4}-\d\d-\d\d \d\d:\d\d UTC, unproven: remove 2, replace 1, install 1\n    undone \d"
    assert re.search(title, text, re.MULTILINE)
    shutil.move(venv.folder, folder / "old")
    shutil.copytree(folder / "old", venv.folder, symlinks=True)  # another environment at the same path
    assert "Undone" not in world.run("history", "--python", venv.python, COLABLOCK_HOME=home).out


def test_what_was_done_is_told_and_undone(world: World, venv: Venv, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    before = listing(venv.folder)
    options = ("--into", "kernel", "--python", venv.python)
    nothing = world.run("history", "--python", venv.python)
    assert nothing.out == "colablock has changed nothing in this environment\n"
    refused = world.run("rollback", "--python", venv.python)
    assert refused.code == ExitCode.USAGE
    assert "there is nothing to undo" in refused.err
    assert listing(venv.folder) == before

    assert world.run("apply", "unproven", *options, "--keep", COLABLOCK_HOME=home).code == ExitCode.NOT_PROVEN
    middle = installed_listing(venv.folder)
    make_wheel(tmp_path / "wheels", "triangles", "1.0")
    added = ("--with", "triangles", "--find-links", str(tmp_path / "wheels"))
    done = world.run("apply", "tiny", *options, *added, COLABLOCK_HOME=home)
    assert done.code == ExitCode.DONE, done.err
    told = world.run("history", "--python", venv.python, "--json").json["changes"]
    assert [(change["number"], change["matrix"], len(change["steps"])) for change in told] == [
        (1, "unproven", 4),
        (2, "tiny", 1),
    ]
    assert [change["size"] > 0 for change in told] == [True, False]  # nothing goes for an installation
    said = world.run("history", "--python", venv.python)
    title = r"^change 1, \d{4}-\d\d-\d\d \d\d:\d\d UTC, unproven: remove 2, replace 1, install 1$"
    assert re.search(title, said.out, re.MULTILINE)
    assert "are kept to undo it" in said.out

    undone = world.run("rollback", "--python", venv.python, COLABLOCK_HOME=home)
    assert undone.code == ExitCode.DONE, undone.err
    assert "as it was before change 2 (tiny)" in undone.out
    assert installed_listing(venv.folder) == middle
    assert world.run("verify", "tiny", COLABLOCK_HOME=home).code == ExitCode.USAGE  # applied no more
    first = world.run("rollback", "--to", "first", "--python", venv.python, "--json", COLABLOCK_HOME=home)
    assert [one["number"] for one in first.json["undone"]] == [1]
    assert listing(venv.folder) == before
    assert world.run("apply", "unproven", *options, COLABLOCK_HOME=home).code == ExitCode.ROLLED_BACK
    check_undone(world, venv, home, tmp_path)


def test_what_is_kept_for_the_way_back_can_be_dropped(world: World, venv: Venv) -> None:
    options = ("--python", venv.python)
    assert world.run("history", "--drop", *options).code == ExitCode.USAGE
    assert world.run("apply", "tiny", "--into", "kernel", *options).code == ExitCode.DONE
    for number in ("5", "0", "-1"):
        refused = world.run("history", *options, f"--drop={number}")
        assert (refused.code, f"no change {number}" in refused.err) == (ExitCode.USAGE, True), refused.err
    assert [one["is_dropped"] for one in world.run("history", *options, "--json").json["changes"]] == [False]
    dropped = world.run("history", *options, "--drop", "--json").json["changes"]
    assert [(change["is_dropped"], change["size"]) for change in dropped] == [(True, 0)]
    assert "it cannot be undone" in world.run("history", *options).out
    refused = world.run("rollback", *options)
    assert refused.code == ExitCode.UNMET
    assert "its stash was dropped" in refused.err


def test_an_apply_says_which_versions_it_has_accepted(world: World, venv: Venv) -> None:
    options = ("apply", "tiny", "--into", "kernel", "--python", venv.python)
    assert world.run(*options).code == ExitCode.DONE
    old, new = (venv.site / f"colours-{version}.dist-info" for version in ("2.0", "2.5"))
    old.rename(new)  # as another installer leaves it
    for name in ("METADATA", "RECORD"):
        text = (new / name).read_text()
        (new / name).write_text(text.replace("Version: 2.0", "Version: 2.5").replace(old.name, new.name))
    again = world.run(*options)
    said = " ".join(again.out.split())
    assert (again.code, "nothing was changed" in said) == (ExitCode.DONE, True), again.err
    assert "note: since it was applied: `colours` is 2.5, and was 2.0" in said
    assert "note: tiny admits what is installed now, so it stays" in said
    assert "since it was applied" not in world.run(*options).out


def test_run_says_that_a_rollback_has_taken_the_stack_away(world: World, venv: Venv, tmp_path: Path) -> None:
    twin = tmp_path / "twin.toml"
    twin.write_text(TINY.format(name="twin", shapes=">=2", imports=["shapes"]))
    options = ("--into", "kernel", "--python", venv.python)
    done = world.run("apply", "tiny", *options)
    assert done.code == ExitCode.DONE
    assert counted(f"{done.err}{done.out}")
    assert world.run("apply", str(twin), *options).code == ExitCode.DONE  # it finds nothing to do
    done = world.run("verify", str(twin))
    assert counted(f"{done.err}{done.out}")
    echo = ("--", "echo", "here")
    assert world.run("run", str(twin), *echo).err == ""
    record = world.folder / "home" / "applied" / "twin.json"
    text = record.read_text()
    record.write_text(json.dumps({**json.loads(text), "caller": "/another"}))
    assert world.run("run", str(twin), *echo).err == ""  # another one applied it in the same place after us
    (own,) = record.parent.glob("*/twin.json")
    own.rename(kept := own.with_suffix(".kept"))
    said = " ".join(world.run("run", str(twin), *echo).err.split())
    assert said.startswith(f"note: using another environment, `{venv.folder}`, where `twin` was applied last")
    kept.rename(own)
    (link := world.folder / "link").symlink_to(sys.prefix)
    record.write_text(json.dumps({**json.loads(text), "caller": str(link)}))
    assert world.run("run", str(twin), *echo).err == ""
    record.write_text(json.dumps({**json.loads(text), "python": "/gone/bin/python", "prefix": "/gone"}))
    assert world.run("run", str(twin), *echo).err == ""  # the one that is there counts
    kept = own.rename(own.with_suffix(".kept"))
    gone = world.run("run", str(twin), *echo)
    assert (gone.code, "no environment has `twin` any more" in gone.err) == (ExitCode.USAGE, True), gone.err
    record.write_text(text)
    kept.rename(own)
    assert world.run("rollback", "--python", venv.python).code == ExitCode.DONE
    ran = world.run("run", str(twin), *echo)
    assert (ran.code, ran.out) == (0, "here\n")
    said = " ".join(ran.err.split())
    assert said.startswith("note: the stack of `twin` has changed since it was proven: ")
    assert said.endswith(f"`colablock apply {twin} --into kernel --python {venv.python}` restores it")
    assert "shapes" in said


def counted(said: str) -> bool:
    """Whether the progress of the proof and the report count the same checks."""
    reported = re.search(r"(\d+) checks passed", said)
    progress = re.search(r"Proving the environment.*?\b(\d+) of (\d+), ", said, re.DOTALL)
    assert reported is not None, said
    assert progress is not None, said
    return {reported[1]} == set(progress.groups())


def test_the_note_about_a_copy_of_a_shipped_matrix_is_said_once(today: World, tmp_path: Path) -> None:
    (tmp_path / "matrices").mkdir()
    shutil.copy(ROOT / "matrices/qlora-2026.toml", tmp_path / "matrices")
    for more in ((), ("--quiet",)):  # it is in the plan where the progress does not show it
        done = today.run("plan", "qlora-2026", "--runtime", "colab-2026.08-gpu", *more, cwd=tmp_path)
        assert " ".join(f"{done.err}{done.out}".split()).count("a copy of the shipped qlora-2026") == 1, more


def test_a_note_of_the_plan_is_said_once(world: World, tmp_path: Path) -> None:
    matrix = tmp_path / "built.toml"
    text = TINY.format(name="built", shapes=">=2", imports=["shapes"])
    matrix.write_text(text.replace('in colour"\n', 'in colour"\nprefer-local = "cpu"\n', 1))
    done = world.run("apply", str(matrix), "--into", "env", COLABLOCK_HOME=str(tmp_path / "home"))
    said = f"{done.err}{done.out}"
    assert counted(said)
    assert said.count("note: no `+cpu` build of shapes for Python") == 1
    notes = re.findall(r"^note: (.*)", said, re.MULTILINE)
    assert len(notes) == len(set(notes)), notes


def test_what_a_rollback_has_not_deleted_yet_is_no_interrupted_change(world: World, venv: Venv) -> None:
    """It deletes in the background, and a notebook's next cell may plan meanwhile."""
    options = ("--into", "kernel", "--python", venv.python)
    assert world.run("apply", "tiny", *options).code == ExitCode.DONE
    assert world.run("rollback", "--python", venv.python).code == ExitCode.DONE
    (venv.folder / ".colablock/trash/left").mkdir(parents=True)
    planned = world.run("plan", "tiny", *options)
    assert planned.code == ExitCode.DONE
    assert "interrupted" not in planned.out + planned.err


def test_after_a_crash_the_next_call_puts_back_what_was_interrupted_and_no_more(
    world: World, venv: Venv, tmp_path: Path
) -> None:
    """The proof kills the whole command."""
    assert world.run("apply", "tiny", "--into", "kernel", "--python", venv.python).code == ExitCode.DONE
    before = listing(venv.folder)
    make_wheel(tmp_path / "wheels", "triangles", "1.0")
    killing = "import os; os.kill(os.getppid(), 9)"
    matrix = tmp_path / "killing.toml"
    matrix.write_text(
        TINY.format(name="killing", shapes=">=2", imports=["shapes"])
        + f"commands = [['python', '-c', {json.dumps(killing)}]]\n"
    )
    options = ("--into", "kernel", "--python", venv.python, "--with", "triangles")
    killed = world.run("apply", str(matrix), *options, "--find-links", str(tmp_path / "wheels"))
    assert killed.code == -signal.SIGKILL
    assert (venv.site / "triangles").is_dir()
    until(lambda: not processes_of(venv.folder))  # its proof ends on its own
    mixed = tmp_path / "mixed"
    shutil.copytree(venv.folder, mixed, symlinks=True)
    said = world.run("plan", "tiny", "--into", "kernel", "--python", venv.python).out
    assert said.startswith("tiny into the kernel: an interrupted change is undone first\n")
    assert "the next `apply` undoes it first, and plans again" in " ".join(said.split())
    as_json = world.run("plan", "tiny", "--into", "kernel", "--python", venv.python, "--json").json
    assert as_json["is_interrupted"] is True
    said = " ".join(world.run("history", "--python", venv.python).out.split())
    assert "change 1, " in said
    assert re.search(
        r"Not finished [\d-]+ [\d:]+( UTC)?, killing: install 1 if its process was killed, the next", said
    )
    for command in (
        ("rollback", "--python", venv.python),
        ("verify", "tiny"),
        ("run", "tiny", "--", "shapes"),
        ("apply", "tiny", "--into", "kernel", "--python", venv.python),
    ):
        back = world.run(*command)
        assert back.code == ExitCode.DONE, back.err
        note = f"an interrupted change of {venv.folder} was undone"
        assert note in " ".join(back.err.split()), command
        assert listing(venv.folder) == before, command
        *_, past = world.run("history", "--python", venv.python, "--json").json["undone"]
        assert (past["matrix"], past["why"]) == ("killing", "it was interrupted"), command
        assert past["steps"] == "install 1"
        shutil.rmtree(venv.folder)
        shutil.copytree(mixed, venv.folder, symlinks=True)


def test_an_undo_that_cannot_be_is_exit_code_four(world: World, venv: Venv, tmp_path: Path) -> None:
    """The proof takes away what was kept to go back, and then fails."""
    stash = venv.folder / ".colablock" / "changes" / "0001" / "stash"
    lost = f"import shutil, sys; shutil.rmtree(r'{stash / '0'}'); sys.exit(1)"
    matrix = tmp_path / "losing.toml"
    matrix.write_text(
        TINY.format(name="losing", shapes=">=2", imports=["shapes"])
        + f"commands = [['python', '-c', {json.dumps(lost)}]]\n"
    )
    done = world.run("apply", str(matrix), "--into", "kernel", "--python", venv.python)
    assert done.code == ExitCode.NOT_RESTORED
    assert str(stash) in done.err
    assert "restored except those missing in" in " ".join(done.err.split())
    assert str(venv.site / "colours") in done.err
    assert venv.versions() == dict.fromkeys(("colours", "monochrome", "other", "beside"), "1.0")
    assert not (venv.folder / ".colablock" / "journal.json").exists()


def test_a_repair_whose_metadata_was_false_changes_nothing(venv: Venv, tmp_path: Path) -> None:
    """What the index says of `other` is not what its wheel says (PEP 658)."""
    folder = tmp_path / "false"
    index = folder / "index"
    make_wheel(index, "colours", "2.0")
    make_wheel(index, "shapes", "2.0", requires=["colours>=2"])
    make_wheel(index, "other", "1.0")  # the index has what is installed, so that it may repair it
    wheel = make_wheel(index, "other", "2.0", requires=["colours<2"])
    (folder / "tiny.toml").write_text(TINY.format(name="tiny", shapes=">=2", imports=["shapes"]))
    with open_world(folder, index) as world:
        page = json.loads(world.server.answer("/simple/other/", JSON).body)
        for file in page["files"]:
            file["core-metadata"] = file["filename"] == wheel.name
        promised = metadata_text("other", "2.0", requires=["colours>=2"])
        world.server.fault("/simple/other/", Fault(body=json.dumps(page).encode()))
        world.server.fault(f"/files/{wheel.name}.metadata", Fault(body=promised.encode()))
        options = ("tiny.toml", "--into", "kernel", "--python", venv.python)
        (breakage,) = world.run("plan", *options, "--json").json["breakages"]
        assert (breakage["name"], breakage["remedy"]) == ("other", "repair")
        before = listing(venv.folder)
        refused = world.run("apply", *options, "--keep", "--json")
        assert refused.code == ExitCode.UNMET
        assert "colours<2" in refused.json["error"]["message"]
        assert listing(venv.folder) == before
        # The wheel is here now, so the next plan reads it.
        known = world.run("plan", *options, "--json").json["breakages"]
        assert {one["name"]: one["remedy"] for one in known}["other"] == "remove"


@pytest.mark.parametrize(("answer", "code"), [("n", ExitCode.UNMET), ("yes", ExitCode.DONE)])
def test_a_person_is_asked_before_an_environment_changes(
    answer: str, code: ExitCode, world: World, venv: Venv
) -> None:
    before = listing(venv.folder)
    here, there = os.openpty()
    command = [
        sys.executable,
        "-m",
        "colablock",
        "apply",
        "tiny",
        "--into",
        "kernel",
        "--python",
        venv.python,
    ]
    os.write(here, f"{answer}\n".encode())
    with subprocess.Popen(
        command,
        env=world.environ(TERM="dumb"),
        cwd=world.folder,
        stdin=there,
        stdout=subprocess.DEVNULL,
        stderr=there,
    ) as process:
        os.close(there)
        said = b""
        with contextlib.suppress(OSError):  # the terminal goes with the process
            while data := os.read(here, 65536):
                said += data
    os.close(here)
    assert b"Change this environment? [y/N]" in said
    assert process.returncode == code
    assert (listing(venv.folder) == before) == (code != ExitCode.DONE)


def test_an_environment_that_is_not_proven_is_taken_away(world: World, tmp_path: Path) -> None:
    home = tmp_path / "home"
    undone = world.run("apply", "unproven", "--into", "env", COLABLOCK_HOME=str(home))
    assert undone.code == ExitCode.ROLLED_BACK
    assert not list(home.glob("envs/[!.]*"))
    kept = world.run("apply", "unproven", "--into", "env", "--keep", COLABLOCK_HOME=str(home))
    assert kept.code == ExitCode.NOT_PROVEN
    assert list(home.glob("envs/[!.]*"))


def test_isolated_environments_are_listed_and_taken_away(world: World, venv: Venv, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    assert "no isolated environment" in world.run("env", "list", COLABLOCK_HOME=home).out
    assert known(world, home) == (None, None)
    assert world.run("apply", "tiny", "--into", "env", COLABLOCK_HOME=home).code == ExitCode.DONE
    today = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "old": False, "earlier": False}
    assert known(world, home) == (today, today)
    (one,) = world.run("env", "list", "--json", COLABLOCK_HOME=home).json["environments"]
    assert (one["matrix"], one["is_whole"], one["current_of"]) == ("tiny", True, ["tiny"])
    said = world.run("env", "list", COLABLOCK_HOME=home).out
    assert said.startswith(
        f"tiny, Python {one['python_version']}, current\n  lock {one['lock'][:12]}, built "
    )
    assert one["size"] > one["shared"] > 0  # the files of wheels are links to those in the cache
    assert "of it in files that the cache or another environment also has) in" in " ".join(said.split())
    said = " ".join(world.run("verify", "tiny", COLABLOCK_HOME=home).out.split())
    assert re.search(r"note: the apply made \d+ checks: that all files are there is checked here, too", said)
    planned = world.run("plan", "tiny", "--into", "env", COLABLOCK_HOME=home)
    assert "exists already: nothing has to be fetched" in " ".join(planned.out.split())
    assert planned.out.startswith("tiny into an isolated environment: nothing to do\n")
    as_json = world.run("plan", "tiny", "--into", "env", "--json", COLABLOCK_HOME=home).json
    assert (as_json["is_in_place"], as_json["is_interrupted"]) == (True, False)
    assert "\nInstalled (" in planned.out
    other = ("--into", "kernel", "--python", venv.python)
    assert world.run("apply", "tiny", *other, COLABLOCK_HOME=home).code == ExitCode.DONE
    again = world.run("apply", "tiny", "--into", "env", COLABLOCK_HOME=home)
    assert (again.code, "nothing was changed" in " ".join(again.out.split())) == (ExitCode.DONE, True)
    assert "exists already: nothing has to be fetched" in " ".join(again.err.split())
    assert "Install (" not in again.err + again.out
    assert "the apply made" not in again.out  # that was in the other environment
    listed = "isolated environments are not changed, but built: `colablock env list` lists them"
    for python in (venv.python, sys.executable):  # with a change of its own, and without one
        history = world.run("history", "--python", python, COLABLOCK_HOME=home)
        assert " ".join(history.out.split()).endswith(f"note: {listed}")
    wrong = world.run("env", "remove", "tinny", COLABLOCK_HOME=home)
    assert (wrong.code, "colablock env list" in wrong.err) == (ExitCode.USAGE, True)
    removed = world.run("env", "remove", "tiny", "--json", COLABLOCK_HOME=home)
    assert removed.json["removed"]["lock"] == one["lock"]
    assert world.run("env", "list", "--json", COLABLOCK_HOME=home).json == {"environments": []}
    assert world.run("run", "tiny", "--", "true", COLABLOCK_HOME=home).code == ExitCode.USAGE
    planned = world.run("plan", "tiny", "--into", "env", COLABLOCK_HOME=home)
    assert "exists already" not in planned.out


def test_an_import_without_its_card_and_a_time_that_is_no_date_are_no_evidence(world: World) -> None:
    memory = Path("/dev/shm")  # noqa: S108 - few disks can hold the time below
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as home:
        assert world.run("apply", "tiny", "--into", "env", COLABLOCK_HOME=home).code == ExitCode.DONE
        for path in Path(home, "applied").rglob("*.json"):
            record = json.loads(path.read_text())
            for check in record["report"]["checks"]:
                check["skipped"] = check["kind"] == "import"
            path.write_text(json.dumps(record))
        applied, imported = known(world, home)
        assert (applied["earlier"], imported) == (False, None)
        for path in Path(home, "applied").rglob("*.json"):
            os.utime(path, (9e11, 9e11))  # the year 30489
        applied, _ = known(world, home)
        assert applied is None or applied["date"] < "9999"


def known(world: World, home: str) -> tuple[Any, Any]:
    """Return when `tiny` was applied and imported, as `list` knows."""
    listed = world.run("list", "--json", COLABLOCK_HOME=home).json["matrices"]
    (evidence,) = (one["evidence"] for one in listed if one["name"] == "tiny")
    return evidence["applied"], evidence["imported"]


def test_quiet_is_quiet(world: World, tmp_path: Path) -> None:
    done = world.run("apply", "tiny", "--quiet", COLABLOCK_HOME=str(tmp_path / "home"))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("tiny in its isolated environment is proven")


# Offline


def test_offline_nothing_is_asked_of_the_network(world: World, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    world.server.forget_requests()
    failed = world.run("plan", "tiny", "--into", "env", "--offline", COLABLOCK_CACHE_DIR=cache)
    assert failed.code == ExitCode.UNMET
    assert "offline" in failed.err
    links = str(world.folder / "index")
    found = world.run(
        "plan", "tiny", "--into", "env", "--offline", "--find-links", links, COLABLOCK_CACHE_DIR=cache
    )
    assert found.code == ExitCode.DONE, found.err
    assert world.server.paths == []


# Signals and pipes


def interrupted(world: World, venv: Venv, tmp_path: Path, slow: Fault) -> int:
    """Start an apply, interrupt it in the middle of the fetch that *slow* delays, and return how it ended."""
    options = ["--into", "kernel", "--python", venv.python]
    command = [sys.executable, "-m", "colablock", "apply", "tiny", *options]
    environ = world.environ(COLABLOCK_CACHE_DIR=str(tmp_path / "cache"))
    with subprocess.Popen(
        command, env=environ, cwd=world.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Fetching"):
                break
        until(lambda: slow.times == 0)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        said = process.stderr.read()
        code = process.wait(timeout=PATIENCE)
    assert said.splitlines()[-1] == "Interrupted. The environment is as it was."
    assert "Traceback" not in said
    assert time.monotonic() - started < PATIENCE / 8  # the fetch would run into its timeout later
    return code


def test_an_interrupted_fetch_changes_nothing(world: World, venv: Venv, tmp_path: Path) -> None:
    before = listing(venv.folder)
    slow = Fault(delay=2 * PATIENCE, times=1, method="GET")
    wheel = "/files/colours-2.0-py3-none-any.whl"  # the plan reads nothing of it
    world.server.fault(wheel, slow)
    try:
        assert interrupted(world, venv, tmp_path, slow) == ExitCode.INTERRUPTED
    finally:
        world.server.fault(wheel, Fault(times=0))
    assert listing(venv.folder) == before
    assert world.run("apply", "tiny", "--into", "kernel", "--python", venv.python).code == ExitCode.DONE


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["list"], ExitCode.DONE),
        (["list", "--json"], ExitCode.DONE),
        (["lock", "tiny", "-o", "-"], ExitCode.DONE),
        # They end before they have done or found anything.
        (["apply", "tiny", "--into", "env", "--yes"], ExitCode.OUTPUT_CLOSED),
        (["check", "tiny"], ExitCode.OUTPUT_CLOSED),
    ],
)
def test_a_reader_that_leaves_early_is_no_fault(argv: list[str], code: ExitCode, world: World) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "colablock", *argv],
            env=world.environ(),
            cwd=world.folder,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == code


def test_a_bug_of_ours_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a shelf fell down")

    monkeypatch.setattr("colablock.operations.info.list_facts", fail)
    assert main(["list"]) == ExitCode.BUG
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "RuntimeError: a shelf fell down" in captured.err
    assert "This is a bug in colablock" in captured.err


# Locks


def lock(world: World, tmp_path: Path, name: str, *options: str) -> tuple[Path, bytes]:
    path = tmp_path / "pylock.toml"
    done = world.run("lock", name, *options, "--output", str(path))
    assert done.code == ExitCode.DONE, done.err
    assert done.out == ""
    return path, path.read_bytes()


LINUX = ("--python-version", "3.12", "--platform", "manylinux_2_35_x86_64")


def test_a_lock_is_made_for_a_named_target(world: World, tmp_path: Path) -> None:
    path, text = lock(world, tmp_path, "matrices/tiny.toml", *LINUX)
    pylock = Pylock.from_dict(tomllib.loads(text.decode()))
    pylock.validate()
    assert [(package.name, str(package.version)) for package in pylock.packages] == [
        ("colours", "2.0"),
        ("shapes", "2.0"),
    ]
    for package in pylock.packages:
        assert package.index == world.server.url
        for wheel in package.wheels or ():
            local = world.folder / "index" / wheel.filename
            assert wheel.url == world.server.file_url(local.name)
            assert wheel.size == local.stat().st_size
            assert wheel.hashes.keys() == {"sha256"}
    path.unlink()
    fresh = ("--default-index", world.server.url)
    assert lock(world, tmp_path, "matrices/tiny.toml", *LINUX, *fresh)[1] == text


def test_a_lock_is_what_another_installer_takes(today: World, tmp_path: Path) -> None:
    python = find_python("3.12")
    if python is None:
        pytest.skip("there is no Python 3.12 here to lock for")
    path, text = lock(today, tmp_path, "qlora-2026", "--variant", "cuda", *LINUX)
    names = {package["name"] for package in tomllib.loads(text.decode())["packages"]}
    assert {"torch", "transformers", "peft", "bitsandbytes", "trl"} <= names
    venv = make_venv(tmp_path / "venv", python)
    done = today.uv("pip", "install", "--dry-run", "--no-config", "--python", str(venv), "-r", str(path))
    assert done.code == 0, done.err
    assert set(re.findall(r"^ \+ ([a-z0-9-]+)", done.err, re.MULTILINE)) == names


def test_an_empty_lock_says_so(world: World, tmp_path: Path) -> None:
    _, text = lock(world, tmp_path, "empty", *LINUX)
    assert b"\npackages = []\n" in text
    assert json.dumps(tomllib.loads(text.decode())["packages"]) == "[]"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan", "tiny", "--python", "x" * 300], "no interpreter found"),
        (["lock", "tiny", "-o", "matrices/../pylock.toml"], "cannot be written"),
        (["plan", "tiny", "--default-index", "foo"], "`foo` is neither a URL nor an existing"),
        (["why", "tiny", "!!"], "`!!` is not a valid project name"),
        (["lock", "tiny", "-P", "blue>1"], "`blue>1` is not a valid project name"),
        (["why", "tiny", "nothing"], "nothing is neither installed nor part of tiny"),
        (["run", "tiny", "word", "--", "true"], "unexpected argument `word` before `--`"),
    ],
)
def test_what_cannot_be_used_is_no_bug(argv: list[str], words: str, world: World) -> None:
    (world.folder / "pylock.toml").mkdir(exist_ok=True)
    done = world.run(*argv)
    assert done.code == ExitCode.USAGE
    assert words in " ".join(done.err.split())


def test_a_timeout_that_is_none_is_named(world: World, tmp_path: Path) -> None:
    done = world.run("lock", "tiny", "-o", "-", COLABLOCK_CACHE_DIR=str(tmp_path), COLABLOCK_TIMEOUT="xx")
    assert done.code == ExitCode.USAGE
    assert "`xx` in COLABLOCK_TIMEOUT" in done.err


def test_what_stands_after_the_dashes_is_the_command(world: World, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    assert world.run("apply", "tiny", "--into", "env", COLABLOCK_HOME=home).code == ExitCode.DONE
    done = world.run("run", "tiny", "-q", "--", "python", "-c", "print('--')", COLABLOCK_HOME=home)
    assert (done.code, done.out) == (0, "--\n")
