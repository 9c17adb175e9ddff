"""Open the lock file of a request, and check that it is for this state and from the right sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._common.urls import Mirrors
from colablock._vendor.packaging.version import Version
from colablock.errors import FetchFailed, InvalidInput, NoSolution, NotFound, Unmet
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.origins import LockOrigins
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import LockHead, assumption_failures, read_head
from colablock.lockfile.tool_table import DELTA, table_of
from colablock.matrix.model import shadow_text
from colablock.matrix.package_sources import PackageSources
from colablock.network.cache import Cache, cache_folder

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock._vendor.packaging.specifiers import SpecifierSet
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Installed, Snapshot
    from colablock.index.candidates import CandidateSource
    from colablock.matrix.model import Matrix, PackageEntry
    from colablock.matrix.packed_locks import LockFile
    from colablock.network.settings import Settings
    from colablock.planning.options import ApplyOptions
    from colablock.planning.plan import Plan
    from colablock.planning.planned import PlannedChange

__all__ = ["as_locked", "check_assumed", "keep_requests", "moved_requests", "open_lock", "with_origin"]

_SHOWN = 3  # distributions in a note


def as_locked(options: ApplyOptions, matrix: Matrix) -> ApplyOptions:
    """Return *options* with the variant and the additions of the lock of *matrix* that they name, if any.

    What they say themselves comes first.  The accelerator of another machine would choose another variant,
    which may need less than the lock has, or something else.
    """
    head = read_head(options.lock) if options.lock is not None and options.bundle is None else None
    if head is None or head.matrix != matrix.name:
        return options
    variant = head.variant if head.variant in matrix.variants else None
    return replace(
        options, variant=options.variant or variant, with_=options.with_ or tuple(sorted(head.with_))
    )


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


def moved_requests(
    locked: LockSource, kernel: Snapshot, asked: Sequence[PackageEntry], environ: Mapping[str, str]
) -> list[NormalizedName]:
    """Return the distributions that *locked* would move although the user has installed them by name.

    They fit what is *asked* for, and neither colablock nor the image has installed that version.
    """
    allowed = {entry.name: entry.specifier for entry in asked if entry.url is None}
    found = []
    for name, version in locked.versions.items():
        there = kernel.installed.get(name)
        if there is None or not there.requested or there.installer == "colablock":
            continue
        if Version(there.version) == version or (name in allowed and not _allows(allowed[name], there)):
            continue
        found.append(name)
    if not found:
        return []
    image = _image_of(locked, environ)
    return [name for name in found if image.get(name) != kernel.installed[name].version]


def _allows(specifier: SpecifierSet, there: Installed) -> bool:
    return specifier.contains(there.version, prereleases=True)


def _image_of(locked: LockSource, environ: Mapping[str, str]) -> Mapping[NormalizedName, str]:
    """Return the versions of the recorded runtime that *locked* is for; nothing if it is not recorded."""
    from colablock.runtimes.catalog import load_runtime  # noqa: PLC0415 - few locks are asked

    runtime = table_of(locked.lock).get("runtime")
    try:
        image = load_runtime(str(runtime), environ=environ) if runtime else None
    except (InvalidInput, NotFound):
        image = None
    return {name: there.version for name, there in image.installed.items()} if image is not None else {}


def keep_requests(
    names: Sequence[NormalizedName],
    locked: LockSource,
    plans: tuple[Callable[[], PlannedChange], Callable[[], PlannedChange]],
    kernel: Snapshot,
    reporter: Reporter,
) -> PlannedChange | None:
    """Return the first of *plans* that keeps any of the installed *names*, with a note.

    The first asks the indexes, the second takes the others from *locked*.  None if neither keeps one: what
    works from *locked* must work without an index.
    """
    if not names:
        return None
    moves = [f"{name} {kernel.installed[name].version} to {locked.versions[name]}" for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    what = f"what was installed here by name: {', '.join(moves)}{more}"
    notes = (
        f"not using {locked.name}: it moves {what}",
        f"{locked.name} moves {what}; the plan keeps it, and takes the others from the lock",
    )
    lost = ""
    for plan, note in zip(plans, notes, strict=True):
        try:
            planned = plan()
            reason = _not_kept(planned, names)
        except Unmet as error:
            reason = error.headline
        if not reason:
            reporter.note(note)
            return planned
        lost = lost or reason
    reporter.note(f"{locked.name} moves {what}; no plan can keep it: {lost}")
    return None


def _not_kept(planned: PlannedChange, names: Sequence[NormalizedName]) -> str:
    """Return why *planned* is no way to keep the installed *names*; "" if it is one."""
    there, pins = planned.snapshot.installed, planned.pins()
    if all(pins.get(name, there[name].version) != there[name].version for name in names):
        return "the other requirements do not fit"
    try:
        planned.preparer.fetcher.require_offline(one.artifact for one in planned.plan.steps if one.artifact)
    except FetchFailed as error:
        return error.headline
    return ""
