"""``python -m tests.fuzz``: fuzz the targets, and print the number of inputs of each.

Exits with 1 if anything was found; the inputs are then in ``tests/fuzz/corpus/``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.fuzz.harness import SEED, Tally, fuzz, keep, smaller
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

_PART = 500  # inputs of one child


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="names, or parts of names (default: all)")
    parser.add_argument("--inputs", type=int, default=100_000, help="in total (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="another one gives other inputs")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--keep", action="store_true", help="write what is found to tests/fuzz/corpus")
    options = parser.parse_args(arguments)
    chosen = [
        one for one in TARGETS if not options.targets or any(part in one.name for part in options.targets)
    ]
    started = time.monotonic()
    tallies = _run(chosen, options.inputs, options.seed, options.jobs)
    _print(tallies, time.monotonic() - started)
    found = [finding for tally in tallies for finding in tally.findings.values()]
    by_name = {one.name: one for one in TARGETS}
    for finding in found:
        print(f"\n{finding.target}: {finding.kind} {finding.where}\n  {finding.data[:200]!r}")
        if (
            options.keep
            and finding.kind not in {"hang", "slow", "memory"}
            and not finding.kind.startswith("exit")
        ):
            with tempfile.TemporaryDirectory() as folder:
                print(f"  {keep(finding, smaller(by_name[finding.target], finding, Path(folder)))}")
    return 1 if found else 0


def _run(targets: list[Target], inputs: int, seed: int, jobs: int) -> list[Tally]:
    """Return the tallies of *targets*, which share *inputs* by their weights."""
    whole = sum(one.weight for one in targets)
    parts = []
    for target in targets:
        count = round(inputs * target.weight / whole / 1.1)  # hypothesis adds a tenth
        parts += [(target.name, range(at, min(at + _PART, count)), seed) for at in range(0, count, _PART)]
    totals = {target.name: Tally(target.name) for target in targets}
    with ProcessPoolExecutor(jobs) as pool:
        for tally in pool.map(_fuzz_named, *zip(*parts, strict=True)):
            total = totals[tally.target]
            total.inputs += tally.inputs
            total.refused += tally.refused
            total.slowest = max(total.slowest, tally.slowest)
            total.memory = max(total.memory, tally.memory)
            total.findings = {**tally.findings, **total.findings}
    return list(totals.values())


def _fuzz_named(name: str, places: range, seed: int) -> Tally:
    return fuzz(next(one for one in TARGETS if one.name == name), places, seed)


def _print(tallies: list[Tally], seconds: float) -> None:
    print(f"{'parser':32} {'inputs':>8} {'refused':>8} {'slowest':>9} {'memory':>8} {'found':>6}")
    for tally in tallies:
        print(
            f"{tally.target:32} {tally.inputs:8} {tally.refused:8} {tally.slowest:8.2f}s"
            f" {tally.memory >> 20:5} MB {len(tally.findings):6}"
        )
    inputs, found = sum(one.inputs for one in tallies), sum(len(one.findings) for one in tallies)
    print(f"{len(tallies)} parsers, {inputs} inputs in {seconds:.0f} s, {found} findings")


if __name__ == "__main__":
    sys.exit(main())
