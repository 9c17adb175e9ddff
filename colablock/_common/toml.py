"""TOML that others may have written."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

from colablock._common.limits import SHOWN, TEXT_FILE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["NotToml", "load_toml", "read_text_file"]


class NotToml(ValueError):
    """The text is no TOML document.  ``str()`` gives the reason in one line."""


def load_toml(data: bytes) -> dict[str, Any]:
    """Return the top table of a TOML document in UTF-8.  Raises NotToml, and no other exception."""
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise NotToml("it is nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, and a number of thousands of digits
        text = str(error)
        raise NotToml(text if len(text) <= SHOWN else f"{text[:SHOWN]}...") from error


def read_text_file(path: Path, limit: int = TEXT_FILE) -> bytes:
    """Return the content of a file that a user names.  Raises OSError, also if it is larger than *limit*."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 20} MiB", str(path))
    return data
