"""Check the capabilities that a matrix declares, by versions and cards alone.  A live proof is stronger."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.accelerator import NF4_ON_CPU, Accelerator, has_nf4

__all__ = ["CAPABILITIES", "HOLDS", "check_capability"]

HOLDS = "holds"

_BITSANDBYTES = canonicalize_name("bitsandbytes")
_TRANSFORMERS = canonicalize_name("transformers")
_NF4_CAPABILITY = (6, 0)  # bitsandbytes, installation guide: NF4 and FP4 from Pascal on
_LLAMA3_ROPE = Version("4.43")  # transformers 4.43.0, release notes: Llama 3.1

Versions = Mapping[NormalizedName, str]


def check_capability(capability: str, versions: Versions, accelerator: Accelerator) -> str:
    """Return ``holds``, ``does not hold: ...`` or ``not known: ...`` for a declared capability.

    *versions* are those of the stack, by name.
    """
    rule = CAPABILITIES.get(capability)
    return rule(versions, accelerator) if rule else f"not known: no rule for `{capability}`"


def _nf4(versions: Versions, accelerator: Accelerator) -> str:
    installed = versions.get(_BITSANDBYTES)
    if installed is None:
        return "does not hold: the stack has no bitsandbytes"
    if accelerator.kind != "cuda":
        if has_nf4(installed, has_gpu=False):
            return HOLDS
        first = ".".join(map(str, NF4_ON_CPU))
        return f"does not hold: bitsandbytes {installed} needs CUDA; version {first} also quantises on CPUs"
    for device in accelerator.devices:
        if device.capability is None:
            return f"not known: the compute capability of the {device.name} is unknown"
        if device.capability < _NF4_CAPABILITY:
            return (
                f"does not hold: {device.name} has compute capability {device.compute_capability}, below 6.0"
            )
    return HOLDS


def _llama3_rope(versions: Versions, accelerator: Accelerator) -> str:  # noqa: ARG001 - every rule has the same arguments
    installed = versions.get(_TRANSFORMERS)
    if installed is None:
        return "does not hold: the stack has no transformers"
    if Version(installed) >= _LLAMA3_ROPE:
        return HOLDS
    return f"does not hold: transformers {installed} does not support llama3 RoPE scaling; 4.43 does"


CAPABILITIES: Mapping[str, Callable[[Versions, Accelerator], str]] = {
    "llama3-rope": _llama3_rope,
    "nf4": _nf4,
}
