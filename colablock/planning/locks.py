"""Open the lock file of a request, and check that it is for this state and from the right sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._common.urls import Mirrors
from colablock.errors import NoSolution
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.origins import LockOrigins
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import LockHead, assumption_failures
from colablock.lockfile.tool_table import DELTA
from colablock.matrix.model import shadow_text
from colablock.matrix.package_sources import PackageSources
from colablock.network.cache import Cache, cache_folder

if TYPE_CHECKING:
    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Snapshot
    from colablock.index.candidates import CandidateSource
    from colablock.matrix.model import Matrix, PackageEntry
    from colablock.matrix.packed_locks import LockFile
    from colablock.network.settings import Settings
    from colablock.planning.plan import Plan

__all__ = ["check_assumed", "open_lock", "with_origin"]


def with_origin(plan: Plan, matrix: Matrix, source: CandidateSource | None) -> Plan:
    """Return *plan* with what it comes from: the lock, the hosts of its files, and a matrix that shadows."""
    plan = replace(plan, shadow=shadow_text(matrix))
    if not isinstance(source, LockSource):
        return plan
    return replace(plan, lock=source.path, lock_hosts=source.hosts)


def open_lock(
    path: LockFile,
    matrix: Matrix,
    environment: Environment,
    *,
    settings: Settings,
    environ: Mapping[str, str],
    additions: Sequence[PackageEntry] = (),
    allow_local: bool = False,
) -> LockSource:
    """Return the candidates of the lock at *path* for *matrix* (its variant selected) and *environment*.

    *additions* are the requirements of the user.  *allow_local* admits local files
    in any folder, where nothing is installed.  Raises InvalidInput if a file
    of the lock does not come from the source of its package, and NoSolution if
    the lock is for another Python or platform.
    """
    cache = Cache(cache_folder(environ))
    lock, name = read_lock(path, cache), f"the lock `{path.name}`"
    origins = LockOrigins(
        sources=PackageSources.of(matrix, environment, additions),
        settings=settings,
        mirrors=Mirrors.parse(environ.get("COLABLOCK_MIRRORS", "")),
        allow_local=allow_local,
        cache=cache,
    )
    source = LockSource(
        lock,
        path.parent,
        environment,
        allow_build=matrix.options.allow_build,
        no_binary=matrix.options.no_binary,
        name=name,
        path=str(path),
    )
    origins.check(lock, path.parent, name)
    return source


def check_assumed(head: LockHead | None, kernel: Snapshot | None) -> None:
    """Raise NoSolution if a delta lock is for another state than that of *kernel*."""
    if head is None or head.kind != DELTA:
        return
    what = f"the lock `{head.path.name}` is a delta over {head.runtime}"
    if kernel is None:
        hint = "Use it with `--into kernel`, or make a complete lock with `--python-version`"
        raise NoSolution(f"{what}, and nothing is installed in an isolated environment", hint=hint)
    differing = assumption_failures(head, kernel)
    if differing:
        hint = "Make a lock for this state, or call without `--lock`"
        raise NoSolution("\n  ".join([f"{what}, and this is another state", *differing]), hint=hint)
