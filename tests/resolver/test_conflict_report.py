"""The whole report of each kind of conflict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any

import pytest

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.errors import ExitCode, FetchFailed, NoSolution
from colablock.index.candidates import Candidate, Metadata, ProjectCandidates
from colablock.matrix.model import Absent
from colablock.resolver.conflict_report import explain, misfits
from colablock.resolver.model import LOCK, Request, Unsolvable
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312, DictSource, constraints, entries, installed

pytestmark = pytest.mark.requirements

COLAB = installed({"google-colab 1.0": ["pandas==2.2.2"], "pandas 2.2.2": ["numpy>=1.26"], "numpy 2.0.2": []})
PROTECTED = frozenset(map(canonicalize_name, ("google-colab", "pandas")))
OLD_TORCHAO = Absent(
    name=canonicalize_name("torchao"), path="absent.torchao", specifier=SpecifierSet("<0.16")
)


@dataclass(frozen=True)
class ConflictCase:
    """A request without a solution, and its whole report."""

    roots: Sequence[str]
    index: Mapping[str, Sequence[str]]
    report: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    yanked: Sequence[str] = ()


CASES = {
    "diamond": ConflictCase(
        ["a", "b"],
        {"a 1": ["c<2"], "b 1": ["c>=2"], "c 1": [], "c 2": []},
        """
        no version of `c` meets every requirement
          because a 1 needs `c<2`
          and demo asks for `a` (packages.a)
          and b 1 needs `c>=2`
          and demo asks for `b` (packages.b)
        """,
    ),
    "diamond of many versions": ConflictCase(
        ["a", "b"],
        {
            **{f"a {version}": ["c<2"] for version in range(1, 6)},
            **{f"b {version}": ["c>=2"] for version in range(1, 3)},
            "c 1": [],
            "c 2": [],
        },
        """
        no version of `c` meets every requirement
          because a 1 to 5 (5 versions tried) need `c<2`
          and demo asks for `a` (packages.a)
          and b 1 and 2 need `c>=2`
          and demo asks for `b` (packages.b)
        """,
    ),
    "every version of one asks for another": ConflictCase(
        ["a", "b"],
        {"a 2": ["c==2"], "a 1": ["c==1"], "b 1": ["c==3"], "c 1": [], "c 2": [], "c 3": []},
        """
        no version of `c` meets every requirement
          because a 2 needs `c==2`
          and a 1 needs `c==1`
          and demo asks for `a` (packages.a)
          and b 1 needs `c==3`
          and demo asks for `b` (packages.b)
        """,
    ),
    "a chain": ConflictCase(
        ["a", "e"],
        {"a 1": ["b"], "b 1": ["c"], "c 1": ["d<1"], "e 1": ["d>=1"], "d 1": [], "d 0.5": []},
        """
        no version of `d` meets every requirement
          because e 1 needs `d>=1`
          and demo asks for `e` (packages.e)
          and c 1 needs `d<1`
          and b 1 needs `c`
          and a 1 needs `b`
          and demo asks for `a` (packages.a)
        """,
    ),
    "the user alone": ConflictCase(
        ["a>=2", "a<2"],
        {"a 1": [], "a 2": []},
        """
        no version of `a` meets every requirement
          because demo asks for `a>=2` (packages.a)
          and demo asks for `a<2` (packages.a)
        """,
    ),
    "protected": ConflictCase(
        ["stack"],
        {"stack 1": ["pandas>=3"], "pandas 3": []},
        """
        no candidate fits `pandas>=3`
          because stack 1 needs `pandas>=3`
          and demo asks for `stack` (packages.stack)
          and pandas 2.2.2 is installed and protected
          and google-colab 1.0 is protected and needs `pandas==2.2.2`
        """,
        facts={"installed": COLAB, "protected": PROTECTED},
    ),
    "what a protected one needs": ConflictCase(
        ["stack"],
        {"stack 1": ["numpy<1.26"], "numpy 1.25": []},
        """
        no candidate fits `numpy<1.26`
          because stack 1 needs `numpy<1.26`
          and demo asks for `stack` (packages.stack)
          and pandas 2.2.2 is protected and needs `numpy>=1.26`
        """,
        facts={"installed": COLAB, "protected": PROTECTED},
    ),
    "a protected one that is not in the way": ConflictCase(
        ["stack"],
        {"stack 1": ["numpy>=9"], "numpy 2.0.2": []},
        """
        no candidate fits `numpy>=9`
          because stack 1 needs `numpy>=9`
          and demo asks for `stack` (packages.stack)
          and the only available version of numpy is 2.0.2
        """,
        facts={"installed": COLAB, "protected": PROTECTED},
    ),
    "constraint": ConflictCase(
        ["stack"],
        {"stack 1": ["setuptools>=81"], "setuptools 81": [], "setuptools 80": []},
        """
        no candidate fits `setuptools>=81`
          because stack 1 needs `setuptools>=81`
          and demo asks for `stack` (packages.stack)
          and constraints.setuptools allows only `setuptools<81`
        """,
        facts={"constraints": constraints("setuptools<81")},
    ),
    "absent": ConflictCase(
        ["peft"],
        {"peft 1": ["torchao"], "torchao 0.10": []},
        """
        no candidate fits `torchao`
          because peft 1 needs `torchao`
          and demo asks for `peft` (packages.peft)
          and absent.torchao excludes `torchao<0.16`
        """,
        facts={"absent": (OLD_TORCHAO,)},
    ),
    "no such project": ConflictCase(
        ["a"],
        {"a 1": ["b"], "b 1": ["tranformers>=1"]},
        """
        no index has `tranformers`
          because b 1 needs `tranformers>=1`
          and a 1 needs `b`
          and demo asks for `a` (packages.a)
          and it was searched for in http://127.0.0.1/simple/
        """,
    ),
    "no such version": ConflictCase(
        ["a>=3"],
        {"a 1": [], "a 2": []},
        """
        no candidate fits `a>=3`
          because demo asks for `a>=3` (packages.a)
          and the available versions of a are 1 and 2
        """,
    ),
    "no such version among many": ConflictCase(
        ["a>=30"],
        {f"a {version}": [] for version in range(1, 30)},
        """
        no candidate fits `a>=30`
          because demo asks for `a>=30` (packages.a)
          and the available versions of a are 1 to 29
        """,
    ),
    "no wheel": ConflictCase(
        ["torch==2.4.0", "numpy"],
        {"numpy 2": []},
        """
        `torch` has no file for Python 3.12.11 on linux x86_64
          because demo asks for `torch==2.4.0` (packages.torch)
          and torch 2.4.0 has no wheel for Python 3.12: cp311 only
        """,
        refused={"torch 2.4.0": "torch 2.4.0 has no wheel for Python 3.12: cp311 only"},
    ),
    "several without a wheel": ConflictCase(
        ["torch==2.4.0", "numpy==1", "peft"],
        {"peft 1": []},
        """
        `numpy` and `torch` have no file for Python 3.12.11 on linux x86_64
          because demo asks for `torch==2.4.0` (packages.torch)
          and torch 2.4.0 has no wheel
          and numpy 1 has no wheel
        """,
        refused={"torch 2.4.0": "torch 2.4.0 has no wheel", "numpy 1": "numpy 1 has no wheel"},
    ),
    "no wheel of something needed": ConflictCase(
        ["a"],
        {"a 1": ["torch==2.4.0"]},
        """
        no candidate fits `torch==2.4.0`
          because a 1 needs `torch==2.4.0`
          and demo asks for `a` (packages.a)
          and torch 2.4.0 has no wheel for Python 3.12: cp311 only
        """,
        refused={"torch 2.4.0": "torch 2.4.0 has no wheel for Python 3.12: cp311 only"},
    ),
    "yanked": ConflictCase(
        ["a>=2"],
        {"a 2": [], "a 1": []},
        """
        no candidate fits `a>=2`
          because demo asks for `a>=2` (packages.a)
          and a 2 was yanked, and only `==` selects a yanked version
        """,
        yanked=["a 2"],
    ),
    "pre-releases only": ConflictCase(
        ["b"],
        {"b 1": ["a>1"], "a 2rc1": [], "a 1": []},
        """
        no candidate fits `a>1`
          because b 1 needs `a>1`
          and demo asks for `b` (packages.b)
          and a 2rc1 is a pre-release, and pre-releases are excluded (`prerelease`)
        """,
        facts={"prerelease": "disallow"},
    ),
    "the Python of the matrix": ConflictCase(
        ["a"],
        {"a 1": []},
        """
        Python 3.12.11 does not fit
          because demo needs Python >=3.13, and this is Python 3.12.11
        """,
        facts={"requires_python": SpecifierSet(">=3.13")},
    ),
    "metadata": ConflictCase(
        ["b"],
        {"b 1": ["a"], "a 1": ["unreadable"], "a 2": ["unreadable"]},
        """
        no version of `a` has valid metadata
          because b 1 needs `a`
          and demo asks for `b` (packages.b)
          and the metadata of a 2 cannot be read
          and the metadata of a 1 cannot be read
        """,
    ),
    "fixed": ConflictCase(
        ["a>=2"],
        {"a 1": [], "a 2": []},
        """
        no candidate fits `a>=2`
          because demo asks for `a>=2` (packages.a)
          and a is locked at 1
        """,
        facts={"fixed": {canonicalize_name("a"): Version("1")}},
    ),
    "an extra": ConflictCase(
        ["a[x]", "b<2"],
        {"a 1": ["b>=2; extra == 'x'"], "b 1": [], "b 2": []},
        """
        no version of `b` meets every requirement
          because demo asks for `b<2` (packages.b)
          and a[x] 1 needs `b>=2`
          and demo asks for `a[x]` (packages.a)
        """,
    ),
    "an extra that is needed": ConflictCase(
        ["a"],
        {"a 1": ["b[x]"], "b 1": ["c>=3; extra == 'x'"], "c 2": []},
        """
        no candidate fits `c>=3`
          because b[x] 1 needs `c>=3`
          and a 1 needs `b[x]`
          and demo asks for `a` (packages.a)
          and the only available version of c is 2
        """,
    ),
    "a direct reference of somebody else": ConflictCase(
        ["a"],
        {"a 1": ["b @ https://files.example/b-1-py3-none-any.whl"], "b 1": []},
        """
        no candidate fits `b @ https://files.example/b-1-py3-none-any.whl`
          because a 1 needs `b @ https://files.example/b-1-py3-none-any.whl`
          and demo asks for `a` (packages.a)
          and a direct reference counts only if the matrix itself has it (b)
        """,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_whole_report_of_a_conflict(case: ConflictCase) -> None:
    assert str(report(case)) == dedent(case.report).strip()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_sentence_appears_twice(case: ConflictCase) -> None:
    lines = [line.removeprefix("because ").removeprefix("and ") for line in report(case).because]
    assert len(set(lines)) == len(lines)


def test_the_error_has_its_facts_as_attributes() -> None:
    error = report(CASES["diamond"], hint="Ask for less")
    assert error.names == ("c",)
    assert error.hint == "Ask for less"
    assert error.because[0] == "a 1 needs `c<2`"
    assert error.exit_code is ExitCode.UNMET


def test_a_parent_with_many_versions_gets_one_sentence() -> None:
    index = {f"a 1.{i}": [f"c==1.{i}"] for i in range(9)} | {f"c 1.{i}": [] for i in range(9)}
    error = report(ConflictCase(["a", "c>=2"], {**index, "c 2": []}, ""))
    assert "a 1.0 to 1.8 (9 versions tried) each need one version: from `c==1.8` to `c==1.0`" in (
        error.because
    )


def test_both_parents_are_named_if_the_last_conflict_shows_one() -> None:
    """All releases of `back` but one need a version that does not exist, and `front` excludes that one."""
    index = {f"front 1.{i}": [f"base==1.{i}"] for i in range(5)} | {f"base 1.{i}": [] for i in range(5)}
    index |= {f"back 1.{i}": [f"base==2.{i}"] for i in range(5)} | {"base 2.0": []}
    text = str(report(ConflictCase(["front", "back"], index, "")))
    for words in ("front 1.0 to 1.4", "back 1.0 to 1.4", "asks for `front`", "asks for `back`"):
        assert words in text


def test_a_name_missing_in_a_lock_is_not_reported_as_missing_in_indexes() -> None:
    error = report(ConflictCase(["a"], {}, ""), source=EmptyLock())
    assert str(error) == "`a` is not in the lock\n  because demo asks for `a` (packages.a)"


def test_a_fitting_installed_version_is_no_misfit() -> None:
    source = DictSource({}, refused={"torch 2.4.0": "no wheel"})
    request = Request(
        environment=PYTHON_312, roots=entries("torch"), installed=installed({"torch 2.8.0": []})
    )
    assert misfits(request, source) == {}
    assert list(misfits(Request(environment=PYTHON_312, roots=entries("torch")), source)) == ["torch"]


@pytest.mark.parametrize("root", ["torch>=3", "torch; python_version < '3'"])
def test_a_version_that_is_not_requested_is_no_misfit(root: str) -> None:
    source = DictSource({}, refused={"torch 2.4.0": "no wheel"})
    assert misfits(Request(environment=PYTHON_312, roots=entries(root)), source) == {}


def test_an_unreadable_index_gives_no_misfits() -> None:
    assert misfits(Request(environment=PYTHON_312, roots=entries("torch")), Unreachable()) == {}


class EmptyLock:
    """An empty lock."""

    def judge(self, name: str) -> ProjectCandidates:  # noqa: ARG002
        return ProjectCandidates(found=False, where=(LOCK,))

    def metadata(self, candidate: Candidate) -> Metadata:
        raise AssertionError(candidate)

    def prefetch(self, names: object) -> None:
        pass


class Unreachable(EmptyLock):
    """An index that does not answer."""

    def judge(self, name: str) -> ProjectCandidates:
        message = "no answer"
        raise FetchFailed(message, url=name)


def report(case: ConflictCase, *, source: Any = None, hint: str | None = None) -> NoSolution:
    """Return the report of *case*, as the solver words it."""
    request = Request(environment=PYTHON_312, roots=entries(*case.roots), **case.facts)
    source = source or DictSource(case.index, case.refused, case.yanked)
    with pytest.raises(Unsolvable) as caught:
        resolve(request, source)
    return explain(caught.value.conflict, asker="demo", misfits=misfits(request, source), hint=hint)
