"""Plans for builds of one package: no two of them are left at different versions, and no pin is overruled."""

from __future__ import annotations

import random

import pytest

from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.errors import NoSolution, Refused
from colablock.planning.plan import Action, Plan, Remedy
from tests.planning.test_planner import plan_for, remedies, steps

BUILDS = tuple(NormalizedName(f"build-{letter}") for letter in "abc")
SHARED = {name: frozenset(BUILDS) - {name} for name in BUILDS}
NUMPY = ["numpy>=2"]


def versions_after(plan: Plan, image: dict[str, list[str]]) -> dict[str, str]:
    found = dict(key.split() for key in image)
    for step in plan.steps:
        found.pop(step.name, None)
        if step.version is not None:
            found[step.name] = step.version
    return found


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_builds_have_one_version_whatever_the_index_has(first: int) -> None:
    for seed in range(first, first + 20):
        check_random_plan(seed)


def check_random_plan(seed: int) -> None:
    rng = random.Random(seed)
    image: dict[str, list[str]] = {"numpy 2": []}
    index: dict[str, list[str]] = {"numpy 1": [], "numpy 2": []}
    here = rng.choice("56")
    for name in BUILDS:
        image[f"{name} {here}"] = rng.choice([[], NUMPY])
        for version in rng.sample("3456789", rng.randrange(5)):
            index[f"{name} {version}"] = rng.choice([[], [], NUMPY, ["numpy<2"]])
    pinned = [key for key in index if key.startswith("build")]
    roots = ["numpy<2"] if rng.random() < 0.6 or not pinned else []
    if pinned and (not roots or rng.random() < 0.5):
        roots.append(rng.choice(pinned).replace(" ", "=="))
    if rng.random() < 0.4:
        image["needs-one 1"] = [BUILDS[0]]
        roots += ["needs-one"] if rng.random() < 0.5 else []
    protected = (BUILDS[2],) if rng.random() < 0.2 else ()
    try:
        plan = plan_for(index, image, *roots, shared=SHARED, protected=protected)
    except (NoSolution, Refused):
        return
    after = versions_after(plan, image)
    left = {item.name for item in plan.breakages if item.remedy is Remedy.LEAVE}
    found = {after[name] for name in BUILDS if name in after and name not in left}
    pins = dict(root.split("==") for root in roots if "==" in root)
    assert {name: after.get(name) for name in pins} == pins
    assert len(found) <= 1, (seed, plan.steps)
    for name in protected:
        assert after[name] == here
    for step in plan.steps:
        assert step.reason


TWO: dict[str, list[str]] = {"build-a 4": [], "build-b 4": []}


def test_a_build_that_the_index_does_not_list_goes_with_the_reason() -> None:
    plan = plan_for({"build-a 5": [], "build-b 6": []}, TWO, "build-a==5", shared=SHARED)
    assert steps(plan) == [("remove", "build-b"), ("replace", "build-a")]
    assert remedies(plan) == {"build-b": (True, Remedy.REMOVE)}
    (removal, _) = plan.steps
    assert "there is no build-b 5 that fits" in removal.reason
    assert "build-a 4 becomes 5" in removal.reason


def test_the_files_of_the_requested_build_win() -> None:
    index: dict[str, list[str]] = {f"{name} 5": [] for name in BUILDS}
    image: dict[str, list[str]] = {f"{name} 4": [] for name in BUILDS}
    for name in BUILDS:
        plan = plan_for(index, image, f"{name}==5", shared=SHARED)
        assert [step.version for step in plan.steps] == ["5", "5", "5"]
        assert plan.steps[-1].name == name
        assert all(step.action is Action.REPLACE for step in plan.steps)


@pytest.mark.parametrize(
    ("broken", "after"), [(Remedy.LEAVE, "4"), (Remedy.REMOVE, None), (Remedy.REPAIR, "5")]
)
def test_the_remedy_for_other_builds_can_be_chosen(broken: Remedy, after: str | None) -> None:
    plan = plan_for({"build-a 5": [], "build-b 5": []}, TWO, "build-a==5", shared=SHARED, broken=broken)
    assert versions_after(plan, TWO).get("build-b") == after
    assert Version(versions_after(plan, TWO)["build-a"]) == Version("5")
