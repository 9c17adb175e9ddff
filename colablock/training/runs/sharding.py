"""Whether a model is spread over the ranks of a run, and how: what `--shard` and the config say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from colablock._common.fs import expanded
from colablock.errors import InvalidInput
from colablock.training.runs.config import TrainConfig
from colablock.verification.launch import Sharding

__all__ = [
    "SHARD_KEYS",
    "DeepSpeed",
    "ShardMode",
    "asks_to_shard",
    "deepspeed_of",
    "recomputes_in_shards",
    "shard_mode",
    "sharding_for",
    "with_deepspeed_file",
]

#: The keys of axolotl's `fsdp_config` that the runner trl honours.
SHARD_KEYS = ("activation_checkpointing", "reshard_after_forward", "transformer_layer_cls_to_wrap")


class ShardMode(Enum):
    """Whether the ranks share one model, or each has its own."""

    AUTO = "auto"  # sharded if a card does not hold the whole
    FSDP = "fsdp"
    NONE = "none"


def shard_mode(asked: str | None, config: TrainConfig) -> ShardMode:
    """Return the mode that a call asks for: what `--shard` says, else the config.  Raises InvalidInput."""
    try:
        mode = ShardMode(asked or "auto")
    except ValueError:
        choices = ", ".join(f"`{one.value}`" for one in ShardMode)
        raise InvalidInput(f"`{asked}` is not a way to shard a model: it is one of {choices}") from None
    return ShardMode.FSDP if mode is ShardMode.AUTO and asks_to_shard(config) else mode


def asks_to_shard(config: TrainConfig) -> bool:
    """Whether *config* asks for FSDP: by `fsdp_config`, or for axolotl by the older list `fsdp`."""
    return bool(config.fsdp_config or config.extra.get("fsdp"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeed:
    """What the key `deepspeed` says of ZeRO.

    *stage* is None if it is not known, and *missing* the file if that is not there.  With *offloads*, weights
    are in the memory of the host.
    """

    stage: int | None
    offloads: bool = False
    missing: str = ""

    def divides(self, ranks: int) -> bool:
        """Whether a card may have less than the whole model; with stages 1 and 2 it has all weights."""
        return self.stage in (None, _ALL_DIVIDED) and (ranks > 1 or self.offloads)


_ALL_DIVIDED = 3  # the stage that divides weights, too
_OWN_FILE = re.compile(r"zero([123])")  # in the names of axolotl's own files


def deepspeed_of(config: TrainConfig) -> DeepSpeed | None:
    """Return what the `deepspeed` of *config* says, which only axolotl takes; None without that key."""
    given = config.extra.get("deepspeed")
    if not given:
        return None
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_bytes())
        except FileNotFoundError:
            named = _OWN_FILE.search(Path(given).name)
            return DeepSpeed(stage=int(named[1]) if named else None, missing=given)
        except (OSError, ValueError):
            return DeepSpeed(stage=None)
    zero = given.get("zero_optimization", {}) if isinstance(given, Mapping) else None
    if not isinstance(zero, Mapping):
        return DeepSpeed(stage=None)
    offload = zero.get("offload_param")
    device = offload.get("device", "none") if isinstance(offload, Mapping) else "none"
    stage = zero.get("stage", 0)
    return DeepSpeed(stage=stage if isinstance(stage, int) else None, offloads=device != "none")


def with_deepspeed_file(values: Mapping[str, Any], config: Path | None) -> Mapping[str, Any]:
    """Return the keys *values* with the full path of the file of `deepspeed`: a run works in its own folder.

    A relative path starts at the working folder, as for axolotl, or else at the folder of the file *config*.
    """
    given = values.get("deepspeed")
    if not given or not isinstance(given, str):
        return values
    file = expanded(given, "deepspeed")
    folders = [Path(), *([config.parent] if config is not None else [])]
    found = next((folder / file for folder in folders if (folder / file).is_file()), None)
    return values if found is None else {**values, "deepspeed": str(found.absolute())}


def recomputes_in_shards(config: TrainConfig) -> bool:
    """Whether FSDP recomputes activations, in place of the trainer.

    It does not restore the state of random numbers, so dropout would differ when a layer is recomputed.
    """
    return config.gradient_checkpointing and not config.lora_dropout


def sharding_for(config: TrainConfig) -> Sharding:
    """Return how FSDP spreads the model of *config*."""
    given: Mapping[str, Any] = config.fsdp_config
    layers = given.get("transformer_layer_cls_to_wrap") or ()
    names = layers.split(",") if isinstance(layers, str) else layers
    return Sharding(
        activation_checkpointing=recomputes_in_shards(config),
        reshard_after_forward=given.get("reshard_after_forward", True),
        layers=tuple(name.strip() for name in names if name.strip()),
    )
