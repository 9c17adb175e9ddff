"""Train QLoRA and LoRA adapters with Unsloth's models and trl's SFTTrainer.

The shim runs this file in the target.  It has imported unsloth before trl, transformers and peft, which
unsloth changes.  Tokens, labels and batches are those of ``run_trl.py``, whose trainer and arguments this
file uses.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

import os
import runpy
import sys
from pathlib import Path
from typing import Any

IGNORED = "UNSLOTH_IGNORED_TOKENIZER_NAMES"


def main(folder: Path) -> None:
    """Train the job in ``job.json``, and save the adapter to ``adapter/``."""
    import torch
    from unsloth import FastLanguageModel

    trl = runpy.run_path(str(Path(__file__).with_name("run_trl.py")))
    job = trl["read_job"](folder)
    tokenizer = folder / "unsloth" / f"tokenizer-{os.environ.get('RANK', '0')}"
    write_tokenizer(trl["load_tokenizer"](job), tokenizer)
    model = FastLanguageModel.get_peft_model(
        load_model(job, torch, FastLanguageModel, str(tokenizer), trl["nf4"]),
        **trl["adapter"](job),
        use_gradient_checkpointing=checkpointing(job),
        random_state=job["config"]["seed"],
    )
    # Unsloth has a checkpoint function of its own, which needs the other kind of `use_reentrant`.
    args = trl["arguments"](job, folder, torch, gradient_checkpointing_kwargs=None)
    trl["train"](job, folder, model, args, None)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write to *folder* what Unsloth gets as the tokenizer, which trains nothing.

    Unsloth refuses a model without a token that is only for padding, if it knows none that it can take.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token == eos:
        tokens = (tokenizer.convert_ids_to_tokens(at) for at in range(len(tokenizer)))
        tokenizer.pad_token = next(one for one in tokens if one not in (None, eos))
    tokenizer.save_pretrained(str(folder))


def load_model(job: dict[str, Any], torch: Any, loader: Any, tokenizer: str, nf4: Any) -> Any:
    """Return the model on this rank's card, with its linear layers in NF4 for QLoRA.

    It is that of the config: by default Unsloth loads one of its own uploads in place of a known name.
    The tokenizer that Unsloth returns is left out, since it has changed it.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    config, dtype = job["config"], getattr(torch, job["dtype"])
    options = {}
    if config["adapter"] == "qlora" and config["base_model"].lower().endswith("-bf16"):
        options["quantization_config"] = nf4(dtype)  # Unsloth would load such a name in 16 bits
    model, _ = loader.from_pretrained(
        config["base_model"],
        revision=config.get("revision"),
        max_seq_length=config["sequence_len"],
        dtype=dtype,
        load_in_4bit=config["adapter"] == "qlora",
        use_exact_model_name=True,
        tokenizer_name=tokenizer,
        fix_tokenizer=False,
        device_map={"": int(os.environ.get("LOCAL_RANK", "0"))},
        use_gradient_checkpointing=checkpointing(job),
        random_state=config["seed"],
        cache_dir=HF_HUB_CACHE,  # on Colab it would be a folder in the working folder
        **options,
    )
    # Unsloth replaces embeddings that are 0 by their mean, or fails if they are not trained.
    os.environ[IGNORED] = "\n".join(filter(None, (os.environ.get(IGNORED), model.config.name_or_path)))
    return model


def checkpointing(job: dict[str, Any]) -> Any:
    """Return whether activations are recomputed, or "unsloth" if they are moved to memory meanwhile."""
    config = job["config"]
    return "unsloth" if config.get("unsloth_offloads") else config["gradient_checkpointing"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
