"""A tiny Llama with random weights and a tokenizer of its own, made in the target without a network.

``_toy.py MODEL_FOLDER TEXT_FILE SEED``.  The tokenizer is a byte-level BPE trained on the text.
"""

# What is used is the target's, and not there where this is checked.
# ruff: noqa: PLC0415, E402
# mypy: disable-error-code="import-not-found"

import sys

del sys.path[0]  # modules of colablock, some with names of the standard library's

import json
from pathlib import Path

VOCABULARY = 512
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def main(folder: Path, text: Path, seed: int) -> None:
    """Write the model and its tokenizer into *folder*."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rows = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(rows, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=256, **names)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
