"""Checks of a matrix: whether it holds on every recorded runtime, and which imports it does not declare.

In: resolutions and the modules of wheels.  Out: outcomes and findings, kept in a results file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.check.findings import ImportFinding, Severity
    from colablock.check.outcomes import Outcome, Verdict
    from colablock.check.undeclared_imports import undeclared_import_findings
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "findings": "ImportFinding Severity",
            "outcomes": "Outcome Verdict",
            "undeclared_imports": "undeclared_import_findings",
        },
    )

__all__ = ["ImportFinding", "Outcome", "Severity", "Verdict", "undeclared_import_findings"]
