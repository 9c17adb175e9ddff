"""A config while it is read: what is left of it, and what is said about it."""

from __future__ import annotations

from typing import Any

from colablock.errors import Fault
from colablock.training.foreign_configs.keys import asks_nothing, names

__all__ = ["Reading"]

_SHOWN = 60  # characters of a value in a note
_FEW = 3  # keys of axolotl that a config of ours may have
#: Keys that every config of axolotl has, and ours do not need.
_MARKS = ("load_in_4bit", "load_in_8bit", "strict", "bf16", "dataset_prepared_path", "saves_per_epoch")


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
