"""What a run is judged by before it begins: the machine, the stack, and what the hub said."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Access", "Card", "Machine", "Stack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card.  *memory* and *free* in bytes; *free* is None where nobody tells."""

    name: str
    compute_capability: tuple[int, int]
    memory: int
    free: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is, in bytes.  *held* is what this kernel itself holds of the cards' memory."""

    cards: tuple[Card, ...]
    ram: int
    ram_free: int
    disk_free: int
    held: int = 0
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What the target interpreter has.  *arch_list* is empty for a build without CUDA."""

    torch: str
    arch_list: tuple[str, ...]
    cuda: str | None
    transformers: str
    trl: str | None
    bitsandbytes: str | None
    axolotl: str | None
    flash_attn: str | None
    model_types: frozenset[str]
    rope_types: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the hub said of a model.  *weights* are the bytes to download."""

    status: str  # "open", "gated", "missing", "unreachable" or "local"
    weights: int
    repo: str
    url: str
    has_token: bool
