"""Building a wheel from an sdist, where that is allowed."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from colablock.environment.markers_and_tags import environment_for
from colablock.errors import BadDistribution
from colablock.index.build import Builder, build_wheel
from colablock.network.cache import Cache
from tests.support.wheels import make_sdist

pytestmark = pytest.mark.interpreter

PY312 = environment_for("3.12.4", "manylinux_2_28_x86_64")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(
        python=sys.executable, environment=PY312, cache=Cache(tmp_path / "cache"), environ=os.environ
    )


def test_a_wheel_is_built_once(tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a host presets for other tools must not reach the build.
    monkeypatch.setenv("UV_CONSTRAINT", "/nonexistent/constraints.txt")
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    sdist = make_sdist(tmp_path, "demo", "1.0", requires=["dep"], static=False)
    wheel = builder(sdist)
    assert wheel.name == "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert b"Requires-Dist: dep" in archive.read("demo-1.0.dist-info/METADATA")
    made = wheel.stat().st_mtime_ns
    assert builder(sdist) == wheel
    assert wheel.stat().st_mtime_ns == made


def test_a_failed_build_shows_its_last_lines_and_leaves_nothing(tmp_path: Path, builder: Builder) -> None:
    sdist = make_sdist(tmp_path, "demo", "1.0", fails="no compiler on Sundays")
    with pytest.raises(BadDistribution) as caught:
        builder(sdist)
    assert "`demo-1.0.tar.gz` cannot be built" in str(caught.value)
    assert "no compiler on Sundays" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.whl"))


@pytest.mark.parametrize("python", ["", "/nonexistent/python3.9"])
def test_building_needs_an_interpreter(tmp_path: Path, python: str) -> None:
    sdist = make_sdist(tmp_path, "demo", "1.0")
    with pytest.raises(BadDistribution, match="no interpreter here") as caught:
        build_wheel(sdist, python, tmp_path, environ=os.environ)
    assert caught.value.hint is not None
