"""Checks matrices: outcomes from their locks, and the imports of what a matrix replaces; keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from colablock.check.outcomes import outcomes_of
from colablock.check.results_file import MatrixCheck, compared, replaces_requirements
from colablock.check.undeclared_imports import undeclared_import_findings
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import NoSolution
from colablock.lockfile.store import PLATFORM
from colablock.matrix.catalog import lock_folder
from colablock.operations.lock import nobody
from colablock.planning.options import ApplyOptions
from colablock.planning.solver import FETCHABLE

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix
    from colablock.planning.solver import Solver

__all__ = ["check_matrices"]


def check_matrices(
    matrices: Sequence[Matrix],
    *,
    environ: Mapping[str, str],
    solver: Callable[[ApplyOptions, Snapshot], Solver],
    reporter: Reporter,
    update: bool = False,
    imports: bool = False,
) -> tuple[MatrixCheck, ...]:
    """Return whether *matrices* hold on every recorded runtime, from their locks; no network is asked.

    With *update* the results are written beside each.  With *imports* those of the
    packages are examined whose requirements a matrix replaces, which are fetched for it.
    """
    reporter.stage(f"Checking {', '.join(matrix.name for matrix in matrices)}")
    found = []
    for matrix, outcomes in zip(matrices, outcomes_of(matrices, environ), strict=True):
        examined = _examined(matrix, solver) if imports else None
        checked = compared(matrix, lock_folder(matrix), outcomes, examined)
        if update:
            checked.write()
        found.append(checked)
    return tuple(found)


def _examined(
    matrix: Matrix, solver: Callable[[ApplyOptions, Snapshot], Solver]
) -> list[dict[str, object]] | None:
    """Return the findings about imports, for the newest Python that takes *matrix* from nothing.

    None where the matrix replaces nothing, or no Python takes it.
    """
    if not replaces_requirements(matrix):
        return None
    options = ApplyOptions(name=matrix.source, variant=next(iter(matrix.variants), None))
    chosen = solver(options, nobody())
    for short in FETCHABLE:
        if not matrix.requires_python.contains(f"{short}.0", prereleases=True):
            continue
        environment = environment_for(short, PLATFORM)
        try:
            resolution, preparer = chosen.from_nothing(environment, "")
        except NoSolution:
            continue
        findings = undeclared_import_findings(chosen.matrix, resolution.pins, preparer, environment)
        return [finding.to_json() for finding in findings]
    return None
