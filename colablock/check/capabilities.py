"""What a matrix claims to be capable of, judged from versions and cards alone: a live proof says more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.accelerator import NF4_ON_CPU, Accelerator, has_nf4

__all__ = ["CAPABILITIES", "HOLDS", "judge_capability"]

HOLDS = "holds"

_BITSANDBYTES = canonicalize_name("bitsandbytes")
_TRANSFORMERS = canonicalize_name("transformers")
_NF4_CAPABILITY = (6, 0)  # bitsandbytes, installation guide: NF4 and FP4 from Pascal on
_LLAMA3_ROPE = Version("4.43")  # transformers 4.43.0, release notes: Llama 3.1

Versions = Mapping[NormalizedName, str]


def judge_capability(claim: str, versions: Versions, accelerator: Accelerator) -> str:
    """Return ``holds``, ``does not hold: ...`` or ``not known: ...`` for one of a matrix's capabilities.

    *versions* are those of the stack, by name.
    """
    judge = CAPABILITIES.get(claim)
    return judge(versions, accelerator) if judge else f"not known: no rule for `{claim}`"


def _nf4(versions: Versions, accelerator: Accelerator) -> str:
    there = versions.get(_BITSANDBYTES)
    if there is None:
        return "does not hold: bitsandbytes is no part of the stack"
    if accelerator.kind != "cuda":
        if has_nf4(there, has_gpu=False):
            return HOLDS
        first = ".".join(map(str, NF4_ON_CPU))
        return f"does not hold: bitsandbytes {there} quantises on CUDA only, {first} on the CPU too"
    for device in accelerator.devices:
        if device.capability is None:
            return f"not known: nobody tells the compute capability of the {device.name}"
        if device.capability < _NF4_CAPABILITY:
            return (
                f"does not hold: {device.name} has compute capability {device.compute_capability}, below 6.0"
            )
    return HOLDS


def _llama3_rope(versions: Versions, accelerator: Accelerator) -> str:  # noqa: ARG001 - as the others
    there = versions.get(_TRANSFORMERS)
    if there is None:
        return "does not hold: transformers is no part of the stack"
    if Version(there) >= _LLAMA3_ROPE:
        return HOLDS
    return f"does not hold: transformers {there} reads no llama3 rope scaling, 4.43 does"


CAPABILITIES: Mapping[str, Callable[[Versions, Accelerator], str]] = {
    "llama3-rope": _llama3_rope,
    "nf4": _nf4,
}
