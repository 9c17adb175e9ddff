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
    from collections.abc import Iterable

    from colablock.api.catalog import info, list, show  # noqa: A004 - the words of the command line
    from colablock.api.locks import audit, bundle, export, lock
    from colablock.api.stack import apply, explain, history, plan, rollback, run, verify, why
    from colablock.api.training import attach, runs, smoke, train
    from colablock.cli.notebook_magics import load_ipython_extension
    from colablock.errors import ColablockError

__all__ = [
    "ColablockError",
    "__version__",
    "apply",
    "attach",
    "audit",
    "bundle",
    "explain",
    "export",
    "history",
    "info",
    "list",
    "load_ipython_extension",
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


_HOMES = {
    "api.catalog": "info list show",
    "api.locks": "audit bundle export lock",
    "api.stack": "apply explain history plan rollback run verify why",
    "api.training": "attach runs smoke train",
    "cli.notebook_magics": "load_ipython_extension",
    "errors": "ColablockError",
}


def __getattr__(name: str) -> object:
    """Import a function when it is first used: `import colablock` itself loads only the version."""
    from colablock._common import lazy_surface

    __tracebackhide__ = True  # from IPython
    if name == "check":
        from importlib import import_module

        from colablock._dependencies import require_dependencies

        require_dependencies()
        return import_module("colablock.check")
    if name in __all__ and name != "ColablockError":
        from colablock._dependencies import require_dependencies

        require_dependencies()
    try:
        return lazy_surface(__name__, _HOMES)[0](name)
    except KeyboardInterrupt:
        from colablock.errors import Interrupted

        raise Interrupted("Nothing was changed.") from None


def __dir__() -> Iterable[str]:
    # `check` is also the name of a package, which can be called.
    return [*__all__, "check"]


def _magic(line: str, cell: str | None = None) -> None:
    """Run the line or the cell as a command of colablock: `%colablock plan NAME`, `%%colablock run NAME`."""
    from colablock._dependencies import require_dependencies

    require_dependencies()
    from colablock.cli.notebook_magics import Magic

    Magic()(line, cell)


def _register_magics() -> None:
    """Register `%colablock` if this is a notebook, or IPython in a terminal; load nothing for it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    register = getattr(shell, "register_magic_function", None)
    if register is not None:
        register(_magic, "line_cell", "colablock")


_register_magics()
