"""A really installed environment of many distributions, and commands that are killed at random times."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import uv

from tests.support.machine import Ended, Machine
from tests.support.runtime import make_venv
from tests.support.server import IndexServer
from tests.support.trees import installed_listing, timeless
from tests.support.wheels import make_wheel

__all__ = ["JOBS", "Killing", "Outcome", "make_wheels"]

JOBS = ("apply", "rollback", "env", "lock", "cache")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)  # lack of memory, the end of a job, of a terminal
MATRIX = """\
schema = 1
name = "{name}"
summary = "{name}"
[packages]
{packages}
[verify]
imports = ["pkg_00"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one kill went: what was killed when, and everything that is wrong afterwards."""

    job: str
    after: float  # seconds
    of: float  # seconds that the command takes without a kill
    alone: bool  # only the command, not the processes that it had started
    state: str
    wrong: tuple[str, ...] = ()


def make_wheels(folder: Path, count: int) -> None:
    """Write two versions of *count* projects, each of which requires the one before."""
    for number in range(count):
        for version in ("1.0", "2.0"):
            name, package = f"pkg-{number:02}", f"pkg_{number:02}"
            same = {f"{package}/part_{part}.py": f"part = {part}\n" for part in range(6)}
            own = {
                f"{package}/__init__.py": f"version = '{version}'\n\ndef main():\n    print(version)\n",
                f"{package}/only_{version[0]}/deep/module.py": "x = 1\n",
                f"many_shared/{package}.py": f"version = '{version}'\n",
            }
            make_wheel(
                folder,
                name,
                version,
                modules={**same, **own},
                requires=[f"pkg-{number - 1:02}"] if number else [],
                scripts={f"run-{number:02}": f"{package}:main"},
                data_files={f"data/share/many/{number:02}-{version}.txt": "data\n"},
            )


@dataclass
class Killing:
    """The environment in *folder*/env has version 1.0 of all *count* ("old") or 2.0 ("new")."""

    folder: Path
    count: int
    server: IndexServer
    random: random.Random
    digests: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine = Machine(self.folder)

    @property
    def env(self) -> Path:
        return self.folder / "env"

    def prepare(self) -> None:
        """Install the old versions with uv, measure every command, and note both states."""
        for name in ("user", "tmp", "work/matrices"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        wheels = self.folder / "wheels"
        names = [f"pkg-{number:02}" for number in range(self.count)]
        many = "\n".join(f'{name} = "==2.0"' for name in names)
        for name, packages in (("many", many), ("nothing", 'pkg-00 = ">=1"')):
            text = MATRIX.format(name=name, packages=packages)
            (self.folder / "work" / "matrices" / f"{name}.toml").write_text(text)
        make_venv(self.env, sys.executable)
        command = [uv.find_uv_bin(), "pip", "install", "--offline", "--no-index", "--find-links", str(wheels)]
        subprocess.run(
            [*command, "--python", self.machine.python, *(f"{name}==1.0" for name in names)],
            env=self._environ(),
            check=True,
            capture_output=True,
        )
        (self.env / ".lock").unlink(missing_ok=True)
        self._checked("look")
        self.digests["old"] = self._digest()
        for job in JOBS:
            self._forget(job)
            begun = time.monotonic()
            self._checked(job)
            self.seconds[job] = time.monotonic() - begun
            if job == "apply":
                self.digests["new"] = self._digest()
        assert self._digest() == self.digests["old"]

    def kill(self, job: str) -> Outcome:
        """Kill *job* at a random time, let the next call recover, and check what is there."""
        alone = self.random.random() < 0.5
        after = next(filter(None, iter(lambda: self._killed(job, alone=alone), 0.0)))
        wrong: list[str] = []
        for one in ("look", *([job] if job in ("env", "lock", "cache") else [])):
            done = self._run(one)
            if done.code != 0:
                wrong.append(f"`{one}` ended with {done.code}: {done.text[-600:]}")
        digest = self._digest()
        state = next((name for name, known in self.digests.items() if known == digest), "")
        if not state:
            wrong.append("the tree is neither the one before nor the one after")
        wrong += self._left()
        return Outcome(
            job=job, after=after, of=self.seconds[job], alone=alone, state=state, wrong=tuple(wrong)
        )

    def _killed(self, job: str, *, alone: bool) -> float | None:
        """Return after how many seconds *job* was killed; None if it had ended before."""
        if job in ("apply", "rollback"):
            self._go_to("old" if job == "apply" else "new")
        self._forget(job)
        begun = time.monotonic()
        process = subprocess.Popen(
            self._command(job),
            env=self._environ(),
            cwd=self.folder / "work",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(self.random.uniform(0, self.seconds[job]))
        except subprocess.TimeoutExpired:
            (os.kill if alone else os.killpg)(process.pid, self.random.choice(SIGNALS))
            process.wait()
            return time.monotonic() - begun
        self.seconds[job] = time.monotonic() - begun  # the machine has less to do than before
        return None

    def _environ(self) -> dict[str, str]:
        ours = {"COLABLOCK_DEFAULT_INDEX": self.server.url, "NO_PROXY": "127.0.0.1"}
        return self.machine.environ(**ours, PYTHONFAULTHANDLER="1")

    def _command(self, job: str) -> list[str]:
        kernel = ["--python", self.machine.python]
        command = {
            "look": ["apply", "nothing", "--into", "kernel", "--yes", *kernel],
            "apply": ["apply", "many", "--into", "kernel", "--yes", *kernel],
            "rollback": ["rollback", "--yes", *kernel],
            "env": ["apply", "many", "--into", "env", "--yes"],
            "lock": ["lock", "many", "-o", "matrices/pylock.other.toml"],
            "cache": ["plan", "many", *kernel],
        }[job]
        return [sys.executable, "-m", "colablock", *command]

    def _run(self, job: str) -> Ended:
        return self.machine.run(*self._command(job)[3:], environ=self._environ())

    def _checked(self, job: str) -> None:
        done = self._run(job)
        assert done.code == 0, done

    def _go_to(self, state: str) -> None:
        if self._digest() != self.digests[state]:
            self._checked("apply" if state == "new" else "rollback")
        assert self._digest() == self.digests[state]

    def _forget(self, job: str) -> None:
        """Remove what *job* makes, so that it has everything to do."""
        for name in {"env": ("home/envs", "home/current", "home/applied"), "cache": ("cache",)}.get(job, ()):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if job == "lock":
            (self.folder / "work" / "matrices" / "pylock.other.toml").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def _digest(self) -> str:
        """Return the SHA-256 of every path of the environment: content, mode and link, without our state."""
        found = {
            path: (kind, mode, timeless(path, content) if isinstance(content, bytes) else content)
            for path, (kind, mode, content) in installed_listing(self.env).items()
        }
        return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()

    def _left(self) -> list[str]:
        """Return everything of ours that neither `history` nor `cache` nor `env list` lists."""
        home, cache, state = self.folder / "home", self.folder / "cache", self.env / ".colablock"
        # `tempfile.gettempdir` tries the folder with a file of its own, "blat", which a kill leaves there.
        tries = (b"", b"blat")
        tmp = (self.folder / "tmp").iterdir()
        left = [path for path in tmp if not (path.is_file() and path.read_bytes() in tries)]
        left += (cache / "unfinished").glob("*")
        left += [path for path in self.folder.rglob(".new-*") if path.exists()]
        left += home.glob("envs/.*")
        left += [path for path in home.glob("envs/*") if not (path / "colablock.json").is_file()]
        listed = ("applied", "current", "envs", "runs", "undone")
        left += [path for path in home.glob("*") if path.name not in listed]
        left += [path for path in state.glob("*") if path.name != "changes"]
        left += [path for path in state.glob("changes/*") if not (path / "record.json").is_file()]
        matrices = {"many.toml", "nothing.toml", "pylock.other.toml"}
        left += [
            path for path in (self.folder / "work").rglob("*") if path.is_file() and path.name not in matrices
        ]
        return [f"left: {path.relative_to(self.folder)}" for path in left]
