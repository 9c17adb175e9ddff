"""Which requirements are met, and what a change newly breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.dependency_graph import Demand, DependencyGraph, newly_unmet
from colablock.environment.snapshot import Installed, Snapshot
from colablock.environment.state_change import StateChange, find_broken
from colablock.runtimes.catalog import load_runtime
from tests.support.dict_source import PYTHON_312, installed

VISION = {
    "torch 2.8.0": [],
    "torchvision 0.23.0": ["torch==2.8.0"],
    "timm 1.0": ["torchvision"],
    "fastai 2.8": ["timm"],
    "bystander 1": ["torch>=2"],
}
# `asker` asks for an extra of `library`, which needs `helper`.
EXTRA = {
    "asker 1": ["library[x]>=1"],
    "library 1": ["helper>=2; extra == 'x'", "helper<9"],
    "helper 2": [],
    "plain 1": ["library"],
    "above 1": ["asker"],
}


@dataclass(frozen=True)
class BreakageCase:
    """An image and a change; *broken* maps names to the cause, and to whether it is a direct one."""

    image: Mapping[str, Sequence[str]]
    moved: Mapping[str, Sequence[str]] = field(default_factory=dict)
    removed: Sequence[str] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


CASES = {
    "nothing": BreakageCase(VISION),
    "within its range": BreakageCase(VISION, {"timm 2.0": []}),
    "out of its range": BreakageCase(VISION, {"torch 2.9.0": []}, broken={"torchvision": ("torch", True)}),
    "out of two ranges": BreakageCase(
        VISION, {"torch 1.13": []}, broken={"bystander": ("torch", True), "torchvision": ("torch", True)}
    ),
    "the broken one moves too": BreakageCase(VISION, {"torch 2.9.0": [], "torchvision 0.24.0": []}),
    "a local label counts": BreakageCase(
        {"torch 2.8.0+cu128": [], "vision 1": ["torch==2.8.0+cu128"], "peft 1": ["torch==2.8.0"]},
        {"torch 2.8.0+cpu": []},
        broken={"vision": ("torch", True)},
    ),
    "a pre-release is a version": BreakageCase({"a 1": [], "b 1": ["a>=1"]}, {"a 2rc1": []}),
    "a removal and what depends on it": BreakageCase(
        VISION,
        removed=["torchvision"],
        broken={"timm": ("torchvision", False), "fastai": ("timm", False)},
    ),
    "a removal of what is not installed": BreakageCase(VISION, removed=["tensorflow"]),
    "both at once": BreakageCase(
        VISION,
        {"torch 2.9.0": []},
        removed=["timm"],
        broken={"torchvision": ("torch", True), "fastai": ("timm", False)},
    ),
    "a ring": BreakageCase(
        {"a 1": ["b"], "b 1": ["c"], "c 1": ["a"]},
        removed=["a"],
        broken={"c": ("a", False), "b": ("c", False)},
    ),
    "unmet before": BreakageCase({"a 3": [], "b 1": ["a<2"]}, {"a 4": []}),
    "unmet before a removal": BreakageCase({"a 3": [], "b 1": ["a<2"]}, removed=["a"]),
    "missing before": BreakageCase({"b 1": ["a<2"]}, {"a 4": []}),
    "mended by the change": BreakageCase({"a 3": [], "b 1": ["a<2"]}, {"a 1": []}),
    "not for this Python": BreakageCase({"a 1": [], "b 1": ["a<2; python_version < '3'"]}, {"a 4": []}),
    "only with an extra": BreakageCase({"a 1": [], "b 1": ["a<2; extra == 'x'"]}, {"a 4": []}),
    "a line that cannot be read": BreakageCase({"a 1": [], "b 1": ["a (<<2)"]}, {"a 4": []}),
    "itself": BreakageCase({"a 1": ["a[x]<2"]}, {"a 4": []}),
    "another spelling": BreakageCase(
        {"typing-extensions 1": [], "b 1": ["Typing_Extensions<2"]},
        {"typing-extensions 4": []},
        broken={"b": ("typing-extensions", True)},
    ),
    "shared files": BreakageCase(
        {"opencv-python 4": [], "opencv-contrib-python 4": []},
        {"opencv-python 5": []},
        shared={"opencv-python": "opencv-contrib-python"},
        broken={"opencv-contrib-python": ("opencv-python", True)},
    ),
    "shared files, both moved": BreakageCase(
        {"opencv-python 4": [], "opencv-contrib-python 4": []},
        {"opencv-python 5": [], "opencv-contrib-python 5": []},
        shared={"opencv-python": "opencv-contrib-python"},
    ),
    "an extra that is asked for breaks who asks": BreakageCase(
        EXTRA, {"helper 1": []}, broken={"asker": ("helper", True)}
    ),
    "an extra that nobody asks for breaks nobody": BreakageCase(
        {**EXTRA, "asker 1": ["library>=1"]}, {"helper 1": []}
    ),
    "a requirement of the distribution itself breaks it alone": BreakageCase(
        EXTRA, {"helper 9": []}, broken={"library": ("helper", True)}
    ),
    "a removal breaks an extra, and who needs who asks for it": BreakageCase(
        {**EXTRA, "library 1": ["helper>=2; extra == 'x'"]},
        removed=["helper"],
        broken={"asker": ("library", False), "above": ("asker", False)},
    ),
    "a removal of the distribution with the extra": BreakageCase(
        EXTRA,
        removed=["library"],
        broken={"asker": ("library", False), "plain": ("library", False), "above": ("asker", False)},
    ),
    "an extra was unmet before": BreakageCase({**EXTRA, "helper 1": []}, {"helper 1.5": []}),
    "an extra was unmet before a removal": BreakageCase(
        {**EXTRA, "helper 1": [], "library 1": ["helper>=2; extra == 'x'"]}, removed=["helper"]
    ),
    "an extra is mended by the change": BreakageCase({**EXTRA, "helper 1": []}, {"helper 3": []}),
    "an extra of a moved version needs another range": BreakageCase(
        EXTRA, {"library 2": ["helper>=3; extra == 'x'"]}, broken={"asker": ("library", True)}
    ),
    "an extra of a moved version needs something that is not installed": BreakageCase(
        EXTRA, {"library 2": ["absent; extra == 'x'"]}, broken={"asker": ("library", True)}
    ),
    "an extra of a moved version needs something that is removed": BreakageCase(
        {**EXTRA, "other 1": []},
        {"library 2": ["other; extra == 'x'"]},
        removed=["other"],
        broken={"asker": ("library", True)},
    ),
    "an extra of a moved version is met": BreakageCase(
        EXTRA, {"library 2": ["helper>=3; extra == 'x'"], "helper 3": []}
    ),
    "an extra of a moved version was unmet before": BreakageCase(
        {**EXTRA, "helper 1": []}, {"library 2": ["helper>=3; extra == 'x'"]}
    ),
    # As `torchtune` asks for `huggingface-hub[hf_transfer]`, which some versions do not provide.
    "an extra that only the moved version provides": BreakageCase(
        {**EXTRA, "library 1": []}, {"library 2": ["absent; extra == 'x'"]}
    ),
    "an extra that the moved version no longer provides": BreakageCase(EXTRA, {"library 2": []}),
    "an extra that asks for an extra": BreakageCase(
        {
            "asker 1": ["library[all]"],
            "library 1": ["codec[fast]; extra == 'all'"],
            "codec 1": ["helper==2; extra == 'fast'"],
            "helper 2": [],
        },
        {"helper 3": []},
        broken={"asker": ("helper", True)},
    ),
    "an extra that asks for another extra of the same distribution": BreakageCase(
        {"asker 1": ["library[all]"], "library 1": ["library[x]; extra == 'all'", "helper<3; extra == 'x'"]}
        | {"helper 2": []},
        {"helper 3": []},
        broken={"asker": ("helper", True)},
    ),
    "extras that ask for each other": BreakageCase(
        {"asker 1": ["library[x]"], "library 1": ["library[y]; extra == 'x'", "library[x]; extra == 'y'"]}
        | {"helper 2": []},
        {"helper 3": []},
    ),
    "a distribution that asks for its own extra": BreakageCase(
        {"library 1": ["library[x]", "helper<3; extra == 'x'"], "helper 2": []},
        {"helper 3": []},
        broken={"library": ("helper", True)},
    ),
    "an extra in another spelling": BreakageCase(
        {
            "asker 1": ["Some.Library[Fast_IO]"],
            "some-library 1": ["helper<3; extra == 'fast.io'"],
            "helper 2": [],
        },
        {"helper 3": []},
        broken={"asker": ("helper", True)},
    ),
    "an extra or another Python": BreakageCase(
        {**EXTRA, "library 1": ["helper>=2; extra == 'x' or python_version < '3.9'"]},
        {"helper 1": []},
        broken={"asker": ("helper", True)},
    ),
    "an extra or this Python": BreakageCase(
        {**EXTRA, "library 1": ["helper>=2; extra == 'x' or python_version >= '3.9'"]},
        {"helper 1": []},
        broken={"library": ("helper", True)},
    ),
    "an extra and another Python": BreakageCase(
        {**EXTRA, "library 1": ["helper>=2; extra == 'x' and python_version < '3.9'"]}, {"helper 1": []}
    ),
    "one of two extras": BreakageCase(
        {**EXTRA, "library 1": ["helper>=2; extra == 'y' or extra == 'x'"]},
        {"helper 1": []},
        broken={"asker": ("helper", True)},
    ),
    "an extra that is asked for under a marker that does not hold": BreakageCase(
        {**EXTRA, "asker 1": ["library[x]; python_version < '3'"]}, {"helper 1": []}
    ),
    "who asks for the extra was broken before": BreakageCase(
        {**EXTRA, "asker 1": ["library[x]>=2"]}, {"library 2": ["absent; extra == 'x'"]}
    ),
    "two that ask for one extra": BreakageCase(
        {**EXTRA, "second 1": ["library[x]"]},
        {"helper 1": []},
        broken={"asker": ("helper", True), "second": ("helper", True)},
    ),
    "who asks for the extra moves too": BreakageCase(EXTRA, {"helper 1": [], "asker 2": []}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_newly_broken_distributions_and_their_causes(case: BreakageCase) -> None:
    snapshot = snapshot_of(case)
    change = StateChange(moved=installed(case.moved), removed=frozenset(map(canonicalize_name, case.removed)))
    found = find_broken(snapshot, change, DependencyGraph.of(snapshot))
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


def graph_of(image: Mapping[str, Sequence[str]]) -> DependencyGraph:
    return DependencyGraph(installed(image), PYTHON_312)


def names(*texts: str) -> list[NormalizedName]:
    return [canonicalize_name(text) for text in texts]


def test_the_requirement_that_breaks_is_named() -> None:
    snapshot = snapshot_of(BreakageCase({**VISION, "more 1": ["torch>2", "torch<2.8.1"]}))
    change = StateChange(moved=installed({"torch 2.9.0": []}))
    found = find_broken(snapshot, change, DependencyGraph.of(snapshot))
    requirements = {str(name): item.requirement for name, item in found.items()}
    assert requirements == {"torchvision": "torch==2.8.0", "more": "torch<2.8.1"}


def test_the_links_lead_from_the_moved_distribution_through_the_extras() -> None:
    image = {
        "asker 1": ["library[all]"],
        "library 1": ["codec[fast]; extra == 'all'"],
        "codec 1": ["helper<3; extra == 'fast'"],
        "helper 2": [],
        "above 1": ["asker"],
    }
    snapshot = snapshot_of(BreakageCase(image))
    asker, above = names("asker", "above")
    moved = StateChange(moved=installed({"helper 3": []}))
    direct = find_broken(snapshot, moved, DependencyGraph.of(snapshot))[asker]
    assert (direct.requirement, direct.origin) == ("library[all]", "helper")
    assert direct.links == (
        'codec[fast] needs helper<3; extra == "fast"',
        'library[all] needs codec[fast]; extra == "all"',
        "asker 1 needs library[all]",
    )
    removed = StateChange(removed=frozenset(names("helper")))
    behind = find_broken(snapshot, removed, DependencyGraph.of(snapshot))[above]
    assert (behind.requirement, behind.cause, behind.origin) == ("asker", "asker", "helper")
    assert behind.links == (*direct.links[:2], "asker needs library[all]", "above needs asker")


UNMET: dict[str, tuple[dict[str, list[str]], set[tuple[str, str]]]] = {
    "another version, and none": (
        {"a 1": ["b<1", "gone", "c", "a<<2", "x; extra == 'y'"], "b 2": ["gone"], "c 1": []},
        {("a", "b<1"), ("a", "gone")},
    ),
    "of an extra that is asked for": (
        {"a 1": ["b[x]"], "b 1": ["gone; extra == 'x'", "far; extra == 'y'"]},
        {("b", "gone; extra == 'x'")},
    ),
    "of an extra that only another one asks for": (
        {"a 1": ["b"], "b 1": ["gone; extra == 'x'"], "d 1": ["b[x]"]},
        set(),
    ),
    "of a distribution that a requirement leads to": ({"a 1": ["b"], "b 1": ["gone"]}, set()),
    "of the extra of a distribution that is not installed": ({"a 1": ["b[x]"]}, {("a", "b[x]")}),
    "of an extra of another version than the installed one": (
        {"a 1": ["b[x]<1"], "b 1": ["gone; extra == 'x'"]},
        {("a", "b[x]<1")},
    ),
    "an extra that is not provided is none": ({"a 1": ["b[nothing]"], "b 1": []}, set()),
    "only of the extra, not of the distribution": (
        {"a 1": ["b[x]"], "b 1": ["gone", "far; extra == 'x'"]},
        {("b", "far; extra == 'x'")},
    ),
}


@pytest.mark.parametrize(("image", "found"), UNMET.values(), ids=UNMET.keys())
def test_unmet_requirements_with_the_extras_that_are_asked_for(
    image: dict[str, list[str]], found: set[tuple[str, str]]
) -> None:
    assert graph_of(image).unmet_lines(names("a", "c", "not-here")) == found


def test_an_unmet_requirement_has_the_chain_that_leads_to_it() -> None:
    graph = graph_of({"a 1": ["b[all]"], "b 1": ["b[x]; extra == 'all'", "gone; extra == 'x'"]})
    (unmet,) = graph.unmet(names("a", "b"))
    assert unmet.name == "a"
    assert [demand.line for demand in unmet.chain] == [
        "b[all]",
        "b[x]; extra == 'all'",
        "gone; extra == 'x'",
    ]


def test_an_invalid_version_meets_only_a_requirement_without_a_range() -> None:
    image = installed({"a 1": ["odd", "odd>=1"]})
    odd = canonicalize_name("odd")
    image[odd] = Installed(name=odd, version="of no form")
    assert DependencyGraph(image, PYTHON_312).unmet_lines(image) == {("a", "odd>=1")}


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
def test_newly_unmet_requirements(after: dict[str, list[str]], found: set[tuple[str, str]]) -> None:
    """The requirement of `a` was unmet before; that of `c` was met, whatever `c` requires now."""
    before = graph_of({"a 1": ["b<1"], "b 2": [], "c 1": ["b"]})
    now = graph_of(after)
    newly = newly_unmet(now.installed, before, now, before.installed.keys() | now.installed.keys())
    assert {one.key for one in newly} == found


def test_only_what_changed_can_make_a_requirement_unmet() -> None:
    before, after = graph_of({"a 1": ["b<3"], "b 2": []}), graph_of({"a 1": ["b<3"], "b 3": []})
    assert newly_unmet(names("a"), before, after, names("c")) == []
    assert len(newly_unmet(names("a"), before, after, names("b"))) == 1


def test_an_extra_that_is_newly_asked_for_must_be_met() -> None:
    library = {"library 1": ["helper>=2; extra == 'x'"], "helper 1": []}
    before, after = graph_of(library), graph_of({**library, "asker 1": ["library[x]"]})
    (unmet,) = newly_unmet(names("asker"), before, after, names("asker"))
    assert unmet.key == ("library", "helper>=2; extra == 'x'")
    asked = graph_of({**library, "other 1": ["library[x]"]})
    both = graph_of({**library, "other 1": ["library[x]"], "asker 1": ["library[x]"]})
    assert newly_unmet(names("asker"), asked, both, names("asker")) == []


def test_demands_on_a_name_are_found_in_any_spelling() -> None:
    graph = graph_of(
        {
            "a 1": ["B-b>=1", "c<2", "gone", "not a line (", "c; extra == 'x'"],
            "d 1": ["b_B<9"],
            "b-b 2": [],
            "c 3rc1": [],
            "e 1": ["a[x]"],
        }
    )
    found = [(demand.owner, demand.extra, str(demand.requirement)) for demand in on(graph, "b-b")]
    assert found == [("a", "", "B-b>=1"), ("d", "", "b_B<9")]
    assert [(demand.owner, demand.extra) for demand in on(graph, "c")] == [("a", ""), ("a", "x")]
    assert on(graph, "nobody") == []


def on(graph: DependencyGraph, name: str) -> list[Demand]:
    return list(graph.demands_on(canonicalize_name(name)))


def test_a_requirement_is_met_by_an_installed_version() -> None:
    graph = graph_of({"a 1": ["B-b>=1", "c<2", "gone", "not a line ("], "b-b 2": [], "c 3rc1": []})
    demands = graph.demands_of((canonicalize_name("a"), ""))
    assert [str(demand.requirement) for demand in filter(graph.is_met, demands)] == ["B-b>=1"]


@pytest.mark.parametrize(
    ("runtime", "owner", "count"),
    [("colab-2026.01-gpu", "cuda-toolkit", 5), ("colab-2026.04-gpu", "cuda-toolkit", 1)],
)
def test_recorded_images_have_unmet_extras(runtime: str, owner: str, count: int) -> None:
    snapshot = load_runtime(runtime)
    graph = DependencyGraph.of(snapshot)
    found = [one for one in graph.unmet(snapshot.installed) if one.demand.extra]
    assert {one.key[0] for one in found} == {owner}
    assert len({one.key for one in found}) == count
    # None of them is newly broken when the distribution that asks is installed again.
    asker = replace(snapshot.installed[found[0].name])
    change = StateChange(moved={asker.name: asker})
    assert find_broken(snapshot, change, graph) == {}
