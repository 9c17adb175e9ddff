"""Explain a failure of any program that trains, by what is installed where it ran."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import installed_versions, snapshot_of
from colablock.operations.session import Session
from colablock.runtimes.catalog import recorded_distributions, runtime_names
from colablock.training.failures import explain_text
from colablock.training.runs.crash import Explanation
from colablock.training.runs.crash_facts import found_matrices
from colablock.transaction.apply_record import load_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from colablock.transaction.apply_record import ApplyRecord

__all__ = ["explain_failure"]

_STACK = {"torch", "transformers", "peft", "trl", "accelerate", "datasets"}  # where a program trains


def explain_failure(session: Session, text: str, *, python: str | None = None) -> Explanation:
    """Return why the process that wrote *text*, a traceback or a log, failed.

    *python* is the interpreter that it ran in, by default the one of the environment that the text
    names, or this one if it has a training stack, else that of the last apply.  Uses no network.
    Raises NotFound, InvalidInput if *python* is no interpreter.
    """
    records = list(load_all(session.home))
    here = {str(name): version for name, version in installed_versions(sys.path).items()}
    executable = Path(sys.executable)
    if python is None and (record := _record_of(text, records, here)) is not None:
        python = record.python
    if python is not None:
        snapshot = snapshot_of(python, environ=session.environ, accelerator=Accelerator())
        here = {str(name): one.version for name, one in snapshot.installed.items()}
        executable = Path(snapshot.python)
    applied = [one for one in records if _is_same(one.python, executable)][:1]
    return explain_text(
        text,
        versions=here,
        matrices=found_matrices(session.environ),
        applied=applied[0].name if applied else None,
        source=applied[0].source if applied else "",
        is_intact=any(one.pins and one.pins.items() <= here.items() for one in applied),
        real=_projects_of_an_image(session),
    )


def _projects_of_an_image(session: Session) -> Iterator[str]:
    """Yield the projects of the newest recorded runtime."""
    for name in runtime_names(environ=session.environ)[-1:]:
        yield from (one.spelled for one in recorded_distributions(name, environ=session.environ))


def _record_of(text: str, records: Sequence[ApplyRecord], here: Mapping[str, str]) -> ApplyRecord | None:
    """Return the apply to whose environment *text* belongs; None if it is this one, or not known."""
    standing = [one for one in records if Path(one.python).is_file()]
    for one in standing:
        if f"{one.prefix.rstrip('/')}/" in text and one.prefix != sys.prefix:
            return one
    is_here = f"{sys.prefix}/" in text or not _STACK.isdisjoint(here)
    is_here = is_here or any(_is_same(one.python, Path(sys.executable)) for one in standing)
    return None if is_here else next(iter(standing), None)


def _is_same(one: str, other: Path) -> bool:
    """Whether two interpreters have the same folder; links to a base interpreter are not followed."""
    return Path(one).parent == other.parent
