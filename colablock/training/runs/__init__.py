"""One run: its config, folder, checkpoints, launch, progress, crash report and summary.

In: a `TrainConfig` and a run folder.  Out: a launched process and what its files tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.training.runs.checkpoints.finder import verify_checkpoint
    from colablock.training.runs.config import TrainConfig
    from colablock.training.runs.folder import RunFolder, RunRecord, find_run, list_runs
    from colablock.training.runs.summary import RunSummary, summary_of
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "checkpoints.finder": "verify_checkpoint",
            "config": "TrainConfig",
            "folder": "RunFolder RunRecord find_run list_runs",
            "summary": "RunSummary summary_of",
        },
    )

__all__ = [
    "RunFolder",
    "RunRecord",
    "RunSummary",
    "TrainConfig",
    "find_run",
    "list_runs",
    "summary_of",
    "verify_checkpoint",
]
