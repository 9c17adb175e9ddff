"""The chat template of a run: kept with its adapter, and used for prompts as in training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from colablock.training import adapter
from colablock.training.adapter import generate
from colablock.training.chat_templates import TEMPLATES
from colablock.training.runs.config import OWN_DATA, DataSource
from colablock.training.runs.folder import RunFolder
from colablock.training.scripts import generate as script
from colablock.training.scripts import merge
from tests.support.runs import make_run
from tests.support.training_stack import Bench
from tests.training.scripts.rows.test_turns import Jinja

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("runner", ["trl", "axolotl"])
def test_a_run_keeps_the_template_that_it_was_trained_with(bench: Bench, runner: str) -> None:
    data = bench.folder / "talk.jsonl"
    data.write_text(f"{json.dumps({'messages': TALK})}\n" * 8)
    config = bench.config(
        datasets=(DataSource(path=str(data)),), chat_template="chatml", save_steps=2, max_steps=4
    )
    proven = bench.stack.proven(runner=runner, workarounds=("load-in-4bit-twice",))
    folder = bench.train(bench.job(proven=proven, config=config))
    settings = json.loads((folder.adapter / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == TEMPLATES["chatml"]
    record = folder.record()
    assert record is not None
    assert (list(record.forms), record.thinks) == (["messages"], False)


FILES: list[tuple[dict[str, str], dict[str, str], dict[str, Any], dict[str, str]]] = [
    # files of the base, of the adapter, what the run says, and the templates of the merged model
    ({}, {"tokenizer_config.json": "own"}, {}, {"tokenizer_config.json": "own"}),
    (
        {"chat_template.jinja": "base"},
        {"tokenizer_config.json": "own"},
        {},
        {"tokenizer_config.json": "own", "chat_template.jinja": "own"},
    ),
    (
        {"tokenizer_config.json": "base"},
        {"tokenizer_config.json": "", "chat_template.jinja": "own"},
        {},
        {"tokenizer_config.json": "", "chat_template.jinja": "own"},
    ),
    ({"tokenizer_config.json": ""}, {}, {"chat_template": "run"}, {"tokenizer_config.json": "run"}),
    (
        {"tokenizer_config.json": "base"},
        {},
        {"chat_template": "run", "keeps_template": True},
        {"tokenizer_config.json": "base"},
    ),
]


@pytest.mark.parametrize(("base", "own", "run", "merged"), FILES)
def test_a_merged_model_has_the_template_of_the_run(
    tmp_path: Path,
    base: Mapping[str, str],
    own: Mapping[str, str],
    run: Mapping[str, Any],
    merged: Mapping[str, str],
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    for name, files in (("base", base), ("adapter", own)):
        (tmp_path / name).mkdir()
        for file, template in files.items():
            is_settings = file.endswith(".json")
            text = json.dumps({"chat_template": template} if template else {}) if is_settings else template
            (tmp_path / name / file).write_text(text)
    merge.copy_other_files(tmp_path / "base", tmp_path / "adapter", into)
    merge.set_template(into, tmp_path / "adapter", **run)
    found = {
        path.name: json.loads(path.read_text()).get("chat_template", "")
        if path.suffix == ".json"
        else path.read_text()
        for path in into.iterdir()
    }
    assert found == merged


class Prompts(Jinja):
    """A tokenizer with one token for what stands between angle brackets."""

    eos_token_id = 2

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [7] if text.startswith("<|") else [1] * len(text)}


def test_an_answer_begins_where_answers_were_learnt() -> None:
    cases = [
        ("chatml", False, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("qwen3", True, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        (
            "qwen3",
            False,
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "<|im_end|>",
        ),
        ("vicuna", False, "<s>USER: q ASSISTANT:", "</s>"),
        ("mistral_v1", False, "<s> [INST] q [/INST]", "</s>"),
    ]
    for name, thinks, before, end in cases:
        assert script.chat_prompt(Prompts(TEMPLATES[name]), "q", thinks=thinks) == (before, end), name
    refusing = (
        "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}<{{ messages[0].content }}>"
    )
    assert script.chat_prompt(Prompts(refusing), "q", thinks=False) == ("<q>", "")


def test_generation_ends_at_the_end_of_a_turn() -> None:
    tokenizer = Prompts("")
    assert script.stops(tokenizer, None, "") == {"eos_token_id": [2]}
    assert script.stops(tokenizer, 5, "<|im_end|>") == {"eos_token_id": [5, 2, 7]}
    found = script.stops(tokenizer, [5, 2], "[END]")
    assert found == {"eos_token_id": [5, 2], "stop_strings": ["[END]"], "tokenizer": tokenizer}


def made(folder: Path, *, forms: Sequence[str], config: Mapping[str, Any]) -> RunFolder:
    """Return a run with an adapter."""
    run = make_run(folder / "run", process=0, python=sys.executable, config=config, forms=forms, thinks=True)
    run.adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run.adapter / name).write_text("{}")
    return run


def job_of(run: RunFolder, monkeypatch: pytest.MonkeyPatch, *, chat: bool | None = None) -> dict[str, Any]:
    """Return what the script is asked to do to generate text."""
    asked: list[dict[str, Any]] = []

    def answer(*_: Any, **job: Any) -> list[str]:
        asked.append(job)
        return ["a"]

    monkeypatch.setattr(adapter, "_ask", answer)
    assert generate(run.path, ["q"], chat=chat, python=sys.executable) == ["a"]
    return asked[0]


@pytest.mark.parametrize(
    ("forms", "chat", "wrapped"),
    [
        (["messages"], None, ("q", True)),
        (["text", "messages"], None, ("q", True)),
        (["alpaca"], None, ("### Instruction:\nq\n\n### Response:\n", False)),
        (["completion"], None, ("q", False)),
        (["text"], None, ("q", False)),
        ([], None, ("q", True)),
        (["alpaca"], False, ("q", False)),
        (["alpaca"], True, ("q", True)),
        (["messages"], False, ("q", False)),
    ],
)
def test_a_prompt_is_wrapped_as_in_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forms: Sequence[str],
    chat: bool | None,
    wrapped: tuple[str, bool],
) -> None:
    prompt, is_chat = wrapped
    config = {"base_model": "org/base", "adapter": "lora", "chat_template": "chatml"}
    job = job_of(made(tmp_path, forms=forms, config=config), monkeypatch, chat=chat)
    assert job["prompts"][0].endswith(prompt)
    assert (job["prompts"][0] == "q") == (prompt == "q")
    assert (job["chat"], job["thinks"]) == (is_chat, True)
    assert (job["chat_template"], job["keeps_template"]) == (TEMPLATES["chatml"], False)


@pytest.mark.parametrize(
    ("kinds", "style"),
    [
        (["chat_template"], "messages"),
        (["completion", "sharegpt.load_role"], "messages"),
        (["alpaca"], "alpaca"),
        (["completion", {"field": "x"}], "text"),
        ([], "text"),
    ],
)
def test_data_that_axolotl_reads_tells_how_prompts_are_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: Sequence[Any], style: str
) -> None:
    own = {"datasets": [{"path": "d", "type": kind} for kind in kinds]}
    run = made(tmp_path, forms=[], config={"base_model": "org/base", "adapter": "lora", OWN_DATA: own})
    job = job_of(run, monkeypatch)
    assert job["chat"] == (style == "messages")
    assert ("### Instruction:" in job["prompts"][0]) == (style == "alpaca")
