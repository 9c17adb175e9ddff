"""Solve one request: over the kernel's environment, or from nothing for the available Pythons."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING

from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment
from colablock.environment.snapshot import Snapshot, fingerprint
from colablock.errors import FetchFailed, NoSolution, Unmet
from colablock.index.build import Builder
from colablock.index.prefetch import ReadOnce
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.overridden_lock import OverriddenLock
from colablock.lockfile.standing import StandingLocks
from colablock.lockfile.store import LockStore, read_head
from colablock.matrix.catalog import find_matrix, list_matrices
from colablock.matrix.model import roots
from colablock.matrix.package_sources import PackageSources
from colablock.network.fetcher import Fetcher
from colablock.planning.bound_names import check_bound, resolve_bound
from colablock.planning.locks import check_assumed, keep_requests, moved_requests, open_lock, with_origin
from colablock.planning.plan import Remedy, Target
from colablock.planning.planned import PlannedChange
from colablock.planning.planner import make_plan
from colablock.planning.pythons import (
    FETCHABLE,
    PythonCandidate,
    Pythons,
    TriedPythons,
    alternatives,
    best_python,
    no_python,
)
from colablock.planning.request_check import check_additions
from colablock.planning.shared_files import builds_in
from colablock.planning.sources import (
    candidate_source,
    check_reached,
    managed_note,
    source_notes,
    with_preferred_builds,
    without_builds,
    without_linked,
)
from colablock.planning.target import (
    has_preferred_builds,
    more_harm,
    why_not_kernel,
)
from colablock.planning.wheels import WheelPreparer
from colablock.resolver.members import mixed, resolve_members
from colablock.resolver.model import LOCK, PYTHON, Request, Unsolvable
from colablock.resolver.repair import Repairer

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock.index.candidates import CandidateSource
    from colablock.index.finder import IndexSource
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile
    from colablock.network.settings import Settings
    from colablock.resolver.model import Resolution

__all__ = ["PlannedChange", "Solver"]

_ENOUGH = 2  # Pythons that fail with a conflict that is not about Python


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """A matrix with its variant chosen, the user's additional requirements, and the sources of candidates."""

    matrix: Matrix
    kernel: Snapshot
    settings: Settings
    environ: Mapping[str, str]
    reporter: Reporter
    with_: tuple[str, ...] = ()
    broken: Remedy | None = None
    lock: LockFile | None = None  # named by the user
    lock_store: LockStore | None = None  # the lock files beside the matrix
    standing: Sequence[LockFile] = ()  # locks that may know an archive whose host cannot be reached
    away: set[str] = field(default_factory=set)  # the URLs of such archives
    readers: dict[Settings, tuple[Fetcher, ReadOnce]] = field(default_factory=dict)  # of this call
    preferred: Mapping[NormalizedName, Version] = field(default_factory=dict)  # the pins of an earlier lock
    expected: Mapping[NormalizedName, Version | None] = field(default_factory=dict)  # see IndexSource.expect
    python: str | None = None  # named by the user
    must_hold: frozenset[tuple[NormalizedName, str]] = frozenset()  # see Request
    takes_unhashed: bool = False  # files without a strong hash, for a lock that hashes what it fetches
    is_portable: bool = False  # a lock for other machines
    damaged: Mapping[NormalizedName, Version] = field(default_factory=dict)  # the versions to install again
    unfixed: frozenset[NormalizedName] = frozenset()  # may keep their installed version beside a lock
    copies_first: bool = True  # offline, prefer the files of a lock that this machine has

    # -- in the kernel

    def in_kernel(self, why: str) -> PlannedChange:
        """Return the plan for the kernel.  Raises NoSolution, with alternatives as its hint."""
        kernel = self.kernel
        live = f"for Python {kernel.environment.python_version} as it stands"
        self.reporter.stage(
            f"{self._resolving()} {live if kernel.source == 'live' else f'on {kernel.source}'}"
        )
        locked = self._locked(kernel.environment, kernel)
        keeping = self._keeping(locked, why) if locked is not None else None
        if keeping is not None:
            return keeping
        preparer = self._preparer(kernel.environment, kernel.python, settled=kernel.installed, locked=locked)
        request = self._request(
            kernel.environment,
            preparer.source,
            installed=kernel.installed,
            protected=kernel.protected,
            must_hold=self.must_hold,
            damaged=frozenset(self.damaged),
        )
        try:
            return self._kernel_plan(request, preparer, locked, why)
        except NoSolution as error:
            return self._without_locks(preparer.source, error).in_kernel(why)

    def _kernel_plan(
        self, request: Request, preparer: WheelPreparer, locked: LockSource | None, why: str
    ) -> PlannedChange:
        """Return the plan with the builds that the matrix prefers, unless they do harm that others do not."""
        plain = self._resolve(request, preparer.source)
        better = with_preferred_builds(plain, self.matrix, preparer.source, self._resolve)
        plan = partial(self._planned, preparer=preparer, locked=locked, why=why)
        if better.pins is plain.pins:
            return plan(better)
        try:
            planned = plan(better)
        except Unmet as error:
            return plan(without_builds(plain, better, error))
        if why_not_kernel(planned.plan, (*better.left, *mixed(planned.resolution))) is None:
            return planned
        harm = more_harm(plan(plain), planned)
        return plan(without_builds(plain, better, harm)) if harm else planned

    def _planned(
        self, resolution: Resolution, preparer: WheelPreparer, locked: LockSource | None, why: str
    ) -> PlannedChange:
        kernel, source = self.kernel, preparer.source
        claims = preparer.claims(resolution, kernel)
        builds = builds_in(kernel, claims)
        if any(name in resolution.pins and builds[name] & resolution.pins.keys() for name in builds):
            found = self._resolve(replace(resolution.request, builds=builds), source)
            resolution = replace(found, unused=resolution.unused)
        plan = make_plan(
            matrix=self.matrix,
            resolution=resolution,
            snapshot=kernel,
            target=Target.KERNEL,
            why_target=why,
            repair=Repairer(resolution.request, source),
            broken=self.broken,
            fingerprint=fingerprint(kernel),
            notes=(*kernel.notes, *managed_note(kernel), *self._notes(resolution, source)),
            builds=builds,
            listed={claim.name for claim in claims},
        )
        self.reporter.resolving("", len(resolution.pins))
        plan = with_origin(plan, self.matrix, locked)
        return PlannedChange(
            plan=plan, matrix=self.matrix, resolution=resolution, snapshot=kernel, preparer=preparer
        )

    # -- from nothing

    def from_nothing(self, environment: Environment, python: str) -> tuple[Resolution, WheelPreparer]:
        """Return the newest solution for *environment*; *python* is the interpreter that builds sdists.

        If a complete lock beside the matrix fits, its pins are the solution.
        """
        self.reporter.stage(f"{self._resolving()} for Python {environment.python_version}")
        locked = self._locked(environment)
        preparer = self._preparer(environment, python, locked=locked)
        source = preparer.source
        try:
            found = self._resolve(self._request(environment, source), source)
        except NoSolution as error:
            return self._without_locks(source, error).from_nothing(environment, python)
        found = with_preferred_builds(found, self.matrix, source, self._resolve)
        self.reporter.resolving("", len(found.pins))
        return found, preparer

    def _resolving(self) -> str:
        variant = f" ({self.matrix.variant})" if self.matrix.variant else ""
        return f"Resolving {self.matrix.name}{variant}"

    def in_env(self, why: str) -> PlannedChange:
        """Return the plan for an isolated environment with the available Python that fits best.

        Raises NoSolution with the reason for each Python if none fits.
        """
        tried = TriedPythons()
        for environment, python in self._pythons.available():
            self._try(environment, python, tried)
            if tried.candidates and has_preferred_builds(
                tried.candidates[-1].resolution, self.matrix.packages
            ):
                break
            if not tried.worthwhile:
                break
        is_worthwhile = tried.worthwhile or self._pythons.has_bundled
        if not tried.candidates and is_worthwhile and self.kernel.python and self.python is None:
            for environment in self._pythons.fetchable(tried.minors):
                self._try(environment, "", tried)
                if tried.candidates:
                    break
        if not tried.candidates:
            raise no_python(self.matrix, tried.refusals)
        best, reason = best_python(tried.candidates)
        return self._env_plan(best, tried.preparers[best.version], f"{why}; {reason}")

    def in_env_of(self, environment: Environment, why: str) -> PlannedChange:
        """Return the plan for an isolated environment of exactly this Python, installed or not."""
        resolution, preparer = self.from_nothing(environment, "")
        candidate = PythonCandidate(python="", environment=environment, resolution=resolution)
        return self._env_plan(candidate, preparer, why)

    def _env_plan(self, candidate: PythonCandidate, preparer: WheelPreparer, why: str) -> PlannedChange:
        empty = candidate.empty(self.kernel.accelerator)
        plan = make_plan(
            matrix=self.matrix,
            resolution=candidate.resolution,
            snapshot=empty,
            target=Target.ENV,
            why_target=why,
            notes=self._notes(candidate.resolution, preparer.source),
        )
        plan = with_origin(plan, self.matrix, preparer.source)
        return PlannedChange(
            plan=plan, matrix=self.matrix, resolution=candidate.resolution, snapshot=empty, preparer=preparer
        )

    def _try(self, environment: Environment, python: str, tried: TriedPythons) -> None:
        """Solve for one Python; keep the resolution, or the reason why there is none."""
        version = environment.python_version
        tried.minors.add(environment.short)
        try:
            resolution, tried.preparers[version] = self.from_nothing(environment, python)
        except FetchFailed as error:
            if not (self.settings.offline or tried.candidates):
                raise
            tried.refusals[str(version)] = error  # files for another Python may be at hand, or locked
            return
        except NoSolution as error:
            tried.refusals[str(version)] = error
            # Another Python rarely solves a conflict among version ranges: one more is tried, then no other.
            tried.worthwhile = not error.is_universal and (
                error.is_about_python or len(tried.refusals) < _ENOUGH
            )
            return
        running = environment.short == self.kernel.environment.short
        candidate = PythonCandidate(
            python=python,
            environment=environment,
            resolution=resolution,
            running=running,
            bundled=self._pythons.has_bundled and not python,
        )
        tried.candidates.append(candidate)

    @property
    def _pythons(self) -> Pythons:
        return Pythons(
            matrix=self.matrix,
            kernel=self.kernel,
            settings=self.settings,
            environ=self.environ,
            is_named=self.python is not None,
        )

    # -- one solve

    def _request(
        self, environment: Environment, source: IndexSource | LockSource, **facts: object
    ) -> Request:
        asked = roots(self.matrix, self.with_)
        locked = source if isinstance(source, LockSource) else None
        known = {entry.name for entry in asked}
        base = Request(
            environment=environment,
            roots=(*asked, *(entry for entry in locked.entries() if entry.name not in known))
            if locked
            else asked,
            fixed={n: v for n, v in locked.versions.items() if n not in self.unfixed} if locked else {},
            constraints=self.matrix.constraints,
            absent=self.matrix.absent,
            requires_python=self.matrix.requires_python,
            prerelease=self.matrix.prerelease,
            preferred={**without_linked(self.preferred, source, self.settings), **self.damaged},
        )
        return replace(base, **facts)  # type: ignore[arg-type]

    def _resolve(self, request: Request, source: IndexSource | LockSource) -> Resolution:
        check_additions(request, source, self.with_, self.matrix)
        try:
            additions = roots(self.matrix, self.with_)[len(self.matrix.packages) :]
            sources = PackageSources.of(self.matrix, request.environment, additions)
            if isinstance(source, LockSource) and not isinstance(source, OverriddenLock):
                resolution = resolve_members(request, source, self.reporter)
                check_bound(resolution, sources)
                return resolution
            return resolve_bound(request, source, sources, self.reporter)
        except Unsolvable as error:
            from colablock.resolver.conflict_report import explain, misfits  # noqa: PLC0415 - of conflicts only

            check_reached(error.conflict, source)
            found = misfits(request, source)
            hint = self._alternatives(request) if found or PYTHON in error.conflict.names else None
            unknown = [one.name for one in self.matrix.packages if one.name in error.conflict.missing]
            if unknown and error.conflict.where != (LOCK,):
                hint = hint or f"Check the spelling of `{unknown[0]}` in `{self.matrix.source}`"
            raise explain(error.conflict, source, asker=self.matrix.name, misfits=found, hint=hint) from error

    def _alternatives(self, request: Request) -> str | None:
        from colablock.runtimes.catalog import runtimes  # noqa: PLC0415 - of conflicts only

        others = [
            one.name for one in list_matrices(environ=self.environ) if not (one.fault or one.shadowed_by)
        ]
        return alternatives(
            self.matrix,
            request.environment.python_version,
            in_kernel=bool(request.installed),
            pythons=FETCHABLE,
            runtimes=[runtime for runtime in runtimes(environ=self.environ) if runtime.flavour == "gpu"],
            others=[find_matrix(name, environ=self.environ) for name in others],
        )

    def _preparer(
        self,
        environment: Environment,
        python: str,
        settled: Container[NormalizedName] = (),
        locked: LockSource | None = None,
    ) -> WheelPreparer:
        """Return the source of candidates for *environment*, with the means to prepare their wheels."""
        fetcher, reads = self._reader()
        # A lock names no credentials, and its files come from these places.
        for url in (self.settings.default_index, *(one.url for one in self.matrix.indexes)):
            fetcher.learn_credentials(url)
        builder = Builder(
            python=python or partial(self._pythons.builder_for, environment),
            environment=environment,
            cache=fetcher.cache,
            environ=self.environ,
            index=self.settings.default_index,
            address=fetcher.for_child,
            find_links=self.settings.find_links,
            exclude_newer=self.matrix.exclude_newer,
            offline=self.settings.offline,
            bundle=self.settings.bundle,
        )
        standing = StandingLocks(
            paths=self.standing,
            matrix=self.matrix.name,
            environment=environment,
            reporter=self.reporter,
            away=self.away,
        )
        source = candidate_source(
            self.matrix,
            environment,
            settings=self.settings,
            fetcher=fetcher,
            builder=builder,
            with_=self.with_,
            settled=settled,
            standing=standing,
            locked=locked,
            is_named=self.lock is not None,
            takes_unhashed=self.takes_unhashed,
            is_portable=self.is_portable,
            copies_first=self.copies_first,
            is_here=bool(self.kernel.python),
            reads=reads,
        )
        if not isinstance(source, LockSource):
            source.expect(self.expected)
        additions = roots(self.matrix, self.with_)[len(self.matrix.packages) :]
        return WheelPreparer(
            source=source,
            fetcher=fetcher,
            builder=builder,
            entries=PackageSources.of(self.matrix, environment, additions).entries,
            standing=standing,
            allow_build=self.matrix.options.allow_build,
        )

    def _reader(self) -> tuple[Fetcher, ReadOnce]:
        """Return the fetcher for the settings, and what other solves of this call have read with it."""
        if self.settings not in self.readers:
            self.readers[self.settings] = Fetcher.for_settings(self.settings, self.environ), ReadOnce()
        return self.readers[self.settings]

    def _locked(self, environment: Environment, kernel: Snapshot | None = None) -> LockSource | None:
        """Return the lock to use as the source: the one the user names, else one beside the matrix that fits.

        Raises NoSolution if the lock that the user names is for another Python, or
        assumes distributions that *kernel* does not have.
        """
        if self.lock is not None:
            check_assumed(read_head(self.lock), kernel)
            return self._lock_source(self.lock, environment)
        if self.lock_store is None:
            return None
        head = self.lock_store.for_kernel(kernel) if kernel else self.lock_store.for_environment(environment)
        try:
            return self._lock_source(head.path, environment) if head is not None else None
        except NoSolution as error:  # the lock is for another platform
            self.reporter.note(f"not using a lock: {error.headline}")
            return None

    def _keeping(self, locked: LockSource, why: str) -> PlannedChange | None:
        """Return the plan that keeps what *locked* would move although the user has installed it by name."""
        if self.lock is not None or self.unfixed or not self.kernel.python:
            return None
        moved = moved_requests(locked, self.kernel, roots(self.matrix, self.with_), self.environ)
        rest = {name: version for name, version in locked.versions.items() if name not in moved}
        free = replace(self, lock_store=None, preferred={**rest, **self.preferred})
        near = replace(self, unfixed=frozenset(moved))
        plans = (lambda: free.in_kernel(why), lambda: near.in_kernel(why))
        return keep_requests(moved, locked, plans, self.kernel, self.reporter)

    def _lock_source(self, path: LockFile, environment: Environment) -> LockSource:
        return open_lock(
            path,
            self.matrix,
            environment,
            settings=self.settings,
            environ=self.environ,
            additions=roots(self.matrix, self.with_)[len(self.matrix.packages) :],
        )

    def _notes(self, resolution: Resolution, source: CandidateSource) -> tuple[str, ...]:
        kept = ", except for what was installed by name" if self.unfixed else ""
        return source_notes(resolution, self.matrix, source, kept if self.lock is None else None)

    def _without_locks(self, source: CandidateSource, error: NoSolution) -> Solver:
        """Return the solver to go on with; raises *error* if no lock of the matrix led to it."""
        if not isinstance(source, LockSource) or self.lock is not None:
            raise error
        self.reporter.note(f"not using {source.name}: {error.headline}")
        # Find-links change the versions of the names that they have, and of others only if they must.
        kept = source.versions if isinstance(source, OverriddenLock) else {}
        return replace(self, lock_store=None, preferred={**kept, **self.preferred})
