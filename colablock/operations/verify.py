"""Prove the environment of the last apply again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from colablock.environment.accelerator import detect
from colablock.matrix.model import select_variant
from colablock.operations.last_apply import drifts_since, last_apply, last_report
from colablock.operations.session import Session
from colablock.planning.plan import Target
from colablock.transaction.drift import SINCE, notes_of
from colablock.verification.origins import hidden_imports
from colablock.verification.verify import Check, Report, files_checks, prove

__all__ = ["verify_last_apply"]


def verify_last_apply(session: Session, name: str) -> Report:
    """Return the report of the last apply of *name* with new checks.

    A pin whose version has changed since fails its check, and the check tells
    the cause.  Raises NotFound where the matrix has not been applied.
    """
    last = last_apply(session, name)
    matrix = select_variant(session.matrix(last.source or name), detect(session.environ), last.variant)
    started = time.monotonic()
    proofs = prove(
        last.python,
        verify=matrix.verify,
        pins=last.pins,
        environ=session.environ,
        expected_unmet=last.unmet,
        reporter=session.reporter,
    )
    hidden = hidden_imports(matrix.verify.imports, session.environ, last.sites[0])
    for told in hidden.values() if last.target == Target.KERNEL.value else ():
        session.reporter.note(told)
    drifts = drifts_since(session, last)
    causes = {str(drift.name): drift.text for drift in drifts if drift.is_pin}
    checks = tuple(_with_cause(check, causes) for check in (*files_checks(last.sites, last.pins), *proofs))
    recorded = last_report(last)
    notes = (*recorded.notes, *notes_of(drifts, with_pins=False))
    if matrix.digest != last.matrix_digest:
        notes = (
            *notes,
            f"{matrix.name} has changed since it was applied: the checks are those of its current version",
        )
    return replace(recorded, checks=checks, changed=False, seconds=time.monotonic() - started, notes=notes)


def _with_cause(check: Check, causes: Mapping[str, str]) -> Check:
    """Add to a failed check of a version what has changed since the apply."""
    if check.passed or check.kind != "version" or check.subject not in causes:
        return check
    return replace(check, detail=f"{check.detail}\n{SINCE}{causes[check.subject]}")
