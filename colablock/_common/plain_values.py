"""Plain values of JSON, read as dataclasses with the standard library alone.

An apply that finds nothing to do takes 0.2 s, and importing msgspec 0.05 s.  What such an apply and
`colablock list` read is therefore read here: the record of the last apply, its report, and receipts.
Every other file is read by `decoding`.
"""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from colablock._common.limits import SHOWN
from colablock.errors import InvalidInput

__all__ = ["from_plain"]

T = TypeVar("T")


def from_plain(kind: type[T], value: object, path: str) -> T:
    """Return *value* as the dataclass *kind*.  Raises InvalidInput with the path of the fault.

    Unknown keys are ignored.
    """
    return cast("T", _read_record(kind, value, path))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)  # slow, and a report has many checks


def _read_record(kind: Any, value: object, path: str) -> object:
    if not isinstance(value, Mapping):
        raise _unreadable(path, "a table", value)
    hints = _hints(kind)
    found = {}
    for field in fields(kind):
        where = f"{path}.{field.name}"
        if field.name in value:
            found[field.name] = _read(hints[field.name], value[field.name], where)
        elif field.default is MISSING and field.default_factory is MISSING:
            message = f"{where} is missing"
            raise InvalidInput(message)
    return kind(**found)


def _read(kind: Any, value: object, path: str) -> object:
    """Return *value* as the field type *kind*, one of the types that the dataclasses use."""
    kind = getattr(kind, "__supertype__", kind)  # NewType
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_optional(kind, value, path)
    if origin is tuple:
        return _read_tuple(get_args(kind)[0], value, path)
    if origin is collections.abc.Mapping:
        return _read_mapping(get_args(kind)[1], value, path)
    if is_dataclass(kind):
        return _read_record(kind, value, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _read_enum(kind, value, path)
    return _read_plain(kind, value, path)


def _read_optional(kind: Any, value: object, path: str) -> object:
    if value is None:
        return None
    inner = next(one for one in get_args(kind) if one is not types.NoneType)
    return _read(inner, value, path)


def _read_tuple(kind: Any, value: object, path: str) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise _unreadable(path, "a list", value)
    return tuple(_read(kind, item, f"{path}[{number}]") for number, item in enumerate(value))


def _read_mapping(kind: Any, value: object, path: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _unreadable(path, "a table", value)
    return {str(key): _read(kind, item, f"{path}.{key}") for key, item in value.items()}


def _read_enum(kind: type[Enum], value: object, path: str) -> Enum:
    try:
        return kind(value)
    except ValueError as error:
        allowed = ", ".join(f"`{one.value}`" for one in kind)
        raise _unreadable(path, f"one of {allowed}", value) from error


def _read_plain(kind: Any, value: object, path: str) -> object:
    if kind is object:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _unreadable(path, "a float", value) from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _unreadable(path, f"a {kind.__name__}", value)
    return value


def _unreadable(path: str, expected: str, value: object) -> InvalidInput:
    return InvalidInput(f"{path} must be {expected}, not {repr(value)[:SHOWN]}")
