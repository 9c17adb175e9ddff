"""A token for each byte, after three that are special."""

import json
import os
import re
from pathlib import Path

import torch

_SPECIAL = ("<s>", "</s>", "<pad>")


class BatchEncoding(dict):
    def to(self, device):
        del device
        return self


class PreTrainedTokenizerFast:
    def __init__(self, tokenizer_object=None, **settings):
        del tokenizer_object
        self.settings = settings
        self.chat_template = settings.get("chat_template")
        self.pad_token, self.eos_token = settings.get("pad_token"), settings.get("eos_token")
        self.bos_token = settings.get("bos_token")

    @property
    def eos_token_id(self):
        return _SPECIAL.index(self.eos_token) if self.eos_token else None

    @property
    def pad_token_id(self):
        return _SPECIAL.index(self.pad_token) if self.pad_token else None

    def __len__(self):
        return 256 + len(_SPECIAL)

    def __call__(self, text, *, add_special_tokens=True, return_tensors=None):
        ids = [byte + len(_SPECIAL) for byte in text.encode()]
        if add_special_tokens:
            ids = [0, *ids]
        return BatchEncoding(input_ids=ids if return_tensors is None else torch.tensor([ids]))

    def convert_ids_to_tokens(self, at):
        return _SPECIAL[at] if at < len(_SPECIAL) else chr(at - len(_SPECIAL))

    def decode(self, ids, *, skip_special_tokens=False):
        ids = ids.values if isinstance(ids, torch.Tensor) else ids
        shown = [
            _SPECIAL[one].encode() if one < len(_SPECIAL) else bytes([one - len(_SPECIAL)])
            for one in ids
            if not (skip_special_tokens and one < len(_SPECIAL))
        ]
        return b"".join(shown).decode(errors="replace")

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        """Write each turn as ChatML does, whatever the template."""
        assert not tokenize
        turns = [f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages]
        opened = "<|im_start|>assistant\n" if add_generation_prompt else ""
        return re.sub(r"\r", "", "".join(turns)) + opened

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = {**self.settings, "chat_template": self.chat_template, "pad_token": self.pad_token}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))


class AutoTokenizer:
    @staticmethod
    def from_pretrained(name, revision=None):
        del revision
        path = Path(name) / "tokenizer_config.json"
        if not path.exists():
            raise OSError(f"Can't load tokenizer for '{name}'")
        if (Path(name) / "gated").exists() and "HF_TOKEN" not in os.environ:
            raise OSError(f"401 Client Error: '{name}' is a gated repo")
        return PreTrainedTokenizerFast(**json.loads(path.read_text()))
