"""A run in short, for lists and for its end: what was asked for, how far it came, how it ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from colablock.errors import Refused
from colablock.training.runs.checkpoint_mirror import mirror_notes
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

__all__ = ["RunSummary", "View", "summaries", "summary_of", "summary_to_json", "watch"]


_ASKED = "asked to stop: it saves a checkpoint after this step; interrupt again to wait no longer"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run.  *record* is None where its folder is gone, or was never written."""

    id: str
    folder: Path
    record: RunRecord | None
    progress: Progress
    explanation: Explanation | None = None
    adapter: Path | None = None  # what was learnt, once it is whole
    mirror: str | None = None  # what its mirror said last

    @property
    def state(self) -> State:
        return self.progress.state

    @property
    def is_there(self) -> bool:
        """Whether its folder still stands."""
        return self.record is not None

    @property
    def first_loss(self) -> float | None:
        """The loss that was logged first."""
        return self.progress.points[0].loss if self.progress.points else None


class View(Protocol):
    """Where a run is shown while it is followed."""

    def update(self, progress: Progress) -> None:
        """Show how far it is: called about twice a second."""

    def note(self, text: str) -> None:
        """Show a sentence that stays."""


def summary_of(
    run_id: str, folder: RunFolder, *, explained: bool = True, clock: Clock = time.time
) -> RunSummary:
    """Return the run in *folder* as it stands; why it ended is looked for where it is to be *explained*."""
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
    )


def summaries(home: Path, *, explained: bool = True, clock: Clock = time.time) -> Iterator[RunSummary]:
    """Yield every run that was started here, newest first."""
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
) -> RunSummary:
    """Show the run in *view* until it has ended, and return it.

    What its mirror says meanwhile is noted.  A KeyboardInterrupt asks it to stop and waits
    for that, and a second one waits no longer; without *stops* the first already leaves it
    to itself, and so it does where *is_leaving* says that who watches is about to go.  Then the
    state that is returned is RUNNING.
    """
    told = len(mirror_notes(folder.path))
    is_interrupted = False
    while True:
        try:
            if is_interrupted:
                with suppress(Refused):  # it has just ended
                    stop_run(run_id, folder)
                    view.note(_ASKED)
            for progress in follow(folder, clock=clock, sleep=sleep, poll=poll):
                view.update(progress)
                for note in mirror_notes(folder.path)[told:]:
                    view.note(note)
                    told += 1
            break
        except KeyboardInterrupt:
            if is_interrupted or not stops or _leaves(is_leaving):
                meanwhile = "it goes on by itself, and stops once its checkpoint is saved"
                view.note(f"{meanwhile if is_interrupted else 'the run goes on'}; {attach_hint(run_id)}")
                break
            is_interrupted = True
    return summary_of(run_id, folder, clock=clock)


def _leaves(is_leaving: Callable[[], bool]) -> bool:
    try:
        return is_leaving()
    except KeyboardInterrupt:  # twice: it is the user, who is there
        return False


def summary_to_json(summary: RunSummary) -> dict[str, Any]:
    """Return *summary* as plain values; what is not finite is null, and points are left out."""
    progress = asdict(summary.progress)
    for name in ("points", "evaluations", "state"):
        del progress[name]
    record = record_to_json(summary.record) if summary.record is not None else None
    plain: dict[str, Any] = {
        "id": summary.id,
        "folder": str(summary.folder),
        "state": summary.state.value if summary.is_there else "gone",
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
