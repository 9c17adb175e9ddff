"""The two consoles of a command: rich's, and a plain one for the results of a quiet command in a pipe.

Importing rich takes a tenth of a short command.  A command that prints progress needs it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from colablock._common.text import PROGRAM, as_called, printable

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.display.view import Document
    from colablock.environment.notebook_host import Shell

__all__ = ["consoles"]

_WIDTH = 80  # columns, where nothing tells the width


def consoles(
    environ: Mapping[str, str],
    shell: Shell | None = None,
    program: str = PROGRAM,
    *,
    is_quiet: bool = False,
) -> tuple[Console, Console]:
    """Return the consoles of standard output and standard error.

    *program* is how the caller has called colablock.  With *is_quiet* only results and errors are printed.
    """
    for stream in (sys.stdout, sys.stderr):  # a path or a message may have what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    # rich converts any string of digits, and Python refuses one of thousands.
    sizes = {"COLUMNS", "LINES"}
    cleaned = {
        name: value
        for name, value in environ.items()
        if name not in sizes or (value.isascii() and value.isdigit() and len(value) < 6)  # noqa: PLR2004
    }
    made: list[Any] = [
        PlainConsole(cleaned, program, is_error=is_error)
        if is_quiet and shell is None and _is_plain(sys.stderr if is_error else sys.stdout, cleaned)
        else _rich_console(cleaned, shell, program, is_error=is_error)
        for is_error in (False, True)
    ]
    return made[0], made[1]


def _is_plain(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether rich would neither colour what it writes to *stream*, nor show it as HTML."""
    if "FORCE_COLOR" in environ or environ.get("TTY_COMPATIBLE") == "1" or os.name == "nt":
        return False
    try:
        return "IPython" not in sys.modules and not stream.isatty()
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False


def _rich_console(
    environ: Mapping[str, str], shell: Shell | None, program: str, *, is_error: bool
) -> Console:
    from rich.console import Console as RichConsole  # heavy: not for a pipe, and not for --help

    class Console(RichConsole):
        publish = _publisher(shell)
        program: ClassVar[str] = PROGRAM

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with code 1

        # Every line of every command comes through here, and may quote names and messages of others.
        # It is not wrapped: paths and commands are copied from it, and a terminal joins its own lines.
        def print(self, *objects: Any, **options: Any) -> None:
            said = (as_called(one, program) if isinstance(one, str) else one for one in objects)
            usual = {"markup": False, "soft_wrap": _is_text(objects)}
            super().print(*map(_shown, said), **{**usual, **options})

        def out(self, *objects: Any, **options: Any) -> None:
            super().out(*map(_shown, objects), **options)

    Console.program = program
    return Console(
        stderr=is_error,
        highlight=False,
        soft_wrap=False,
        no_color=bool(environ.get("NO_COLOR")) or None,
        _environ=environ,
    )


class PlainConsole:
    """Writes lines as rich does that are not wrapped.  For all else it is rich's, which is imported then."""

    publish = None
    is_terminal = False

    def __init__(self, environ: Mapping[str, str], program: str, *, is_error: bool) -> None:
        self.program = program
        self._environ = environ
        self._is_error = is_error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rich, name)

    @cached_property
    def _rich(self) -> Console:
        return _rich_console(self._environ, None, self.program, is_error=self._is_error)

    @property
    def file(self) -> TextIO:
        """The stream."""
        return sys.stderr if self._is_error else sys.stdout

    @cached_property
    def width(self) -> int:
        """Columns: those that COLUMNS names, else those of the terminal of another stream."""
        named = self._environ.get("COLUMNS")
        if named is not None:
            return int(named) or _WIDTH
        terminal = next(filter(os.isatty, range(3)), None)
        return _WIDTH if terminal is None else os.get_terminal_size(terminal).columns or _WIDTH

    def write_plain(self, text: str) -> None:
        """Write whole lines of text."""
        self.file.write(text.expandtabs())
        self.file.flush()

    def print(self, *objects: Any, end: str = "\n", **options: Any) -> None:
        """Write *objects*; text is not wrapped."""
        if _is_text(objects):
            said = (_shown(as_called(one, self.program)) for one in objects)
            self.write_plain(f"{' '.join(map(str, said))}{end}")
        else:
            self._rich.print(*objects, end=end, **options)


def _publisher(shell: Shell | None) -> Callable[[Document], None] | None:
    """Return the function that shows a document in a cell; None outside a notebook."""
    if shell is None:
        return None
    from colablock.display.notebook import publish

    return staticmethod(partial(publish, shell=shell, in_python=False))


def _is_text(objects: tuple[object, ...]) -> bool:
    return all(isinstance(one, str) for one in objects)


def _shown(value: object) -> object:
    return printable(value, lines=True) if isinstance(value, str) else value
