"""Try the imports of distributions that a plan says may no longer import, before and after the change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.scratch import scratch_folder
from colablock.verification.verify import proof_environment
from colablock.verification.worker import Child, run_jobs

if TYPE_CHECKING:
    from colablock.planning.plan import ImportRisk

__all__ = ["failed_imports", "risk_notes"]

_TIMEOUT = 120.0  # seconds for one import


def failed_imports(
    python: str | Path, modules: Collection[str], environ: Mapping[str, str]
) -> dict[str, str]:
    """Import *modules* in a fresh interpreter of *python*; return why each failed one does."""
    if not modules:
        return {}
    with scratch_folder() as scratch:
        work = scratch / "work"
        work.mkdir()
        child = Child(
            python=str(python),
            environ=proof_environment(python, environ, scratch),
            folder=work,
            timeout=_TIMEOUT,
        )
        answers = run_jobs(child, [("import", name) for name in modules])
        return {one.subject: _last(one.detail) for one in answers if not one.passed}


def risk_notes(
    python: str | Path, risks: Iterable[ImportRisk], before: Collection[str], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """Return a note for each module of *risks* that no longer imports, after the change.

    *before* are the modules that could not be imported before it.  The plan has said so, so this
    is no failure of the proof.
    """
    tried = {name: one for one in risks for name in one.modules if name not in before}
    failed = failed_imports(python, tried.keys(), environ)
    return tuple(
        f"`{name}` of {tried[name].name} {tried[name].version} no longer imports ({why}), as the plan says"
        for name, why in failed.items()
    )


def _last(detail: str) -> str:
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason is known"
