"""Requests without a solution whose search is long: hundreds of versions that conflict deep down.

    python -m benchmarks.hard_conflicts [NAME ...]

Each is an index in memory, ``{"app 1.0": ["lib>=2"]}``, and what is asked of it.  The tests count the steps
of the search with the same inputs, since seconds depend on the machine.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from colablock.errors import NoSolution
from colablock.resolver.conflict_report import explain
from colablock.resolver.model import Request, Unsolvable
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312, DictSource, entries

__all__ = ["HARD_CONFLICTS", "HardConflict"]


@dataclass(frozen=True, slots=True)
class HardConflict:
    """An index and the roots that are asked of it."""

    index: Mapping[str, Sequence[str]]
    roots: tuple[str, ...]

    def solve(self) -> None:
        """Solve it.  Raises NoSolution."""
        resolve(Request(environment=PYTHON_312, roots=entries(*self.roots)), DictSource(self.index))


def two_columns(versions: int = 300) -> HardConflict:
    """Every pair of releases of two projects conflicts over the release of a third."""
    index: dict[str, Sequence[str]] = {"base 2.0": []}
    for i in range(versions):
        index[f"front 1.{i}"] = [f"base==1.{i}"]
        index[f"back 1.{i}"] = [f"base==2.{i}"]
        index[f"base 1.{i}"] = []
    return HardConflict(index, ("front", "back"))


def layers(versions: int = 200, depth: int = 6) -> HardConflict:
    """Releases need releases of the next layer of about their age; the last two layers exclude each other."""
    index: dict[str, Sequence[str]] = {}
    for side in ("left", "right"):
        for layer in range(depth):
            for i in range(versions):
                low, high = max(0, i - 5), i + 5
                following = f"{side}-{layer + 1}>=1.{low},<=1.{high}"
                last = f"shared{'<' if side == 'left' else '>='}1.{versions // 2}"
                index[f"{side}-{layer} 1.{i}"] = [following if layer + 1 < depth else last]
    index |= {f"shared 1.{i}": [] for i in range(versions)}
    return HardConflict(index, ("left-0", "right-0"))


def parity(projects: int = 8, versions: int = 60) -> HardConflict:
    """Each project in a ring has the parity of the one before, but the last has the other."""
    index: dict[str, Sequence[str]] = {}
    for place in range(projects):
        following = (place + 1) % projects
        for i in range(versions):
            wanted = (i + (following == 0)) % 2
            excluded = ",".join(f"!=1.{j}" for j in range(versions) if j % 2 != wanted)
            index[f"p{place} 1.{i}"] = [f"p{following}{excluded}"]
    return HardConflict(index, tuple(f"p{place}" for place in range(projects)))


def random_ranges(projects: int = 30, versions: int = 100, seed: int = 5) -> HardConflict:
    """Each release needs narrow ranges of others that were drawn at random."""
    rng = random.Random(seed)
    index: dict[str, Sequence[str]] = {}
    for place in range(projects):
        for i in range(versions):
            needs = []
            for other in rng.sample(range(projects), 3):
                if other != place:
                    low = rng.randrange(versions)
                    needs.append(f"p{other}>=1.{low},<1.{low + versions // 4}")
            index[f"p{place} 1.{i}"] = needs
    return HardConflict(index, ("p0", "p1", "p2"))


def pigeons(number: int = 6) -> HardConflict:
    """More pigeons than holes: no search by conflicts alone ends soon, for any resolver."""
    index: dict[str, Sequence[str]] = {}
    for pigeon in range(number + 1):
        for hole in range(number):
            index[f"pigeon-{pigeon} 1.{hole}"] = [f"hole-{hole}==1.{pigeon}"]
    index |= {f"hole-{hole} 1.{pigeon}": [] for hole in range(number) for pigeon in range(number + 1)}
    return HardConflict(index, tuple(f"pigeon-{pigeon}" for pigeon in range(number + 1)))


HARD_CONFLICTS: Mapping[str, Callable[[], HardConflict]] = {
    "two-columns": two_columns,
    "layers": layers,
    "parity": parity,
    "random-ranges": random_ranges,
    "pigeons": pigeons,
}


def main() -> None:
    """Time the named conflicts, or all."""
    for name in sys.argv[1:] or HARD_CONFLICTS:
        problem = HARD_CONFLICTS[name]()
        start = time.perf_counter()
        try:
            problem.solve()
            print(f"{name}: solved")
        except Unsolvable as error:
            text = str(explain(error.conflict, asker=name))
            print(f"{name}: {time.perf_counter() - start:.1f} s, {len(text.splitlines())} lines of report")
        except NoSolution as error:
            print(f"{name}: {time.perf_counter() - start:.1f} s, {error}")


if __name__ == "__main__":
    main()
