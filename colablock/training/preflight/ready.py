"""What the solver hands over: an environment that was applied and proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from colablock.environment.accelerator import Accelerator

__all__ = ["ProvenEnvironment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenEnvironment:
    """An environment that was applied and proven, to train in.

    *lock* is the digest of its lock or, in a kernel, of its pins.
    """

    matrix: str
    python: str
    lock: str
    runner: str | None
    mends: tuple[str, ...] = ()
    variant: str | None = None
    matrix_digest: str = ""
    matrix_source: str = ""  # its file
    python_version: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    accelerator: Accelerator = field(default_factory=Accelerator)  # of this machine
