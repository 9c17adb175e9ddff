"""Make a declared QLoRA stack fit the notebook runtime that is there.

::

    import colablock
    report = colablock.apply("qlora-2026")   # resolve, plan, change, prove
    report.python                            # the interpreter to train with
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._version import __version__

if TYPE_CHECKING:
    from colablock.api.stack import apply, export, history, lock, plan, rollback, run, verify, why
    from colablock.api.training import attach, runs, smoke, train
    from colablock.cli.notebook_magics import load_ipython_extension

__all__ = [
    "__version__",
    "apply",
    "attach",
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


_HOME = {
    "load_ipython_extension": "colablock.cli.notebook_magics",
    **dict.fromkeys(("attach", "runs", "smoke", "train"), "colablock.api.training"),
}


def __getattr__(name: str) -> object:
    """Import a function when it is first used: `import colablock` itself loads next to nothing."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(_HOME.get(name, "colablock.api.stack")), name)
    message = f"module `colablock` has no attribute `{name}`"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return __all__
