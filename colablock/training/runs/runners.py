"""What runs the training: one small seam, two who stand behind it.

A runner says what the shim starts and with which files; everything else
(tokens, launch, metrics, checkpoints, resume) is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from colablock.errors import InvalidInput
from colablock.training.runs.config import Adapter, MetricsTarget, TrainConfig
from colablock.training.runs.folder import RunFolder
from colablock.training.scripts import FOLDER as SCRIPTS

__all__ = ["RUNNERS", "Entry", "RunDecisions", "Runner", "runner_of"]

_NEVER = 1_000_000_000  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDecisions:
    """What was decided beside the config: by the card, by the data, by what stands already.

    *dtype* is torch's name for the type that weights are loaded and computed in.
    """

    precision: str  # "bf16", "fp16" or "fp32"
    dtype: str
    attention: str  # transformers' `attn_implementation`
    has_card: bool
    warmup_steps: int
    total_steps: int
    has_eval: bool = False
    pads_with_eos: bool = False  # the tokenizer has no padding token of its own
    eos_token: str | None = None

    @property
    def eval_steps(self) -> int:
        """Return the steps between two evaluations where nobody says: about ten in all."""
        return max(1, self.total_steps // 10) if self.has_eval else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the shim starts: a file, or a module by its name, with arguments."""

    entry: str
    arguments: tuple[str, ...]


class Runner(Protocol):
    """A trainer that can be handed a config."""

    @property
    def name(self) -> str:
        """What a matrix or an option calls it."""

    @property
    def passes_through(self) -> bool:
        """Whether it takes keys that are not ours."""

    @property
    def splits(self) -> bool:
        """Whether rows for evaluation have to be set apart for it."""

    def write(self, config: TrainConfig, decided: RunDecisions, folder: RunFolder) -> Entry:
        """Write what it reads into *folder* and return how it is started there."""


@dataclass(frozen=True, slots=True)
class Trl:
    """trl's SFTTrainer through our own script; it reads ``job.json``."""

    name: str = "trl"
    passes_through: bool = False
    splits: bool = True

    def write(self, config: TrainConfig, decided: RunDecisions, folder: RunFolder) -> Entry:
        """Leave everything to ``job.json``."""
        del config, decided
        return Entry(entry=str(SCRIPTS / "run_trl.py"), arguments=(str(folder.path),))


@dataclass(frozen=True, slots=True)
class Axolotl:
    """axolotl's own trainer, 0.4.0 or newer, with a config in its words."""

    name: str = "axolotl"
    passes_through: bool = True
    splits: bool = False

    def write(self, config: TrainConfig, decided: RunDecisions, folder: RunFolder) -> Entry:
        """Write ``config.yaml`` as axolotl reads it."""
        text = yaml.safe_dump(axolotl_config(config, decided, folder), sort_keys=False, allow_unicode=True)
        folder.config_file.write_text(text, encoding="utf-8")
        return Entry(entry="axolotl.cli.train", arguments=(str(folder.config_file),))


RUNNERS: Mapping[str, Runner] = {"axolotl": Axolotl(), "trl": Trl()}


def runner_of(name: str | None) -> Runner:
    """Return the runner of that name.  Raises InvalidInput."""
    if name is None or name not in RUNNERS:
        known = ", ".join(f"`{one}`" for one in RUNNERS)
        what = f"the runner `{name}` is not known" if name else "the matrix names no runner under `[train]`"
        raise InvalidInput(what, hint=f"`--runner` takes one of {known}")
    return RUNNERS[name]


def axolotl_config(config: TrainConfig, decided: RunDecisions, folder: RunFolder) -> dict[str, Any]:
    """Return *config* in axolotl's words.

    The data are tokens already, which axolotl takes as they are.  What would
    be loaded from elsewhere, packed or patched by default is said to be off;
    the user's own further keys come last and win.
    """
    wandb = (
        {"wandb_project": config.wandb_project or "colablock"}
        if MetricsTarget.WANDB in config.report_to
        else {}
    )
    values: dict[str, Any] = {
        "base_model": config.base_model,
        "base_model_config": config.base_model,
        "model_type": "AutoModelForCausalLM",
        "tokenizer_type": "AutoTokenizer",
        "load_in_8bit": False,
        "load_in_4bit": config.adapter is Adapter.QLORA,
        "strict": False,
        "adapter": config.adapter.value,
        "datasets": [{"path": str(folder.data / "train.parquet"), "ds_type": "parquet", "type": None}],
        "dataset_prepared_path": str(folder.path / "prepared"),
        "val_set_size": config.val_set_size,
        "output_dir": str(folder.path),
        "sequence_len": config.sequence_len,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "lora_r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "lora_target_linear": not config.lora_target_modules,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "micro_batch_size": config.micro_batch_size,
        "num_epochs": config.num_epochs,
        "optimizer": config.optimizer,
        "lr_scheduler": config.lr_scheduler,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "warmup_steps": decided.warmup_steps,
        "train_on_inputs": config.train_on_inputs,
        "group_by_length": False,
        "bf16": decided.precision == "bf16",
        "fp16": decided.precision == "fp16",
        "tf32": False,
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": config.logging_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps or _NEVER,
        "save_total_limit": config.save_total_limit,
        "flash_attention": decided.attention == "flash_attention_2",
        "sdp_attention": decided.attention == "sdpa",
        "seed": config.seed,
        **wandb,
    }
    if config.gradient_checkpointing:
        values["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if config.revision:
        values["revision_of_model"] = config.revision
    if config.lora_target_modules:
        values["lora_target_modules"] = list(config.lora_target_modules)
    if config.max_steps:
        # axolotl ends at the first of the two, trl at the steps: with an epoch a step that is the same.
        values |= {"max_steps": config.max_steps, "num_epochs": max(config.num_epochs, config.max_steps)}
    if config.val_set_size:
        values["eval_steps"] = config.eval_steps or decided.eval_steps
    if MetricsTarget.TENSORBOARD in config.report_to:
        values["use_tensorboard"] = True
    if decided.pads_with_eos and decided.eos_token:
        values["special_tokens"] = {"pad_token": decided.eos_token}
    if not decided.has_card:
        # These call into CUDA whatever the device (`getCurrentStream`).
        values |= dict.fromkeys(("lora_qkv_kernel", "lora_mlp_kernel", "lora_o_kernel"), False)
    return values | dict(config.extra)
