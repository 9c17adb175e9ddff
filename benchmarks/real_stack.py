"""Apply a real stack beside uv: the same wheels, the same interpreter, taking turns.

    python -m benchmarks.real_stack LOCK WHEELS [--python PYTHON] [--runs N] [--only WORD] [--output FILE]

LOCK is a pylock.toml of ``qlora-2026`` for PYTHON, and WHEELS a folder with its wheels; neither tool
reaches a network.  ``colablock lock qlora-2026 --variant cpu --output LOCK`` makes the first, and
``colablock bundle`` or ``pip download`` the second.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from benchmarks.bench import Outcome, add_to, as_values, clean, hold, measured_on, table
from benchmarks.contests import MATRIX, UNPROVEN, Contest, Ground, Side

IMPORTS = (
    "import torch, accelerate, peft, bitsandbytes, trl, datasets, transformers.models.auto.modeling_auto"
)
PROVEN = ("schema = 1", 'name = "proven"', f'extends = "{MATRIX}"')


def contests(ground: Ground, lock: Path, wheels: Path, python: str) -> Iterator[Contest]:
    """Yield the applies: unpacked for the first time, from the caches, and with the proofs."""
    home, theirs = ground.folder / "home", ground.folder / "theirs"
    unpacked, uv_cache = ground.folder / "cache" / "unpacked", ground.folder / "uv-cache"
    links = ("--find-links", wheels)
    make = ground.uv("venv", "--python", python, theirs)
    pins = ("-r", pins_of(ground, lock))
    fill = ground.uv("pip", "install", "--no-deps", "--no-index", *links, "--python", theirs, *pins)
    imports = (str(theirs / "bin" / "python"), "-c", IMPORTS)

    def ours(name: str, lines: Sequence[str]) -> tuple[str, ...]:
        matrix = ground.write(name, [line.replace('"again"', '"unproven"') for line in lines])
        asked = ("apply", matrix, "--into", "env", "--variant", "cpu", "--python", python)
        return ground.colablock(*asked, "--lock", lock, "--yes", "--offline", *links, index=False)

    unproven = ours("unproven.toml", UNPROVEN)
    for state, gone, aim in (("to unpack", (unpacked, uv_cache), 1.05), ("in the caches", (), 1.3)):
        yield Contest(
            about=f"apply, no proofs, wheels {state}",
            ours=Side(label="colablock apply", commands=(unproven,), forget=(home, *gone)),
            theirs=Side(label="uv venv + uv pip install", commands=(make, fill), forget=(theirs, *gone)),
            aim=aim,
        )
    yield Contest(
        about="apply with proofs, wheels in the caches",
        ours=Side(label="colablock apply", commands=(ours("proven.toml", PROVEN),), forget=(home,)),
        theirs=Side(label="uv + one import of the stack", commands=(make, fill, imports), forget=(theirs,)),
        aim=1.2,
    )
    yield Contest(
        about="verify",
        ours=Side(label="colablock verify", commands=(ground.colablock("verify", "proven", index=False),)),
        theirs=Side(label="one import of the stack", commands=(imports,)),
        aim=1.2,
    )


def pins_of(ground: Ground, lock: Path) -> Path:
    """Return a requirements file with the pins of *lock*, which uv finds in the folder."""
    packages = tomllib.loads(lock.read_text("utf-8"))["packages"]
    return ground.write("pins.txt", [f"{one['name']}=={one['version']}" for one in packages])


def main() -> int:
    """Hold the contests and print what came out."""
    parser = argparse.ArgumentParser(prog="real_stack", description=__doc__.partition("\n")[0])
    parser.add_argument("lock", type=Path)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter (default: the running one)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="turns that count (default: 3)")
    parser.add_argument("--only", metavar="WORD", default="", help="only contests whose name has WORD")
    parser.add_argument("--output", type=Path, metavar="FILE", help="add them to this file of results")
    args = parser.parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="colablock-bench-") as name:
        folder = Path(name)
        ground = Ground(folder=folder, index="", environ=clean(dict(os.environ), folder))
        for contest in contests(ground, args.lock.resolve(), args.wheels.resolve(), args.python):
            if args.only in contest.about:
                print(f"{contest.about}, beside {contest.theirs.label} ...", file=sys.stderr)
                outcomes.append(hold(contest, ground, args.runs))
                if args.output is not None:
                    values = as_values(outcomes, args.runs, None) | {"on": measured_on()}
                    add_to(args.output, {"real-stack": values})
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
