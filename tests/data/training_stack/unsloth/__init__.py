"""A stand-in that behaves at the seams of Unsloth as its sources (2026.10.9) say, on a CPU.

It works with the stand-ins beside it, and with the real transformers, peft and trl.  What it is asked for is
written to ``stand-in.json`` in the folder for compiled code.
"""

# ruff: noqa: E402 - the order is the point
import functools
import importlib.metadata
import inspect
import json
import os
import sys
from pathlib import Path

EARLIER = [name for name in ("trl", "transformers", "peft") if name in sys.modules]
if EARLIER:
    raise ImportError(f"stand-in: unsloth is imported after {', '.join(EARLIER)}")
if os.environ.get("UNSLOTH_DISABLE_CPU_FALLBACK") != "1":
    raise NotImplementedError("stand-in: it would train on the CPU")

import torch
import transformers
import trl

__version__ = "2026.10.9"
COMPILED = Path(os.environ.get("UNSLOTH_COMPILE_LOCATION", "unsloth_compiled_cache"))
COMPILED.mkdir(parents=True, exist_ok=True)  # at the import
TOLD = {
    "statistics": "UNSLOTH_DISABLE_STATISTICS" not in os.environ,
    "kernels": os.environ.get("UNSLOTH_MEGA_CACHE_DIR"),
}


def tell(**facts):
    TOLD.update(facts)
    (COMPILED / "stand-in.json").write_text(json.dumps(TOLD, default=str))


def patch_trainer():
    """Replace the step of the trainer's class, from its source, when a model is loaded."""
    step = inspect.unwrap(transformers.Trainer.training_step)

    def _unsloth_training_step(self, model, inputs, num_items_in_batch=None):
        return step(self, model, inputs, num_items_in_batch)

    transformers.Trainer.training_step = _unsloth_training_step


def patch_sft(cls):
    """Wrap the constructor: padding-free batches unless there is a collator, names of old arguments."""
    make = cls.__init__

    @functools.wraps(make)
    def init(self, *args, **kwargs):
        if "tokenizer" in kwargs:
            kwargs["processing_class"] = kwargs.pop("tokenizer")
        tell(
            padding_free=kwargs.get("data_collator") is None,
            prepares=not (kwargs["args"].dataset_kwargs or {}).get("skip_prepare_dataset"),
            columns=sorted(kwargs["train_dataset"].column_names),
            untrained=os.environ.get("UNSLOTH_IGNORED_TOKENIZER_NAMES", "").split("\n"),
            reentrant=kwargs["args"].gradient_checkpointing_kwargs,
            has_peft_config=kwargs.get("peft_config") is not None,
        )
        make(self, *args, **kwargs)

    cls.__init__ = init


class FastLanguageModel:
    @staticmethod
    def from_pretrained(
        model_name,
        max_seq_length=2048,
        dtype=None,
        load_in_4bit=True,
        device_map="sequential",
        fix_tokenizer=True,
        use_gradient_checkpointing="unsloth",
        revision=None,
        use_exact_model_name=False,
        random_state=3407,
        tokenizer_name=None,
        **kwargs,
    ):
        loading = {**locals(), **kwargs}
        del loading["kwargs"]
        tell(loading=loading)
        if not use_exact_model_name:
            raise ConnectionError("stand-in: another repository would be loaded")
        quantisation = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_name,
            revision=revision or "main",
            dtype=dtype,
            **({"quantization_config": quantisation} if load_in_4bit else {}),
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_name or model_name)
        if tokenizer.pad_token in (None, tokenizer.eos_token):
            raise RuntimeError(f"Unsloth: Could not find a valid pad token for {model_name}")
        patch_trainer()
        return model, tokenizer

    @staticmethod
    def get_peft_model(model, *, use_gradient_checkpointing="unsloth", random_state=3407, **lora):
        import peft  # noqa: PLC0415

        tell(adapter={**lora, "checkpointing": use_gradient_checkpointing, "random_state": random_state})
        transformers.set_seed(random_state)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora))
        for parameter in model.parameters():
            if parameter is not None and getattr(parameter, "requires_grad", True):
                parameter.data = parameter.data.float()
        return model


patch_sft(trl.SFTTrainer)
tell(versions=[torch.__version__, importlib.metadata.version("trl")])
