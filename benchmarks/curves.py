"""How the time grows: a solve with locked packages, a plan with what is installed, a check with its pairs.

    python -m benchmarks.curves [--runs N] [--output FILE]

Each point is the least processor time of several runs, since other work on the machine only adds to it.
A check is a process of its own with a fresh cache, and runs once.  The exponent is the slope of a line
through the points on logarithmic scales: 1 is linear.
"""

from __future__ import annotations

import argparse
import atexit
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.bench import add_to
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.snapshot import Installed, Snapshot
from colablock.matrix.model import Matrix
from colablock.planning.plan import Target
from colablock.planning.planner import make_plan
from colablock.resolver.model import Request
from colablock.resolver.repair import Repairer
from colablock.resolver.resolver import resolve
from colablock.runtimes.catalog import runtime_names
from tests.support.dict_source import PYTHON_312, DictSource, entries

LOCKED = (50, 100, 170, 250, 500)
INSTALLED = (100, 200, 350, 700, 1400)
MATRICES = (1, 2, 4, 8)  # copies of one
MATRIX = "qlora-2026"
MATRICES_FOLDER = Path(__file__).parents[1] / "matrices"
NEEDS = 8  # requirements of one distribution, as in a hosted image
STACK = 30  # packages of a plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Processor seconds by size."""

    about: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The slope of the line through the points on logarithmic scales."""
        xs, ys = [math.log(size) for size in self.sizes], [math.log(one) for one in self.seconds]
        x, y = sum(xs) / len(xs), sum(ys) / len(ys)
        above = sum((one - x) * (other - y) for one, other in zip(xs, ys, strict=True))
        return above / sum((one - x) ** 2 for one in xs)


def needs(number: int) -> list[str]:
    """Return the requirements of package *number*: on earlier ones, one of them for an extra."""
    earlier = sorted({number - 1, number - 2, *(number // part for part in range(2, NEEDS - 1))} - {number})
    lines = [f"p{one}>=1,<9" for one in earlier if one >= 0]
    return [*lines, *(f"p{one}[x]>=1; extra == 'y'" for one in earlier[:1] if one >= 0)]


def locked_solve(size: int) -> Callable[[], object]:
    """Return a solve from nothing of *size* locked packages, all of which the last one needs."""
    index = {f"p{number} {number % 5 + 1}": needs(number) for number in range(size)}
    fixed = {NormalizedName(f"p{number}"): Version(str(number % 5 + 1)) for number in range(size)}
    request = Request(environment=PYTHON_312, roots=entries(f"p{size - 1}"), fixed=fixed)
    source = DictSource(index)
    return lambda: resolve(request, source)


def installed_plan(size: int) -> Callable[[], object]:
    """Return the solve and the plan of a lock of a few packages over *size* distributions."""
    there = {
        name: Installed(name=name, version="1", requires=tuple(needs(number)))
        for number in range(size)
        for name in [NormalizedName(f"p{number}")]
    }
    moved = [size // STACK * number for number in range(1, STACK)]
    source = DictSource({f"p{number} 2": [] for number in moved})
    fixed = {NormalizedName(f"p{number}"): Version("2") for number in moved}
    roots = entries(*(f"p{number}" for number in moved))
    request = Request(environment=PYTHON_312, roots=roots, fixed=fixed, installed=there)
    snapshot = Snapshot(
        environment=PYTHON_312, python="/usr/bin/python3", prefix="/usr", site="/usr/lib", installed=there
    )
    matrix = Matrix(name="curve", source="curve.toml", digest="0" * 64)

    def plan() -> object:
        found = resolve(request, source)
        repair = Repairer(found.request, source)
        return make_plan(
            matrix=matrix, resolution=found, snapshot=snapshot, target=Target.KERNEL, repair=repair
        )

    return plan


def checked(size: int) -> Callable[[], object]:
    """Return a check of *size* pairs of a copy of a matrix and a recorded runtime, from locks."""
    folder = Path(tempfile.mkdtemp(prefix="colablock-curves-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    beside = [
        path
        for path in MATRICES_FOLDER.glob("*.*")
        if path.is_file() and re.match(rf"(pylock\.)?{MATRIX}(--|\.)", path.name)
    ]
    copies = [folder / str(number) for number in range(size // len(runtime_names()))]
    for copy in copies:
        copy.mkdir()
        for path in beside:
            shutil.copy(path, copy)
    command = [sys.executable, "-m", "colablock", "check", *(str(one / f"{MATRIX}.toml") for one in copies)]
    environ = {
        **os.environ,
        "COLABLOCK_CACHE_DIR": str(folder / "cache"),
        "COLABLOCK_HOME": str(folder / "home"),
    }
    return lambda: subprocess.run([*command, "--json"], env=environ, capture_output=True, check=True)


def processor() -> float:
    """Return the processor seconds that this process and its ended children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(
    about: str, sizes: Sequence[int], make: Callable[[int], Callable[[], object]], runs: int
) -> Curve:
    """Return the least processor time of *runs* calls for each of *sizes*."""
    seconds = []
    for size in sizes:
        call = make(size)
        times = []
        for _ in range(runs):
            started = processor()
            call()
            times.append(processor() - started)
        seconds.append(min(times))
    return Curve(about=about, sizes=tuple(sizes), seconds=tuple(seconds))


def curves(runs: int) -> list[Curve]:
    """Return every curve."""
    return [
        measured("solve of a lock, by locked packages", LOCKED, locked_solve, runs),
        measured("solve and plan of a lock, by installed distributions", INSTALLED, installed_plan, runs),
        measured(
            "check from locks, by pairs of a matrix and a runtime",
            [number * len(runtime_names()) for number in MATRICES],
            checked,
            1,
        ),
    ]


def main() -> int:
    """Measure and print the curves."""
    parser = argparse.ArgumentParser(prog="curves", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of a point (default: 5)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="add them to this file of results")
    options = parser.parse_args()
    found = curves(max(1, options.runs))
    for curve in found:
        points = ", ".join(
            f"{size}: {one:.3f} s" for size, one in zip(curve.sizes, curve.seconds, strict=True)
        )
        print(f"{curve.about}: {points}; exponent {curve.exponent:.2f}")
    if options.output is not None:
        add_to(options.output, {"curves": [{**asdict(one), "exponent": one.exponent} for one in found]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
