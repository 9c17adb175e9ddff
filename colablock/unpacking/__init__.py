"""Unpack wheels: each once into a store, checked and hashed, and from there into a prefix.

In: wheels with their hashes.  Out: the folders of a prefix with their files, and the rows of each RECORD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.unpacking.layout import Layout
    from colablock.unpacking.store import UnpackedStore
    from colablock.unpacking.unpack import UnpackedWheel
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "layout": "Layout",
            "store": "UnpackedStore",
            "unpack": "UnpackedWheel",
        },
    )

__all__ = ["Layout", "UnpackedStore", "UnpackedWheel"]
