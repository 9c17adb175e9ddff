"""Resolve, install and prove a QLoRA training stack on a hosted notebook.

::

    import colablock
    report = colablock.apply("qlora-2026")   # resolve, plan, change, prove
    report.python                            # the interpreter to train with
"""

from __future__ import annotations

import sys
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

    try:
        return lazy_surface(__name__, _HOMES)[0](name)
    except KeyboardInterrupt:
        from colablock.errors import Interrupted

        raise Interrupted("Nothing was changed.") from None


def __dir__() -> list[str]:
    return __all__


def _magic(line: str, cell: str | None = None) -> None:
    """Run the line or the cell as a command of colablock: `%colablock plan NAME`, `%%colablock run NAME`."""
    from colablock.cli.notebook_magics import Magic

    Magic()(line, cell)


def _register_magics() -> None:
    """Register `%colablock` if this is a notebook, or IPython in a terminal; load nothing for it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        shell.register_magic_function(_magic, "line_cell", "colablock")


_register_magics()
