"""Runs with Unsloth in the environment of stand-ins, whose `unsloth` says what it is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from colablock.environment.accelerator import declared
from colablock.training.preflight.facts import BF16
from colablock.training.runs.checkpoints.finder import newest_valid, verify_checkpoint
from colablock.training.runs.config import Adapter, DataSource
from colablock.training.runs.folder import RunFolder, State
from colablock.training.start import start_early_for
from tests.support.reporters import Notes
from tests.support.timing import until
from tests.support.training_stack import Bench, TrainingStack, kill, losses_of, steps_of


@pytest.fixture(scope="module")
def whole(training_stack: TrainingStack, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return an uninterrupted run of six steps, saved every second step."""
    bench = Bench(stack=training_stack, folder=tmp_path_factory.mktemp("whole"))
    config = bench.config(save_steps=2, lora_dropout=0.1, lora_target_modules=("q_proj",), val_set_size=0.2)
    return bench.train(bench.job(runner="unsloth", config=config, precision=BF16, evaluate=4))


def told(folder: RunFolder) -> dict[str, Any]:
    """Return what the stand-in was asked for."""
    answer: dict[str, Any] = json.loads((folder.path / "unsloth/compiled/stand-in.json").read_text())
    return answer


def test_a_run_trains_and_counts_its_tokens(whole: RunFolder) -> None:
    assert whole.state() is State.DONE, whole.log.read_text()
    record = whole.record()
    assert record is not None
    assert record.runner == "unsloth"
    assert list(losses_of(whole)) == [1, 2, 3, 4, 5, 6]
    tokens = [event["tokens"] for event in whole.metrics() if event["event"] == "log"]
    assert tokens[0] > 0
    assert tokens == sorted(tokens)
    before, after = (event["loss"] for event in whole.metrics() if event["event"] == "evaluation")
    assert after < before - 0.3
    assert verify_checkpoint(whole.path / "checkpoint-6") == ()
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"} <= {
        path.name for path in whole.adapter.iterdir()
    }


def test_the_model_of_the_config_is_loaded(whole: RunFolder) -> None:
    model = str(json.loads(whole.job_file.read_text())["config"]["base_model"])
    assert told(whole)["loading"] == {
        "model_name": model,
        "revision": None,
        "max_seq_length": 64,
        "dtype": "bfloat16",
        "load_in_4bit": True,
        "use_exact_model_name": True,  # else one of Unsloth's uploads
        "tokenizer_name": str(whole.path / "unsloth" / "tokenizer-0"),
        "fix_tokenizer": False,
        "device_map": {"": 0},
        "use_gradient_checkpointing": True,
        "random_state": 42,
        "cache_dir": "/nowhere/hub",  # the cache of the hub, on Colab too
    }
    assert told(whole)["adapter"] == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj"],
        "checkpointing": True,
        "random_state": 42,
    }


def test_the_rows_and_the_labels_are_ours(whole: RunFolder) -> None:
    answer = told(whole)
    assert answer["padding_free"] is False
    assert answer["prepares"] is False
    assert answer["columns"] == ["attention_mask", "input_ids", "labels"]
    assert answer["has_peft_config"] is False  # the model has its adapter
    assert answer["reentrant"] is None  # which Unsloth sets itself
    assert answer["untrained"][-1] == answer["loading"]["model_name"]


def test_no_statistics_and_caches_in_the_folder_of_the_run(whole: RunFolder) -> None:
    assert told(whole)["statistics"] is False
    assert told(whole)["kernels"] == str(whole.path / "unsloth" / "kernels")
    assert not (Path.cwd() / "unsloth_compiled_cache").exists()
    names = {path.name for path in whole.path.iterdir()}
    assert {name for name in names if "unsloth" in name or "cache" in name} == {"unsloth"}


def test_it_learns_what_trl_learns(whole: RunFolder, bench: Bench) -> None:
    data = json.loads(whole.job_file.read_text())["config"]["datasets"][0]["path"]
    config = bench.config(
        save_steps=2,
        lora_dropout=0.1,
        lora_target_modules=("q_proj",),
        val_set_size=0.2,
        datasets=(DataSource(path=data),),
    )
    other = bench.train(bench.job(config=config, precision=BF16, evaluate=4))
    assert losses_of(other) == losses_of(whole)


def test_a_killed_run_resumes_with_the_same_result(whole: RunFolder, bench: Bench) -> None:
    changes = {"lora_dropout": 0.1, "lora_target_modules": ("q_proj",), "val_set_size": 0.2}
    job = bench.job(
        runner="unsloth", config=bench.config(save_steps=2, **changes), precision=BF16, evaluate=4
    )
    with bench.held(at=4) as held:
        folder = bench.begin(job, **held)
        until(lambda: 4 in steps_of(folder, "save"))
        kill(folder)
    assert folder.state() is State.KILLED
    newest = newest_valid(folder.path, Notes())
    assert newest == folder.path / "checkpoint-4"
    bench.train(
        bench.job(
            runner="unsloth", config=bench.config(save_steps=2, **changes), precision=BF16, resume=newest
        )
    )
    assert folder.state() is State.DONE
    assert losses_of(folder) == losses_of(whole)
    learnt = [(one.adapter / "adapter_model.safetensors").read_bytes() for one in (folder, whole)]
    assert learnt[0] == learnt[1]


def test_lora_is_loaded_in_16_bits_and_offloads_on_request(bench: Bench) -> None:
    config = bench.config(
        adapter=Adapter.LORA,
        max_steps=1,
        gradient_checkpointing=True,
        extra={"unsloth_offloads": True},
        seed=7,
    )
    answer = told(bench.train(bench.job(runner="unsloth", config=config, precision=BF16)))
    assert answer["loading"]["load_in_4bit"] is False
    assert answer["loading"]["use_gradient_checkpointing"] == "unsloth"
    assert answer["adapter"]["checkpointing"] == "unsloth"
    assert answer["adapter"]["random_state"] == answer["loading"]["random_state"] == 7


def test_a_name_that_unsloth_takes_for_16_bits_is_loaded_in_4(bench: Bench) -> None:
    model = bench.folder / "tiny-BF16"
    shutil.copytree(bench.stack.model, model)
    config = bench.config(base_model=str(model), max_steps=1)
    answer = told(bench.train(bench.job(runner="unsloth", config=config, precision=BF16)))
    assert answer["loading"]["load_in_4bit"] is True
    assert "quantization_config" in answer["loading"]


@pytest.mark.parametrize(
    "changes", [{"pad_token": None}, {"pad_token": "</s>"}, {"pad_token": None, "eos_token": "<s>"}]
)
def test_a_tokenizer_without_a_token_for_padding_only(bench: Bench, changes: dict[str, Any]) -> None:
    model = bench.folder / "tiny"
    shutil.copytree(bench.stack.model, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, **changes}))
    config = bench.config(base_model=str(model), max_steps=1)
    folder = bench.train(bench.job(runner="unsloth", config=config, precision=BF16))
    assert folder.state() is State.DONE, folder.log.read_text()
    saved = json.loads((folder.adapter / "tokenizer_config.json").read_text())
    assert saved["pad_token"] == {**settings, **changes}["eos_token"]  # as with trl


def test_it_is_not_imported_before_the_run_is_decided_on(bench: Bench) -> None:
    job = bench.job(runner="unsloth", config=bench.config(max_steps=1))
    folder = RunFolder(bench.folder / "run")
    folder.path.mkdir()
    with start_early_for(job, folder, bench.environ(), declared("T4")) as early:
        assert early is not None
    assert list(folder.path.iterdir()) == []
