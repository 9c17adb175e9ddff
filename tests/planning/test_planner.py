"""From a resolution and a snapshot to ordered steps, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.snapshot import Snapshot
from colablock.errors import Refused
from colablock.index.candidates import Candidate, Metadata
from colablock.matrix.model import Absent, Matrix
from colablock.planning.plan import Action, Plan, Remedy, Target
from colablock.planning.planner import make_plan
from colablock.resolver.model import Request
from colablock.resolver.repair import Repairer
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312, DictSource, entries, installed


def plan_for(
    index: Mapping[str, list[str]] | DictSource,
    image: Mapping[str, list[str]],
    *roots: str,
    protected: tuple[str, ...] = (),
    absent: tuple[Absent, ...] = (),
    broken: Remedy | None = None,
    **snapshot_facts: Any,
) -> Plan:
    there = installed(image)
    snapshot = Snapshot(
        environment=PYTHON_312,
        python="/usr/bin/python3",
        prefix="/usr",
        site="/usr/lib",
        installed=there,
        protected=frozenset(NormalizedName(name) for name in protected),
        **snapshot_facts,
    )
    request = Request(
        environment=PYTHON_312,
        roots=entries(*roots),
        installed=there,
        protected=snapshot.protected,
        absent=absent,
    )
    source = index if isinstance(index, DictSource) else DictSource(index)
    # An index lists what was installed from it, here without a file that fits.
    projects = {name for name, _ in source.index}
    standing = {(one.name, Version(one.version)) for one in there.values() if one.name in projects}
    source.refused.update(dict.fromkeys(standing - source.index.keys(), "no file fits"))
    return make_plan(
        matrix=Matrix(name="m", source="m.toml", digest="0", absent=absent),
        resolution=resolve(request, source),
        snapshot=snapshot,
        target=Target.KERNEL,
        repair=Repairer(request, source),
        broken=broken,
    )


def steps(plan: Plan) -> list[tuple[str, str]]:
    return [(step.action.value, step.name) for step in plan.steps]


def remedies(plan: Plan) -> dict[str, tuple[bool, Remedy]]:
    return {str(item.name): (item.direct, item.remedy) for item in plan.breakages}


VISION = {
    "torch 2.8.0": [],
    "torchvision 0.23.0": ["torch==2.8.0"],
    "timm 1.0": ["torchvision"],
    "fastai 2.8": ["timm"],
    "bystander 1": ["torch>=2"],
}


def test_the_plan_is_a_no_op_when_everything_is_installed() -> None:
    plan = plan_for({}, {"torch 2.8.0": []}, "torch>=2")
    assert plan.steps == ()
    assert [(kept.name, kept.version) for kept in plan.kept] == [("torch", "2.8.0")]


def test_a_direct_breakage_is_repaired_if_a_version_fits() -> None:
    index = {
        "torch 2.4.0": [],
        "torchvision 0.19.0": ["torch==2.4.0"],
        "torchvision 0.20.0": ["torch==2.5.0"],
    }
    plan = plan_for(index, VISION, "torch==2.4.0")
    assert steps(plan) == [("replace", "torch"), ("replace", "torchvision")]
    assert remedies(plan) == {"torchvision": (True, Remedy.REPAIR)}
    repaired = plan.steps[-1]
    assert repaired.version == "0.19.0"
    assert "torchvision 0.23.0 needs torch==2.8.0" in repaired.reason
    assert not repaired.requested


def test_an_unrepairable_distribution_is_removed_and_its_dependents_listed() -> None:
    plan = plan_for({"torch 2.4.0": []}, VISION, "torch==2.4.0")
    assert steps(plan) == [("remove", "torchvision"), ("replace", "torch")]
    assert remedies(plan) == {
        "torchvision": (True, Remedy.REMOVE),
        "timm": (False, Remedy.LEAVE),
        "fastai": (False, Remedy.LEAVE),
    }
    fastai = next(item for item in plan.breakages if item.name == "fastai")
    assert fastai.because == ("torchvision 0.23.0 is removed", "timm needs torchvision", "fastai needs timm")


@pytest.mark.parametrize("broken", [Remedy.LEAVE, Remedy.REMOVE])
def test_the_remedy_for_breakages_can_be_chosen(broken: Remedy) -> None:
    index = {"torch 2.4.0": [], "torchvision 0.19.0": ["torch==2.4.0"]}
    plan = plan_for(index, VISION, "torch==2.4.0", broken=broken)
    assert remedies(plan)["torchvision"] == (True, broken)


@pytest.mark.parametrize(
    ("torch", "audio", "compiled", "remedy"),
    [
        ("2.15.0", {"2.11.0": []}, True, Remedy.REMOVE),  # nothing says that they belong together
        ("2.15.0", {"2.11.0": []}, False, Remedy.REPAIR),  # it is built for nothing
        ("2.11.0", {"2.11.0": []}, True, Remedy.REPAIR),  # releases of one version do
        ("2.11.0+cu130", {"2.11.0": []}, True, Remedy.REPAIR),
        ("2.15.0", {"2.11.0": ["torch>=2.11"]}, True, Remedy.REPAIR),
        ("2.11.0", {"2.12.0": [], "2.11.0": []}, True, Remedy.REPAIR),
    ],
)
def test_a_build_that_drops_a_pin_fits_its_own_version_only(
    torch: str, audio: dict[str, list[str]], *, compiled: bool, remedy: Remedy
) -> None:
    index = {f"torch {torch}": [], **{f"torchaudio {version}": needs for version, needs in audio.items()}}
    image = {"torch 2.8.0": [], "torchaudio 2.8.0": ["torch==2.8.0"]}
    source = DictSource(index, compiled=["torchaudio"] if compiled else [])
    plan = plan_for(source, image, f"torch=={torch}")
    assert remedies(plan) == {"torchaudio": (True, remedy)}
    assert {step.version for step in plan.steps if step.name == "torchaudio"} <= {"2.11.0", None}
    if remedy is Remedy.REMOVE:
        assert any("torchaudio 2.11.0 does not say which torch it is for" in note for note in plan.notes)


def test_a_repair_changes_nothing_else() -> None:
    index = {"torch 2.4.0": [], "torchvision 0.19.0": ["torch==2.4.0", "pillow<10"], "pillow 9": []}
    image = {**VISION, "pillow 11": []}
    plan = plan_for(index, image, "torch==2.4.0")
    assert remedies(plan)["torchvision"] == (True, Remedy.REMOVE)


def test_a_repair_installs_nothing_new() -> None:
    index = {"torch 2.4.0": [], "torchvision 0.19.0": ["torch==2.4.0", "extra-bit"], "extra-bit 1": []}
    plan = plan_for(index, VISION, "torch==2.4.0")
    assert remedies(plan)["torchvision"] == (True, Remedy.REMOVE)


def test_a_repair_tries_only_recent_versions() -> None:
    """Unless they name the version that moved: then their age does not count."""
    index: dict[str, list[str]] = {"torch 2.4.0": []}
    index |= {f"torchvision 0.{minor}": ["torch==2.5.0"] for minor in range(10, 22)}
    index |= {f"torchvision 0.{minor}": [] for minor in range(10)}
    plan = plan_for(index, VISION, "torch==2.4.0")
    assert remedies(plan)["torchvision"] == (True, Remedy.REMOVE)
    tried = "no repair of torchvision: none of 10 of its 22 versions fits (0.12 to 0.21)"
    assert plan.notes == (f"{tried}: 0.12 to 0.21 need torch==2.5.0, and torch is 2.4.0",)


# Releases of torch and the torchvision of each, as they are: 2.7.1 has 0.22.1.
PARTNERS = {
    f"torchvision 0.{minor}.{patch}": [f"torch==2.{minor - 15}.{patch}"]
    for minor in range(15, 31)
    for patch in range(2)
}


@pytest.mark.parametrize(
    ("torch", "partner"), [("2.7.1", "0.22.1"), ("2.0.0", "0.15.0"), ("2.9.0", "0.24.0")]
)
def test_a_repair_finds_the_partner_of_the_version_that_moved(torch: str, partner: str) -> None:
    image = {"torch 2.11.0": [], "torchvision 0.26.0": ["torch==2.11.0"]}
    source = CountingSource({f"torch {torch}": [], **PARTNERS})
    plan = plan_for(source, image, f"torch=={torch}")
    assert {step.name: step.version for step in plan.steps} == {"torch": torch, "torchvision": partner}
    assert plan.notes == ()
    assert len(source.read) < 20


class CountingSource(DictSource):
    """A source that keeps which metadata was read."""

    def __init__(self, index: Mapping[str, Sequence[str]]) -> None:
        super().__init__(index)
        self.read: set[str] = set()

    def metadata(self, candidate: Candidate) -> Metadata:
        self.read.add(str(candidate))
        return super().metadata(candidate)


def test_earlier_breakages_are_ignored() -> None:
    image = {"torch 2.8.0": [], "old 1": ["torch<2"], "jedi-user 1": ["jedi"]}
    plan = plan_for({"torch 2.4.0": []}, image, "torch==2.4.0")
    assert plan.breakages == ()


def test_requirements_of_protected_distributions_stay() -> None:
    image = {"base 2": [], "helper 1": ["base>=2"], "google-colab 1": ["helper"]}
    plan = plan_for({"base 1": []}, image, "base==1", protected=("google-colab",))
    assert remedies(plan) == {"helper": (True, Remedy.LEAVE)}


EXTRA = {
    "asker 1": ["library[x]"],
    "library 1": ["helper<3; extra == 'x'"],
    "helper 2": [],
}


def test_a_repair_fits_the_extras_that_it_asks_for() -> None:
    index = {"helper 3": [], "asker 2": ["library[x]"], "asker 1.5": ["library"]}
    plan = plan_for(index, EXTRA, "helper>=3")
    assert {step.name: step.version for step in plan.steps} == {"helper": "3", "asker": "1.5"}
    (breakage,) = plan.breakages
    assert (breakage.name, breakage.requirement) == ("asker", "library[x]")
    assert breakage.because == (
        "helper 2 becomes 3",
        'library[x] needs helper<3; extra == "x"',
        "asker 1 needs library[x]",
    )


SECOND = {"base 1": [], "first 1": ["base<2"], "second 1": ["base<2"]}


def test_a_repair_that_needs_what_is_removed_later_is_made_again() -> None:
    index = {"base 2": [], "first 2": ["second"], "first 1.5": []}
    plan = plan_for(index, SECOND, "base>=2")
    assert {step.name: step.version for step in plan.steps} == {"base": "2", "first": "1.5", "second": None}
    assert remedies(plan) == {"first": (True, Remedy.REPAIR), "second": (True, Remedy.REMOVE)}


def test_a_repair_that_a_removal_breaks_is_listed_as_left() -> None:
    index = {"base 2": [], "first 2": ["second"]}
    plan = plan_for(index, SECOND, "base>=2")
    assert {step.name: step.version for step in plan.steps} == {"base": "2", "first": "2", "second": None}
    assert [(item.name, item.version, item.direct, item.remedy) for item in plan.breakages] == [
        ("first", "1", True, Remedy.REPAIR),
        ("second", "1", True, Remedy.REMOVE),
        ("first", "2", False, Remedy.LEAVE),
    ]
    assert plan.breakages[-1].because == ("second 1 is removed", "first needs second")


def test_a_repair_that_a_later_repair_breaks_is_made_again() -> None:
    index = {"base 2": [], "first 2": ["second<2"], "first 1.5": ["second"], "second 2": []}
    plan = plan_for(index, SECOND, "base>=2")
    assert {step.name: step.version for step in plan.steps} == {"base": "2", "first": "1.5", "second": "2"}


def test_an_extra_of_a_moved_version_that_needs_something_missing_breaks_who_asks() -> None:
    index = {"library 2": ["absent; extra == 'x'"]}
    plan = plan_for(index, EXTRA, "library>=2")
    assert remedies(plan) == {"asker": (True, Remedy.REMOVE)}
    (step,) = (step for step in plan.steps if step.name == "asker")
    assert step.reason == (
        'asker 1 needs library[x], library[x] needs absent; extra == "x", library 1 becomes 2'
    )


def test_an_extra_that_the_installed_version_does_not_provide_breaks_nobody() -> None:
    image: dict[str, list[str]] = {**EXTRA, "library 1": []}
    plan = plan_for({"library 2": ["absent; extra == 'x'"]}, image, "library>=2")
    assert plan.breakages == ()


def test_what_an_extra_of_a_protected_distribution_needs_is_not_removed() -> None:
    absent = (Absent(name=NormalizedName("helper"), path="absent.helper", specifier=SpecifierSet("<9")),)
    with pytest.raises(Refused, match="a protected distribution needs it"):
        plan_for({}, {**EXTRA, "torch 2": []}, "torch", absent=absent, protected=("asker",))


def test_a_protected_distribution_that_shares_files_is_left_rather_than_removed() -> None:
    shared = {NormalizedName("opencv"): frozenset({NormalizedName("opencv-contrib")})}
    image: dict[str, list[str]] = {"opencv 4": [], "opencv-contrib 4": []}
    plan = plan_for({"opencv 5": []}, image, "opencv==5", protected=("opencv-contrib",), shared=shared)
    assert remedies(plan) == {"opencv-contrib": (True, Remedy.LEAVE)}


def test_absent_distributions_are_removed_with_the_reason_of_the_matrix() -> None:
    absent = (
        Absent(
            name=NormalizedName("torchao"),
            path="absent.torchao",
            specifier=SpecifierSet("<0.16"),
            why="peft refuses to start beside it",
        ),
    )
    plan = plan_for({}, {"torchao 0.10.0": [], "torch 2.8.0": []}, "torch", absent=absent)
    assert [(step.action, step.name, step.reason) for step in plan.steps] == [
        (Action.REMOVE, "torchao", "peft refuses to start beside it")
    ]


def test_a_protected_distribution_is_never_removed() -> None:
    absent = (Absent(name=NormalizedName("torchao"), path="absent.torchao", specifier=SpecifierSet()),)
    with pytest.raises(Refused, match="it is protected here"):
        plan_for(
            {}, {"torchao 0.10.0": [], "torch 2.8.0": []}, "torch", absent=absent, protected=("torchao",)
        )


def test_distributions_that_share_files_are_removed_together() -> None:
    image = {"numpy 2.0": [], "opencv-python 4.12": ["numpy>=2"], "opencv-contrib-python 4.12": []}
    shared = {
        NormalizedName("opencv-python"): frozenset({NormalizedName("opencv-contrib-python")}),
        NormalizedName("opencv-contrib-python"): frozenset({NormalizedName("opencv-python")}),
    }
    plan = plan_for({"numpy 1.26.4": []}, image, "numpy<2", shared=shared)
    assert remedies(plan) == {
        "opencv-python": (True, Remedy.REMOVE),
        "opencv-contrib-python": (True, Remedy.REMOVE),
    }


def test_removals_precede_installs_in_dependency_order() -> None:
    image = {"a 1": ["x<2"], "b 1": ["a", "x<2"], "x 1": []}
    index = {"x 2": [], "top 1": ["middle"], "middle 1": ["x>=2"]}
    plan = plan_for(index, image, "top")
    assert steps(plan) == [
        ("remove", "b"),
        ("remove", "a"),
        ("replace", "x"),
        ("install", "middle"),
        ("install", "top"),
    ]


def test_circular_requirements_are_ordered() -> None:
    plan = plan_for({"a 1": ["b"], "b 1": ["c"], "c 1": ["a"]}, {}, "a")
    assert sorted(steps(plan)) == [("install", "a"), ("install", "b"), ("install", "c")]


def test_a_restart_lists_the_loaded_modules_that_change() -> None:
    loaded = {NormalizedName("numpy"): ("numpy",), NormalizedName("requests"): ("requests",)}
    plan = plan_for({"numpy 1.26.4": []}, {"numpy 2.0": [], "requests 2": []}, "numpy<2", loaded=loaded)
    assert plan.needs_restart
    assert plan.restart == {"numpy": ("numpy",)}


def test_every_step_has_a_reason() -> None:
    plan = plan_for(
        {"torch 2.4.0": ["triton==3.0.0"], "triton 3.0.0": []}, {"triton 3.4.0": []}, "torch==2.4.0"
    )
    assert [step.reason for step in plan.steps] == [
        "torch 2.4.0 needs triton==3.0.0",
        "packages.torch asks for torch==2.4.0",
    ]
    assert [step.requested for step in plan.steps] == [False, True]
