"""Where a run is shown while it is followed: a cell's output, a terminal, or plain lines in a log."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from colablock.display.progress import can_animate
from colablock.display.training import (
    checkpoint_words,
    progress_line,
    progress_parts,
    progress_to_html,
    render_summary,
    summary_text,
    summary_to_html,
)
from colablock.display.words import one_line
from colablock.environment.notebook_host import current_shell
from colablock.errors import Unmet
from colablock.training.runs.loss_curve import curve_png

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from colablock.display.training import Part
    from colablock.environment.notebook_host import Shell
    from colablock.training.runs.folder import RunFolder
    from colablock.training.runs.progress import Progress
    from colablock.training.runs.summary import RunSummary

__all__ = ["FollowView", "NotebookFollow", "PlainFollow", "TerminalFollow", "view_for"]

V = TypeVar("V", bound="FollowView")

_PAUSE = 0.2  # seconds between two updates of a cell
_BEAT = 10.0  # seconds between two plain lines
_WIDTH = 100  # columns of the plain form beside the HTML
_KEY = 3  # parts of a progress that are shown before the others: step, loss, time left


class FollowView:
    """Shows one run, and this one nothing.  Used in a ``with`` statement; drawing stops no following."""

    def update(self, progress: Progress) -> None:
        """Show how far it is: called about twice a second."""

    def note(self, text: str) -> None:
        """Show a sentence that stays."""

    def close(self, final: RunSummary | None = None) -> None:
        """Leave the final state, or what was shown last.  May be called twice."""

    def __enter__(self: V) -> V:  # noqa: PYI019  # typing.Self came with 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NotebookFollow(FollowView):
    """One display that is updated in place, at most five times a second, and ends with the loss curve.

    *draw* makes it as a PNG, or raises Unmet: then it stays an SVG.
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
        self._waits = False  # the last update was not shown yet
        self._notes: list[str] = []

    def update(self, progress: Progress) -> None:
        """Show it, but for what comes too soon after the one before."""
        is_new = self._last is None or self._last.stage != progress.stage
        self._last = progress
        self._waits = not is_new and self._clock() - (self._shown_at or 0.0) < _PAUSE
        if not self._waits:
            self._show()

    def note(self, text: str) -> None:
        """Keep it below the display."""
        self._notes.append(one_line(text))
        self._show()

    def close(self, final: RunSummary | None = None) -> None:
        """Leave the final state: at once, and again once the PNG is drawn."""
        if final is not None:
            self._publish_end(final)
            if self._draw is not None and final.progress.is_over and len(final.progress.points) > 1:
                with contextlib.suppress(Unmet):
                    self._publish_end(final, self._draw())
        elif self._waits:
            self._show()
        self._waits = False

    def _publish_end(self, final: RunSummary, png: bytes | None = None) -> None:
        notes = [] if final.progress.is_over else self._notes  # of what is past
        html = summary_to_html(final, png=png, notes=notes)
        self._publish(html, "\n".join([summary_text(final, width=_WIDTH), *notes]))

    def _show(self) -> None:
        if self._last is None:
            return
        html = progress_to_html(self._last, title=self._title, notes=self._notes)
        line = progress_line(self._last, width=_WIDTH)
        self._publish(html, "\n".join([line, *self._notes]))

    def _publish(self, html: str, text: str) -> None:
        is_update = self._shown_at is not None
        self._shown_at = self._clock()
        with contextlib.suppress(Exception):  # a lost connection to the notebook is no reason to stop
            self._publisher.publish(
                {"text/html": html, "text/plain": text},
                transient={"display_id": self._display_id},
                update=is_update,
            )


class PlainFollow(FollowView):
    """Single lines for logs and pipes: each stage, each checkpoint, and every ten seconds how far it is."""

    def __init__(
        self, console: Console, *, tells_end: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._tells_end = tells_end
        self._clock = clock
        self._written_at: float | None = None
        self._stage = ""
        self._checkpoints: int | None = None

    def update(self, progress: Progress) -> None:
        """Write a line when it is time for one."""
        is_saved = self._checkpoints is not None and progress.checkpoints > self._checkpoints
        self._checkpoints = progress.checkpoints
        is_due = self._written_at is None or self._clock() - self._written_at >= _BEAT
        if is_saved:
            how_far = "" if progress.is_over else f": {progress_line(progress, width=10_000)}"
            self._write(f"{checkpoint_words(progress)}{how_far}")
        elif (is_due or progress.stage != self._stage) and not progress.is_over:
            self._write(progress_line(progress, width=self._console.width))
        self._stage = progress.stage

    def note(self, text: str) -> None:
        """Write it."""
        self._write(one_line(text))

    def close(self, final: RunSummary | None = None) -> None:
        """Write what became of it, where nobody else does."""
        if final is not None and self._tells_end:
            with contextlib.suppress(OSError, ValueError):
                render_summary(final, self._console)

    def _write(self, text: str) -> None:
        self._written_at = self._clock()
        with contextlib.suppress(OSError, ValueError):  # a closed stream
            self._console.out(text, highlight=False)


class TerminalFollow(FollowView):
    """A live line on a terminal; checkpoints and notes stay as lines above it."""

    def __init__(self, console: Console, *, tells_end: bool = False) -> None:
        self._console = console
        self._tells_end = tells_end
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._checkpoints: int | None = None

    def update(self, progress: Progress) -> None:
        """Draw it."""
        with contextlib.suppress(OSError, ValueError):
            if self._checkpoints is not None and progress.checkpoints > self._checkpoints:
                self._console.out(checkpoint_words(progress), highlight=False)
            self._checkpoints = progress.checkpoints
            if self._bar is None or self._task is None:
                self._bar = _bar(self._console)
                self._bar.start()
                self._task = self._bar.add_task("", total=None, amount="", detail="")
            parts = progress_parts(progress)
            key = sorted(parts, key=lambda part: part.gives_way)[:_KEY]
            loading = progress.stage.startswith("starting: loading")
            self._bar.update(
                self._task,
                description=one_line(progress.stage),
                total=None if loading else progress.total,
                completed=0 if loading else progress.step,
                amount="" if loading else _joined([part for part in parts if part in key]),
                detail=one_line(progress.detail) or _joined([part for part in parts if part not in key]),
            )

    def note(self, text: str) -> None:
        """Leave it above the live line."""
        with contextlib.suppress(OSError, ValueError):
            self._console.out(one_line(text), highlight=False)

    def close(self, final: RunSummary | None = None) -> None:
        """Take the live line away, and write what became of the run where nobody else does."""
        with contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.stop()
            if final is not None and self._tells_end:
                render_summary(final, self._console)
        self._bar = self._task = None


def view_for(
    run_id: str,
    folder: RunFolder,
    *,
    console: Console | None = None,
    notebook: bool = False,
    quiet: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> FollowView:
    """Return the view for where a run is watched.

    *notebook* asks for a cell's output; outside of a kernel that is standard
    error, and the end is written there, too.  With *console* the caller writes the end.
    Without either, or *quiet*, nothing is shown.
    """
    if quiet or (console is None and not notebook):
        return FollowView()
    shell = current_shell() if notebook else None
    if shell is not None:
        return NotebookFollow(shell, title=run_id, draw=partial(curve_png, folder, environ=environ))
    tells_end = console is None
    if console is None:
        from rich.console import Console as Plain  # noqa: PLC0415  # a notebook does without it

        console = Plain(stderr=True, highlight=False, no_color=bool(environ.get("NO_COLOR")) or None)
    kind = TerminalFollow if can_animate(console, environ) else PlainFollow
    return kind(console, tells_end=tells_end)


def _joined(parts: list[Part]) -> str:
    return ", ".join(f"{part.label} {part.text}".strip() for part in parts)


def _bar(console: Console) -> Bar:
    # Imported where it draws: a plain log and a notebook do without this part of rich.
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    whole = Column(no_wrap=True, overflow="ellipsis")
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[amount]}", markup=False, table_column=whole),
        TextColumn("{task.fields[detail]}", markup=False, style="dim", table_column=rest),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=8,
    )
