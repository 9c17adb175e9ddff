"""Install a recorded runtime for real, and take matrices there and back.

    python tools/real_image.py LABEL --into FOLDER [--python EXE] [--matrix NAME ...]
        [--kernel] [--imports]

The distributions of the runtime ``colab-LABEL-gpu`` are installed into a
virtual environment in FOLDER, without their dependencies, as ``pip freeze``
lists them: about 600 distributions and 9 GB.  Left out is what the index has
no wheel of.  A build with a local label is replaced by the plain release,
and the CUDA libraries are those which plain torch requires.  An environment
that is already in FOLDER is used again.

Then each matrix is planned, applied and verified there.  The packages in
``USES`` are used if the plan keeps or moves them, and must be gone if the
plan removes them.  The change is rolled back, and the files of the
environment are compared with those before: paths, contents, modes and links.
``--imports`` also imports every top-level module before and after, and lists
those that fail only after.

The exit code is 1 if anything differs from what the plan said.
"""

# A script, no package.

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colablock._common.fs import file_digest
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment
from colablock.environment.requirements import parse_requirement
from colablock.environment.snapshot import is_version, snapshot_of
from colablock.errors import ColablockError
from colablock.index.candidates import Candidate
from colablock.index.evaluator import Policy
from colablock.index.finder import IndexSource
from colablock.network.fetcher import Fetcher
from colablock.network.settings import read_settings
from colablock.runtimes.catalog import load_recording

MATRICES = ("qlora-2024", "qlora-2025", "qlora-2025-kernel", "qlora-2026", "qlora-2026-axolotl")
#: What shows that a package works: code per distribution.
USES = {
    "tensorflow": "import tensorflow as tf; assert float(tf.reduce_sum(tf.ones((2, 3)))) == 6",
    "torchvision": "import torch, torchvision; b = torch.tensor([[0.0, 0, 1, 1]]); "
    "assert torchvision.ops.nms(b, torch.ones(1), 0.5).tolist() == [0]",
    "opencv-python": "import cv2, numpy; "
    "assert cv2.resize(numpy.zeros((4, 4), 'uint8'), (2, 2)).shape == (2, 2)",
    "timm": "import timm; timm.create_model('resnet18')",
}
#: An import may ask for a card, a browser or the network; what fails for that fails before and after.
_SECONDS = 180
_WORKERS = 16  # threads; most of them wait for the network


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The image before any change: its files, which of USES work, and which imports fail (if asked)."""

    tree: Mapping[str, str]
    usable: Sequence[str]
    failing: Mapping[str, str] | None


def candidates_of(label: str, environment: Environment) -> tuple[list[Candidate], list[str]]:
    """Return the wheels that the freeze of *label* names, and a line for each that there is none of."""
    wanted: dict[str, str | None] = {}
    for item in load_recording(f"colab-{label}-gpu").distributions:
        version = item.installed.version
        plain = not item.url and is_version(version)
        wanted[item.installed.name] = Version(version).public if plain else None
    policy = Policy(environment=environment)
    settings = read_settings(os.environ)
    source = IndexSource(fetcher=Fetcher(os.environ), policy=policy, default=(settings.default_index,))
    torch = _find(source, "torch", wanted.get("torch"))
    if torch is not None:
        wanted |= _cuda_libraries(source, torch, environment)
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        found = list(pool.map(lambda pair: _find(source, *pair), wanted.items()))
    left_out = [
        f"{name}=={version}"
        for (name, version), one in zip(wanted.items(), found, strict=True)
        if one is None
    ]
    return [one for one in found if one is not None], left_out


def _find(source: IndexSource, name: str, version: str | None) -> Candidate | None:
    if version is None:
        return None
    judged = source.judge(canonicalize_name(name))
    return next((one for one in judged.candidates if one.version == Version(version) and one.file), None)


def _cuda_libraries(source: IndexSource, torch: Candidate, environment: Environment) -> dict[str, str | None]:
    """Return the exact pins of a plain torch: its libraries are of one CUDA and work only together."""
    pins: dict[str, str | None] = {}
    for line in source.metadata(torch).requires:
        requirement = parse_requirement(str(line))
        if requirement is None or (
            requirement.marker and not requirement.marker.evaluate(environment.markers)
        ):
            continue
        exact = [part.version for part in requirement.specifier if part.operator == "=="]
        if exact:
            pins[canonicalize_name(requirement.name)] = exact[0]
    return pins


def build(label: str, folder: Path, base: str) -> Path:
    """Create the environment in *folder*, and return its interpreter."""
    python = folder / "image" / "bin" / "python"
    done = folder / "image.txt"
    uv = shutil.which("uv") or "uv"
    if done.exists():
        return python
    shutil.rmtree(folder / "image", ignore_errors=True)
    subprocess.run([uv, "venv", "-q", "--python", base, folder / "image"], check=True)
    environment = snapshot_of(python, environ=os.environ).environment
    candidates, left_out = candidates_of(label, environment)
    lines = "".join(f"{one.name}=={one.version}\n" for one in candidates)
    listed = folder / "requirements.txt"
    listed.write_text(lines)
    print(f"{len(candidates)} distributions; no wheel of {len(left_out)}: {', '.join(left_out)}", flush=True)
    install = [uv, "pip", "install", "-q", "--no-cache", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*install, "--python", python, "-r", listed], check=True)
    done.write_text(lines)
    return python


def tree(folder: Path) -> dict[str, str]:
    """Return each path under *folder* with its kind, mode, and the digest of its contents."""
    paths = [Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    with ThreadPoolExecutor() as pool:
        return dict(
            zip((str(path.relative_to(folder)) for path in paths), pool.map(_state, paths), strict=True)
        )


def _state(path: Path) -> str:
    status = path.lstat()
    mode = oct(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return f"{mode} -> {path.readlink()}"
    if stat.S_ISREG(status.st_mode):
        return f"{mode} {file_digest(path)}"
    return mode


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return a line for each path that was added, removed or changed."""
    added = [f"added: {path}" for path in sorted(after.keys() - before.keys())]
    removed = [f"removed: {path}" for path in sorted(before.keys() - after.keys())]
    return (
        added
        + removed
        + [f"changed: {path}" for path in sorted(before) if after.get(path, "") not in ("", before[path])]
    )


def failing_imports(python: Path) -> dict[str, str]:
    """Return the top-level modules whose import fails, each with the last line of its error."""
    names = "import importlib.metadata as m; print(*sorted(m.packages_distributions()), sep='\\n')"
    listed = _python(python, names).stdout.split()
    modules = [name for name in listed if name.isidentifier() and not name.startswith("_")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda name: _python(python, f"import {name}"), modules)
        return {
            name: (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            for name, done in zip(modules, results, strict=True)
            if done.returncode
        }


def _python(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-B", "-c", code]
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no end within {_SECONDS} s")


def colablock(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Run one command and print how it ended.  Return its exit code and its JSON."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "colablock", *map(str, arguments), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = json.loads(done.stdout) if done.stdout.lstrip().startswith("{") else {}
    print(f"  {' '.join(command[3:])}: exit {done.returncode}, {time.monotonic() - begun:.1f} s", flush=True)
    if done.returncode:
        print("   ", json.dumps(said)[:3000], done.stderr[-3000:], flush=True)
    return done.returncode, said


def unkept_promises(python: Path, steps: Mapping[str, str], at_first: Iterable[str]) -> list[str]:
    """Return a line for each of USES that is not as the plan said."""
    told = []
    for name in at_first:
        done = _python(python, USES[name])
        if (steps.get(name) == "remove") != bool(done.returncode):
            last = (done.stderr.strip().splitlines() or ["no error"])[-1]
            told.append(f"{name}: {steps.get(name, 'keep')}, but {last}")
    return told


def there_and_back(python: Path, matrix: str, into: Sequence[str], seen: Before) -> list[str]:
    """Apply *matrix* as its plan says, undo that, and return what was not as the plan said."""
    print(matrix, flush=True)
    of_image = ("--python", python)
    code, plan = colablock("plan", matrix, *of_image, *into)
    if code:
        return ["there is no plan"]
    steps = {step["name"]: step["action"] for step in plan["steps"]}
    kernel = plan["target"] == "kernel"
    print(f"  into the {plan['target']}: {len(steps)} steps", flush=True)
    commands: list[tuple[str | Path, ...]] = [
        ("apply", matrix, *of_image, *into, "--yes"),
        ("verify", matrix),
    ]
    faults = [f"{command[0]} failed" for command in commands if colablock(*command)[0]]
    faults += unkept_promises(python, steps if kernel else {}, seen.usable)
    if seen.failing is not None:
        failing = failing_imports(python)
        lines = [f"{name}: {failing[name]}" for name in sorted(failing.keys() - seen.failing.keys())]
        print(f"  imports that fail only now: {len(lines)}", *lines, sep="\n    ", flush=True)
    undo: tuple[str | Path, ...] = ("rollback", *of_image, "--yes") if kernel else ("env", "remove", matrix)
    if colablock(*undo)[0]:
        faults.append(f"{undo[0]} failed")
    _await_deletion(python.parent.parent / ".colablock")
    left = differences(seen.tree, tree(python.parent.parent))
    print(f"  {len(left)} differences in {len(seen.tree)} paths", *left[:20], sep="\n    ", flush=True)
    return faults + left[:20]


def _await_deletion(folder: Path) -> None:
    """Wait for the process that deletes what a command has left there."""
    latest = time.monotonic() + _SECONDS
    while folder.exists() and time.monotonic() < latest:
        time.sleep(0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, build the image, and take each matrix there and back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("label", help="of a recorded Colab runtime, for example 2025.09")
    add("--into", type=Path, required=True, metavar="FOLDER")
    add("--python", metavar="EXE", help="interpreter to build with; default: the version that is recorded")
    add("--matrix", action="append", metavar="NAME", help="repeatable; default: every QLoRA matrix")
    add("--kernel", action="store_true", help="change the image even where the plan would not")
    add("--imports", action="store_true", help="import every top-level module before and after")
    given = parser.parse_args(arguments)
    given.into.mkdir(parents=True, exist_ok=True)
    try:
        recorded = load_recording(f"colab-{given.label}-gpu").about
        base = given.python or recorded.python_version.rpartition(".")[0]
        python = build(given.label, given.into.absolute(), base)
    except ColablockError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    seen = Before(
        tree=tree(python.parent.parent),
        usable=[name for name, code in USES.items() if not _python(python, code).returncode],
        failing=failing_imports(python) if given.imports else None,
    )
    print(f"{len(seen.tree)} paths; in use: {', '.join(seen.usable)}", flush=True)
    if seen.failing is not None:
        print(f"imports that fail: {len(seen.failing)}")
    into = ("--into", "kernel") if given.kernel else ()
    faults = [
        f"{matrix}: {line}"
        for matrix in given.matrix or MATRICES
        for line in there_and_back(python, matrix, into, seen)
    ]
    print(*faults or ["All matrices did what their plans said."], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
