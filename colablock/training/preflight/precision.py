"""The precision of a training run, chosen once and set everywhere together.

It follows from the compute capability alone: cards of 8.0 and above have units
for bfloat16.  ``torch.cuda.is_bf16_supported()`` is not asked, since it counts
emulation and says yes on a T4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BF16", "FP16", "FP32", "Precision", "has_bf16", "precision_for"]

_FIRST_WITH_BF16 = (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What every part of a run is told, by the names of torch's types.

    *compute*: of what is not quantised, and what 4-bit weights are unpacked to;
    *adapters*: of trainable parameters.  *bf16* and *fp16* are the trainer's flags.
    """

    name: str
    compute: str
    adapters: str
    bf16: bool = False
    fp16: bool = False

    @property
    def cast_trainable(self) -> bool:
        """Whether trainable parameters have to be cast to float32 once the trainer is built.

        trl casts the adapters of a quantised model to bfloat16, for which the
        gradient scaler of fp16 has no kernel, and which is not what a CPU is told to train in.
        """
        return self.adapters == "float32"

    @property
    def size(self) -> int:
        """The bytes of one number in *compute*."""
        return 4 if self.compute == "float32" else 2


BF16 = Precision(name="bf16", compute="bfloat16", adapters="bfloat16", bf16=True)
FP16 = Precision(name="fp16", compute="float16", adapters="float32", fp16=True)
FP32 = Precision(name="fp32", compute="float32", adapters="float32")


def has_bf16(capability: tuple[int, int] | None) -> bool:
    """Whether a card has units for bfloat16, and flash attention's kernels with them; not known is no."""
    return capability is not None and capability >= _FIRST_WITH_BF16


def precision_for(capabilities: Iterable[tuple[int, int] | None]) -> Precision:
    """Return the precision for cards of these compute capabilities; for none of them that of a CPU.

    A card whose capability is not known gets what every card can: float16.
    """
    found = [has_bf16(one) for one in capabilities]
    if not found:
        return FP32
    return BF16 if all(found) else FP16
