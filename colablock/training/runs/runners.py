"""The runners: trl, axolotl and Unsloth behind one protocol.

A runner decides what the shim starts, and with which files.  Everything else (tokenised data,
launch, metrics, checkpoints, resuming) is the same for all runners.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from colablock._common.fs import machine_error, write_private
from colablock.errors import InvalidInput
from colablock.training.runs.config import OWN_DATA, Adapter, MetricsTarget, TrainConfig
from colablock.training.runs.folder import RunFolder
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.scripts.run_trl import PATTERN
from colablock.verification.launch import Sharding

__all__ = ["RUNNERS", "Entry", "RunDecisions", "Runner", "runner_of"]

_NEVER = 1_000_000_000  # steps
_UNSLOTH_CACHES = "unsloth"  # in the folder of a run
_OF_EVERY_LAUNCH = ("accelerate.commands.launch", "torch")
_OF_EVERY_RUN = (*_OF_EVERY_LAUNCH, "transformers:Trainer")  # as launcher and shim do


_OF_SHARDS = (  # keys of axolotl's `fsdp_config` with the values that accelerate gets for trl
    "auto_wrap_policy",
    "state_dict_type",
    "reshard_after_forward",
    "offload_params",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDecisions:
    """The settings of a run that follow from the card and the data, not from the config.

    *dtype* is torch's name of the type of weights and computations.
    """

    precision: str  # "bf16", "fp16" or "fp32"
    dtype: str
    attention: str  # transformers' `attn_implementation`
    has_card: bool
    warmup_steps: int
    total_steps: int
    has_eval: bool = False
    is_sharded: bool = False
    pads_with_eos: bool = False  # because the tokenizer has no padding token
    eos_token: str | None = None

    evaluations: int = 10  # in total, by default

    @property
    def eval_steps(self) -> int:
        """The default number of steps between evaluations."""
        return max(1, self.total_steps // self.evaluations) if self.has_eval else 0

    @property
    def packs(self) -> bool:
        """Whether rows can be packed: without flash attention, tokens of one row would see another's."""
        return self.attention == "flash_attention_2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the shim starts: the path of a file, or the name of a module, with arguments.

    *imports_first* are modules that the shim imports before any other of the stack.
    """

    entry: str
    arguments: tuple[str, ...]
    imports_first: tuple[str, ...] = ()


class Runner(Protocol):
    """A trainer that takes a config."""

    @property
    def name(self) -> str:
        """The name in a matrix and in options."""

    @property
    def passes_through(self) -> bool:
        """Whether it takes keys that colablock does not know."""

    @property
    def splits(self) -> bool:
        """Whether colablock has to split off the rows for evaluation."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What it imports first, in that order: ``MODULE`` or ``MODULE:MEMBER``.

        A process imports them while preflight runs, so they must not depend on the run's workarounds.
        """

    def variables(self, folder: RunFolder) -> Mapping[str, str]:
        """Return the environment variables of its processes."""

    def write(self, config: TrainConfig, decisions: RunDecisions, folder: RunFolder) -> Entry:
        """Write its files to *folder*, and return how to start it."""


@dataclass(frozen=True, slots=True)
class Trl:
    """trl's SFTTrainer, started by ``scripts/run_trl.py``, which reads ``job.json``."""

    name: str = "trl"
    passes_through: bool = False
    splits: bool = True
    modules: tuple[str, ...] = (
        *_OF_EVERY_RUN,
        "datasets",
        "peft",
        "transformers:AutoModelForCausalLM",
        "transformers:AutoTokenizer",
        "trl:SFTTrainer",
    )

    def variables(self, folder: RunFolder) -> Mapping[str, str]:
        """Return no variables."""
        del folder
        return {}

    def write(self, config: TrainConfig, decisions: RunDecisions, folder: RunFolder) -> Entry:
        """Write nothing: ``job.json`` has everything."""
        del config, decisions
        return Entry(entry=str(SCRIPTS / "run_trl.py"), arguments=(str(folder.path),))


@dataclass(frozen=True, slots=True)
class Axolotl:
    """axolotl's own trainer, version 0.4.0 or later."""

    name: str = "axolotl"
    passes_through: bool = True
    splits: bool = False
    modules: tuple[str, ...] = _OF_EVERY_RUN  # it changes transformers when it is imported

    def variables(self, folder: RunFolder) -> Mapping[str, str]:
        """Return no variables."""
        del folder
        return {}

    def write(self, config: TrainConfig, decisions: RunDecisions, folder: RunFolder) -> Entry:
        """Write ``config.yaml`` for axolotl.

        Raises InvalidInput for a folder in which it would not find its data, or those of another run.
        """
        if OWN_DATA not in config.extra and (odd := PATTERN.search(str(folder.data))):
            message = f"axolotl cannot read `{folder.data}`: the `{odd[0]}` in its path has a meaning"
            raise InvalidInput(message, hint="Set an `--output-dir` without it")
        text = yaml.safe_dump(axolotl_config(config, decisions, folder), sort_keys=False, allow_unicode=True)
        write_private(folder.config_file, text.encode())
        return Entry(entry="axolotl.cli.train", arguments=(str(folder.config_file),))


@dataclass(frozen=True, slots=True)
class Unsloth:
    """Unsloth's FastLanguageModel with trl's SFTTrainer, started by ``scripts/run_unsloth.py``.

    It changes trl, transformers and peft when it is imported, so it has to come before them, and it
    writes code at that time, so it is not imported before the run is decided on.
    """

    name: str = "unsloth"
    passes_through: bool = False
    splits: bool = True
    modules: tuple[str, ...] = _OF_EVERY_LAUNCH

    def variables(self, folder: RunFolder) -> Mapping[str, str]:
        """Return where its caches are, and that it does not train on a CPU instead of a card."""
        caches = folder.path / _UNSLOTH_CACHES
        return {
            "UNSLOTH_COMPILE_LOCATION": str(caches / "compiled"),  # code that it writes and imports
            "UNSLOTH_MEGA_CACHE_DIR": str(caches / "kernels"),  # what torch has compiled
            "UNSLOTH_DISABLE_CPU_FALLBACK": "1",
        }

    def write(self, config: TrainConfig, decisions: RunDecisions, folder: RunFolder) -> Entry:
        """Remove its caches: they are programs, and may be of somebody else.  ``job.json`` has the rest.

        Raises Unmet.
        """
        del config, decisions
        caches = folder.path / _UNSLOTH_CACHES
        try:
            if caches.is_dir() and not caches.is_symlink():
                shutil.rmtree(caches)
            else:
                caches.unlink(missing_ok=True)
        except OSError as error:
            raise machine_error(error) from error
        return Entry(
            entry=str(SCRIPTS / "run_unsloth.py"),
            arguments=(str(folder.path),),
            imports_first=("unsloth",),
        )


RUNNERS: Mapping[str, Runner] = {"axolotl": Axolotl(), "trl": Trl(), "unsloth": Unsloth()}


def runner_of(name: str | None) -> Runner:
    """Return the runner with the name *name*.  Raises InvalidInput."""
    if name is None or name not in RUNNERS:
        known = ", ".join(f"`{one}`" for one in RUNNERS)
        what = f"there is no runner `{name}`" if name else "the matrix has no `runner` under `[train]`"
        hint = f"Set `--runner` to one of {known}"
        raise InvalidInput(what, hint=hint if name else f"{hint} that the stack has")
    return RUNNERS[name]


def axolotl_config(config: TrainConfig, decisions: RunDecisions, folder: RunFolder) -> dict[str, Any]:
    """Return *config* with axolotl's keys.

    axolotl takes the tokenised data unchanged, unless it reads the data itself (`OWN_DATA`).  Its
    defaults that download, pack or patch are switched off.  The user's further keys come last and
    so override the others.
    """
    keys = {
        **_model_keys(config, folder),
        **_trainer_keys(config, decisions),
        **dict(_conditional_keys(config, decisions)),
        **config.extra,
    }
    data = keys.pop(OWN_DATA, None)
    if not decisions.is_sharded:
        keys.pop("fsdp", None)  # without `fsdp_config`, axolotl fails
    if keys["sample_packing"] and not decisions.packs:
        keys |= {"sample_packing": False, "eval_sample_packing": False}
    if keys["tf32"] and decisions.precision != "bf16":  # older cards refuse it
        keys["tf32"] = False
    if data is None and not keys["sample_packing"]:
        keys.pop("evals_per_epoch", None)  # `eval_steps` has the steps of it
        return keys
    # The number of steps is known to axolotl only.
    if config.warmup_steps is None:
        del keys["warmup_steps"]
        keys["warmup_ratio"] = config.warmup_ratio
    if not config.eval_steps and keys.pop("eval_steps", None):
        keys.setdefault("evals_per_epoch", 1)
    return {**keys, **(data or {})}


def _model_keys(config: TrainConfig, folder: RunFolder) -> dict[str, Any]:
    """Return axolotl's keys about model, data and adapter."""
    return {
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
    }


def _trainer_keys(config: TrainConfig, decisions: RunDecisions) -> dict[str, Any]:
    """Return axolotl's keys about the training."""
    return {
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "micro_batch_size": config.micro_batch_size,
        "num_epochs": config.num_epochs,
        "optimizer": config.optimizer,
        "lr_scheduler": config.lr_scheduler,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "warmup_steps": decisions.warmup_steps,
        "train_on_inputs": config.train_on_inputs,
        "group_by_length": False,
        "bf16": decisions.precision == "bf16",
        "fp16": decisions.precision == "fp16",
        "tf32": False,
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": config.logging_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps or _NEVER,
        "save_total_limit": config.save_total_limit,
        "save_safetensors": True,  # axolotl before 0.5 writes pickles otherwise
        "flash_attention": decisions.attention == "flash_attention_2",
        "sdp_attention": decisions.attention == "sdpa",
        "seed": config.seed,
    }


def _conditional_keys(config: TrainConfig, decisions: RunDecisions) -> Iterator[tuple[str, Any]]:
    """Yield axolotl's keys that apply only to some runs."""
    if MetricsTarget.WANDB in config.report_to:
        yield "wandb_project", config.wandb_project or "colablock"
    if config.gradient_checkpointing:
        yield "gradient_checkpointing_kwargs", {"use_reentrant": False}
    if config.revision:
        yield "revision_of_model", config.revision
    if config.lora_target_modules:
        yield "lora_target_modules", config.target_pattern or list(config.lora_target_modules)
    if config.max_steps:
        # axolotl stops at whichever comes first, trl at the steps.  Enough epochs make both equal.
        yield "max_steps", config.max_steps
        yield "num_epochs", max(config.num_epochs, config.max_steps)
    if config.val_set_size:
        yield "eval_steps", config.eval_steps or decisions.eval_steps
    if MetricsTarget.TENSORBOARD in config.report_to:
        yield "use_tensorboard", True
    if decisions.is_sharded:
        usual = Sharding().values()
        shards = {
            "final_state_dict_type": "FULL_STATE_DICT",
            # With true, axolotl 0.18 leaves the other ranks without the constants of 4-bit weights, and their
            # optimizers without the weights to train.
            "cpu_ram_efficient_loading": False,
            **{name: usual[name] for name in _OF_SHARDS},
        }
        yield "fsdp_version", config.fsdp_version or 2
        yield "fsdp_config", {**shards, **config.fsdp_config}
    if decisions.pads_with_eos and decisions.eos_token:
        yield "special_tokens", {"pad_token": decisions.eos_token}
    if not decisions.has_card:
        # These call into CUDA on any device (`getCurrentStream`).
        yield from dict.fromkeys(("lora_qkv_kernel", "lora_mlp_kernel", "lora_o_kernel"), False).items()
