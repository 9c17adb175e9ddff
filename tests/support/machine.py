"""A small machine for hostile tests: a matrix, wheels, an environment, a home, a cache, and every command."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.runtime import Venv
from tests.support.timing import PATIENCE
from tests.support.warm import run_warm
from tests.support.wheels import make_wheel

__all__ = ["NOBODY", "UNPRIVILEGED", "Ended", "Machine", "is_root"]

MATRIX = """\
schema = 1
name = "tiny"
summary = "One package"
[packages]
aaa = ">=1"
[verify]
imports = ["aaa"]
"""
NOBODY = 65534
# Root without the capabilities that ignore permissions: permissions then mean what they mean to everybody.
UNPRIVILEGED = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner", "--inh-caps", "-all")


def is_root() -> bool:
    return os.geteuid() == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A finished command.  *code* is None if it did not end in time."""

    argv: Sequence[str]
    code: int | None
    out: str
    err: str

    @property
    def text(self) -> str:
        """All output on one line, without the references of errors, such as `[invalid-input]`."""
        return " ".join(re.sub(r" \[[a-z-]+\]$", "", self.out + self.err, flags=re.MULTILINE).split())


class Machine:
    """Everything below *folder*.  `prepare` applies the matrix once to the environment `env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def python(self) -> str:
        return str(self.folder / "env" / "bin" / "python")

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def prepare(self) -> Machine:
        """Make all folders and apply the matrix, with a history of one change, a cache, and a run."""
        for name in ("user", "tmp", "links", "no-index", "work/matrices", "home/runs"):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        make_wheel(self.folder / "links", "aaa", "1.0")
        make_wheel(self.folder / "links", "bbb", "1.0")
        (self.work / "matrices" / "tiny.toml").write_text(MATRIX)
        (self.work / "reqs.txt").write_text("aaa==1.0\n")
        Venv.make(self.folder / "env")
        done = self.run(*self.apply)
        assert done.code == 0, done
        run = self.work / "run-1"
        run.mkdir(mode=0o755)
        record = {"id": "run-1", "matrix": "tiny", "runner": "trl", "python": self.python, "lock": "0"}
        more = {"config": {}, "config_digest": "0", "data_digest": "0", "model": "m"}
        (run / "run.json").write_text(json.dumps({**record, **more}))
        (self.folder / "home" / "runs" / "run-1.json").write_text(json.dumps({"folder": str(run)}))
        return self

    def copy(self, folder: Path) -> None:
        """Copy everything to *folder*, for `restore`."""
        shutil.copytree(self.folder, folder, symlinks=True)

    def restore(self, folder: Path) -> None:
        """Return to the state that `copy` has kept in *folder*."""
        for path in [self.folder, *self.folder.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(self.folder)
        shutil.copytree(folder, self.folder, symlinks=True)

    @property
    def sources(self) -> tuple[str, ...]:
        return ("--python", self.python, "--find-links", str(self.folder / "links"))

    @property
    def apply(self) -> tuple[str, ...]:
        return ("apply", "tiny", "--into", "kernel", "--yes", *self.sources)

    @property
    def commands(self) -> list[tuple[str, ...]]:
        """Every command of the command line, with arguments that work here."""
        links, kernel = ("--find-links", str(self.folder / "links")), ("--python", self.python)
        train = ("--runner", "trl", "--model", "/nonexistent/model", "--dataset", "d.jsonl")
        return [
            ("plan", "tiny", *self.sources),
            self.apply,
            (*self.apply, "--with", "bbb"),
            ("apply", "tiny", "--into", "env", "--yes", *links),
            ("run", "tiny", "--", "python", "-c", "print(1)"),
            ("verify", "tiny"),
            ("why", "tiny", "aaa", *self.sources),
            ("train", "tiny", *train),
            ("smoke", "tiny", "--runner", "trl"),
            ("runs", "list"),
            ("runs", "show"),
            ("runs", "follow"),
            ("runs", "stop"),
            ("runs", "plot", "-o", "curve.svg"),
            ("lock", "tiny", *links, "-o", "pylock.out.toml"),
            ("export", "tiny", *links),
            ("export", "tiny", "-o", "out.txt", *links),
            ("check", "tiny"),
            ("rollback", "--yes", *kernel),
            ("history", *kernel),
            ("history", "--drop", *kernel),
            ("env", "list"),
            ("env", "remove", "tiny"),
            ("runtime", "list"),
            ("runtime", "show", "colab-2026.08-gpu"),
            ("runtime", "diff", "colab-2025.09-gpu", "colab-2026.08-gpu"),
            ("runtime", "import", "reqs.txt", "--name", "mine", "--python-version", "3.12"),
            ("runtime", "record", "--name", "here-1"),
            ("new", "other"),
            ("new", "another", "--from-requirements", "reqs.txt"),
            ("schema",),
            ("new-config",),
            ("cache", "dir"),
            ("cache", "info"),
            ("cache", "prune"),
            ("cache", "clean"),
            ("list",),
            ("show", "tiny"),
            ("info",),
        ]

    def environ(self, **more: str) -> dict[str, str]:
        places = {"HOME": "user", "COLABLOCK_HOME": "home", "COLABLOCK_CACHE_DIR": "cache", "TMPDIR": "tmp"}
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYENV_ROOT": os.environ.get("PYENV_ROOT", "/none"),  # whose shims are on PATH
            "COLABLOCK_DEFAULT_INDEX": (self.folder / "no-index").as_uri(),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "NO_PROXY": "*",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "UV_CACHE_DIR": str(self.folder / "uv-cache"),
            **{name: str(self.folder / place) for name, place in places.items()},
            **more,
        }

    def run(
        self,
        *argv: str,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        umask: int | None = None,
        timeout: float = PATIENCE,
    ) -> Ended:
        """Run one command in a process of its own."""
        try:
            code, out, err = run_warm(
                argv,
                self.environ() if environ is None else environ,
                cwd or self.work,
                timeout=timeout,
                umask=umask,
                errors="replace",
            )
        except TimeoutError:
            return Ended(argv=argv, code=None, out="", err="it did not end")
        return Ended(argv=argv, code=code, out=out, err=err)
