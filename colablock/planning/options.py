"""The options of `plan` and `apply`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colablock.planning.plan import Remedy, Target

__all__ = ["ApplyOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """The options of one call; each but *name* has a default."""

    name: str
    into: Target | None = None
    python: str | None = None
    runtime: str | None = None
    variant: str | None = None
    with_: tuple[str, ...] = ()
    lock: Path | None = None
    use_locks: bool = True  # the lock files beside the matrix
    protect: tuple[str, ...] = ()
    broken: Remedy | None = None
    default_index: str | None = None
    find_links: tuple[str, ...] = ()
    offline: bool = False
    keep: bool = False
    undo: bool = True
    break_system_packages: bool = False
