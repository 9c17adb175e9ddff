"""The ``%colablock`` magics, which `import colablock` registers in a notebook.

::

    %colablock plan qlora-2026          any command of the command line
    %%colablock run qlora-2026          run the cell in the environment of the last apply
    %colablock explain                  explain the last exception of this notebook
"""

from __future__ import annotations

import codecs
import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from colablock._common.scratch import scratch_folder
from colablock.display.notebook import last_matrix, register_displays
from colablock.environment.notebook_host import current_shell, in_notebook
from colablock.errors import ExitCode, InvalidInput

__all__ = ["CommandFailed", "Magic", "load_ipython_extension"]

Main = Callable[[Sequence[str]], int]
Run = Callable[[str, Sequence[str]], int]

# The current folder stays importable, as it is in a cell.  The cell is written to
# a file, so that a traceback shows its lines and worker processes can import it.
_LAUNCH = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"

_OUTPUTS = (1, 2)  # descriptors of standard output and standard error
_LINGER = 2.0  # seconds to wait for the rest of a child's output


class CommandFailed(Exception):
    """A command in a cell failed: its exit code is not 0, and it has printed the reason itself."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"`{command}` ended with exit code {code}")
        self.code = code

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: the traceback of a magic tells the reader nothing.
        # An interrupted command has said so in its own line.
        return [] if self.code == ExitCode.INTERRUPTED else [str(self)]


def load_ipython_extension(ipython: Any) -> None:
    """Register the magics, and the displays of plans, reports and errors, for ``%load_ext colablock``.

    `import colablock` is enough; the extension is for configuration files of IPython.
    """
    register_displays(ipython)
    ipython.register_magic_function(Magic(), "line_cell", "colablock")


class Magic:
    """``%colablock`` and ``%%colablock run``.

    *main* and *run* replace the command line and `colablock.run` in tests.
    """

    __name__ = "colablock"  # IPython reads it from what it registers

    def __init__(self, *, main: Main | None = None, run: Run | None = None) -> None:
        self._main = main
        self._run = run

    def __call__(self, line: str, cell: str | None = None) -> None:
        """Run the command in *line*, or *cell* as a script.  ``%colablock --help`` lists the commands."""
        try:
            argv = shlex.split(line)
        except ValueError as error:
            message = f"the line `{line}` cannot be split into words: {error}"
            raise InvalidInput(message) from error
        if cell is None and argv in (["explain"], ["explain", "-"]):
            _explain_last()
        elif cell is None:
            self._check_exit(line, self._call_main(argv))
        else:
            self._run_cell(argv, cell)

    def _call_main(self, argv: Sequence[str]) -> int:
        try:
            return (self._main or _cli_main)(argv)
        except SystemExit as ended:  # argparse exits this way
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)

    def _run_cell(self, argv: Sequence[str], cell: str) -> None:
        """Run *cell* as a script: ``run [NAME] [-- ARGUMENTS]``."""
        if argv[:1] != ["run"]:
            message = "`%%colablock` takes no command but `run`: write `%%colablock run NAME`"
            raise InvalidInput(message, hint="Use `%colablock`, with one `%`, for other commands")
        words = list(argv[1:])
        at = words.index("--") if "--" in words else len(words)
        names, arguments = words[:at], words[at + 1 :]
        if len(names) > 1:
            message = (
                f"`%%colablock run` takes one name, not {len(names)}; put arguments of the script after `--`"
            )
            raise InvalidInput(message)
        name = names[0] if names else last_matrix()
        if name is None:
            message = "no matrix was applied in this session"
            raise InvalidInput(message, hint="Name the matrix: `%%colablock run NAME`")
        with scratch_folder() as folder:
            script = folder / "cell.py"
            script.write_text(cell, encoding="utf-8")
            command = ["python", "-c", _LAUNCH, str(script), *arguments]
            with _cell_output():
                code = (self._run or _api_run)(name, command)
            self._check_exit(f"run {name}", code)

    def _check_exit(self, line: str, code: int) -> None:
        if code != ExitCode.DONE:
            raise CommandFailed(f"colablock {line}", code)


@contextlib.contextmanager
def _cell_output() -> Iterator[None]:
    """Redirect the output of child processes to the cell, and complete it before the cell ends.

    A child writes to the kernel's descriptors.  ipykernel reads these too, but
    late output ends up in another cell or is lost.
    """
    if not in_notebook():
        yield
        return
    reader, writer = os.pipe()
    saved = {number: os.dup(number) for number in _OUTPUTS}
    for number in _OUTPUTS:
        os.dup2(writer, number)
    os.close(writer)
    thread = threading.Thread(target=_pump, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
        # A process that is left running keeps its end of the pipe open: do not wait for it.
        thread.join(timeout=_LINGER)


def _pump(reader: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    try:
        while data := os.read(reader, 65536):
            sys.stdout.write(decoder.decode(data))
    finally:
        os.close(reader)


def _explain_last() -> None:
    """Show why the last exception of this notebook was raised.  Raises InvalidInput if there was none."""
    # Deferred, as below.
    from colablock.api.stack import explain

    found = explain()
    if not in_notebook():
        from colablock.display.run_view import explanation_document
        from colablock.display.text import to_text

        print(to_text(explanation_document(found)))  # noqa: T201


def _cli_main(argv: Sequence[str]) -> int:
    # Deferred: a cell that shows a plan needs no command line.
    from colablock.cli.main import main

    return int(main(list(argv), shell=current_shell()))


def _api_run(name: str, argv: Sequence[str]) -> int:
    from colablock.api.stack import run

    return int(run(name, argv))
