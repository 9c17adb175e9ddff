"""The contents of stub projects beside their version: enough for imports and for the proofs.

Nothing here quantises or trains.  The stubs replace the libraries in tests that resolve, change and prove an
environment.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CONTENTS"]

_TENSOR = '''

class Zeros:
    """As many zeros as asked for."""

    def __init__(self, count):
        self.count = count

    def to(self, device):
        return self

    def numel(self):
        return self.count

    def abs(self):
        return self

    def mean(self):
        return self

    def __sub__(self, other):
        return self

    def __float__(self):
        return 0.0


class Generator:
    def manual_seed(self, seed):
        return self


def randn(*shape, generator=None):
    count = 1
    for side in shape:
        count *= side
    return Zeros(count)
'''

_CUDA = """

def is_available():
    return False


def device_count():
    return 0
"""

_QUANTISED = """
from torch import Zeros


def quantize_4bit(tensor, quant_type, compress_statistics):
    return Zeros(tensor.numel() // 2), tensor.numel()


def dequantize_4bit(packed, state):
    return Zeros(state)
"""

_TRANSFORMERS = """

class LlamaConfig:
    def __init__(self, **settings):
        self.settings = settings


class AutoConfig: ...


class AutoModelForCausalLM: ...


class AutoTokenizer: ...


class BitsAndBytesConfig: ...
"""

_PEFT = """

class LoraConfig: ...


def get_peft_model(model, config): ...


def prepare_model_for_kbit_training(model): ...
"""

#: Path and source of each project's files; they are added to what the path would hold anyway.
CONTENTS: Mapping[str, Mapping[str, str]] = {
    "accelerate": {"accelerate/__init__.py": "\n\nclass Accelerator: ...\n"},
    "axolotl": {"axolotl/cli/__init__.py": "", "axolotl/cli/train.py": ""},
    "bitsandbytes": {"bitsandbytes/functional.py": _QUANTISED},
    "datasets": {
        "datasets/__init__.py": "\n\nclass Dataset: ...\n\n\ndef load_dataset(*args, **kwargs): ...\n"
    },
    "peft": {"peft/__init__.py": _PEFT},
    "torch": {
        "torch/__init__.py": "from torch import cuda, version\n" + _TENSOR,
        "torch/cuda/__init__.py": _CUDA,
        "torch/version.py": "cuda = None\n",
    },
    "transformers": {
        "transformers/__init__.py": _TRANSFORMERS,
        "transformers/modeling_rope_utils.py": 'ROPE_INIT_FUNCTIONS = {"default": None, "llama3": None}\n',
    },
    "trl": {"trl/__init__.py": "\n\nclass SFTConfig: ...\n\n\nclass SFTTrainer: ...\n"},
}
