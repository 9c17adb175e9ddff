"""Proofs in a fresh interpreter: imports, versions, requirements, commands and capabilities.

In: an interpreter, its expected versions, and the proofs of a matrix.  Out: `Check` values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.verification.verify import Check, Report, prove
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "verify": "Check Report prove",
        },
    )

__all__ = ["Check", "Report", "prove"]
