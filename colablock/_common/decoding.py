"""JSON of files and servers, decoded into typed records of bounded size.

Whoever could write the bytes may have written anything.  What does not fit the
type is a `Malformed` with a short reason, and for a file an `InvalidInput` that
names it: never another exception.  The limits are in `limits`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from colablock._common.limits import DEPTH, RECORD_FILE, SHOWN
from colablock.errors import InvalidInput

__all__ = ["Malformed", "decode", "read_bounded", "read_record"]

T = TypeVar("T")

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # Windows has none


class Malformed(ValueError):
    """Bytes that do not have the expected form.  The text is the reason, in one short line."""


def decode(data: bytes | str, type_: type[T]) -> T:
    """Return the JSON *data* as a *type_*, which is a ``msgspec.Struct`` or another type that msgspec reads.

    Unknown fields are ignored, since a newer version may have written them.
    Raises Malformed.
    """
    try:
        value = msgspec.json.decode(data, type=type_)
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeError, ValueError) as error:
        raise Malformed(_one_line(str(error))) from error
    if type_ in (Any, dict, list):
        _check_depth(value)
    return value


def read_bounded(path: Path, limit: int = RECORD_FILE) -> bytes:
    """Return the content of a regular file of at most *limit* bytes.  Raises OSError and Malformed."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Malformed("it is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"it is larger than {limit} bytes")
    return data


def read_record(path: Path, type_: type[T], *, limit: int = RECORD_FILE, hint: str | None = None) -> T:
    """Return the JSON file *path* as a *type_*.  Raises OSError, and InvalidInput naming the file."""
    try:
        return decode(read_bounded(path, limit), type_)
    except Malformed as error:
        raise InvalidInput(f"`{path}` cannot be read: {error}", hint=hint) from error


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level := [inner for one in level for inner in _nested(one)]:
        depth += 1
        if depth > DEPTH:
            raise Malformed("it is nested too deeply")


def _nested(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _one_line(text: str) -> str:
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
