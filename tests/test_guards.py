"""What an apply is kept from, or insists on: whole commands in real environments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from colablock.errors import ExitCode
from tests.support.runtime import Stub, build_site, make_system_python, site_of
from tests.support.trees import listing
from tests.support.wheels import make_wheel
from tests.support.world import World, open_world

pytestmark = pytest.mark.slow  # whole commands

MATRIX = """\
schema = 1
name = "painting"
[packages]
colours = "==2.0"
[verify]
imports = ["colours"]
"""
MANAGED = "[externally-managed]\nError=use apt\n"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    make_wheel(tmp_path / "index", "colours", "2.0")
    (tmp_path / "painting.toml").write_text(MATRIX)
    with open_world(tmp_path, tmp_path / "index") as found:
        yield found


def test_an_externally_managed_environment_changes_where_one_insists(world: World) -> None:
    folder = world.folder / "system"
    python = str(make_system_python(folder, MANAGED))
    build_site(site_of(folder), [Stub(name="colours", version="1.0")])
    before = listing(folder)
    kernel = ["painting.toml", "--into", "kernel", "--python", python]
    planned = world.run("plan", *kernel, "--json").json
    assert [note for note in planned["notes"] if "externally managed (PEP 668)" in note]
    refused = world.run("apply", *kernel, "--json")
    assert refused.code == ExitCode.UNMET
    assert "use apt" in refused.json["error"]["message"]
    assert "`--break-system-packages` (`break_system_packages=True`)" in refused.json["error"]["hint"]
    # Nobody named a target: then what may not be changed is left alone.
    aside = world.run("plan", "painting.toml", "--python", python, "--json").json
    assert aside["target"] == "env"
    assert "externally managed" in aside["why_target"]
    assert listing(folder) == before
    insisted = world.run("apply", *kernel, "--break-system-packages")
    assert insisted.code == ExitCode.DONE, insisted.err
    assert (site_of(folder) / "colours-2.0.dist-info").is_dir()
    assert "nothing was changed" in world.run("apply", *kernel).out
    assert world.run("rollback", "--python", python).code == ExitCode.DONE
    assert listing(folder) == before
