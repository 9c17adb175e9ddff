"""A model that gives every place the same scores: its own, which are fixed, and the adapter's."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import torch


class BitsAndBytesConfig:
    def __init__(self, **settings):
        self.settings = settings


class LlamaConfig:
    name_or_path = ""

    def __init__(self, **settings):
        self.settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **settings}


class PreTrainedModel:
    device = "cpu"
    generation_config = SimpleNamespace(eos_token_id=None)

    def __init__(self, config):
        self.config = config
        scores = [random.gauss(0, 1) for _ in range(config.settings["vocab_size"])]
        self.scores = torch.nn.Parameter(torch.tensor(scores), requires_grad=False)
        self.adapter = None
        self.training = True
        self.is_loaded_in_4bit = False

    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        del args
        load_in_4bit, load_in_8bit = kwargs.pop("load_in_4bit", False), kwargs.pop("load_in_8bit", False)
        quantization_config = kwargs.pop("quantization_config", None)
        if (load_in_4bit or load_in_8bit) and quantization_config is not None:
            raise ValueError(
                "You can't pass `load_in_4bit`or `load_in_8bit` as a kwarg when passing "
                "`quantization_config` argument at the same time."
            )
        folder = Path(name)
        model = cls(LlamaConfig(**json.loads((folder / "config.json").read_text())))
        model.config.name_or_path = name
        model.scores.data.values = json.loads((folder / "model.safetensors").read_text())
        model.is_loaded_in_4bit = load_in_4bit or quantization_config is not None
        return model

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(self.config.settings))
        (Path(folder) / "model.safetensors").write_text(json.dumps(self.scores.data.values))

    def parameters(self):
        yield self.scores
        if self.adapter is not None:
            yield self.adapter

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)
        return self

    def generate(self, input_ids, *, max_new_tokens, eos_token_id=(), **options):
        """Add the tokens of the highest scores, the highest first, up to one that ends the text."""
        del options
        scores = self.total()
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:max_new_tokens]
        ends = [at for at, token in enumerate(best) if token in eos_token_id]
        return torch.tensor([[*input_ids.values[0], *best[: ends[0] if ends else None]]])

    def total(self):
        """Return the scores with what was learnt."""
        added = self.adapter.data.values if self.adapter else [0.0] * len(self.scores.data.values)
        return [one + more for one, more in zip(self.scores.data.values, added)]  # noqa: B905

    def __call__(self, input_ids, attention_mask):
        del input_ids, attention_mask
        return SimpleNamespace(logits=torch.tensor([[self.total()] * 2]))


class LlamaForCausalLM(PreTrainedModel): ...


class AutoModelForCausalLM:
    @staticmethod
    def from_pretrained(name, *args, **kwargs):
        return LlamaForCausalLM.from_pretrained(name, *args, **kwargs)


def set_seed(seed):
    random.seed(seed)
