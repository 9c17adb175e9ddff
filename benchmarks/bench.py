"""Whole processes side by side: colablock beside uv and pip-tools on the same input.

    python -m benchmarks.bench [--runs N] [--only WHAT] [--index-url URL] [--json] [--output FILE]

The sides of a contest take turns in one run, and what counts is the median of the ratios of each turn:
a machine that slows down slows both.  Without ``--index-url`` everything is asked of a recording of a
real index, served on 127.0.0.1, so there is no network in the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contests import CONTESTS, MATRIX, Command, Contest, Ground, Side
from tests.support.recorded_index import RecordedIndex
from tests.support.server import IndexServer

# How a registry is reached is no setting of a tool; all else of theirs would change the contest.
REACHING = frozenset({"PIP_CERT", "PIP_PROXY"})
# `PYTHONDONTWRITEBYTECODE` above all: with it every start compiles the sources anew.
PREFIXES = ("COLABLOCK_", "PIP_", "PYTHON", "UV_", "XDG_")
UNSET = frozenset({"MPLBACKEND", "VIRTUAL_ENV"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the turns of one contest took, in seconds by the clock, and in processor time by the median."""

    about: str
    beside: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ours_processor: float
    theirs_processor: float
    ours_memory: float = 0.0  # MiB: the most that one process had
    theirs_memory: float = 0.0
    aim: float | None = None
    limit: float | None = None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours by theirs, turn by turn."""
        return tuple(mine / other for mine, other in zip(self.ours, self.theirs, strict=True))

    @property
    def reached(self) -> bool:
        """Whether the aim is met by the medians."""
        if self.limit is not None:
            return median(self.ours) <= self.limit
        return self.aim is None or median(self.ratios) <= self.aim


def hold(contest: Contest, ground: Ground, runs: int) -> Outcome:
    """Return what *runs* turns took, after one that is not counted."""
    turns = [(timed(contest.ours, ground), timed(contest.theirs, ground)) for _ in range(runs + 1)][1:]
    ours, theirs = zip(*turns, strict=True)
    return Outcome(
        about=contest.about,
        beside=contest.theirs.label,
        ours=tuple(clock for clock, _, _ in ours),
        theirs=tuple(clock for clock, _, _ in theirs),
        ours_processor=median(processor for _, processor, _ in ours),
        theirs_processor=median(processor for _, processor, _ in theirs),
        ours_memory=median(memory for _, _, memory in ours),
        theirs_memory=median(memory for _, _, memory in theirs),
        aim=contest.aim,
        limit=contest.limit,
    )


def timed(side: Side, ground: Ground) -> tuple[float, float, float]:
    """Return what the commands of a side take: seconds by the clock and of processors, and MiB."""
    for folder in side.forget:
        shutil.rmtree(folder, ignore_errors=True)
    processor, memory, started = 0.0, 0, time.perf_counter()
    for command in side.commands:
        used = measured(command, ground)
        processor += used.ru_utime + used.ru_stime
        memory = max(memory, used.ru_maxrss)
    return time.perf_counter() - started, processor, memory / 1024


def measured(command: Command, ground: Ground) -> resource.struct_rusage:
    """Run *command* to its end and return what it and its children used.  Raises RuntimeError."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command, env=dict(ground.environ), cwd=ground.folder, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            said = output.read().decode("utf-8", "replace")
            message = f"{' '.join(command)}\nended with {child.returncode}\n{said}"
            raise RuntimeError(message)
    return used


def clean(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return *environ* without settings of tools, and with homes and caches below *folder*."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in REACHING or (name not in UNSET and not name.startswith(PREFIXES))
    }
    own = {
        "COLABLOCK_CACHE_DIR": str(folder / "cache"),
        "COLABLOCK_HOME": str(folder / "home"),
        "NO_PROXY": ",".join(filter(None, ("127.0.0.1", kept.get("NO_PROXY")))),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    return kept | own


@contextmanager
def held(index_url: str | None) -> Iterator[Ground]:
    """Give the ground of one run, with a served recording unless an index is named."""
    with tempfile.TemporaryDirectory(prefix="colablock-bench-") as name:
        ground = Ground(folder=Path(name), index=index_url or "", environ=clean(os.environ, Path(name)))
        if index_url is not None:
            yield replace(ground, is_real=True)
            return
        with IndexServer(RecordedIndex(MATRIX)) as server:
            yield replace(ground, index=server.url)


def row(outcome: Outcome) -> tuple[str, ...]:
    """Return the cells of one outcome."""
    aim = f"{outcome.limit:g} s" if outcome.limit is not None else f"{outcome.aim:g}" if outcome.aim else ""
    ratios = outcome.ratios
    return (
        outcome.about,
        outcome.beside,
        f"{median(outcome.ours):.2f}",
        f"{median(outcome.theirs):.2f}",
        f"{median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{outcome.ours_processor:.2f} / {outcome.theirs_processor:.2f}",
        f"{outcome.ours_memory:.0f} / {outcome.theirs_memory:.0f}",
        aim,
        "" if not aim else "yes" if outcome.reached else "no",
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table that Markdown takes too."""
    head = (
        "what",
        "beside",
        "ours, s",
        "theirs, s",
        "ratio",
        "of the turns",
        "processor, s",
        "memory, MiB",
        "aim",
        "reached",
    )
    rows = [head, *map(row, outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        for cells in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def as_values(outcomes: Sequence[Outcome], runs: int, index_url: str | None) -> dict[str, Any]:
    """Return the outcomes with every turn, and what they were measured on."""
    rows = [
        {**asdict(outcome), "ratio": median(outcome.ratios), "reached": outcome.reached}
        for outcome in outcomes
    ]
    on = {**measured_on(), "index": "named" if index_url else "recorded, on 127.0.0.1"}
    return {"runs": runs, "on": on, "contests": rows}


def measured_on() -> dict[str, Any]:
    """Return what a measurement is made on."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def add_to(path: Path, values: Mapping[str, Any]) -> None:
    """Write *values* into a file of results, beside those of other benchmarks."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(f"{json.dumps({**known, **values}, indent=2)}\n", encoding="utf-8")


def write_results(path: Path, values: Mapping[str, Any]) -> None:
    """Write what is known so far beside other benchmarks, and contests that were not held this time."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    new = {(one["about"], one["beside"]): one for one in values["contests"]}
    contests = [new.pop((one["about"], one["beside"]), one) for one in known.get("contests", ())]
    add_to(path, {**values, "contests": [*contests, *new.values()]})


def main() -> int:
    """Hold the contests asked for and print what came out; a slow ratio is no failure."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="turns that count (default: 5)")
    parser.add_argument(
        "--only", action="append", choices=[*CONTESTS], help="only these contests (repeatable)"
    )
    parser.add_argument("--index-url", metavar="URL", help="a real index instead of the recorded one")
    parser.add_argument("--json", action="store_true", help="print every turn as JSON")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write it there as JSON after each contest"
    )
    args = parser.parse_args()
    outcomes: list[Outcome] = []
    with held(args.index_url) as ground:
        for name in args.only or CONTESTS:
            for contest in CONTESTS[name](ground):
                print(f"{contest.about}, beside {contest.theirs.label} ...", file=sys.stderr)
                outcomes.append(hold(contest, ground, max(1, args.runs)))
                values = as_values(outcomes, args.runs, args.index_url)
                if args.output is not None:
                    write_results(args.output, values)
    print(json.dumps(values, indent=2) if args.json else table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
