from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colablock.training.preflight.facts import BF16, FP16, FP32
from colablock.training.preflight.memory import (
    COEFFICIENTS,
    Setting,
    adapter_parameters,
    changes_to_fit,
    checkpoint_size,
    estimate,
    largest_sequence,
    least_estimate,
)
from colablock.training.preflight.model_config import from_config
from colablock.training.preflight.runner_profiles import RUNNER_PROFILES, runner_profile
from colablock.training.runs.config import Adapter, TrainConfig
from tests.support.paths import DATA
from tests.support.training import BY_HAND, GIB, LLAMA_1B, SHAPES, TRL, a_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What was measured on a card; see the head of the file.
MEASURED: Mapping[str, list[Mapping[str, Any]]] = tomllib.loads(
    (DATA / "memory-h100.toml").read_text(encoding="utf-8")
)
ON_TWO_CARDS = 2.01  # GiB in use beside the reserved memory, with NCCL
CHANGES = ("sequence_len", "micro_batch_size", "gradient_checkpointing")


def config_of(point: Mapping[str, Any]) -> TrainConfig:
    return a_config(**{"sequence_len": 2048, **{key: point[key] for key in CHANGES if key in point}})


@pytest.mark.parametrize("point", MEASURED["by-hand"], ids=lambda point: str(point["allocated"]))
def test_estimates_match_measurements(point: Mapping[str, Any]) -> None:
    allocated, on_device = point["allocated"], point["on_device"]
    found = estimate(config_of(point), SHAPES["1B"], BY_HAND)
    assert found.allocated / GIB == pytest.approx(allocated, rel=0.03)
    assert allocated < found.total / GIB < on_device * 1.02  # the allocator reserves more than it has to
    assert found.total / GIB == pytest.approx(on_device, rel=0.15)


@pytest.mark.parametrize("point", MEASURED["cards"], ids=lambda point: str(point["on_device"]))
def test_the_estimate_of_several_cards_matches_measurements(point: Mapping[str, Any]) -> None:
    config = a_config(
        sequence_len=1024,
        micro_batch_size=point["micro_batch_size"],
        gradient_accumulation_steps=point.get("gradient_accumulation_steps", 1),
    )
    profile = runner_profile("axolotl", "0.18.0") if point.get("runner") == "axolotl" else TRL.profile
    setting = replace(TRL, profile=profile, processes=point["processes"], shards=point.get("shards"))
    found = estimate(config, SHAPES[point["shape"]], setting)
    assert found.total / GIB == pytest.approx(point["on_device"], rel=0.15)


@pytest.mark.parametrize("point", MEASURED["sharded-by-axolotl"], ids=lambda point: str(point["allocated"]))
def test_the_estimate_of_a_model_that_axolotl_shards_matches_measurements(point: Mapping[str, Any]) -> None:
    setting = replace(TRL, profile=runner_profile("axolotl", "0.18.0"), processes=2, shards=2)
    steps = point.get("gradient_accumulation_steps", 1)
    config = replace(config_of(point), gradient_accumulation_steps=steps)
    found = estimate(config, SHAPES[point["shape"]], setting)
    assert found.allocated / GIB == pytest.approx(point["allocated"], rel=0.03)


@pytest.mark.parametrize("point", MEASURED["ranks-of-one-card"], ids=lambda point: str(point["allocated"]))
def test_the_estimate_of_parts_matches_measurements(point: Mapping[str, Any]) -> None:
    profile = runner_profile("axolotl", "0.18.0") if point["runner"] == "axolotl" else TRL.profile
    shape = SHAPES[point["shape"]]
    shape = replace(shape, layers=point.get("layers", shape.layers))
    steps = point["gradient_accumulation_steps"]
    config = replace(config_of({"sequence_len": 1024, **point}), gradient_accumulation_steps=steps)
    shards = point["shards"]
    found = estimate(config, shape, replace(TRL, profile=profile, processes=shards, shards=shards))
    assert 0.97 < found.allocated / GIB / point["allocated"] < 1.14  # the head may not be whole at the peak
    # A run needs less than what the allocator keeps while there is space.
    assert found.total / GIB < (point["reserved"] + ON_TWO_CARDS) * 1.05


SMALL = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 8}


@pytest.mark.parametrize("point", MEASURED["unsloth"], ids=lambda point: str(point["allocated"]))
def test_the_estimate_for_unsloth_matches_measurements(point: Mapping[str, Any]) -> None:
    shape = SHAPES["1B"] if point["shape"] == "1B" else from_config({**LLAMA_1B, **SMALL, "head_dim": 64})
    found = estimate(config_of(point), shape, replace(TRL, profile=runner_profile("unsloth")))
    assert found.allocated / GIB == pytest.approx(point["allocated"], rel=0.04)
    context = COEFFICIENTS.context / GIB
    assert point["allocated"] + context < found.total / GIB < (point["reserved"] + context) * 1.1


@pytest.mark.parametrize("change", [{"lora_dropout": 0.1}, {"gated": False}], ids=str)
def test_only_layers_that_unsloth_replaces_keep_less(change: Mapping[str, Any]) -> None:
    family = {} if change.get("gated", True) else {"model_type": "arcee"}
    shape = from_config({**LLAMA_1B, **family})
    config = a_config(gradient_checkpointing=False, lora_dropout=change.get("lora_dropout", 0.0))
    kept = [
        estimate(config, shape, replace(TRL, profile=replace(runner_profile("unsloth"), fused_layers=fused)))
        for fused in (True, False)
    ]
    assert kept[0].parts["activations"] == kept[1].parts["activations"]


def test_a_share_of_the_tokens_has_logits_at_once() -> None:
    profile = replace(runner_profile("unsloth"), logits=1.0, tile=(512, 0))
    small = from_config({**LLAMA_1B, "hidden_size": 256, "intermediate_size": 512})
    losses = {
        tokens: estimate(a_config(sequence_len=tokens), small, replace(TRL, profile=profile)).parts["loss"]
        for tokens in (2048, 4096, 8192)
    }
    head_input = 256 * (4 + 2)
    expected = {
        tokens: rows * 128256 * 4 + tokens * head_input
        for tokens, rows in ((2048, 512), (4096, 512), (8192, 1024))
    }
    assert losses == expected


def test_single_parts_match_measurements() -> None:
    parts = estimate(a_config(sequence_len=2048), SHAPES["1B"], BY_HAND).parts
    in_16_bits = SHAPES["1B"].embedding_parameters * 2
    assert (parts["embeddings"] - in_16_bits) / GIB == pytest.approx(0.5, abs=0.02)  # what the cast adds
    static = parts["weights"] + parts["embeddings"] + parts["adapters"]
    assert static / GIB == pytest.approx(1.55, rel=0.05)


def test_logits_count_once_per_copy_of_the_runner() -> None:
    logits = 2048 * 128256 * 4
    config = a_config(sequence_len=2048)
    for version, copies in (("0.29.1", 3.0), ("1.0.0", 3.0)):
        setting = replace(TRL, profile=runner_profile("trl", version))
        assert estimate(config, SHAPES["1B"], setting).parts["loss"] == logits * copies
    tiled = estimate(config, SHAPES["1B"], TRL)
    assert tiled.parts.get("loss", 0) < logits / 2


@pytest.mark.parametrize(
    ("runner", "version", "since"),
    [
        ("trl", "1.16.0", "1.15"),
        ("trl", "1.17.0.dev0", "1.15"),
        ("trl", "1.9.0", "1.7"),
        ("trl", "1.6.0", "0.25"),
        ("trl", "0.29.1", "0.25"),
        ("trl", "0.21.0", "0.21"),
        ("trl", "0.10.1", "0"),
        ("trl", None, "0"),
        ("trl", "somewhat new", "0"),
        ("axolotl", "0.18.0", "0.8"),
        ("axolotl", "0.4.0+colablock.f6d3559c", "0"),
        ("axolotl", None, "0"),
        ("unsloth", "2026.10.9", "0"),
        ("unsloth", None, "0"),
    ],
)
def test_the_profile_is_that_of_the_installed_version(runner: str, version: str | None, since: str) -> None:
    assert runner_profile(runner, version).since == since


def test_every_profile_names_its_source() -> None:
    for known in RUNNER_PROFILES.values():
        assert all(profile.source for profile in known)
        assert known[-1].since == "0"


def test_embeddings_count_in_float32_if_the_runner_casts_them() -> None:
    older = runner_profile("trl", "0.21.0")
    shape, config = SHAPES["1B"], a_config()
    sizes = {
        precision.name: estimate(config, shape, Setting(precision=precision, profile=older)).parts[
            "embeddings"
        ]
        for precision in (BF16, FP16, FP32)
    }
    whole = shape.embedding_parameters
    assert sizes == {"bf16": 2 * whole, "fp16": 4 * whole, "fp32": 4 * whole}
    lora = a_config(adapter=Adapter.LORA)  # nothing is prepared for 4 bits
    assert estimate(lora, shape, Setting(precision=FP16, profile=older)).parts["embeddings"] == 2 * whole


def test_adapters_count_in_the_type_that_they_are_trained_in() -> None:
    shape, config = SHAPES["1B"], a_config()
    count = adapter_parameters(config, shape)
    assert count == 11_272_192  # as peft counts them for r = 16 on all seven layers
    bf16 = estimate(config, shape, TRL).parts
    fp16 = estimate(config, shape, replace(TRL, precision=FP16)).parts
    assert (bf16["adapters"], bf16["gradients"], bf16["optimizer"]) == (2 * count, 2 * count, 4 * count)
    assert (fp16["adapters"], fp16["gradients"], fp16["optimizer"]) == (6 * count, 4 * count, 8 * count)
    lora = estimate(a_config(adapter=Adapter.LORA), shape, TRL).parts  # trl casts those of 4-bit models only
    assert lora["gradients"] == 4 * count
    assert lora["weights"] == 2 * shape.linear_parameters
    assert bf16["weights"] == pytest.approx(0.516 * shape.linear_parameters, rel=0.001)
    two = estimate(config, shape, replace(TRL, processes=2)).parts
    assert two["gradients"] == 4 * count
    assert checkpoint_size(config, shape, TRL) == 6 * count
    assert checkpoint_size(config, shape, replace(TRL, precision=FP16)) == 12 * count
    assert checkpoint_size(a_config(adapter=Adapter.LORA), shape, TRL) == 12 * count
    assert (
        checkpoint_size(config, shape, replace(TRL, profile=runner_profile("axolotl", "0.18.0")))
        == 12 * count
    )


@pytest.mark.parametrize(
    ("optimizer", "of_each"),
    [("adamw_torch", 8), ("adamw_8bit", 2), ("paged_adamw_8bit", 2), ("lion_32bit", 4), ("sgd", 0)],
)
def test_optimizer_states_are_counted(optimizer: str, of_each: int) -> None:
    config = a_config(optimizer=optimizer)
    found = estimate(config, SHAPES["1B"], replace(TRL, precision=FP16))
    assert found.parts["optimizer"] == of_each * adapter_parameters(config, SHAPES["1B"])


def test_only_layers_with_adapters_store_their_inputs() -> None:
    without: dict[str, Any] = {"gradient_checkpointing": False, "sequence_len": 2048}
    names = [one.name for one in SHAPES["1B"].linears]
    totals = [
        estimate(a_config(lora_target_modules=tuple(names[:count]), **without), SHAPES["1B"], BY_HAND).total
        for count in range(1, 8)
    ]
    assert totals == sorted(totals)
    every = estimate(a_config(**without), SHAPES["1B"], BY_HAND)
    assert totals[-1] == every.total
    dropped = estimate(a_config(lora_dropout=0.05, **without), SHAPES["1B"], BY_HAND)
    assert dropped.total > every.total


@pytest.mark.parametrize(
    ("keys", "same_as"),
    [
        ({"lora_target_modules": ("model.layers.0.self_attn.q_proj",)}, {"lora_target_modules": ("q_proj",)}),
        ({"lora_target_modules": (r".*\.(q|v)_proj",)}, {}),  # at most every layer
    ],
)
def test_adapters_are_counted_by_the_ends_of_their_names(
    keys: dict[str, Any], same_as: dict[str, Any]
) -> None:
    assert adapter_parameters(a_config(**keys), SHAPES["1B"]) == adapter_parameters(
        a_config(**same_as), SHAPES["1B"]
    )


def test_embeddings_that_are_trained_are_counted() -> None:
    """An 8B model needs 17 GiB more with them."""
    shape, axolotl = SHAPES["8B"], replace(TRL, profile=runner_profile("axolotl", "0.21.0"))
    outer = shape.vocabulary * shape.hidden

    def found(**keys: Any) -> Any:
        return estimate(a_config(**keys), shape, axolotl)

    both = found(extra={"lora_modules_to_save": ["embed_tokens", "model.lm_head"]})
    assert both.allocated - found().allocated == 2 * outer * (4 + 2 + 4 + 8)
    assert found(extra={"lora_modules_to_save": "lm_head"}).parts["gradients"] > 4 * outer
    for nothing in (None, [], ["norm"], 5):
        assert found(extra={"lora_modules_to_save": nothing}) == found()
    one = found(lora_target_modules=("q_proj", "embed_tokens")).parts["gradients"]
    without = found(lora_target_modules=("q_proj",)).parts["gradients"]
    assert one - without == 4 * 16 * (shape.vocabulary + shape.hidden)


def test_head_norms_are_counted() -> None:
    config = a_config(gradient_checkpointing=False)
    sizes = {**LLAMA_1B, "rope_scaling": None}
    qwen2, qwen3 = (from_config({**sizes, "model_type": name}) for name in ("qwen2", "qwen3"))
    assert estimate(config, qwen3, TRL).total > estimate(config, qwen2, TRL).total


def test_scores_grow_with_the_square_of_the_sequence() -> None:
    eager = replace(TRL, attention="eager")
    unfused = replace(TRL, has_fused_attention=False)
    flash = replace(unfused, attention="flash_attention_2")

    def total(setting: Setting, length: int) -> int:
        return estimate(a_config(sequence_len=length), SHAPES["1B"], setting).total

    assert total(eager, 8192) == total(unfused, 8192)
    assert total(flash, 8192) == total(TRL, 8192)
    assert total(eager, 8192) - total(TRL, 8192) > 10 * (total(eager, 2048) - total(TRL, 2048))


def test_a_cpu_run_counts_the_interpreter_instead_of_the_context() -> None:
    cpu = Setting(precision=FP32, profile=TRL.profile, on_card=False)
    assert estimate(a_config(), SHAPES["1B"], cpu).parts["context"] == COEFFICIENTS.interpreter
    assert estimate(a_config(), SHAPES["1B"], TRL).parts["context"] == COEFFICIENTS.context


def test_the_total_is_the_sum_of_its_parts() -> None:
    found = estimate(a_config(), SHAPES["8B"], TRL)
    assert found.total == sum(found.parts.values())
    assert found.allocated == found.total - found.parts["slack"] - found.parts["context"]
    assert all(size >= 0 for size in found.parts.values())


def test_the_largest_sequence_fits_and_a_longer_one_does_not() -> None:
    room = 14 * GIB
    config = a_config(micro_batch_size=2)
    length = largest_sequence(config, SHAPES["8B"], TRL, room)
    assert length is not None
    assert length % 128 == 0
    assert estimate(replace(config, sequence_len=length), SHAPES["8B"], TRL).total <= room
    assert estimate(replace(config, sequence_len=length + 128), SHAPES["8B"], TRL).total > room
    assert largest_sequence(config, SHAPES["70B"], TRL, room) is None
    short = replace(SHAPES["1B"], max_positions=2048)
    assert largest_sequence(a_config(), short, TRL, room) == 2048
    endless = replace(SHAPES["1B"], max_positions=None)
    assert largest_sequence(a_config(), endless, TRL, 1000 * GIB) == 131072


@pytest.mark.parametrize(
    ("model", "changes", "room", "ways"),
    [
        (
            "8B",
            {"sequence_len": 4096, "gradient_checkpointing": False},
            22,
            ("`gradient_checkpointing: true`", "`sequence_len: N`"),
        ),
        (
            "8B",
            {"sequence_len": 4096, "micro_batch_size": 8},
            16,
            (
                "`micro_batch_size: 1` with `gradient_accumulation_steps: 64`",
                "`sequence_len: N`",
            ),
        ),
        ("8B", {"adapter": Adapter.LORA}, 14, ("`adapter: qlora`",)),
        (
            "8B",
            {"adapter": Adapter.LORA, "gradient_checkpointing": False, "sequence_len": 4096},
            12,
            ("`gradient_checkpointing: true`, `adapter: qlora`",),
        ),
        (
            "8B",
            {"sequence_len": 8192, "adapter": Adapter.LORA, "gradient_checkpointing": False},
            9,
            ("`gradient_checkpointing: true`, `adapter: qlora`, `sequence_len: N`",),
        ),
        ("70B", {"sequence_len": 8192}, 22, ()),
    ],
)
def test_changes_to_fit_are_settings_of_the_config(
    model: str, changes: Mapping[str, Any], room: int, ways: tuple[str, ...]
) -> None:
    found = changes_to_fit(a_config(**changes), SHAPES[model], TRL, room * GIB)
    assert tuple(re.sub(r"(sequence_len): \d+", r"\1: N", way) for way in found) == ways


@given(
    model=st.sampled_from(sorted(SHAPES)),
    config=st.builds(
        a_config,
        sequence_len=st.integers(128, 16384),
        micro_batch_size=st.integers(1, 16),
        lora_r=st.integers(1, 256),
        gradient_checkpointing=st.booleans(),
    ),
    version=st.sampled_from(["0.21.0", "0.29.1", "1.8.0", "1.16.0"]),
)
def test_larger_settings_need_more_memory(model: str, config: TrainConfig, version: str) -> None:
    shape, setting = SHAPES[model], replace(TRL, profile=runner_profile("trl", version))
    total = estimate(config, shape, setting).total
    for more in (
        replace(config, sequence_len=config.sequence_len + 128),
        replace(config, micro_batch_size=config.micro_batch_size + 1),
        replace(config, lora_r=config.lora_r + 1),
    ):
        assert estimate(more, shape, setting).total >= total
    assert estimate(replace(config, gradient_checkpointing=True), shape, setting).total <= total
    assert least_estimate(config, shape, setting).total <= total


@pytest.mark.parametrize(
    "point",
    MEASURED["measured"],
    ids=lambda point: "-".join(
        str(point[key]) for key in ("shape", "vocabulary", "sequence_len", "smallest")
    ),
)
def test_the_estimate_is_slightly_above_the_measured_need(point: Mapping[str, Any]) -> None:
    shape = replace(SHAPES[point["shape"]], vocabulary=point["vocabulary"])
    found = estimate(config_of(point), shape, TRL)
    assert point["smallest"] <= found.total / GIB <= point["smallest"] * 1.15
    assert point["allocated"] == pytest.approx(found.allocated / GIB, rel=0.12)
