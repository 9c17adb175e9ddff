"""A plan says what may no longer import, and an apply tries it: whole commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from colablock.errors import ExitCode
from tests.support.runtime import Stub, Venv
from tests.support.wheels import make_wheel
from tests.support.world import World, open_world

MATRIX = """\
schema = 1
name = "tiny"
[packages]
colours = "==2.0"
[absent]
flow = {}
[verify]
imports = ["colours"]
"""
BEFORE = (
    Stub(name="flow", version="2.19"),
    # Of these, no requirement tells that they need flow.
    Stub(name="slim", version="1.1", files={"slim/__init__.py": "import flow\n"}),
    Stub(name="already", version="1.0", files={"already/__init__.py": "import nowhere\nimport flow\n"}),
    Stub(
        name="tries",
        version="1.0",
        files={"tries/__init__.py": "import os\nif os.environ.get('TRY'):\n    import flow\n"},
    ),
    Stub(name="crash", version="1.0", files={"crash/__init__.py": "import flow, os\n"}),
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    make_wheel(tmp_path / "index", "colours", "2.0")
    with open_world(tmp_path, tmp_path / "index") as found:
        (found.folder / "tiny.toml").write_text(MATRIX)
        yield found


def test_the_plan_lists_the_risks_and_the_apply_tries_them(world: World, tmp_path: Path) -> None:
    venv = Venv.make(tmp_path / "env", *BEFORE)
    options = ("tiny.toml", "--into", "kernel", "--python", venv.python)
    planned = world.run("plan", *options, "--json").json
    reason = "it imports `flow` ({}/__init__.py:{}), and flow 2.19 is removed"
    assert [(one["name"], one["modules"], one["reason"]) for one in planned["import_risks"]] == [
        ("already", ["already"], reason.format("already", 2)),
        ("crash", ["crash"], reason.format("crash", 1)),
        ("slim", ["slim"], reason.format("slim", 1)),
        ("tries", ["tries"], reason.format("tries", 3)),
    ]
    shown = world.run("plan", *options).out
    assert "May no longer import (4)" in shown
    assert f"slim 1.1: {reason.format('slim', 1)}" in shown

    done = world.run("apply", *options, "--json")
    assert done.code == ExitCode.DONE, done.err
    notes = [note for note in done.json["report"]["notes"] if "no longer imports" in note]
    assert notes == [
        f"`{name}` of {name} {version} no longer imports (ModuleNotFoundError: No module named 'flow'),"
        " as the plan says"
        for name, version in (("crash", "1.0"), ("slim", "1.1"))
    ]
    assert done.json["report"]["passed"]
    written = {path.relative_to(venv.site).parts[0] for path in venv.site.rglob("*.pyc")}
    assert written == {"colours"}  # the new package: nothing of a distribution that stays


def test_a_plan_for_an_isolated_environment_has_no_risks(world: World, tmp_path: Path) -> None:
    venv = Venv.make(tmp_path / "env", *BEFORE)
    options = ("tiny.toml", "--into", "env", "--python", venv.python)
    assert world.run("plan", *options, "--json").json["import_risks"] == []
