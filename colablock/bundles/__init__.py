"""Bundles: one archive with a matrix, its lock, and the files that the lock installs.

In: files to pack, or an archive that anybody may have made.  Out: an archive, or its members, checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.bundles.manifest import BundleManifest, BundleMember
    from colablock.bundles.reader import Bundle
    from colablock.bundles.writer import Source, write_bundle
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {"manifest": "BundleManifest BundleMember", "reader": "Bundle", "writer": "Source write_bundle"},
    )

__all__ = ["Bundle", "BundleManifest", "BundleMember", "Source", "write_bundle"]
