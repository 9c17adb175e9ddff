"""Checks before a run starts: model, data, memory, disk, precision, and the versions of the stack.

In: a `TrainConfig` and facts about machine and stack.  Out: findings, each a refusal, a warning or a note.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.training.preflight.checks import Preflight
    from colablock.training.preflight.facts import Finding, Level
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "facts": "Finding Level",
            "checks": "Preflight",
        },
    )

__all__ = ["Finding", "Level", "Preflight"]
