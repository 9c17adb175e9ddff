"""The last apply of a matrix: its record, and what has changed in its environment since."""

from __future__ import annotations

from pathlib import Path

from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.accelerator import Accelerator
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.site import is_unfinished
from colablock.environment.snapshot import Snapshot, installed_versions, snapshot_of
from colablock.errors import InvalidInput, NotFound
from colablock.matrix.reader import is_path
from colablock.operations.rollback import recover_interrupted
from colablock.operations.session import Session
from colablock.planning.plan import Target
from colablock.transaction import apply_record as applied
from colablock.transaction.apply_record import ApplyRecord
from colablock.transaction.drift import Drift, find_drifts
from colablock.transaction.serialise import report_from_json
from colablock.verification.verify import Report

__all__ = ["drifts_since", "last_apply", "last_report", "requirements_to_hold"]


def last_apply(session: Session, name: str) -> ApplyRecord:
    """Return the record of the last apply of the matrix *name*, a name or a path.

    An interrupted later change of that environment is recovered first.  Raises
    NotFound where the matrix has not been applied.
    """
    last = None if is_path(name) else applied.load(name, session.home)
    # A matrix that was applied by its path is recorded under its name.
    last = last or applied.require(session.matrix(name).name, session.home)
    if last.target == Target.KERNEL.value and is_unfinished(last.prefix, last.sites[0]):
        recover_interrupted(session, last.python)
    return last


def drifts_since(session: Session, last: ApplyRecord, snapshot: Snapshot | None = None) -> tuple[Drift, ...]:
    """Return what has changed in the environment of *last* since that apply.

    *snapshot* is used where it shows that environment; else a new one is taken.
    """
    now = installed_versions(last.sites)
    if not (now and last.versions) or now == last.versions:
        return ()
    if snapshot is None or snapshot.site not in last.sites:
        try:
            snapshot = snapshot_of(Path(last.python), environ=session.environ, accelerator=Accelerator())
        except (InvalidInput, NotFound):
            return ()  # the environment is gone, or no longer one
    return find_drifts(last.versions, now, snapshot, last.pins)


def last_report(last: ApplyRecord) -> Report:
    """Return the report of *last*.  Raises InvalidInput if its record is damaged."""
    try:
        return report_from_json(last.report)
    except InvalidInput as error:
        raise InvalidInput(
            f"the record of the last apply of `{last.name}` is damaged: {error}",
            hint=f"Run `colablock apply {last.name}` again",
        ) from error


def requirements_to_hold(last: ApplyRecord, kernel: Snapshot) -> frozenset[tuple[NormalizedName, str]]:
    """Return the requirements that *last* proved to hold and that *kernel* no longer meets."""
    if kernel.site not in last.sites or not last_report(last).passed:
        return frozenset()
    there = kernel.installed
    unchanged = [name for name, pin in last.pins.items() if name in there and there[name].version == pin]
    unmet = DependencyGraph.of(kernel).unmet_lines(unchanged)
    return unmet - frozenset((NormalizedName(name), line) for name, line in last.unmet)
