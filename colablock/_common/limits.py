"""Limits on what is read from files and servers that somebody else may have written.

Each limit is several times what real indexes, wheels, locks and runs have; the comment says what that is.
Sizes are bytes.
"""

from __future__ import annotations

from typing import Final

__all__ = ["DEPTH", "METRICS_FILE", "METRICS_LINE", "RECORD_FILE", "RUN_FILE", "SHOWN", "WORKER_ANSWER"]

DEPTH: Final = 64
"""Nested arrays and objects in a JSON value of unknown form (a config, a report).  Real ones have 12."""

RECORD_FILE: Final = 64 << 20
"""A file of our own state: a journal of 30,000 moves has 9 MB."""

RUN_FILE: Final = 16 << 20
"""A file of a run, a checkpoint, an isolated environment or a matrix's evidence.  The largest has 1 MB."""

METRICS_FILE: Final = 64 << 20
"""The end of ``metrics.jsonl`` that is read: a run of 100,000 steps has 35 MB."""

METRICS_LINE: Final = 64 << 10
"""One event of a run has 300 bytes."""

WORKER_ANSWER: Final = 64 << 20
"""The answer of a process that colablock starts: the distributions of an image have 2 MB."""

SHOWN: Final = 200
"""Characters of foreign text in a message."""
