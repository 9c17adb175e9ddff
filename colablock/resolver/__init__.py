"""Version resolution with resolvelib, which changes as little in the environment as possible.

In: a `Request` and a source of candidates.  Out: a `Resolution`, or `NoSolution` with a report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.resolver.model import Pin, Request, Resolution
    from colablock.resolver.resolver import resolve
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "model": "Pin Request Resolution",
            "resolver": "resolve",
        },
    )

__all__ = ["Pin", "Request", "Resolution", "resolve"]
