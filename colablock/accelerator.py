"""The accelerator of this machine as facts: driver, CUDA, compute capability, memory."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Accelerator", "Device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One card.  *compute_capability* as in ``"7.5"``; *memory* in bytes."""

    name: str
    compute_capability: str
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What a training stack has to fit; ``kind == "none"`` is a fact too.

    *driver* is the driver's version, *cuda* the newest CUDA version that the
    driver supports.  *source* says how it was learnt: ``nvml``,
    ``nvidia-smi``, ``recorded``, ``declared`` or ``none``.
    """

    kind: str = "none"  # "cuda", "tpu" or "none"
    driver: str | None = None
    cuda: str | None = None
    devices: tuple[Device, ...] = ()
    source: str = "none"
    note: str | None = None
