"""A run in progress and summaries of runs, as values for display tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from colablock.training.runs.folder import State
from colablock.training.runs.loss_curve import Point
from colablock.training.runs.progress import Progress
from colablock.training.runs.summary import RunSummary
from tests.support.runs import make_record

__all__ = ["LOADING", "TRAINING", "summary"]

TRAINING = Progress(
    state=State.RUNNING,
    stage="training",
    step=1200,
    total=6000,
    loss=1.31,
    smooth_loss=1.2345,
    learning_rate=1.9e-4,
    tokens_per_second=3210.4,
    memory=10_200_000_000,
    seconds=180.0,
    seconds_left=725.0,
    checkpoint="checkpoint-1000",
    checkpoints=2,
    points=(Point(1, 6.0), Point(1200, 1.31)),
)
LOADING = Progress(
    state=State.RUNNING,
    stage="starting: loading the model",
    detail="Loading <checkpoint> shards: 50%",
    seconds=25.2,
)


def summary(state: State, path: Path, **facts: object) -> RunSummary:
    """Return the summary of a run in *state*, with *facts* in place of the usual ones."""
    progress = replace(TRAINING, state=state, stage=state.value, seconds_left=None, seconds_in_all=300.0)
    usual: dict[str, object] = {
        "id": "tiny",
        "folder": path,
        "record": make_record(estimate=11_200_000_000),
        "progress": progress,
    }
    return RunSummary(**(usual | facts))  # type: ignore[arg-type]
