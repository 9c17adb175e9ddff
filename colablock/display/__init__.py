"""Text and HTML for people: terminal, notebook, progress in both.

In: a `Plan`, a `Report`, a receipt and others.  Out: what is shown.  Nothing is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.display.reporters import reporter_for
    from colablock.display.text import render_error, render_plan, render_report
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "reporters": "reporter_for",
            "text": "render_error render_plan render_report",
        },
    )

__all__ = ["render_error", "render_plan", "render_report", "reporter_for"]
