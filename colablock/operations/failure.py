"""Explain a failure of any program that trains, by what is installed where it ran."""

from __future__ import annotations

import sys
from pathlib import Path

from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import installed_versions, snapshot_of
from colablock.operations.session import Session
from colablock.training.failures import explain_text
from colablock.training.runs.crash import Explanation
from colablock.training.runs.crash_facts import found_matrices
from colablock.transaction.apply_record import load_all

__all__ = ["explain_failure"]


def explain_failure(session: Session, text: str, *, python: str | None = None) -> Explanation:
    """Return why the process that wrote *text*, a traceback or a log, failed.

    *python* is the interpreter that it ran in, by default this one.  Uses no network.  Raises
    NotFound, InvalidInput if *python* is no interpreter.
    """
    if python is None:
        versions = {str(name): version for name, version in installed_versions(sys.path).items()}
        executable = Path(sys.executable)
    else:
        snapshot = snapshot_of(python, environ=session.environ, accelerator=Accelerator())
        versions = {str(name): one.version for name, one in snapshot.installed.items()}
        executable = Path(snapshot.python)
    applied = [one.name for one in load_all(session.home) if _is_same(one.python, executable)]
    return explain_text(
        text,
        versions=versions,
        matrices=found_matrices(session.environ),
        applied=applied[-1] if applied else None,
    )


def _is_same(one: str, other: Path) -> bool:
    """Whether two interpreters have the same folder; links to a base interpreter are not followed."""
    return Path(one).parent == other.parent
