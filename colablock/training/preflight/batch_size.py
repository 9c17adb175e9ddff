"""The number of rows at a time: the largest that fits a card, for the same batch of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from colablock.training.preflight.facts import Finding, Level
from colablock.training.preflight.memory import Setting, estimate
from colablock.training.preflight.model_config import ModelShape
from colablock.training.runs.config import TrainConfig

__all__ = [
    "batch_findings",
    "largest_batch",
    "ranks_with_rows",
    "rows_of_step",
    "with_batch_of",
    "with_rows_of_step",
]

_MUCH_LARGER = 4  # times as many rows, worth a note
#: Keys of axolotl for the number of ranks that have the same rows, of which each has a part of the tokens, or
#: of every layer.  The second one is the older name of the first.
_SHARED_ROWS = (("context_parallel_size", "sequence_parallel_degree"), ("tensor_parallel_size",))


def ranks_with_rows(config: Mapping[str, Any], processes: int) -> int:
    """Return how many of *processes* have rows of their own with the keys and values *config*."""
    for names in _SHARED_ROWS:
        given = next((config[name] for name in names if config.get(name)), 1)
        processes //= given if isinstance(given, int) and given > 0 else 1
    return max(1, processes)


def largest_batch(config: TrainConfig, shape: ModelShape, setting: Setting, room: float) -> TrainConfig:
    """Return *config* with `micro_batch_size` doubled as often as the run fits into *room* bytes.

    `gradient_accumulation_steps` is divided by as much, so that a step has the same rows.
    """
    steps = config.gradient_accumulation_steps
    while steps % 2 == 0:
        steps //= 2
        larger = replace(
            config, micro_batch_size=2 * config.micro_batch_size, gradient_accumulation_steps=steps
        )
        if estimate(larger, shape, setting).total > room:
            break
        config = larger
    return config


def with_batch_of(config: TrainConfig, recorded: Mapping[str, Any]) -> TrainConfig:
    """Return *config* with the rows at a time of the config *recorded*, if a step has as many rows there."""
    rows, steps = recorded.get("micro_batch_size"), recorded.get("gradient_accumulation_steps")
    if not isinstance(rows, int) or not isinstance(steps, int):
        return config
    if rows * steps != config.micro_batch_size * config.gradient_accumulation_steps:
        return config
    return replace(config, micro_batch_size=rows, gradient_accumulation_steps=steps)


def rows_of_step(recorded: Mapping[str, Any], processes: int) -> int | None:
    """Return the rows of a step with the config *recorded* in all *processes*; None if it does not say."""
    rows, steps = recorded.get("micro_batch_size"), recorded.get("gradient_accumulation_steps")
    if not isinstance(rows, int) or not isinstance(steps, int):
        return None
    return rows * steps * ranks_with_rows(recorded, processes)


def with_rows_of_step(config: TrainConfig, rows: int, processes: int) -> TrainConfig | None:
    """Return *config* with *rows* in a step of all *processes*; None if they cannot share them evenly.

    Rows at a time stay as they are if that is possible, and else become fewer.
    """
    each, rest = divmod(rows, ranks_with_rows(config.extra, processes))
    if rest:
        return None
    at_a_time = next(size for size in range(min(config.micro_batch_size, each), 0, -1) if each % size == 0)
    return replace(config, micro_batch_size=at_a_time, gradient_accumulation_steps=each // at_a_time)


def batch_findings(given: TrainConfig, largest: TrainConfig, *, is_taken: bool) -> Iterator[Finding]:
    """Yield a note on the `largest_batch` for the config *given*: that the run takes it, or could.

    If it is not taken, it is worth a note only if it is several times as large.
    """
    fitting, steps = largest.micro_batch_size, largest.gradient_accumulation_steps
    rows = f"a step still has {fitting * steps} rows"
    if is_taken and fitting > given.micro_batch_size:
        yield Finding(
            level=Level.NOTE,
            what=f"training {fitting} rows at a time, with `gradient_accumulation_steps: {steps}`",
            why=f"the config has no `micro_batch_size`, and by the memory estimate they fit; {rows}",
        )
    elif not is_taken and fitting >= _MUCH_LARGER * given.micro_batch_size:
        yield Finding(
            level=Level.NOTE,
            what=f"`micro_batch_size: {fitting}` fits as well",
            why=f"it uses the card better; with `gradient_accumulation_steps: {steps}` {rows}",
        )
