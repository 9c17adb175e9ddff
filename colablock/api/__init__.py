"""The Python API: the functions that `import colablock` offers.

In: plain arguments.  Out: values that display themselves in a notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.api.stack import apply, explain, export, history, lock, plan, rollback, run, verify, why
    from colablock.api.training import Run, attach, runs, smoke, train
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "stack": "apply explain export history lock plan rollback run verify why",
            "training": "Run attach runs smoke train",
        },
    )

__all__ = [
    "Run",
    "apply",
    "attach",
    "explain",
    "export",
    "history",
    "lock",
    "plan",
    "rollback",
    "run",
    "runs",
    "smoke",
    "train",
    "verify",
    "why",
]
