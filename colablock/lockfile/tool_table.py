"""The table `[tool.colablock]` of a lock and of its packages: what PEP 751 has no field for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from colablock._common.toml import in_utc
from colablock._records import dataclass

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import Package, Pylock
    from colablock.matrix.model import Matrix
    from colablock.resolver.model import Resolution

__all__ = [
    "ALL_FILES",
    "COMPLETE",
    "CREATED_BY",
    "DELTA",
    "LockOrigin",
    "lists_target_files",
    "lock_table",
    "table_of",
]

CREATED_BY = "colablock"
COMPLETE = "complete"
DELTA = "delta"
#: The value of ``files`` in a lock that lists the files of every platform.
ALL_FILES = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOrigin:
    """How a lock was asked for: the *runtime* of a delta, the default *index*, the user's requirements.

    *index* is a URL without credentials.  *with_* are the requirements that the
    user added to those of the matrix.
    """

    runtime: str | None = None
    index: str | None = None
    with_: tuple[str, ...] = ()


def lock_table(
    resolution: Resolution, matrix: Matrix, origin: LockOrigin, *, all_files: bool
) -> dict[str, Any]:
    """Return the table of a lock.

    ``schema`` is the version of this table, and ``kind`` is ``complete`` or
    ``delta``.  ``files`` is ``all`` in a lock that lists the files of every
    platform, and missing in one that lists the files of its target.  ``matrix``
    and ``matrix-digest`` name the matrix, ``variant`` and ``exclude-newer`` are
    there if it has them.  ``python`` is the full Python version and ``platform``
    the platform tag of the target.  ``requirements`` are the roots of the solve,
    ``with`` those that the user added, ``index`` is the default index.  A delta
    names its ``runtime``, and under ``assumes`` the versions of the
    distributions that are installed there and that the lock relies on.
    """
    is_delta = bool(resolution.request.installed)
    environment = resolution.request.environment
    table: dict[str, Any] = {
        "schema": 1,
        "kind": DELTA if is_delta else COMPLETE,
        "matrix": matrix.name,
        "matrix-digest": matrix.digest,
        "python": str(environment.python_version),
        "platform": environment.platform,
        "requirements": _requirements(resolution),
    }
    if all_files:
        table["files"] = ALL_FILES
    if matrix.variant:
        table["variant"] = matrix.variant
    if matrix.exclude_newer is not None:
        table["exclude-newer"] = in_utc(matrix.exclude_newer)
    if origin.with_:
        table["with"] = sorted(origin.with_)
    if origin.index is not None:
        table["index"] = origin.index
    if origin.runtime is not None:
        table["runtime"] = origin.runtime
    if is_delta:
        table["assumes"] = {
            str(name): pin.candidate.installed.version
            for name, pin in sorted(resolution.pins.items())
            if pin.candidate.installed is not None
        }
    return table


def table_of(part: Pylock | Package | None) -> Mapping[str, Any]:
    """Return the table of a lock or of a package; an empty one where another tool wrote the lock."""
    table: Mapping[str, Any] = (part.tool or {}).get(CREATED_BY, {}) if part is not None else {}
    return table


def lists_target_files(lock: Pylock) -> bool:
    """Whether colablock wrote *lock* with no files but those that its target can install."""
    table = table_of(lock)
    return lock.created_by == CREATED_BY and bool(table) and table.get("files") != ALL_FILES


def _requirements(resolution: Resolution) -> list[str]:
    """Return the roots whose markers hold, as PEP 508 lines without the markers, sorted."""
    return sorted({entry.requirement for entry in resolution.request.asked})
