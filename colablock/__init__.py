"""Resolve, install and prove a QLoRA training stack on a hosted notebook.

::

    import colablock
    report = colablock.apply("qlora-2026")   # resolve, plan, change, prove
    report.python                            # the interpreter to train with
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._version import __version__

if TYPE_CHECKING:
    from colablock.api.stack import (
        apply,
        audit,
        explain,
        export,
        history,
        lock,
        plan,
        rollback,
        run,
        verify,
        why,
    )
    from colablock.api.training import attach, runs, smoke, train
    from colablock.cli.notebook_magics import load_ipython_extension
    from colablock.errors import ColablockError

__all__ = [
    "ColablockError",
    "__version__",
    "apply",
    "attach",
    "audit",
    "explain",
    "export",
    "history",
    "load_ipython_extension",
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


_HOMES = {
    "api.stack": "apply audit explain export history lock plan rollback run verify why",
    "api.training": "attach runs smoke train",
    "cli.notebook_magics": "load_ipython_extension",
    "errors": "ColablockError",
}


def __getattr__(name: str) -> object:
    """Import a function when it is first used: `import colablock` itself loads only the version."""
    from colablock._common import lazy_surface

    return lazy_surface(__name__, _HOMES)[0](name)


def __dir__() -> list[str]:
    return __all__
