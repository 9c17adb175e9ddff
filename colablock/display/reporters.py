"""The same values for terminal and notebook: what the command line and the front door call.

`display_words` says it, `display_text` and `display_html` lay it out,
`display_progress` and `display_notebook` follow the work.  Importing this
loads no rich: only drawing on a terminal does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from colablock.display.notebook import (
    NotebookReporter,
)
from colablock.display.progress import LiveReporter, PlainReporter, TerminalReporter, can_animate
from colablock.environment.notebook_host import current_shell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

__all__ = ["reporter_for"]


def reporter_for(
    console: Console | None = None,
    *,
    quiet: bool = False,
    notebook: bool = False,
    progress: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> LiveReporter:
    """Return the reporter for where the work is watched; use it in a ``with`` statement.

    *notebook* asks for a cell's output, when a kernel runs.  *progress* False
    never redraws (``--no-progress``).  Without a console and outside a notebook, or
    *quiet*, it is silent.
    """
    if quiet:
        return LiveReporter()
    shell = current_shell() if notebook else None
    if shell is not None:
        return NotebookReporter(shell)
    if console is None:
        return LiveReporter()
    if progress and can_animate(console, environ):
        return TerminalReporter(console)
    return PlainReporter(console)
