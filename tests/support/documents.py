"""Pages of the documentation: their blocks, and somebody who follows them word for word.

A block that cannot run has the reason in a comment above it, and one that fails on purpose its exit code::

    <!-- not run: needs two hosts -->
    <!-- exit code: 1 -->

A block of TOML that belongs in a file names it: ``<!-- into: matrices/my-stack.toml -->``.  A block of text
below ``<!-- output -->`` is what the block before it prints; a line ``...`` stands for others.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor import tomli_w
from tests.support.paths import ROOT
from tests.support.runtime import Venv
from tests.support.world import kernel_options, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RUN", "Block", "Reader", "blocks_of", "pages", "shows"]

RUN = ("python", "sh")  # the languages of blocks that somebody runs
_FENCE = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_INTO = re.compile(r"<!-- into: (.+) -->")
_EXIT_CODE = re.compile(r"<!-- exit code: (\d+) -->")
_OUTPUT = "<!-- output -->"
_NUMBER = re.compile(r"\d[\d.,]*( ?(?:bytes|[kMG]B|s|min)\b)?")
_PATIENCE = 300.0  # seconds, on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block.  *not_run* is the reason why nobody can run it here.

    *into* is the file that a block of TOML belongs in, and *is_output* tells that the block before prints it.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    into: str | None
    exit_code: int
    is_output: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return the README and the pages of the documentation, as paths in the repository."""
    found = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        above, language, body = match.groups()
        reason, into, code = (one.search(above) for one in (_NOT_RUN, _INTO, _EXIT_CODE))
        found.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start(2)) + 1,
                language=language,
                text=body,
                not_run=reason[1] if reason else None,
                into=into[1] if into else None,
                exit_code=int(code[1]) if code else 0,
                is_output=_OUTPUT in above,
            )
        )
    return found


def shows(said: str, sample: str) -> bool:
    """Whether *said* has the lines of *sample* in their order, but for sizes and times.

    A line ``...`` of the sample stands for any others.
    """
    said = _measured(f"\n{said}")
    for part in _measured(f"\n{sample}").split("\n...\n"):
        _, found, said = said.partition(f"\n{part.strip(chr(10))}\n")
        if not found:
            return False
        said = f"\n{said}"
    return True


def _measured(text: str) -> str:
    """Return *text* with the same word for every size and time, which differ from machine to machine."""
    return _NUMBER.sub(lambda found: "N" if found[1] else found[0], text)


@dataclass(kw_only=True)
class Reader:
    """Somebody with one shell and one kernel, in *folder* and with the environment of *venv*.

    The shell starts in *shell_folder*.  *instead* has places of other machines, such as ``/content/drive``,
    and the folders here that stand for them.
    """

    venv: Venv
    folder: Path
    shell_folder: Path
    environ: Mapping[str, str]
    instead: Mapping[str, str] = field(default_factory=dict)
    _shell: subprocess.Popen[str] | None = None
    _kernel: Any = None
    _client: Any = None
    _done: int = 0

    def __enter__(self) -> Reader:  # noqa: PYI034  # typing.Self came with 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close_shell()
        if self._kernel is not None:
            self._kernel.__exit__(None, None, None)

    def close_shell(self) -> None:
        """End the shell; the next command has a new one."""
        if self._shell is not None:
            self._shell.kill()
            self._shell.communicate()
            self._shell = None

    def follow(self, block: Block) -> str:
        """Run a block, assert that it ends as it should, and return what it says."""
        if block.into is not None:
            return self._write_into(block.into, block.text)
        return self.run(block.language, block.text, exit_code=block.exit_code, about=str(block))

    def run(self, language: str, text: str, *, exit_code: int = 0, about: str = "") -> str:
        """Run *text* in the shell (``sh``) or as a cell of the kernel (``python``)."""
        for place, here in self.instead.items():
            text = text.replace(place, here)
        code, said = (self._in_shell if language == "sh" else self._in_kernel)(text, exit_code)
        assert code == exit_code, f"{about} ended with {code}:\n{text}\n{said[-6000:]}"
        return said

    def _write_into(self, path: str, text: str) -> str:
        """Replace the keys and tables that *text* has in a TOML file of the shell's folder."""
        file = Path(self.run("sh", "pwd").strip(), path)
        known = {**tomllib.loads(file.read_text()), **tomllib.loads(text)}
        file.write_text(tomli_w.dumps(known))
        return ""

    def _in_shell(self, text: str, expected: int) -> tuple[int, str]:
        if self._shell is None:
            self._shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],  # noqa: S607
                stdin=subprocess.PIPE,
                text=True,
                cwd=self.shell_folder,
                env=dict(self.environ),
            )
        assert self._shell.stdin is not None
        self._done += 1
        script, said, done = (
            self.venv.folder / f"block-{self._done}.{kind}" for kind in ("sh", "out", "code")
        )
        script.write_text(text)
        # A command that fails ends the shell, unless it is the last one of a block that fails on purpose.
        stops = "" if expected else "set -e; "
        line = f"{stops}source {script} </dev/null >{said} 2>&1; code=$?; set +e; echo $code >{done}\n"
        self._shell.stdin.write(line)
        self._shell.stdin.flush()
        deadline = time.monotonic() + _PATIENCE
        while not (done.exists() and done.read_text().endswith("\n")):
            assert time.monotonic() < deadline, f"no end after {_PATIENCE:.0f} s:\n{text}\n{said.read_text()}"
            if (code := self._shell.poll()) is not None:
                return code, said.read_text()
            time.sleep(0.02)
        return int(done.read_text()), said.read_text()

    def _in_kernel(self, text: str, _: int) -> tuple[int, str]:
        nbformat = pytest.importorskip("nbformat")
        if self._client is None:
            nbclient = pytest.importorskip("nbclient")
            manager = pytest.importorskip("jupyter_client").AsyncKernelManager(
                **kernel_options(self.venv, self.venv.folder)
            )
            self._client = nbclient.NotebookClient(
                nbformat.v4.new_notebook(),
                km=manager,
                timeout=int(_PATIENCE),
                startup_timeout=int(_PATIENCE),
                allow_errors=True,
            )
            self._kernel = self._client.setup_kernel(env=dict(self.environ), cwd=str(self.folder))
            self._kernel.__enter__()
        cell = nbformat.v4.new_code_cell(text)
        self._client.nb.cells.append(cell)
        self._client.execute_cell(cell, len(self._client.nb.cells) - 1)
        failed = any(output["output_type"] == "error" for output in cell.outputs)
        return int(failed), shown([dict(output) for output in cell.outputs])
