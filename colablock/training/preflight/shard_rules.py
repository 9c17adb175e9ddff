"""What keeps a model from being sharded: the runner, the precision, the stack, the optimizer."""

from __future__ import annotations

from colablock.training.preflight.facts import Card, Finding, Level, Stack, is_older, precision_for
from colablock.training.preflight.model_config import ModelShape
from colablock.training.runs.config import Adapter, TrainConfig

__all__ = ["shard_obstacle"]

#: The first versions that FSDP 2 was proven with: 4-bit weights are spread, and the adapter is gathered.
_FIRST = {
    "torch": "2.11",
    "transformers": "5.13",
    "accelerate": "1.14",
    "peft": "0.19.1",
    "bitsandbytes": "0.50",
}
_FIRST_AXOLOTL = "0.12"  # with `fsdp_version`, and keys of `fsdp_config` without a prefix
_FIRST_WITHOUT_FSDP_1 = "0.21"  # of axolotl, which refuses its keys
_OF_FSDP_1 = ("sharding_strategy", "forward_prefetch")
_REFUSED_BY_AXOLOTL = ("adamw_8bit", "adamw_bnb_8bit")  # optimizers, beside FSDP 2
# Torch's own, without adagrad: it makes its states for the whole parameters, before they are sharded.
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")


def shard_obstacle(
    config: TrainConfig,
    shape: ModelShape | None,
    cards: list[Card],
    stack: Stack,
    runner: str,
    *,
    hosts: int = 1,
) -> Finding | None:
    """Return the refusal of a sharded run; None if nothing is in the way.

    *hosts* is the number of hosts with an output folder of their own.
    """
    if hosts > 1:
        why = "each host keeps its own part of a checkpoint, and none would have a whole one"
        fix = (
            "use a job of Slurm, whose hosts share a folder (`--launcher slurm`), or one host with more cards"
        )
        return _refusal("a model is not sharded over several hosts", why, fix)
    if config.extra.get("deepspeed"):
        return _refusal(
            "a model is not sharded with FSDP beside `deepspeed`",
            "axolotl divides it with one of them",
            "remove `deepspeed`",
        )
    if runner == "unsloth":
        return _refusal("Unsloth cannot shard a model", "it trains with the whole model on each card", _TRL)
    if precision_for(card.compute_capability for card in cards).fp16:
        return _refusal(
            "a model is not sharded in fp16",
            "FSDP needs bf16 here, and cards below compute capability 8.0 do not have it",
            "use cards with compute capability 8.0 or later",
        )
    if (found := _of_stack(config, stack, runner)) is not None:
        return found
    if shape is not None and shape.quantized == "bitsandbytes":
        return _refusal(
            "4-bit weights of a file cannot be sharded",
            "they are stored as bytes, and FSDP spreads only numbers of the type of the computations",
            "set `--model` to the model that it was quantised from",
        )
    if runner != "axolotl" and config.optimizer not in _OPTIMIZERS:
        return _refusal(
            f"`optimizer: {config.optimizer}` has no kernels for a sharded adapter",
            "its states are spread over the cards in any case",
            "set `optimizer: adamw_torch`",
        )
    if runner != "axolotl" and config.extra.get("peft_use_dora"):
        why = "it needs the norms of whole layers, and each card has a part"
        return _refusal("`peft_use_dora: true` cannot be sharded", why, "remove it")
    return None


_TRL = "use `--runner trl`"


def _of_stack(config: TrainConfig, stack: Stack, runner: str) -> Finding | None:
    if runner == "axolotl":
        return _of_axolotl(config, stack)
    versions = {
        "torch": stack.torch,
        "transformers": stack.transformers,
        "accelerate": stack.accelerate,
        "peft": stack.peft,
        "bitsandbytes": stack.bitsandbytes if config.adapter is Adapter.QLORA else None,
    }
    old = [f"{name} {version}" for name, version in versions.items() if is_older(version, _FIRST[name])]
    if not old:
        return None
    name = old[0].partition(" ")[0]
    return _refusal(
        f"{old[0]} is too old to shard a model",
        f"colablock shards with FSDP 2, from {name} {_FIRST[name]} on",
        "use a newer matrix, such as `qlora-2026`",
    )


def _of_axolotl(config: TrainConfig, stack: Stack) -> Finding | None:
    """Return the refusal of what axolotl would refuse itself, once the run has started."""
    if is_older(stack.axolotl, _FIRST_AXOLOTL):
        return _refusal(
            f"axolotl {stack.axolotl} has no FSDP 2",
            f"it is new in axolotl {_FIRST_AXOLOTL}",
            "use a matrix with a newer axolotl",
        )
    given = {key.removeprefix("fsdp_"): value for key, value in config.fsdp_config.items()}
    version = config.fsdp_version or given.get("version") or 2
    old = [f"fsdp_config.{key}" for key in _OF_FSDP_1 if key in given]
    old += ["fsdp"] if config.extra.get("fsdp") else []
    old += ["fsdp_version: 1"] if str(version) == "1" else []
    if old and stack.axolotl is not None and not is_older(stack.axolotl, _FIRST_WITHOUT_FSDP_1):
        return _refusal(
            f"axolotl {stack.axolotl} has no FSDP 1, which `{old[0]}` is for",
            f"it was removed in axolotl {_FIRST_WITHOUT_FSDP_1}",
            f"remove `{old[0]}`: `fsdp_config` with `reshard_after_forward` says how FSDP 2 shares the model",
        )
    if config.optimizer in _REFUSED_BY_AXOLOTL and str(version) == "2":
        return _refusal(
            f"axolotl does not shard with `optimizer: {config.optimizer}`",
            "it has no kernels for the parts of a sharded adapter",
            "set `optimizer: adamw_torch`",
        )
    return None


def _refusal(what: str, why: str, fix: str) -> Finding:
    return Finding(level=Level.REFUSE, what=what, why=why, fix=fix)
