"""What preflight judges by, and what it says: values only, filled in at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.accelerator import Accelerator

__all__ = ["Access", "Card", "Finding", "Level", "Machine", "ProvenEnvironment", "Stack", "is_older"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card.  *memory* and *free* in bytes; what nobody could tell is None."""

    name: str
    compute_capability: tuple[int, int] | None
    memory: int
    free: int | None = None

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it: ``sm_75``; empty where it is not known."""
        return "sm_{}{}".format(*self.compute_capability) if self.compute_capability else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine as it stands, in bytes.

    *disk_free* is of the disk that the run is written to, *cache_free* of the one that
    the hub's files are kept on, None where that is the same.  *held* is what this very kernel
    holds of the cards' memory, *holders* who else does: ``python (pid 123)``.  *accelerator*
    has the same cards as *cards*, in the same order; *has_slices* says that they are parts of
    cards (MIG), each told of as if it were the whole.
    """

    cards: tuple[Card, ...]
    ram: int
    ram_free: int
    disk_free: int
    cache_free: int | None = None
    held: int = 0
    holders: tuple[str, ...] = ()
    accelerator: Accelerator = field(default_factory=Accelerator)
    has_slices: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What the target interpreter has; versions are None for what is not installed.

    *arch_list* is ``torch.cuda.get_arch_list()``, empty for a build without CUDA.
    *model_types* and *rope_types* are those that transformers knows; empty: not known.
    *reporters* are what of `report_to` is installed.
    """

    torch: str
    transformers: str
    arch_list: tuple[str, ...] = ()
    trl: str | None = None
    bitsandbytes: str | None = None
    axolotl: str | None = None
    flash_attn: str | None = None
    model_types: frozenset[str] = field(default_factory=frozenset)
    rope_types: frozenset[str] = field(default_factory=frozenset)
    reporters: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenEnvironment:
    """An environment that was applied and proven, to train in.

    *lock* is the digest of its lock or, in a kernel, of its pins.
    """

    matrix: str
    python: str
    lock: str
    runner: str | None
    workarounds: tuple[str, ...] = ()
    variant: str | None = None
    matrix_digest: str = ""
    python_version: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    accelerator: Accelerator = field(default_factory=Accelerator)  # of this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the hub said of the model; *weights*: bytes that are to be fetched, 0 for cached or local ones."""

    status: str  # "open", "gated", "missing", "unreachable" or "local"
    weights: int = 0
    repo: str = ""
    url: str = ""
    has_token: bool = False


class Level(Enum):
    """What a finding means for the run."""

    REFUSE = "refuse"  # it would fail
    WARN = "warn"  # it may not do what is wanted
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that preflight found; *fix* is empty in a note that asks for nothing."""

    level: Level
    what: str
    why: str = ""
    fix: str = ""


def is_older(version: str | None, than: str) -> bool:
    """Whether *version* is one that comes before *than*; one that cannot be read is not."""
    try:
        return version is not None and Version(version) < Version(than)
    except InvalidVersion:
        return False
