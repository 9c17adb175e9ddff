"""Hints that name what a word may have been meant for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["near"]


def near(word: str, known: Iterable[str]) -> str | None:
    """Return a hint with the one of *known* that *word* may have been meant for; None where none is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{found[0]}`?" if found else None
