"""Write a new training config: every key with its meaning, sized for a card by the memory estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from colablock._common.text import command_line, printable
from colablock.training.preflight.cards import GQA_WORKAROUND, setting_for, usable_memory
from colablock.training.preflight.checks import TIGHT_SHARE
from colablock.training.preflight.facts import Card, Stack
from colablock.training.preflight.memory import estimate
from colablock.training.preflight.model_config import ModelShape
from colablock.training.runs.config import DataSource, TrainConfig, config_to

__all__ = ["KEY_EXAMPLES", "KEY_HELP", "FitCheck", "SizedConfig", "config_text", "fits_on", "size_config"]

FitCheck = Callable[[TrainConfig], bool]

_SEQUENCES = 16  # per optimizer step, as QLoRA recipes use for models up to 13B
_LENGTHS = (2048, 1024, 512, 256)  # tokens; users with longer data can set more
_BATCHES = (8, 4, 2, 1)
_CAUTIOUS = 1024  # tokens, if no estimate is possible
_WITHOUT_CARD = 512  # tokens: a CPU is slow
_COLUMN = 34  # of the comments, if the key leaves room

# The meaning of each key, in the order of the config.
KEY_HELP: Mapping[str, str] = {
    "base_model": "a folder, or a name on the hub",
    "datasets": "`path`: a file or a name on the hub; `type`: the form, such as messages or alpaca",
    "revision": "revision of the model on the hub; use a commit for repeatable runs",
    "adapter": "qlora: weights in 4 bits; lora: full weights, about four times the memory",
    "sequence_len": "tokens per row; preflight shows how much of the data is truncated",
    "micro_batch_size": "rows at a time on one card; without the key on a card, as many as fit",
    "gradient_accumulation_steps": "batches for each step of the optimiser",
    "num_epochs": "passes over the data",
    "max_steps": "number of steps; overrides num_epochs",
    "learning_rate": "2e-4 is usual for QLoRA up to 13B, 1e-4 above",
    "lr_scheduler": "schedule of the learning rate: cosine, linear, constant",
    "warmup_ratio": "fraction of the steps in which the learning rate rises",
    "warmup_steps": "number of those steps; overrides warmup_ratio",
    "weight_decay": "adapters rarely need it",
    "max_grad_norm": "gradients are clipped to this norm",
    "optimizer": "adamw_torch; adamw_8bit and paged_adamw_8bit need less memory",
    "lora_r": "rank of the adapter; higher learns more and needs more memory",
    "lora_alpha": "the adapter is scaled by lora_alpha / lora_r",
    "lora_dropout": "0 is fastest; 0.05 helps with little data",
    "lora_target_modules": "default: every linear layer except the head",
    "gradient_checkpointing": "recomputes activations: slower, needs far less memory",
    "train_on_inputs": "whether the tokens of the prompt count for the loss too",
    "chat_template": "a name (chatml, llama3, qwen_25), a file or a text; default: that of the tokenizer",
    "val_set_size": "fraction of the rows used for evaluation, such as 0.05",
    "eval_steps": "steps between two evaluations",
    "logging_steps": "steps between two points of the loss curve",
    "save_steps": "default: by time, at most ten minutes apart",
    "save_total_limit": "checkpoints to keep; at least two, because one may be damaged",
    "seed": "seed of shuffling, dropout and the initial adapter",
    "output_dir": "default: a folder in outputs/, named after model and data",
    "report_to": "wandb, tensorboard; default: only the files of the run",
    "wandb_project": "the key comes from WANDB_API_KEY or notebook secrets, never from this file",
    "fsdp_version": "2: the version that shards a model; see `fsdp_config`",
    "fsdp_config": "shards the model over all cards, also if each could hold it; see `--shard`",
}
# Example values of keys that are unset by default.
KEY_EXAMPLES: Mapping[str, Any] = {
    "revision": "main",
    "max_steps": 200,
    "warmup_steps": 10,
    "lora_target_modules": ["q_proj", "v_proj"],
    "chat_template": "chatml",
    "eval_steps": 50,
    "save_steps": 100,
    "output_dir": "outputs/mine",
    "report_to": ["wandb"],
    "fsdp_version": 2,
    "fsdp_config": {"reshard_after_forward": True},
    "wandb_project": "mine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedConfig:
    """A config, and whether it fits; None if that is unknown."""

    config: TrainConfig
    fits: bool | None


def fits_on(
    card: Card | None, ram: int, shape: ModelShape | None, runner: str, stack: Stack | None = None
) -> FitCheck | None:
    """Return a function that tells whether a config fits on *card* when it is empty, or into *ram* bytes.

    The result is None if there is no estimate: the shape is unknown, or not supported.  Without
    the version of the runner in *stack*, the runner profile with the most memory is used.
    """
    if shape is None or shape.unsupported is not None:
        return None
    cards = [] if card is None else [replace(card, free=None)]
    known = stack or Stack(torch="", transformers="")
    # A run applies the workaround on every card that needs it.
    setting = setting_for(shape, cards, known, runner, workarounds=frozenset({GQA_WORKAROUND}))
    room = TIGHT_SHARE * (usable_memory(cards[0]) if cards else ram)
    return lambda config: estimate(config, shape, setting).total <= room


def size_config(
    model: str,
    dataset: str,
    card: Card | None,
    shape: ModelShape | None = None,
    *,
    fits: FitCheck | None = None,
) -> SizedConfig:
    """Return a config for *card* (None: no card): the longest rows that fit, then the largest batch.

    *fits* is called about twenty times at most.  If a config fits with gradient checkpointing, it
    is tried without.
    """
    most = min(_LENGTHS[0] if card else _WITHOUT_CARD, (shape and shape.max_positions) or _LENGTHS[0])
    base = TrainConfig(
        base_model=model,
        datasets=(DataSource(path=dataset),),
        sequence_len=min(most, _CAUTIOUS),
        gradient_accumulation_steps=_SEQUENCES,
    )
    if fits is None:
        return SizedConfig(config=base, fits=None)
    lengths = (most, *(length for length in _LENGTHS if length < most))
    for length in lengths:
        for batch in _BATCHES if card else (1,):
            steps = _SEQUENCES // batch
            config = replace(
                base, sequence_len=length, micro_batch_size=batch, gradient_accumulation_steps=steps
            )
            if fits(config):
                faster = replace(config, gradient_checkpointing=False)
                return SizedConfig(config=faster if fits(faster) else config, fits=True)
    return SizedConfig(config=replace(base, sequence_len=lengths[-1]), fits=False)


def config_text(
    model: str,
    dataset: str,
    card: Card | None,
    shape: ModelShape | None,
    runner: str,
    *,
    fits: FitCheck | None = None,
    matrix: str | None = None,
    trainer: str | None = None,
) -> str:
    """Return a commented YAML config with the values of `size_config`, for the stack of *matrix*.

    *trainer* is the runner with its version, None if that is unknown.

    A line that starts with ``#`` and no space is an example; without the ``#`` it takes effect.
    """
    found = size_config(model, dataset, card, shape, fits=fits)
    lines = [*_head(found, card, runner, matrix, trainer), ""]
    written = config_to(found.config)
    for name in (one.name for one in fields(TrainConfig) if one.name != "extra"):
        key, *rest = _entry(name, written.get(name, KEY_EXAMPLES.get(name)))
        lines.append(f"{key if name in written else f'#{key}':<{_COLUMN}} # {KEY_HELP[name]}")
        lines += rest
    return "\n".join(lines) + "\n"


def _head(
    found: SizedConfig, card: Card | None, runner: str, matrix: str | None, trainer: str | None
) -> Iterator[str]:
    command = command_line("train", printable(matrix or "NAME"), "--config", "FILE")
    yield f"# A training config: `{command}` runs it."
    yield "# A line that starts with `#` and no space is an example; without the `#` it takes effect."
    where = f"{printable(card.name)}, {card.memory / 2**30:.0f} GiB" if card else "a machine without a card"
    notes = {
        True: "it fits by the memory estimate",
        False: "even this does not fit by the memory estimate; use a smaller model or a larger card",
        None: "without the model's config there is no memory estimate, so the values are cautious",
    }
    if found.fits is not None:
        where += (
            f", with {printable(trainer)}" if trainer else f", with the {runner} that needs the most memory"
        )
    yield f"# Sized for {where}: {notes[found.fits]}."
    if runner == "axolotl":
        yield "# Further keys are passed to axolotl unchanged."
    yield "# There is no key for the precision, which follows from the card."


def _entry(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of one key; a list of tables takes several."""
    if name != "datasets":
        yield f"{name}: {_scalar(value)}"
        return
    yield "datasets:"
    for source in value:
        for at, (key, each) in enumerate(source.items()):
            yield f"  {' ' if at else '-'} {key}: {_scalar(each)}"


def _scalar(value: Any) -> str:
    """Return a value as YAML in one line; characters that are not printable are escaped."""
    is_shown = not isinstance(value, str) or value.isprintable()
    text: str = yaml.safe_dump(
        value,
        default_flow_style=True,
        default_style=None if is_shown else '"',
        allow_unicode=is_shown,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...")
