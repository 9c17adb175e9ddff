"""Checks of a run against the installed stack: model type, weights, runner, optimizer, torch build."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colablock._common.fs import nearest_beside
from colablock._common.text import memory_text, near, size_text
from colablock.environment.accelerator import NF4_ON_CPU, has_nf4
from colablock.training.preflight.facts import Access, Card, Finding, Level, Stack, is_older
from colablock.training.preflight.model_config import OUTER_LAYERS, ModelShape
from colablock.training.runs.config import OWN_DATA, Adapter, TrainConfig

__all__ = [
    "access_findings",
    "architecture_findings",
    "model_findings",
    "runner_findings",
    "runs_on",
    "weights_findings",
    "wrong_build",
]

#: The first transformers with a model type, from the ``models/`` folder of its releases since 4.41.
_FIRST_WITH_MODEL = {
    "gemma2": "4.42",
    "gemma3": "4.50",
    "gemma3_text": "4.50",
    "gemma3n": "4.53",
    "glm4": "4.52",
    "gpt_oss": "4.55",
    "llama4": "4.51",
    "olmo3": "4.57",
    "qwen3": "4.51",
    "qwen3_moe": "4.51",
    "qwen3_next": "4.57",
    "smollm3": "4.53",
}
#: The first transformers with a type of scaled rotary embeddings (``modeling_rope_utils.py``).
_FIRST_WITH_ROPE = {"llama3": "4.43", "yarn": "4.43", "longrope": "4.43"}

_BITS_OF_QLORA = 4.5  # of a quantised number, with its constants
# Names of axolotl besides those of transformers' trainer.
_AXOLOTL_OPTIMIZERS = frozenset(
    (
        "optimi_adamw",
        "ao_adamw_4bit",
        "ao_adamw_8bit",
        "ao_adamw_fp8",
        "adopt_adamw",
        "came_pytorch",
        "muon",
        "dion",
        "sinkgd",
        "flash_adamw",
        "flash_adam",
        "flash_sgd",
        "flash_sgdw",
        "flash_lion",
        "q_galore_adamw8bit",
        "lion_pytorch",
    )
)
_AXOLOTL_SCHEDULERS = frozenset(("one_cycle", "rex", "log_sweep"))
#: What plugins of axolotl need besides axolotl, and what is different without them.
_PLUGIN_NEEDS = {
    "cut_cross_entropy": (
        "axolotl's fork of cut-cross-entropy",
        "the loss has the same values, and needs more memory",
    ),
    "liger": ("liger-kernel", "the values are the same, and training needs more memory"),
    "llm_compressor": ("llmcompressor", "pruned weights do not stay pruned"),
}
_USUAL = {"optimizer": "adamw_torch", "lr_scheduler": "cosine"}
_HEADS = ("lm_head", "embed_out")  # output layers
_FIRST_WITHOUT_HEAD = "1.16"  # of trl
_TOKENS = "https://huggingface.co/settings/tokens"


def access_findings(access: Access) -> Iterator[Finding]:
    """Yield findings about the access to the model's files."""
    if access.status == "missing":
        nearest = nearest_beside(Path(access.repo), is_folder=True)
        place = Path(access.repo).parent / (nearest or "")
        fix = f"did you mean the folder `{place}`? Else check" if nearest else "check"
        fix += " the spelling of `--model`"
        if not access.has_token:
            fix += "; for a private model, set `HF_TOKEN` to a token that may read it"
        yield Finding(
            level=Level.REFUSE,
            what=f"the hub has no model `{access.repo}`",
            why=f"{access.url} does not exist, or is private"
            + (" and this token may not read it" if access.has_token else ""),
            fix=fix,
        )
    elif access.status == "gated":
        fix = f"accept its terms at {access.url}"
        if access.has_token:
            fix += " with the account of the token"
        else:
            fix += f", create a read token at {_TOKENS}, and set `HF_TOKEN` to it"
        yield Finding(
            level=Level.REFUSE,
            what=f"the model `{access.repo}` is gated",
            why="its files are only for accounts that have accepted its terms"
            + (", and the account of the token has not" if access.has_token else ", and there is no token"),
            fix=fix,
        )
    elif access.status == "unreachable":
        yield Finding(
            level=Level.WARN,
            what=f"the hub did not answer for `{access.repo}`",
            why="access to the model and the size of its weights are unknown; cached files still load",
            fix="try again when the network is back, or set `--model` to a folder with the model",
        )


def architecture_findings(
    model_config: Mapping[str, Any] | None, config: TrainConfig, stack: Stack
) -> Iterator[Finding]:
    """Yield a refusal for a model that is no causal language model; *model_config* is its ``config.json``.

    Data that axolotl reads itself may be for such a model.
    """
    kind = str((model_config or {}).get("model_type") or "")
    is_pair = (model_config or {}).get("is_encoder_decoder") is True
    is_causal = not stack.causal_types or kind in stack.causal_types
    if OWN_DATA in config.extra or (is_causal and not is_pair):
        return
    if kind in stack.model_types:
        yield Finding(
            level=Level.REFUSE,
            what=f"transformers {stack.transformers} has no causal language model of type `{kind}`",
            why="it is an encoder with a decoder"
            if is_pair
            else "the type is for other tasks, or for images",
            fix="use a decoder model, such as one of Llama, Qwen, Mistral or Gemma",
        )


def weights_findings(
    config: TrainConfig, access: Access, model_config: Mapping[str, Any] | None, room: int, where: str
) -> Iterator[Finding]:
    """Yield a refusal if the weights alone exceed *room*, for a model that is not estimated.

    The size of the files is a lower bound: QLoRA stores at least 4.5 of each 16 bits, and weights in
    float32 are loaded in half of their size.
    """
    values = model_config or {}
    is_quantised = isinstance(values.get("quantization_config"), Mapping)
    is_wide = str(values.get("dtype") or values.get("torch_dtype")) == "float32"
    share = 1.0 if is_quantised else (0.5 if is_wide else 1.0)
    if config.adapter is Adapter.QLORA and not is_quantised:
        share *= _BITS_OF_QLORA / 16
    least = round(access.size * share)
    if least > room:
        yield Finding(
            level=Level.REFUSE,
            what=f"the weights alone need at least {memory_text(least)} of {where}, "
            f"and {memory_text(room)} are free",
            why=f"the files of the model have {size_text(access.size)}",
            fix="use a smaller model, or a card with more memory"
            + ("" if config.adapter is Adapter.QLORA else "; `adapter: qlora` needs about a quarter"),
        )


def model_findings(config: TrainConfig, shape: ModelShape, stack: Stack) -> Iterator[Finding]:
    """Yield findings about the model: its type, rotary embeddings, quantisation and maximum length."""
    if stack.model_types and shape.model_type not in stack.model_types:
        yield _unknown_model(shape.model_type, stack)
    own = shape.model_type.startswith("phi3") and shape.rope_type == "su"  # its old name for longrope
    if shape.rope_type and stack.rope_types and shape.rope_type not in stack.rope_types and not own:
        first = _FIRST_WITH_ROPE.get(shape.rope_type)
        yield Finding(
            level=Level.REFUSE,
            what=f"transformers {stack.transformers} does not support this model's rotary embeddings",
            why=f"their type is `{shape.rope_type}`"
            + (f", which is new in transformers {first}" if first else ""),
            fix=_newer(stack, first, "a model with another type of rotary embeddings"),
        )
    if shape.quantized not in (None, "bitsandbytes"):
        is_qlora = config.adapter is Adapter.QLORA
        yield Finding(
            level=Level.REFUSE if is_qlora else Level.WARN,
            what=f"the model's weights are already quantised ({shape.quantized})",
            why="QLoRA itself quantises full-precision weights to NF4"
            if is_qlora
            else "the memory estimate does not cover such weights",
            fix="set `--model` to the model that it was quantised from",
        )
    yield from _target_findings(config, shape)
    if shape.max_positions is not None and config.sequence_len > shape.max_positions:
        yield Finding(
            level=Level.WARN,
            what=f"`sequence_len: {config.sequence_len}` exceeds the model's {shape.max_positions} positions",
            why="the model was not trained on longer sequences",
            fix=f"set `sequence_len: {shape.max_positions}`",
        )


def _target_findings(config: TrainConfig, shape: ModelShape) -> Iterator[Finding]:
    """Yield a refusal for layers in `lora_target_modules` that the model does not have.

    peft fails only if it finds none of them, and leaves the others without an adapter.
    """
    if not shape.is_known or shape.unsupported or shape.image_parameters or config.target_pattern:
        return
    own = [one.name for one in shape.linears]
    known = {*own, *OUTER_LAYERS}
    missing = [name for name in config.lora_target_modules if name.rpartition(".")[2] not in known]
    if missing:
        hint = near(missing[0], own)
        yield Finding(
            level=Level.REFUSE,
            what=f"the model has no layer {' and no layer '.join(f'`{name}`' for name in missing)}",
            why=f"the linear layers of `{shape.model_type}` are {', '.join(own)}",
            fix=f"correct `lora_target_modules`{f' ({hint})' if hint else ''}, or remove it for all of them",
        )


def _head_findings(config: TrainConfig, stack: Stack, runner: str) -> Iterator[Finding]:
    """Yield a refusal for an adapter on the output layer, which trl 1.16 refuses once weights are loaded."""
    if runner != "trl" or stack.trl is None or is_older(stack.trl, _FIRST_WITHOUT_HEAD):
        return
    pattern = config.target_pattern
    try:
        heads = [name for name in _HEADS if pattern and re.fullmatch(pattern, name)]
    except re.error:
        heads = []
    heads += [name for name in config.lora_target_modules if name.rpartition(".")[2] in _HEADS]
    if heads:
        yield Finding(
            level=Level.REFUSE,
            what=f"trl {stack.trl} trains no adapter on `{heads[0]}`",
            why="it computes the loss from the weights of the layer directly",
            fix=f"remove `{heads[0]}` from `lora_target_modules`, or use `--runner axolotl`",
        )


def _name_findings(config: TrainConfig, stack: Stack, runner: str) -> Iterator[Finding]:
    """Yield a refusal for a name of an optimizer or a schedule that the runner does not know."""
    is_axolotl = runner == "axolotl"
    for key, given, names, further in (
        ("optimizer", config.optimizer, stack.optimizers, _AXOLOTL_OPTIMIZERS),
        ("lr_scheduler", config.lr_scheduler, stack.schedulers, _AXOLOTL_SCHEDULERS),
    ):
        known = {*names, *(further if is_axolotl else ())}
        if names and given not in known:
            hint = near(given, sorted(known))
            is_other = given in further
            yield Finding(
                level=Level.REFUSE,
                what=f"`{key}: {given}` is unknown to {runner if is_axolotl else 'the trainer'}",
                why="it is one of axolotl"
                if is_other
                else f"transformers {stack.transformers} has {len(names)} of them",
                fix="use `--runner axolotl`, or another"
                if is_other
                else hint or f"for example `{_USUAL[key]}`",
            )


def _unknown_model(model_type: str, stack: Stack) -> Finding:
    first = _FIRST_WITH_MODEL.get(model_type)
    hint = near(model_type, sorted(stack.model_types))
    return Finding(
        level=Level.REFUSE,
        what=f"transformers {stack.transformers} does not support models of type `{model_type}`",
        why=f"the type is new in transformers {first}"
        if first
        else f"it is not among the {len(stack.model_types)} types that it supports"
        + (f"; {hint}" if hint else ""),
        fix=_newer(stack, first, "a model of a supported type"),
    )


def _newer(stack: Stack, first: str | None, other: str) -> str:
    if first is not None and is_older(stack.transformers, first):
        return f"use a matrix with transformers {first} or later, or {other}"
    return f"use {other}"


def runner_findings(
    config: TrainConfig, stack: Stack, runner: str, *, has_card: bool, is_prequantized: bool = False
) -> Iterator[Finding]:
    """Yield what the runner, the adapter and the optimizer need and the target does not have."""
    installed = stack.runners
    if runner in installed and installed[runner] is None:
        others = [name for name, version in installed.items() if version is not None]
        fix = f"apply a matrix that has {runner}"
        yield Finding(
            level=Level.REFUSE,
            what=f"the runner `{runner}` is not installed in the target",
            fix=f"{fix}, or use `--runner {others[0]}`" if others else fix,
        )
    yield from _name_findings(config, stack, runner)
    yield from _head_findings(config, stack, runner)
    if runner == "axolotl" and stack.axolotl is not None:
        yield from _plugin_findings(config, stack)
    yield from _library_findings(config, stack, has_card=has_card, is_prequantized=is_prequantized)
    missing = [one.value for one in config.report_to if one.value not in stack.reporters]
    if missing:
        names = " and ".join(missing)
        yield Finding(
            level=Level.REFUSE,
            what=f"{names} {'is' if len(missing) == 1 else 'are'} not installed in the target",
            why=f"`report_to` names {'it' if len(missing) == 1 else 'them'}",
            fix=f"run `colablock apply` with `{' '.join(f'--with {name}' for name in missing)}`, or remove "
            "`report_to`: the run folder has metrics and a loss curve in any case",
        )


def _library_findings(
    config: TrainConfig, stack: Stack, *, has_card: bool, is_prequantized: bool
) -> Iterator[Finding]:
    """Yield what the optimizer and 4-bit weights need of torchao and bitsandbytes."""
    name = config.optimizer
    is_torchao = name in ("adamw_torch_8bit", "adamw_torch_4bit")
    if is_torchao and stack.torchao is None:
        yield Finding(
            level=Level.REFUSE,
            what="torchao is not installed in the target",
            why=f"`optimizer: {name}` needs it",
            fix="set `optimizer: adamw_8bit`, which bitsandbytes has",
        )
    users = []  # of bitsandbytes
    if config.adapter is Adapter.QLORA or is_prequantized:
        users.append("`adapter: qlora`" if config.adapter is Adapter.QLORA else "a 4-bit model")
    is_paged = ("8bit" in name or "bnb" in name or name.startswith("paged_")) and not is_torchao
    is_paged = is_paged and name not in _AXOLOTL_OPTIMIZERS
    if is_paged:
        users.append(f"`optimizer: {config.optimizer}`")
    if users and stack.bitsandbytes is None:
        fix = "apply a QLoRA matrix, which has it"
        if config.adapter is Adapter.QLORA and not is_paged and not is_prequantized:
            fix += ", or `adapter: lora`"
        yield Finding(
            level=Level.REFUSE,
            what="bitsandbytes is not installed in the target",
            why=f"{' and '.join(users)} {'needs' if len(users) == 1 else 'need'} it",
            fix=fix,
        )
    elif (
        config.adapter is Adapter.QLORA
        and stack.bitsandbytes is not None
        and not has_nf4(stack.bitsandbytes, has_gpu=has_card)
    ):
        first = ".".join(map(str, NF4_ON_CPU))
        yield Finding(
            level=Level.REFUSE,
            what=f"bitsandbytes {stack.bitsandbytes} has no 4-bit layers for CPUs",
            why=f"they are new in {first}",
            fix=f"use a matrix with bitsandbytes {first} or later, `adapter: lora`, or a card",
        )
    if is_paged and not has_card:
        yield Finding(
            level=Level.REFUSE,
            what=f"`optimizer: {config.optimizer}` needs a card",
            why="its kernels need CUDA",
            fix="set `optimizer: adamw_torch`",
        )


def _plugin_findings(config: TrainConfig, stack: Stack) -> Iterator[Finding]:
    named = config.extra.get("plugins")
    if not stack.axolotl_plugins or not isinstance(named, Sequence) or isinstance(named, str):
        return
    for name in map(str, named):
        plugin = name.removeprefix("axolotl.integrations.").split(".")[0]
        is_axolotls = name.startswith("axolotl.integrations.") or plugin in _PLUGIN_NEEDS
        if not is_axolotls or plugin in stack.axolotl_plugins or _is_idle(plugin, config.extra):
            continue
        needs = _PLUGIN_NEEDS.get(plugin)
        fix = f"remove `{name}` from `plugins`"
        if needs is None:
            yield Finding(
                level=Level.REFUSE,
                what=f"axolotl {stack.axolotl} has no plugin `{name}`",
                fix=f"{fix}, or use a matrix with a newer axolotl",
            )
            continue
        project, without = needs
        yield Finding(
            level=Level.REFUSE,
            what=f"{project} is not installed in the target",
            why=f"the plugin `{name}` needs it, and the run would end while the model is loaded",
            fix=f"{fix}: {without}",
        )


def _is_idle(plugin: str, extra: Mapping[str, Any]) -> bool:
    """Whether the settings of a plugin turn it off."""
    if plugin == "liger":
        return not any(value for key, value in extra.items() if key.startswith("liger_"))
    return plugin == "cut_cross_entropy" and extra.get(plugin, True) is False


def runs_on(capability: tuple[int, int] | None, arch_list: Sequence[str]) -> bool:
    """Whether a torch with kernels for *arch_list* (``sm_75``, ``compute_90``) runs on a card.

    Machine code (``sm_``) runs on cards with the same major version and the same or a later minor
    version.  PTX (``compute_``) is compiled for any later card.  The suffix ``a`` limits code to
    that one capability, ``f`` to its family (CUDA Programming Guide, Compute Capabilities).  If
    the capability is unknown, any build with CUDA is taken to run.
    """
    if capability is None:
        return bool(arch_list)
    for arch in arch_list:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if found is None:
            continue
        kind, has = found[1], (int(found[2]), int(found[3]))
        if found[4] == "a":
            fits = capability == has
        elif kind == "sm" or found[4] == "f":
            fits = capability[0] == has[0] and capability[1] >= has[1]
        else:
            fits = capability >= has
        if fits:
            return True
    return False


def wrong_build(card: Card, stack: Stack) -> Finding:
    """Return the finding that the installed torch has no kernels for *card*, with builds that do if known."""
    if not stack.arch_list:
        return Finding(
            level=Level.REFUSE,
            what=f"torch {stack.torch} is built without CUDA, and this machine has a {card.name}",
            why="training would run on the CPU and leave the card idle",
            fix="apply the matrix again on this runtime: its variant for cards has a build with CUDA",
        )
    return Finding(
        level=Level.REFUSE,
        what=f"torch {stack.torch} has no kernels for the {card.name}",
        why=f"the card is {card.sm}, and the build has {', '.join(stack.arch_list)}; "
        "`torch.cuda.is_available()` is true nevertheless",
        fix=(card.compute_capability and _matching_build(card.compute_capability))
        or "use a runtime with another card",
    )


def _matching_build(capability: tuple[int, int]) -> str | None:
    """Return which builds of torch have kernels for a card (pytorch's RELEASE.md, release matrix)."""
    if (5, 0) <= capability < (7, 5):
        return (
            "use a torch built for CUDA 12.6 or earlier (on PyPI up to 2.7.1: the matrices `qlora-2024` "
            "and `qlora-2025`), or a runtime with another card"
        )
    if (10, 0) <= capability <= (12, 0):
        return "use torch 2.7 or later built for CUDA 12.8 or later (the matrix `qlora-2026`)"
    if (7, 5) <= capability <= (9, 0):
        return "use the torch from PyPI (the matrix `qlora-2026`)"
    return None
