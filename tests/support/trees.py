"""Folders compared as a whole: paths, bytes, modes and links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["listing"]


def listing(root: Path) -> dict[str, tuple[str, int, str | bytes]]:
    """Return everything below *root*: kind, permissions, and content or where a link points."""
    found: dict[str, tuple[str, int, str | bytes]] = {}
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
