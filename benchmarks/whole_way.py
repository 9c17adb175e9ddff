"""The whole way from a fresh environment to the first training step, in parts, beside what no tool can spare.

    python -m benchmarks.whole_way [MATRIX] [--python PYTHON] [--find-links DIR] [--runs N] [--output FILE]

Each turn makes an empty virtual environment, applies MATRIX (default: qlora-2026) to it with empty caches
and a real index, trains a tiny model to its first step, and undoes the change.  The time of a part is read
off the lines of progress.  Beside it stands the same work done plainly:

- fetch: the same files by eight connections, written nowhere;
- unpack: a copy of the same installed files by ``cp``;
- prove: one import of the stack, the first one in this environment;
- start: a plain script that trains the same model, to its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import uv

from benchmarks.bench import add_to, clean, measured_on
from benchmarks.first_step import ground, run
from benchmarks.real_stack import IMPORTS

#: By the first word of what `colablock apply` says when a stage starts.
STAGES = {
    "Resolving": "resolve",
    "Fetching": "fetch",
    "Staging": "unpack",
    "Changing": "swap",
    "Proving": "prove",
}
FLOORS = {
    "fetch": "the same files by eight connections",
    "unpack": "a copy of the installed files",
    "prove": "the first import of the stack",
    "start": "a plain script to its first step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a part took, in seconds of each turn, beside its floor."""

    about: str
    ours: tuple[float, ...]
    floor: tuple[float, ...] = ()
    beside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What each turn does: the stack, where it comes from, and scratch folders."""

    matrix: str
    asked: tuple[str, ...]
    python: str
    folder: Path
    environ: Mapping[str, str]

    @property
    def kernel(self) -> Path:
        """The environment that is changed."""
        return self.folder / "kernel"

    def colablock(self, *words: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "colablock", *words)

    def turn(self, number: int) -> tuple[dict[str, float], dict[str, float], int]:
        """Go the way once; return the seconds of the parts, those of the floors, and the bytes fetched."""
        for name in ("home", "cache", "kernel", "copy"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        run((uv.find_uv_bin(), "venv", "--quiet", "--python", self.python, str(self.kernel)), self.environ)
        python = self.kernel / "bin" / "python"
        into = (self.matrix, "--into", "kernel", "--python", str(python), *self.asked)
        plan = json.loads(run(self.colablock("plan", *into, "--json"), self.environ))
        shutil.rmtree(self.folder / "cache")
        floors = {"fetch": fetched([s["artifact"] for s in plan["steps"] if s.get("artifact")])}
        parts = timed_stages(self.colablock("apply", *into, "--yes"), self.environ)
        (site,) = self.kernel.glob("lib/python*/site-packages")
        copy = ("cp", "--recursive", "--reflink=never", str(site), str(self.folder / "copy"))
        floors["unpack"] = timed(copy)
        # Bytecode that the proof has left would help the plain import.
        away = {**self.environ, "PYTHONPYCACHEPREFIX": str(self.folder / f"bytecode-{number}")}
        floors["prove"] = timed((str(python), "-c", IMPORTS), away)
        train = ground(self.matrix, str(python), self.folder / f"training-{number}")
        floors["start"] = train.plain(number)
        for folder in site.rglob("__pycache__"):  # those of the tiny model: the plain script has none either
            shutil.rmtree(folder)
        parts["start"], _ = train.ours(number)
        parts["undo"] = timed(self.colablock("rollback", "--python", str(python), "--yes"), self.environ)
        return parts, floors, plan["fetch_size"]


def timed_stages(command: Sequence[str], environ: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds between the lines with which *command* says that a stage starts."""
    began, parts, part = time.perf_counter(), dict.fromkeys(STAGES.values(), 0.0), "resolve"
    with subprocess.Popen(
        command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None  # noqa: S101 - for the type checker
        said = []
        for line in child.stderr:
            said.append(line)
            found = STAGES.get(line.partition(" ")[0])
            if found:
                now = time.perf_counter()
                parts[part] += now - began
                part, began = found, now
    parts[part] += time.perf_counter() - began
    if child.returncode or part != "prove":
        sys.exit(f"{' '.join(command)} ended with {child.returncode} in the part `{part}`\n{''.join(said)}")
    return parts


def fetched(artifacts: Sequence[Mapping[str, str]]) -> float:
    """Return the seconds that the files take that are not on this machine."""

    def fetch(url: str) -> None:
        with urlopen(url) as response:  # noqa: S310 - addresses of the index
            while response.read(1 << 20):
                pass

    urls = [one["url"] for one in artifacts if one["url"].startswith("http")]
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, urls))
    return time.perf_counter() - began


def timed(command: Sequence[str], environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that *command* takes."""
    began = time.perf_counter()
    run(command, environ)
    return time.perf_counter() - began


def parts_of(turns: Sequence[tuple[Mapping[str, float], Mapping[str, float], int]]) -> list[Part]:
    """Return the parts with the seconds of all turns."""
    return [
        Part(
            about=about,
            ours=tuple(parts[about] for parts, _, _ in turns),
            floor=tuple(floors[about] for _, floors, _ in turns) if about in FLOORS else (),
            beside=FLOORS.get(about, ""),
        )
        for about in turns[0][0]
    ]


def main() -> int:
    """Go the way in turns, and print the medians."""
    parser = argparse.ArgumentParser(prog="whole_way", description=__doc__.partition("\n")[0])
    parser.add_argument("matrix", nargs="?", default="qlora-2026")
    parser.add_argument("--variant", default="cpu")
    parser.add_argument("--python", default=sys.executable, help="interpreter (default: the running one)")
    parser.add_argument("--find-links", metavar="DIR", help="folder with large wheels, such as torch")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="turns (default: 3)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="add the parts to this file of results")
    options = parser.parse_args()
    asked = ["--variant", options.variant]
    if options.find_links:
        asked += ["--find-links", options.find_links]
    with tempfile.TemporaryDirectory(prefix="colablock-way-") as name:
        folder = Path(name)
        way = Way(
            matrix=options.matrix,
            asked=tuple(asked),
            python=options.python,
            folder=folder,
            environ=clean(os.environ, folder),
        )
        turns = [way.turn(number) for number in range(max(1, options.runs))]
    parts = parts_of(turns)
    for part in parts:
        beside = f"{median(part.floor):8.2f}  {part.beside}" if part.floor else ""
        print(f"{part.about:8}{median(part.ours):8.2f}{beside}")
    if options.output is not None:
        found = {"on": measured_on(), "fetched": turns[0][2], "parts": [asdict(part) for part in parts]}
        add_to(options.output, {"way": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
