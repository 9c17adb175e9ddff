"""Whether a model is spread over the ranks of a run, and how: what `--shard` and the config say."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from colablock.errors import InvalidInput
from colablock.training.runs.config import TrainConfig
from colablock.verification.launch import Sharding

__all__ = ["SHARD_KEYS", "ShardMode", "recomputes_in_shards", "shard_mode", "sharding_for"]

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
    return ShardMode.FSDP if mode is ShardMode.AUTO and config.fsdp_config else mode


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
