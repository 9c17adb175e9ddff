"""What changed between two runtimes, and which matrices that concerns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.accelerator import Accelerator
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.snapshot import Installed, Snapshot
from colablock.matrix.model import Matrix
from colablock.matrix.reader import parse_matrix
from colablock.runtimes.diff import Concern, diff_runtimes

MATRIX = """\
schema = 1
name = "one"
requires-python = ">=3.10,<3.13"
[packages]
stays = ">=1,<2"
leaves = "<2"
comes = ">=2"
outside = "==9"
added = ">=1"
added-old = ">=5"
removed = ">=1"
any = {}
unmarked = { version = ">=1", marker = "python_version < '3'" }
still = ">=1"
[constraints]
narrow = { version = "<2", why = "a reason" }
[absent]
harm = { version = "<2", why = "a reason" }
harmless = { version = "<1", why = "a reason" }
[variants.gpu]
system-requirements = { driver = ">=600" }
[variants.gpu.packages]
stays = "==1.2"
[variants.cpu]
[variants.cpu.packages]
stays = ">=1,<2"
"""
BEFORE = {
    "stays": "1.0",
    "leaves": "1.0",
    "comes": "1.0",
    "outside": "1.0",
    "removed": "1.0",
    "any": "1.0",
    "unmarked": "1.0",
    "still": "1.0",
    "narrow": "1.0",
    "harm": "1.0",
    "harmless": "1.0",
    "unnamed": "1.0",
    "odd": "final",
    "down": "2.0",
}
AFTER = {
    **{name: "2.0" for name in BEFORE if name != "removed"},
    "stays": "1.2",
    "still": "1.0",
    "down": "1.0",
    "added": "1.0",
    "added-old": "1.0",
}


def snapshot(versions: dict[str, str], *, python: str = "3.12.1", driver: str | None = None) -> Snapshot:
    names = {canonicalize_name(name): version for name, version in versions.items()}
    return Snapshot(
        environment=environment_for(python, "linux_x86_64"),
        python="",
        prefix="/usr",
        site="/usr/lib",
        installed={name: Installed(name=name, version=version) for name, version in names.items()},
        accelerator=Accelerator(kind="cuda", driver=driver),
    )


def matrix() -> Matrix:
    return parse_matrix(MATRIX)


def concerns(before: Snapshot, after: Snapshot) -> dict[tuple[str, str], Concern]:
    found = diff_runtimes(before, after, [matrix()]).concerns
    assert len({(one.name, one.specifier) for one in found}) == len(found)
    return {(one.name, one.specifier): one for one in found}


def test_a_diff_lists_added_removed_and_moved_distributions() -> None:
    diff = diff_runtimes(snapshot(BEFORE), snapshot(AFTER), [])
    assert diff.added == {"added": "1.0", "added-old": "1.0"}
    assert diff.removed == {"removed": "1.0"}
    assert len(diff.moved) == len(BEFORE) - 2
    assert {one.name: one.is_up for one in diff.moved if not one.is_up} == {"down": False, "odd": None}
    assert (diff.same, diff.concerns) == (1, ())


VERDICTS = [
    # name, specifier, section, within it before and after
    ("stays", ">=1,<2", "packages", True, True),
    ("leaves", "<2", "packages", True, False),
    ("comes", ">=2", "packages", False, True),
    ("outside", "==9", "packages", False, False),
    ("added", ">=1", "packages", None, True),
    ("added-old", ">=5", "packages", None, False),
    ("removed", ">=1", "packages", True, None),
    ("any", "", "packages", True, True),
    ("narrow", "<2", "constraints", True, False),
    ("harm", "<2", "absent", True, False),
    ("harmless", "<1", "absent", False, False),
]


@pytest.mark.parametrize("case", VERDICTS, ids=[case[0] for case in VERDICTS])
def test_a_concern_tells_whether_the_new_version_is_in_range(
    case: tuple[str, str, str, bool | None, bool | None],
) -> None:
    name, specifier, kind, before, after = case
    found = concerns(snapshot(BEFORE), snapshot(AFTER))[name, specifier]
    assert (found.kind, found.met_before, found.met_after, found.variants) == (kind, before, after, ())


def test_only_changed_names_of_a_matrix_are_concerns() -> None:
    found = concerns(snapshot(BEFORE), snapshot(AFTER))
    names = {name for name, _ in found}
    assert names == {case[0] for case in VERDICTS}
    assert concerns(snapshot(BEFORE), snapshot(BEFORE)) == {}


def test_a_concern_of_one_variant_names_it() -> None:
    found = concerns(snapshot(BEFORE), snapshot(AFTER))["stays", "==1.2"]
    assert (found.variants, found.met_before, found.met_after) == (("gpu",), False, True)


def test_python_and_driver_are_compared() -> None:
    old = snapshot(BEFORE, python="3.12.1", driver="550.1")
    new = replace(snapshot(BEFORE, python="3.13.0"), accelerator=Accelerator(kind="cuda", driver="610.2"))
    found = concerns(old, new)
    assert set(found) == {("Python", ">=3.10,<3.13"), ("driver", ">=600")}
    python, driver = found["Python", ">=3.10,<3.13"], found["driver", ">=600"]
    assert (python.before, python.after, python.met_before, python.met_after) == (
        "3.12.1",
        "3.13.0",
        True,
        False,
    )
    assert (driver.met_before, driver.met_after, driver.variants) == (False, True, ("gpu",))
