"""Checks of a matrix: recorded runtimes, imports that it does not declare, and known vulnerabilities.

In: resolutions, the modules of wheels, and pages of an index.  Out: outcomes and findings.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.check.advisories import Advisory, AuditedRelease, AuditResult, Unchecked
    from colablock.check.findings import ImportFinding, Severity
    from colablock.check.outcomes import Outcome, Verdict
    from colablock.check.undeclared_imports import undeclared_import_findings
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "advisories": "Advisory AuditResult AuditedRelease Unchecked",
            "findings": "ImportFinding Severity",
            "outcomes": "Outcome Verdict",
            "undeclared_imports": "undeclared_import_findings",
        },
    )

__all__ = [
    "Advisory",
    "AuditResult",
    "AuditedRelease",
    "ImportFinding",
    "Outcome",
    "Severity",
    "Unchecked",
    "Verdict",
    "undeclared_import_findings",
]


class _Check(ModuleType):
    """This package, which is also the function `colablock.check`: both have the same name."""

    def __call__(self, *names: Any, update: bool = False, imports: bool = False, quiet: bool = False) -> Any:
        """Return whether matrices hold on every recorded runtime: see `colablock.api.check`."""
        check = import_module("colablock.api.catalog").check
        return check(*names, update=update, imports=imports, quiet=quiet)


sys.modules[__name__].__class__ = _Check
