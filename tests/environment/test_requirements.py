"""Requirement lines: parsed, and judged by markers and extras."""

from __future__ import annotations

import pytest

from colablock.environment.requirements import (
    applies,
    asks_for_extras,
    only_with,
    parse_requirement,
    required_name,
    same_version,
)
from colablock.runtimes.catalog import recorded_distributions
from tests.support.dict_source import PYTHON_312


@pytest.mark.parametrize("line", ["a>=1", "A.b_c[x] (>=1)", "a @ https://x.example/a.whl", "a; sys_platform"])
def test_an_invalid_line_gives_no_requirement(line: str) -> None:
    found = parse_requirement(line)
    assert found is None or str(found)
    assert (found is None) == line.endswith("sys_platform")


@pytest.mark.parametrize(
    ("line", "extra", "expected"),
    [
        ("a", "", True),
        ("a", "x", False),  # it counts for the distribution itself
        ("a; python_version >= '3.12'", "", True),
        ("a; python_version >= '3.12'", "x", False),
        ("a; python_version < '3.12'", "", False),
        ("a; extra == 'x'", "", False),
        ("a; extra == 'x'", "x", True),
        ("a; extra == 'x'", "y", False),
        ("a; extra == 'X_y'", "x-y", True),
        ("a; extra == 'x' and python_version < '3'", "x", False),
        ("a; extra == 'x' or python_version < '3'", "", False),
        ("a; extra == 'x' or python_version < '3'", "x", True),
        ("a; extra == 'x' or python_version > '3'", "", True),
        ("a; extra == 'x' or python_version > '3'", "x", False),
        ("a; extra == 'x' or extra == 'y'", "y", True),
        ("a; platform_machine == 'x86_64'", "", True),
    ],
)
def test_a_requirement_applies_to_the_project_or_an_extra(line: str, extra: str, *, expected: bool) -> None:
    requirement = parse_requirement(line)
    assert requirement is not None
    assert applies(requirement, PYTHON_312, extra) is expected


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("B_b.c[x]>=1", "b-b-c"),
        (" a @ https://x.example/a.whl", "a"),
        ("not a line (", "not"),
        ("(", None),
        ("", None),
    ],
)
def test_the_required_name_is_read_from_the_text(line: str, name: str | None) -> None:
    assert required_name(line) == name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a[x]>=1", True),
        ("a[x] ; extra == 'y'", True),
        ("a; extra == '[x]'", False),
        ("a>=1", False),
    ],
)
def test_a_line_that_asks_for_extras_is_recognised_by_its_text(line: str, *, expected: bool) -> None:
    assert asks_for_extras(line) is expected


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
def test_the_extra_of_a_line_is_read_from_its_text(line: str, expected: str | None) -> None:
    assert only_with(line) == expected


def test_the_extra_read_from_the_text_agrees_with_the_marker() -> None:
    lines = {line for one in recorded_distributions("colab-2026.08-gpu") for line in one.installed.requires}
    told = [line for line in lines if only_with(line)]
    assert len(told) > len(lines) / 2
    assert not any(
        requirement and applies(requirement, PYTHON_312) for requirement in map(parse_requirement, told)
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("4.9", "4.9.0", True),
        ("1.0+cu128", "1.0+CU128", True),
        ("4.9", "4.10", False),
        ("1.1build1", "1.1build1", True),
        ("1.1build1", "1.1", False),
    ],
)
def test_versions_are_compared_as_versions(one: str, other: str, *, same: bool) -> None:
    assert same_version(one, other) is same
