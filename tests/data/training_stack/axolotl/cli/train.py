"""Reads a config as axolotl does, and says "4 bits" twice, as its 0.4.0 does."""

import json
import math
import sys
from pathlib import Path

import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
)


def main(path):
    config = yaml.safe_load(Path(path).read_text())
    tokenizer = AutoTokenizer.from_pretrained(config["base_model"])
    model = AutoModelForCausalLM.from_pretrained(
        config["base_model"],
        load_in_8bit=config["load_in_8bit"],
        load_in_4bit=config["load_in_4bit"],
        quantization_config=BitsAndBytesConfig(load_in_4bit=True) if config["load_in_4bit"] else None,
    )
    model = get_peft_model(model, LoraConfig(r=config["lora_r"]))
    (data,) = config["datasets"]
    rows = Dataset.from_parquet(data["path"])
    whole = config["micro_batch_size"] * config["gradient_accumulation_steps"]
    of_epochs = math.ceil(math.ceil(len(rows) / whole) * config["num_epochs"])
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=config["output_dir"],
            max_steps=min(of_epochs, config.get("max_steps") or of_epochs),  # the first of the two
            per_device_train_batch_size=config["micro_batch_size"],
            gradient_accumulation_steps=config["gradient_accumulation_steps"],
            learning_rate=config["learning_rate"],
            logging_steps=config["logging_steps"],
            save_steps=config["save_steps"],
            save_total_limit=config["save_total_limit"],
            seed=config["seed"],
        ),
        data_collator=lambda rows: {
            name: tensor([row[name] for row in rows]) for name in ("input_ids", "labels")
        },
        train_dataset=rows,
    )
    trainer.train()
    trainer.save_model(config["output_dir"])  # beside the checkpoints
    tokenizer.save_pretrained(config["output_dir"])
    print(json.dumps(config.get("plugins")))


if __name__ == "__main__":
    main(sys.argv[1])
