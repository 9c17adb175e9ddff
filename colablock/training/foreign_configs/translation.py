"""Read configs that were written for axolotl, and name the keys of trl, transformers and peft.

A key that agrees with what colablock does anyway is dropped.  A key of axolotl goes to axolotl if
that is the runner.  What a runner cannot do as the config says is told, with what it does instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from colablock.errors import Fault
from colablock.training.foreign_configs.datasets import read_data
from colablock.training.foreign_configs.reading import Reading, asks_nothing, names, own_names, table
from colablock.training.foreign_configs.settings import read_settings
from colablock.training.foreign_configs.sharding import read_sharding
from colablock.training.runs.config import LAUNCH_KEYS, TrainConfig

__all__ = ["Translation", "translate"]

#: Arguments of the trainer and of the adapter that the scripts for trl and Unsloth pass on.
_PASSED_BY_TRL = {
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "adam_eps": "adam_epsilon",
    **{name: name for name in LAUNCH_KEYS},
    "lr_scheduler_kwargs": "lr_scheduler_kwargs",
    "neftune_noise_alpha": "neftune_noise_alpha",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "peft_use_dora": "peft_use_dora",
    "peft_use_rslora": "peft_use_rslora",
    "tf32": "tf32",
}
_REMOTE_CODE = "trust_remote_code"
#: Without the optimizer, the trainer would go on from a checkpoint with an empty one, and say nothing.
_NOT_FOR_AXOLOTL = "save_only_model"
_SEED = next(one.default for one in fields(TrainConfig) if one.name == "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A config in colablock's keys.

    *values* are for `config_from`.  *extra* are further keys for the runner.  *instead* has the
    settings that are not done as written, each with what is done instead.
    """

    values: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    instead: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def translate(given: Mapping[Any, Any], runner: str) -> Translation:
    """Return the keys and values of a config file, and of arguments, in colablock's keys.

    A config with colablock's own keys is returned as it is; one of colablock with a few keys of
    axolotl keeps our defaults.
    """
    reading = Reading(dict(given), runner)
    reading.values = _without_remote_code(reading.values, "", reading.tell)
    _read_offloading(reading)
    read_sharding(reading)
    if reading.foreign:
        read_settings(reading)
        read_data(reading)
        _pass_on_rest(reading)
    _name_unknown(reading)
    return Translation(
        values=reading.values,
        extra=reading.extra,
        instead=tuple(reading.instead),
        faults=tuple(reading.faults),
    )


def _without_remote_code(value: Any, at: str, tell: Callable[[str, object, str], None]) -> Any:
    """Return *value*, at the path *at* of a config, without what would run code of a repository."""
    if isinstance(value, Mapping):
        kept = {}
        for key, one in value.items():
            path = f"{at}.{key}" if at else str(key)
            if _REMOTE_CODE not in str(key).replace("-", "_"):
                kept[key] = _without_remote_code(one, path, tell)
            elif not asks_nothing(one):
                tell(path, one, table()["instead"][_REMOTE_CODE])
        return kept
    if isinstance(value, (list, tuple)):
        return [_without_remote_code(one, f"{at}[{number}]", tell) for number, one in enumerate(value)]
    return value


def _read_offloading(reading: Reading) -> None:
    """Read Unsloth's value of `gradient_checkpointing`."""
    if reading.runner == "unsloth" and reading.values.get("gradient_checkpointing") == "unsloth":
        reading.values["gradient_checkpointing"] = True
        reading.extra["unsloth_offloads"] = True


def _pass_on_rest(reading: Reading) -> None:
    """Pass on what axolotl knows; tell what trl's trainer does not do."""
    for key in [key for key in reading.values if key not in own_names()]:
        if key in ("strict", "dataset_prepared_path") or (key in names("silent") and not reading.is_axolotl):
            reading.values.pop(key)
        elif key in names("axolotl"):
            _pass_on(reading, str(key), reading.values.pop(key))


def _pass_on(reading: Reading, key: str, value: Any) -> None:
    if reading.is_axolotl and value and key == _NOT_FOR_AXOLOTL:
        reading.tell(key, value, table()["instead"][key])
    elif reading.is_axolotl and value is not None and value not in ("", [], {}):
        reading.extra[key] = value  # false too: some keys are true by default, or follow from others
    elif asks_nothing(value, key):
        return
    elif key in _PASSED_BY_TRL:
        reading.extra[_PASSED_BY_TRL[key]] = value
    elif key == "special_tokens" and isinstance(value, Mapping) and value.keys() <= {"pad_token"}:
        return  # padding is masked, whatever its token is
    elif key == "data_seed" and value == reading.values.get("seed", _SEED):
        return
    else:
        reading.tell(key, value, table()["instead"].get(key, f"{reading.runner} has nothing like it"))


def _name_unknown(reading: Reading) -> None:
    """Report names of other libraries, with ours, and for trl every other unknown key."""
    renamed: Mapping[str, str] = table()["renamed"]
    for key in [key for key in reading.values if key not in own_names()]:
        if key in renamed:
            reading.values.pop(key)
            hint = f"use `{renamed[key]}`"
            reading.fault(str(key), "is a key of another library", hint)
