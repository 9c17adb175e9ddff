from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from colablock.training.preflight.checks import GQA_WORKAROUND, Preflight, check_run, usable_memory
from colablock.training.preflight.facts import (
    BF16,
    FP16,
    FP32,
    Access,
    Card,
    Finding,
    Level,
    Machine,
    Stack,
    precision_for,
)
from colablock.training.preflight.model_config import from_config
from colablock.training.preflight.stack_rules import runs_on
from colablock.training.runs.config import Adapter, MetricsTarget, TrainConfig
from tests.support.paths import CASES
from tests.support.training import (
    GIB,
    LLAMA_1B,
    LLAMA_8B,
    OPEN,
    SHAPES,
    STACKS,
    a_card,
    a_config,
    a_machine,
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


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ([], FP32),
        ([(6, 0)], FP16),
        ([(7, 5)], FP16),
        ([(7, 5), (8, 0)], FP16),
        ([(8, 0)], BF16),
        ([(8, 9)], BF16),
        ([(12, 0)], BF16),
        ([None], FP16),  # what every card can
        ([(9, 0), None], FP16),
    ],
)
def test_precision_follows_from_compute_capability(
    capabilities: list[tuple[int, int] | None], precision: object
) -> None:
    assert precision_for(capabilities) is precision


def test_a_precision_sets_every_type_and_flag() -> None:
    assert (BF16.compute, BF16.adapters) == ("bfloat16", "bfloat16")
    assert (BF16.bf16, BF16.fp16, BF16.cast_trainable, BF16.size) == (True, False, False, 2)
    assert (FP16.compute, FP16.adapters) == ("float16", "float32")
    assert (FP16.bf16, FP16.fp16, FP16.cast_trainable, FP16.size) == (False, True, True, 2)
    assert (FP32.bf16, FP32.fp16, FP32.cast_trainable, FP32.size) == (False, False, True, 4)


@pytest.mark.parametrize(
    ("capability", "arch_list", "runs"),
    [
        ((6, 0), ["sm_75", "sm_80"], False),
        ((6, 1), ["sm_60"], True),  # machine code of the same major version
        ((6, 0), ["sm_61"], False),
        ((8, 9), ["sm_86"], True),
        ((9, 0), ["sm_86"], False),
        ((9, 0), ["sm_86", "compute_86"], True),  # PTX is compiled for any later card
        ((7, 5), ["compute_86"], False),
        ((12, 0), ["sm_90", "sm_100"], False),
        ((12, 0), ["sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((11, 0), ["compute_100f"], False),
        ((7, 5), [], False),
        ((9, 0), ["gfx90a"], False),
    ],
)
def test_builds_run_on_the_cards_of_their_arch_list(
    capability: tuple[int, int], arch_list: list[str], runs: bool
) -> None:
    assert runs_on(capability, arch_list) is runs


def test_a_card_without_kernels_is_refused_with_the_builds_that_have_them() -> None:
    p100 = a_card("Tesla P100-PCIE-16GB", "6.0", 16)
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(p100), TODAY, OPEN, "trl"))
    assert one.what == "torch 2.11.0+cu130 has no kernels for the Tesla P100-PCIE-16GB"
    assert one.why.startswith("the card is sm_60, and the build has sm_75, sm_80")
    assert "CUDA 12.6 or earlier" in one.fix
    assert "`qlora-2025`" in one.fix
    g4 = a_card("RTX PRO 6000", "12.0", 95)
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(g4), STACKS["2025"], OPEN, "trl"))
    assert "built for CUDA 12.8 or later" in one.fix
    kepler = a_card("Tesla K80", "3.7", 12)
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(kepler), TODAY, OPEN, "trl"))
    assert one.fix == "use a runtime with another card"
    odd = replace(TODAY, arch_list=("sm_75",))
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(H100), odd, OPEN, "trl"))
    assert "`qlora-2026`" in one.fix


def test_a_build_without_cuda_is_refused_on_a_machine_with_a_card() -> None:
    stack = replace(TODAY, torch="2.11.0+cpu", arch_list=())
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(T4), stack, OPEN, "trl"))
    assert "is built without CUDA" in one.what


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
    ("access", "what", "fix"),
    [
        (Access(status="gated"), "gated", "and set `HF_TOKEN` to it"),
        (Access(status="gated", has_token=True), "gated", "with the account of the token"),
        (Access(status="missing"), "has no model", "for a private model, set `HF_TOKEN`"),
        (Access(status="missing", has_token=True), "has no model", "check the spelling of `base_model`"),
        (Access(status="unreachable"), "did not answer", "try again"),
    ],
)
def test_access_problems_are_reported(access: Access, what: str, fix: str) -> None:
    access = replace(access, repo="a/b", url="https://huggingface.co/a/b")
    found = check_run(a_config(), SHAPES["1B"], a_machine(H100), TODAY, access, "trl")
    (one,) = [one for one in found.findings if one.level is not Level.NOTE]
    assert (one.level is Level.WARN) is (access.status == "unreachable")
    assert what in one.what
    assert fix in one.fix


OLD = replace(
    TODAY,
    transformers="4.41.0",
    model_types=frozenset({"llama", "qwen2"}),
    rope_types=frozenset({"linear", "dynamic"}),
)
QWEN_3 = {**LLAMA_1B, "model_type": "qwen3", "rope_scaling": None}
PHI_3 = {**LLAMA_1B, "model_type": "phi3", "rope_scaling": {"type": "su"}}


@pytest.mark.parametrize(
    ("stack", "model", "why", "fix"),
    [
        (OLD, LLAMA_1B, "which is new in transformers 4.43", "a matrix with transformers 4.43 or later"),
        (OLD, QWEN_3, "the type is new in transformers 4.51", "a matrix with transformers 4.51 or later"),
        (
            TODAY,
            {**LLAMA_1B, "model_type": "quen2"},
            "did you mean `qwen2`?",
            "a model of a supported type",
        ),
        (TODAY, {**LLAMA_1B, "model_type": "olmo3"}, "4.57", "a model of a supported type"),
        (
            OLD,
            {**QWEN_3, "model_type": "unheard"},
            "it is not among the 2 types",
            "a model of a supported type",
        ),
        (
            TODAY,
            {**LLAMA_1B, "rope_scaling": {"type": "new"}},
            "their type is `new`",
            "a model with another type of rotary embeddings",
        ),
        (
            TODAY,
            {**LLAMA_1B, "quantization_config": {"quant_method": "gptq"}},
            "QLoRA itself quantises full-precision weights",
            "set `base_model` to the model that it was quantised from",
        ),
    ],
)
def test_a_model_that_the_stack_cannot_train_is_refused(
    stack: Stack, model: Mapping[str, Any], why: str, fix: str
) -> None:
    one = refusal(check_run(a_config(), from_config(model), a_machine(H100), stack, OPEN, "trl"))
    assert why in one.why
    assert fix in one.fix


def test_phi_3_has_its_own_rotary_embeddings_in_old_transformers() -> None:
    stack = replace(OLD, model_types=frozenset({"phi3"}))
    assert check_run(a_config(), from_config(PHI_3), a_machine(H100), stack, OPEN, "trl").passed


def test_prequantized_weights_need_bitsandbytes() -> None:
    shape = from_config({**LLAMA_8B, "quantization_config": {"quant_method": "bitsandbytes"}})
    lora, qlora = a_config(adapter=Adapter.LORA), a_config()
    found = check_run(lora, shape, a_machine(H100), TODAY, OPEN, "trl")
    assert found.passed
    assert found.estimate == check_run(qlora, shape, a_machine(H100), TODAY, OPEN, "trl").estimate
    one = refusal(check_run(lora, shape, a_machine(H100), replace(TODAY, bitsandbytes=None), OPEN, "trl"))
    assert one.why == "a 4-bit model needs it"
    gptq = replace(shape, quantized="gptq")
    assert verdict_of(check_run(lora, gptq, a_machine(H100), TODAY, OPEN, "trl")) == "warn"


def test_a_sequence_longer_than_the_model_supports_is_a_warning() -> None:
    shape = replace(SHAPES["1B"], max_positions=2048)
    (one,) = of_level(
        check_run(a_config(sequence_len=4096), shape, a_machine(H100), TODAY, OPEN, "trl"), Level.WARN
    )
    assert one.fix == "set `sequence_len: 2048`"


@pytest.mark.parametrize(
    ("stack", "config", "what", "fix"),
    [
        ({"trl": None}, a_config(), "`trl` is not installed", "apply a matrix that has trl"),
        ({"trl": None, "axolotl": "0.18.0"}, a_config(), "`trl` is not", "or use `--runner axolotl`"),
        ({"bitsandbytes": None}, a_config(), "bitsandbytes is not installed", "`adapter: lora`"),
        (
            {"bitsandbytes": None},
            a_config(optimizer="adamw_8bit"),
            "bitsandbytes is not",
            "apply a QLoRA matrix",
        ),
    ],
)
def test_missing_projects_are_refused(
    stack: Mapping[str, Any], config: TrainConfig, what: str, fix: str
) -> None:
    one = refusal(check_run(config, SHAPES["1B"], a_machine(H100), replace(TODAY, **stack), OPEN, "trl"))
    assert what in one.what
    assert fix in one.fix


def test_a_cpu_needs_a_newer_bitsandbytes_and_another_optimizer() -> None:
    older = replace(TODAY, bitsandbytes="0.45.5")
    one = refusal(check_run(a_config(), SHAPES["1B"], a_machine(), older, OPEN, "trl"))
    assert one.what == "bitsandbytes 0.45.5 has no 4-bit layers for CPUs"
    assert check_run(a_config(adapter=Adapter.LORA), SHAPES["1B"], a_machine(), older, OPEN, "trl").passed
    paged = a_config(optimizer="paged_adamw_8bit")
    one = refusal(check_run(paged, SHAPES["1B"], a_machine(), TODAY, OPEN, "trl"))
    assert one.fix == "set `optimizer: adamw_torch`"


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
    (0, 5, [("203 MB of disk space are needed for the run, and 0 bytes are free", "`output_dir`")]),
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


@pytest.mark.parametrize(
    ("report_to", "installed", "said"),
    [
        ((MetricsTarget.WANDB,), {"wandb"}, None),
        ((MetricsTarget.WANDB,), {"tensorboard"}, "wandb is not installed in the target"),
        (
            (MetricsTarget.WANDB, MetricsTarget.TENSORBOARD),
            set(),
            "wandb and tensorboard are not installed in the target",
        ),
    ],
)
def test_reporters_have_to_be_installed(
    report_to: tuple[MetricsTarget, ...], installed: set[str], said: str | None
) -> None:
    stack = replace(TODAY, reporters=frozenset(installed))
    found = check_run(a_config(report_to=report_to), SHAPES["1B"], a_machine(H100), stack, OPEN, "trl")
    assert [one.what for one in of_level(found, Level.REFUSE)] == ([said] if said else [])


def test_a_small_model_on_a_cpu_has_no_warning() -> None:
    shape = replace(SHAPES["1B"], hidden=64, intermediate=128, layers=2, vocabulary=512)
    assert verdict_of(check_run(a_config(), shape, a_machine(), TODAY, OPEN, "trl")) == "pass"


def test_unknown_facts_of_machine_and_stack_are_accepted() -> None:
    stack = Stack(torch="2.4.0", transformers="unknown", trl="0.29.1", bitsandbytes="0.50.2")
    machine = Machine(cards=(), ram=64 * GIB, ram_free=60 * GIB, disk_free=10**12)
    found = check_run(a_config(), SHAPES["1B"], machine, stack, Access(status="local"), "trl")
    assert found.passed
