"""How far a run is: values from the events that its shim writes, followed while it runs.

The log is never read for numbers: its last line only tells what goes on before the first event.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from colablock.training.runs.folder import RunFolder, RunRecord, State
from colablock.training.runs.loss_curve import GrowingCurve, Point, number_of

__all__ = [
    "LOADING",
    "START_MARK",
    "STOPPING",
    "Progress",
    "ProgressTotals",
    "attach_hint",
    "follow",
    "last_line",
    "plain_text",
    "progress_of",
]

Clock = Callable[[], float]
Sleep = Callable[[float], object]

LOADING = "starting: loading the model"
STOPPING = "stopping at a checkpoint"
START_MARK = "--- colablock: started"
"""How a line of the log begins from which on it is of another start."""

_WINDOW = 60.0  # seconds that the rates are of
_FEWEST = 4  # samples of the rates, however long a step takes
_TAIL = 8192  # bytes of the log that are looked at
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run at one moment.

    *seconds*, *tokens* (of all ranks) and the rates are those of the start that runs,
    which may have resumed at *first_step*; the losses are of the whole run.  *loss* is the one
    that was logged last, not a number among them.
    """

    state: State
    stage: str  # "starting: loading the model", "training", "done"
    detail: str = ""  # the last line of the log, before the first event
    step: int = 0
    first_step: int = 0
    total: int | None = None
    epoch: float | None = None
    loss: float | None = None
    smooth_loss: float | None = None
    evaluation_loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens: int = 0
    tokens_per_second: float | None = None
    memory: int | None = None  # bytes at the peak, as torch's allocator counts
    memory_reserved: int | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    seconds_in_all: float = 0.0  # of every process that trained this run
    checkpoint: str | None = None  # the one that was saved last
    checkpoints: int = 0  # saved so far
    points: tuple[Point, ...] = ()
    evaluations: tuple[Point, ...] = ()
    before: float | None = None  # the fixed evaluation loss of a smoke run
    after: float | None = None

    @property
    def share(self) -> float | None:
        """How much of all steps is done, from 0 to 1; None where nobody knows."""
        return min(self.step / self.total, 1.0) if self.total else None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state is not State.RUNNING


class _Sample(NamedTuple):
    seconds: float
    step: int
    tokens: int


class ProgressTotals:
    """What the events of a run add up to, oldest first.  Not thread-safe."""

    def __init__(self) -> None:
        self.newest = 0.0  # the time of the newest event
        self._losses, self._evaluations = GrowingCurve("loss"), GrowingCurve("eval_loss")
        self._last: dict[str, float] = {}
        self.total: int | None = None
        self.step = self.first_step = 0
        self._ranks = 1  # each tells its own tokens, and only the first one tells
        self._checkpoint: str | None = None
        self._checkpoints = 0
        self._samples: deque[_Sample] = deque()
        self._began = _Sample(0.0, 0, 0)
        self._sampled_at = 0.0
        self._earlier = 0.0
        self._fixed: dict[str, float] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event; what is not as it should be in it is left out."""
        kind = event.get("event")
        self.newest = max(self.newest, _finite(event, "time") or 0.0)
        step = _finite(event, "step")
        if kind == "start":
            self._start(event, int(step or 0))
        elif step is not None and kind != "evaluation":  # one may come before the start
            self.step = int(step)
        if kind in ("log", "step"):
            self._sample(event)
        if kind == "log":
            for key in ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch"):
                value = number_of(event, key)
                if value is not None:
                    self._last[key] = value
            for key in ("memory", "memory_reserved"):
                value = _finite(event, key)
                if value is not None:
                    self._last[key] = max(value, self._last.get(key, 0.0))
        self._losses.add(event)
        self._evaluations.add(event)
        if kind == "save" and isinstance(event.get("path"), str):
            self._checkpoint = Path(event["path"]).name
            self._checkpoints += 1
        if kind == "evaluation":
            loss = number_of(event, "loss")
            if loss is not None:
                self._fixed[str(event.get("when"))] = loss

    def _start(self, event: Mapping[str, Any], step: int) -> None:
        total = _finite(event, "total_steps")
        if total is not None and total > 0:
            self.total = int(total)
        if self._samples:
            self._earlier += self._samples[-1].seconds
        self._ranks = max(int(_finite(event, "world_size") or 1), 1)
        self.step = self.first_step = step
        self._began = _Sample(0.0, step, 0)
        self._samples.clear()
        self._sampled_at = _finite(event, "time") or 0.0

    def _sample(self, event: Mapping[str, Any]) -> None:
        seconds = _finite(event, "seconds")
        if seconds is None:
            return
        told = _finite(event, "tokens")
        before = self._samples[-1].tokens if self._samples else 0
        tokens = before if told is None else int(told) * self._ranks
        self._samples.append(_Sample(seconds, self.step, tokens))
        self._sampled_at = _finite(event, "time") or self._sampled_at
        while len(self._samples) > _FEWEST and self._samples[1].seconds < seconds - _WINDOW:
            self._samples.popleft()

    def progress(self, state: State, *, stage: str, detail: str = "", now: float | None = None) -> Progress:
        """Return the run as it stands, in *state* and at *stage*.

        While it runs, the clock goes on between two events: *now* is its time.
        """
        last = self._samples[-1] if self._samples else self._began
        since = max(now - self._sampled_at, 0.0) if now is not None and self._sampled_at else 0.0
        per_step, per_token = self._rates(last, is_over=state is not State.RUNNING)
        left = None
        if per_step and self.total is not None and state is State.RUNNING and stage != STOPPING:
            # A step that takes longer than the others is still one step.
            left = max((self.total - last.step) * per_step - min(since, per_step), 0.0)
        return Progress(
            state=state,
            stage=stage,
            detail=detail,
            step=self.step,
            first_step=self.first_step,
            total=self.total,
            epoch=self._last.get("epoch"),
            loss=self._last.get("loss"),
            smooth_loss=self._losses.smooth_end,
            evaluation_loss=self._last.get("eval_loss"),
            learning_rate=self._last.get("learning_rate"),
            gradient_norm=self._last.get("grad_norm"),
            tokens=last.tokens,
            tokens_per_second=per_token,
            memory=_whole(self._last.get("memory")),
            memory_reserved=_whole(self._last.get("memory_reserved")),
            seconds=last.seconds + since,
            seconds_left=left,
            seconds_in_all=self._earlier + last.seconds + since,
            checkpoint=self._checkpoint,
            checkpoints=self._checkpoints,
            points=self._losses.points,
            evaluations=self._evaluations.points,
            before=self._fixed.get("before"),
            after=self._fixed.get("after"),
        )

    def _rates(self, last: _Sample, *, is_over: bool) -> tuple[float | None, float | None]:
        """Return seconds a step and tokens a second: lately, or of it all once it is over."""
        first = self._samples[0] if len(self._samples) > 1 and not is_over else self._began
        taken, steps, tokens = (now - then for now, then in zip(last, first, strict=True))
        if taken <= 0:
            return None, None
        return (taken / steps if steps > 0 else None), (tokens / taken if tokens > 0 else None)


def follow(
    folder: RunFolder, *, clock: Clock = time.time, sleep: Sleep = time.sleep, poll: float = 0.5
) -> Iterator[Progress]:
    """Yield how far the run is, at once and after each *poll* seconds, until it has ended.

    The last one is the final state, with every event in it.  Only what is new
    in the file of metrics is read.  A run that was not started ends at once.
    """
    tail, totals = _Tail(folder.metrics_file), ProgressTotals()
    while True:
        record = folder.record()
        state = folder.state(record)  # asked first: of a run that has ended, every event is there by then
        is_new, lines = tail.read()
        if is_new:
            totals = ProgressTotals()
        for event in _events(lines):
            totals.add(event)
        yield _progress(folder, record, state, totals, clock())
        if state is not State.RUNNING:
            return
        sleep(poll)


def progress_of(
    folder: RunFolder,
    record: RunRecord | None,
    state: State,
    events: Iterable[Mapping[str, Any]],
    *,
    clock: Clock = time.time,
) -> Progress:
    """Return how far the run is, by what was read of it: its *state* before its *events*."""
    totals = ProgressTotals()
    for event in events:
        totals.add(event)
    return _progress(folder, record, state, totals, clock())


def attach_hint(run_id: str) -> str:
    """Return how a run that was left is followed again."""
    return f"`colablock.attach({run_id!r})` or `colablock runs follow {run_id}` follows it again"


def last_line(log: Path) -> str:
    """Return the last line of *log* that is not blank, as a terminal would have left it; "" without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in plain_text(text).splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return "" if last.startswith(START_MARK) else last


def plain_text(text: str) -> str:
    """Return *text* without what steers a terminal: a bar that was drawn over and over is its many lines."""
    return _ESCAPE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def _progress(
    folder: RunFolder, record: RunRecord | None, state: State, totals: ProgressTotals, now: float
) -> Progress:
    stage = _stage(folder, record, state, totals)
    if stage == LOADING:
        # How long it has loaded, and what it logged before a resume.
        before = totals.progress(State.RUNNING, stage=LOADING, detail=last_line(folder.log))
        taken = max(now - record.started, 0.0) if record is not None and record.started else 0.0
        return replace(before, seconds=taken, seconds_left=None, tokens_per_second=None)
    return totals.progress(state, stage=stage, now=now if state is State.RUNNING else None)


def _stage(folder: RunFolder, record: RunRecord | None, state: State, totals: ProgressTotals) -> str:
    if state is State.PREPARED:
        return "not started"
    if state is not State.RUNNING:
        return str(state.value)
    if not totals.newest or (record is not None and totals.newest < record.started):
        return LOADING  # the events are of the process before
    if folder.stop_file.exists():
        return STOPPING
    if totals.total and totals.step >= totals.total:
        return "finishing: keeping what was learnt"
    return "training" if totals.step > totals.first_step else "starting: the first step"


class _Tail:
    """The whole lines that a growing file has got since it was read last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._rest = b""

    def read(self) -> tuple[bool, list[bytes]]:
        """Return whether another file stands there now, or it was cut; and the new lines."""
        is_new = False
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                which = (about.st_dev, about.st_ino)
                if which != self._file or about.st_size < self._offset:
                    is_new = self._file is not None
                    self._file, self._offset, self._rest = which, 0, b""
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return False, []
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return is_new, lines


def _events(lines: list[bytes]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _finite(event: Mapping[str, Any], key: str) -> float | None:
    value = number_of(event, key)
    return value if value is not None and math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
