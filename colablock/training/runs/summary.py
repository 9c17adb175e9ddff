"""Summaries of runs, for lists and after their end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from colablock.errors import Refused, Unmet, interrupted_as
from colablock.training.runs.checkpoints.mirror import is_being_mirrored, mirror_notes, wait_for_mirror
from colablock.training.runs.crash import Explanation, explain
from colablock.training.runs.folder import (
    RunFolder,
    RunRecord,
    State,
    list_runs,
    record_to_json,
    stop_run,
)
from colablock.training.runs.launch import exit_code_of
from colablock.training.runs.progress import Clock, Progress, Sleep, attach_hint, follow, progress_of

__all__ = ["RunSummary", "View", "await_mirror", "summaries", "summary_of", "summary_to_json", "watch"]


_MIRROR_LIMIT = 3600.0  # seconds; it gives up by itself after some minutes of failures
_STOP_REQUESTED = "stopping: the run saves a checkpoint after this step; interrupt again to stop waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run.  *record* is None if its folder is gone or has no record."""

    id: str
    folder: Path
    record: RunRecord | None
    progress: Progress
    explanation: Explanation | None = None
    adapter: Path | None = None  # the folder of the trained adapter, once it is complete
    mirror: str | None = None  # the last note of its mirror
    fault: str | None = None  # why its record cannot be read

    @property
    def state(self) -> State:
        return self.progress.state

    @property
    def is_there(self) -> bool:
        """Whether its folder exists."""
        return self.record is not None

    @property
    def state_word(self) -> str:
        """Its state in a word: that of its process, or "gone" or "damaged" without a record."""
        if self.is_there:
            return self.state.value
        return "damaged" if self.fault else "gone"

    @property
    def first_loss(self) -> float | None:
        """The first loss that was logged."""
        return self.progress.points[0].loss if self.progress.points else None


class View(Protocol):
    """Displays a run while it is followed."""

    def update(self, progress: Progress) -> None:
        """Show the progress.  Called about twice a second."""

    def note(self, text: str) -> None:
        """Show a sentence permanently."""


def summary_of(
    run_id: str, folder: RunFolder, *, explained: bool = True, clock: Clock = time.time
) -> RunSummary:
    """Return the summary of the run in *folder*; with *explained*, why it ended early."""
    record = folder.record()
    state = folder.state(record)
    events = folder.metrics()
    explanation = None
    if explained and record is not None:
        exit_code = exit_code_of(record.process, record.process_started)
        explanation = explain(folder, state=state, events=events, exit_code=exit_code)
    is_whole = state in (State.DONE, State.STOPPED) and any(folder.adapter.glob("adapter_config.json"))
    return RunSummary(
        id=run_id,
        folder=folder.path,
        record=record,
        progress=progress_of(folder, record, state, events, clock=clock),
        explanation=explanation,
        adapter=folder.adapter if is_whole else None,
        mirror=next(reversed(mirror_notes(folder.path)), None),
        fault=folder.fault() if record is None else None,
    )


def summaries(home: Path, *, explained: bool = True, clock: Clock = time.time) -> Iterator[RunSummary]:
    """Yield the summary of every registered run, newest first."""
    for run_id, folder in list_runs(home):
        yield summary_of(run_id, folder, explained=explained, clock=clock)


def watch(
    run_id: str,
    folder: RunFolder,
    view: View,
    *,
    stops: bool = True,
    is_leaving: Callable[[], bool] = lambda: False,
    clock: Clock = time.time,
    sleep: Sleep = time.sleep,
    poll: float = 0.5,
    is_interrupted: bool = False,
) -> RunSummary:
    """Show the run in *view* until it has ended, and return its summary.

    Notes of its mirror are shown as well.  A KeyboardInterrupt requests the run to stop and keeps
    waiting; a second one returns at once.  Without *stops*, and if *is_leaving* returns true (the
    process is about to exit), the first one returns at once.  Then the state of the summary is
    RUNNING.  *is_interrupted*: the first one came before this call.
    """
    shown = len(mirror_notes(folder.path))
    while True:
        try:
            if is_interrupted:
                with suppress(Refused):  # the run has just ended
                    stop_run(run_id, folder)
                    view.note(_STOP_REQUESTED)
            for progress in follow(folder, clock=clock, sleep=sleep, poll=poll):
                view.update(progress)
                for note in mirror_notes(folder.path)[shown:]:
                    view.note(note)
                    shown += 1
            break
        except KeyboardInterrupt:
            if is_interrupted or not stops or _leaves(is_leaving):
                state = "the run stops by itself once its checkpoint is saved"
                view.note(f"{state if is_interrupted else 'the run continues'}; {attach_hint(run_id)}")
                break
            is_interrupted = True
    return summary_of(run_id, folder, clock=clock)


def await_mirror(
    summary: RunSummary,
    tell: Callable[[str], object],
    *,
    environ: Mapping[str, str],
    target: str | None = None,
) -> tuple[RunSummary, Unmet | None]:
    """Wait for the mirror of a run that has ended, and return the summary then.

    A job of Slurm that was stopped is queued again, and the next start mirrors what is left: nobody waits.
    The machine may be gone after this call.  It waits for every mirror, also that of another process.  *tell*
    gets its notes.  If the last checkpoint and the adapter do not get to the mirror, which *target* names,
    the error says so.
    """
    is_left = summary.state is State.STOPPED and bool(environ.get("SLURM_JOB_ID"))
    if is_left or summary.state is State.RUNNING:
        return summary, None
    is_mirrored = is_being_mirrored(summary.folder)
    has_one = target is not None or is_mirrored
    if has_one:
        tell("waiting for the mirror")
    shown, started = len(mirror_notes(summary.folder)), time.monotonic()
    with interrupted_as(f"The run `{summary.id}` has ended; its mirror goes on."):
        is_kept = wait_for_mirror(summary.folder, limit=_MIRROR_LIMIT, was_seen=is_mirrored)
    if is_kept and not has_one:
        return summary, None
    notes = mirror_notes(summary.folder)
    for note in notes[shown:]:
        tell(note)
    last = notes[-1] if notes else None
    if not is_kept and time.monotonic() - started >= _MIRROR_LIMIT:
        last = f"it has not ended in {_MIRROR_LIMIT / 60:.0f} minutes"
    summary = replace(summary, mirror=last)
    if is_kept:
        return summary, None
    mirror = f"the mirror `{target}`" if target else "the mirror"
    said = f"its last note is: {last}" if last else "it has written no note"
    message = f"{mirror} has not got the whole result of the run `{summary.id}`; {said}"
    hint = f"Everything is in `{summary.folder}`: the same call mirrors it again"
    return summary, Unmet(message, hint=hint)


def _leaves(is_leaving: Callable[[], bool]) -> bool:
    try:
        return is_leaving()
    except KeyboardInterrupt:  # a second one comes from the user, who is not leaving
        return False


def summary_to_json(summary: RunSummary) -> dict[str, Any]:
    """Return *summary* as JSON values, without the points; values that are not finite become null."""
    progress = asdict(summary.progress)
    for name in ("points", "evaluations", "state"):
        del progress[name]
    record = record_to_json(summary.record) if summary.record is not None else None
    plain: dict[str, Any] = {
        "id": summary.id,
        "folder": str(summary.folder),
        "state": summary.state_word,
        "fault": summary.fault,
        "adapter": str(summary.adapter) if summary.adapter is not None else None,
        "mirror": summary.mirror,
        "first_loss": summary.first_loss,
        "progress": progress,
        "explanation": asdict(summary.explanation) if summary.explanation is not None else None,
        "record": record,
    }
    return {key: _finite(value) for key, value in plain.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
