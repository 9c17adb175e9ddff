"""The keys of other trainers, as `keys.toml` lists them, and a config of such keys while it is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from colablock.errors import Fault
from colablock.training.runs.config import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Reading", "asks_nothing", "names", "own_names", "table"]

_TABLE = Path(__file__).with_name("keys.toml")
_SHOWN = 60  # characters of a value in a note
_FEW = 3  # keys of axolotl that a config of ours may have
#: Keys that every config of axolotl has, and ours do not need.
_MARKS = ("load_in_4bit", "load_in_8bit", "strict", "bf16", "dataset_prepared_path", "saves_per_epoch")


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


class Reading:
    """The keys of a config, out of which the subjects are taken one after the other.

    *extra* are keys for the runner.  *instead* has the settings that are not done as written.
    """

    def __init__(self, values: dict[Any, Any], runner: str) -> None:
        self.values = {key: value for key, value in values.items() if value is not None or key == "adapter"}
        self.runner = runner
        self.extra: dict[str, Any] = {}
        self.instead: list[str] = []
        self.faults: list[Fault] = []
        self.foreign = [key for key in values if key in names("axolotl")]
        # Whether all of it was written for axolotl, so that its defaults apply.
        self.is_of_axolotl = len(self.foreign) > _FEW or any(key in _MARKS for key in self.foreign)

    @property
    def is_axolotl(self) -> bool:
        """Whether axolotl is the runner."""
        return self.runner == "axolotl"

    def take(self, key: str) -> Any:
        """Return the value of *key* and leave it out; None if it is not there or asks for nothing."""
        value = self.values.pop(key, None)
        return None if asks_nothing(value) else value

    def tell(self, key: str, value: object, words: str) -> None:
        """Say what is done instead of the value of *key*."""
        shown = value if isinstance(value, str) else str(value).lower() if value is True else repr(value)
        cut = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        self.instead.append(f"`{key}: {cut}`: {words}")

    def fault(self, path: str, message: str, hint: str | None = None) -> None:
        """Add a fault of the config."""
        self.faults.append(Fault(path=path, message=message, hint=hint))
