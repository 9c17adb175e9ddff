"""Conversations in the real stack of COLABLOCK_TEST_HOME: what is learnt, and the template that is kept."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from colablock.environment.target_script import ask_target
from colablock.training.adapter import generate, merge
from colablock.training.chat_templates import TEMPLATES
from colablock.training.runs.folder import RunFolder
from colablock.training.scripts import FOLDER as SCRIPTS
from tests.support.stack import NEEDS_STACK, Stack
from tests.training.test_real_stack_adapter import in_stack

pytestmark = [*NEEDS_STACK, pytest.mark.slow]

ANSWER = "green hills and blue sky"
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "house",
    "river",
    "stone",
    "kernel",
    "matrix",
    "lock",
    "wheel",
    "cloud",
    "paper",
]
SETTINGS: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 32,
    "lora_alpha": 64,
    "max_steps": 60,
    "save_steps": 60,
    "sequence_len": 250,
}
LOSSES = """\
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(base).eval()

def losses(model):
    answers, prompts = [], []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        each = -scores.gather(1, ids[0, 1:, None])[:, 0]
        learnt = torch.tensor(row["labels"][1:]) != -100
        answers.append(each[learnt].mean().item())
        prompts.append(each[~learnt].mean().item())
    return sum(answers) / len(answers), sum(prompts) / len(prompts)

before = losses(model)
after = losses(PeftModel.from_pretrained(model, adapter).eval())
print(json.dumps([before, after]))
"""
TEMPLATE = """\
import sys
from transformers import AutoTokenizer
print(AutoTokenizer.from_pretrained(sys.argv[1]).chat_template)
"""


def talks(count: int, seed: int) -> str:
    """Return rows of two questions, always with the same answer."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        turns = [
            (
                {"role": "user", "content": " ".join(rng.sample(WORDS, 3))},
                {"role": "assistant", "content": ANSWER},
            )
            for _ in range(2)
        ]
        rows.append(json.dumps({"messages": [message for turn in turns for message in turn]}) + "\n")
    return "".join(rows)


def trained(stack: Stack, name: str, template: str) -> RunFolder:
    data = stack.folder / f"{name}.jsonl"
    data.write_text(talks(32, seed=1))
    done = stack.train(name, data=data, chat_template=template, **SETTINGS)
    assert done.code == 0, done.err
    return stack.run_folder(name)


@pytest.fixture(scope="module")
def run(stack: Stack) -> RunFolder:
    """Return a run of a base model without a template, with that of Qwen3, which writes turns anew."""
    return trained(stack, "talk", "qwen3")


def test_only_the_answers_are_learnt(stack: Stack, run: RunFolder) -> None:
    held = stack.folder / "held.jsonl"
    held.write_text(talks(4, seed=2))
    data = {"path": str(held), "type": None, "split": "train", "name": None}
    job = {
        "base_model": str(stack.model),
        "revision": None,
        "chat_template": TEMPLATES["qwen3"],
        "datasets": [data],
        "sequence_len": 250,
        "train_on_inputs": False,
        "val_set_size": 0,
        "seed": 0,
        "evaluate": 4,
        "folder": str(stack.folder / "held"),
    }
    rows = ask_target(
        stack.python,
        SCRIPTS / "prepare.py",
        {"toy": None, "data": job},
        doing="make the tokens",
        environ=stack.environ(),
        answers=dict,
    )
    told = json.dumps(rows["evaluate"])
    before, after = json.loads(in_stack("-c", LOSSES, str(stack.model), str(run.adapter), told))
    assert after[0] < before[0] - 1, "the answers are learnt"
    assert abs(after[1] - before[1]) < (before[0] - after[0]) / 3, "the prompts are not"


def test_the_template_stays_with_the_adapter_and_the_merged_model(
    stack: Stack, run: RunFolder, tmp_path: Path
) -> None:
    python = stack.python
    (text,) = generate(run.path, ["stone wheel beta"], python=python, environ=os.environ, max_new_tokens=40)
    assert text == ANSWER
    merged = merge(run.path, tmp_path / "merged", python=python, environ=os.environ)
    for folder in (run.adapter, merged):
        assert in_stack("-c", TEMPLATE, str(folder)).strip() == TEMPLATES["qwen3"].strip()
