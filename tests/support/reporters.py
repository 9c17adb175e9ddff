"""Reporters that record their calls."""

from __future__ import annotations

from colablock._common.reporter import Reporter

__all__ = ["Notes"]


class Notes(Reporter):
    """Record the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
