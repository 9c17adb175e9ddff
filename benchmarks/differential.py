"""Random problems, resolved by colablock and by uv from the same index, and judged by an oracle.

    python -m benchmarks.differential [--count 300] [--first SEED]

The oracle tries every choice of versions, with the rules of colablock.  uv has other rules for pre-releases:
it admits them only if the user's requirement names one, or a project has nothing else.  Its answers are
counted apart, and only a wrong answer of colablock makes the exit code 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.resolver.test_cases import own_pins, uv_pins
from tests.support.random_problems import RandomProblem, random_problem


def main() -> int:
    """Compare the answers, and print the counts and the seeds that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    counts: Counter[str] = Counter()
    for seed in seeds:
        problem = random_problem(seed)
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = answers(problem, Path(folder))
        own, uv = judged(problem, ours), judged(problem, theirs)
        counts[f"colablock {own}"] += 1
        counts[f"uv {uv}"] += 1
        if own != "right":
            print(f"seed {seed}: colablock is {own}: {ours}\n{problem}")
        elif uv != "right":
            print(f"seed {seed}: uv is {uv}: {theirs}")
    print(f"seeds {seeds.start} to {seeds.stop - 1}")
    for name, number in sorted(counts.items()):
        print(f"{name}: {number}")
    return int(counts["colablock right"] != len(seeds))


def answers(
    problem: RandomProblem, folder: Path
) -> tuple[Mapping[str, str] | None, Mapping[str, str] | None]:
    """Return the pins of colablock and of uv, from an index on 127.0.0.1; None for no solution."""
    with problem.as_case().world(folder) as world:
        ours, _ = own_pins(world, folder / "cache")
        try:
            return ours, uv_pins(world, folder / "uv-cache")
        except (AssertionError, subprocess.SubprocessError) as error:
            print(f"seed {problem.seed}: uv fails: {error}", file=sys.stderr)
            return ours, None


def judged(problem: RandomProblem, pins: Mapping[str, str] | None) -> str:
    """Return whether *pins* are right, wrong, or missing although there is a solution."""
    if pins is None:
        return "missing a solution" if problem.is_solvable else "right"
    return "right" if problem.is_solution(pins) else "wrong"


if __name__ == "__main__":
    sys.exit(main())
