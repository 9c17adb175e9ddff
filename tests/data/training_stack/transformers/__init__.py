from transformers.modeling_utils import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)
from transformers.tokenization import AutoTokenizer, PreTrainedTokenizerFast
from transformers.trainer import Trainer, TrainerCallback, TrainerState, TrainingArguments

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BitsAndBytesConfig",
    "LlamaConfig",
    "LlamaForCausalLM",
    "PreTrainedTokenizerFast",
    "Trainer",
    "TrainerCallback",
    "TrainerState",
    "TrainingArguments",
    "set_seed",
]
__version__ = "5.17.0"
