"""Searches that would never end: they end in a proof, or with a word that they were bounded."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pytest

from benchmarks.hard_conflicts import HardConflict, layers, parity, pigeons, random_ranges, two_columns
from colablock.errors import NoSolution
from colablock.resolver import bounded_search, complete_search, resolver
from colablock.resolver.complete_search import CompleteSearch
from colablock.resolver.conflict_report import explain
from colablock.resolver.model import Edge, Request, Unsolvable
from colablock.resolver.provider import Provider
from tests.support.dict_source import PYTHON_312, DictSource, entries

# With resolvelib alone, none of the first four ends in a minute.
STEPS = {
    "two columns": (partial(two_columns, 60), 200_000),
    "layers": (partial(layers, 60, 5), 1_000_000),
    "parity": (partial(parity, 6, 30), 300_000),
    "pigeons": (partial(pigeons, 5), 200_000),
}


@pytest.mark.parametrize(("make", "steps"), STEPS.values(), ids=STEPS)
def test_a_hard_conflict_ends_in_a_proof_within_a_number_of_steps(
    make: partial[HardConflict], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_STEPS", steps)
    with pytest.raises(Unsolvable) as caught:
        make().solve()
    report = explain(caught.value.conflict, asker="demo")
    assert sum(" asks for " in line for line in report.because) >= 1


def test_a_bounded_search_says_so_and_names_what_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_STEPS", 600_000)
    with pytest.raises(NoSolution) as caught:
        random_ranges(20, 40).solve()
    assert not isinstance(caught.value, Unsolvable)
    text = str(caught.value)
    assert "no solution found in a bounded search" in text
    assert "the search was ended after 600,000 steps, so a solution may exist" in text
    assert "of 20 projects were tried" in text
    assert "most conflicts were about p" in text
    assert caught.value.hint is not None
    assert "pin the projects" in caught.value.hint


def test_resolvelib_ends_after_a_number_of_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up early, and the answer is still a proof."""
    monkeypatch.setattr(bounded_search, "_CONFLICTS", 3)
    asked = count_searches(monkeypatch)
    with pytest.raises(Unsolvable):
        two_columns(40).solve()
    assert asked


def count_searches(monkeypatch: pytest.MonkeyPatch) -> list[Iterable[Edge]]:
    """Return a list that grows with each complete search."""
    asked: list[Iterable[Edge]] = []

    def search(provider: Provider, roots: Iterable[Edge], *, steps: int, is_quick: bool) -> CompleteSearch:
        asked.append(roots)
        return CompleteSearch(provider, roots, steps=steps, is_quick=is_quick)

    monkeypatch.setattr(complete_search, "CompleteSearch", search)
    return asked


def test_an_easy_solve_needs_no_complete_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_searches(monkeypatch)
    index = {"a 2": ["b<2"], "a 1": ["b"], "b 2": [], "b 1": []}
    resolver.resolve(Request(environment=PYTHON_312, roots=entries("a", "b>=2")), DictSource(index))
    assert asked == []
