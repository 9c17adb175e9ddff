"""Values that the functions return where a plain tuple, dictionary or text would show nothing useful.

Each is the plain value that its base says, and also displays itself: `str()` is short, a notebook shows HTML.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from colablock.display.html import to_html
from colablock.display.notebook import show_once
from colablock.display.text import to_text
from colablock.display.view import Document, spoken_in_python

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Exported", "Facts", "Lines", "LockBytes", "Rows"]

T = TypeVar("T")


class _Displayed:
    """A value that shows itself as the document that *document_of* returns for it."""

    _document_of: Callable[[Any], Document]

    def shown_as(self, document_of: Callable[[Any], Document]) -> Self:
        """Return this value, shown as *document_of* returns it."""
        self._document_of = document_of
        return self

    def document(self) -> Document:
        """Return what is shown."""
        return spoken_in_python(self._document_of(self))

    def __str__(self) -> str:
        return to_text(self.document())

    def _repr_html_(self) -> str:
        return to_html(self.document())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: FBT001  # IPython's signature
        del cycle
        printer.text(str(self))


show_once(_Displayed)


class Rows(_Displayed, tuple[T, ...]):  # noqa: SLOT001 - a tuple can have no slots
    """A tuple."""


class Lines(_Displayed, list[T]):
    """A list."""


class Facts(_Displayed, dict[str, object]):
    """A dictionary."""


class LockBytes(_Displayed, bytes):
    """The bytes of a lock file."""


class Exported(str):
    """The text of an export.  `str()` and `print()` give all of it; a cell shows one line about it."""

    __slots__ = ("about",)
    about: str

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(self.about)}</div>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: FBT001  # IPython's signature
        del cycle
        printer.text(self.about)
