"""The hand-off to training: preflight, launch, progress, resume, and the record of a run.

In: a proven environment and a `TrainConfig`.  Out: a run folder, a trained adapter, a receipt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.training.find_or_start import Briefing, TrainOptions, train
    from colablock.training.receipts import Receipt
    from colablock.training.runs.config import TrainConfig
    from colablock.training.runs.crash import Explanation
    from colablock.training.runs.folder import RunFolder, RunRecord
    from colablock.training.runs.summary import RunSummary
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "find_or_start": "Briefing TrainOptions train",
            "receipts": "Receipt",
            "runs.config": "TrainConfig",
            "runs.crash": "Explanation",
            "runs.folder": "RunFolder RunRecord",
            "runs.summary": "RunSummary",
        },
    )

__all__ = [
    "Briefing",
    "Explanation",
    "Receipt",
    "RunFolder",
    "RunRecord",
    "RunSummary",
    "TrainConfig",
    "TrainOptions",
    "train",
]
