from __future__ import annotations

import os
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from colablock.errors import InvalidConfig, InvalidInput, NotFound
from colablock.training.find_or_start import options_of, values_of
from colablock.training.runs.config import (
    LAUNCH_KEYS,
    Adapter,
    DataFormat,
    DataSource,
    MetricsTarget,
    TrainConfig,
    config_from,
    config_to,
    values_from,
    yaml_value,
)
from colablock.training.scripts import run_trl
from tests.support.training import config_of, read_config

pytestmark = [pytest.mark.interpreter, pytest.mark.requirements]

LEAST: dict[str, Any] = {"base_model": "someone/model", "datasets": ["data.jsonl"]}
# Each key with a value that is not its default: how it is written, and how it is read.
KEYS: dict[str, tuple[Any, Any]] = {
    "base_model": ("other/model", "other/model"),
    "datasets": (
        [{"path": "a.jsonl", "type": "messages"}, {"path": "x/y", "split": "test", "name": "en"}],
        (
            DataSource(path="a.jsonl", form=DataFormat.MESSAGES),
            DataSource(path="x/y", split="test", name="en"),
        ),
    ),
    "revision": ("v1", "v1"),
    "adapter": ("lora", Adapter.LORA),
    "sequence_len": (512, 512),
    "micro_batch_size": (4, 4),
    "gradient_accumulation_steps": (2, 2),
    "num_epochs": (0.5, 0.5),
    "max_steps": (40, 40),
    "learning_rate": (1e-4, 1e-4),
    "lr_scheduler": ("linear", "linear"),
    "warmup_ratio": (0.1, 0.1),
    "warmup_steps": (7, 7),
    "weight_decay": (0.01, 0.01),
    "max_grad_norm": (1.0, 1.0),
    "optimizer": ("adamw_8bit", "adamw_8bit"),
    "lora_r": (8, 8),
    "lora_alpha": (16, 16),
    "lora_dropout": (0.05, 0.05),
    "lora_target_modules": (["q_proj", "v_proj"], ("q_proj", "v_proj")),
    "gradient_checkpointing": (False, False),
    "train_on_inputs": (True, True),
    "chat_template": ("chatml", "chatml"),
    "val_set_size": (0.1, 0.1),
    "eval_steps": (10, 10),
    "logging_steps": (5, 5),
    "save_steps": (20, 20),
    "save_total_limit": (3, 3),
    "seed": (7, 7),
    "output_dir": ("out", "out"),
    "report_to": (["wandb"], (MetricsTarget.WANDB,)),
    "wandb_project": ("mine", "mine"),
    "fsdp_version": (2, 2),
    "fsdp_config": ({"reshard_after_forward": False}, {"reshard_after_forward": False}),
}
WHERE = {
    "output_dir",
    "report_to",
    "wandb_project",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "fsdp_version",
    "fsdp_config",
}


def faults_of(value: object, *, passes_through: bool = False) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(InvalidConfig) as caught:
        config_from(value, passes_through=passes_through)
    return {fault.path: (fault.message, fault.hint) for fault in caught.value.faults}


def test_every_key_has_a_case() -> None:
    assert KEYS.keys() | {"extra"} == {one.name for one in fields(TrainConfig)}


@pytest.mark.parametrize("key", KEYS)
def test_each_key_round_trips_and_affects_the_digest(key: str) -> None:
    written, read = KEYS[key]
    usual = config_from(LEAST)
    config = config_from({**LEAST, key: written})
    assert getattr(config, key) == read
    assert config == replace(usual, **{key: read})
    assert config != usual
    assert config_to(config)[key] == written
    assert config_from(yaml.safe_load(yaml.safe_dump(config_to(config)))) == config
    assert (config.digest() == usual.digest()) == (key in WHERE)


def test_unset_keys_have_defaults() -> None:
    config = config_from(LEAST)
    assert config == TrainConfig(base_model="someone/model", datasets=(DataSource(path="data.jsonl"),))
    assert config_from({**LEAST, "max_steps": None, "seed": None}) == config
    assert len(config.digest()) == 64


@pytest.mark.parametrize(
    ("value", "alike"),
    [
        ({"datasets": "data.jsonl"}, {"datasets": [{"path": "data.jsonl"}]}),
        (
            {"datasets": [{"path": "data.jsonl", "type": None, "split": None, "name": None}]},
            {},
        ),
        ({"report_to": "none"}, {}),
        ({"report_to": "wandb"}, {"report_to": ["wandb"]}),
        ({"lora_target_modules": "q_proj"}, {"lora_target_modules": ["q_proj"]}),
        ({"learning_rate": "2e-4"}, {"learning_rate": 0.0002}),  # a text in YAML 1.1
        ({"sequence_len": 512.0}, {"sequence_len": 512}),
        ({"sequence_len": "512"}, {"sequence_len": 512}),
        ({"num_epochs": 2}, {"num_epochs": 2.0}),
    ],
)
def test_equivalent_values_give_equal_configs(value: dict[str, Any], alike: dict[str, Any]) -> None:
    one, other = config_from({**LEAST, **value}), config_from({**LEAST, **alike})
    assert one == other
    assert one.digest() == other.digest()


FAULTS: list[tuple[str, Any, str, str, str | None]] = [
    ("learning_rate", "fast", "learning_rate", "is 'fast', but must be a number", None),
    ("learning_rate", True, "learning_rate", "is True, but must be a number", None),
    ("learning_rate", 11, "learning_rate", "is 11, but must be between 0 and 10", None),
    ("sequence_len", 7, "sequence_len", "is 7, but must be between 8 and 1,048,576", None),
    ("sequence_len", 8.5, "sequence_len", "is 8.5, but must be a whole number", None),
    ("sequence_len", float("nan"), "sequence_len", "is nan, but must be a whole number", None),
    ("sequence_len", "inf", "sequence_len", "is inf, but must be a whole number", None),
    ("seed", 10**400, "seed", "is 1000", None),
    ("learning_rate", 10**400, "learning_rate", "is 1000", None),
    ("learning_rate", float("nan"), "learning_rate", "is nan, but must be between 0 and 10", None),
    ("sequence_len", [8], "sequence_len", "is [8], but must be a whole number", None),
    ("save_total_limit", 1, "save_total_limit", "is 1, but must be between 2 and 1,000", None),
    ("max_steps", 0, "max_steps", "is 0, but must be between 1 and 1,099,511,627,776", None),
    ("adapter", "dora", "adapter", "is 'dora', but must be one of `qlora`, `lora`", None),
    ("report_to", ["comet"], "report_to", "is 'comet', but must be one of `wandb`, `tensorboard`", None),
    ("gradient_checkpointing", "yes", "gradient_checkpointing", "is 'yes', but must be `true` or", None),
    ("base_model", "", "base_model", "is '', but must be a non-empty string", None),
    ("base_model", 3, "base_model", "is 3, but must be a non-empty string", None),
    ("base_model", None, "base_model", "is missing", None),
    ("datasets", [], "datasets", "is missing", None),
    ("datasets", [3], "datasets[0]", "is 3, but must be a path or a mapping", None),
    ("datasets", ["a", {"split": "train"}], "datasets[1].path", "is missing", None),
    ("datasets", [{"path": "a", "type": "sharegpt"}], "datasets[0].type", "is 'sharegpt', but must", None),
    ("datasets", [{"path": "a", "splitt": 1}], "datasets[0].splitt", "unknown key", "did you mean `split`?"),
    ("datasets", [{"path": "a", "z": 1}], "datasets[0].z", "unknown key", "the keys are path, type"),
    ("lora_target_modules", ["a", 3], "lora_target_modules[1]", "is 3, but must be a non-empty string", None),
    ("learning_rat", 1, "learning_rat", "unknown key", "did you mean `learning_rate`?"),
    ("bf16", True, "bf16", "unknown key", "it follows from the card and from `adapter`: remove it"),
    ("load_in_4bit", True, "load_in_4bit", "unknown key", "it follows from the card"),
    ("model", "a", "model", "unknown key", "use `base_model`"),
    ("dataset", "a", "dataset", "unknown key", "use `datasets`, a list"),
    (
        "data",
        "a",
        "data",
        "unknown key",
        "use `datasets`, a list; a call of `colablock.train` takes `dataset=`",
    ),
    ("batch_size", 8, "batch_size", "unknown key", "use `micro_batch_size` and"),
    ("extra", {"a": 1}, "extra", "unknown key", None),
    ("qqqq", 1, "qqqq", "unknown key", None),
]


@pytest.mark.parametrize(("key", "value", "path", "message", "hint"), FAULTS)
def test_every_fault_has_a_path_and_a_message(
    key: str, value: Any, path: str, message: str, hint: str | None
) -> None:
    faults = faults_of({**LEAST, key: value})
    assert list(faults) == [path]
    said, hinted = faults[path]
    assert said.startswith(message)
    assert (hinted or "").startswith(hint or "")
    assert hint is None or hinted is not None


def test_all_faults_are_reported_at_once() -> None:
    found = {"learning_rat": 1, "seed": -1, "datasets": [{"type": "x"}, {"path": "a", "type": "x"}]}
    with pytest.raises(InvalidConfig) as caught:
        config_from(found, source="train.yaml")
    paths = [fault.path for fault in caught.value.faults]
    assert paths == ["learning_rat", "seed", "datasets[0].path", "datasets[1].type", "base_model"]
    assert caught.value.source == "train.yaml"
    assert str(caught.value).startswith("the config `train.yaml` has 5 faults\n  learning_rat: unknown key (")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_config_is_a_mapping(value: object) -> None:
    assert faults_of(value) == {"": ("must be a mapping of keys to values", None)}


def test_unknown_keys_are_passed_to_a_runner_that_takes_them() -> None:
    config = config_from({**LEAST, "sample_packing": True, "plugins": ["a"]}, passes_through=True)
    assert config.extra == {"sample_packing": True, "plugins": ["a"]}
    assert config_to(config)["sample_packing"] is True
    assert config_from(config_to(config), passes_through=True) == config
    assert config.digest() != config_from(LEAST).digest()
    faults = faults_of({**LEAST, "sample_packing": True, "bf16": True, "model": "a"}, passes_through=True)
    assert list(faults) == ["bf16", "model"]  # ours to decide, or misnamed
    for value in (date(2026, 1, 1), {"a": {1: 2, "b": 3}}):  # what YAML has and JSON has not
        faults = faults_of({**LEAST, "since": value}, passes_through=True)
        assert faults["since"][0] == "is not a value of JSON"


def test_a_config_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("base_model: a/b\ndatasets:\n  - path: data.jsonl\nlearning_rate: 2e-4\n")
    assert read_config(path) == TrainConfig(base_model="a/b", datasets=(DataSource(path="data.jsonl"),))
    path.write_text("base_model: a/b\ndatasets: [d]\nlora_target_linear: true\n")
    assert read_config(path, passes_through=True).extra == {"lora_target_linear": True}
    with pytest.raises(InvalidConfig, match=r"train\.yaml` has 1 fault\n  lora_target_linear: unknown key"):
        read_config(path)


# Each list has the one before it twice.
BOMB = b"a0: &b0 [x, x]\n" + b"".join(
    b"a%d: &b%d [*b%d, *b%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)
)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, NotFound, "cannot read the config `.*`: No such file or directory"),
        (b"\xff\xfe", NotFound, "cannot read the config `.*`: it is not UTF-8"),
        (b"a: [", InvalidConfig, "is not valid YAML: while parsing"),
        (b"a: " + b"{" * 5000, InvalidConfig, "is nested too deeply"),
        (b"a: 2026-13-45", InvalidConfig, "is not valid YAML: month must be"),
        (BOMB, InvalidConfig, "has too many values"),
        (b"a: &a [*a]", InvalidConfig, "has too many values"),
        (
            b"a: !!python/object:os.system {}",
            InvalidConfig,
            "is not valid YAML: could not determine a constructor",
        ),
        (b"a: !!bool maybe", InvalidConfig, "a value does not fit its tag"),
        (b'a: !!int ""', InvalidConfig, "a value does not fit its tag"),
        (b'a: !!float ""', InvalidConfig, "a value does not fit its tag"),
        (b"a: !!timestamp x", InvalidConfig, "a value does not fit its tag"),
        (b"lora_r: 0x" + b"f" * 10_000, InvalidConfig, "has a number of too many digits"),
        (b"? 0x" + b"f" * 10_000 + b"\n: 1", InvalidConfig, "has a number of too many digits"),
        (b'base_model: "\\ud800"', InvalidConfig, "has half a surrogate pair"),
        (b"#" * 200_000, NotFound, "it is larger than 128 KiB"),
        (b"- a\n", InvalidConfig, "must be a mapping"),
        (b"", InvalidConfig, "must be a mapping"),
    ],
)
def test_an_invalid_config_file_is_an_error(
    content: bytes | None, kind: type[InvalidInput], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "train.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=words) as caught:
        read_config(path)
    assert "\n" not in str(caught.value).split("\n  ", 1)[-1]
    assert kind is InvalidConfig or caught.value.hint == (
        "Save it as UTF-8" if "UTF-8" in words else "`colablock new-config` writes a config"
    )


@pytest.mark.parametrize("path", ["fifo", "/dev/zero"])
def test_a_config_that_never_ends_is_an_error(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with pytest.raises(NotFound, match="cannot read the config"):
        read_config(Path(path))


@pytest.mark.parametrize("text", ["!!bool maybe", '!!int ""', '"\\ud800"', "0x" + "f" * 10_000])
def test_a_value_that_is_not_yaml_is_taken_as_text(text: str) -> None:
    assert values_from([f"model={text}"]) == {"model": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("2e-4", "2e-4"),
        ("true", True),
        ("[a, b]", ["a", "b"]),
        ("null", None),
        ("[", "["),
        ("", None),
    ],
)
def test_values_of_the_command_line_are_yaml(text: str, value: object) -> None:
    assert yaml_value(text) == value


def test_arguments_override_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("base_model: a/b\ndatasets: [d]\nseed: 1\nlora_r: 4\noutput_dir: out\n")
    config = config_of(
        path,
        runner="trl",
        values=values_of(
            "c/d",
            ["e", Path("f")],
            Path("elsewhere"),
            values_from(
                ["seed=2", " learning_rate =1e-3", "chat_template=a=b", "max_steps=3", "base_model=g"]
            ),
        ),
    )
    assert (config.base_model, config.seed, config.lora_r, config.max_steps) == ("c/d", 2, 4, 3)
    assert (config.learning_rate, config.chat_template, config.output_dir) == (1e-3, "a=b", "elsewhere")
    assert [one.path for one in config.datasets] == ["e", "f"]


@pytest.mark.parametrize(
    ("values", "is_sized"),
    [
        ({}, True),
        ({"micro_batch_size": None}, True),
        ({"gradient_accumulation_steps": 4}, True),
        ({"micro_batch_size": 1}, False),
        ({"micro_batch_size": 2, "sample_packing": False}, False),
    ],
)
def test_a_batch_is_sized_if_it_is_not_given(values: dict[str, Any], is_sized: bool, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **values}))
    for runner in ("trl", "axolotl"):
        assert options_of(path, runner=runner, values={}).sizes_batch is is_sized
        assert options_of(None, runner=runner, values={**LEAST, **values}).sizes_batch is is_sized


def test_invalid_arguments_are_faults() -> None:
    with pytest.raises(InvalidInput, match=r"`--set seed` has no value: write `--set key=value`"):
        values_from(["seed"])
    values = values_of("a", "d", None, {"sample_packin": True})
    with pytest.raises(InvalidConfig, match="the config has"):
        config_of(None, runner="trl", values=values)
    assert config_of(None, runner="axolotl", values=values).extra
    with pytest.raises(InvalidInput, match="there is no runner `torchtune`"):
        config_of(None, runner="torchtune", values=LEAST)


def test_keys_of_the_exchange_between_ranks_change_no_losses() -> None:
    """A run goes on with others, and the script of trl, which has no colablock, passes the same ones on."""
    for key in LAUNCH_KEYS:
        assert key in run_trl.FURTHER
        assert config_from({**LEAST, key: 1}, passes_through=True).digest() == config_from(LEAST).digest()
