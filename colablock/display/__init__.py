"""Text and HTML for people: in a terminal, in a notebook, and progress in both.

In: a `Plan`, a `Report`, a run and others.  Out: a `Document` of each, as text or as HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.display.html import to_html
    from colablock.display.plan_view import plan_document
    from colablock.display.progress import reporter_for
    from colablock.display.report_view import report_document
    from colablock.display.text import render, render_error, to_text
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "html": "to_html",
            "plan_view": "plan_document",
            "progress": "reporter_for",
            "report_view": "report_document",
            "text": "render render_error to_text",
        },
    )

__all__ = [
    "plan_document",
    "render",
    "render_error",
    "report_document",
    "reporter_for",
    "to_html",
    "to_text",
]
