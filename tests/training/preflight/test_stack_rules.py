"""Checks of a run against the installed stack and the access to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.training.preflight.facts import Access, Level, Stack
from colablock.training.preflight.model_config import from_config
from colablock.training.preflight.stack_rules import runs_on
from colablock.training.runs.config import Adapter, MetricsTarget, TrainConfig
from tests.support.training import (
    H100,
    LLAMA_1B,
    LLAMA_8B,
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


@pytest.mark.parametrize(
    ("access", "what", "fix"),
    [
        (Access(status="gated"), "gated", "and set `HF_TOKEN` to it"),
        (Access(status="gated", has_token=True), "gated", "with the account of the token"),
        (Access(status="missing"), "has no model", "for a private model, set `HF_TOKEN`"),
        (Access(status="missing", has_token=True), "has no model", "check the spelling of `--model`"),
        (
            Access(status="missing"),
            "has no model",
            "did you mean the folder `a/b.d`? Else check the spelling",
        ),
        (Access(status="unreachable"), "did not answer", "try again"),
    ],
)
def test_access_problems_are_reported(
    access: Access, what: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").touch()  # a file is no model
    if "a/b.d" in fix:
        (tmp_path / "a" / "b.d").mkdir()
    access = replace(access, repo="a/b", url="https://huggingface.co/a/b")
    found = check_run(a_config(), SHAPES["1B"], a_machine(H100), TODAY, access, "trl")
    (one,) = [one for one in found.findings if one.level is not Level.NOTE]
    assert (one.level is Level.WARN) is (access.status == "unreachable")
    assert what in one.what
    assert fix in one.fix
    assert ("did you mean" in one.fix) == ("did you mean" in fix)


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
            "set `--model` to the model that it was quantised from",
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


# Values of the config


@pytest.mark.parametrize(
    ("shape", "modules", "missing"),
    [
        ("1B", ["q_proj", "v_proj"], None),
        ("1B", ["model.layers.0.self_attn.q_proj", "embed_tokens"], None),
        ("1B", [], None),
        ("1B", [r".*\\.mlp\\..*"], None),  # a pattern, which peft applies
        ("1B", ["query_key_value"], "the model has no layer `query_key_value`"),
        ("1B", ["q_proj", "wq"], "the model has no layer `wq`"),  # peft would leave it out silently
        ("1B", ["a", "b"], "the model has no layer `a` and no layer `b`"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(
    shape: str, modules: list[str], missing: str | None
) -> None:
    config = a_config(lora_target_modules=tuple(modules))
    found = check_run(config, SHAPES[shape], a_machine(H100), TODAY, OPEN, "trl")
    assert [one.what for one in of_level(found, Level.REFUSE)] == ([missing] if missing else [])
    if missing:
        assert "q_proj, k_proj, v_proj, o_proj, gate_proj" in refusal(found).why


@pytest.mark.parametrize(
    ("modules", "trl", "runner", "head"),
    [
        (["q_proj", "lm_head"], "1.16.0", "trl", "lm_head"),
        (["model.lm_head"], "1.17.2", "trl", "model.lm_head"),
        (["embed_out"], "1.16.0", "trl", "embed_out"),
        ([".*"], "1.16.0", "trl", "lm_head"),  # patterns match whole names
        ([r"(.*\.)?lm_head|q_proj"], "1.16.0", "trl", "lm_head"),
        ([r".*\.mlp\..*"], "1.16.0", "trl", None),
        (["(lm_head"], "1.16.0", "trl", None),  # no pattern, which peft says
        (["q_proj"], "1.16.0", "trl", None),
        (["lm_head"], "0.29.1", "trl", None),
        (["lm_head"], "1.16.0", "axolotl", None),
    ],
)
def test_an_adapter_on_the_head_is_refused_where_trl_refuses_it(
    modules: list[str], trl: str, runner: str, head: str | None
) -> None:
    config = a_config(lora_target_modules=tuple(modules))
    stack = replace(TODAY, trl=trl, axolotl="0.18.0")
    found = check_run(config, SHAPES["1B"], a_machine(H100), stack, OPEN, runner)
    refused = [one.what for one in of_level(found, Level.REFUSE) if "trains no adapter" in one.what]
    assert refused == ([f"trl {trl} trains no adapter on `{head}`"] if head else [])


def test_layers_of_an_unknown_model_are_not_judged() -> None:
    shape = from_config({**LLAMA_1B, "model_type": "newcomer"})
    config = a_config(lora_target_modules=("wq",))
    stack = replace(TODAY, model_types=frozenset())
    assert check_run(config, shape, a_machine(H100), stack, OPEN, "trl").passed


NAMED = replace(
    TODAY,
    optimizers=frozenset({"adamw_torch", "adamw_torch_fused", "adamw_torch_8bit", "adamw_bnb_8bit", "sgd"}),
    schedulers=frozenset({"cosine", "linear", "constant_with_warmup"}),
)


@pytest.mark.parametrize(
    ("changes", "runner", "what", "fix"),
    [
        ({"optimizer": "adamw_bnb_8bit"}, "trl", None, ""),
        (
            {"optimizer": "adam_torch"},
            "trl",
            "`optimizer: adam_torch` is unknown",
            "did you mean `adamw_torch`?",
        ),
        ({"optimizer": "zzz"}, "trl", "`optimizer: zzz` is unknown", "for example `adamw_torch`"),
        ({"optimizer": "muon"}, "trl", "`optimizer: muon` is unknown", "use `--runner axolotl`"),
        ({"optimizer": "muon"}, "axolotl", None, ""),
        ({"optimizer": "adamw_torch_8bit"}, "trl", "torchao is not installed", "set `optimizer: adamw_8bit`"),
        ({"lr_scheduler": "cosin"}, "trl", "`lr_scheduler: cosin` is unknown", "did you mean `cosine`?"),
        ({"lr_scheduler": "rex"}, "trl", "`lr_scheduler: rex` is unknown", "use `--runner axolotl`"),
        ({"lr_scheduler": "rex"}, "axolotl", None, ""),
    ],
)
def test_names_of_optimizers_and_schedules_are_those_of_the_target(
    changes: dict[str, Any], runner: str, what: str | None, fix: str
) -> None:
    stack = replace(NAMED, axolotl="0.18.0")
    found = check_run(a_config(**changes), SHAPES["1B"], a_machine(H100), stack, OPEN, runner)
    refused = of_level(found, Level.REFUSE)
    assert len(refused) == (what is not None)
    if what:
        assert refused[0].what.startswith(what)
        assert refused[0].fix.startswith(fix)
    unknown = check_run(a_config(optimizer="zzz"), SHAPES["1B"], a_machine(H100), TODAY, OPEN, "trl")
    assert unknown.passed  # the target could not tell its names


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "t5", "is_encoder_decoder": True}, True),
        ({"model_type": "bart", "is_encoder_decoder": True}, True),  # with a decoder that is a causal model
        ({"model_type": "qwen2_vl"}, True),
        ({"model_type": "unheard-of"}, False),  # told as an unknown type
        (None, False),
    ],
)
def test_models_that_are_no_causal_language_models_are_refused(
    model: dict[str, Any] | None, refused: bool
) -> None:
    types = frozenset({"llama", "t5", "bart", "qwen2_vl"})
    stack = replace(TODAY, model_types=types, causal_types=frozenset({"llama", "bart"}))
    found = check_run(a_config(), None, a_machine(H100), stack, OPEN, "trl", model_config=model)
    assert found.passed is not refused
    if refused:
        assert "no causal language model" in refusal(found).what
    own = a_config(extra={"axolotl_data": {}})
    stack = replace(stack, axolotl="0.18.0")
    assert check_run(own, None, a_machine(H100), stack, OPEN, "axolotl", model_config=model).passed


CCE = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"plugins": [CCE]}, "axolotl's fork of cut-cross-entropy is not installed in the target"),
        ({"plugins": ["cut_cross_entropy.CutCrossEntropyPlugin"]}, "axolotl's fork of cut-cross-entropy"),
        ({"plugins": [CCE], "cut_cross_entropy": False}, None),
        ({"plugins": [LIGER], "liger_rope": True}, "liger-kernel is not installed in the target"),
        ({"plugins": [LIGER], "liger_rope": False}, None),
        ({"plugins": ["axolotl.integrations.grokfast.GrokfastPlugin"]}, None),
        ({"plugins": ["axolotl.integrations.mora.MoraPlugin"]}, "axolotl 0.18.0 has no plugin `axolotl."),
        ({"plugins": ["my_own.Plugin"]}, None),
        ({"plugins": CCE}, None),  # axolotl tells what is wrong with it
    ],
)
def test_plugins_whose_requirements_are_missing_are_refused(extra: dict[str, Any], what: str | None) -> None:
    stack = replace(TODAY, axolotl="0.18.0", axolotl_plugins=frozenset({"grokfast"}))
    config = a_config(extra=extra)
    found = check_run(config, SHAPES["1B"], a_machine(H100), stack, OPEN, "axolotl")
    assert found.passed is (what is None)
    if what is not None:
        assert refusal(found).what.startswith(what)
        assert refusal(found).fix.startswith(f"remove `{extra['plugins'][0]}` from `plugins`")
    unknown = replace(stack, axolotl_plugins=frozenset())
    assert check_run(config, SHAPES["1B"], a_machine(H100), unknown, OPEN, "axolotl").passed


@pytest.mark.parametrize(
    ("adapter", "size", "model", "fits"),
    [
        (Adapter.QLORA, 45, {}, True),
        (Adapter.QLORA, 60, {}, False),  # 4.5 bits of 16
        (Adapter.LORA, 14, {}, True),
        (Adapter.LORA, 16, {}, False),
        (Adapter.LORA, 28, {"torch_dtype": "float32"}, True),
        (Adapter.QLORA, 16, {"quantization_config": {"quant_method": "mxfp4"}}, False),
        (Adapter.QLORA, 0, {}, True),  # unknown
    ],
)
def test_weights_that_exceed_the_card_are_refused_without_an_estimate(
    adapter: Adapter, size: int, model: dict[str, Any], fits: bool
) -> None:
    shape = from_config({**LLAMA_1B, "model_type": "mixtral", "num_local_experts": 8})
    access = replace(OPEN, size=size * 2**30)
    found = check_run(
        a_config(adapter=adapter), shape, a_machine(T4), TODAY, access, "trl", model_config=model
    )
    assert found.passed is fits
    if not fits:
        assert refusal(found).what.startswith("the weights alone need at least")
        assert f"{size * 2**30 / 1e9:.0f} GB" in refusal(found).why
