"""TOML that others may have written."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from colablock._common.limits import DEPTH, SHOWN, TEXT_FILE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["NotToml", "as_key_twice", "in_utc", "load_toml", "read_text_file"]


# A string that does not end takes the rest of the line: with every `"` tried again, time is quadratic.
_STRING = re.compile(rb""""(?:[^"\\]|\\.)*(?:"|\\?$)|'[^']*(?:'|$)""")
_OWN_PIPE = re.compile(r"/dev/(stdin|fd/[0-9]+)|/proc/self/fd/[0-9]+")
_FIRST = datetime.min.replace(tzinfo=timezone.utc)
_LAST = datetime.max.replace(tzinfo=timezone.utc)
_OVERWRITTEN = re.compile(r"Cannot overwrite a value \(at line (\d+), ")
_BETWEEN_KEYS = re.compile(rb"[=,{}\[\]#]")


class NotToml(ValueError):
    """The text is no TOML document.  ``str()`` gives the reason in one line."""


def load_toml(data: bytes) -> dict[str, Any]:
    """Return the top table of a TOML document in UTF-8.  Raises NotToml, and no other exception."""
    if any(line.count(b".") > DEPTH and _is_deep(line) for line in data.split(b"\n")):
        raise NotToml("it is nested too deeply")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise NotToml("it is nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, and a number of thousands of digits
        text = as_key_twice(data, str(error)) or str(error)
        raise NotToml(text if len(text) <= SHOWN else f"{text[:SHOWN]}...") from error


def as_key_twice(data: bytes, told: str) -> str:
    """Return what the parser has told if a key is there twice in a table, with both lines; else ""."""
    found = _OVERWRITTEN.match(told)
    if found is None:
        return ""
    lines = data.decode("utf-8", "replace").split("\n")
    last = int(found[1])
    key = lines[last - 1].partition("=")[0].strip()
    for number in range(last - 1, 0, -1):
        line = lines[number - 1].strip()
        if line.startswith("["):
            break
        if line.partition("=")[0].strip() == key:
            return f"the key `{key}` is there twice (lines {number} and {last})"
    return ""


def _is_deep(line: bytes) -> bool:
    """Whether a key of *line* has too many parts, ``a.b.c``: the parser takes the square of their number."""
    plain = _STRING.sub(b"", line)
    return any(part.count(b".") > DEPTH for part in _BETWEEN_KEYS.split(plain))


def read_text_file(path: Path, limit: int = TEXT_FILE) -> bytes:
    """Return the content of a file that a user names.

    Raises OSError, also if it is larger than *limit* or a FIFO.  A pipe of this process, such as
    ``/dev/stdin`` or ``<(...)`` of a shell, is read.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    flags = 0 if _OWN_PIPE.fullmatch(str(path)) else getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, given: os.open(name, given | flags)) as file:
        if flags and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a FIFO", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise OSError(errno.EFBIG, f"it is larger than {size}", str(path))
    return data


def in_utc(moment: datetime) -> datetime:
    """Return *moment* in UTC; one without an offset is in UTC already.

    Before the year 1 and after 9999 it is the first or the last moment in UTC.
    """
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        return _FIRST if moment.year == 1 else _LAST
