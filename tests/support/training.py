"""Default values of the training tests: stacks, machines, configs and model shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from colablock.environment.target_script import ask_target
from colablock.training.find_or_start import options_of
from colablock.training.preflight import checks
from colablock.training.preflight.cards import CardCase
from colablock.training.preflight.checks import Preflight
from colablock.training.preflight.facts import BF16, Access, Card, Finding, Level, Machine, Stack
from colablock.training.preflight.machine import stack_from
from colablock.training.preflight.memory import Setting
from colablock.training.preflight.model_config import ModelShape, from_config
from colablock.training.preflight.runner_profiles import RunnerProfile, runner_profile
from colablock.training.receipts import Receipt
from colablock.training.runs.config import DataSource, TrainConfig, config_from, read_yaml
from colablock.training.scripts import FOLDER as SCRIPTS

GIB = 2**30

LLAMA_1B: Mapping[str, Any] = {  # Llama 3.2 1B
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 32.0, "rope_type": "llama3"},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_8B = {  # Llama 3.1 8B
    **LLAMA_1B,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "tie_word_embeddings": False,
}
LLAMA_70B = {  # Llama 3.3 70B
    **LLAMA_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
SHAPES: Mapping[str, ModelShape] = {
    "1B": from_config(LLAMA_1B),
    "8B": from_config(LLAMA_8B),
    "70B": from_config(LLAMA_70B),
}

# Trainer, prepare_model_for_kbit_training and peft, without a runner.
BY_HAND = Setting(
    precision=BF16,
    profile=RunnerProfile(
        since="5.17", logits=3.0, embeddings_in_float32=("bf16", "fp16"), source="measured"
    ),
)
TRL = Setting(precision=BF16, profile=runner_profile("trl", "1.16.0"))

_TODAY = Stack(
    torch="2.11.0+cu130",
    arch_list=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    transformers="5.24.0",
    trl="1.16.0",
    bitsandbytes="0.50.2",
    model_types=frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral"}),
    rope_types=frozenset({"linear", "dynamic", "yarn", "longrope", "llama3", "proportional"}),
)
STACKS: Mapping[str, Stack] = {
    "2026": _TODAY,
    "2026-colab": replace(_TODAY, torch="2.11.0+cu128", transformers="5.15.0", trl="0.29.1"),
    "2025": replace(
        _TODAY,
        torch="2.7.1+cu126",
        arch_list=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
        transformers="4.55.2",
        trl="0.21.0",
        bitsandbytes="0.47.0",
    ),
}
OPEN = Access(status="open", repo="someone/model", url="https://huggingface.co/someone/model")


def check_run(  # noqa: PLR0917 - each has its own type
    config: TrainConfig,
    shape: ModelShape | None,
    machine: Machine,
    stack: Stack,
    access: Access,
    runner: str,
    *,
    workarounds: frozenset[str] = frozenset(),
    model_config: Mapping[str, Any] | None = None,
    longest: int | None = None,
    sizes_batch: bool = False,
    **options: Any,
) -> Preflight:
    """Return the findings for a run; *options* are those of `CardCase`."""
    case = CardCase(
        config=config, machine=machine, stack=stack, runner=runner, workarounds=workarounds, **options
    )
    return checks.check_run(
        case, shape, access, model_config=model_config, longest=longest, sizes_batch=sizes_batch
    )


def config_of(
    path: Path | None,
    *,
    runner: str | None,
    values: Mapping[str, Any],
    strict: bool = False,
    tell: Callable[[str], object] = lambda _: None,
) -> TrainConfig:
    """Return the config of a call; *tell* gets its notes."""
    found = options_of(path, runner=runner, values=values, strict=strict)
    for note in found.notes:
        tell(note)
    return found.config


def read_config(path: Path, *, passes_through: bool = False) -> TrainConfig:
    return config_from(read_yaml(path), source=str(path), passes_through=passes_through)


def read_stack(python: Path, environ: Mapping[str, str]) -> Stack:
    """Return the stack in the environment of *python*, which a process there reports."""
    script = SCRIPTS / "describe_stack.py"
    answer = ask_target(python, script, {}, doing="report its stack", environ=environ, answers=dict)
    return stack_from(answer, python)


def a_config(**changes: Any) -> TrainConfig:
    return replace(
        TrainConfig(base_model="someone/model", datasets=(DataSource(path="data.jsonl"),)), **changes
    )


def a_card(name: str = "Tesla T4", capability: str = "7.5", memory: float = 15, **more: Any) -> Card:
    """Return a GPU; *memory* in GiB."""
    major, minor = capability.split(".")
    return Card(name=name, compute_capability=(int(major), int(minor)), memory=round(memory * GIB), **more)


def a_machine(*cards: Card, **changes: Any) -> Machine:
    """Return a machine with plenty of memory and disk, and the GPUs *cards*."""
    whole = Machine(cards=cards, ram=64 * GIB, ram_free=60 * GIB, disk_free=500 * 10**9)
    return replace(whole, **changes)


T4_RECEIPT = Receipt(
    matrix="qlora-2026",
    matrix_digest="d",
    variant="cu128",
    runner="trl",
    workarounds=("gqa-before-ampere",),
    lock="l",
    python_version="3.13.15",
    card="Tesla T4",
    compute_capability="7.5",
    driver="580.82.07",
    cuda="13.0",
    precision="fp16",
    quantized=True,
    steps=10,
    losses=(5.8, 5.0),
    before=5.75,
    after=4.93,
    held=(5.75, 5.75),
    seconds=31.5,
    memory=2**30,
    date="2026-11-26T10:00:00Z",
    colablock="1.0",
    versions={"torch": "2.11.0"},
    notes=("a note",),
)

H100 = a_card("NVIDIA H100 80GB HBM3", "9.0", 80)
T4 = a_card()
TODAY = STACKS["2026"]


def verdict_of(found: Preflight) -> str:
    levels = {finding.level for finding in found.findings}
    return "refuse" if Level.REFUSE in levels else "warn" if Level.WARN in levels else "pass"


def of_level(found: Preflight, level: Level) -> list[Finding]:
    return [finding for finding in found.findings if finding.level is level]


def refusal(found: Preflight) -> Finding:
    (one,) = of_level(found, Level.REFUSE)
    return one
