"""Write lock files (PEP 751), read them, find the one that fits, and export them to other formats.

In: a `Resolution` or a lock file.  Out: a lock file, exact pins, or a requirements file with hashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.lockfile.export import Format, export_text
    from colablock.lockfile.lock_source import LockSource
    from colablock.lockfile.pins import LockedPin, pins_of
    from colablock.lockfile.pylock import make_lock, read_lock, write_lock
    from colablock.lockfile.store import LockStore
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "export": "Format export_text",
            "lock_source": "LockSource",
            "pins": "LockedPin pins_of",
            "pylock": "make_lock read_lock write_lock",
            "store": "LockStore",
        },
    )

__all__ = [
    "Format",
    "LockSource",
    "LockStore",
    "LockedPin",
    "export_text",
    "make_lock",
    "pins_of",
    "read_lock",
    "write_lock",
]
