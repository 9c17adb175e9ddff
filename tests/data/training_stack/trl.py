from dataclasses import dataclass

from peft import get_peft_model
from transformers import Trainer, TrainingArguments

__version__ = "1.16.0"


@dataclass
class SFTConfig(TrainingArguments):
    max_length: int = 1024
    dataset_kwargs: dict = None


class SFTTrainer(Trainer):
    def __init__(
        self,
        model,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        peft_config=None,
    ):
        del processing_class
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset)
