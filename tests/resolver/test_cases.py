"""Solve every case in ``tests/cases`` with colablock and with uv, from the same index of real files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest
import uv

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import Unmet
from colablock.index.build import Builder
from colablock.index.finder import IndexSource
from colablock.index.prefetch import ReadOnce
from colablock.matrix.model import Constraint, Matrix, Options, entry_of
from colablock.network.fetcher import Fetcher
from colablock.resolver.conflict_report import explain
from colablock.resolver.model import Request, Unsolvable
from colablock.resolver.resolver import resolve
from tests.support.cases import ResolverCase, ServedCase, load_case
from tests.support.paths import CASES as CASE_FILES

pytestmark = pytest.mark.requirements

CASES = {path.stem: load_case(path) for path in sorted(CASE_FILES.glob("*.toml"))}
UV_CASES = {name: case for name, case in CASES.items() if case.without_uv is None}
UV_PLATFORMS = {"win_amd64": "x86_64-pc-windows-msvc"}
NO_ANSWER = ("No solution found", "Failed to", "not found", "Requested package name", "was not found")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_colablock_finds_the_expected_pins(case: ResolverCase, tmp_path: Path) -> None:
    with case.world(tmp_path) as world:
        pins, report = own_pins(world, tmp_path / "cache")
    if case.expect.unsatisfiable:
        assert pins is None
        assert [name for name in case.expect.names if name not in report] == [], report
    else:
        assert pins is not None, report
        assert case.expect.pins is None or pins == case.expect.pins


@pytest.mark.parametrize("case", UV_CASES.values(), ids=UV_CASES)
def test_uv_finds_the_expected_pins(case: ResolverCase, tmp_path: Path) -> None:
    with case.world(tmp_path) as world:
        pins = uv_pins(world, tmp_path / "cache")
    if case.expect.unsatisfiable:
        assert pins is None
    elif case.expect.unique:
        assert pins == case.expect.pins
    else:
        assert pins is not None


def own_pins(world: ServedCase, cache: Path) -> tuple[Mapping[str, str] | None, str]:
    """Return the pins of colablock in *world*; None and the report if it finds no solution."""
    matrix, environment = _matrix(world), environment_for(world.case.python, world.case.platform)
    fetcher = Fetcher(os.environ, cache=cache)
    reads = ReadOnce()
    source = IndexSource.for_matrix(
        matrix,
        environment=environment,
        fetcher=fetcher,
        reads=reads,
        default_index=world.server.url,
        find_links=(str(world.local),) if world.case.find_links else (),
        build=Builder(
            python=sys.executable, environment=environment, cache=fetcher.cache, environ=os.environ
        ),
    )
    request = Request(
        environment=environment,
        roots=matrix.packages,
        constraints=matrix.constraints,
        requires_python=matrix.requires_python,
        prerelease=matrix.prerelease,
    )
    try:
        pins = resolve(request, source).pins
    except Unsolvable as error:
        return None, str(explain(error.conflict, asker="the case"))
    except Unmet as error:
        return None, str(error)
    finally:
        reads.close()
    return {name: str(pin.version) for name, pin in pins.items()}, ""


def _matrix(world: ServedCase) -> Matrix:
    """Return a matrix with the requirements of the case."""
    case = world.case
    constraints = map(Requirement, case.constraints)
    return Matrix(
        name="case",
        source="the case",
        digest="",
        requires_python=SpecifierSet(case.requires_python),
        prerelease=case.prerelease,
        exclude_newer=datetime.fromisoformat(case.exclude_newer[:19]) if case.exclude_newer else None,
        packages=tuple(entry_of(Requirement(line), path="require") for line in world.require),
        constraints=tuple(
            Constraint(
                name=canonicalize_name(line.name),
                path=f"constraints.{line.name}",
                specifier=line.specifier,
                marker=line.marker,
            )
            for line in constraints
        ),
        options=Options(allow_build=frozenset(map(canonicalize_name, case.allow_build))),
    )


def uv_pins(world: ServedCase, cache: Path) -> Mapping[str, str] | None:
    """Return the pins of ``uv pip compile`` in *world*; None if it finds no solution."""
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


def _uv_arguments(world: ServedCase, cache: Path) -> list[str]:
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
    """Return the name and the version in a line of uv's output, of a direct reference by its file name."""
    if " @ " in line:
        name, url = line.split(" @ ")
        return name, _version(url.rpartition("/")[2])
    name, version = line.split("==", 1)
    return name, version


def _version(filename: str) -> str:
    wheel = filename.endswith(".whl")
    return str(parse_wheel_filename(filename)[1] if wheel else parse_sdist_filename(filename)[1])
