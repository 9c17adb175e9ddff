"""Random problems beside an oracle that tries every choice: no solution is missed, and no pin is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colablock.errors import NoSolution
from colablock.resolver import bounded_search
from colablock.resolver.conflict_report import explain
from colablock.resolver.model import Unsolvable
from colablock.resolver.resolver import resolve
from tests.support.dict_source import installed, pins_of
from tests.support.random_problems import RandomProblem, random_problem

pytestmark = pytest.mark.requirements

# With resolvelib alone, the first have no solution, and the others have pre-releases that nothing admits.
MISSED = (1127, 1248, 2068, 2224, 2926, 3071, 3322, 3483, 3833, 4163, 5878, 6021, 6989, 7936, 8389)
WRONG = (14, 57, 8997, 12775, 15516)
EXPLAINED = (580, 1051, 1169)  # by a constraint on a project in the middle
SEEDS = (*range(300), *MISSED, *WRONG, *EXPLAINED)


def outcome(problem: RandomProblem) -> dict[str, str] | NoSolution:
    try:
        return pins_of(resolve(problem.request, problem.source))
    except NoSolution as error:
        return error


@pytest.mark.parametrize("seed", SEEDS)
def test_the_pins_are_a_solution_or_the_quoted_requirements_alone_have_none(seed: int) -> None:
    problem = random_problem(seed)
    found = outcome(problem)
    if isinstance(found, Unsolvable):
        report = explain(found.conflict, asker="demo")
        assert not problem.is_solvable, f"{problem}\n{report}"
        assert not problem.quoted(report.because).is_solvable, f"{problem}\n{report}"
    else:
        assert not isinstance(found, NoSolution)
        assert problem.is_solution(found), f"{problem}\n{found}"


@pytest.mark.parametrize("seed", range(200))
def test_no_solution_is_missed_because_of_installed_distributions(seed: int) -> None:
    """Any of them may be released, so a solution for an empty environment is one here, too."""
    problem = random_problem(seed)
    image = {f"{name} {versions[seed % len(versions)]}" for name, versions in problem.versions.items()}
    there = installed({key: problem.index[key] for key in image})
    if problem.is_solvable:
        resolve(replace(problem.request, installed=there), problem.source)


@pytest.mark.parametrize("seed", range(100))
def test_the_complete_search_alone_gives_the_same_answers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_search, "_ROUNDS", 1)  # resolvelib gives up at once
    test_the_pins_are_a_solution_or_the_quoted_requirements_alone_have_none(seed)
