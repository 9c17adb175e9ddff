"""Which cards a run takes, and whether they share one model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.training.preflight.facts import Card, Finding, Level, Stack
from colablock.training.preflight.hub import ModelFacts
from colablock.training.preflight.memory import Setting, estimate, held_in_memory
from colablock.training.preflight.run_case import RunCase
from colablock.training.preflight.runner_profiles import runner_profile
from colablock.training.runs.config import Adapter
from colablock.training.runs.launch import ranks_of
from colablock.training.runs.sharding import DeepSpeed, ShardMode
from tests.support.training import (
    GIB,
    OPEN,
    SHAPES,
    T4,
    TODAY,
    a_card,
    a_config,
    a_machine,
    check_run,
    refusal,
)


def busy(card: Card, free: float) -> Card:
    """Return a card of which others leave *free* GiB."""
    return replace(card, free=round(free * GIB))


A100_80, A100_40 = (a_card(f"NVIDIA A100-SXM4-{size}GB", "8.0", size) for size in (80, 40))
RTX_4090, L4 = a_card("NVIDIA GeForce RTX 4090", "8.9", 24), a_card("NVIDIA L4", "8.9", 22.5)
V100 = a_card("Tesla V100-SXM2-32GB", "7.0", 32)
WITH_V100 = replace(TODAY, arch_list=("sm_70", *TODAY.arch_list))
MIXTURE = replace(SHAPES["8B"], unsupported="a mixture of 8 experts")
PREQUANTIZED = replace(SHAPES["70B"], quantized="bitsandbytes")

AXOLOTL_21: Mapping[str, Any] = {"runner": "axolotl", "stack": replace(TODAY, axolotl="0.21.0")}
ZERO: Mapping[str, Any] = {"runner": "axolotl", "extra": {"deepspeed": "zero.json"}}

# The cards, what else is asked for, whether the run passes, the processes, and whether they share one model.
CASES: list[tuple[list[Any], Mapping[str, Any], bool, int, bool]] = [
    ([A100_80], {}, True, 1, False),
    ([A100_80] * 2, {}, True, 2, False),  # 70B in 4 bits fits on each
    ([A100_80] * 2, {"shard": ShardMode.FSDP}, True, 2, True),
    ([A100_40] * 2, {}, True, 2, True),
    ([A100_40] * 2, {"shard": ShardMode.NONE}, False, 1, False),
    ([RTX_4090] * 2, {}, False, 2, True),
    ([RTX_4090] * 4, {}, True, 4, True),
    ([RTX_4090] * 4, {"sequence_len": 8192}, False, 4, True),
    ([RTX_4090] * 8, {}, True, 8, True),
    ([RTX_4090] * 8, {"sequence_len": 8192}, False, 8, True),
    ([RTX_4090] * 8, {"sequence_len": 4096}, True, 8, True),
    ([L4] * 4, {"sequence_len": 2048}, True, 4, True),
    ([RTX_4090] * 4, {"hosts": 2}, False, 1, False),  # a checkpoint would be in parts on both
    ([A100_80] * 2, {"hosts": 2}, True, 2, False),
    ([RTX_4090] * 4, {"ram": 40}, False, 4, True),
    ([RTX_4090] * 2, {"model": "8B"}, True, 2, False),
    ([T4] * 2, {"model": "8B"}, True, 2, False),
    ([T4] * 2, {}, False, 1, False),  # without bf16
    ([A100_80, RTX_4090], {}, True, 1, False),  # the larger card alone
    ([A100_80], {"shard": ShardMode.FSDP}, True, 1, False),  # there is nothing to share with
    ([A100_80], {"shard": ShardMode.FSDP, "keeps_shards": True}, True, 1, True),
    ([A100_80] * 2, {"adapter": Adapter.LORA}, False, 2, True),  # half of the 16-bit weights on each
    ([A100_80] * 4, {"adapter": Adapter.LORA}, True, 4, True),
    ([A100_80] * 4, {"runner": "unsloth", "adapter": Adapter.LORA}, False, 1, False),
    ([RTX_4090] * 4, {"runner": "axolotl"}, False, 4, True),  # each card holds the whole while it is loaded
    ([A100_40] * 2, {"runner": "axolotl"}, False, 2, True),
    ([A100_80] * 2, {"runner": "axolotl", "shard": ShardMode.FSDP}, True, 2, True),
    ([A100_80] * 2, {"ranks": 1}, True, 1, False),  # as asked for, with one card left over
    ([RTX_4090] * 4, {"ranks": 1}, False, 1, False),
    ([RTX_4090] * 4, {"ranks": 1, "shard": ShardMode.FSDP}, False, 1, False),
    ([A100_40] * 4, {"ranks": 2}, True, 2, True),
    ([A100_80] * 4, {"ranks": 2, "hosts": 2}, True, 1, False),
    ([RTX_4090, A100_80], {"ranks": 1}, True, 1, False),
    # As many processes as were asked for start, also where only one card holds the model.
    ([A100_80, RTX_4090], {"ranks": 2}, False, 2, True),
    ([A100_80, RTX_4090], {"ranks": 2, "shard": ShardMode.NONE}, False, 2, False),
    ([A100_80, busy(A100_80, 5)], {"model": "8B", "ranks": 4, "hosts": 2}, False, 2, False),
    # Cards of which some are in use by others, or smaller.
    ([RTX_4090] * 3 + [busy(RTX_4090, 6)], {}, True, 3, True),
    ([RTX_4090] * 3 + [busy(RTX_4090, 6)], {"shard": ShardMode.FSDP}, True, 3, True),
    ([RTX_4090] * 3 + [busy(RTX_4090, 6)], {"shard": ShardMode.NONE}, False, 1, False),
    ([RTX_4090] * 2 + [busy(RTX_4090, 6)] * 2, {}, False, 4, True),
    ([RTX_4090] * 3 + [busy(RTX_4090, 6)], {"ranks": 4}, False, 4, True),
    ([RTX_4090] * 3 + [busy(RTX_4090, 6)], {"hosts": 2, "shares_folder": True}, False, 4, True),
    ([RTX_4090] * 3 + [busy(RTX_4090, 2)], {"model": "8B"}, True, 3, False),
    ([RTX_4090] * 3 + [busy(RTX_4090, 2)], {"model": "8B", "shard": ShardMode.NONE}, True, 3, False),
    ([RTX_4090] * 3 + [busy(RTX_4090, 2)], {"model": "8B", "hosts": 2}, True, 1, False),
    ([busy(RTX_4090, 2), RTX_4090], {"model": "8B"}, True, 1, False),
    ([A100_80, A100_40, A100_80], {}, True, 2, False),  # each on two cards is faster than parts on three
    ([A100_80, A100_40], {}, True, 2, True),
    ([A100_40] * 2 + [RTX_4090], {"sequence_len": 2048}, True, 2, True),
    ([A100_40] * 2 + [RTX_4090], {"keeps_shards": True, "sequence_len": 2048}, True, 2, True),
    ([A100_80, RTX_4090], {"keeps_shards": True}, True, 1, True),
    ([RTX_4090] * 3, {}, True, 3, True),
    ([V100, *[RTX_4090] * 4], {"stack": WITH_V100}, True, 4, True),  # one card without bf16 is left out
    ([V100, *[RTX_4090] * 4], {"stack": WITH_V100, "shard": ShardMode.FSDP}, True, 4, True),
    ([V100, *[RTX_4090] * 2], {"stack": WITH_V100, "model": "8B"}, True, 3, False),  # in fp16
    ([], {"model": "8B", "shard": ShardMode.FSDP, "ranks": 2, "ram": 200}, True, 1, True),
    # On the CPU, the processes of this host share its memory; other hosts have their own.
    ([], {"model": "8B", "ranks": 1, "ram": 20}, True, 1, False),
    ([], {"model": "8B", "ranks": 2, "ram": 20}, False, 1, False),
    ([], {"model": "8B", "ranks": 2, "ram": 25}, True, 1, False),
    ([], {"model": "8B", "ranks": 2, "ram": 20, "hosts": 2}, True, 1, False),
    ([], {"model": "8B", "ranks": 4, "ram": 20, "hosts": 2}, False, 1, False),
    ([], {"model": "8B", "ram": 20, "hosts": 4}, True, 1, False),
    # A key of axolotl that has DeepSpeed divide the model, or that does not.
    ([RTX_4090] * 4, {**ZERO, "deepspeed": DeepSpeed(stage=2)}, False, 1, False),
    ([A100_80] * 2, {**ZERO, "deepspeed": DeepSpeed(stage=2)}, True, 2, False),
    ([A100_80] * 2, {**ZERO, "deepspeed": DeepSpeed(stage=3)}, True, 2, False),
    ([RTX_4090], {**ZERO, "deepspeed": DeepSpeed(stage=3)}, False, 1, False),
]


@pytest.mark.parametrize(("cards", "asked", "passes", "processes", "shares"), CASES)
def test_a_model_is_shared_if_a_card_does_not_hold_it(
    cards: list[Any], asked: Mapping[str, Any], passes: bool, processes: int, shares: bool
) -> None:
    found = check(cards, **asked)
    assert (found.passed, found.processes, found.is_sharded) == (passes, processes, shares), found.findings
    assert found.estimate is not None
    if shares and passes and processes > 1:
        (note,) = (one for one in found.findings if one.what.startswith("sharding the model over"))
        assert "each needs about" in note.why
        assert any("of this host's memory" in one.what for one in found.findings)


@pytest.mark.parametrize(
    ("cards", "extra", "processes"),
    [
        (2, "", 2),
        (2, "--num_processes 1", 1),
        (4, "--num_machines 2 --main_process_ip h", 8),
        (4, "--num_machines 2 --main_process_ip h --num_processes 2", 2),
        (4, "--num_machines 2 --main_process_ip h --num_processes 4", 4),
    ],
)
def test_as_many_processes_are_counted_as_start(cards: int, extra: str, processes: int) -> None:
    case = RunCase(
        config=a_config(),
        runner="trl",
        machine=a_machine(*[A100_80] * cards),
        workarounds=(),
        facts=ModelFacts(config=None, access=OPEN),
        shape=SHAPES["8B"],
        stack=TODAY,
        shard=ShardMode.AUTO,
        keeps_shards=False,
        ranks=ranks_of(1, extra.split()),
    )
    found = case.check()
    assert case.ranks_of(found) == ranks_of(found.processes, extra.split()).total == processes
    assert len(found.cards) * case.ranks.hosts == processes


@pytest.mark.parametrize("shape", [MIXTURE, None])
@pytest.mark.parametrize(
    ("asked", "chosen", "number"),
    [
        ({}, (0,), "4"),
        ({"hosts": 2}, (0,), "8"),
        ({"ranks": 4}, (0, 1, 2, 3), None),
        ({"ranks": 4, "hosts": 2}, (0, 1), None),
    ],
)
def test_without_an_estimate_each_process_that_was_asked_for_has_a_card(
    shape: Any, asked: Mapping[str, Any], chosen: tuple[int, ...], number: str | None
) -> None:
    found = check([A100_80] * 4, shape=shape, **asked)
    assert (found.passed, found.cards, found.estimate) == (True, chosen, None)
    notes = [one for one in found.findings if one.what == "training with 1 process on 1 of 4 cards"]
    fixes = [one.fix for one in notes]
    assert [f"--num_processes {number}`" in one and "--shard fsdp" in one for one in fixes] == (
        [] if number is None else [True]
    )


@pytest.mark.parametrize(
    ("cards", "asked", "words"),
    [
        (8, {"shard": ShardMode.FSDP}, ""),  # 132 GB in 4 bits, of which each has an eighth
        (1, {}, "of the card's memory, and 77.6 GiB are free"),
        (8, {}, "of the card's memory, and 77.6 GiB are free"),
        (8, {"ranks": 8}, "of the card's memory, and 77.6 GiB are free"),
        (
            2,
            {"shard": ShardMode.FSDP, "adapter": Adapter.LORA},
            "of the memory of all 2 cards, and 155.2 GiB",
        ),
        (8, {"shard": ShardMode.FSDP, "runner": "axolotl"}, "of the card's memory"),  # which loads it whole
    ],
)
def test_weights_that_are_shared_need_not_fit_on_one_card(
    cards: int, asked: Mapping[str, Any], words: str
) -> None:
    access = replace(OPEN, size=470 * 10**9)
    found = check([A100_80] * cards, shape=MIXTURE, access=access, **asked)
    refused = [one.what for one in found.findings if one.level is Level.REFUSE]
    assert [words in one and one.startswith("the weights alone need") for one in refused] == [True] * bool(
        words
    )


@pytest.mark.parametrize("has_sinks", [True, False])
def test_a_model_with_attention_sinks_gets_no_fused_kernel(*, has_sinks: bool) -> None:
    stack = replace(TODAY, flash_attn="2.8.3")
    found = check([A100_80], shape=replace(MIXTURE, has_sinks=has_sinks), stack=stack)
    assert found.attention == ("eager" if has_sinks else "flash_attention_2")


def check(cards: list[Any], **asked: Any) -> Any:
    asked = dict(asked)
    model, runner, ram = asked.pop("model", "70B"), asked.pop("runner", "trl"), asked.pop("ram", 500) * GIB
    options = {
        key: asked.pop(key)
        for key in ("shard", "hosts", "shares_folder", "ranks", "keeps_shards", "stack", "deepspeed")
        if key in asked
    }
    stack: Stack = options.pop("stack", replace(TODAY, axolotl="0.18.0", unsloth="2026.10.9"))
    shape, access = asked.pop("shape", SHAPES[model]), asked.pop("access", OPEN)
    machine = a_machine(*cards, ram=ram, ram_free=ram)
    return check_run(a_config(**asked), shape, machine, stack, access, runner, **options)


@pytest.mark.parametrize(
    ("cards", "asked", "words"),
    [
        ([RTX_4090] * 2, {}, ("29.5 GiB of each card's memory if it is sharded over 2 cards", "23.3 GiB")),
        (
            [RTX_4090] * 4,
            {"sequence_len": 8192},
            ("sharded over 4 cards", "it fits with `sequence_len: 2944`"),
        ),
        (
            [RTX_4090] * 4,
            {"runner": "axolotl"},
            ("the whole model while it is loaded (17.4 GiB)", "use a matrix with the runner trl"),
        ),
        ([T4] * 2, {}, ("would need about 31.2 GiB of each, but a model is not sharded in fp16",)),
        (
            [RTX_4090] * 4,
            {"optimizer": "paged_adamw_8bit"},
            ("about 19.5 GiB of each", "set `optimizer: adamw_torch`, so that the model can be sharded"),
        ),
        (
            [RTX_4090] * 4,
            {"ram": 40},
            ("63.4 GiB of the machine's memory", "before each card takes its part"),
        ),
        (
            [A100_80] * 2,
            {"ranks": 4},
            ("4 processes cannot start on this host, which has 2 cards that", "lower `--num_processes`"),
        ),
        ([A100_80] * 2, {"ranks": 6, "hosts": 2}, ("3 processes cannot start on this host, which has 2",)),
        ([RTX_4090] * 4, {"ranks": 8, "shard": ShardMode.FSDP}, ("8 processes cannot start",)),
        (
            [a_card("Tesla P100", "6.0", 16)] * 4,
            {"ranks": 4, "model": "8B", "sequence_len": 512},
            ("has no kernels for the Tesla P100",),
        ),
        (
            [],
            {"model": "8B", "ram": 24, "ranks": 6, "hosts": 2},
            (
                "about 34.0 GiB of memory (11.3 GiB for each of 3 processes), and 24.0 GiB are free",
                "lower `--num_processes` to 4",
            ),
        ),
        (
            [],
            {"model": "8B", "ram": 24, "ranks": 8},
            ("lower `--num_processes` to 2",),
        ),
        (
            [],
            {"model": "8B", "ram": 8, "ranks": 2},
            ("or a machine with more than 19.8 GiB",),
        ),
        (
            [RTX_4090] * 4,
            {**ZERO, "deepspeed": DeepSpeed(stage=2)},
            ("the run needs about", "a model is not sharded with FSDP beside `deepspeed`"),
        ),
        (
            [],
            {"model": "8B", "ram": 16.5, "ranks": 2, "shard": ShardMode.FSDP, "sequence_len": 128},
            ("about 17.0 GiB of the machine's memory, and 16.5 GiB are free",),
        ),
    ],
)
def test_a_refusal_has_the_numbers(
    cards: list[Any], asked: Mapping[str, Any], words: tuple[str, ...]
) -> None:
    one = refusal(check(cards, **asked))
    for part in words:
        assert part in f"{one.what}: {one.why}: {one.fix}"


OLD: dict[str, Any] = {
    "accelerate": "1.6.0",
    "peft": "0.17.0",
    "bitsandbytes": "0.46.0",
    "transformers": "4.57.1",
}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"runner": "unsloth"}, "Unsloth cannot shard a model"),
        ({"cards": [T4] * 2, "model": "8B"}, "not sharded in fp16"),
        ({"hosts": 2}, "a model is not sharded over several hosts"),
        ({"shape": PREQUANTIZED}, "4-bit weights of a file cannot be sharded"),
        ({"optimizer": "adamw_8bit"}, "has no kernels for a sharded adapter"),
        ({"optimizer": "paged_lion_32bit"}, "has no kernels for a sharded adapter"),
        ({"optimizer": "adagrad"}, "has no kernels for a sharded adapter"),
        ({"extra": {"peft_use_dora": True}}, "`peft_use_dora: true` cannot be sharded"),
        *(
            ({"stack": replace(TODAY, **{name: version})}, f"{name} {version} is too old to shard")
            for name, version in OLD.items()
        ),
        ({"runner": "axolotl", "stack": replace(TODAY, axolotl="0.4.0")}, "axolotl 0.4.0 has no FSDP 2"),
        *(
            ({**AXOLOTL_21, **keys}, f"axolotl 0.21.0 has no FSDP 1, which `{named}` is for")
            for keys, named in (
                ({"extra": {"fsdp": ["full_shard", "auto_wrap"]}}, "fsdp"),
                ({"fsdp_version": 1}, "fsdp_version: 1"),
                ({"fsdp_config": {"version": 1}}, "fsdp_version: 1"),
                (
                    {"fsdp_config": {"fsdp_sharding_strategy": "FULL_SHARD"}},
                    "fsdp_config.sharding_strategy",
                ),
            )
        ),
        ({"runner": "axolotl", "optimizer": "adamw_8bit"}, "does not shard with `optimizer: adamw_8bit`"),
        (ZERO, "with FSDP beside `deepspeed`"),
    ],
)
def test_what_cannot_be_sharded_is_refused(asked: Mapping[str, Any], words: str) -> None:
    given = dict(asked)
    found = check(given.pop("cards", [A100_80] * 2), shard=ShardMode.FSDP, **given)
    refused = [one for one in found.findings if one.level is Level.REFUSE]
    assert any(words in one.what for one in refused), found.findings
    assert all(one.why and one.fix for one in refused)


@pytest.mark.parametrize(
    "asked",
    [
        {"extra": {"fsdp": ["full_shard", "auto_wrap"]}},  # axolotl before 0.21 takes them
        {"fsdp_version": 1, "optimizer": "adamw_8bit"},
        {"fsdp_config": {"fsdp_version": 2, "fsdp_limit_all_gathers": True}, **AXOLOTL_21},
        {"optimizer": "adamw_torch_8bit", **AXOLOTL_21},
    ],
)
def test_keys_of_fsdp_that_axolotl_takes_are_passed_on(asked: Mapping[str, Any]) -> None:
    found = check([A100_80] * 2, shard=ShardMode.FSDP, **{"runner": "axolotl", **asked})
    assert not [one for one in found.findings if "FSDP 1" in one.what or "does not shard" in one.what]
    assert found.is_sharded


@pytest.mark.parametrize("mode", [ShardMode.AUTO, ShardMode.NONE])
@pytest.mark.parametrize(
    ("cards", "deepspeed", "words"),
    [
        (4, DeepSpeed(stage=3), "DeepSpeed divides the model over 4 cards, and"),
        (4, DeepSpeed(stage=None, missing="mine.json"), "DeepSpeed may divide the model over 4 cards, and"),
        (
            4,
            DeepSpeed(stage=3, offloads=True),
            "over 4 cards and keeps weights in the memory of the host, and",
        ),
        (1, DeepSpeed(stage=3, offloads=True), "DeepSpeed keeps weights in the memory of the host, and"),
    ],
)
def test_a_model_that_deepspeed_divides_is_not_refused(
    cards: int, deepspeed: DeepSpeed, words: str, mode: ShardMode
) -> None:
    found = check(
        [RTX_4090] * cards,
        runner="axolotl",
        shard=mode,
        deepspeed=deepspeed,
        extra={"deepspeed": "zero.json"},
    )
    assert found.passed
    assert (found.estimate, found.processes, found.is_sharded) == (None, cards, False)
    (warning,) = (one for one in found.findings if one.what == "there is no memory estimate for this run")
    assert f"{words} the estimate does not know how" in warning.why
    whole, part = ("48.0", "9.2") if cards > 1 else ("46.4", "36.8")
    assert f"a card with the whole model would need about {whole} GiB, " in warning.why
    assert f"an equal part of the weights has {part} GiB" in warning.why
    told = [one.what for one in found.findings if "is not a file on this host" in one.what]
    assert told == [
        f"`{name}`, which `deepspeed` names, is not a file on this host"
        for name in [deepspeed.missing]
        if name
    ]


def test_checkpoints_of_a_divided_model_need_disk_space() -> None:
    def shortage(**options: Any) -> Finding:
        machine = a_machine(*[RTX_4090] * 4, disk_free=10**9)
        stack = replace(TODAY, axolotl="0.18.0")
        found = check_run(a_config(), SHAPES["70B"], machine, stack, OPEN, "axolotl", **options)
        return next(one for one in found.findings if "of disk space are needed" in one.what)

    assert shortage(deepspeed=DeepSpeed(stage=3)) == shortage(shard=ShardMode.FSDP)


@pytest.mark.parametrize(("stage", "passes"), [(3, True), (2, False)])
def test_the_file_of_deepspeed_decides(tmp_path: Path, stage: int, passes: bool) -> None:
    (file := tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    case = RunCase(
        config=a_config(extra={"deepspeed": str(file)}),
        runner="axolotl",
        machine=a_machine(*[RTX_4090] * 4),
        workarounds=(),
        facts=ModelFacts(config=None, access=OPEN),
        shape=SHAPES["70B"],
        stack=replace(TODAY, axolotl="0.18.0"),
        shard=ShardMode.AUTO,
        keeps_shards=False,
        ranks=ranks_of(1),
    )
    assert case.check().passed is passes


def test_a_model_of_unknown_size_is_left_to_deepspeed() -> None:
    """Its weights alone are too large for one card, and are not on one."""
    access = replace(OPEN, size=140 * 10**9)
    given = (
        a_config(),
        None,
        a_machine(*[RTX_4090] * 4),
        replace(TODAY, axolotl="0.18.0"),
        access,
        "axolotl",
    )
    assert not check_run(*given).passed
    assert check_run(*given, deepspeed=DeepSpeed(stage=3)).processes == 4
    assert check_run(*given, deepspeed=DeepSpeed(stage=3)).passed


def test_hosts_that_share_a_folder_shard_a_model() -> None:
    """As the tasks of a job of Slurm do: two cards on each of two hosts."""
    found = check([A100_80] * 2, shard=ShardMode.FSDP, hosts=2, shares_folder=True)
    assert (found.passed, found.is_sharded, found.processes) == (True, True, 2)
    alone = check([A100_80] * 2, shard=ShardMode.FSDP)
    assert found.estimate.total < alone.estimate.total


def test_the_estimate_falls_with_the_number_of_shards() -> None:
    config, shape = a_config(), SHAPES["70B"]
    usual = Setting(precision=check([A100_80]).precision, profile=runner_profile("trl", TODAY.trl))
    found = [estimate(config, shape, replace(usual, shards=n, processes=n)) for n in (2, 4, 8, 16)]
    totals = [one.total for one in found]
    assert totals == sorted(totals, reverse=True)
    # The constants of 4-bit weights, gathered layers, activations and the card's own are on every card.
    assert totals[-1] > 9 * GIB
    assert found[0].parts["weights"] - found[1].parts["weights"] == round(shape.linear_parameters / 8)
    once = estimate(replace(config, gradient_accumulation_steps=1), shape, replace(usual, shards=4))
    assert once.total < totals[1]  # gradients that add up are whole on each card


def test_a_host_holds_a_sharded_model_once() -> None:
    config, shape = a_config(), SHAPES["70B"]
    usual = Setting(precision=check([A100_80]).precision, profile=runner_profile("trl", TODAY.trl), shards=8)
    whole = held_in_memory(config, shape, usual, processes=8)
    assert whole / GIB == pytest.approx(31.9 + 8 * 3.9, rel=0.01)  # embeddings once for each process
    assert held_in_memory(config, shape, usual, processes=4) == pytest.approx(whole / 2, rel=0.01)
    lora = replace(config, adapter=Adapter.LORA)
    assert held_in_memory(lora, shape, usual, processes=8) == shape.parameters * 2
    each = replace(usual, profile=runner_profile("axolotl", "0.18.0"))  # loads it on the card, or in memory
    assert held_in_memory(config, shape, each, processes=8) == 0
    assert held_in_memory(lora, shape, each, processes=8) == shape.parameters * 2 * 8
