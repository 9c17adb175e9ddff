"""The seconds from the call to the first step, beside a plain script with the same imports.

    python -m benchmarks.first_step [MATRIX] [--python PYTHON] [--runs N] [--smoke] [--json]

MATRIX (default: qlora-2026) was applied in ``COLABLOCK_HOME``.  With ``--python`` no apply is needed: that
interpreter has the stack.  The two take turns in one run.  Both train a tiny model that is made here, so
there is no network.  One turn before the others is not counted: it fills the caches.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from colablock.environment.snapshot import installed_versions
from colablock.environment.target_script import ask_target
from colablock.matrix.catalog import find_matrix
from colablock.planning.plan import Target
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.summary import summary_of
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.transaction import apply_record
from colablock.transaction.serialise import report_to_json
from colablock.verification.verify import Report

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "colablock" / "training" / "toy.jsonl"
STEPS = 3
SETTINGS = {
    "sequence_len": 64,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.01,
    "max_steps": STEPS,
    "logging_steps": 1,
}
ASK = """
import json, sys, sysconfig, importlib.util
print(json.dumps([sys.version.split()[0], sysconfig.get_path("purelib"), sys.prefix,
                  importlib.util.find_spec("bitsandbytes") is not None]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn: the seconds to the end of the first step of both, and the parts of ours.

    The processor seconds are those of all processes to the end of the training.
    """

    ours: float
    plain: float
    ours_processor: float
    plain_processor: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What both sides use: the interpreter of the stack, a model, and a home with the applied matrix."""

    matrix: str
    python: str
    adapter: str
    folder: Path
    environ: Mapping[str, str]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def ours(self, number: int) -> tuple[float, Mapping[str, float]]:
        """Train with colablock; return the seconds to the first step, and their parts."""
        folder = RunFolder(self.folder / f"run-{number}")
        pairs = [f"--set={key}={value}" for key, value in {**SETTINGS, "adapter": self.adapter}.items()]
        where = ("--model", str(self.model), "--dataset", str(TEXT), "--output-dir", str(folder.path))
        began = time.time()
        run([sys.executable, "-m", "colablock", "train", self.matrix, *where, *pairs], self.environ)
        first = next(event for event in folder.metrics() if event["event"] == "step")
        return first["time"] - began, summary_of("run", folder).progress.beginning

    def plain(self, number: int) -> float:
        """Train with the plain script; return the seconds to the first step."""
        words = (self.model, TEXT, self.folder / f"plain-{number}", self.adapter, STEPS)
        script = Path(__file__).with_name("plain_training.py")
        # Its bytecode is its own: that in the environment would be a present for ours.
        environ = {**self.environ, "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode")}
        began = time.time()
        said = run([self.python, script, *words], environ)
        (line,) = (line for line in said.splitlines() if line.startswith("first step "))
        return float(line.split()[-1]) - began

    def smoke(self) -> tuple[float, float]:
        """Return the seconds that a smoke run takes, and its processor seconds."""
        began, used = time.time(), processor_time()
        run([sys.executable, "-m", "colablock", "smoke", self.matrix], self.environ)
        return time.time() - began, processor_time() - used


def turn_of(here: Ground, number: int) -> Turn:
    """Train with both; return the seconds of both."""
    began = processor_time()
    plain = here.plain(number)
    between = processor_time()
    ours, parts = here.ours(number)
    return Turn(
        ours=ours,
        plain=plain,
        ours_processor=processor_time() - between,
        plain_processor=between - began,
        parts=parts,
    )


def processor_time() -> float:
    """Return the seconds that the processes which ended so far used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(command: Sequence[object], environ: Mapping[str, str]) -> str:
    """Run *command* and return its standard output; end this process if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=dict(environ), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"{' '.join(words)} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


def ground(matrix: str, python: str | None, folder: Path) -> Ground:
    """Return the ground for *matrix* in *folder*, with a model made there."""
    found = find_matrix(matrix)
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONHOME")
    }
    environ |= {
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
    environ["COLABLOCK_CACHE_DIR"] = str(folder / "cache")
    if python is None:
        home = apply_record.home_folder(os.environ)
        applied = apply_record.require(found.name, home, asked=found.name)
        python = applied.python
    record(found.name, python, folder / "home")
    environ["COLABLOCK_HOME"] = str(folder / "home")
    made = Ground(
        matrix=found.name,
        python=python,
        adapter="qlora" if facts_of(python)[-1] else "lora",
        folder=folder,
        environ=environ,
    )
    toy = {"folder": str(made.model), "text": str(TEXT), "seed": 0}
    job = {"toy": toy, "data": None}
    ask_target(python, SCRIPTS / "prepare.py", job, doing="make a tiny model", environ=environ)
    return made


def record(name: str, python: str, home: Path) -> None:
    """Record at *home* that the matrix *name* was applied to the environment of *python*."""
    version, site, prefix, _ = facts_of(python)
    versions = installed_versions([site])
    digest = apply_record.versions_digest(versions)
    report = Report(
        matrix=name,
        variant=None,
        target="env",
        python=python,
        python_version=version,
        checks=(),
        lock_digest=digest,
    )
    applied = apply_record.ApplyRecord(
        name=name,
        key="benchmark",
        target=Target.ENV.value,
        python=python,
        prefix=prefix,
        sites=(site,),
        state=digest,
        matrix_digest=find_matrix(name).digest,
        variant=None,
        pins=versions,
        report=report_to_json(report),
        source=name,
        versions=versions,
    )
    apply_record.save(applied, home)


def facts_of(python: str) -> tuple[str, str, str, bool]:
    """Return the version of *python*, its site folder, its prefix, and whether it has bitsandbytes."""
    version, site, prefix, quantises = json.loads(run([python, "-I", "-B", "-c", ASK], os.environ))
    return version, site, prefix, quantises


def shown(turns: Sequence[Turn]) -> str:
    """Return the turns as lines of text, with the median at the end."""
    lines = [f"{'ours':>8}{'plain':>8}{'more':>8}  processor: ours, plain; parts of ours (s)"]
    for turn in turns:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in turn.parts.items())
        processor = f"{turn.ours_processor:.1f}, {turn.plain_processor:.1f}"
        lines.append(f"{turn.ours:8.1f}{turn.plain:8.1f}{turn.ours - turn.plain:8.1f}  {processor}; {parts}")
    ours, plain = (median(getattr(turn, side) for turn in turns) for side in ("ours", "plain"))
    more = median(turn.ours - turn.plain for turn in turns)
    lines.append(
        f"{ours:8.1f}{plain:8.1f}{more:8.1f}  median of {len(turns)}, {len(os.sched_getaffinity(0))} cores"
    )
    return "\n".join(lines)


def main() -> None:
    """Take turns, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("matrix", nargs="?", default="qlora-2026")
    parser.add_argument("--python", help="an interpreter that has the stack")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="time the smoke run, too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="first-step-"))
    try:
        here = ground(args.matrix, args.python, folder)
        turns = [turn_of(here, number) for number in range(args.runs + 1)]
        smokes = [here.smoke() for _ in range(args.runs)] if args.smoke else []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(
            json.dumps({"first": asdict(turns[0]), "turns": [asdict(t) for t in turns[1:]], "smoke": smokes})
        )
        return
    print(f"the first turn, not counted:\n{shown(turns[:1])}\n\n{shown(turns[1:])}")
    if smokes:
        seconds, used = (median(column) for column in zip(*smokes, strict=True))
        print(f"\nsmoke {seconds:.1f} s, processor {used:.1f} s (median of {len(smokes)})")


if __name__ == "__main__":
    main()
