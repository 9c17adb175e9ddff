"""Estimate the memory of a training run from the sizes of the model, before any weights are downloaded.

Memory peaks at one of two moments of a step.  The other parts are allocated at both::

    peak = (weights + embeddings + adapters + gradients + optimizer + activations
            + the greater of: loss, one layer) × (1 + slack) + context

``loss`` is the computation of the logits' gradient, ``one layer`` the backward pass of a
decoder layer.  Below, h is the hidden size, q and k the widths of all query and all key heads,
f the width of the MLP, v the size of the vocabulary, t the number of tokens in a batch, r the
rank of the adapter.  c is the size of a number in the run's precision in bytes, and s that of a
number in the residual stream: 4 if the embeddings are in float32, else c.

weights
    In 4 bits: half a byte per parameter, one byte per 64 parameters, and 4 bytes per 256 of these
    bytes (QLoRA, arXiv 2305.14314, section 3).  Otherwise c per parameter.
embeddings
    v·h·s, twice unless tied.  Embeddings are not quantised.
adapters, gradients, optimizer
    Each linear layer has r·(inputs + outputs) adapter parameters, in float32, or in bfloat16 if
    the runner casts them.  Parameters in float32 have a cast copy in c.  Gradients have the same
    type; with several processes they are allocated twice, because the exchange uses buckets.
    Optimizer states have the same type, or one byte.
activations
    With checkpointing, the input of each layer: t·h·s.  Without, everything that the backward
    pass of a layer reads.  Per token that is: the inputs of the norms in float32 (4h each, and
    4(q + k) with head norms); the inputs of the attention's adapters (c·h once if s = c, else one
    cast copy each); query, key, value and output of the attention (c·4q, since key and value are
    repeated for all heads); the inputs of the MLP's adapters; gate, its activation and up (s·f
    each); and their product (c·f).  This follows the modelling code of transformers and peft line
    by line.  For Llama 1B with embeddings in float32 it gives 80.5·h bytes per token and layer;
    79.2·h were measured.  In both cases the last norm adds 4h.
    Sharded over n ranks, each has an n-th of weights, embeddings, adapters and optimizer states.  Only the
    constants of 4-bit weights are whole on each.  Gradients that several batches add up to are whole, too.
gathered
    With FSDP, the weights that are whole at that moment: the head (with the embeddings, if the runner
    gathers both at once), and three decoder layers: the one that is computed with, the next one, and the
    buffer that it arrives in.
loading
    If a runner shards a quantised model that each rank has loaded as a whole: what this needs beyond the
    parts above and below.
loss
    The logits in float32, times the number of copies that the runner holds at once; or the logits
    of one tile if the runner computes the loss in tiles.  A head in float32 adds a cast copy in c.
one layer
    With checkpointing, the activations of the layer.  The gradients in flight, s·(3f + 2h) per
    token (2f, here and above, for an MLP of two matrices).  The largest linear layer, dequantised
    to c.  The attention scores, if no fused kernel computes the attention.
slack
    Memory that the allocator cannot reuse: gaps between blocks.
context
    Memory of CUDA and its libraries, outside the allocator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from colablock.training.preflight.facts import Precision
from colablock.training.preflight.model_config import OUTER_LAYERS, ModelShape
from colablock.training.preflight.runner_profiles import RunnerProfile
from colablock.training.runs.config import Adapter, TrainConfig

__all__ = [
    "COEFFICIENTS",
    "Estimate",
    "Setting",
    "adapter_parameters",
    "changes_to_fit",
    "checkpoint_size",
    "estimate",
    "held_in_memory",
    "largest_sequence",
    "least_estimate",
]

GIB = 2**30
_STEP = 128  # tokens: proposed sequence lengths are multiples of it
_LONGEST = 131_072  # tokens, for a model without a maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The numbers that do not follow from source code.  They were measured."""

    # One H100, driver 580, torch 2.11.0+cu130: the device memory in use minus what the allocator reserves.
    context: int = round(0.75 * GIB)
    # There the allocator reserved 1.09 to 1.23 times the allocated memory at the peak.  It frees unused
    # blocks before it fails, so a run works in less: close to the allocated memory.
    slack: float = 0.06
    # The resident memory of an interpreter with torch and transformers on a CPU.
    interpreter: int = GIB
    # Bytes per attention score (heads × tokens × tokens of a sequence).  Kept for the backward pass: the
    # softmax in float32 and its copy in 16 bits.  Temporary: the gradients of softmax and scores in float32.
    score_kept: int = 6
    score_working: int = 8
    # Two H200, driver 580, torch 2.11.0+cu130: what NCCL has on each card, for the exchange between ranks
    # that have a model each, and between those that share one.
    exchange: int = round(0.82 * GIB)
    exchange_of_shards: int = round(1.26 * GIB)
    gathered_layers: int = 3  # at once


COEFFICIENTS = Coefficients()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What memory depends on besides the config and the model.

    *attention* is that of `Preflight`.  *has_fused_attention* is true if sdpa has a kernel that
    does not store the scores.  *shards* is the number of ranks that share one model;
    None if each has its own.
    """

    precision: Precision
    profile: RunnerProfile
    attention: str = "sdpa"
    has_fused_attention: bool = True
    processes: int = 1
    shards: int | None = None
    on_card: bool = True

    @property
    def stores_scores(self) -> bool:
        return self.attention == "eager" or (self.attention == "sdpa" and not self.has_fused_attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The bytes of each part at the peak of a step, in one process."""

    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The memory that has to be free."""
        return sum(self.parts.values())

    @property
    def allocated(self) -> int:
        """The memory that torch's allocator has allocated at the peak, without slack and CUDA context."""
        return self.total - self.parts.get("slack", 0) - self.parts.get("context", 0)


def adapter_parameters(config: TrainConfig, shape: ModelShape) -> int:
    """Return the number of trained parameters: of adapters, and of layers that axolotl trains in full."""
    of_layer = sum(
        config.lora_r * (one.inputs + one.outputs)
        for one in shape.linears
        if one.name in _targets(config, shape)
    )
    outer = len(_outer_layers(config.lora_target_modules)) * config.lora_r * (shape.vocabulary + shape.hidden)
    in_full = len(_outer_layers(config.extra.get("lora_modules_to_save"))) * shape.vocabulary * shape.hidden
    return shape.layers * of_layer + outer + in_full


def _outer_layers(names: object) -> set[str]:
    """Return the embeddings and heads among *names*, which may be one text, or nothing."""
    listed = [names] if isinstance(names, str) else names if isinstance(names, (list, tuple)) else ()
    return {tail for one in listed if (tail := str(one).rpartition(".")[2]) in OUTER_LAYERS}


def checkpoint_size(config: TrainConfig, shape: ModelShape, setting: Setting) -> int:
    """Return the bytes of a checkpoint: the adapter and the optimizer states."""
    size = _adapter_size(config, shape, setting)
    return round(adapter_parameters(config, shape) * (size + _state_bytes(config.optimizer, size)))


def estimate(config: TrainConfig, shape: ModelShape, setting: Setting) -> Estimate:
    """Return the memory that one process needs to train *shape* with *config*; see the module docstring."""
    on_card, c = setting.on_card, setting.precision.size
    adapters = adapter_parameters(config, shape)
    adapter_size = _adapter_size(config, shape, setting)
    cast = c if adapter_size > c else 0
    s = _residual_size(config, shape, setting)
    tokens = config.micro_batch_size * config.sequence_len
    layer = _layer_activations(config, shape, setting) * tokens + _scores(
        config, shape, setting, COEFFICIENTS.score_kept
    )
    kept = (tokens * shape.hidden * s if config.gradient_checkpointing else layer) * shape.layers
    working = (layer if config.gradient_checkpointing else 0) + _layer_working(config, shape, setting, s)
    loss = _loss(shape, setting, tokens, s)
    if setting.shards is not None:
        own = _sharded(config, shape, setting, adapters=adapters, residual=s)
    else:
        own = {
            "weights": shape.linear_parameters * (_QUANTIZED if _is_quantized(config, shape) else c),
            "embeddings": shape.embedding_parameters * s,
            "adapters": adapters * (adapter_size + cast),
            "gradients": adapters * adapter_size * (2 if setting.processes > 1 else 1),
            "optimizer": adapters * _state_bytes(config.optimizer, adapter_size),
        }
    parts = {
        **own,
        "activations": kept + tokens * shape.hidden * 4,
        **({"loss": loss} if loss >= working else {"one layer": working}),
    }
    allocated = sum(parts.values())
    if setting.shards is not None and setting.profile.loads_whole and _is_quantized(config, shape):
        whole = shape.linear_parameters * _QUANTIZED + shape.embedding_parameters * s
        if whole > allocated:
            parts["loading"], allocated = whole - allocated, whole
    parts["slack"] = allocated * COEFFICIENTS.slack
    parts["context"] = COEFFICIENTS.context if on_card else COEFFICIENTS.interpreter
    if setting.processes > 1 and on_card:
        is_shared = setting.shards is not None
        parts["context"] += COEFFICIENTS.exchange_of_shards if is_shared else COEFFICIENTS.exchange
    return Estimate(parts={name: round(size) for name, size in parts.items()})


def _sharded(
    config: TrainConfig, shape: ModelShape, setting: Setting, *, adapters: int, residual: int
) -> dict[str, float]:
    """Return what a rank has of the model, its adapters and their optimizer states; see the docstring."""
    c, n = setting.precision.size, setting.shards or 1
    size = _adapter_size(config, shape, setting)
    is_quantized = _is_quantized(config, shape)
    weight, constants = (_PACKED, _CONSTANTS) if is_quantized else (c, 0)
    adds_up = config.gradient_accumulation_steps > 1
    layer = (shape.linear_parameters * weight + adapters * c) / shape.layers
    outer = (
        shape.embedding_parameters if setting.profile.gathers_embeddings else shape.vocabulary * shape.hidden
    )
    return {
        "weights": shape.linear_parameters * (weight / n + constants),
        "embeddings": shape.embedding_parameters * residual / n,
        "adapters": adapters * size / n,
        "gradients": adapters * (size / n + (4 if adds_up else 0)),  # added up in float32
        "optimizer": adapters * _state_bytes(config.optimizer, size) / n,
        "gathered": outer * residual + COEFFICIENTS.gathered_layers * layer,
    }


def held_in_memory(config: TrainConfig, shape: ModelShape, setting: Setting, *, processes: int) -> int:
    """Return the bytes of a model in the memory of a host while *processes* of it load it for FSDP."""
    c, loads_whole = setting.precision.size, setting.profile.loads_whole
    if not _is_quantized(config, shape):
        return shape.parameters * c * (processes if loads_whole else 1)  # else one process reads them
    if loads_whole:
        return 0  # it is on the cards
    parts = shape.linear_parameters * _PACKED * processes / (setting.shards or 1)
    return round(parts + processes * shape.embedding_parameters * c)


_PACKED = 0.5  # bytes of a weight in 4 bits
_CONSTANTS = 1 / 64 + 4 / (64 * 256)  # bytes for each, of its block
_QUANTIZED = _PACKED + _CONSTANTS


def _is_quantized(config: TrainConfig, shape: ModelShape) -> bool:
    return config.adapter is Adapter.QLORA or shape.quantized == "bitsandbytes"


def _adapter_size(config: TrainConfig, shape: ModelShape, setting: Setting) -> int:
    is_half = _is_quantized(config, shape) and setting.profile.half_adapters and setting.precision.bf16
    return 2 if is_half else 4


def _targets(config: TrainConfig, shape: ModelShape) -> frozenset[str]:
    """Return the linear layers with adapters: for a pattern all of them, which need the most."""
    named = {name.rpartition(".")[2] for name in config.lora_target_modules if not config.target_pattern}
    return frozenset(named or (one.name for one in shape.linears))


def _residual_size(config: TrainConfig, shape: ModelShape, setting: Setting) -> int:
    is_cast = _is_quantized(config, shape) and setting.precision.name in setting.profile.embeddings_in_float32
    return 4 if is_cast else setting.precision.size


def _state_bytes(optimizer: str, size: int) -> float:
    """Return the bytes of optimizer state per parameter; *optimizer* is transformers' name for it."""
    name = optimizer.removeprefix("paged_")
    states = 0 if name.startswith("sgd") else 1 if name.startswith(("lion", "rmsprop", "adagrad")) else 2
    return states * (1 if "8bit" in name else size)


def _layer_activations(config: TrainConfig, shape: ModelShape, setting: Setting) -> float:
    """Return the bytes per token that the backward pass of a layer reads."""
    c, s = setting.precision.size, _residual_size(config, shape, setting)
    h, q, f = shape.hidden, shape.query, shape.intermediate
    targets = _targets(config, shape)
    ranks = len(targets) * config.lora_r * c
    if setting.profile.fused_layers and shape.has_gate and not config.lora_dropout:
        # The inputs of the norms, the projections and the MLP; queries, keys and values, of which each head
        # gets its own, and the attention's output; the two inputs of the gate.
        return c * (h * shape.norms + 2 * h + 4 * q + 2 * f) + ranks
    norms = 4 * h * shape.norms + (4 * (q + shape.key) if shape.has_head_norms else 0)
    attention = c * 4 * q
    mlp = (3 if shape.has_gate else 2) * s * f
    read: float = 0
    shared = set()
    for one in shape.linears:
        if one.name not in targets:
            continue
        from_attention, from_mlp = one.reads == "mixed", one.reads == "activated"
        if config.lora_dropout > 0:
            read += one.inputs * (c + 1)  # the values after dropout, and the mask
        elif from_attention:
            continue  # its input is the attention's output, which is counted already
        elif s == c and not from_mlp:
            shared.add(one.reads)
        else:
            read += c * one.inputs
    read += len(shared) * c * h
    return norms + attention + mlp + read + ranks


def _layer_working(config: TrainConfig, shape: ModelShape, setting: Setting, s: int) -> float:
    tokens = config.micro_batch_size * config.sequence_len
    gradients = tokens * s * ((3 if shape.has_gate else 2) * shape.intermediate + 2 * shape.hidden)
    unpacked = setting.precision.size * max(one.parameters for one in shape.linears)
    return (
        gradients
        + (unpacked if _is_quantized(config, shape) else 0)
        + _scores(config, shape, setting, COEFFICIENTS.score_working)
    )


def _scores(config: TrainConfig, shape: ModelShape, setting: Setting, size: int) -> int:
    if not setting.stores_scores:
        return 0
    return config.micro_batch_size * shape.heads * config.sequence_len**2 * size


def _loss(shape: ModelShape, setting: Setting, tokens: int, s: int) -> float:
    profile, c = setting.profile, setting.precision.size
    head = shape.vocabulary * shape.hidden
    copies = c * head if s > c else 0
    if profile.head_in_float32:
        copies = (0 if s == 4 else 4) * head + (c * head if c < 4 else 0)  # noqa: PLR2004 - float32
    if profile.tile is None:
        return tokens * shape.vocabulary * 4 * profile.logits + copies
    rows = min(tokens, max(profile.tile[0], tokens * profile.share))
    width = min(shape.vocabulary, profile.tile[1] or shape.vocabulary)
    if profile.tile[1]:  # only a tile of the head is cast
        copies = c * width * shape.hidden if s > c else 0
    head_input = tokens * shape.hidden * (4 + c)  # the input of the head, and its gradient in float32
    return rows * width * 4 * profile.logits + copies + head_input


def largest_sequence(config: TrainConfig, shape: ModelShape, setting: Setting, room: int) -> int | None:
    """Return the longest ``sequence_len``, a multiple of 128, that fits into *room* bytes, or None."""
    low, high = 0, (shape.max_positions or _LONGEST) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        longer = replace(config, sequence_len=middle * _STEP)
        if estimate(longer, shape, setting).total <= room:
            low = middle
        else:
            high = middle - 1
    return low * _STEP or None


def changes_to_fit(config: TrainConfig, shape: ModelShape, setting: Setting, room: int) -> tuple[str, ...]:
    """Return changes to *config*, any one of which makes the run fit into *room* bytes.

    Each is worded as a setting of the config.  If no single change is enough, the result is one
    combination of changes; if that is not enough either, it is empty.
    """
    changes = [*_changes(config, shape)]
    found = [
        words
        for words, change in changes
        if estimate(replace(config, **change), shape, setting).total <= room
    ]
    shorter = largest_sequence(config, shape, setting, room)
    if shorter is not None and shorter < config.sequence_len:
        found.append(f"`sequence_len: {shorter}`")
    if found:
        return tuple(found)
    together, other = [], config
    for words, change in changes:
        together.append(words)
        other = replace(other, **change)
        if estimate(other, shape, setting).total <= room:
            return (", ".join(together),)
    shorter = largest_sequence(other, shape, setting, room)
    return () if shorter is None else (", ".join([*together, f"`sequence_len: {shorter}`"]),)


def least_estimate(config: TrainConfig, shape: ModelShape, setting: Setting) -> Estimate:
    """Return the estimate with every setting that saves memory, and the shortest sequence."""
    for _, change in _changes(config, shape):
        config = replace(config, **change)
    return estimate(replace(config, sequence_len=_STEP), shape, setting)


def _changes(config: TrainConfig, shape: ModelShape) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield settings that save memory without changing the training data: in words, and as values."""
    if not config.gradient_checkpointing:
        yield "`gradient_checkpointing: true`", {"gradient_checkpointing": True}
    if config.micro_batch_size > 1:
        steps = config.gradient_accumulation_steps * config.micro_batch_size
        words = f"`micro_batch_size: 1` with `gradient_accumulation_steps: {steps}`"
        yield words, {"micro_batch_size": 1, "gradient_accumulation_steps": steps}
    if not _is_quantized(config, shape):
        yield "`adapter: qlora`", {"adapter": Adapter.QLORA}
