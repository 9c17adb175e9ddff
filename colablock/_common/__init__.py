"""Helpers for every package: text, files, processes, URLs, the reporter protocol.

In: plain values.  Out: plain values.  Nothing here knows of distributions, matrices or plans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colablock._common.fs import file_digest, flock, write_atomic
    from colablock._common.reporter import Reporter
    from colablock._common.text import count

__all__ = ["Reporter", "count", "file_digest", "flock", "lazy_surface", "write_atomic"]


def lazy_surface(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package that imports its names on first use (PEP 562).

    *homes* maps a submodule to the names that it defines, with spaces between them.  Importing the package
    itself loads none of them, so it costs nothing to start with.
    """
    home_of = {name: f"{package}.{home}" for home, names in homes.items() for name in names.split()}

    def getattr_(name: str) -> object:
        __tracebackhide__ = True  # from IPython
        if name not in home_of:
            raise AttributeError(f"module `{package}` has no attribute `{name}`{_meant(name)}", name=name)
        value = getattr(import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)  # not asked again
        return value

    def _meant(name: str) -> str:
        if name.startswith("_"):
            return ""
        from colablock._common.text import near  # noqa: PLC0415 - hardly ever needed

        hint = near(name, dir_())
        return f": {hint}" if hint else ""

    def dir_() -> list[str]:
        return sorted(home_of.keys() | vars(sys.modules[package]).keys())

    return getattr_, dir_


if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_surface(
        __name__, {"fs": "file_digest flock write_atomic", "reporter": "Reporter", "text": "count"}
    )
