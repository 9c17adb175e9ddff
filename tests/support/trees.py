"""Folders compared as a whole: paths, bytes, modes and links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["installed_listing", "listing"]

Listing = dict[str, tuple[str, int, str | bytes]]


def listing(root: Path) -> Listing:
    """Return everything below *root*: kind, permissions, and content or where a link points."""
    found: Listing = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            status = path.lstat()
            mode = stat.S_IMODE(status.st_mode)
            key = path.relative_to(root).as_posix()
            if path.is_symlink():
                found[key] = ("link", mode, str(path.readlink()))
            elif path.is_dir():
                found[key] = ("folder", mode, "")
            else:
                found[key] = ("file", mode, path.read_bytes())
    return found


def installed_listing(root: Path) -> Listing:
    """Return the listing without what colablock keeps beside the environment for the way back."""
    return {path: what for path, what in listing(root).items() if ".colablock" not in Path(path).parts}
