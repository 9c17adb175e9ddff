"""What the installed stack says to a training run: the model's type, its weights, the runner, the wheels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from colablock._common.text import near
from colablock.training.preflight.facts import Access, Card, Finding, Level, Stack, is_older
from colablock.training.preflight.model_config import ModelShape
from colablock.training.runs.config import Adapter, TrainConfig

__all__ = ["access_findings", "model_findings", "runner_findings", "runs_on", "wrong_build"]

#: The first transformers that has a type of model, by the ``models/`` folder of its releases from 4.41 on.
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
#: Scaled rotary embeddings that came with ``modeling_rope_utils.py``.
_FIRST_WITH_ROPE = {"llama3": "4.43", "yarn": "4.43", "longrope": "4.43"}

_NF4_ON_CPU = "0.46"  # the first bitsandbytes whose 4-bit layers work without a card
_TOKENS = "https://huggingface.co/settings/tokens"


def access_findings(access: Access) -> Iterator[Finding]:
    """Yield what stands between this machine and the model's files."""
    if access.status == "missing":
        fix = "check how `base_model` is spelt"
        if not access.has_token:
            fix += "; a private model needs a token of someone who may read it, in `HF_TOKEN`"
        yield Finding(
            level=Level.REFUSE,
            what=f"the hub has no model `{access.repo}`",
            why=f"{access.url} is not there for whoever asks"
            + (" with this token" if access.has_token else ""),
            fix=fix,
        )
    elif access.status == "gated":
        fix = f"accept its terms at {access.url}"
        if access.has_token:
            fix += " with the account that the token is of"
        else:
            fix += f", make a token that may read at {_TOKENS} and put it into `HF_TOKEN`"
        yield Finding(
            level=Level.REFUSE,
            what=f"the model `{access.repo}` is gated",
            why="its files are for those who accepted its terms"
            + (", and the token's account has not" if access.has_token else ", and there is no token"),
            fix=fix,
        )
    elif access.status == "unreachable":
        yield Finding(
            level=Level.WARN,
            what=f"the hub did not answer for `{access.repo}`",
            why="whether the model may be read, and what it weighs, is not known; what is cached still loads",
            fix="try again when the network is back, or name a folder that holds the model in `base_model`",
        )


def model_findings(config: TrainConfig, shape: ModelShape, stack: Stack) -> Iterator[Finding]:
    """Yield what keeps the installed transformers from this model, or this config from it."""
    if stack.model_types and shape.model_type not in stack.model_types:
        yield _unknown_model(shape.model_type, stack)
    own = shape.model_type.startswith("phi3") and shape.rope_type == "su"  # its old name for longrope
    if shape.rope_type and stack.rope_types and shape.rope_type not in stack.rope_types and not own:
        first = _FIRST_WITH_ROPE.get(shape.rope_type)
        yield Finding(
            level=Level.REFUSE,
            what=f"transformers {stack.transformers} cannot read this model's rotary embeddings",
            why=f"they are of type `{shape.rope_type}`"
            + (f", which came with transformers {first}" if first else ""),
            fix=_newer(stack, first, "a model with another type of rotary embeddings"),
        )
    if shape.quantized not in (None, "bitsandbytes"):
        is_qlora = config.adapter is Adapter.QLORA
        yield Finding(
            level=Level.REFUSE if is_qlora else Level.WARN,
            what=f"the model's weights are quantised already ({shape.quantized})",
            why="QLoRA quantises whole weights to NF4 itself"
            if is_qlora
            else "what it takes to train beside such weights is not reckoned here",
            fix="name the model that it was made from in `base_model`",
        )
    if shape.max_positions is not None and config.sequence_len > shape.max_positions:
        yield Finding(
            level=Level.WARN,
            what=f"`sequence_len: {config.sequence_len}` exceeds the model's {shape.max_positions} positions",
            why="it was not trained on longer texts",
            fix=f"`sequence_len: {shape.max_positions}`",
        )


def _unknown_model(model_type: str, stack: Stack) -> Finding:
    first = _FIRST_WITH_MODEL.get(model_type)
    hint = near(model_type, sorted(stack.model_types))
    return Finding(
        level=Level.REFUSE,
        what=f"transformers {stack.transformers} does not know models of type `{model_type}`",
        why=f"it came with transformers {first}"
        if first
        else f"it is none of the {len(stack.model_types)} types that it has" + (f"; {hint}" if hint else ""),
        fix=_newer(stack, first, "a model of a type that it has"),
    )


def _newer(stack: Stack, first: str | None, other: str) -> str:
    if first is not None and is_older(stack.transformers, first):
        return f"a matrix with transformers {first} or later, or {other}"
    return other


def runner_findings(
    config: TrainConfig, stack: Stack, runner: str, *, has_card: bool, is_prequantized: bool = False
) -> Iterator[Finding]:
    """Yield what the runner needs and the target has not."""
    installed = {"trl": stack.trl, "axolotl": stack.axolotl}
    if runner in installed and installed[runner] is None:
        others = [name for name, version in installed.items() if version is not None]
        fix = f"apply a matrix that has {runner}"
        yield Finding(
            level=Level.REFUSE,
            what=f"the runner `{runner}` is not installed in the target",
            fix=f"{fix}, or take `--runner {others[0]}`" if others else fix,
        )
    wants = []
    if config.adapter is Adapter.QLORA or is_prequantized:
        wants.append("`adapter: qlora`" if config.adapter is Adapter.QLORA else "a model in 4 bits")
    is_paged = "8bit" in config.optimizer or config.optimizer.startswith("paged_")
    if is_paged:
        wants.append(f"`optimizer: {config.optimizer}`")
    if wants and stack.bitsandbytes is None:
        fix = "apply a matrix that has it (any for QLoRA)"
        if config.adapter is Adapter.QLORA and not is_paged and not is_prequantized:
            fix += ", or `adapter: lora`"
        yield Finding(
            level=Level.REFUSE,
            what="bitsandbytes is not installed in the target",
            why=f"{' and '.join(wants)} needs it" if len(wants) == 1 else f"{' and '.join(wants)} need it",
            fix=fix,
        )
    elif not has_card and config.adapter is Adapter.QLORA and is_older(stack.bitsandbytes, _NF4_ON_CPU):
        yield Finding(
            level=Level.REFUSE,
            what=f"bitsandbytes {stack.bitsandbytes} has no 4-bit layers for a CPU",
            why=f"they came with {_NF4_ON_CPU}",
            fix=f"a matrix with bitsandbytes {_NF4_ON_CPU} or later, `adapter: lora`, or a card",
        )
    missing = [one.value for one in config.report_to if one.value not in stack.reporters]
    if missing:
        names = " and ".join(missing)
        yield Finding(
            level=Level.REFUSE,
            what=f"{names} {'is' if len(missing) == 1 else 'are'} not installed in the target",
            why=f"`report_to` names {'it' if len(missing) == 1 else 'them'}",
            fix=f"`colablock apply` with `{' '.join(f'--with {name}' for name in missing)}`, or leave "
            "`report_to` out: the run keeps metrics and a curve itself",
        )
    if is_paged and not has_card:
        yield Finding(
            level=Level.REFUSE,
            what=f"`optimizer: {config.optimizer}` works on a card only",
            why="its kernels are written for CUDA",
            fix="`optimizer: adamw_torch`",
        )


def runs_on(capability: tuple[int, int] | None, arch_list: Sequence[str]) -> bool:
    """Whether a torch with kernels for *arch_list* (``sm_75``, ``compute_90``) runs on a card.

    Machine code runs on cards of the same major version and the same or a
    later minor one; PTX (``compute_``) is compiled for any later card.  What is
    marked ``a`` runs on that very card, ``f`` on its family (CUDA's guide of compute capabilities).
    Of a card whose capability is not known nothing speaks against it but a build without CUDA.
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
    """Return that torch's wheels have no kernels for *card*, and which builds do, where that is known."""
    if not stack.arch_list:
        return Finding(
            level=Level.REFUSE,
            what=f"torch {stack.torch} is built without CUDA, and there is a {card.name}",
            why="training would run on the CPU beside an idle card",
            fix="apply the matrix again on this runtime: its variant for a card brings a build with CUDA",
        )
    return Finding(
        level=Level.REFUSE,
        what=f"torch {stack.torch} has no kernels for the {card.name}",
        why=f"the card is {card.sm}, and the build has {', '.join(stack.arch_list)}; "
        "`torch.cuda.is_available()` is true all the same",
        fix=(card.compute_capability and _build(card.compute_capability))
        or "choose a runtime with another card",
    )


def _build(capability: tuple[int, int]) -> str | None:
    """Return which builds of torch have kernels for a card, by pytorch's release matrix (its RELEASE.md)."""
    if (5, 0) <= capability < (7, 5):
        return (
            "a torch built for CUDA 12.6 or earlier has them (the registry's own up to 2.7.1: "
            "the matrices `qlora-2024` and `qlora-2025`), or choose a runtime with another card"
        )
    if (10, 0) <= capability <= (12, 0):
        return "a torch of 2.7 or later that is built for CUDA 12.8 or later has them (`qlora-2026`)"
    if (7, 5) <= capability <= (9, 0):
        return "the registry's own torch has them (`qlora-2026`)"
    return None
