"""The arguments for trl: the current version in a real run, older versions with small stand-ins."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from colablock.training.preflight.facts import BF16
from colablock.training.runs.config import Adapter, MetricsTarget, config_to
from colablock.training.scripts import run_trl as _trl
from tests.support.training import a_config
from tests.support.training_stack import Bench

TODAY: dict[str, Any] = {
    "max_steps": 2,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "weight_decay": 0.0,
    "max_grad_norm": 0.3,
    "optim": "adamw_torch",
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "bf16": True,
    "fp16": False,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1_000_000_000,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "seed": 42,
    "data_seed": 42,
    "report_to": "none",
    "run_name": "run",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": 64,
    "disable_tqdm": True,
}


def test_the_trainer_gets_every_argument(bench: Bench) -> None:
    config = bench.config(max_steps=2, val_set_size=0.2, lora_dropout=0.1, lora_target_modules=("q_proj",))
    folder = bench.train(bench.job(config=config, precision=BF16))
    told = json.loads((folder.path / "checkpoint-2" / "training_args.bin").read_text())
    assert told.pop("auto_find_batch_size") is False  # the trainer's own default
    assert told == {**TODAY, "output_dir": str(folder.path)}
    adapter = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert adapter == {
        "task_type": "CAUSAL_LM",
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj"],
    }


def job(**changes: Any) -> dict[str, Any]:
    usual = {
        "id": "run",
        "config": config_to(a_config()),
        "precision": "fp16",
        "dtype": "float16",
        "attention": "sdpa",
        "warmup_steps": 3,
        "eval_steps": 0,
        "save_steps": 100,
    }
    return {**usual, **changes}


NO_CARD = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False), float16="half", float32="single")
CARD = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True), float16="half", float32="single")


def arguments(monkeypatch: pytest.MonkeyPatch, known: list[str], **changes: Any) -> Any:
    """Return the arguments for a trl that supports *known*."""
    module = ModuleType("trl")
    fields = [(name, object, None) for name in known]
    module.SFTConfig = make_dataclass("SFTConfig", fields)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trl", module)
    return _trl.arguments(job(**changes), Path("/out"), NO_CARD)


def test_an_older_trl_gets_only_arguments_that_it_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["output_dir", "max_seq_length", "evaluation_strategy", "max_steps", "report_to", "fp16", "bf16"]
    found = arguments(monkeypatch, known)
    assert vars(found) == {
        "output_dir": "/out",
        "max_seq_length": 1024,
        "evaluation_strategy": "no",
        "max_steps": -1,  # as many as the epochs take
        "report_to": "none",
        "fp16": True,
        "bf16": False,
    }
    config = config_to(a_config(report_to=(MetricsTarget.WANDB,), max_steps=5))
    found = arguments(monkeypatch, ["report_to", "max_steps", "eval_strategy"], config=config, eval_steps=2)
    assert vars(found) == {"report_to": ["wandb"], "max_steps": 5, "eval_strategy": "steps"}


@dataclass
class Quantised:
    load_in_4bit: bool
    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: object


NF4 = {"quantization_config": Quantised(True, "nf4", True, "half")}


@pytest.mark.parametrize(
    ("version", "adapter", "torch", "rank", "expected"),
    [
        (
            "4.41.0",
            Adapter.QLORA,
            CARD,
            None,
            {"torch_dtype": "half", "device_map": {"": 0}, **NF4},
        ),
        (
            "4.55.2",
            Adapter.QLORA,
            CARD,
            "1",
            {"torch_dtype": "half", "device_map": {"": 1}, **NF4},
        ),
        ("4.56.0", Adapter.QLORA, NO_CARD, None, {"dtype": "half", **NF4}),
        ("5.17.0.dev0", Adapter.LORA, NO_CARD, None, {"dtype": "half"}),
    ],
)
def test_the_model_is_loaded_on_the_card_of_its_rank(
    *,
    version: str,
    adapter: Adapter,
    torch: Any,
    rank: str | None,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    module: Any = ModuleType("transformers")
    module.__version__ = version
    module.BitsAndBytesConfig = Quantised
    module.AutoModelForCausalLM = SimpleNamespace(
        from_pretrained=lambda name, **options: calls.append((name, options))
    )
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    _trl.load_model(job(config=config_to(a_config(adapter=adapter))), torch)
    assert calls == [
        ("someone/model", {"revision": "main", "attn_implementation": "sdpa", **expected}),
    ]


@pytest.mark.parametrize(
    ("error", "tried"),
    [
        ("X does not support ... torch.nn.functional.scaled_dot_product_attention yet", ["sdpa", "eager"]),
        ("another fault", ["sdpa"]),
    ],
)
def test_a_model_without_fused_attention_is_loaded(
    error: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def load(_: str, **options: Any) -> str:
        found.append(options["attn_implementation"])
        if found[-1] == "sdpa":
            raise ValueError(error)
        return "model"

    module: Any = ModuleType("transformers")
    module.__version__, module.BitsAndBytesConfig = "5.24.0", Quantised
    module.AutoModelForCausalLM = SimpleNamespace(from_pretrained=load)
    monkeypatch.setitem(sys.modules, "transformers", module)
    torch = SimpleNamespace(float16=0, cuda=SimpleNamespace(is_available=lambda: False))
    if len(tried) == 1:
        with pytest.raises(ValueError, match=error):
            _trl.load_model(job(), torch)
    else:
        assert _trl.load_model(job(), torch) == "model"
    assert found == tried


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, False),
        ({"num_experts": 1, "vision_config": None}, False),
        ({"vision_config": {"layers": 1}}, True),  # Gemma 3 with texts only
        ({"num_local_experts": 8}, True),
        ({"text_config": SimpleNamespace(num_experts=128)}, True),
        ({"text_config": SimpleNamespace(num_experts=0)}, False),
    ],
)
def test_adapters_that_texts_do_not_use_are_known(config: dict[str, Any], expected: bool) -> None:
    """Several ranks, each with the whole model, would end with an error in the second batch."""
    assert _trl.leaves_adapters_unused(SimpleNamespace(**config)) is expected


def test_a_batch_is_padded_to_its_longest_row() -> None:
    collate = _trl.Collator(9, SimpleNamespace(tensor=list))
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    assert collate(rows) == {
        "input_ids": [[1, 2, 3], [4, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 2, 3], [4, -100, -100]],
    }
