"""The sources of candidates of one request: a lock, an index, or a lock whose packages find-links replace.

And which index of a variant cannot be reached or refuses, so that another variant has to replace it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from colablock._common.urls import redacted
from colablock._records import dataclass
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock.errors import FetchFailed, NoSolution, Unmet
from colablock.index.candidates import CandidateOrigin, Reason, has_label
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.overridden_lock import OverriddenLock
from colablock.matrix.model import Constraint, roots
from colablock.matrix.package_sources import PackageSources
from colablock.planning.target import build_note, is_preferred

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock._vendor.packaging.version import Version
    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Snapshot
    from colablock.index.build import Builder
    from colablock.index.candidates import Candidate, CandidateSource
    from colablock.index.finder import IndexSource
    from colablock.index.prefetch import ReadOnce
    from colablock.lockfile.standing import StandingLocks
    from colablock.matrix.model import Index, Matrix, PackageEntry
    from colablock.network.fetcher import Fetcher
    from colablock.network.settings import Settings
    from colablock.planning.planned import PlannedChange
    from colablock.resolver.model import Conflict, Request, Resolution

__all__ = [
    "BlockedIndex",
    "blocked_before",
    "blocked_by",
    "blocked_in",
    "candidate_source",
    "check_reached",
    "managed_note",
    "source_notes",
    "with_preferred_builds",
    "without_builds",
    "without_linked",
]

_SHOWN = 5  # names in a message
_TRIED = 3  # builds with a preferred label, the best first
_CAUSES = 3  # sentences of why such a build does not fit


def candidate_source(
    matrix: Matrix,
    environment: Environment,
    *,
    settings: Settings,
    fetcher: Fetcher,
    builder: Builder,
    with_: Sequence[str],
    settled: Container[NormalizedName],
    standing: StandingLocks,
    locked: LockSource | None,
    is_named: bool,
    takes_unhashed: bool = False,
    is_portable: bool = False,
    copies_first: bool = True,
    is_here: bool = True,
    reads: ReadOnce | None = None,
) -> IndexSource | LockSource:
    """Return the source of the candidates: the lock *locked*, or the indexes without one.

    Find-links of this call replace packages of the lock, unless the user has named the lock (*is_named*).
    Folders of the machine replace a package only by a build that the matrix prefers and the lock has not,
    and only for a target on this machine (*is_here*).  A lock for other machines (*is_portable*) has no
    such build.  Offline, the files of a lock that this machine has a
    copy of come first, unless *copies_first* is false.
    """
    if locked is not None and settings.offline and copies_first:
        locked.is_at_hand = fetcher.is_here
    labels: dict[NormalizedName, str] | None = None
    additions = roots(matrix, with_)[len(matrix.packages) :]
    links: Sequence[str] = settings.find_links
    if locked is not None and (is_named or not settings.links_override):
        links = [] if is_named or not is_here else [link for link in links if fetcher.local(link)]
        labels = _missing_labels(matrix, environment, additions, locked) if links else {}
        if not labels:
            return locked
    from colablock.index.finder import IndexSource  # noqa: PLC0415 - a lock needs no index

    index = IndexSource.for_matrix(
        matrix,
        environment=environment,
        fetcher=fetcher,
        default_index=settings.default_index,
        find_links=links,
        links_override=settings.links_override,
        additions=additions,
        build=builder,
        settled=settled,
        known=standing,
        takes_unhashed=takes_unhashed,
        is_portable=is_portable,
        reads=reads,
    )
    return OverriddenLock(locked, index, labels) if locked is not None else index


def _missing_labels(
    matrix: Matrix, environment: Environment, additions: Sequence[PackageEntry], locked: LockSource
) -> dict[NormalizedName, str]:
    """Return the local labels that *matrix* prefers and the builds of the lock lack, by name.

    A package of an index of its own has its builds from there.
    """
    entries = PackageSources.of(matrix, environment, additions).entries
    wanted = {
        name: entry.prefer_local
        for name, entry in entries.items()
        if entry.prefer_local and entry.index is None and entry.url is None
    }
    versions = locked.versions if wanted else {}
    return {
        name: label
        for name, label in wanted.items()
        if name in versions and not has_label(versions[name], label)
    }


def with_preferred_builds(
    resolution: Resolution,
    matrix: Matrix,
    source: IndexSource | LockSource,
    solve: Callable[[Request, IndexSource | LockSource], Resolution],
) -> Resolution:
    """Return *resolution* with the builds that *matrix* prefers; for one that does not fit, with the cause.

    A solve holds what is installed, and so passes over a build that needs another version of it.
    """
    for entry in matrix.packages:
        builds = [] if is_preferred(resolution, entry) else _builds(entry, source)
        cause = ""
        for one in builds:
            specifier = SpecifierSet(f"=={one.version}")
            only = Constraint(name=entry.name, path=f"{entry.path}.prefer-local", specifier=specifier)
            request = resolution.request
            request = replace(request, constraints=(*request.constraints, only))
            try:
                resolution = replace(solve(request, source), unused=resolution.unused)
                break
            except Unmet as error:  # the plan does not need it, so it must not fail for it
                cause = cause or _cause(error, entry.path)
        else:
            if builds:
                unused = {**resolution.unused, entry.name: (str(builds[0]), cause)}
                resolution = replace(resolution, unused=unused)
    return resolution


def without_builds(resolution: Resolution, better: Resolution, why: str | Unmet) -> Resolution:
    """Return *resolution* with the note *why* it has not the builds that *better* has: harm, or an error."""
    harm = why if isinstance(why, str) else _cause(why, "prefer-local")
    changed = {
        name: (str(pin.candidate), harm)
        for name, pin in better.pins.items()
        if name in resolution.pins and pin.version.local != resolution.pins[name].version.local
    }
    return replace(resolution, unused={**changed, **better.unused})


def _builds(entry: PackageEntry, source: CandidateSource) -> list[Candidate]:
    """Return the first candidates with the preferred local label that the range of *entry* allows."""
    found: list[Candidate] = []
    with suppress(FetchFailed):
        for one in source.judge(entry.name).candidates:
            allowed = entry.specifier.contains(one.version, prereleases=True)
            if allowed and has_label(one.version, entry.prefer_local or ""):
                found.append(one)
            if len(found) == _TRIED:
                break
    return found


def _cause(error: Unmet, path: str) -> str:
    """Return in one clause why a build is not used, without what the matrix says at *path*."""
    if not isinstance(error, NoSolution):
        return error.headline
    told = [line for line in error.because if path not in line][:_CAUSES]
    return f"it does not fit, because {' and '.join(told)}" if told else "it does not fit the other versions"


def source_notes(
    resolution: Resolution, matrix: Matrix, source: CandidateSource | None, kept: str | None
) -> tuple[str, ...]:
    """Return where the versions come from, and which builds were chosen.

    *kept* is what of a lock is not followed; None if the user has named the lock.
    """
    builds = _build_notes(resolution, matrix.packages, source)
    if kept is not None and isinstance(source, LockSource):
        used, unused = _linked(resolution, source)
        verb = "is" if len(used) == 1 else "are"
        other = f"; {', '.join(used)} {verb} from find-links, not from the lock" if used else ""
        why = "it does not fit the matrix and the lock"
        left = [f"not using {', '.join(unused)} from find-links: {why}"] if unused else []
        return (*builds, f"the versions are those of {source.name}{kept}{other}", *left)
    return (*builds, *resolution.remarks())


def _build_notes(
    resolution: Resolution, entries: Iterable[PackageEntry], source: CandidateSource | None
) -> tuple[str, ...]:
    """Return for each package with a preferred local label which build was chosen, and why no other."""
    searched = "in find-links or an index"
    if isinstance(source, LockSource):
        more = " or in find-links" if isinstance(source, OverriddenLock) else ""
        searched = f"in {source.name}{more}"
    return tuple(filter(None, (build_note(resolution, entry, searched) for entry in entries)))


def check_reached(conflict: Conflict, source: IndexSource | LockSource) -> None:
    """Raise FetchFailed if *conflict* is about names that cannot be looked up, since colablock is offline.

    Of a name with a file at hand that cannot be used, the conflict says more than the index that is away.
    """
    if isinstance(source, LockSource) and not isinstance(source, OverriddenLock):
        return
    unusable = {one.name for one in conflict.refused if one.reason is Reason.UNUSABLE}
    names = sorted(conflict.edges.keys() - unusable)
    errors = [source.unreached[name] for name in names if name in source.unreached]
    if not errors:
        return
    first = errors[0]
    lines = list(dict.fromkeys(error.message for error in errors))
    if len(lines) > 1:
        lines = ["no solution with the files that are available", *lines[:_SHOWN]]
        lines += [f"and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
    raise FetchFailed("\n  ".join(lines), url=first.url, hint=first.hint) from first


def _linked(resolution: Resolution, source: CandidateSource) -> tuple[list[str], list[str]]:
    """Return the pins that are from find-links in place of the lock, and files there that are not used."""
    used: list[str] = []
    unused: list[str] = []
    if not isinstance(source, OverriddenLock):
        return used, unused
    for name, pin in resolution.pins.items():
        linked = source.links(name)
        if pin.candidate.origin is CandidateOrigin.FIND_LINKS:
            used.append(str(pin.candidate))
        elif linked and linked[0].version != pin.version:
            unused.append(str(linked[0]))
    told = {build for build, _ in resolution.unused.values()}  # with the cause
    return used, [build for build in unused if build not in told]


def managed_note(kernel: Snapshot) -> tuple[str, ...]:
    """Return a note if the environment is externally managed."""
    if kernel.externally_managed is None:
        return ()
    where = kernel.prefix or "this runtime"
    return (
        f"{where} is externally managed (PEP 668): `apply` changes it with `--break-system-packages` only",
    )


def without_linked(
    versions: Mapping[NormalizedName, Version], source: IndexSource | LockSource, settings: Settings
) -> Mapping[NormalizedName, Version]:
    """Return the preferred *versions* without the names that find-links of this call replace."""
    if not settings.links_override or isinstance(source, LockSource):
        return versions
    return {name: version for name, version in versions.items() if not source.linked(name).candidates}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedIndex:
    """An *index* of the *variant* that cannot be reached from here, and the *error* that says why."""

    variant: str | None
    index: Index
    error: FetchFailed

    def note(self, taken: str | None) -> str:
        """Return the sentence that the variant *taken* is used in place of this one."""
        where = f"the index `{self.index.name}` at `{redacted(self.index.url)}`"
        reason = self.error.reason.splitlines()[0]
        return f"variant {taken} in place of {self.variant}: {where} cannot be reached: {reason}"


def blocked_before(matrix: Matrix, known: Mapping[str, FetchFailed]) -> BlockedIndex | None:
    """Return the first own index of *matrix* that is one of *known*, the indexes found away by their URL."""
    for index in matrix.own_indexes:
        if index.url in known:
            return BlockedIndex(variant=matrix.variant, index=index, error=known[index.url])
    return None


def blocked_by(error: FetchFailed, matrix: Matrix, *, offline: bool) -> BlockedIndex | None:
    """Return the own index of *matrix* that *error* is about; None if it is about something else."""
    host = urlsplit(error.url).netloc
    for index in matrix.own_indexes:
        if host in {urlsplit(index.url).netloc, *index.file_hosts} and (error.is_away or offline):
            return BlockedIndex(variant=matrix.variant, index=index, error=error)
    return None


def blocked_in(planned: PlannedChange) -> BlockedIndex | None:
    """Return the own index of the matrix whose files the plan needs and cannot fetch; None if all can be.

    A plan by a lock reads no index, so one byte of the first file of each own index is requested.
    """
    fetcher = planned.preparer.fetcher
    artifacts = [step.artifact for step in planned.plan.steps if step.artifact is not None]
    for index in planned.matrix.own_indexes:
        url = index.url.rstrip("/")
        own = [one for one in artifacts if (one.index or "").rstrip("/") == url and not fetcher.is_here(one)]
        error = _unreached(fetcher, own[0].url) if own else None
        if error is not None:
            return BlockedIndex(variant=planned.matrix.variant, index=index, error=error)
    return None


def _unreached(fetcher: Fetcher, url: str) -> FetchFailed | None:
    """Return why nothing of *url* can be fetched; None if it can, or if its server answers otherwise."""
    if fetcher.offline:
        return FetchFailed("colablock is offline", url=url, is_passing=True)
    try:
        fetcher.get_range(url, 0, 1)
    except FetchFailed as error:
        return error if error.is_away else None
    return None
