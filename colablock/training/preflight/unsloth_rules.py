"""Checks of a run with the runner Unsloth: the card and the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from colablock.training.preflight.facts import Card, Finding, Level
from colablock.training.preflight.model_config import ModelShape
from colablock.training.runs.config import TrainConfig

__all__ = ["NO_CARD", "OWN_KERNELS", "RUNNER", "unsloth_findings"]

RUNNER = "unsloth"
#: The model types with kernels of its own (unsloth 2026.10.9, ``FastLanguageModel.from_pretrained``).
OWN_KERNELS = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")

_FIRST_CAPABILITY = (7, 0)  # of Triton
_INSTEAD = "use `--runner trl`"

NO_CARD = Finding(
    level=Level.REFUSE,
    what="Unsloth needs a card, and this machine has none",
    why="its kernels are for CUDA",
    fix=f"{_INSTEAD}, or a runtime with a card",
)


def unsloth_findings(
    runner: str, config: TrainConfig, shape: ModelShape | None, cards: Sequence[Card]
) -> Iterator[Finding]:
    """Yield what Unsloth cannot train, or trains without its own kernels; nothing for another *runner*."""
    if runner != RUNNER:
        return
    if not cards:
        yield NO_CARD
    for card in cards:
        if card.compute_capability is not None and card.compute_capability < _FIRST_CAPABILITY:
            yield Finding(
                level=Level.REFUSE,
                what=f"Unsloth has no kernels for the {card.name}",
                why=f"the card is {card.sm}, and Triton needs sm_70 or later",
                fix=f"{_INSTEAD}, or a runtime with another card",
            )
    if shape is None:
        return
    if shape.image_parameters:
        yield Finding(
            level=Level.REFUSE,
            what=f"the runner unsloth trains no models for images, such as `{shape.model_type}`",
            why="Unsloth loads them with another class, whose adapters do not fit the model for texts",
            fix=_INSTEAD,
        )
    if shape.max_positions is not None and config.sequence_len > shape.max_positions:
        yield Finding(
            level=Level.REFUSE,
            what=f"`sequence_len: {config.sequence_len}` exceeds the model's {shape.max_positions} positions",
            why="Unsloth would scale the model's rotary embeddings, and the adapter does not record that",
            fix=f"set `sequence_len: {shape.max_positions}`, or {_INSTEAD}",
        )
    if shape.model_type not in OWN_KERNELS and not shape.image_parameters:
        yield Finding(
            level=Level.NOTE,
            what=f"Unsloth has no kernels of its own for models of type `{shape.model_type}`",
            why="it compiles those of transformers, which takes minutes at the start of a run",
        )
