"""JSON of files and servers, decoded into typed records of bounded size.

Whoever could write the bytes may have written anything.  What does not fit the
type is a `Malformed` with a short reason, and for a file an `InvalidInput` that
names it: never another exception.  The limits are in `limits`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from colablock._common.limits import DEPTH, RECORD_FILE, SHOWN
from colablock._common.text import printable
from colablock.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

__all__ = [
    "Malformed",
    "check_depth",
    "decode",
    "encode",
    "fitted",
    "is_plain_name",
    "open_regular",
    "read_bounded",
    "read_end",
    "read_record",
]

T = TypeVar("T")

_DECODERS: dict[object, msgspec.json.Decoder[Any]] = {}
_MAKING = threading.Lock()
_PYTHON_ONLY = (b"\\u", b"NaN", b"Infinity")
_LONGEST_NAME = 255  # bytes, on every common file system
_BLOCK = 1 << 20
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # Windows has none
_BINARY = getattr(os, "O_BINARY", 0)  # only Windows has it


class Malformed(ValueError):
    """Bytes that do not have the expected form.  The text is the reason, in one short line."""


def decode(data: bytes | str, type_: type[T], *, by_python: bool = False) -> T:
    """Return the JSON *data* as a *type_*: a ``msgspec.Struct``, a dataclass or another type of msgspec.

    With *by_python*, the data may be in the dialect of Python's ``json`` module, which writes
    ``NaN``, ``Infinity``, and a path that is not UTF-8 with lone surrogates (PEP 383).

    Unknown fields are ignored, since a newer version may have written them.
    Raises Malformed.
    """
    import msgspec  # noqa: PLC0415 - its import takes 50 ms

    try:
        value = _decoder_of(type_).decode(data)
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeError, ValueError) as error:
        raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        if by_python and any(mark in raw for mark in _PYTHON_ONLY):
            return _decode_dialect(raw, type_)
        raise Malformed(_one_line(str(error))) from error
    if type_ in (Any, dict, list):
        check_depth(value)
    return value


def fitted(value: object, type_: type[T], *, renamed: Mapping[str, str] | None = None) -> T:
    """Return the JSON *value* as a *type_*, like `decode`.  *renamed* maps keys to fields.

    Raises Malformed.
    """
    import msgspec  # noqa: PLC0415

    if renamed and isinstance(value, dict):
        value = {renamed.get(key, key): one for key, one in value.items()}
    try:
        _decoder_of(type_)
        return msgspec.convert(value, type_)
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise Malformed(_one_line(str(error))) from error


def _decoder_of(type_: type[T]) -> msgspec.json.Decoder[T]:
    """Return the decoder of a type, made once.

    The first use of a type makes tables that all decoders share, and two threads that make them at the same
    time crash the interpreter (msgspec 0.22).
    """
    import msgspec  # noqa: PLC0415

    made = _DECODERS.get(type_)
    if made is not None:
        return made
    with _MAKING:
        if type_ not in _DECODERS:
            _DECODERS[type_] = msgspec.json.Decoder(type_)
        return _DECODERS[type_]


def encode(value: object) -> bytes:
    """Return *value*, a record or plain values, as JSON that ``decode`` reads."""
    import msgspec  # noqa: PLC0415

    return msgspec.json.encode(value)


def _decode_dialect(data: bytes, type_: type[T]) -> T:
    try:
        value = json.loads(data)
        check_depth(value)
        # Of the lone surrogates, only those that stand for a byte of a path (PEP 383).
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except Malformed:
        raise
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error
    except ValueError as error:
        raise Malformed(_one_line(str(error))) from error
    return fitted(value, type_)


def is_plain_name(text: str) -> bool:
    """Whether *text* can be the name of a file: no separator, no control character, not ``..``."""
    return (
        text not in ("", ".", "..")
        and not any(one in "/\\" or ord(one) < 32 or ord(one) == 127 for one in text)  # noqa: PLR2004
        and len(text.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
    )


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read it.  Raises OSError, and Malformed for anything else, such as a FIFO."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Malformed("it is not a regular file")
        yield file


def read_end(path: Path, limit: int) -> bytes:
    """Return the last *limit* bytes of a regular file; empty if it cannot be read."""
    try:
        with open_regular(path) as file:
            file.seek(max(os.fstat(file.fileno()).st_size - limit, 0))
            return file.read(limit)
    except (OSError, ValueError):  # Malformed, and a path with a null character
        return b""


def read_bounded(path: Path, limit: int = RECORD_FILE) -> bytes:
    """Return the content of a regular file of at most *limit* bytes.  Raises OSError and Malformed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _BINARY)  # a file object takes five times as long
    except ValueError as error:
        raise Malformed("embedded null character in its path") from error
    try:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise Malformed("it is not a regular file")
        data = os.read(descriptor, min(state.st_size, limit) + 1)
        while len(data) <= limit and (more := os.read(descriptor, min(limit + 1 - len(data), _BLOCK))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise Malformed(f"it is larger than {limit} bytes")
    return data


def read_record(
    path: Path,
    type_: type[T],
    *,
    limit: int = RECORD_FILE,
    hint: str | None = None,
    by_python: bool = False,
) -> T:
    """Return the JSON file *path* as a *type_*.  Raises OSError, and InvalidInput naming the file."""
    try:
        return decode(read_bounded(path, limit), type_, by_python=by_python)
    except Malformed as error:
        raise InvalidInput(f"`{path}` cannot be read: {error}", hint=hint) from error


def check_depth(value: object) -> None:
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
    shown = printable(text)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
