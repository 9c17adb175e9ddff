"""What a change newly breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.dependency_graph import StateChange, find_broken, newly_unmet, unmet
from colablock.environment.requirements import Dependents
from colablock.environment.snapshot import Snapshot
from tests.support.dict_source import PYTHON_312, installed

VISION = {
    "torch 2.8.0": [],
    "torchvision 0.23.0": ["torch==2.8.0"],
    "timm 1.0": ["torchvision"],
    "fastai 2.8": ["timm"],
    "bystander 1": ["torch>=2"],
}


@dataclass(frozen=True)
class BreakageCase:
    """An image and a change; *broken* maps names to the cause, and whether it is a direct one."""

    image: Mapping[str, Sequence[str]]
    moved: Mapping[str, str] = field(default_factory=dict)
    removed: Sequence[str] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


CASES = {
    "nothing": BreakageCase(VISION),
    "within its range": BreakageCase(VISION, {"timm": "2.0"}),
    "out of its range": BreakageCase(VISION, {"torch": "2.9.0"}, broken={"torchvision": ("torch", True)}),
    "out of two ranges": BreakageCase(
        VISION, {"torch": "1.13"}, broken={"bystander": ("torch", True), "torchvision": ("torch", True)}
    ),
    "the broken one moves too": BreakageCase(VISION, {"torch": "2.9.0", "torchvision": "0.24.0"}),
    "a local label counts": BreakageCase(
        {"torch 2.8.0+cu128": [], "vision 1": ["torch==2.8.0+cu128"], "peft 1": ["torch==2.8.0"]},
        {"torch": "2.8.0+cpu"},
        broken={"vision": ("torch", True)},
    ),
    "a pre-release is a version": BreakageCase({"a 1": [], "b 1": ["a>=1"]}, {"a": "2rc1"}),
    "a removal and what hangs on it": BreakageCase(
        VISION,
        removed=["torchvision"],
        broken={"timm": ("torchvision", False), "fastai": ("timm", False)},
    ),
    "a removal of what is not there": BreakageCase(VISION, removed=["tensorflow"]),
    "both at once": BreakageCase(
        VISION,
        {"torch": "2.9.0"},
        removed=["timm"],
        broken={"torchvision": ("torch", True), "fastai": ("timm", False)},
    ),
    "a ring": BreakageCase(
        {"a 1": ["b"], "b 1": ["c"], "c 1": ["a"]},
        removed=["a"],
        broken={"c": ("a", False), "b": ("c", False)},
    ),
    "unmet before": BreakageCase({"a 3": [], "b 1": ["a<2"]}, {"a": "4"}),
    "unmet before a removal": BreakageCase({"a 3": [], "b 1": ["a<2"]}, removed=["a"]),
    "missing before": BreakageCase({"b 1": ["a<2"]}, {"a": "4"}),
    "mended by the change": BreakageCase({"a 3": [], "b 1": ["a<2"]}, {"a": "1"}),
    "not for this Python": BreakageCase({"a 1": [], "b 1": ["a<2; python_version < '3'"]}, {"a": "4"}),
    "only with an extra": BreakageCase({"a 1": [], "b 1": ["a<2; extra == 'x'"]}, {"a": "4"}),
    "a line that cannot be read": BreakageCase({"a 1": [], "b 1": ["a (<<2)"]}, {"a": "4"}),
    "itself": BreakageCase({"a 1": ["a[x]<2"]}, {"a": "4"}),
    "another spelling": BreakageCase(
        {"typing-extensions 1": [], "b 1": ["Typing_Extensions<2"]},
        {"typing-extensions": "4"},
        broken={"b": ("typing-extensions", True)},
    ),
    "shared files": BreakageCase(
        {"opencv-python 4": [], "opencv-contrib-python 4": []},
        {"opencv-python": "5"},
        shared={"opencv-python": "opencv-contrib-python"},
        broken={"opencv-contrib-python": ("opencv-python", True)},
    ),
    "shared files, both moved": BreakageCase(
        {"opencv-python 4": [], "opencv-contrib-python 4": []},
        {"opencv-python": "5", "opencv-contrib-python": "5"},
        shared={"opencv-python": "opencv-contrib-python"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_newly_broken_and_why(case: BreakageCase) -> None:
    snapshot = snapshot_of(case)
    change = StateChange(
        moved={canonicalize_name(name): version for name, version in case.moved.items()},
        removed=frozenset(map(canonicalize_name, case.removed)),
    )
    found = find_broken(snapshot, change, Dependents(snapshot.installed, PYTHON_312))
    assert {name: (item.cause, item.direct) for name, item in found.items()} == case.broken
    for name, item in found.items():
        assert item.version == snapshot.installed[name].version


def snapshot_of(case: BreakageCase) -> Snapshot:
    shared = {
        canonicalize_name(name): frozenset({canonicalize_name(other)}) for name, other in case.shared.items()
    }
    return Snapshot(
        environment=PYTHON_312,
        python="",
        prefix="",
        site="",
        installed=installed(case.image),
        shared=shared,
    )


def test_the_requirement_that_breaks_is_named() -> None:
    snapshot = snapshot_of(BreakageCase({**VISION, "more 1": ["torch>2", "torch<2.8.1"]}))
    change = StateChange(moved={canonicalize_name("torch"): "2.9.0"})
    found = find_broken(snapshot, change, Dependents(snapshot.installed, PYTHON_312))
    requirements = {str(name): item.requirement for name, item in found.items()}
    assert requirements == {"torchvision": "torch==2.8.0", "more": "torch<2.8.1"}


def test_what_is_unmet_as_it_stands() -> None:
    snapshot = snapshot_of(
        BreakageCase({"a 1": ["b<1", "gone", "c", "a<<2", "x; extra == 'y'"], "b 2": ["gone"], "c 1": []})
    )
    names = [NormalizedName(name) for name in ("a", "c", "not-here")]
    assert unmet(names, snapshot) == {("a", "b<1"), ("a", "gone")}


NEWLY: dict[str, tuple[dict[str, list[str]], set[tuple[str, str]]]] = {
    "unchanged": ({"a 1": ["b<1"], "b 2": [], "c 1": ["b"]}, set()),
    "another version": ({"a 1": ["b<1"], "b 3": [], "c 1": ["b<3"]}, {("c", "b<3")}),
    "gone": ({"a 1": ["b<1"], "c 1": ["b"]}, {("c", "b")}),
    "new and unmet": (
        {"a 1": ["b<1"], "b 2": [], "c 1": ["b"], "d 1": ["b>2", "e; extra == 'x'"]},
        {("d", "b>2")},
    ),
}


@pytest.mark.parametrize(("after", "found"), NEWLY.values(), ids=NEWLY.keys())
def test_what_holds_no_longer(after: dict[str, list[str]], found: set[tuple[str, str]]) -> None:
    """`a` was broken before; what `c` asks for was met, whatever it asks for now."""
    before = snapshot_of(BreakageCase({"a 1": ["b<1"], "b 2": [], "c 1": ["b"]}))
    now = installed(after)
    assert newly_unmet(now, before, now) == found
