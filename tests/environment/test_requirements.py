"""Requirement lines, read when their name matters."""

from __future__ import annotations

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.requirements import Dependents, applies, holding, only_with, parse_requirement
from colablock.runtimes.catalog import recorded_distributions
from tests.support.dict_source import PYTHON_312, installed


@pytest.mark.parametrize("line", ["a>=1", "A.b_c[x] (>=1)", "a @ https://x.example/a.whl", "a; sys_platform"])
def test_a_line_is_a_requirement_or_nothing(line: str) -> None:
    found = parse_requirement(line)
    assert found is None or str(found)
    assert (found is None) == line.endswith("sys_platform")


@pytest.mark.parametrize(
    ("line", "extras", "expected"),
    [
        ("a", (), True),
        ("a; python_version >= '3.12'", (), True),
        ("a; python_version < '3.12'", (), False),
        ("a; extra == 'x'", (), False),
        ("a; extra == 'x'", ("x",), True),
        ("a; extra == 'x'", ("y", "x"), True),
        ("a; extra == 'X_y'", ("x-y",), True),
        ("a; extra == 'x' and python_version < '3'", ("x",), False),
        ("a; platform_machine == 'x86_64'", (), True),
    ],
)
def test_markers_are_judged_for_the_target(line: str, extras: tuple[str, ...], *, expected: bool) -> None:
    requirement = parse_requirement(line)
    assert requirement is not None
    assert applies(requirement, PYTHON_312, extras) is expected


IMAGE = installed(
    {
        "a 1": ["B-b>=1", "c<2", "gone", "not a line (", "c; extra == 'x'"],
        "d 1": ["b_B<9"],
        "b-b 2": [],
        "c 3rc1": [],
    }
)


def test_dependents_are_found_by_any_spelling() -> None:
    dependents = Dependents(IMAGE, PYTHON_312)
    found = [(demand.owner, str(demand.requirement)) for demand in dependents.of(canonicalize_name("b-b"))]
    assert found == [("a", "B-b>=1"), ("d", "b_B<9")]
    assert [demand.owner for demand in dependents.of(canonicalize_name("c"))] == ["a"]
    assert list(dependents.of(canonicalize_name("nobody"))) == []


def test_what_holds_now() -> None:
    found = holding(IMAGE[canonicalize_name("a")], PYTHON_312, IMAGE)
    assert [str(requirement) for requirement in found] == ["B-b>=1"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a; extra == 'X_y'", "x-y"),
        ('a[b]>=1 ; python_version < "3.9" and extra == "x"', "x"),
        ("a; (extra == 'x') and (sys_platform != 'win32')", "x"),
        ("a; extra == 'x' or extra == 'y'", None),
        ("a; python_version < '3' or (os_name == 'nt' and extra == 'x')", None),
        ("a; 'x' == extra", None),
        ("a; extra != 'x'", None),
        ("a; sys_platform == 'linux'", None),
        ("extra == 'x'", None),
        ("a", None),
    ],
)
def test_the_extra_of_a_line_is_told_from_its_text(line: str, expected: str | None) -> None:
    assert only_with(line) == expected


def test_what_the_text_tells_is_what_the_marker_says() -> None:
    lines = {line for one in recorded_distributions("colab-2026.08-gpu") for line in one.installed.requires}
    told = [line for line in lines if only_with(line)]
    assert len(told) > len(lines) / 2
    assert not any(
        requirement and applies(requirement, PYTHON_312) for requirement in map(parse_requirement, told)
    )
