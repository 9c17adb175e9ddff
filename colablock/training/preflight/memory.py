"""What a training run takes of a card's memory, reckoned from the model's sizes before a byte is fetched.

The peak of a step is at one of two moments, and everything else is there at both::

    peak = (weights + embeddings + adapters + gradients + optimizer + activations
            + the greater of: loss, one layer) × (1 + slack) + context

``loss`` is the moment at which the gradient of the logits is made, ``one layer``
the backward pass of a decoder layer.  Below, h is the hidden size, q and k the widths
of all query and all key heads, f that of the MLP, v the vocabulary, t the tokens
of a batch, r the rank; c is the size of a number in the precision, s that of the
residual stream: 4 where embeddings are kept in float32, else c.

weights
    4-bit: half a byte for a parameter, a byte for each 64 of them, 4 bytes for each
    256 of those (QLoRA, arXiv 2305.14314, section 3).  Else c for a parameter.
embeddings
    v·h, twice unless tied, × s: not quantised.
adapters, gradients, optimizer
    r·(inputs + outputs) parameters for each linear layer, in float32, or in bfloat16
    where the runner casts them to it; a cast copy in c of those in float32; the gradients
    of the same type (twice with several processes: the buckets that are
    exchanged); the optimizer's states of the same type, or of one byte.
activations
    With checkpointing the input of each layer: t·h·s.  Without, what the backward pass
    of a layer reads, for each token: the inputs of the norms in float32 (4h each, and 4(q + k)
    with norms of heads), what the adapters of the attention read (c·h once where
    s = c, else a cast copy for each), query, key, value and output of the attention
    (c·4q, key and value being repeated for all heads), what the adapters of the MLP read,
    gate, its activation, up (s·f each) and their product (c·f).  That is the
    modelling code of transformers and peft read line by line; on a Llama of 1B with embeddings
    in float32 it gives 80.5 bytes × h a token and layer, and 79.2 were measured.
    At either: 4h for the last norm.
loss
    The logits in float32, as many times as the runner has them at once, or those of
    a tile where it computes the loss tile by tile; and a cast copy of the head in c where
    the head is in float32.
one layer
    With checkpointing its activations; the gradients on the way, s·(3f + 2h) a token;
    its largest linear layer unpacked to c; and the scores of the attention where
    no fused kernel runs.
slack
    What the allocator cannot hand out again: holes between blocks.
context
    What CUDA itself and its libraries take, outside the allocator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.training.preflight.model_config import ModelShape
from colablock.training.preflight.precision import Precision
from colablock.training.runs.config import Adapter, TrainConfig

__all__ = [
    "COEFFICIENTS",
    "RUNNER_PROFILES",
    "Estimate",
    "RunnerProfile",
    "Setting",
    "adapter_parameters",
    "changes_to_fit",
    "checkpoint_size",
    "estimate",
    "largest_sequence",
    "least_estimate",
    "runner_profile",
]

GIB = 2**30
_STEP = 128  # tokens: lengths that are proposed are multiples of it
_LONGEST = 131_072  # tokens, for a model that names no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The numbers that no source code tells: measured, and set here."""

    # One H100, driver 580, torch 2.11.0+cu130: what the device shows less what the allocator has reserved.
    context: int = round(0.75 * GIB)
    # There the allocator had reserved 1.09 to 1.23 times what was allocated at the peak, but gives back
    # what it can before it fails: the least that it works in is nearer to what is allocated.
    slack: float = 0.06
    # Resident memory of an interpreter with torch and transformers on a CPU.
    interpreter: int = GIB
    # Bytes for a score (heads × tokens × tokens of a sequence) that stay for the backward pass and that come
    # and go: softmax in float32 and its copy in 16 bits; its gradient and that of the scores in float32.
    score_kept: int = 6
    score_working: int = 8


COEFFICIENTS = Coefficients()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerProfile:
    """How a runner, from a version on, treats what the formula leaves open.

    *logits*: how many times all logits are there in float32 at once.  *tile*: tokens ×
    entries of the vocabulary (0: all) for which logits are there at once.
    *embeddings_in_float32*: the precisions with which embeddings and head stay
    cast by peft's ``prepare_model_for_kbit_training``.  *head_in_float32*: the
    loss multiplies with a copy of the head in float32.  *half_adapters*: with bf16
    the adapters of a quantised model are cast to it.
    """

    since: str
    logits: float
    source: str
    tile: tuple[int, int] | None = None
    embeddings_in_float32: tuple[str, ...] = ()
    head_in_float32: bool = False
    half_adapters: bool = False


# The logarithms of the softmax, their gradient and that of the logits, in float32: with 3 the peaks of two
# measured settings come out to 0.1 %.
_FULL = 3.0
_SHIFTED = 3.5  # transformers before 4.49 makes a copy without the last token, beside the logits in 16 bits

RUNNER_PROFILES: Mapping[str, tuple[RunnerProfile, ...]] = {  # newest first
    "trl": (
        RunnerProfile(
            since="1.15",
            logits=0.5,
            tile=(4096, 32768),
            half_adapters=True,
            source="trl 1.15 and 1.16 kernels/chunked_logprob.py: tiles in 16 bits, in one buffer",
        ),
        RunnerProfile(
            since="1.7",
            logits=5.0,
            tile=(256, 0),
            head_in_float32=True,
            half_adapters=True,
            source="trl 1.7 to 1.14 trainer/sft_trainer.py, _chunk: logits, logarithms, their entropy",
        ),
        RunnerProfile(
            since="0.25",
            logits=_FULL,
            half_adapters=True,
            source="trl 0.29.1 trainer/sft_trainer.py; its own preparation casts no embeddings",
        ),
        RunnerProfile(
            since="0.21",
            logits=_FULL,
            embeddings_in_float32=("fp16",),
            half_adapters=True,
            source="trl 0.21 trainer/sft_trainer.py: peft's preparation, and a cast back for bf16",
        ),
        RunnerProfile(
            since="0",
            logits=_SHIFTED,
            embeddings_in_float32=("fp16",),
            half_adapters=True,
            source="trl 0.10.1 trainer/sft_trainer.py",
        ),
    ),
    "axolotl": (
        RunnerProfile(
            since="0.8",
            logits=_FULL,
            source="axolotl loaders/model.py: embeddings are cast back to the type of the weights",
        ),
        RunnerProfile(
            since="0",
            logits=_SHIFTED,
            source="axolotl 0.4.0 utils/models.py",
        ),
    ),
}


def runner_profile(runner: str, version: str | None = None) -> RunnerProfile:
    """Return the habits of *runner* at *version*; without a usable version the most wasteful ones."""
    known = RUNNER_PROFILES[runner]
    try:
        release = Version(version) if version else None
    except InvalidVersion:
        release = None
    if release is None:
        return max(known, key=lambda profile: profile.logits if profile.tile is None else 0)
    return next(profile for profile in known if release >= Version(profile.since) or profile is known[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What decides about memory beside the config and the model.

    *attention* as in `Preflight`; *is_fused*: sdpa finds a kernel that keeps no scores.
    """

    precision: Precision
    profile: RunnerProfile
    attention: str = "sdpa"
    is_fused: bool = True
    processes: int = 1
    on_card: bool = True

    @property
    def keeps_scores(self) -> bool:
        return self.attention == "eager" or (self.attention == "sdpa" and not self.is_fused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes by part, at the peak of a step in one process."""

    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """What the card has to have free."""
        return sum(self.parts.values())

    @property
    def allocated(self) -> int:
        """What torch's allocator hands out at the peak: neither its slack nor what CUDA takes."""
        return self.total - self.parts.get("slack", 0) - self.parts.get("context", 0)


def adapter_parameters(config: TrainConfig, shape: ModelShape) -> int:
    """Return how many parameters are trained."""
    return shape.layers * sum(
        config.lora_r * (one.inputs + one.outputs)
        for one in shape.linears
        if one.name in _targets(config, shape)
    )


def checkpoint_size(config: TrainConfig, shape: ModelShape, setting: Setting) -> int:
    """Return the bytes of a checkpoint: the adapter and the optimizer's states."""
    size = _adapter_size(config, shape, setting)
    return round(adapter_parameters(config, shape) * (size + _state_bytes(config.optimizer, size)))


def estimate(config: TrainConfig, shape: ModelShape, setting: Setting) -> Estimate:
    """Return what training *shape* as *config* says takes in one process; the module says how."""
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
    parts = {
        "weights": shape.linear_parameters * (_QUANTIZED if _is_quantized(config, shape) else c),
        "embeddings": shape.embedding_parameters * s,
        "adapters": adapters * (adapter_size + cast),
        "gradients": adapters * adapter_size * (2 if setting.processes > 1 else 1),
        "optimizer": adapters * _state_bytes(config.optimizer, adapter_size),
        "activations": kept + tokens * shape.hidden * 4,
        **({"loss": loss} if loss >= working else {"one layer": working}),
    }
    allocated = sum(parts.values())
    parts["slack"] = allocated * COEFFICIENTS.slack
    parts["context"] = COEFFICIENTS.context if on_card else COEFFICIENTS.interpreter
    return Estimate(parts={name: round(size) for name, size in parts.items()})


_QUANTIZED = 0.5 + 1 / 64 + 4 / (64 * 256)


def _is_quantized(config: TrainConfig, shape: ModelShape) -> bool:
    return config.adapter is Adapter.QLORA or shape.quantized == "bitsandbytes"


def _adapter_size(config: TrainConfig, shape: ModelShape, setting: Setting) -> int:
    is_half = _is_quantized(config, shape) and setting.profile.half_adapters and setting.precision.bf16
    return 2 if is_half else 4


def _targets(config: TrainConfig, shape: ModelShape) -> frozenset[str]:
    return frozenset(config.lora_target_modules or (one.name for one in shape.linears))


def _residual_size(config: TrainConfig, shape: ModelShape, setting: Setting) -> int:
    is_cast = _is_quantized(config, shape) and setting.precision.name in setting.profile.embeddings_in_float32
    return 4 if is_cast else setting.precision.size


def _state_bytes(optimizer: str, size: int) -> float:
    """Return the bytes of state that an optimizer, by transformers' name for it, keeps for a parameter."""
    name = optimizer.removeprefix("paged_")
    states = 0 if name.startswith("sgd") else 1 if name.startswith(("lion", "rmsprop", "adagrad")) else 2
    return states * (1 if "8bit" in name else size)


def _layer_activations(config: TrainConfig, shape: ModelShape, setting: Setting) -> float:
    """Return the bytes that the backward pass of a layer reads, for each token."""
    c, s = setting.precision.size, _residual_size(config, shape, setting)
    h, q, f = shape.hidden, shape.query, shape.intermediate
    targets = _targets(config, shape)
    norms = 4 * h * shape.norms + (4 * (q + shape.key) if shape.has_head_norms else 0)
    attention = c * 4 * q
    mlp = 3 * s * f
    read: float = 0
    shared = set()
    for one in shape.linears:
        if one.name not in targets:
            continue
        from_attention, from_mlp = one.name == "o_proj", one.name == "down_proj"
        if config.lora_dropout > 0:
            read += one.inputs * (c + 1)  # what was kept, and which
        elif from_attention:
            continue  # the attention's own output
        elif s == c and not from_mlp:
            shared.add(one.name in ("gate_proj", "up_proj", "gate_up_proj"))
        else:
            read += c * one.inputs
    read += len(shared) * c * h
    ranks = len(targets) * config.lora_r * c
    return norms + attention + mlp + read + ranks


def _layer_working(config: TrainConfig, shape: ModelShape, setting: Setting, s: int) -> float:
    tokens = config.micro_batch_size * config.sequence_len
    gradients = tokens * s * (3 * shape.intermediate + 2 * shape.hidden)
    unpacked = setting.precision.size * max(one.parameters for one in shape.linears)
    return (
        gradients
        + (unpacked if _is_quantized(config, shape) else 0)
        + _scores(config, shape, setting, COEFFICIENTS.score_working)
    )


def _scores(config: TrainConfig, shape: ModelShape, setting: Setting, size: int) -> int:
    if not setting.keeps_scores:
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
    rows, width = min(tokens, profile.tile[0]), min(shape.vocabulary, profile.tile[1] or shape.vocabulary)
    if profile.tile[1]:  # a tile of the head is cast, not all of it
        copies = c * width * shape.hidden if s > c else 0
    passed = tokens * shape.hidden * (4 + c)  # what the head reads, and its gradient in float32
    return rows * width * 4 * profile.logits + copies + passed


def largest_sequence(config: TrainConfig, shape: ModelShape, setting: Setting, room: int) -> int | None:
    """Return the longest ``sequence_len``, a multiple of 128, that fits *room* bytes, or None."""
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
    """Return the changes to *config* with each of which *room* bytes are enough.

    They are words for a person, each a setting as it stands in the config.  Where no
    single one helps it is all of them at once; none where that does not help, either.
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
    """Return what *shape* takes with all that spares memory and the shortest of sequences."""
    for _, change in _changes(config, shape):
        config = replace(config, **change)
    return estimate(replace(config, sequence_len=_STEP), shape, setting)


def _changes(config: TrainConfig, shape: ModelShape) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what spares memory, in words and as values; what is learnt from stays as it is."""
    if not config.gradient_checkpointing:
        yield "`gradient_checkpointing: true`", {"gradient_checkpointing": True}
    if config.micro_batch_size > 1:
        steps = config.gradient_accumulation_steps * config.micro_batch_size
        words = f"`micro_batch_size: 1` with `gradient_accumulation_steps: {steps}`"
        yield words, {"micro_batch_size": 1, "gradient_accumulation_steps": steps}
    if not _is_quantized(config, shape):
        yield "`adapter: qlora`", {"adapter": Adapter.QLORA}
