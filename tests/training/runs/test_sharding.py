"""How a config says that a model is divided, and what axolotl's keys for DeepSpeed mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colablock.training.runs.config import TrainConfig
from colablock.training.runs.sharding import DeepSpeed, ShardMode, deepspeed_of, shard_mode
from tests.support.training import a_config, config_of


@pytest.mark.parametrize(
    ("asked", "given", "mode"),
    [
        (None, {}, ShardMode.AUTO),
        (None, {"fsdp_config": {"reshard_after_forward": True}}, ShardMode.FSDP),
        (None, {"extra": {"fsdp": ["full_shard", "auto_wrap"]}}, ShardMode.FSDP),  # as axolotl had it first
        (None, {"extra": {"fsdp": []}}, ShardMode.AUTO),
        ("auto", {"extra": {"fsdp": ["full_shard"]}}, ShardMode.FSDP),
        ("none", {"extra": {"fsdp": ["full_shard"]}}, ShardMode.NONE),
        (None, {"extra": {"deepspeed": "zero3.json"}}, ShardMode.AUTO),
    ],
)
def test_a_config_may_ask_for_shards(asked: str | None, given: dict[str, Any], mode: ShardMode) -> None:
    assert shard_mode(asked, a_config(**given)) is mode


def zero(**values: Any) -> dict[str, Any]:
    return {"zero_optimization": values, "bf16": {"enabled": True}}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (zero(stage=1), DeepSpeed(stage=1)),
        (zero(stage=2, offload_optimizer={"device": "cpu"}), DeepSpeed(stage=2)),
        (zero(stage=3), DeepSpeed(stage=3)),
        (
            zero(stage=3, offload_param={"device": "cpu", "pin_memory": True}),
            DeepSpeed(stage=3, offloads=True),
        ),
        (zero(stage=3, offload_param={"device": "none"}), DeepSpeed(stage=3)),
        (zero(), DeepSpeed(stage=0)),  # DeepSpeed's default
        ({"bf16": {"enabled": True}}, DeepSpeed(stage=0)),
        (zero(stage="auto"), DeepSpeed(stage=None)),
        ({"zero_optimization": None}, DeepSpeed(stage=None)),
        ([], DeepSpeed(stage=None)),
    ],
)
def test_the_file_of_deepspeed_is_read(tmp_path: Path, given: Any, found: DeepSpeed) -> None:
    (file := tmp_path / "mine.json").write_text(json.dumps(given))
    assert deepspeed_of(with_deepspeed(str(file))) == found
    if given:
        assert deepspeed_of(with_deepspeed(given)) == found  # as axolotl takes it, too


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("deepspeed_configs/zero1.json", 1),
        ("deepspeed_configs/zero2_torch_compile.json", 2),
        ("deepspeed_configs/zero3_bf16_cpuoffload_all.json", 3),
        ("mine.json", None),
    ],
)
def test_a_file_that_is_not_there_is_known_by_the_name_that_axolotl_gives_it(
    tmp_path: Path, name: str, stage: int | None
) -> None:
    absent = str(tmp_path / name)
    assert deepspeed_of(with_deepspeed(absent)) == DeepSpeed(stage=stage, missing=absent)


def test_a_file_that_is_no_json_says_nothing(tmp_path: Path) -> None:
    (file := tmp_path / "zero3.json").write_text("{")
    assert deepspeed_of(with_deepspeed(str(file))) == DeepSpeed(stage=None)
    assert deepspeed_of(with_deepspeed(str(tmp_path))) == DeepSpeed(stage=None)
    assert deepspeed_of(a_config()) is None
    assert deepspeed_of(with_deepspeed("")) is None


@pytest.mark.parametrize("place", ["working", "configs", "home"])
def test_axolotl_gets_the_full_path_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It looks for it in the folder of the run otherwise."""
    for name in ("working", "configs", "home"):
        (tmp_path / name / "ds").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = tmp_path / "configs" / "train.yml"
    start = "~/" if place == "home" else ""
    config.write_text(f"base_model: m\ndatasets: [d]\nadapter: qlora\ndeepspeed: {start}ds/zero3.json\n")
    before = config_of(config, runner="axolotl", values={})
    assert before.extra["deepspeed"] == f"{start}ds/zero3.json"
    (file := tmp_path / place / "ds" / "zero3.json").write_text(json.dumps(zero(stage=3)))
    found = config_of(config, runner="axolotl", values={})
    assert Path(found.extra["deepspeed"]).samefile(file)
    assert Path(found.extra["deepspeed"]).is_absolute()
    assert deepspeed_of(found) == DeepSpeed(stage=3)


def with_deepspeed(value: Any) -> TrainConfig:
    return a_config(extra={"deepspeed": value})
