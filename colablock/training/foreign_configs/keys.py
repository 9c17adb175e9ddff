"""The keys of other trainers, and what a config asks for with the value of one: `keys.toml` lists them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from colablock.training.runs.config import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["asks_nothing", "names", "own_names", "table"]

_TABLE = Path(__file__).with_name("keys.toml")


@cache
def table() -> Mapping[str, Any]:
    """Return the tables of the file, whose first lines explain them."""
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


@cache
def names(kind: str) -> frozenset[str]:
    """Return a list of names of the table ``names``."""
    return frozenset(table()["names"][kind].split())


@cache
def own_names() -> frozenset[str]:
    """Return colablock's own keys."""
    return frozenset(one.name for one in fields(TrainConfig) if one.name != "extra")


def asks_nothing(value: object, key: str = "") -> bool:
    """Whether the value of *key* asks for nothing that a trainer does not do anyway."""
    if value is False or (value == 0 and isinstance(value, (int, float))):
        return key not in names("on_by_default") and key not in names("not_zero")
    return value is None or value in ("", [], {})
