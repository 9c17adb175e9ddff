"""The progress of a run, from the events that its shim writes.

Numbers are never read from the log.  Its last line only describes what happens before the first
event.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from colablock._common.decoding import open_regular, read_end
from colablock._common.limits import METRICS_FILE, METRICS_LINE
from colablock._common.text import command_line
from colablock._masking import masked
from colablock.training.runs.folder import RunFolder, RunRecord, State, event_of
from colablock.training.runs.loss_curve import GrowingCurve, Point, number_of
from colablock.training.scripts.ranks import killed_ranks

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
    "stop_command",
]

Clock = Callable[[], float]
Sleep = Callable[[float], object]

LOADING = "starting: loading the model"
_WAITING = "starting: waiting for the other hosts"
_ELSEWHERE = "running: the host "
STOPPING = "stopping at a checkpoint"
FAILING = "failing: "
FINISHING = "finishing: saving the adapter"
START_MARK = "--- colablock: started"
"""The prefix of the line in the log that separates one start from the next."""

_WINDOW = 60.0  # seconds over which rates are computed
_STUCK = 30.0  # seconds without an event, besides those of some steps, after which no rest is shown
_STUCK_STEPS = 5
_MIN_SAMPLES = 4  # for the rates, however long a step takes
_LARGEST = 2.0**53  # of steps, tokens, bytes and seconds: a larger number is a mistake
_MAX_TAIL = 8192  # bytes of the log, from the end
_OWN_LINE = re.compile(
    # axolotl's log: the time, the level, the module, the process, and the text.
    r"(?:\[[^\]]*\] ?)?\[INFO\] ?\[axolotl[^\]]*\] ?(?:\[[^\]]*\] ?)*(?P<text>.+)"
    # A bar of tqdm: what is done, the percentage, the bar, and counts.
    r"|[\w][\w ./:()=,-]{0,80}: +\d{1,3}%(?:\|.*)?"
    r"|(?:Loading|Downloading|Fetching|Generating|Tokenizing|Saving) [\w .,/-]{1,80}(?:\.\.\.)?"
)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a run at one moment.

    *seconds*, *tokens* (of all ranks) and the rates are those of the latest start, which may have
    resumed at *first_step*.  The losses are those of the whole run.  *loss* is the last one that
    was logged and may be nan.  Memory is in bytes.
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
    memory: int | None = None  # the peak of torch's allocated memory
    memory_reserved: int | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    seconds_in_all: float = 0.0  # of every start
    checkpoint: str | None = None  # the last one that was saved
    checkpoints: int = 0  # the number saved so far
    points: tuple[Point, ...] = ()
    evaluations: tuple[Point, ...] = ()
    beginning: Mapping[str, float] = field(default_factory=dict)  # seconds to the first step, by parts
    before: float | None = None  # the fixed evaluation loss of a smoke run
    after: float | None = None

    @property
    def share(self) -> float | None:
        """The share of all steps that is done, from 0 to 1; None if unknown."""
        return min(self.step / self.total, 1.0) if self.total else None

    @property
    def has_no_events(self) -> bool:
        """Whether the steps are those of an earlier start: this one has told of none."""
        return self.stage.startswith((LOADING, _WAITING, _ELSEWHERE))

    @property
    def is_over(self) -> bool:
        """Whether there will be no more events."""
        return self.state is not State.RUNNING


class _Sample(NamedTuple):
    seconds: float
    step: int
    tokens: int


class ProgressTotals:
    """Sums up the events of a run, added oldest first.  Not thread-safe."""

    def __init__(self) -> None:
        self.newest = 0.0  # the time of the newest event
        self._losses, self._evaluations = GrowingCurve("loss"), GrowingCurve("eval_loss")
        self._last: dict[str, float] = {}
        self.total: int | None = None
        self.step = self.first_step = 0
        self._ranks = 1  # only rank 0 writes events, with its own tokens
        self._checkpoint: str | None = None
        self._checkpoints = 0
        self._samples: deque[_Sample] = deque()
        self._began = _Sample(0.0, 0, 0)
        self._sampled_at = self._started_at = 0.0
        self._earlier = 0.0
        self._loading: float | None = None  # of the latest start
        self._first_step_seconds: float | None = None
        self._fixed: dict[str, float] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event; invalid values in it are ignored."""
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
        self._sampled_at = self._started_at = _finite(event, "time") or 0.0
        self._loading, self._first_step_seconds = _finite(event, "loading"), None

    def beginning(self, record: RunRecord) -> dict[str, float]:
        """Return the seconds from the call to the end of the first step; empty before, and if unknown."""
        is_earlier = self._started_at < record.started  # than the start of the record
        if self._loading is None or self._first_step_seconds is None or is_earlier or not record.started:
            return {}
        launch = self._started_at - self._loading - record.started
        parts = {**record.seconds, "launch": launch, "load": self._loading}
        return {**parts, "first step": self._first_step_seconds}

    def _sample(self, event: Mapping[str, Any]) -> None:
        seconds = _finite(event, "seconds")
        if seconds is None:
            return
        if self._first_step_seconds is None:
            self._first_step_seconds = seconds
        counted = _finite(event, "tokens")
        before = self._samples[-1].tokens if self._samples else 0
        tokens = before if counted is None else int(counted) * self._ranks
        self._samples.append(_Sample(seconds, self.step, tokens))
        self._sampled_at = _finite(event, "time") or self._sampled_at
        while len(self._samples) > _MIN_SAMPLES and self._samples[1].seconds < seconds - _WINDOW:
            self._samples.popleft()

    def progress(self, state: State, *, stage: str, detail: str = "", now: float | None = None) -> Progress:
        """Return the progress in *state* and at *stage*.

        *now* is the current time; while the run is running, the time since the last event counts.
        """
        last = self._samples[-1] if self._samples else self._began
        since = max(now - self._sampled_at, 0.0) if now is not None and self._sampled_at else 0.0
        per_step, per_token = self._rates(last, is_over=state is not State.RUNNING)
        left = None
        is_stuck = stage.startswith(FAILING) or since > _STUCK_STEPS * (per_step or 0) + _STUCK
        if per_step and self.total is not None and state is State.RUNNING and stage != STOPPING:
            # The current step counts at most as one average step, even if it takes longer.
            left = max((self.total - last.step) * per_step - min(since, per_step), 0.0)
        if is_stuck:
            left = None  # no step ends, so that nothing is known about the rest
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
        """Return seconds per step and tokens per second: recent values or, at the end, those of the start."""
        first = self._samples[0] if len(self._samples) > 1 and not is_over else self._began
        taken, steps, tokens = (now - then for now, then in zip(last, first, strict=True))
        if taken <= 0:
            return None, None
        return (taken / steps if steps > 0 else None), (tokens / taken if tokens > 0 else None)


def follow(
    folder: RunFolder, *, clock: Clock = time.time, sleep: Sleep = time.sleep, poll: float = 0.5
) -> Iterator[Progress]:
    """Yield the progress at once and after every *poll* seconds until the run has ended.

    The last value has the final state and every event.  Each poll reads only the new part of the
    metrics file.  For a run that was not started there is one value.
    """
    tail, totals = _FileTail(folder.metrics_file), ProgressTotals()
    while True:
        record = folder.record()
        state = folder.state(record)  # before the events: once a run has ended, all of them are written
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
    """Return the progress from values that were read: *state* first, then *events*."""
    totals = ProgressTotals()
    for event in events:
        totals.add(event)
    return _progress(folder, record, state, totals, clock())


def attach_hint(run_id: str) -> str:
    """Return how to follow a run again."""
    return f"`colablock.attach({run_id!r})` or `{command_line('runs', 'follow', run_id)}` follows it again"


def stop_command(run_id: str) -> str:
    """Return the command that stops a run, in backticks."""
    return f"`{command_line('runs', 'stop', run_id)}`"


def last_line(log: Path) -> str:
    """Return the last line of *log* that tells how far loading is, as a terminal would show it; else "".

    These are the runner's own: progress bars of the hub, of datasets and of transformers, and
    axolotl's log.  Warnings and other output are no status.
    """
    text = read_end(log, _MAX_TAIL).decode(errors="replace")
    for line in reversed(plain_text(text).splitlines()):
        if line.startswith(START_MARK):
            break
        if (found := _OWN_LINE.fullmatch(line.strip())) is not None:
            return found["text"] or line.strip()
    return ""


def plain_text(text: str) -> str:
    """Return *text* without terminal control sequences and with secrets masked, as it may be shown.

    Each redraw of a progress bar becomes a line.
    """
    return masked(_ESCAPE.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))


def _progress(
    folder: RunFolder, record: RunRecord | None, state: State, totals: ProgressTotals, now: float
) -> Progress:
    if state is State.RUNNING and _is_without_events(record, totals):
        # The loading time, and the losses before a resume.
        stage = _first_stage(folder, record)
        detail = last_line(folder.log) if stage == LOADING else ""
        before = totals.progress(State.RUNNING, stage=stage, detail=detail)
        taken = max(now - record.started, 0.0) if record is not None and record.started else 0.0
        return replace(before, seconds=taken, seconds_left=None, tokens_per_second=None)
    stage = _stage(folder, record, state, totals)
    # The seconds of an ended run are those of its steps, so they do not go on while the adapter is saved.
    is_stepping = state is State.RUNNING and stage != FINISHING
    found = totals.progress(state, stage=stage, now=now if is_stepping else None)
    beginning = totals.beginning(record) if record is not None else {}
    return replace(found, beginning=beginning) if beginning else found


def _is_without_events(record: RunRecord | None, totals: ProgressTotals) -> bool:
    """Whether there are no events but those of earlier starts."""
    return not totals.newest or (record is not None and totals.newest < record.started)


def _first_stage(folder: RunFolder, record: RunRecord | None) -> str:
    """Return the stage of a run without events.  Of several hosts, the first one writes them."""
    if record is None:
        return LOADING
    if (address := folder.waits_at(record)) is not None:
        return f"{_WAITING} at `{address}`"
    words = dict(pairwise(record.command))
    first, host = words.get("--main_process_ip", ""), words.get("--machine_rank", "")
    return f"{_ELSEWHERE}`{first}` shows the steps" if host.isdecimal() and int(host) else LOADING


def _stage(folder: RunFolder, record: RunRecord | None, state: State, totals: ProgressTotals) -> str:
    if state is State.PREPARED:
        return "not started"
    if state is not State.RUNNING:
        return str(state.value)
    if record is not None and record.processes > 1 and (lost := killed_ranks(folder.path)):
        ranks = ", ".join(map(str, lost))
        return f"{FAILING}the process of rank {ranks} was killed, and the others wait for it"
    if folder.stop_file.exists():
        return STOPPING
    if totals.total and totals.step >= totals.total:
        return FINISHING
    return "training" if totals.step > totals.first_step else "starting: the first step"


class _FileTail:
    """Reads the complete lines that were added to a growing file since the last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._rest = b""

    def read(self) -> tuple[bool, list[bytes]]:
        """Return whether the file was replaced or truncated, and the new lines."""
        is_new = False
        try:
            with open_regular(self._path) as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if identity != self._file or status.st_size < self._offset:
                    is_new = self._file is not None
                    self._file, self._offset, self._rest = identity, 0, b""
                file.seek(self._offset)
                new = file.read(METRICS_FILE)
        except (OSError, ValueError):
            return False, []
        self._offset += len(new)
        *lines, rest = (self._rest + new).split(b"\n")
        self._rest = rest[: METRICS_LINE + 1]  # a longer line is no event
        return is_new, lines


def _events(lines: list[bytes]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        event = event_of(line)
        if event is not None:
            yield event


def _finite(event: Mapping[str, Any], key: str) -> float | None:
    value = number_of(event, key)
    return value if value is not None and abs(value) <= _LARGEST else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
