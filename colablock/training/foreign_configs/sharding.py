"""Read how a config spreads the model over cards; the runner trl does it with FSDP 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colablock._common.text import near
from colablock.training.foreign_configs.reading import Reading, table
from colablock.training.runs.sharding import SHARD_KEYS
from colablock.verification.launch import Sharding

__all__ = ["read_sharding"]

# What FSDP 1 calls the values of `reshard_after_forward`, and ways to shard that FSDP 2 has no value for.
_RESHARDS = {"full_shard": True, "shard_grad_op": False}
_OTHER_SHARDS = ("hybrid_shard", "hybrid_shard_zero2", "no_shard")
_DONE = Sharding().values()  # what a run does, by key


def read_sharding(reading: Reading) -> None:
    """Read how axolotl would spread the model over cards; the runner trl does it with FSDP 2."""
    if reading.is_axolotl:
        return
    if (engine := reading.take("deepspeed")) is not None:
        message = f"is {engine!r}" if isinstance(engine, str) else "is set"
        hint = "remove it: a model that no card holds is sharded with FSDP; axolotl has DeepSpeed"
        words = f"{message}, and the runner {reading.runner} does not use DeepSpeed"
        reading.fault("deepspeed", words, hint)
    if reading.runner != "trl":
        for key in ("fsdp", "fsdp_config", "fsdp_version"):
            if (value := reading.take(key)) is not None:
                reading.tell(key, value, table()["instead"]["fsdp"])
        return
    given = reading.values.get("fsdp_config") or {}
    if not isinstance(given, Mapping):
        return  # which is a fault
    strategies = reading.take("fsdp")
    named = strategies.replace(",", " ").split() if isinstance(strategies, str) else strategies
    if not (named is None or named is True or (isinstance(named, list) and all(map(_is_text, named)))):
        reading.fault("fsdp", f"is {named!r}, but must be names, such as `full_shard auto_wrap`")
        return
    asked = {str(key).removeprefix("fsdp_"): _plain(value) for key, value in given.items()}
    asked = {key: value for key, value in asked.items() if value not in (None, "")}
    for name in named if isinstance(named, list) else ():
        if name == "offload":
            asked.setdefault("offload_params", True)
        elif name != "auto_wrap":
            asked.setdefault("reshard_after_forward", name)
    found = {key: _shard_value(reading, key, value) for key, value in asked.items()}
    found = {key: value for key, value in found.items() if value is not None}
    if asked or strategies:
        reading.values["fsdp_config"] = {"reshard_after_forward": True, **found}
    else:  # no key has a value
        reading.values.pop("fsdp_config", None)
    if 1 in (reading.values.get("fsdp_version"), asked.get("version")):
        reading.values.pop("fsdp_version", None)
        reading.tell("fsdp_version", 1, "FSDP 2 shards the model")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _shard_value(reading: Reading, key: str, value: object) -> Any:
    """Return the value of a key of `fsdp_config` if it is honoured; else None, and tell what is done."""
    path = f"fsdp_config.{key}"
    if key == "reshard_after_forward" and isinstance(value, str):  # as FSDP 1 names it
        if value.lower() in _OTHER_SHARDS:
            reading.tell(path, value, table()["shards"]["sharding_strategy"]["instead"])
            value = True
        value = _RESHARDS.get(value.lower(), value) if isinstance(value, str) else value
    if key in ("reshard_after_forward", "activation_checkpointing"):
        if not isinstance(value, bool):
            reading.fault(path, f"is {value!r}, but must be `true` or `false`")
        elif key == "activation_checkpointing":
            reading.values["gradient_checkpointing"] = value or reading.values.get(
                "gradient_checkpointing", False
            )
        return value if key == "reshard_after_forward" else None
    if key == "transformer_layer_cls_to_wrap":
        listed = value if isinstance(value, list) else [value]
        if all(isinstance(one, str) for one in listed):
            return value
        reading.fault(path, f"is {value!r}, but must be a name of a class, or a list of them")
        return None
    others: Mapping[str, Any] = table()["shards"]
    if key not in others:
        reading.fault(path, "unknown key", near(key, [*others, *SHARD_KEYS]))
        return None
    agreed = [*([_DONE[key]] if key in _DONE else []), *others[key]["usual"]]
    if _folded(value) not in map(_folded, agreed):  # a value that asks for less is told, too
        reading.tell(path, value, others[key]["instead"])
    return None


def _plain(value: object) -> object:
    """Return *value*, with a truth that is written as a text as itself."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _folded(value: object) -> object:
    return value.casefold() if isinstance(value, str) else value
