"""Show the progress of a training run: in the output of a cell, on a terminal, or as lines in a log."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from colablock._python_words import in_python
from colablock.display.html import to_html
from colablock.display.progress import can_animate, live_bar
from colablock.display.run_view import (
    checkpoint_saved,
    progress_document,
    progress_facts,
    progress_line,
    summary_document,
)
from colablock.display.text import program_of, render, to_text
from colablock.display.view import Document, Note, one_line, spoken_as, spoken_in_python
from colablock.environment.notebook_host import current_shell
from colablock.errors import Unmet
from colablock.training.runs.loss_curve import curve_png

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from colablock.display.run_view import ProgressFact
    from colablock.environment.notebook_host import Shell
    from colablock.training.runs.folder import RunFolder
    from colablock.training.runs.progress import Progress
    from colablock.training.runs.summary import RunSummary

__all__ = ["NotebookRunDisplay", "PlainRunDisplay", "RunDisplay", "TerminalRunDisplay", "run_display_for"]

D = TypeVar("D", bound="RunDisplay")

_PAUSE = 0.2  # seconds between two updates of a cell
_BEAT = 10.0  # seconds between two plain lines
_WIDTH = 100  # columns of the plain form beside the HTML
_FIRST = 3  # facts that are shown before the others: step, loss, time left


class RunDisplay:
    """Shows the progress of one run; this base class shows nothing.

    Use it in a ``with`` statement.  An error while drawing does not stop following the run.
    """

    def update(self, progress: Progress) -> None:
        """Show the progress.  Called about twice a second."""

    def note(self, text: str) -> None:
        """Show a sentence that stays visible."""

    def close(self, final: RunSummary | None = None) -> None:
        """Leave the state *final*, or else the last one that was shown.  May be called twice."""

    def __enter__(self: D) -> D:  # noqa: PYI019  # typing.Self came with 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NotebookRunDisplay(RunDisplay):
    """One output of a cell, updated in place at most five times a second; at the end it shows the loss curve.

    *draw* returns the curve as a PNG.  If it raises Unmet, the curve stays an SVG.
    """

    def __init__(
        self,
        shell: Shell,
        *,
        title: str = "",
        draw: Callable[[], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
        display_id: str | None = None,
    ) -> None:
        self._publisher = shell.display_pub
        self._title = title
        self._draw = draw
        self._clock = clock
        self._display_id = display_id or f"colablock-{uuid.uuid4().hex}"
        self._shown_at: float | None = None
        self._last: Progress | None = None
        self._is_pending = False  # the last update is not shown yet
        self._notes: list[str] = []

    def update(self, progress: Progress) -> None:
        """Show the progress, unless the last update was too recent."""
        is_new = self._last is None or self._last.stage != progress.stage
        self._last = progress
        self._is_pending = not is_new and self._clock() - (self._shown_at or 0.0) < _PAUSE
        if not self._is_pending:
            self._show()

    def note(self, text: str) -> None:
        """Show the sentence below the progress."""
        self._notes.append(in_python(one_line(text)))
        self._show()

    def close(self, final: RunSummary | None = None) -> None:
        """Show the final state at once, and again when the PNG is drawn."""
        if final is not None:
            self._publish_end(final)
            if self._draw is not None and final.progress.is_over and len(final.progress.points) > 1:
                with contextlib.suppress(Unmet):
                    self._publish_end(final, self._draw())
        elif self._is_pending:
            self._show()
        self._is_pending = False

    def _publish_end(self, final: RunSummary, png: bytes | None = None) -> None:
        notes = [] if final.progress.is_over else self._notes  # a note concerns only a run in progress
        view = spoken_in_python(summary_document(final, png=png, notes=notes))
        self._publish(to_html(view), to_text(view, width=_WIDTH))

    def _show(self) -> None:
        if self._last is None:
            return
        html = to_html(progress_document(self._last, title=self._title, notes=self._notes))
        line = progress_line(self._last, width=_WIDTH)
        self._publish(html, "\n".join([line, *self._notes]))

    def _publish(self, html: str, text: str) -> None:
        is_update = self._shown_at is not None
        self._shown_at = self._clock()
        with contextlib.suppress(Exception):  # a lost connection to the notebook must not stop us
            self._publisher.publish(
                {"text/html": html, "text/plain": text},
                transient={"display_id": self._display_id},
                update=is_update,
            )


def _sentence(text: str, console: Console, *, is_in_python: bool) -> str:
    """Return *text* in lines that fit *console*, in the words of Python or of the command line."""
    document = Document(blocks=(Note(text=one_line(text)),))
    said = spoken_in_python(document) if is_in_python else spoken_as(document, program_of(console))
    return to_text(said, width=console.width)


class PlainRunDisplay(RunDisplay):
    """Plain lines for logs and pipes: one for each stage and each checkpoint, and one every ten seconds.

    *writes_end*: a call of the Python API follows the run, and how it ended is written, too.
    """

    def __init__(
        self, console: Console, *, writes_end: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._writes_end = writes_end
        self._clock = clock
        self._written_at: float | None = None
        self._stage = ""
        self._checkpoints: int | None = None

    def update(self, progress: Progress) -> None:
        """Write a line if the last one is old enough, or if there is a new stage or checkpoint."""
        is_saved = self._checkpoints is not None and progress.checkpoints > self._checkpoints
        self._checkpoints = progress.checkpoints
        is_due = self._written_at is None or self._clock() - self._written_at >= _BEAT
        if is_saved:
            saved = f"{checkpoint_saved(progress)}: "
            line = progress_line(replace(progress, stage="training"), width=self._console.width - len(saved))
            self._write(saved.removesuffix(": ") if progress.is_over else f"{saved}{line}")
        elif (is_due or progress.stage != self._stage) and not progress.is_over:
            self._write(progress_line(progress, width=self._console.width))
        self._stage = progress.stage

    def note(self, text: str) -> None:
        """Write the sentence."""
        self._write(_sentence(text, self._console, is_in_python=self._writes_end))

    def close(self, final: RunSummary | None = None) -> None:
        """Write how the run ended, unless the caller does."""
        if final is not None and self._writes_end:
            with contextlib.suppress(OSError, ValueError):
                render(spoken_in_python(summary_document(final)), self._console)

    def _write(self, text: str) -> None:
        self._written_at = self._clock()
        with contextlib.suppress(OSError, ValueError):  # a closed stream
            self._console.out(text, highlight=False)


class TerminalRunDisplay(RunDisplay):
    """A live line on a terminal; checkpoints and notes stay as lines above it.

    *writes_end*: a call of the Python API follows the run, and how it ended is written, too.
    """

    def __init__(self, console: Console, *, writes_end: bool = False) -> None:
        self._console = console
        self._writes_end = writes_end
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._checkpoints: int | None = None

    def update(self, progress: Progress) -> None:
        """Redraw the live line."""
        with contextlib.suppress(OSError, ValueError):
            if self._checkpoints is not None and progress.checkpoints > self._checkpoints:
                self._console.out(checkpoint_saved(progress), highlight=False)
            self._checkpoints = progress.checkpoints
            if self._bar is None or self._task is None:
                self._bar = live_bar(self._console, columns=12)
                self._bar.start()
                self._task = self._bar.add_task("", total=None, amount="", detail="")
            facts = progress_facts(progress)
            first = sorted(facts, key=lambda fact: fact.rank)[:_FIRST]
            self._bar.update(
                self._task,
                description=one_line(progress.stage),
                total=None if progress.has_no_events else progress.total,
                completed=0 if progress.has_no_events else progress.step,
                amount="" if progress.has_no_events else _joined([fact for fact in facts if fact in first]),
                detail=one_line(progress.detail) or _joined([fact for fact in facts if fact not in first]),
            )

    def note(self, text: str) -> None:
        """Write the sentence above the live line."""
        with contextlib.suppress(OSError, ValueError):
            self._console.out(_sentence(text, self._console, is_in_python=self._writes_end), highlight=False)

    def close(self, final: RunSummary | None = None) -> None:
        """Remove the live line, and write how the run ended, unless the caller does."""
        with contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.stop()
            if final is not None and self._writes_end:
                render(spoken_in_python(summary_document(final)), self._console)
        self._bar = self._task = None


def run_display_for(
    run_id: str,
    folder: RunFolder,
    *,
    console: Console | None = None,
    notebook: bool = False,
    quiet: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> RunDisplay:
    """Return the display for the place where the run is followed.

    With *notebook* that is the output of a cell; if no kernel runs, it is standard error, and the end
    of the run is written there too.  With *console* the caller writes the end.  With neither, or with
    *quiet*, nothing is shown.
    """
    if quiet or (console is None and not notebook):
        return RunDisplay()
    shell = current_shell() if notebook else None
    if shell is not None:
        return NotebookRunDisplay(shell, title=run_id, draw=partial(curve_png, folder, environ=environ))
    writes_end = console is None
    if console is None:
        from rich.console import Console as Plain  # noqa: PLC0415  # a notebook does not need rich

        console = Plain(stderr=True, highlight=False, no_color=bool(environ.get("NO_COLOR")) or None)
    kind = TerminalRunDisplay if can_animate(console, environ) else PlainRunDisplay
    return kind(console, writes_end=writes_end)


def _joined(facts: list[ProgressFact]) -> str:
    return ", ".join(f"{fact.label} {fact.text}".strip() for fact in facts)
