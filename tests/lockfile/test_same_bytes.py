"""A lock has the same bytes under any Python: every session of nox compares with one recorded file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from colablock.errors import ExitCode
from tests.support.fixtures import world_fixture
from tests.support.paths import DATA
from tests.support.wheels import make_wheel
from tests.support.world import World

pytestmark = pytest.mark.interpreter

RECORDED = DATA / "locks" / "pylock.tiny--py312.toml"
MATRIX = """\
schema = 1
name = "tiny"
summary = "Shapes, umlauts: äöü"

[packages]
shapes = { version = ">=2", extras = ["round"] }
"""


def fill(folder: Path) -> None:
    wheels, matrices = folder / "index", folder / "matrices"
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "colours", version)
    make_wheel(wheels, "shapes", "2.0", requires=["colours>=2", "lines; extra == 'round'"], extras=["round"])
    make_wheel(wheels, "lines", "1.0")
    matrices.mkdir()
    (matrices / "tiny.toml").write_text(MATRIX, encoding="utf-8")


world = world_fixture(fill)


def test_a_lock_has_the_same_bytes_under_any_python(world: World) -> None:
    done = world.run("lock", "tiny", "--python-version", "3.12", "--platform", "manylinux_2_35_x86_64")
    assert done.code == ExitCode.DONE, done.err
    text = (world.folder / "matrices" / RECORDED.name).read_bytes().decode("utf-8")
    # The port differs each time, and zlib may compress a wheel differently.
    text = text.replace(world.server.url.removesuffix("simple/"), "http://index.example/")
    text = re.sub(r"[0-9a-f]{64}", "0" * 64, text)
    assert re.sub(r"size = [0-9]+", "size = 0", text) == RECORDED.read_text(encoding="utf-8")
