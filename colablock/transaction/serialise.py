"""Convert plans, reports and other results to plain values for JSON, and read reports back.

The written form has the fields of the dataclasses, with enums by value.
``version`` is the version of the form; a reader refuses other versions.  New
keys may be added without a new version, so a reader ignores unknown keys.
Derived values (``fetch_size``, ``needs_restart``, ``passed``) are written for
other programs and ignored on reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from colablock._common.plain_values import from_plain
from colablock.errors import InvalidInput
from colablock.planning.plan import Plan

if TYPE_CHECKING:
    from colablock.transaction.history import Change
    from colablock.transaction.isolated_envs import BuiltEnvironment
    from colablock.transaction.rollback import UndoneChange
    from colablock.verification.verify import Report

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
    from colablock.verification.verify import Report  # noqa: PLC0415 - most plans have no report

    return read_form(Report, value, "report")


def change_to_json(change: Change) -> dict[str, object]:
    """Return one change of the history as plain values, without its files."""
    left_out = {"folder", "before", "stashed", "created", "applied_before", "origins"}
    written = {key: value for key, value in _written_record(change).items() if key not in left_out}
    return {**written, "stash": str(change.stash), "size": change.size, "shared": change.shared}


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
        "shared": built.shared,
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
        "set_aside": list(undone.set_aside),
        "aside": undone.aside or None,
        "left": list(undone.left),
        "companions": dict(undone.companions),
        "broken": list(undone.broken),
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
    return from_plain(kind, value, path)
