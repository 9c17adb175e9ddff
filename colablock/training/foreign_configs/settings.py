"""Read the settings of the training: what is trained, in which precision, and how often something happens."""

from __future__ import annotations

import re

from colablock.training.foreign_configs.reading import Reading, asks_nothing, names, table

__all__ = ["read_settings"]

_ATTENTION = (
    "attn_implementation",
    "flash_attention",
    "sdp_attention",
    "xformers_attention",
    "eager_attention",
)
_SAME_ATTENTION = re.compile(
    r"flash_attention_[23]|sdpa|eager|xformers|flex_attention|kernels-community/.+|True"
)
_PRECISION = ("bf16", "fp16", "bfloat16", "float16", "float32", "fp8")
#: Keys that say what is trained, and that change with it.
_OTHER_TRAINING = ("rl", "reward_model", "process_reward_model", "pretraining_dataset", "trl", "kd_trainer")
#: The defaults of axolotl where ours are others.
_AXOLOTL_DEFAULTS = {"sequence_len": 512, "gradient_accumulation_steps": 1, "max_grad_norm": 1.0}


def read_settings(reading: Reading) -> None:
    """Read every setting but those of the data."""
    _read_training(reading)
    _read_precision(reading)
    _read_adapter(reading)
    _read_batch(reading)
    _read_schedule(reading)
    _read_reports(reading)


def _read_training(reading: Reading) -> None:
    """Refuse what is no supervised training of an adapter."""
    for key in _OTHER_TRAINING:
        if (value := reading.take(key)) is not None:
            message = f"is {value!r}" if isinstance(value, (str, bool)) else "is set"
            hint = "colablock trains adapters on texts and conversations; use axolotl itself for this"
            reading.fault(key, f"{message}, which is another training", hint)
    if (value := reading.take("resume_from_checkpoint")) is not None:
        hint = "remove it: the same call resumes from the newest valid checkpoint of the run"
        reading.fault("resume_from_checkpoint", f"is {value!r}", hint)
    if "adapter" in reading.values and asks_nothing(reading.values["adapter"]):
        hint = "set `adapter: qlora` or `lora`: colablock does not train all weights of a model"
        reading.fault("adapter", "is empty", hint)
    elif "adapter" not in reading.values and reading.is_of_axolotl:
        kind = "qlora" if reading.values.get("load_in_4bit") else "lora"
        reading.values["adapter"] = kind
        reading.instead.append(
            f"no `adapter`: a LoRA adapter is trained (`adapter: {kind}`), not all weights"
        )
    for key, value in _AXOLOTL_DEFAULTS.items() if reading.is_of_axolotl else ():
        if key != "gradient_accumulation_steps" or not reading.values.get("batch_size"):
            reading.values.setdefault(key, value)


def _read_precision(reading: Reading) -> None:
    """Drop what follows from the card: precision and attention."""
    for key in _PRECISION:
        value = reading.values.pop(key, None)
        if (value is False and key in ("bf16", "bfloat16")) or (value is True and key in ("fp16", "float16")):
            if not any("precision" in one for one in reading.instead):
                reading.tell(key, value, "the precision follows from the card (bf16 where it has it)")
        elif value in ("fp8", "float8") or (key in ("fp8", "float32") and value):
            reading.tell(key, value, "the precision follows from the card")
    for key in _ATTENTION:
        value = reading.take(key)
        if value is not None and not _SAME_ATTENTION.fullmatch(str(value)):
            reading.tell(key, value, "the attention follows from the card and from what is installed")


def _read_adapter(reading: Reading) -> None:
    """Read what says how the model is loaded and where adapters are."""
    in_4bit = reading.values.pop("load_in_4bit", None)
    kind = reading.values.get("adapter")
    if kind == "lora" and in_4bit is True:
        reading.values["adapter"] = "qlora"
    elif kind == "qlora" and in_4bit is False:
        reading.tell("load_in_4bit", False, "`adapter: qlora` loads the weights in 4 bits")
    is_linear = reading.values.pop("lora_target_linear", None)
    if is_linear and (named := reading.values.get("lora_target_modules")):
        reading.values.pop("lora_target_modules")  # linear layers include most of those that are named
        others = [
            one
            for one in (named if isinstance(named, list) else [named])
            if str(one).rpartition(".")[2] not in names("linear")
        ]
        if others:
            words = "`lora_target_linear: true` gives adapters to the linear layers, and to no other"
            reading.tell("lora_target_modules", others, words)
    checkpointing = reading.values.get("gradient_checkpointing")
    if isinstance(checkpointing, str):
        reading.values["gradient_checkpointing"] = True
        reading.tell("gradient_checkpointing", checkpointing, "activations are recomputed, and not offloaded")
    if reading.values.get("gradient_checkpointing_kwargs") in (None, {"use_reentrant": False}):
        reading.values.pop("gradient_checkpointing_kwargs", None)
    if (revision := reading.take("revision_of_model") or reading.take("model_revision")) is not None:
        reading.values.setdefault("revision", revision)
    if reading.values.get("base_model_config") == reading.values.get("base_model"):
        reading.values.pop("base_model_config", None)
    model = reading.values.get("model_type")
    is_causal = isinstance(model, str) and model.endswith("ForCausalLM")
    if model == "AutoModelForCausalLM" or (is_causal and not reading.is_axolotl):
        reading.values.pop("model_type")
    if reading.values.get("tokenizer_type") == "AutoTokenizer":
        reading.values.pop("tokenizer_type")


def _read_batch(reading: Reading) -> None:
    """Read `batch_size`, which is that of a step."""
    rows = reading.take("batch_size")
    per_card = reading.values.get("micro_batch_size") or 1
    if isinstance(rows, int) and isinstance(per_card, int) and per_card > 0:
        reading.values.setdefault("gradient_accumulation_steps", max(1, rows // per_card))


def _read_schedule(reading: Reading) -> None:
    """Read the steps between checkpoints and between evaluations."""
    for key, usual in (
        ("save_strategy", "save_steps"),
        ("eval_strategy", ""),
        ("evaluation_strategy", ""),
    ):
        if reading.values.get(key) is False and not reading.values.get(usual):
            reading.values[key] = "no"  # which YAML 1.1 reads as false
    per_epoch = reading.values.get("evals_per_epoch")
    if per_epoch is not None and asks_nothing(per_epoch) and not reading.values.get("eval_steps"):
        reading.values.pop("evals_per_epoch")
        if reading.values.get("val_set_size"):
            reading.tell("evals_per_epoch", per_epoch, table()["instead"]["evals_per_epoch"])
    for key in ("saves_per_epoch", "save_strategy"):
        if (value := reading.take(key)) is not None and not reading.values.get("save_steps"):
            reading.tell(key, value, table()["instead"][key])
    for key in ("eval_strategy", "evaluation_strategy"):
        value = reading.take(key)
        if value is not None and value != "steps":
            reading.tell(key, value, table()["instead"]["evals_per_epoch"])
    steps = reading.values.get("eval_steps")
    if isinstance(steps, float) and not steps.is_integer():
        reading.values.pop("eval_steps")
        reading.tell("eval_steps", steps, table()["instead"]["evals_per_epoch"])
    if not reading.values.get("lr_scheduler"):
        reading.values.pop("lr_scheduler", None)


def _read_reports(reading: Reading) -> None:
    """Read where metrics go."""
    is_off = reading.values.pop("use_wandb", None) is False
    if reading.values.get("wandb_project") and not is_off:
        reading.values.setdefault("report_to", ["wandb"])
    if reading.take("use_tensorboard") is not None:
        given = reading.values.get("report_to") or []
        reading.values["report_to"] = [*([given] if isinstance(given, str) else given), "tensorboard"]
