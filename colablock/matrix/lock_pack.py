"""The format of the file that has all shipped locks in an installed wheel.

The locks of one matrix share most of their packages, but a wheel compresses
each file alone.  In the pack, a lock is a list of blocks, and a block that
several locks have is written once.  The pack has three lines of JSON: the names
of the locks, the blocks of each by their places, and the blocks.

The build of a wheel runs this module where nothing of colablock and none of its
requirements can be imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain

__all__ = ["LOCK_PACK", "MARK", "pack_locks"]

LOCK_PACK = "locks.json.gz"
MARK = "\n\n"
"""A lock is cut between its tables: files that several packages list are written once, too."""


def pack_locks(locks: Mapping[str, str]) -> bytes:
    """Return the content of a pack of *locks*, texts by file name.  The same locks give the same bytes."""
    parts = {name: text.split(MARK) for name, text in sorted(locks.items())}
    # Sorted: gzip finds repetition in the last 32 KiB, and the blocks of one project resemble each other.
    blocks = {block: place for place, block in enumerate(sorted({*chain.from_iterable(parts.values())}))}
    places = [[blocks[block] for block in split] for split in parts.values()]
    # The names are in a line of their own, so that they can be listed without the rest.
    lines = (json.dumps(value, separators=(",", ":")) for value in (list(parts), places, list(blocks)))
    import gzip  # noqa: PLC0415 - the no-op check of an apply reads no lock

    return gzip.compress("\n".join(lines).encode(), mtime=0)
