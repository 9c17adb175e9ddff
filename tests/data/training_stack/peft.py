import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

__version__ = "0.21.2"


@dataclass
class LoraConfig:
    task_type: str = None
    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    target_modules: object = None


def get_peft_model(model, config):
    """Return *model* with an adapter, in the type that trl gives those of a model in 4 bits."""
    dtype = torch.bfloat16 if model.is_loaded_in_4bit else torch.float32
    model.adapter = torch.nn.Parameter(torch.tensor([0.0] * len(model.scores.data.values), dtype=dtype))
    model.peft_config = asdict(config)
    return model


class PeftModel:
    @staticmethod
    def from_pretrained(model, folder):
        """Return *model* with the adapter in *folder*."""
        weights = json.loads((Path(folder) / "adapter_model.safetensors").read_text())
        model.adapter = torch.nn.Parameter(torch.tensor(weights))
        return model
