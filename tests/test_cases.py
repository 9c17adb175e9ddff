"""Every case under ``tests/cases``, solved by colablock and by uv over the same index of real files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import uv

from colablock._vendor.packaging.utils import canonicalize_name, parse_wheel_filename
from tests.support.cases import Case, World, load_case

CASES = {path.stem: load_case(path) for path in sorted((Path(__file__).parent / "cases").glob("*.toml"))}
UV_CASES = {name: case for name, case in CASES.items() if case.without_uv is None}
UV_PLATFORMS = {"win_amd64": "x86_64-pc-windows-msvc"}
NO_ANSWER = ("No solution found", "Failed to", "not found", "Requested package name", "was not found")


@pytest.mark.parametrize("case", UV_CASES.values(), ids=UV_CASES)
def test_uv_finds_what_the_case_expects(case: Case, tmp_path: Path) -> None:
    with case.world(tmp_path) as world:
        pins = uv_pins(world, tmp_path / "cache")
    if case.expect.unsatisfiable:
        assert pins is None
    elif case.expect.unique:
        assert pins == case.expect.pins
    else:
        assert pins is not None


def uv_pins(world: World, cache: Path) -> Mapping[str, str] | None:
    """Return what ``uv pip compile`` pins in *world*; None when it finds no solution."""
    process = subprocess.run(
        [uv.find_uv_bin(), *_uv_arguments(world, cache)],
        input="\n".join(world.require),
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))},
    )
    if process.returncode == 0:
        return dict(_pin(line) for line in process.stdout.splitlines() if line.strip())
    assert process.returncode in {1, 2}, process.stderr
    assert any(words in process.stderr for words in NO_ANSWER), process.stderr
    return None


def _uv_arguments(world: World, cache: Path) -> list[str]:
    case = world.case
    constraints = world.local.parent / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in case.constraints), encoding="utf-8")
    arguments = ["pip", "compile", "-", "--no-config", "--no-header", "--no-annotate", "--quiet"]
    arguments += ["--cache-dir", str(cache), "--no-python-downloads", "--python", sys.executable]
    arguments += ["--index-url", world.server.url, "--constraints", str(constraints)]
    arguments += ["--python-version", case.python, "--python-platform", _uv_platform(case.platform)]
    arguments += ["--prerelease", case.prerelease]
    allowed = {canonicalize_name(name) for name in case.allow_build}
    names = {canonicalize_name(release.name) for release in (*case.index, *case.local)}
    for name in sorted(names - allowed):
        arguments += ["--only-binary", name]
    if case.exclude_newer:
        arguments += ["--exclude-newer", case.exclude_newer]
    if case.find_links:
        arguments += ["--find-links", str(world.local)]
    return arguments


def _uv_platform(tag: str) -> str:
    linux = re.fullmatch(r"(manylinux_\d+_\d+)_(x86_64|aarch64)", tag)
    return f"{linux[2]}-{linux[1]}" if linux else UV_PLATFORMS[tag]


def _pin(line: str) -> tuple[str, str]:
    """Return name and version of a line of uv's output; of a direct reference by its file name."""
    if " @ " in line:
        name, url = line.split(" @ ")
        return name, str(parse_wheel_filename(url.rpartition("/")[2])[1])
    name, version = line.split("==", 1)
    return name, version
