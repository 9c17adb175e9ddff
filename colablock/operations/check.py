"""Check matrices: outcomes from their locks, and the imports of packages with replaced requirements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colablock.check.outcomes import outcomes_of
from colablock.check.results_file import MatrixCheck, compared, replaces_requirements
from colablock.check.undeclared_imports import undeclared_import_findings
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import NoSolution
from colablock.lockfile.targets import PLATFORM
from colablock.matrix.catalog import lock_folder
from colablock.operations.lock import nothing_installed
from colablock.operations.plan import solver_for
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions
from colablock.planning.pythons import FETCHABLE

if TYPE_CHECKING:
    from colablock.matrix.model import Matrix

__all__ = ["check_matrices"]


def check_matrices(
    session: Session, names: Sequence[str], *, update: bool = False, imports: bool = False
) -> tuple[MatrixCheck, ...]:
    """Return whether matrices hold on every recorded runtime, judged from their locks without a network.

    With *update* the results are written beside each matrix that has any.  With *imports*
    the packages are fetched whose requirements a matrix replaces, and their
    imports are examined.
    """
    matrices = [session.matrix(name) for name in names]
    session.reporter.stage(f"Checking {', '.join(matrix.name for matrix in matrices)}")
    found = []
    for name, matrix, outcomes in zip(names, matrices, outcomes_of(matrices, session.environ), strict=True):
        examined = _examined(session, matrix) if imports else None
        checked = compared(matrix, lock_folder(matrix), outcomes, examined, asked=name)
        if update and not checked.is_empty:
            checked.write()
        found.append(checked)
    return tuple(found)


def _examined(session: Session, matrix: Matrix) -> list[dict[str, object]] | None:
    """Return the findings about imports, for the newest Python that *matrix* has a solution for.

    None where the matrix replaces no requirements, or has a solution for no Python.
    """
    if not replaces_requirements(matrix):
        return None
    options = ApplyOptions(name=matrix.source, variant=next(iter(matrix.variants), None))
    solver = solver_for(session, options, nothing_installed())
    for short in FETCHABLE:
        if not matrix.requires_python.contains(f"{short}.0", prereleases=True):
            continue
        environment = environment_for(short, PLATFORM)
        try:
            resolution, preparer = solver.from_nothing(environment, "")
        except NoSolution:
            continue
        findings = undeclared_import_findings(solver.matrix, resolution.pins, preparer, environment)
        return [finding.to_json() for finding in findings]
    return None
