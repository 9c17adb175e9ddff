"""The matrix file as a JSON schema (draft-07), for editors that complete and check TOML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from colablock.matrix.reader import SCHEMA_VERSION
from colablock.matrix.schema import Key, keys_of
from colablock.matrix.values import HOST, MATRIX_NAME

__all__ = ["SCHEMA_FILE", "json_schema"]

SCHEMA_FILE = f"matrix-{SCHEMA_VERSION}.schema.json"

# Each pattern accepts all that the reader accepts, and refuses obvious mistakes.  None uses lookaround,
# which not every editor supports.
_NAME = "[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"  # PEP 508
_CLAUSE = r"((===|~=|==|!=|<=|>=|<|>)\s*[^\s,]+)?"  # PEP 440; may be empty
_PARTS = r"[^\s.:-]+(\.[^\s.:-]+)*"
_OFFSET = r"([Zz]|[+-]\d{2}(:?\d{2}(:?\d{2}(\.\d+)?)?)?)"


def _string(pattern: str) -> Mapping[str, Any]:
    return {"type": "string", "pattern": f"^{pattern}$"}


_SPECIFIER = _string(rf"\s*{_CLAUSE}\s*(,\s*{_CLAUSE}\s*)*")
_MOMENT = _string(rf"\d{{4}}\S*[Tt ]\d{{2}}\S*{_OFFSET}")
_REQUIREMENT = _string(rf"\s*{_NAME}([^A-Za-z0-9._-].*)?")
_BARE_VERSION = _string(r"\s*[vV]?\d[^\s,]*\s*")

_VALUES: Mapping[str, Mapping[str, Any]] = {
    "integer": {"const": SCHEMA_VERSION},
    "text": {"type": "string", "pattern": r"\S"},
    "boolean": {"type": "boolean"},
    "matrix name": _string(MATRIX_NAME.pattern),
    "index name": _string(_NAME),
    "specifier": _SPECIFIER,
    "local version": _string(r"[A-Za-z0-9]+([-_.][A-Za-z0-9]+)*"),
    "marker": {"type": "string", "pattern": r"\S"},
    "URL": _string(r"(https?://\S+|file:\S+)"),
    "SHA-256": _string("[0-9a-fA-F]{64}"),
    "relative path": {
        "type": "string",
        "minLength": 1,
        "not": {"pattern": r"^/|\\|(^|/)\.\.(/|$)"},
    },
    "date-time": _MOMENT,
    "date-time or false": {"anyOf": [_MOMENT, {"const": False}]},
}
_ELEMENTS: Mapping[str, Mapping[str, Any]] = {
    "names": _string(_NAME),
    "host names": _string(HOST.pattern),
    "build names": _string(f"(:all:|{_NAME})"),
    "requirements": _REQUIREMENT,
    "import names": _string(f"{_PARTS}(:{_PARTS})?"),
    "commands": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
}

_PACKAGE_RULES: Mapping[str, Any] = {
    # Keys that describe an archive require `url`, and an archive comes from no index.
    "dependencies": {
        "sha256": ["url"],
        "source-root": ["url"],
        "url": {"not": {"anyOf": [{"required": ["index"]}, {"required": ["prefer-local"]}]}},
    },
    "if": {"required": ["url"]},
    "then": {"properties": {"version": _BARE_VERSION}},
    "else": {"properties": {"version": _SPECIFIER}},
}


def json_schema() -> dict[str, Any]:
    """Return the schema of schema 1.

    Every file that the reader takes is valid.  Not every invalid one is found:
    whether an index is declared, or a marker can be read, only the reader says.
    """
    entries = ("packages.<name>", "constraints.<name>", "absent.<name>")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"colablock matrix, schema {SCHEMA_VERSION}",
        "description": "A declared compatibility set: names, versions, indexes, reasons, proofs.",
        **_table(""),
        "definitions": {_definition(section): _entry(section) for section in entries},
    }


def _table(section: str) -> dict[str, Any]:
    """Return one table with the keys of *section* and no others."""
    keys = keys_of(section)
    required = [key.name for key in keys.values() if key.required]
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": required} if required else {}),
        "properties": {name: _described(key) for name, key in keys.items()},
    }


def _described(key: Key) -> dict[str, Any]:
    return {"description": key.description, **_value(key)}


def _value(key: Key) -> Mapping[str, Any]:
    """Return the schema of the value of *key*."""
    if key.path == "packages.<name>.version":
        return {"type": "string"}  # beside `url` another thing than without: see the rules of the entry
    if key.type in _STRUCTURES:
        return _STRUCTURES[key.type](key)
    if key.type == "choice":
        return {"enum": list(key.choices)}
    if key.type == "choices":
        return {"type": "array", "items": {"enum": list(key.choices)}}
    if key.type in _ELEMENTS:
        return {"type": "array", "items": _ELEMENTS[key.type]}
    return _VALUES[key.type]


def _named_tables(key: Key) -> Mapping[str, Any]:
    names = _string("[a-z0-9]+(-[a-z0-9]+)*")
    return {"type": "object", "propertyNames": names, "additionalProperties": _table(f"{key.path}.<name>")}


def _entries(key: Key) -> Mapping[str, Any]:
    reference = {"$ref": f"#/definitions/{_definition(f'{key.name}.<name>')}"}
    return {"type": "object", "propertyNames": _string(_NAME), "additionalProperties": reference}


_STRUCTURES: Mapping[str, Callable[[Key], Mapping[str, Any]]] = {
    "table": lambda key: _table(key.path),
    "array of tables": lambda key: {"type": "array", "items": _table(key.path)},
    "table of tables": _named_tables,
    "table of entries": _entries,
}


def _definition(section: str) -> str:
    return section.partition(".")[0]


def _entry(section: str) -> dict[str, Any]:
    """Return the schema of a project entry: a specifier, a table, or tables with a marker each.

    The keywords of draft-07 judge values of their own type only, so that one
    schema says what is wrong with each; of an ``anyOf`` nothing but "none fits" is reported.
    """
    table = {**_table(section), **(_PACKAGE_RULES if section == "packages.<name>" else {})}
    entry = {**table, **_SPECIFIER, "type": ["string", "object"]}
    if "marker" in keys_of(section):
        several = {"if": {"type": "array", "minItems": 2}, "then": {"items": {"required": ["marker"]}}}
        entry |= {"type": ["string", "object", "array"], "minItems": 1, "items": table, "allOf": [several]}
    return entry
