"""What is compared: the commands of colablock, and those of other tools that do the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uv

from colablock.runtimes.catalog import recorded_distributions
from tests.support.runtime import build_runtime, find_python
from tests.support.wheels import make_wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MATRIX = "qlora-2026"
RUNTIME = "colab-2026.08-gpu"
RUNTIME_PYTHON = "3.13"
VARIANT = ("--variant", "cuda")
#: A stack that moves much of an image.  Its lock is the shipped one, so it needs a real index.
HEAVY = ("qlora-2024", "colab-2026.07-gpu", "3.12")
FILES = 150_000  # that the RECORDs of an image list
BODY = "A paragraph of the description of a project, of which real ones have a hundred.\n" * 100
HERE = ("--python", sys.executable)
UNPROVEN = (
    "schema = 1",
    'name = "again"',
    f'extends = "{MATRIX}"',
    "[verify]",
    "imports = []",
    "commands = []",
    "capabilities = []",
)
Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to do it: commands that are timed together, and folders that are taken away before."""

    label: str
    commands: tuple[Command, ...]
    forget: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Our side beside another's.  *aim* is what the ratio should not exceed, *limit* our seconds."""

    about: str
    ours: Side
    theirs: Side
    aim: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where the contests are held: a scratch folder, an index and clean variables."""

    folder: Path
    index: str
    environ: Mapping[str, str] = field(default_factory=dict)
    is_real: bool = False  # the index is a real one

    def colablock(self, *words: str | Path, index: bool = True) -> Command:
        """Return a command of ours."""
        asked = ("--default-index", self.index) if index else ()
        return (sys.executable, "-m", "colablock", *map(str, words), "--quiet", *asked)

    def uv(self, *words: str | Path, cache: str = "uv-cache") -> Command:
        """Return a command of uv's, with a cache of its own."""
        return (uv.find_uv_bin(), *map(str, words), "--quiet", "--cache-dir", str(self.folder / cache))

    def run(self, command: Command) -> str:
        """Run *command* to its end and return what it says.  Raises RuntimeError where it fails."""
        done = subprocess.run(
            command, env=dict(self.environ), cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            message = f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}{done.stderr}"
            raise RuntimeError(message)
        return done.stdout

    def write(self, name: str, lines: Sequence[str]) -> Path:
        """Write a file of lines and return its path."""
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def stand_in(self, name: str, runtime: str = RUNTIME, short: str = RUNTIME_PYTHON) -> Path:
        """Return the interpreter of a new stand-in of *runtime*: its distributions, of one line each."""
        python = find_python(short)
        if python is None:
            message = f"there is no Python {short} here, which {runtime} has"
            raise RuntimeError(message)
        build_runtime(runtime, self.folder / name, python)
        return self.folder / name / "bin" / "python"


def plan_contests(ground: Ground) -> Iterator[Contest]:
    """Yield the plans over a runtime that stands, beside a dry run of the pins that come out."""
    python = ground.stand_in("planned")
    weigh(python)
    ours = ground.colablock("plan", MATRIX, *VARIANT, "--python", python)
    # A rebuilt wheel is in no index.
    pins = [pin for pin in planned_pins(json.loads(ground.run((*ours, "--json")))) if "+colablock" not in pin]
    theirs = ground.uv(
        *("pip", "install", "--dry-run", "--python", python, "--index-url", ground.index),
        *("--requirements", ground.write("planned.txt", pins)),
    )
    lock = runtime_lock(ground, pins)
    locked = (*ours, "--lock", str(lock), "--find-links", str(ground.folder / "wheels"))
    if planned_pins(json.loads(ground.run((*locked, "--json")))) != pins:
        message = "the plan of the lock is another one"
        raise RuntimeError(message)
    settle(ground, theirs)
    for about, command, aim in (("lock at hand", locked, 1.0), ("without a lock", ours, None)):
        yield Contest(
            about=f"plan over 703 distributions, {about}",
            ours=Side(label="colablock plan", commands=(command,)),
            theirs=Side(label="uv pip install --dry-run", commands=(theirs,)),
            aim=aim,
        )
    if ground.is_real:
        yield heavy_contest(ground)


def heavy_contest(ground: Ground) -> Contest:
    """Return the plan of a stack that moves much, from its shipped lock."""
    matrix, runtime, short = HEAVY
    python = ground.stand_in("heavy", runtime, short)
    weigh(python)
    ours = ground.colablock("plan", matrix, "--into", "kernel", "--python", python, index=False)
    # A rebuilt wheel is in no index.
    pins = [pin for pin in planned_pins(json.loads(ground.run((*ours, "--json")))) if "+colablock" not in pin]
    theirs = ground.uv(
        *("pip", "install", "--dry-run", "--python", python, "--index-url", ground.index),
        *("--requirements", ground.write("heavy.txt", pins)),
    )
    settle(ground, theirs)
    return Contest(
        about=f"plan of {matrix} over {runtime}, lock at hand",
        ours=Side(label="colablock plan", commands=(ours,)),
        theirs=Side(label="uv pip install --dry-run", commands=(theirs,)),
        aim=1.0,
    )


def settle(ground: Ground, theirs: Command) -> None:
    """Wait until an environment is older than what the clock of a file system tells apart.

    Before, colablock does not keep what it has read of it.  uv's first call writes a file into it.
    """
    ground.run(theirs)
    time.sleep(3)


def weigh(python: Path) -> None:
    """Give a stand-in the bodies of METADATA and the rows of RECORD that an image has.

    Some distributions have thousands of files, most have few.  The files are not there.
    """
    infos = sorted(python.parents[1].glob("lib/python*/site-packages/*.dist-info"))
    shares = [1 / (place + 5) for place in range(len(infos))]
    for info, share in zip(infos, shares, strict=True):
        name, number = info.name.partition("-")[0], round(FILES * share / sum(shares))
        digest = "sha256=c9lbPRbeqDmzKyUhG0a7z3n5DqdRi7nQ0dnQvHrkxyz"
        rows = (
            f"{name}/part_{row % 40}/module_{row}.py,{digest},{row * 37 % 90_000}\n" for row in range(number)
        )
        with (info / "RECORD").open("a", encoding="utf-8") as record:
            record.writelines(rows)
        with (info / "METADATA").open("a", encoding="utf-8") as metadata:
            metadata.write(f"\n{BODY}")


def runtime_lock(ground: Ground, pins: Sequence[str]) -> Path:
    """Return a lock of *pins*, made with wheels of what the runtime has and the index may lack."""
    wheels, wanted = ground.folder / "wheels", set(pins)
    for item in recorded_distributions(RUNTIME):
        there = item.installed
        if f"{there.name}=={there.version}" in wanted:
            make_wheel(wheels, item.spelled, there.version, requires=there.requires, extras=there.extras)
    path = ground.folder / "pylock.planned.toml"
    where = ("--python-version", RUNTIME_PYTHON, "--platform", "manylinux_2_35_x86_64")
    asked = (word for pin in pins for word in ("--with", pin))
    ground.run(
        ground.colablock("lock", MATRIX, *VARIANT, *where, "--find-links", wheels, "--output", path, *asked)
    )
    return path


def again_contests(ground: Ground) -> Iterator[Contest]:
    """Yield a second apply where the first one holds, beside an install of what is already there."""
    python = ground.stand_in("applied")
    matrix = ground.write("again.toml", UNPROVEN)  # the stand-in's stubs would pass no proof
    ours = ground.colablock("apply", matrix, *VARIANT, "--python", python, "--yes")
    told = json.loads(ground.run((*ours, "--json")))
    pins = ground.write("applied.txt", planned_pins(told["plan"]))
    theirs = ground.uv("pip", "install", "--python", python, "-r", pins, "--index-url", ground.index)
    yield Contest(
        about="apply again, nothing to do",
        ours=Side(label="colablock apply", commands=(ours,)),
        theirs=Side(label="uv pip install", commands=(theirs,)),
        limit=0.3,
    )


def apply_contests(ground: Ground) -> Iterator[Contest]:
    """Yield a new environment of the wheels of one lock, with nothing to prove, cold and warm."""
    lock = own_lock(ground)
    pins = [f"{row['name']}=={row['version']}" for row in tomllib.loads(lock.read_text("utf-8"))["packages"]]
    lines = ["schema = 1", 'name = "unproven"', "requirements = [", *(f'  "{pin}",' for pin in pins), "]"]
    matrix = ground.write("unproven.toml", lines)
    home, theirs = ground.folder / "home", ground.folder / "theirs"
    ours = ground.colablock(
        "apply", matrix, "--into", "env", "--python", sys.executable, "--lock", lock, "--yes"
    )
    make = ground.uv("venv", "--python", sys.executable, theirs)
    fill = ground.uv(
        "pip", "install", "--no-deps", "--python", theirs, "-r", lock, "--index-url", ground.index
    )
    caches = {"cold": (ground.folder / "cache", ground.folder / "uv-cache"), "warm": ()}
    for state, aim in (("cold", 1.05), ("warm", 1.3)):
        yield Contest(
            about=f"apply of {len(pins)} wheels, no proofs, {state} caches",
            ours=Side(label="colablock apply", commands=(ours,), forget=(home, *caches[state])),
            theirs=Side(
                label="uv venv + uv pip install", commands=(make, fill), forget=(theirs, *caches[state])
            ),
            aim=aim,
        )


def lock_contests(ground: Ground) -> Iterator[Contest]:
    """Yield a lock from nothing, beside uv's and pip-tools' of the same requirements, cold and warm."""
    asked = ground.run(ground.colablock("plan", MATRIX, *VARIANT, "--into", "env", *HERE, "--json"))
    wanted = ground.write("wanted.in", json.loads(asked)["requirements"])
    output = ground.folder / "pylock.lock.toml"
    ours = ground.colablock("lock", MATRIX, *VARIANT, "--output", output)
    uvs = ground.uv(
        *("pip", "compile", wanted, "--python", sys.executable, "--only-binary", ":all:", "--no-header"),
        *("--format", "pylock.toml", "--index-url", ground.index, "--output-file"),
        ground.folder / "pylock.uv.toml",
    )
    pip_cache = ground.folder / "pip-cache"
    pip_tools = (
        *(sys.executable, "-m", "piptools", "compile", str(wanted), "--quiet", "--rebuild"),
        *("--cache-dir", str(pip_cache / "pip-tools"), "--index-url", ground.index, "--strip-extras"),
        *("--output-file", str(ground.folder / "pip-compiled.txt"), "--pip-args"),
        f"--only-binary :all: --cache-dir {pip_cache}",
    )
    caches = (ground.folder / "cache", ground.folder / "uv-cache", pip_cache)
    for state, aim in (("cold", 2.0), ("warm", 1.0)):
        forget = caches if state == "cold" else ()
        mine = Side(label="colablock lock", commands=(ours,), forget=forget)
        others = (("uv pip compile", uvs, aim), ("pip-compile", pip_tools, 0.1))
        for label, command, wish in others:
            yield Contest(
                about=f"lock, {state} cache",
                ours=mine,
                theirs=Side(label=label, commands=(command,), forget=forget),
                aim=wish,
            )
    pdm = pdm_lock(ground, wanted)
    if pdm is not None:
        yield Contest(
            about="lock, warm cache",
            ours=Side(label="colablock lock", commands=(ours,)),
            theirs=Side(label="pdm lock", commands=(pdm,)),
        )


def pdm_lock(ground: Ground, wanted: Path) -> Command | None:
    """Return the lock of the same requirements by PDM; None if PDM is not installed."""
    pdm = shutil.which("pdm")
    if pdm is None:
        return None
    project, short = ground.folder / "pdm", f"{sys.version_info[0]}.{sys.version_info[1]}"
    project.mkdir()
    lines = [
        "[project]",
        'name = "x"',
        'version = "0"',
        f'requires-python = "=={short}.*"',
        "dependencies = [",
    ]
    lines += [f'  "{line}",' for line in wanted.read_text("utf-8").splitlines()]
    lines += ["]", "[[tool.pdm.source]]", 'name = "pypi"', f'url = "{ground.index}"']
    ground.write("pdm/pyproject.toml", lines)
    ground.write("pdm/.pdm-python", [sys.executable])
    target = ("--python", f"=={short}.*", "--platform", "manylinux_2_35_x86_64")
    return (pdm, "lock", "--project", str(project), "--quiet", *target)


CONTESTS: Mapping[str, Callable[[Ground], Iterator[Contest]]] = {
    "plan": plan_contests,
    "again": again_contests,
    "apply": apply_contests,
    "lock": lock_contests,
}


def planned_pins(plan: Mapping[str, list[Mapping[str, str]]]) -> list[str]:
    """Return what stands after a plan, as requirements."""
    rows = [*plan["kept"], *(step for step in plan["steps"] if step["version"])]
    return sorted(f"{row['name']}=={row['version']}" for row in rows)


def own_lock(ground: Ground) -> Path:
    """Return a lock of the matrix for this very Python."""
    path = ground.folder / "pylock.own.toml"
    ground.run(ground.colablock("lock", MATRIX, *VARIANT, "--output", path))
    return path
