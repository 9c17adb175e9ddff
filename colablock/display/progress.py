"""Show the progress of the work: on a terminal, in the output of a cell, as plain lines, or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from typing import TYPE_CHECKING, TypeVar

from colablock._common.reporter import Reporter
from colablock._common.text import count, seconds_text, size_text
from colablock.display.text import in_lines, program_of, to_text
from colablock.display.view import Bar, Document, Headline, Note, cut, one_line, spoken_as, spoken_in_python
from colablock.environment.notebook_host import current_shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from colablock.environment.notebook_host import Shell

    Clock = Callable[[], float]

__all__ = [
    "DrawingReporter",
    "LiveReporter",
    "NotebookReporter",
    "PlainReporter",
    "TerminalReporter",
    "WorkState",
    "can_animate",
    "live_bar",
    "reporter_for",
]

R = TypeVar("R", bound="LiveReporter")

_BEAT = 5.0  # seconds between two plain lines of one stage
_PAUSE = 0.2  # seconds between two updates of a cell
_AT_ONCE = 0.05  # seconds before which a fault of the call itself is found
_WIDTH = 100  # columns of the plain text beside the HTML
_ROOM = 3  # columns at the right of a live line


def can_animate(console: Console, environ: Mapping[str, str]) -> bool:
    """Return whether *console* can be redrawn: it is a terminal, and not the log of a CI job."""
    in_ci = environ.get("CI", "").lower() not in ("", "0", "false")
    return console.is_terminal and not console.is_dumb_terminal and not in_ci


class WorkState:
    """The current stage of the work and the finished ones, which reporters draw.  Not thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.began = self._stage_began = clock()
        self._fetch_began: float | None = None
        self.stage = ""
        self.detail = ""
        self.done = 0
        self.total = 0
        self.is_bytes = False  # a download, with its rate
        self.is_sized = False  # steps that are counted in bytes
        self.pinned = 0
        self.files = 0
        self.past: list[str] = []  # a line for each finished stage

    def start(self, text: str) -> None:
        """Begin a stage."""
        self.end_stage()
        self.stage, self.detail = one_line(text), ""
        self.done = self.total = 0
        self.is_bytes = self.is_sized = False
        self._stage_began = self._clock()

    def end_stage(self, *, failed: bool = False) -> tuple[str, str]:
        """End the stage; return its name and its result, or two empty strings if there is none."""
        if not self.stage:
            return "", ""
        taken = seconds_text(self._clock() - self._stage_began)
        amount = self.amount(is_over=True)
        outcome = f"{'stopped after ' if failed else ''}{f'{amount}, ' if amount else ''}{taken}"
        ended = (self.stage, outcome)
        self.past.append(": ".join(ended))
        self.stage, self.pinned = "", 0
        return ended

    def resolve(self, name: str, pinned: int) -> None:
        """Note the project *name* that is being resolved, and how many are pinned."""
        self.detail, self.pinned = name, pinned

    def start_fetch(self, files: int, size: int) -> None:
        """Begin a stage whose progress is counted in bytes."""
        self.start(f"Fetching {count(files, 'file')}")
        self.files, self.total, self.is_bytes = files, size, True
        self._fetch_began = self._clock()

    def fetch(self, filename: str, size: int) -> None:
        """Count bytes that have arrived; outside a stage in bytes, only note the name."""
        self.detail = filename
        if self.is_bytes:
            self.done += size

    def advance(self, text: str, done: int, total: int, *, is_sized: bool = False) -> None:
        """Note that *done* of *total* steps are done; begin a stage if there is none."""
        if self.is_bytes or not self.stage:
            self.start("Changing")
        self.detail, self.done, self.total, self.is_sized = one_line(text), done, total, is_sized

    def rate(self) -> float:
        """Return the bytes per second since the stage began."""
        taken = self._clock() - (self._fetch_began or self._stage_began)
        return self.done / taken if taken > 0 else 0.0

    def amount(self, *, is_over: bool = False) -> str:
        """Return the progress of the stage: ``12 resolved``, ``1.2 GB of 2.9 GB, 45 MB/s``, ``3 of 14``."""
        if self.is_bytes:
            return self._bytes(is_over=is_over)
        if self.is_sized:
            total = f" of {size_text(self.total)}" if self.total > self.done else ""
            return f"{size_text(self.done)}{total}"
        if self.total:
            return f"{self.done} of {self.total}"
        return f"{self.pinned} resolved" if self.pinned else ""

    def _bytes(self, *, is_over: bool) -> str:
        if not self.done and not is_over:
            return size_text(self.total) if self.total else ""
        total = f" of {size_text(self.total)}" if self.total > self.done and not is_over else ""
        rate = f", {size_text(round(self.rate()))}/s" if self.done else ""
        return f"{size_text(self.done)}{total}{rate}"

    def line(self) -> str:
        """Return the stage and its progress in one line."""
        return " - ".join(part for part in (self.stage, self.amount(), self.detail) if part)


class LiveReporter(Reporter):
    """A reporter for a ``with`` statement.  This base class is silent."""

    def close(self, *, failed: bool = False) -> None:
        """Leave the final state.  May be called twice."""

    def __enter__(self: R) -> R:  # noqa: PYI019  # typing.Self came with 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


class DrawingReporter(LiveReporter):
    """Keeps the state under a lock and draws it.  An error while drawing does not stop the work."""

    def __init__(self, clock: Clock, told: set[str] | None) -> None:
        self._lock = threading.RLock()
        self._clock = clock
        self._work = WorkState(clock)
        self._told = set() if told is None else told

    def stage(self, text: str) -> None:
        """End the last stage and begin this one."""
        with self._drawing():
            self._ended(*self._work.end_stage())
            self._work.start(text)
            self._started()

    def resolving(self, name: str, pinned: int) -> None:
        """Show the project that is being resolved."""
        with self._drawing():
            self._work.resolve(name, pinned)
            self._moved()

    def fetch_started(self, files: int, size: int) -> None:
        """End the last stage and begin one in bytes."""
        with self._drawing():
            self._ended(*self._work.end_stage())
            self._work.start_fetch(files, size)
            self._started()

    def fetched(self, filename: str, size: int) -> None:
        """Show the bytes and the rate."""
        with self._drawing():
            self._work.fetch(filename, size)
            self._moved()

    def fetch_finished(self) -> None:
        """End the stage."""
        self.stage_finished()

    def stage_finished(self) -> None:
        """End the stage."""
        with self._drawing():
            self._ended(*self._work.end_stage())

    def step(self, text: str, done: int, total: int, *, is_sized: bool = False) -> None:
        """Show how many steps are done."""
        with self._drawing():
            self._work.advance(text, done, total, is_sized=is_sized)
            self._moved()

    def note(self, text: str) -> None:
        """Show a note that stays visible, once."""
        text = one_line(text)
        with self._drawing():
            if text not in self._told:
                self._told.add(text)
                self._noted(text)

    def close(self, *, failed: bool = False) -> None:
        """End the stage, as stopped if *failed*."""
        with self._drawing():
            self._ended(*self._work.end_stage(failed=failed))
            self._closed(failed=failed)

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        # A closed stream or a lost connection to the notebook must not stop a change halfway,
        # whatever the client library raises.
        with self._lock, contextlib.suppress(Exception):
            yield

    def _started(self) -> None:
        """Draw a stage that begins."""

    def _moved(self) -> None:
        """Draw the progress of the stage.  Called often."""

    def _ended(self, stage: str, outcome: str) -> None:
        """Draw a stage that ended, with its result; both are "" if there was no stage."""

    def _noted(self, text: str) -> None:
        """Draw a note."""

    def _closed(self, *, failed: bool) -> None:
        """Draw the final state."""


def _note_text(text: str, console: Console) -> str:
    """Return a note in lines that fit *console*."""
    document = Document(blocks=(Note(label="note", text=text),))
    return to_text(spoken_as(document, program_of(console)), width=console.width)


def _fitting(text: str, console: Console) -> str:
    """Return *text* in lines that fit *console*, indented as its first one is, and more."""
    return in_lines(text.lstrip(), console.width, len(text) - len(text.lstrip()))


class PlainReporter(DrawingReporter):
    """Plain lines for logs and pipes: a stage begins, goes on, ends."""

    def __init__(
        self, console: Console, *, clock: Clock = time.monotonic, told: set[str] | None = None
    ) -> None:
        super().__init__(clock, told)
        self._console = console
        self._last = clock()
        self._is_alone = True  # nothing was written since the stage began

    def _write(self, text: str) -> None:
        self._last = self._clock()
        self._console.out(text, highlight=False)

    def _started(self) -> None:
        self._write(_fitting(self._work.line(), self._console))
        self._is_alone = True

    def _moved(self) -> None:
        if self._clock() - self._last >= _BEAT:
            self._write(cut(f"  {self._work.line()}", self._console.width))

    def _ended(self, stage: str, outcome: str) -> None:
        if stage:
            self._write(_fitting(f"  {outcome}" if self._is_alone else f"{stage}: {outcome}", self._console))

    def _noted(self, text: str) -> None:
        self._is_alone = False
        self._write(_note_text(text, self._console))


class TerminalReporter(DrawingReporter):
    """A live line on a terminal; the result of each finished stage stays as a line above it."""

    def __init__(
        self, console: Console, *, clock: Clock = time.monotonic, told: set[str] | None = None
    ) -> None:
        super().__init__(clock, told)
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def _begin(self) -> Progress:
        if self._progress is None:
            self._progress = live_bar(self._console, columns=16)
            self._progress.start()
        return self._progress

    def _started(self) -> None:
        progress = self._begin()
        self._clear()
        work = self._work
        self._task = progress.add_task(work.stage, total=work.total or None, amount=work.amount(), detail="")

    def _moved(self) -> None:
        if self._task is None:
            self._started()
        if self._task is None:
            return
        work = self._work
        self._begin().update(
            self._task,
            description=work.stage,
            completed=min(work.done, work.total),
            total=work.total or None,
            amount=work.amount(),
            detail=work.detail,
        )

    def _ended(self, stage: str, outcome: str) -> None:
        self._clear()
        if stage:
            self._console.out(_fitting(f"{stage}: {outcome}", self._console), highlight=False)

    def _noted(self, text: str) -> None:
        self._console.out(_note_text(text, self._console), highlight=False)

    def _closed(self, *, failed: bool) -> None:
        del failed  # the error that follows says so
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _clear(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
        self._task = None


class NotebookReporter(DrawingReporter):
    """One output of a cell, updated in place at most five times a second; at the end one line is left.

    *program* is how a command was called; without it, a call of the Python API is followed.
    """

    def __init__(
        self,
        shell: Shell,
        *,
        clock: Clock = time.monotonic,
        display_id: str | None = None,
        told: set[str] | None = None,
        program: str | None = None,
    ) -> None:
        super().__init__(clock, told)
        self._program = program
        self._publisher = shell.display_pub
        self._display_id = display_id or f"colablock-{uuid.uuid4().hex}"
        self._shown_at: float | None = None
        self._notes: list[str] = []
        self._is_closed = False

    def _started(self) -> None:
        self._show()

    def _moved(self) -> None:
        if self._shown_at is None or self._clock() - self._shown_at >= _PAUSE:
            self._show()

    def _noted(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
        self._show()

    def _closed(self, *, failed: bool) -> None:
        if self._is_closed or self._shown_at is None:
            return
        self._is_closed = True
        taken = self._clock() - self._work.began
        if not self._work.past or (failed and taken < _AT_ONCE):
            self._publish("", "")  # nothing had been started, and the error or the result says all
            return
        ended = "Stopped" if failed else "Done"
        self._publish(f"{ended} in {seconds_text(taken)}", "; ".join(self._work.past))

    def _show(self) -> None:
        work = self._work
        self._publish(work.stage, " - ".join(part for part in (work.amount(), work.detail) if part))

    def _publish(self, text: str, aside: str) -> None:
        is_update = self._shown_at is not None
        self._shown_at = self._clock()
        share = self._work.done / self._work.total if self._work.total and not self._is_closed else None
        bar = [] if share is None else [Bar(min(share, 1))]
        document = Document(
            headline=Headline(text=text, aside=aside) if text else None,
            blocks=(*bar, *(Note(label="note", text=note) for note in self._notes)),
        )
        program = self._program
        document = spoken_in_python(document) if program is None else spoken_as(document, program)
        from colablock.display.html import to_html  # noqa: PLC0415 - of notebooks only

        self._publisher.publish(
            {"text/html": to_html(document), "text/plain": to_text(document, width=_WIDTH)},
            transient={"display_id": self._display_id},
            update=is_update,
        )


def live_bar(console: Console, *, columns: int) -> Progress:
    """Return a live line for *console*: a description, a bar of *columns*, an ``amount`` and a ``detail``."""
    # Imported where it is drawn: a plain log and a notebook do not need this part of rich.
    from rich.constrain import Constrain  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    whole = Column(no_wrap=True, overflow="ellipsis")
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")

    class Narrow(Progress):
        """Leaves room at the right for the ``^C`` that a terminal writes: else that begins another line."""

        def get_renderables(self) -> Iterable[RenderableType]:
            return (Constrain(one, console.width - _ROOM) for one in super().get_renderables())

    return Narrow(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=columns),
        TextColumn("{task.fields[amount]}", markup=False, table_column=whole),
        TextColumn("{task.fields[detail]}", markup=False, style="dim", table_column=rest),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=8,
    )


def reporter_for(
    console: Console | None = None,
    *,
    quiet: bool = False,
    notebook: bool = False,
    progress: bool = True,
    environ: Mapping[str, str] = os.environ,
    told: set[str] | None = None,
) -> LiveReporter:
    """Return the reporter for the place where the work is watched; use it in a ``with`` statement.

    With *notebook* that is the output of a cell if a kernel runs.  With *progress* False nothing is
    redrawn (``--no-progress``).  Without a console and outside a notebook, or with *quiet*, it is silent.
    *told* are the notes that another reporter of the same call has shown.
    """
    if quiet:
        return LiveReporter()
    shell = current_shell() if notebook else None
    if shell is not None:
        return NotebookReporter(shell, told=told, program=program_of(console) if console else None)
    if console is None:
        return LiveReporter()
    if progress and can_animate(console, environ):
        return TerminalReporter(console, told=told)
    return PlainReporter(console, told=told)
