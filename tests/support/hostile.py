"""An installed environment to attack, and the digest that shows whether it changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colablock.errors import ExitCode
from tests.support.paths import ROOT
from tests.support.runtime import Stub, Venv
from tests.support.timing import PATIENCE
from tests.support.trees import tree_digest
from tests.support.warm import run_warm
from tests.support.world import Done

__all__ = ["INTO", "STANDING", "Target", "make_target", "refused"]

INTO = ("kernel", "env")  # an installed environment changes, or a new one is built
STANDING = (
    Stub(name="standing", version="1.0", files={"standing/data.txt": "d", "standing/sub/__init__.py": ""}),
    Stub(name="other", version="1.0", files={"../../../bin/other": "#!python\n"}),
)
_MATRIX = """\
schema = 1
name = "tiny"
[packages]
{packages}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An environment with two distributions, an empty home, and the folder *wheels* to install from."""

    folder: Path
    venv: Venv

    @property
    def wheels(self) -> Path:
        return self.folder / "wheels"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def write_matrix(self, *names: str, more: str = "") -> Path:
        """Write the matrix ``tiny.toml``, which asks for *names* in any version."""
        path = self.folder / "tiny.toml"
        lines = "\n".join(f'{name} = ""' for name in names)
        path.write_text(_MATRIX.format(packages=lines) + more, encoding="utf-8")
        return path

    def run(self, *argv: str, **more: str) -> Done:
        """Run the command line in a process of its own, 80 columns wide and without colours."""
        environ = {
            **os.environ,
            "COLABLOCK_HOME": str(self.home),
            "COLABLOCK_CACHE_DIR": str(self.folder / "cache"),
            "COLUMNS": "80",
            "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }
        code, out, err = run_warm(argv, environ, self.folder, timeout=PATIENCE)
        return Done(code=code, out=out, err=err)

    def apply(self, into: str, *more: str) -> Done:
        """Apply ``tiny.toml`` from the folder of wheels alone."""
        links = ("--find-links", str(self.wheels), "--offline")
        return self.run("apply", "tiny.toml", "--into", into, "--python", self.venv.python, *links, *more)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Expect the same environment after the block, and no new one in the home."""
        before = tree_digest(self.venv.folder)
        yield
        assert tree_digest(self.venv.folder) == before
        envs = self.home / "envs"
        assert [path for path in envs.glob("*") if not path.name.startswith(".")] == []


def make_target(folder: Path, stubs: Sequence[Stub] = STANDING) -> Target:
    """Make an environment with *stubs* in *folder*, and an empty folder of wheels."""
    target = Target(folder=folder, venv=Venv.make(folder / "venv", *stubs))
    target.wheels.mkdir()
    return target


def refused(done: Done, *words: str) -> None:
    """Expect a refusal that says *words* and no bug: exit code 1 or 2, one error, no traceback."""
    said = " ".join(re.sub(r" +\[[a-z-]+\]$", "", done.err, flags=re.MULTILINE).split())
    assert done.code in (ExitCode.UNMET, ExitCode.USAGE), said
    assert "Traceback" not in said
    for word in words:
        assert word in said, said
