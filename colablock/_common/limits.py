"""Limits on what is read from files and servers that somebody else may have written.

Each limit is several times what real indexes, wheels, locks and runs have; the comment says what that is.
Sizes are bytes.
"""

from __future__ import annotations

from typing import Final

__all__ = ["DEPTH", "RECORD_FILE", "SHOWN"]

DEPTH: Final = 64
"""Nested arrays and objects in a JSON value of unknown form (a config, a report).  Real ones have 12."""

RECORD_FILE: Final = 64 << 20
"""A file of our own state: a journal of 30,000 moves has 9 MB."""

SHOWN: Final = 200
"""Characters of foreign text in a message."""
