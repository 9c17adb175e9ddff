"""Train QLoRA and LoRA adapters with trl's SFTTrainer.  The shim runs this file in the target.

``job.json`` has the config and the decisions of preflight: precision, attention, number of warm-up
steps.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

import inspect
import json
import os
import re
import runpy
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

IGNORED = -100
PATTERN = re.compile(r"[*?\[$]|::")  # what the library datasets does not take literally in a path
TOWERS = ("vision_config", "audio_config")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
# Further keys of a config that are arguments of the trainer, by the same name.
FURTHER = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "lr_scheduler_kwargs",
    "neftune_noise_alpha",
)


def main(folder: Path) -> None:
    """Train the job in ``job.json``, and save the adapter to ``adapter/``."""
    import torch
    from peft import LoraConfig

    job = read_job(folder)
    lora = LoraConfig(task_type="CAUSAL_LM", **adapter(job))
    args = arguments(job, folder, torch)  # first: the ranks meet, and share the loading of a sharded model
    train(job, folder, load_model(job, torch), args, lora)


def read_job(folder: Path) -> dict[str, Any]:
    """Return the job in ``job.json``."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    return job


def adapter(job: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the adapter, by peft's names."""
    config = job["config"]
    return {
        "r": config["lora_r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "target_modules": targets(config.get("lora_target_modules")),
        **{name: True for name in ("use_dora", "use_rslora") if config.get(f"peft_{name}")},
    }


def train(job: dict[str, Any], folder: Path, model: Any, args: Any, peft_config: Any) -> None:
    """Train *model* on the rows of ``data/``, which are tokenised, and save the adapter with the tokenizer.

    *peft_config* is None for a model that has an adapter.
    """
    import torch
    from trl import SFTTrainer

    tokenizer = load_tokenizer(job)
    held = folder / "data" / "eval.parquet"
    if "ddp_find_unused_parameters" not in job["config"] and leaves_adapters_unused(model.config):
        args.ddp_find_unused_parameters = True  # otherwise torch ends the second batch with an error
    known = inspect.signature(SFTTrainer.__init__).parameters
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows_of(folder / "data" / "train.parquet"),
        eval_dataset=rows_of(held) if held.exists() else None,
        data_collator=Collator(tokenizer.pad_token_id or 0, torch),
        peft_config=peft_config,
        **{"processing_class" if "processing_class" in known else "tokenizer": tokenizer},
    )
    trainer.train()  # the shim passes the checkpoint to resume from
    if job.get("shards"):
        model = trainer.accelerator.unwrap_model(trainer.model)
        sharing()["save_adapter"](model, folder / "adapter", writes=trainer.is_world_process_zero())
    elif trainer.is_world_process_zero():
        trainer.save_model(str(folder / "adapter"))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(str(folder / "adapter"))


def leaves_adapters_unused(config: Any) -> bool:
    """Whether texts use only some layers of a model: none of an image tower, some of the experts."""
    text = getattr(config, "text_config", None) or config
    return any(getattr(config, name, None) is not None for name in TOWERS) or any(
        getattr(text, name, None) not in (None, 0, 1) for name in EXPERTS
    )


def rows_of(file: Path) -> Any:
    """Return the rows of *file*: in memory if datasets would find other files by its path."""
    from datasets import Dataset

    if not PATTERN.search(str(file)):
        return Dataset.from_parquet(str(file))
    from pyarrow import parquet

    with file.open("rb") as opened:
        return Dataset(parquet.read_table(opened))


def sharing() -> dict[str, Any]:
    """Return the functions of ``shards.py``."""
    return runpy.run_path(str(Path(__file__).with_name("shards.py")))


def load_tokenizer(job: dict[str, Any]) -> Any:
    """Return the tokenizer of the model with the chat template of the run, and a token for padding."""
    from transformers import AutoTokenizer

    config = job["config"]
    tokenizer = AutoTokenizer.from_pretrained(config["base_model"], revision=config.get("revision"))
    if job.get("chat_template"):
        tokenizer.chat_template = job["chat_template"]  # kept with the adapter
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def targets(modules: Any) -> Any:
    """Return the layers with adapters as peft takes them: names, one pattern, or all linear layers."""
    if modules and len(modules) == 1 and set(modules[0]) & set("\\*+[](|)^$?"):
        return modules[0]
    return modules or "all-linear"


def load_model(job: dict[str, Any], torch: Any) -> Any:
    """Return the model on this rank's card, with its linear layers in NF4 for QLoRA.

    A model that will be sharded is in memory instead, since no card may have room for the whole.
    """
    import transformers
    from transformers import AutoModelForCausalLM

    loading: Any = nullcontext()
    config, dtype = job["config"], getattr(torch, job["dtype"])
    older = tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 56)
    options: dict[str, Any] = {"torch_dtype" if older else "dtype": dtype}
    if config["adapter"] == "qlora":
        options["quantization_config"] = nf4(dtype, storage=dtype if job.get("shards") else None)
    if job.get("shards"):
        if config["adapter"] == "qlora":
            options["device_map"] = {"": "cpu"}
            loading = sharing()["quantized_by_part"](torch)
    elif torch.cuda.is_available():
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    options["revision"] = config.get("revision") or "main"
    load = AutoModelForCausalLM.from_pretrained
    with loading:
        try:
            model = load(config["base_model"], attn_implementation=job["attention"], **options)
        except ValueError as error:  # some models have scores that torch's kernels do not compute
            if "scaled_dot_product_attention" not in str(error):
                raise
            print("computing attention without a fused kernel, which needs more memory", flush=True)  # noqa: T201
            model = load(config["base_model"], attn_implementation="eager", **options)
    if job.get("shards"):
        sharing()["name_layers"](model)
    return model


def nf4(dtype: Any, *, storage: Any = None) -> Any:
    """Return the settings of linear layers in NF4 that compute in *dtype*.

    *storage* is the type that the packed weights have the form of.  FSDP needs that of the computations,
    since it would convert others.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        **({} if storage is None else {"bnb_4bit_quant_storage": storage}),
    )


def arguments(job: dict[str, Any], folder: Path, torch: Any, **other: Any) -> Any:
    """Return the trainer's arguments, those of the values below that the installed trl supports.

    *other* values replace those below.
    """
    from trl import SFTConfig

    config = job["config"]
    values = {
        "output_dir": str(folder),
        "max_steps": config.get("max_steps") or -1,
        "num_train_epochs": config["num_epochs"],
        "per_device_train_batch_size": config["micro_batch_size"],
        "per_device_eval_batch_size": config["micro_batch_size"],
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "learning_rate": config["learning_rate"],
        "lr_scheduler_type": config["lr_scheduler"],
        "warmup_steps": job["warmup_steps"],
        "weight_decay": config["weight_decay"],
        "max_grad_norm": config["max_grad_norm"],
        "optim": config["optimizer"],
        "gradient_checkpointing": config["gradient_checkpointing"] and not job.get("shards_recompute"),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": job["precision"] == "bf16",  # the default of trl is true
        "fp16": job["precision"] == "fp16",
        "logging_steps": config["logging_steps"],
        "save_strategy": "steps",
        "save_steps": job["save_steps"],
        "save_total_limit": config["save_total_limit"],
        "eval_strategy": "steps" if job["eval_steps"] else "no",
        "eval_steps": job["eval_steps"] or None,
        "seed": config["seed"],
        "data_seed": config["seed"],
        "report_to": config.get("report_to") or "none",
        "run_name": job["id"],
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # `prepare.py` has tokenised the data
        "max_length": config["sequence_len"],
        "max_seq_length": config["sequence_len"],
        "disable_tqdm": True,
    }
    values.update({name: config[name] for name in FURTHER if name in config})
    if config.get("tf32") and job["precision"] == "bf16":  # older cards refuse it
        values["tf32"] = True
    known = {one.name for one in fields(SFTConfig)}
    if "eval_strategy" not in known:  # transformers before 4.41
        values["evaluation_strategy"] = values["eval_strategy"]
    values.update(other)
    return SFTConfig(**{name: value for name, value in values.items() if name in known})


class Collator:
    """Collates rows of tokens into a batch, padded on the right to its longest row."""

    def __init__(self, pad: int, torch: Any) -> None:
        self._pad, self._torch = pad, torch

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(lengths)

        def padded(lists: Any, pad: int) -> Any:
            return self._torch.tensor([[*one, *[pad] * (longest - len(one))] for one in lists])

        return {
            "input_ids": padded((row["input_ids"] for row in rows), self._pad),
            "attention_mask": padded(([1] * length for length in lengths), 0),
            "labels": padded((row["labels"] for row in rows), IGNORED),
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
