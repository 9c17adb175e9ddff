"""Locks, parsed and checked once: what the cache keeps of them.

TOML takes a hundred times as long to parse as MessagePack: 25,000 lines 0.3 s.  The key of an entry is the
SHA-256 of the text, with the release and the parser that have checked it, so no entry is ever out of date.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from colablock._vendor.packaging.pylock import PylockValidationError
from colablock._version import __version__

if TYPE_CHECKING:
    from colablock.network.cache import Cache

__all__ = ["KIND", "parsed"]

KIND = "locks"  # of the entries of the cache
_FORMAT = 1
T = TypeVar("T")


def parsed(
    text: bytes,
    parse: Callable[[bytes], dict[str, Any]],
    build: Callable[[dict[str, Any]], T],
    cache: Cache | None,
) -> T:
    """Return what *build* makes of the table that *parse* returns for *text*, or that the cache has kept.

    What they raise for *text* passes through, and is not kept.  An entry that *build* cannot use counts
    as missing.
    """
    if cache is None:
        return build(parse(text))
    # A text that one parser accepts may be malformed for another.
    parser = f"{parse.__module__}.{parse.__qualname__}"
    key = f"{__version__} {_FORMAT} {parser} {hashlib.sha256(text).hexdigest()}"
    kept = _unpacked(cache.read(KIND, key))
    if kept is not None:
        with suppress(ValueError, LookupError, AttributeError, TypeError, PylockValidationError):
            return build(kept)
    found = parse(text)
    built = build(found)
    packed = _packed(found)
    if packed is not None:
        cache.write(KIND, key, packed)
    return built


def _packed(value: dict[str, Any]) -> bytes | None:
    """Return *value* as MessagePack; None if it would not come back the same, as a local date."""
    from msgspec import MsgspecError, msgpack  # noqa: PLC0415 - its import takes 50 ms

    try:
        packed = msgpack.encode(value)
        return packed if repr(msgpack.decode(packed)) == repr(value) else None
    except (MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return None


def _unpacked(data: bytes | None) -> dict[str, Any] | None:
    """Return the table of an entry; None if there is none, or it is damaged."""
    from msgspec import MsgspecError, msgpack  # noqa: PLC0415 - its import takes 50 ms

    try:
        value = None if data is None else msgpack.decode(data)
    except (MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
