"""Progress in the terminal: a live region, plain lines where nothing can be redrawn, or silence."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from colablock._common.reporter import Reporter
from colablock._common.text import count, seconds_text, size_text
from colablock.display.words import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress, TaskID

    Clock = Callable[[], float]

__all__ = ["DrawingReporter", "LiveReporter", "PlainReporter", "TerminalReporter", "WorkState", "can_animate"]

R = TypeVar("R", bound="LiveReporter")

_BEAT = 5.0  # seconds between two plain lines of one stage


def can_animate(console: Console, environ: Mapping[str, str]) -> bool:
    """Return whether *console* can be redrawn: a terminal, and nobody's build log."""
    in_ci = environ.get("CI", "").lower() not in ("", "0", "false")
    return console.is_terminal and not console.is_dumb_terminal and not in_ci


class WorkState:
    """What is going on now, and what was done: the state that reporters draw.  Not thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.began = self._stage_began = clock()
        self._fetch_began: float | None = None
        self.stage = ""
        self.detail = ""
        self.done = 0
        self.total = 0
        self.is_bytes = False
        self.pinned = 0
        self.files = 0
        self.past: list[str] = []  # what was done, in short

    def start(self, text: str) -> None:
        """Begin a stage."""
        self.end_stage()
        self.stage, self.detail = one_line(text), ""
        self.done = self.total = 0
        self.is_bytes = False
        self._stage_began = self._clock()

    def end_stage(self, *, failed: bool = False) -> tuple[str, str]:
        """Return the stage and what it came to, and note both; two empty strings when there was none."""
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
        """Note what is being decided."""
        self.detail, self.pinned = name, pinned

    def start_fetch(self, files: int, size: int) -> None:
        """Begin a stage that is counted in bytes."""
        self.start(f"Fetching {count(files, 'file')}")
        self.files, self.total, self.is_bytes = files, size, True
        self._fetch_began = self._clock()

    def fetch(self, filename: str, size: int) -> None:
        """Count bytes that arrived; outside a fetching stage only the name is of use."""
        self.detail = filename
        if self.is_bytes:
            self.done += size

    def advance(self, text: str, done: int, total: int) -> None:
        """Count a step; one that belongs to no stage opens its own."""
        if self.is_bytes or not self.stage:
            self.start("Changing")
        self.detail, self.done, self.total = one_line(text), done, total

    def rate(self) -> float:
        """Bytes a second since the fetching began."""
        taken = self._clock() - (self._fetch_began or self._stage_began)
        return self.done / taken if taken > 0 else 0.0

    def amount(self, *, is_over: bool = False) -> str:
        """Return how far the stage is: ``12 decided``, ``1.2 GB of 2.9 GB, 45 MB/s``, ``3 of 14``."""
        if self.is_bytes:
            return self._bytes(is_over=is_over)
        if self.total:
            return f"{self.done} of {self.total}"
        return f"{self.pinned} decided" if self.pinned else ""

    def _bytes(self, *, is_over: bool) -> str:
        if not self.done and not is_over:
            return size_text(self.total) if self.total else ""
        total = f" of {size_text(self.total)}" if self.total > self.done and not is_over else ""
        rate = f", {size_text(round(self.rate()))}/s" if self.done else ""
        return f"{size_text(self.done)}{total}{rate}"

    def line(self) -> str:
        """Return what is going on in one line."""
        return " - ".join(part for part in (self.stage, self.amount(), self.detail) if part)


class LiveReporter(Reporter):
    """A reporter that ends: used in a ``with`` statement.  This one is silent."""

    def close(self, *, failed: bool = False) -> None:
        """Leave the final state; may be called twice."""

    def __enter__(self: R) -> R:  # noqa: PYI019  # typing.Self came with 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


class DrawingReporter(LiveReporter):
    """Keeps the state under a lock and draws it; drawing never stops the work."""

    def __init__(self, clock: Clock) -> None:
        self._lock = threading.RLock()
        self._clock = clock
        self._work = WorkState(clock)

    def stage(self, text: str) -> None:
        """Close the stage before, open this one."""
        with self._drawing():
            self._ended(*self._work.end_stage())
            self._work.start(text)
            self._started()

    def resolving(self, name: str, pinned: int) -> None:
        """Show the name."""
        with self._drawing():
            self._work.resolve(name, pinned)
            self._moved()

    def fetch_started(self, files: int, size: int) -> None:
        """Close the stage before, open one in bytes."""
        with self._drawing():
            self._ended(*self._work.end_stage())
            self._work.start_fetch(files, size)
            self._started()

    def fetched(self, filename: str, size: int) -> None:
        """Show bytes and rate."""
        with self._drawing():
            self._work.fetch(filename, size)
            self._moved()

    def fetch_finished(self) -> None:
        """Close the stage."""
        with self._drawing():
            self._ended(*self._work.end_stage())

    def step(self, text: str, done: int, total: int) -> None:
        """Show how many are done."""
        with self._drawing():
            self._work.advance(text, done, total)
            self._moved()

    def note(self, text: str) -> None:
        """Leave a line that stays."""
        with self._drawing():
            self._noted(f"note: {one_line(text)}")

    def close(self, *, failed: bool = False) -> None:
        """Close the stage that is open, as stopped if *failed*."""
        with self._drawing():
            self._ended(*self._work.end_stage(failed=failed))
            self._closed(failed=failed)

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        # A closed stream or a lost connection to the notebook is no reason to
        # stop a change half way, whatever its client library raises.
        with self._lock, contextlib.suppress(Exception):
            yield

    def _started(self) -> None:
        """A stage begins."""

    def _moved(self) -> None:
        """The stage went on: called often."""

    def _ended(self, stage: str, outcome: str) -> None:
        """A stage is over, with what it came to; both "" when there was none."""

    def _noted(self, text: str) -> None:
        """A note for the user."""

    def _closed(self, *, failed: bool) -> None:
        """The last call."""


class PlainReporter(DrawingReporter):
    """Single lines for logs and pipes: a stage begins, is still at it, is over."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._last = clock()

    def _write(self, text: str) -> None:
        self._last = self._clock()
        self._console.out(text, highlight=False)

    def _started(self) -> None:
        self._write(self._work.line())

    def _moved(self) -> None:
        if self._clock() - self._last >= _BEAT:
            self._write(f"  {self._work.line()}")

    def _ended(self, stage: str, outcome: str) -> None:
        if stage:
            self._write(f"  {outcome}")

    def _noted(self, text: str) -> None:
        self._write(text)


class TerminalReporter(DrawingReporter):
    """A live region on a terminal; what a stage came to stays as a line above it."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def _begin(self) -> Progress:
        if self._progress is None:
            self._progress = _progress(self._console)
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
            self._console.out(f"{stage}: {outcome}", highlight=False)

    def _noted(self, text: str) -> None:
        self._console.out(text, highlight=False)

    def _closed(self, *, failed: bool) -> None:
        del failed  # the error that follows says it
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _clear(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
        self._task = None


def _progress(console: Console) -> Progress:
    # Imported where it draws: a plain log and a notebook do without this part of rich.
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    quiet = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
        ),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[amount]}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[detail]}", markup=False, style="dim", table_column=quiet),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=8,
    )
