"""The parsers of bytes that others may have written, as data.

To add a parser, add a `Target` to the module of its kind, or a module with another tuple.
"""

from __future__ import annotations

from tests.fuzz.file_targets import FILES
from tests.fuzz.index_targets import INDEX
from tests.fuzz.state_targets import STATE
from tests.fuzz.target import Target

__all__ = ["TARGETS"]

TARGETS: tuple[Target, ...] = (*INDEX, *FILES, *STATE)
assert len({one.name for one in TARGETS}) == len(TARGETS)
