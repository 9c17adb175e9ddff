from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from colablock.training.preflight.cards import GQA_WORKAROUND, usable_memory
from colablock.training.preflight.facts import BF16, FP16, Access, Card, Level, Machine, Stack
from colablock.training.preflight.model_config import ModelShape, from_config
from tests.support.paths import CASES
from tests.support.training import (
    GIB,
    H100,
    LLAMA_1B,
    OPEN,
    SHAPES,
    STACKS,
    T4,
    TODAY,
    a_card,
    a_config,
    a_machine,
    check_run,
    of_level,
    refusal,
    verdict_of,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LENGTHS = (512, 2048, 8192)
TABLE = {path.stem: tomllib.loads(path.read_text()) for path in sorted((CASES / "preflight").glob("*.toml"))}
ROWS = [
    pytest.param(case, model, checkpointing, length, verdict, id=f"{name}-{model}-{key}-{length}")
    for name, case in TABLE.items()
    for model, row in case["expect"]["models"].items()
    for key, checkpointing in (("checkpointing", True), ("without", False))
    for length, verdict in zip(LENGTHS, row[key], strict=True)
]


@pytest.mark.parametrize(("case", "model", "checkpointing", "length", "verdict"), ROWS)
def test_verdicts_match_the_table(
    case: Mapping[str, Any], model: str, checkpointing: bool, length: int, verdict: str
) -> None:
    machine = a_machine(
        *(a_card(**card) for card in case.get("card", ())),
        ram=case["ram-free"] * GIB,
        ram_free=case["ram-free"] * GIB,
        disk_free=case["disk-free"] * 10**9,
    )
    config = a_config(sequence_len=length, gradient_checkpointing=checkpointing)
    workarounds = frozenset(case["workarounds"])
    found = check_run(
        config, SHAPES[model], machine, STACKS[case["stack"]], OPEN, "trl", workarounds=workarounds
    )
    assert verdict_of(found) == verdict, [*found.findings, found.estimate]
    assert found.passed is (verdict != "refuse")
    assert found.precision.name == case["expect"]["precision"]
    whole = case["expect"]["models"][model]["processes"]
    assert found.processes == (whole if found.passed else 1)
    assert len(found.cards) == (found.processes if machine.cards else 0)
    for finding in found.findings:
        assert finding.fix or finding.level is Level.NOTE, finding
    for reason in case["expect"].get("refused-for", ()):
        assert any(reason in one.what for one in of_level(found, Level.REFUSE)), found.findings
    if verdict == "refuse":
        assert all(one.why for one in of_level(found, Level.REFUSE)), found.findings


def test_a_card_without_kernels_is_not_used_if_another_has_them() -> None:
    old = a_card("Tesla P100-PCIE-16GB", "6.0", 16)
    found = check_run(a_config(), SHAPES["1B"], a_machine(old, H100), TODAY, OPEN, "trl")
    assert (found.passed, found.cards, found.precision) == (True, (1,), BF16)
    assert any(one.what == "not using Tesla P100-PCIE-16GB" for one in found.findings)


def test_one_process_runs_if_the_model_does_not_fit_on_every_card() -> None:
    small = a_card(memory=15, free=3 * GIB)
    config = a_config(sequence_len=2048)
    found = check_run(
        config,
        SHAPES["8B"],
        a_machine(small, T4),
        TODAY,
        OPEN,
        "trl",
        workarounds=frozenset({GQA_WORKAROUND}),
    )
    assert (found.passed, found.processes, found.cards) == (True, 1, (1,))
    (note,) = [one for one in found.findings if "1 process" in one.what]
    assert note.what == "training with 1 process on 1 of 2 cards"
    assert "which fits on only some of the cards" in note.why


def test_mixed_cards_train_in_the_precision_of_the_older() -> None:
    found = check_run(a_config(), SHAPES["1B"], a_machine(T4, H100), TODAY, OPEN, "trl")
    assert (found.processes, found.precision) == (2, FP16)


def test_memory_of_this_kernel_is_reported_with_fixes() -> None:
    config = a_config(sequence_len=2048)
    busy = a_machine(replace(H100, free=5 * GIB), kernel_memory=60 * GIB)
    one = refusal(check_run(config, SHAPES["8B"], busy, TODAY, OPEN, "trl"))
    assert one.what.endswith("and 5.0 GiB are free")
    assert one.why == "this kernel uses 60.0 GiB of it"
    assert "restart the kernel, or delete the model there and call `torch.cuda.empty_cache()`" in one.fix
    roomy = a_machine(replace(H100, free=50 * GIB), kernel_memory=20 * GIB)
    found = check_run(config, SHAPES["8B"], roomy, TODAY, OPEN, "trl")
    assert found.passed
    assert any("this kernel uses 20.0 GiB" in note.what for note in of_level(found, Level.NOTE))


def test_memory_of_other_processes_is_reported() -> None:
    config = a_config(sequence_len=2048)
    busy = a_machine(replace(H100, free=GIB), other_processes=("python (pid 123)",))
    one = refusal(check_run(config, SHAPES["8B"], busy, TODAY, OPEN, "trl"))
    assert (one.why, one.fix) == ("python (pid 123) uses the rest", "end what uses it")
    nameless = replace(busy, other_processes=())
    one = refusal(check_run(config, SHAPES["8B"], nameless, TODAY, OPEN, "trl"))
    assert one.why.startswith("other processes use 76.6 GiB")
    assert "`nvidia-smi`" in one.fix
    no_card = a_machine(ram=64 * GIB, ram_free=2 * GIB)
    one = refusal(check_run(a_config(), SHAPES["1B"], no_card, TODAY, OPEN, "trl"))
    assert one.fix.startswith("end them")


def test_a_model_that_is_too_large_is_refused_with_changes_that_fit() -> None:
    config = a_config(sequence_len=8192, micro_batch_size=2, gradient_checkpointing=False)
    l4 = a_machine(a_card("NVIDIA L4", "8.9", 22))
    one = refusal(check_run(config, SHAPES["8B"], l4, TODAY, OPEN, "trl"))
    assert "`gradient_checkpointing: true`" in one.fix
    assert "the largest parts are activations" in one.why
    as_told = replace(config, gradient_checkpointing=True)
    assert check_run(as_told, SHAPES["8B"], l4, TODAY, OPEN, "trl").passed
    one = refusal(check_run(a_config(sequence_len=512), SHAPES["70B"], l4, TODAY, OPEN, "trl"))
    assert one.fix.startswith("use a smaller model, or a card with more than 4")


def test_a_tight_fit_is_a_warning() -> None:
    config = a_config(sequence_len=2048)
    need = check_run(config, SHAPES["8B"], a_machine(H100), TODAY, OPEN, "trl").estimate
    assert need is not None
    full = a_machine(replace(H100, free=need.total + 2**20))
    (one,) = of_level(check_run(config, SHAPES["8B"], full, TODAY, OPEN, "trl"), Level.WARN)
    assert one.what.startswith("memory is tight")
    assert one.fix.startswith("it needs less with `sequence_len: ")
    shortest = replace(config, sequence_len=64)
    need = check_run(shortest, SHAPES["8B"], a_machine(H100), TODAY, OPEN, "trl").estimate
    assert need is not None
    full = a_machine(replace(H100, free=need.total))
    (one,) = of_level(check_run(shortest, SHAPES["8B"], full, TODAY, OPEN, "trl"), Level.WARN)
    assert one.fix == "run nothing else on this card"


def test_usable_memory_is_limited_by_free_memory_and_by_the_card() -> None:
    assert 14.5 < usable_memory(T4) / GIB < 14.6
    assert usable_memory(replace(T4, free=GIB)) == GIB


@pytest.mark.parametrize(
    ("model", "flash_attn", "card", "attention"),
    [
        ({}, None, H100, "sdpa"),
        ({}, "2.8.3", H100, "flash_attention_2"),
        ({}, "2.8.3", T4, "sdpa"),
        ({}, "2.8.3", None, "sdpa"),
        ({"model_type": "gemma2"}, None, H100, "eager"),
        ({"model_type": "gemma2"}, "2.8.3", H100, "flash_attention_2"),
    ],
)
def test_attention_is_an_implementation_that_runs(
    model: Mapping[str, Any], flash_attn: str | None, card: Card | None, attention: str
) -> None:
    shape = from_config({**LLAMA_1B, "rope_scaling": None, **model})
    machine = a_machine(*([card] if card is not None else []))
    found = check_run(a_config(), shape, machine, replace(TODAY, flash_attn=flash_attn), OPEN, "trl")
    assert found.attention == attention
    left = [one for one in found.findings if one.what == "not using flash-attn 2.8.3"]
    assert bool(left) is (card is T4 and flash_attn is not None)


def test_scores_count_if_no_kernel_shares_keys() -> None:
    config = a_config(sequence_len=8192)

    def total(stack: Stack, *workarounds: str, kv_heads: int = 8, card: Card = T4) -> int:
        shape = replace(SHAPES["1B"], kv_heads=kv_heads)
        found = check_run(
            config, shape, a_machine(card), stack, OPEN, "trl", workarounds=frozenset(workarounds)
        )
        assert found.estimate is not None
        return found.estimate.total

    assert total(TODAY) > 20 * GIB
    assert total(TODAY, GQA_WORKAROUND) < 5 * GIB
    assert total(TODAY, card=H100) < 5 * GIB
    assert total(TODAY, kv_heads=32) < 5 * GIB
    assert total(replace(TODAY, transformers="4.53.0")) < 5 * GIB  # it repeats them itself
    assert total(replace(TODAY, torch="2.4.1")) < 5 * GIB


def test_gemma_3_in_fp16_is_a_warning() -> None:
    shape = from_config({**LLAMA_1B, "model_type": "gemma3_text", "rope_scaling": None})
    stack = replace(TODAY, model_types=frozenset())
    (one,) = of_level(check_run(a_config(), shape, a_machine(T4), stack, OPEN, "trl"), Level.WARN)
    assert "overflow in fp16" in one.what
    assert check_run(a_config(), shape, a_machine(H100), stack, OPEN, "trl").findings == ()


def test_a_run_without_an_estimate_is_a_warning() -> None:
    shape = from_config({**LLAMA_1B, "model_type": "mixtral", "num_local_experts": 8})
    for one, why in ((shape, "a mixture of 8 experts"), (None, "could not be read")):
        found = check_run(a_config(), one, a_machine(H100, H100), TODAY, OPEN, "trl")
        assert (found.passed, found.processes, found.estimate) == (True, 1, None)
        (warning,) = of_level(found, Level.WARN)
        assert why in warning.why
        assert "`max_steps: 2`" in warning.fix


def test_an_estimate_for_unknown_layers_has_a_note() -> None:
    shape = from_config({**LLAMA_1B, "model_type": "newcomer"})
    stack = replace(TODAY, model_types=frozenset())
    found = check_run(a_config(), shape, a_machine(H100), stack, OPEN, "trl")
    assert found.passed
    assert any("are like Llama's" in one.what for one in found.findings)


def test_memory_for_loading_and_disk_space_are_checked() -> None:
    poor = a_machine(T4, ram=4 * GIB, ram_free=2 * GIB, disk_free=10**9)
    access = replace(OPEN, weights=2_500_000_000)
    found = check_run(a_config(), SHAPES["1B"], poor, TODAY, access, "trl")
    ram, disk = of_level(found, Level.REFUSE)
    assert ram.what.endswith("of the machine's memory, and 2.0 GiB are free")
    assert disk.what == "2.9 GB of disk space are needed, and 1.0 GB are free"
    assert "`HF_HOME`" in disk.fix
    full = check_run(
        a_config(), SHAPES["1B"], replace(poor, ram_free=8 * GIB, disk_free=1), TODAY, OPEN, "trl"
    )
    assert "HF_HOME" not in refusal(full).fix  # checkpoints would find no room, either


DISKS: list[tuple[int, int, list[tuple[str, str]]]] = [  # free for the run, for the hub's cache, in GB
    (5, 5, []),
    (5, 1, [("2.5 GB of disk space are needed for the hub's cache, and 1.0 GB are free", "`HF_HOME`")]),
    (0, 5, [("203 MB of disk space are needed for the run, and 0 bytes are free", "`--output-dir`")]),
]


@pytest.mark.parametrize(("for_run", "for_cache", "said"), DISKS)
def test_weights_need_space_on_the_disk_of_the_hubs_cache(
    for_run: int, for_cache: int, said: list[tuple[str, str]]
) -> None:
    machine = a_machine(H100, disk_free=for_run * 10**9, cache_free=for_cache * 10**9)
    access = replace(OPEN, weights=2_500_000_000)
    found = of_level(check_run(a_config(), SHAPES["1B"], machine, TODAY, access, "trl"), Level.REFUSE)
    assert [one.what for one in found] == [what for what, _ in said]
    assert all(fix in one.fix for one, (_, fix) in zip(found, said, strict=True))


def test_weights_need_disk_space_without_an_estimate() -> None:
    machine = a_machine(H100, disk_free=10**9)
    found = check_run(a_config(), None, machine, TODAY, replace(OPEN, weights=90 * 10**9), "trl")
    assert refusal(found).what == "90 GB of disk space are needed, and 1.0 GB are free"


def test_a_card_of_unknown_capability_is_a_warning() -> None:
    card = replace(T4, compute_capability=None)
    found = check_run(
        a_config(), SHAPES["1B"], a_machine(card), TODAY, OPEN, "trl", workarounds=frozenset({GQA_WORKAROUND})
    )
    assert (verdict_of(found), found.precision, found.attention) == ("warn", FP16, "sdpa")
    (warned,) = of_level(found, Level.WARN)
    assert warned.what == "training in fp16, because the compute capability of the Tesla T4 is unknown"
    without_cuda = check_run(
        a_config(), SHAPES["1B"], a_machine(card), replace(TODAY, arch_list=()), OPEN, "trl"
    )
    assert "built without CUDA" in refusal(without_cuda).what


def test_a_slice_of_a_card_is_a_warning() -> None:
    found = check_run(a_config(), SHAPES["1B"], a_machine(H100, has_slices=True), TODAY, OPEN, "trl")
    (warned,) = of_level(found, Level.WARN)
    assert warned.what.startswith(f"training on a slice of the {H100.name}")
    assert "nvidia-smi -L" in warned.fix


def test_a_small_model_on_a_cpu_has_no_warning() -> None:
    shape = replace(SHAPES["1B"], hidden=64, intermediate=128, layers=2, vocabulary=512)
    assert verdict_of(check_run(a_config(), shape, a_machine(), TODAY, OPEN, "trl")) == "pass"


def test_unknown_facts_of_machine_and_stack_are_accepted() -> None:
    stack = Stack(torch="2.4.0", transformers="unknown", trl="0.29.1", bitsandbytes="0.50.2")
    machine = Machine(cards=(), ram=64 * GIB, ram_free=60 * GIB, disk_free=10**12)
    found = check_run(a_config(), SHAPES["1B"], machine, stack, Access(status="local"), "trl")
    assert found.passed


# Once the tokens exist


def test_the_estimate_is_made_for_the_longest_row() -> None:
    config = a_config(sequence_len=8192, micro_batch_size=4, gradient_accumulation_steps=1)
    card = a_machine(a_card("NVIDIA L4", "8.9", 22))
    whole = check_run(config, SHAPES["8B"], card, TODAY, OPEN, "trl")
    assert not whole.passed
    short = check_run(config, SHAPES["8B"], card, TODAY, OPEN, "trl", longest=353)
    assert short.passed
    assert (
        short.estimate
        == check_run(replace(config, sequence_len=353), SHAPES["8B"], card, TODAY, OPEN, "trl").estimate
    )
    for longest, extra in ((9000, {}), (353, {"sample_packing": True}), (353, {"pad_to_sequence_len": True})):
        other = replace(config, extra=extra)
        found = check_run(other, SHAPES["8B"], card, TODAY, OPEN, "trl", longest=longest)
        assert found.estimate == whole.estimate
    assert " for rows of at most 8,192 tokens, and" in refusal(found).what


@pytest.mark.parametrize(
    ("rows", "length", "fits"),
    [((1, 16), 300, 16), ((2, 8), 300, 16), ((1, 2), 300, None), ((1, 16), 8192, 8), ((1, 12), 300, 4)],
)
def test_a_much_larger_micro_batch_is_noted(rows: tuple[int, int], length: int, fits: int | None) -> None:
    config = a_config(sequence_len=8192, micro_batch_size=rows[0], gradient_accumulation_steps=rows[1])
    machine = a_machine(a_card("NVIDIA L4", "8.9", 22))
    found = check_run(config, SHAPES["1B"], machine, TODAY, OPEN, "trl", longest=length)
    notes = [one for one in of_level(found, Level.NOTE) if "fits as well" in one.what]
    assert [one.what for one in notes] == ([f"`micro_batch_size: {fits}` fits as well"] if fits else [])
    for one in notes:
        assert one.why.endswith(f"a step still has {rows[0] * rows[1]} rows")
    before = check_run(config, SHAPES["1B"], machine, TODAY, OPEN, "trl")
    assert not any("fits as well" in one.what for one in before.findings)


# Rows at a time and steps; tokens of the longest row; the card's free GiB; the rows that are taken.
BATCHES: list[tuple[tuple[int, int], int, float, int]] = [
    ((1, 8), 300, 22, 8),
    ((1, 16), 300, 22, 16),
    ((2, 8), 300, 22, 16),
    ((1, 12), 300, 22, 4),
    ((1, 7), 300, 22, 1),
    ((1, 1), 300, 22, 1),
    ((1, 16), 8192, 22, 8),
    ((1, 16), 8192, 3, 1),
]


@pytest.mark.parametrize(("given", "longest", "free", "taken"), BATCHES)
def test_the_largest_batch_that_fits_is_taken_on_request(
    given: tuple[int, int], longest: int, free: float, taken: int
) -> None:
    config = a_config(sequence_len=8192, micro_batch_size=given[0], gradient_accumulation_steps=given[1])
    machine = a_machine(replace(a_card("NVIDIA L4", "8.9", 22), free=round(free * GIB)))
    found = check_run(config, SHAPES["1B"], machine, TODAY, OPEN, "trl", longest=longest, sizes_batch=True)
    steps = given[0] * given[1] // taken
    assert found.config == replace(config, micro_batch_size=taken, gradient_accumulation_steps=steps)
    notes = [one.what for one in found.findings if "rows at a time" in one.what]
    words = f"training {taken} rows at a time, with `gradient_accumulation_steps: {steps}`"
    assert notes == ([words] if taken > given[0] else [])
    assert not any("fits as well" in one.what for one in found.findings)
    asked = check_run(found.config, SHAPES["1B"], machine, TODAY, OPEN, "trl", longest=longest)
    assert (asked.config, asked.estimate) == (found.config, found.estimate)
    assert asked.estimate is not None
    assert free < 22 or asked.estimate.total <= 0.93 * free * GIB


@pytest.mark.parametrize("machine", [a_machine(), a_machine(T4, H100), a_machine(H100)])
@pytest.mark.parametrize("shape", [None, SHAPES["1B"], replace(SHAPES["1B"], is_known=False)])
def test_a_batch_is_sized_only_by_an_estimate_for_cards(machine: Machine, shape: ModelShape | None) -> None:
    config = a_config(sequence_len=512, micro_batch_size=1, gradient_accumulation_steps=8)
    found = check_run(config, shape, machine, TODAY, OPEN, "trl", sizes_batch=True)
    is_sized = shape == SHAPES["1B"] and bool(machine.cards)
    assert found.config.micro_batch_size == (8 if is_sized else 1)
    assert found.processes == max(1, len(machine.cards) if shape else 1)
