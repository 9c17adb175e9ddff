"""The facts that preflight checks, and its findings: values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.accelerator import Accelerator

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "Access",
    "Card",
    "Finding",
    "Level",
    "Machine",
    "Precision",
    "ProvenEnvironment",
    "Stack",
    "has_bf16",
    "is_older",
    "precision_for",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card.  *memory* and *free* are in bytes.  Unknown values are None."""

    name: str
    compute_capability: tuple[int, int] | None
    memory: int
    free: int | None = None

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it, ``sm_75``; empty if unknown."""
        return "sm_{}{}".format(*self.compute_capability) if self.compute_capability else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The current state of the machine.  Sizes are in bytes.

    *disk_free* is free space on the disk of the run folder, *cache_free* that on the disk of the
    hub's cache, or None if it is the same disk.  *kernel_memory* is the card memory that this
    process uses.  *other_processes* are the others that use some: ``python (pid 123)``.
    *accelerator* has the same cards as *cards*, in the same order.  *has_slices* is true if
    a process sees a slice of a card (MIG): *cards* then describes the whole card.
    """

    cards: tuple[Card, ...]
    ram: int
    ram_free: int
    disk_free: int
    cache_free: int | None = None
    kernel_memory: int = 0
    other_processes: tuple[str, ...] = ()
    accelerator: Accelerator = field(default_factory=Accelerator)
    has_slices: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The versions in the target environment; None for projects that are not installed.

    *arch_list* is ``torch.cuda.get_arch_list()``, empty for a build without CUDA.  *model_types*
    and *rope_types* are those that transformers supports, *causal_types* the model types with a
    causal language model, *optimizers* and *schedulers* the names that its trainer accepts; each is
    empty if unknown.  *reporters* are the values of `report_to` whose project is installed, and
    *axolotl_plugins* the plugins of axolotl whose requirements are.
    """

    torch: str
    transformers: str
    arch_list: tuple[str, ...] = ()
    accelerate: str | None = None
    peft: str | None = None
    trl: str | None = None
    bitsandbytes: str | None = None
    axolotl: str | None = None
    unsloth: str | None = None
    flash_attn: str | None = None
    torchao: str | None = None
    causal_types: frozenset[str] = field(default_factory=frozenset)
    optimizers: frozenset[str] = field(default_factory=frozenset)
    schedulers: frozenset[str] = field(default_factory=frozenset)
    model_types: frozenset[str] = field(default_factory=frozenset)
    rope_types: frozenset[str] = field(default_factory=frozenset)
    reporters: frozenset[str] = field(default_factory=frozenset)
    axolotl_plugins: frozenset[str] = field(default_factory=frozenset)

    @property
    def runners(self) -> Mapping[str, str | None]:
        """The version of each runner."""
        return {"trl": self.trl, "axolotl": self.axolotl, "unsloth": self.unsloth}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenEnvironment:
    """An environment that was applied and proven, to train in.

    *source* is the name or path of the matrix.  *lock* is the digest of its lock or, for a kernel, of its
    pins.  *sites* are its folders of modules.
    """

    matrix: str
    python: str
    lock: str
    runner: str | None
    sites: tuple[str, ...] = ()
    workarounds: tuple[str, ...] = ()
    variant: str | None = None
    matrix_digest: str = ""
    source: str = ""
    python_version: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    accelerator: Accelerator = field(default_factory=Accelerator)  # of this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whether the model can be read.

    *weights* is the size of the download in bytes, 0 if it is local.  *size* is that of all weights
    of the model, 0 if it is unknown.
    """

    status: str  # "open", "gated", "missing", "unreachable" or "local"
    weights: int = 0
    size: int = 0
    repo: str = ""
    url: str = ""
    has_token: bool = False


class Level(Enum):
    """The consequence of a finding."""

    REFUSE = "refuse"  # the run would fail
    WARN = "warn"  # the run may not do what the user wants
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding of preflight: what, why, and how to fix it.  *fix* is empty if there is nothing to do."""

    level: Level
    what: str
    why: str = ""
    fix: str = ""


def is_older(version: str | None, than: str) -> bool:
    """Whether *version* is older than *than*; false if it is not a valid version."""
    try:
        return version is not None and Version(version) < Version(than)
    except InvalidVersion:
        return False


_FIRST_WITH_BF16 = (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The types of a run, by their names in torch.

    *compute* is the type of weights that are not quantised, and the type that 4-bit weights are
    dequantised to.  *adapters* is the type of trainable parameters.  *bf16* and *fp16* are flags of
    the trainer.
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
    """Whether a card has hardware for bfloat16, and so runs flash attention; false if unknown.

    ``torch.cuda.is_bf16_supported()`` is not used, because it counts emulation and is true on a T4.
    """
    return capability is not None and capability >= _FIRST_WITH_BF16


def precision_for(capabilities: Iterable[tuple[int, int] | None]) -> Precision:
    """Return the precision for cards with these compute capabilities; without cards, that for a CPU.

    A card of unknown capability gets float16, which every card supports.
    """
    found = [has_bf16(one) for one in capabilities]
    if not found:
        return FP32
    return BF16 if all(found) else FP16
