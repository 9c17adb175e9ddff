"""The Python API: the functions that `import colablock` offers.

In: plain arguments.  Out: values that display themselves in a notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.api.catalog import check, info, list, show  # noqa: A004 - the words of the command line
    from colablock.api.locks import audit, bundle, export, lock
    from colablock.api.stack import apply, explain, history, plan, rollback, run, verify, why
    from colablock.api.training import Run, attach, runs, smoke, train
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "catalog": "check info list show",
            "locks": "audit bundle export lock",
            "stack": "apply explain history plan rollback run verify why",
            "training": "Run attach runs smoke train",
        },
    )

__all__ = [
    "Run",
    "apply",
    "attach",
    "audit",
    "bundle",
    "check",
    "explain",
    "export",
    "history",
    "info",
    "list",
    "lock",
    "plan",
    "rollback",
    "run",
    "runs",
    "show",
    "smoke",
    "train",
    "verify",
    "why",
]
