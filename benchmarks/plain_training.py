"""A training script as people write it by hand, to compare the start of a run with.

    python plain_training.py MODEL DATA FOLDER ADAPTER STEPS

It needs the training stack only.  It prints the time (seconds since the epoch) at the end of the first step.
"""

# The stack is not installed where this is checked.
# mypy: disable-error-code="import-not-found,misc"

import sys
import time
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer


class FirstStep(TrainerCallback):
    """Prints the time of the end of the first step."""

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 1:
            print("first step", time.time(), flush=True)


def main(model_name: str, data: str, folder: str, adapter: str, steps: str) -> None:
    """Train *steps* steps with the settings that `benchmarks.first_step` gives to colablock."""
    has_card = torch.cuda.is_available()
    has_bf16 = has_card and torch.cuda.get_device_capability() >= (8, 0)
    kind = torch.bfloat16 if has_bf16 else torch.float16 if has_card else torch.float32
    options: dict[str, Any] = {"dtype": kind}
    if adapter == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
        )
    if has_card:
        options["device_map"] = {"": 0}
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_name, **options),
        args=SFTConfig(
            output_dir=folder,
            max_steps=int(steps),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            learning_rate=1e-2,
            max_length=64,
            bf16=has_bf16,
            fp16=has_card and not has_bf16,
            use_cpu=not has_card,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=data, split="train", cache_dir=f"{folder}/cache"),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[FirstStep()],
    )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
