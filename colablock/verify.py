"""Proofs in a fresh interpreter of the environment that was changed."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check", "Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One proof: *kind* is ``version``, ``import``, ``command``, ``requirements`` or ``capability``."""

    kind: str
    subject: str
    passed: bool
    detail: str = ""  # the version found, or the last lines of the traceback
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Checks and their outcome, kept with the lock's hash."""

    matrix: str
    variant: str | None
    target: str  # "kernel" or "env"
    python: str  # the interpreter to run things with
    python_version: str
    checks: tuple[Check, ...]
    lock_digest: str = ""
    changed: bool = False  # whether this call changed anything
    seconds: float = 0.0
    needs_restart: bool = False
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)
