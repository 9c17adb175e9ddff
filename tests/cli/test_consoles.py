"""The plain console of a quiet command writes what rich's would."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from colablock.cli.usage.consoles import PlainConsole, consoles
from colablock.display.text import render
from colablock.display.view import Document, Headline, Note, Preformatted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

LINES = [
    "",
    "one line",
    "a\ttab, and\tanother",
    "two\n\nlines  ",
    "longer than the console is wide " * 4,
    "trailing blanks" + " " * 80,
    "[bold]no markup[/bold] 0x1F {}",
    "e\u0301 \u6f22 \x1b[31mred \u202e",
]


def written(environ: dict[str, str], use: Callable[[Console, Console], object], *, is_quiet: bool) -> str:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        pair = consoles(environ, program="colablock", is_quiet=is_quiet)
        assert [isinstance(one, PlainConsole) for one in pair] == [is_quiet, is_quiet]
        use(*pair)
    return f"{out.getvalue()}\n--\n{err.getvalue()}"


def say(out: Console, err: Console) -> None:
    blocks = (Note(text="a note"), Preformatted(lines=tuple(LINES)))
    render(Document(headline=Headline(text="a headline"), blocks=blocks), out)
    for line in LINES:
        err.print(line)
    err.print("a sentence that is longer than some consoles are wide")
    out.file.write(f"{out.width} {out.is_terminal} {err.encoding}")


@pytest.mark.parametrize("environ", [{}, {"COLUMNS": "30"}, {"COLUMNS": "9" * 5000}])
def test_a_plain_console_writes_what_rich_writes(environ: dict[str, str]) -> None:
    plain = written(environ, say, is_quiet=True)
    assert plain == written(environ, say, is_quiet=False)
    assert plain.count(LINES[4].strip()) == 2  # in one line each: paths and commands are copied from here


@pytest.mark.parametrize("environ", [{"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_colour_is_left_to_rich(environ: dict[str, str]) -> None:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert not any(isinstance(one, PlainConsole) for one in consoles(environ, is_quiet=True))
