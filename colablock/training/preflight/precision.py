"""The precision of a training run.  It is chosen once and set in every part of the stack.

It follows from the compute capability alone: cards from 8.0 on have hardware for bfloat16.
``torch.cuda.is_bf16_supported()`` is not used, because it counts emulation and returns true on a T4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BF16", "FP16", "FP32", "Precision", "has_bf16", "precision_for"]

_FIRST_WITH_BF16 = (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The types of a run, by their names in torch.

    *compute* is the type of weights that are not quantised, and the type that 4-bit weights are
    dequantised to.
    *adapters* is the type of trainable parameters.  *bf16* and *fp16* are flags of the trainer.
    """

    name: str
    compute: str
    adapters: str
    bf16: bool = False
    fp16: bool = False

    @property
    def cast_trainable(self) -> bool:
        """Whether trainable parameters have to be cast to float32 after the trainer is built.

        trl casts the adapters of a quantised model to bfloat16.  The gradient scaler of fp16 has no
        kernel for that type, and a CPU trains in float32.
        """
        return self.adapters == "float32"

    @property
    def size(self) -> int:
        """The size of one number of the type *compute*, in bytes."""
        return 4 if self.compute == "float32" else 2


BF16 = Precision(name="bf16", compute="bfloat16", adapters="bfloat16", bf16=True)
FP16 = Precision(name="fp16", compute="float16", adapters="float32", fp16=True)
FP32 = Precision(name="fp32", compute="float32", adapters="float32")


def has_bf16(capability: tuple[int, int] | None) -> bool:
    """Whether a card has hardware for bfloat16, and so runs flash attention; false if unknown."""
    return capability is not None and capability >= _FIRST_WITH_BF16


def precision_for(capabilities: Iterable[tuple[int, int] | None]) -> Precision:
    """Return the precision for cards with these compute capabilities; without cards, that for a CPU.

    A card of unknown capability gets float16, which every card supports.
    """
    found = [has_bf16(one) for one in capabilities]
    if not found:
        return FP32
    return BF16 if all(found) else FP16
