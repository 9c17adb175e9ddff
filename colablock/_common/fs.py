"""Files that a user asked for, written as a whole or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from colablock.errors import InvalidInput

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write *data* to *path* in one step, its folders made, over what stood there.  Raises InvalidInput."""
    new = path.parent / f".{path.name}.{os.getpid()}"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(data)
        new.replace(path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise InvalidInput(f"`{path}` cannot be written: {error.strerror}") from error
