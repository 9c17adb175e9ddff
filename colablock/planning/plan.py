"""Resolution × Snapshot → Plan: ordered steps, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from colablock._vendor.packaging.utils import NormalizedName

__all__ = ["Action", "Artifact", "Breakage", "Kept", "Plan", "Remedy", "Step", "Target", "UndoCost"]


class Target(Enum):
    """Where a plan goes: the running interpreter's site, or an isolated environment."""

    KERNEL = "kernel"
    ENV = "env"


class Action(Enum):
    """What a step does to one distribution."""

    REMOVE = "remove"
    REPLACE = "replace"
    INSTALL = "install"


class Remedy(Enum):
    """What is done about a distribution that the new state breaks."""

    REPAIR = "repair"
    REMOVE = "remove"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The file that a step installs.

    *url* is canonical; ``file://`` for local ones.  *size* in bytes, None when
    the index does not say.  *build*: an sdist, built before it is staged.
    *rebuilt*: our own wheel made from this file (its metadata or modules are
    replaced by the matrix entry at the path given).  *direct*: recorded in
    ``direct_url.json`` (PEP 610).
    """

    name: NormalizedName
    version: str
    filename: str
    url: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    index: str | None = None
    build: bool = False
    rebuilt: str | None = None
    direct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change to one distribution.  *requested*: the matrix or the user names it."""

    action: Action
    name: NormalizedName
    reason: str
    version: str | None = None  # after the step; None for a removal
    previous: str | None = None  # before it; None for an installation
    artifact: Artifact | None = None
    requested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An installed distribution that the stack uses as it is."""

    name: NormalizedName
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakage:
    """An installed distribution that the new state breaks and that was whole before.

    *requirement* is the first of its requirements that no longer holds.
    *direct*: a version moved (or shared files went); else broken only by a
    removal.  *because* is the chain from the moved one down to this one.
    """

    name: NormalizedName
    version: str
    requirement: str
    direct: bool
    because: tuple[str, ...]
    remedy: Remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoCost:
    """What is copied, since it came with the image, to keep it for an undo.

    *seconds* are estimated from a small copy; 0.0 where it is not worth telling.
    """

    files: int
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered steps, removals first, and what they cost and leave behind."""

    matrix: str
    matrix_digest: str
    variant: str | None
    target: Target
    why_target: str
    python: str  # the interpreter whose site changes, or that an env is made with
    python_version: str  # full
    steps: tuple[Step, ...] = ()
    kept: tuple[Kept, ...] = ()
    breakages: tuple[Breakage, ...] = ()
    restart: Mapping[NormalizedName, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[NormalizedName, ...] = ()  # may break by what is replaced: requirements not recorded
    fingerprint: str = ""  # of the state it was made for
    notes: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()  # what was asked for: PEP 508 lines
    undo_cost: UndoCost | None = None
    beforehand: tuple[str, ...] = ()  # notes that mean nothing once it is carried out

    @property
    def needs_restart(self) -> bool:
        return bool(self.restart)

    @property
    def fetch_size(self) -> int:
        """Bytes to fetch, as far as the indexes give sizes."""
        return sum(step.artifact.size or 0 for step in self.steps if step.artifact)
