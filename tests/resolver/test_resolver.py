"""The rules that other resolvers lack: least change, protected and absent distributions; and rejections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import FetchFailed, NoSolution
from colablock.matrix.model import Absent
from colablock.resolver.conflict_report import explain
from colablock.resolver.matching import Lazy
from colablock.resolver.model import Request, Resolution, Unsolvable
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312, DictSource, constraints, entries, installed, pins_of

pytestmark = pytest.mark.requirements


def solve(
    index: Mapping[str, list[str]], *roots: str, refused: Any = None, yanked: Any = (), **facts: Any
) -> Resolution:
    request = Request(environment=PYTHON_312, roots=entries(*roots), **facts)
    return resolve(request, DictSource(index, refused, yanked))


def names(*names: str) -> frozenset[NormalizedName]:
    return frozenset(NormalizedName(name) for name in names)


COLAB = {
    "datasets 4.0.0": ["pyarrow>=15"],
    "pyarrow 18.1.0": [],
    "transformers 5.15.0": ["huggingface-hub>=1.0,<2"],
    "huggingface-hub 1.27.0": [],
    "torch 2.11.0+cu128": [],
}
TRL = {
    "trl 0.29.1": ["datasets>=3", "transformers>=4.56"],
    "trl 1.0.0": ["datasets>=4.7", "transformers>=4.56"],
    "trl 1.16.0": ["datasets>=4.7", "transformers>=5.0"],
    "datasets 4.7.0": ["pyarrow>=21"],
    "pyarrow 26.0.0": [],
}


def test_an_older_new_distribution_is_preferred_to_moving_installed_ones() -> None:
    found = solve(TRL, "trl>=0.29,<2", installed=installed(COLAB))
    assert pins_of(found)["trl"] == "0.29.1"
    assert found.pins[NormalizedName("datasets")].is_installed
    assert not found.released


def test_a_solve_from_nothing_selects_the_newest() -> None:
    index = {**TRL, "transformers 5.15.0": []}
    assert pins_of(solve(index, "trl>=0.29,<2"))["trl"] == "1.16.0"


def test_held_distributions_are_not_looked_up() -> None:
    source = DictSource(TRL)
    request = Request(environment=PYTHON_312, roots=entries("trl", "torch>=2.9"), installed=installed(COLAB))
    resolve(request, source)
    assert "torch" not in source.asked
    assert "pyarrow" not in source.asked


def test_an_exact_pin_releases_only_the_versions_that_it_excludes() -> None:
    index = {"torch 2.4.0": ["triton==3.0.0", "sympy"], "triton 3.0.0": [], "sympy 1.99": []}
    image = installed({"torch 2.8.0": ["triton==3.4.0"], "triton 3.4.0": [], "sympy 1.13.3": []})
    found = solve(index, "torch==2.4.0", installed=image)
    assert pins_of(found) == {"torch": "2.4.0", "triton": "3.0.0", "sympy": "1.13.3"}
    assert set(found.released) == {"torch", "triton"}
    assert found.released[NormalizedName("triton")] == "torch 2.4.0 needs triton==3.0.0"


def test_a_conflict_with_the_image_releases_the_names_in_it() -> None:
    image = installed(COLAB)
    found = solve(TRL, "trl>=1.0,<2", installed=image)
    assert pins_of(found) == {
        "trl": "1.16.0",
        "datasets": "4.7.0",
        "pyarrow": "26.0.0",
        "transformers": "5.15.0",
        "huggingface-hub": "1.27.0",
    }
    assert set(found.released) == {"datasets", "pyarrow"}


def test_an_installed_dependent_that_excludes_the_version_is_released_too() -> None:
    index = {"new 1": ["base>=2"], "base 2": [], "user 2": ["base>=2"]}
    image = installed({"base 1": [], "user 1": ["base<2"]})
    found = solve(index, "new", "user", installed=image)
    assert pins_of(found) == {"new": "1", "base": "2", "user": "2"}


def test_the_version_that_breaks_the_fewest_others_comes_first() -> None:
    index = {"stack 1": ["base<3"], "base 2.5": [], "base 2.0": []}
    image = installed({"base 3.0": [], "bystander 1": ["base!=2.5"]})
    assert pins_of(solve(index, "stack", installed=image))["base"] == "2.0"


def test_met_requirements_of_protected_distributions_stay_met() -> None:
    index = {"stack 1": ["numpy<2"], "numpy 1.26.4": [], "numpy 1.20.0": []}
    image = installed(
        {"google-colab 1.0": ["pandas==2.2.2"], "pandas 2.2.2": ["numpy>=1.26"], "numpy 2.0.2": []}
    )
    found = solve(index, "stack", installed=image, protected=names("google-colab", "pandas"))
    assert pins_of(found)["numpy"] == "1.26.4"


def test_a_protected_distribution_never_moves() -> None:
    index = {"stack 1": ["pandas>=3"], "pandas 3.0": []}
    image = installed({"google-colab 1.0": ["pandas==2.2.2"], "pandas 2.2.2": []})
    with pytest.raises(NoSolution) as caught:
        solve(index, "stack", installed=image, protected=names("google-colab", "pandas"))
    assert "pandas" in caught.value.names
    assert isinstance(caught.value, Unsolvable)
    text = str(explain(caught.value.conflict, asker="qlora-test"))
    assert "stack 1 needs `pandas>=3`" in text
    assert "qlora-test asks for `stack` (packages.stack)" in text
    assert "pandas 2.2.2 is installed and protected" in text


def test_an_unmet_requirement_of_a_protected_distribution_may_stay_unmet() -> None:
    index = {"stack 1": ["jedi"], "jedi 0.19": []}
    image = installed({"ipython 7.34.0": ["jedi>=0.16", "prompt-toolkit<3.1"], "prompt-toolkit 3.2": []})
    found = solve(index, "stack", "prompt-toolkit", installed=image, protected=names("ipython"))
    assert pins_of(found) == {"stack": "1", "jedi": "0.19", "prompt-toolkit": "3.2"}


# `keeper` is protected and asks for an extra of `library`, which needs `helper`.
KEEPER = {"keeper 1": ["library[x]"], "library 1": ["helper<3; extra == 'x'"], "helper 2": []}
LIBRARIES = {"library 2": ["helper; extra == 'x'"], "helper 3": [], "helper 2.5": []}


def test_the_extras_of_a_protected_distribution_stay_met() -> None:
    index = {"stack 1": ["helper>=2.1"], "helper 3": [], "helper 2.5": []}
    found = solve(index, "stack", installed=installed(KEEPER), protected=names("keeper"))
    assert pins_of(found) == {"stack": "1", "helper": "2.5"}


def test_an_extra_of_a_protected_distribution_is_never_broken() -> None:
    index = {"stack 1": ["helper>=3"], "helper 3": []}
    with pytest.raises(Unsolvable) as caught:
        solve(index, "stack", installed=installed(KEEPER), protected=names("keeper", "library"))
    text = str(explain(caught.value.conflict, asker="m"))
    assert "keeper 1 is protected and needs `library[x]`, which needs `helper<3`" in text


def test_a_distribution_moves_if_its_extra_excludes_the_needed_version() -> None:
    index = {**LIBRARIES, "stack 1": ["helper>=3"]}
    found = solve(index, "stack", installed=installed(KEEPER), protected=names("keeper"))
    assert pins_of(found) == {"stack": "1", "helper": "3", "library": "2"}
    assert found.released[NormalizedName("library")] == "one of its extras allows only `helper<3`"
    (parent,) = found.pins[NormalizedName("library")].parents
    assert (parent.name, parent.requirement) == ("keeper", "library[x]")


def test_the_extra_of_a_moved_distribution_is_met_for_a_protected_one() -> None:
    index = {"stack 1": ["library>=2"], "library 2": ["fresh; extra == 'x'"], "fresh 1": []}
    found = solve(index, "stack", installed=installed(KEEPER), protected=names("keeper"))
    assert pins_of(found) == {"stack": "1", "library": "2", "fresh": "1"}


def test_an_extra_of_a_protected_distribution_that_was_unmet_before_may_stay_unmet() -> None:
    image = {**KEEPER, "helper 3": []}
    del image["helper 2"]
    index = {"stack 1": ["helper>=4"], "helper 4": [], "library 2": ["fresh; extra == 'x'"]}
    found = solve(index, "stack", "library>=2", installed=installed(image), protected=names("keeper"))
    assert pins_of(found) == {"stack": "1", "helper": "4", "library": "2"}


def test_an_extra_that_nothing_installed_asks_for_must_be_met() -> None:
    image = installed({"library 1": ["helper>=2; extra == 'x'"], "helper 1": []})
    assert pins_of(solve({"helper 2": []}, "library[x]", installed=image)) == {"library": "1", "helper": "2"}


def test_an_unmet_extra_that_another_distribution_asks_for_may_stay_unmet() -> None:
    image = installed({"library 1": ["helper>=2; extra == 'x'"], "helper 1": [], "asker 1": ["library[x]"]})
    found = solve({"helper 2": []}, "library[x]", installed=image)
    assert pins_of(found) == {"library": "1"}


def test_absent_versions_are_no_candidates() -> None:
    index = {"peft 0.20": ["torchao"], "torchao 0.16": [], "torchao 0.10": []}
    absent = (Absent(name=NormalizedName("torchao"), path="absent.torchao", specifier=SpecifierSet("<0.16")),)
    found = solve(index, "peft", installed=installed({"torchao 0.10": []}), absent=absent)
    assert pins_of(found)["torchao"] == "0.16"


def test_a_constraint_does_not_install_its_name() -> None:
    index = {"stack 1": ["setuptools"], "setuptools 84": [], "setuptools 80": []}
    assert pins_of(solve(index, "stack", constraints=constraints("setuptools<81", "unused<1"))) == {
        "stack": "1",
        "setuptools": "80",
    }


def test_a_version_with_invalid_metadata_is_skipped() -> None:
    assert pins_of(solve({"a 2": ["unreadable"], "a 1": []}, "a")) == {"a": "1"}


def test_the_rejection_of_a_file_is_quoted() -> None:
    why = "torch 2.4.0 has no wheel for Python 3.13: cp311, cp312 only"
    with pytest.raises(Unsolvable) as caught:
        solve({}, "torch==2.4.0", refused={"torch 2.4.0": why, "torch 2.3.0": "another"})
    text = str(explain(caught.value.conflict, asker="m"))
    assert text.startswith("no candidate fits `torch==2.4.0`")
    assert why in text
    assert "another" not in text


@pytest.mark.parametrize(("root", "expected"), [("a", "1.0"), ("a==2.0", "2.0")])
def test_yanked_versions_are_selected_only_if_pinned(root: str, expected: str) -> None:
    assert pins_of(solve({"a 2.0": [], "a 1.0": []}, root, yanked=["a 2.0"])) == {"a": expected}


@pytest.mark.parametrize("roots", [("top", "bbb===2.0"), ("bbb===2.0", "top")])
def test_arbitrary_equality_compares_the_texts_of_each_project(roots: tuple[str, ...]) -> None:
    index = {"top 1": ["aaa===2.0"], "top 0.9": [], "aaa 2.0.0": [], "bbb 2.0": []}
    assert pins_of(solve(index, *roots)) == {"top": "0.9", "bbb": "2.0"}  # no aaa is written so


def test_an_unknown_project_is_named_in_the_report() -> None:
    with pytest.raises(Unsolvable) as caught:
        solve({"a 1": ["tranformers"]}, "a")
    text = str(explain(caught.value.conflict, asker="m"))
    assert "no index has `tranformers`" in text
    assert "a 1 needs `tranformers`" in text


def test_the_order_of_the_roots_does_not_change_the_result() -> None:
    index = {"a 2": ["c<2"], "a 1": ["c"], "b 1": ["c>=1"], "c 2": [], "c 1": []}
    assert pins_of(solve(index, "a", "b")) == pins_of(solve(index, "b", "a"))


def test_a_long_search_around_held_distributions_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = ("blue", "green", "red")
    index = {f"{cloud} {n}.0": ["crypto<2", f"base<{n + 1}"] for cloud in clouds for n in range(1, 30)}
    index |= {f"base {n}.0": ["crypto<2"] for n in range(1, 30)}
    index |= {"crypto 1.0": [], "hub 1.0": list(clouds)}
    stands = installed({"crypto 2.0": []})
    found = solve(index, "hub", installed=stands)
    monkeypatch.setattr("colablock.resolver.bounded_search._HELD_ROUNDS", 2)
    hasty = solve(index, "hub", installed=stands)
    assert (
        pins_of(hasty)
        == pins_of(found)
        == {**pins_of(found), "crypto": "1.0", "blue": "29.0", "base": "29.0"}
    )
    assert hasty.released.keys() == {NormalizedName("crypto")}
    assert "crypto<2" in hasty.released[NormalizedName("crypto")]


def test_a_pre_release_that_nothing_admits_does_not_hide_the_held_distribution_at_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No combination of the other projects admits it, and the search does not try them one by one."""
    index = {f"api {n}.0": ["wrapper<2"] for n in range(2, 9)} | {"api 1.0rc1": [], "wrapper 1.0": []}
    index |= {f"sdk {n}.0": [f"api=={n}.0"] for n in range(2, 9)} | {"sdk 1.0rc1": ["api==1.0rc1"]}
    index |= {f"p{k} {n}": [f"p{k + 1}>0"] if k < 9 else ["sdk"] for k in range(10) for n in range(1, 12)}
    monkeypatch.setattr("colablock.resolver.bounded_search._HELD_ROUNDS", 1)  # resolvelib gives up at once
    monkeypatch.setattr("colablock.resolver.resolver._STEPS", 100_000)
    for held in (installed({"wrapper 2.0": []}), installed({"wrapper 2.0": [], "sdk 9.0": ["api>8.5"]})):
        found = solve(index, "p0", "sdk<9", installed=held)
        assert "wrapper" in found.released
        assert {"sdk": "8.0", "api": "8.0", "wrapper": "1.0"}.items() <= pins_of(found).items()


def test_one_pass_releases_what_the_requirements_of_only_versions_exclude() -> None:
    index = {
        "tool 2.0": ["web==3"],
        "web 3": ["files<24", "text~=2.0"],
        "files 23": [],
        "text 2.1": ["mark<3"],
    }
    index |= {"mark 2": []}
    there = installed({"web 5": [], "files 25": [], "text 3.0": [], "mark 1": []})
    found = solve(index, "tool==2.0", installed=there)
    assert found.rounds == 1
    assert found.released.keys() == names("web", "files", "text")
    assert found.released[NormalizedName("text")] == "web 3 needs text~=2.0"
    assert pins_of(found)["mark"] == "1"


def test_a_lazy_sequence_whose_iterator_failed_fails_again_and_is_not_shorter() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise FetchFailed("the index is away", url="https://index.example/simple/")

    lazy = Lazy(values())
    assert lazy[0] == 1
    for read in (len, list, lambda it: it[1], lambda it: it[-1], lambda it: it[:2]):
        with pytest.raises(FetchFailed):
            read(lazy)
    assert lazy
    assert lazy[0] == 1
