"""Convert plans, reports and other results to plain values for JSON, and read reports back.

The written form has the fields of the dataclasses, with enums by value.
``version`` is the version of the form; a reader refuses other versions.  New
keys may be added without a new version, so a reader ignores unknown keys.
Derived values (``fetch_size``, ``needs_restart``, ``passed``) are written for
other programs and ignored on reading.
"""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from colablock.errors import InvalidInput
from colablock.planning.plan import Plan
from colablock.verification.verify import Report

if TYPE_CHECKING:
    from colablock.transaction.history import Change
    from colablock.transaction.isolated_envs import BuiltEnvironment
    from colablock.transaction.rollback import UndoneChange

__all__ = [
    "FORM_VERSION",
    "built_to_json",
    "change_to_json",
    "plan_to_json",
    "read_form",
    "report_from_json",
    "report_to_json",
    "undone_to_json",
]

FORM_VERSION = 1

T = TypeVar("T")


def plan_to_json(plan: Plan) -> dict[str, object]:
    """Return *plan* as plain values for `json.dump`."""
    derived = {"fetch_size": plan.fetch_size, "needs_restart": plan.needs_restart}
    return {"version": FORM_VERSION, **_written_record(plan), **derived}


def report_to_json(report: Report) -> dict[str, object]:
    """Return *report* as plain values for `json.dump`."""
    return {"version": FORM_VERSION, **_written_record(report), "passed": report.passed}


def report_from_json(value: Mapping[str, object]) -> Report:
    """Return the report in the form of `report_to_json`.  Raises InvalidInput with the path of the fault."""
    return read_form(Report, value, "report")


def change_to_json(change: Change) -> dict[str, object]:
    """Return one change of the history as plain values, without its files."""
    left_out = {"folder", "before", "stashed", "created", "applied_before"}
    written = {key: value for key, value in _written_record(change).items() if key not in left_out}
    return {**written, "stash": str(change.stash), "size": change.size}


def built_to_json(built: BuiltEnvironment) -> dict[str, object]:
    """Return an isolated environment as plain values."""
    manifest = built.manifest
    return {
        "lock": built.lock,
        "folder": str(built.folder),
        "matrix": built.matrix,
        "variant": manifest.variant if manifest else None,
        "python": manifest.python if manifest else None,
        "python_version": manifest.python_version if manifest else None,
        "created": manifest.created if manifest else None,
        "size": built.size,
        "is_whole": built.is_whole,
        "current_of": list(built.current_of),
    }


def undone_to_json(undone: UndoneChange) -> dict[str, object]:
    """Return an undone change and the remaining differences as plain values."""
    return {
        "number": undone.change.number,
        "matrix": undone.change.matrix,
        "when": undone.change.when,
        "runtime": undone.change.runtime,
        "differences": list(undone.differences),
        "restart": list(undone.restart),
    }


def _written_record(record: Any) -> dict[str, object]:
    return {field.name: _written(getattr(record, field.name)) for field in fields(record)}


def _written(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return _written_record(value)
    if isinstance(value, Mapping):
        return {str(key): _written(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_written(item) for item in value]
    return value


def read_form(kind: type[T], value: object, path: str) -> T:
    """Return a written *value* as the dataclass *kind*.  Raises InvalidInput with the path of the fault."""
    version = value.get("version") if isinstance(value, Mapping) else None
    if version != FORM_VERSION:
        message = f"{path}: version {version!r} of its written form is unknown, expected {FORM_VERSION}"
        raise InvalidInput(message)
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
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _unreadable(path, f"a {kind.__name__}", value)
    return value


def _unreadable(path: str, expected: str, value: object) -> InvalidInput:
    return InvalidInput(f"{path} must be {expected}, not {value!r}")
