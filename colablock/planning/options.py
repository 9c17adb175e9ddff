"""What one call of `plan` or `apply` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colablock.planning.plan import Remedy, Target

__all__ = ["ApplyOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """What the user asks for; every field but the name has a default that is decided."""

    name: str
    into: Target | None = None
    python: str | None = None
    runtime: str | None = None
    variant: str | None = None
    with_: tuple[str, ...] = ()
    lock: Path | None = None
    use_locks: bool = True  # those that stand beside the matrix
    protect: tuple[str, ...] = ()
    broken: Remedy | None = None
    default_index: str | None = None
    find_links: tuple[str, ...] = ()
    offline: bool = False
    keep: bool = False
    undo: bool = True
    break_system_packages: bool = False
