"""One request solved: for the kernel as it stands, or from nothing for the Pythons at hand."""

from __future__ import annotations

import sys
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._vendor.packaging.utils import InvalidName, NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import unmet
from colablock.environment.interpreters import Interpreter, find_interpreters
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.environment.snapshot import Snapshot, fingerprint, snapshot_of
from colablock.errors import InvalidInput, NoSolution, NotFound, Refused, Unmet
from colablock.index.build import Builder
from colablock.index.finder import IndexSource
from colablock.lockfile.pylock import DELTA, LockSource, read_lock
from colablock.lockfile.store import LockHead, LockStore, assumed_otherwise, read_head
from colablock.matrix.catalog import find_matrix, list_matrices
from colablock.matrix.model import roots
from colablock.network.fetcher import Fetcher
from colablock.planning.hints import alternatives
from colablock.planning.plan import Plan, Remedy, Step, Target
from colablock.planning.planner import make_plan
from colablock.planning.target import PythonCandidate, best_offer, build_note, has_preferred_builds
from colablock.planning.wheels import WheelPreparer
from colablock.resolver.conflict_report import explain, misfits
from colablock.resolver.model import PYTHON, Request, Unsolvable
from colablock.resolver.repair import Repairer
from colablock.resolver.resolver import resolve
from colablock.runtimes.catalog import runtimes

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock.index.finder import CandidateSource
    from colablock.matrix.model import Matrix
    from colablock.network.settings import Settings
    from colablock.resolver.model import Resolution

__all__ = ["PlannedChange", "Solver"]

# Where no interpreter takes a stack, one of these is fetched: the newest that does.
_OLDEST = Version("3.9")  # of the Pythons at hand: what older ones take is no training stack of today
_ENOUGH = 2
FETCHABLE = ("3.13", "3.12", "3.11", "3.10")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """A plan, with all that is needed to carry it out.

    *snapshot* is the target's state; nothing is installed in an environment
    that is to be made.
    """

    plan: Plan
    matrix: Matrix
    resolution: Resolution
    snapshot: Snapshot
    preparer: WheelPreparer

    def pins(self) -> dict[NormalizedName, str]:
        """Return the versions of the stack, by name."""
        return {name: str(pin.version) for name, pin in self.resolution.pins.items()}

    def unmet_before(self) -> frozenset[tuple[NormalizedName, str]]:
        """Return the requirements of kept distributions that nobody met before either."""
        kept = [name for name, pin in self.resolution.pins.items() if pin.is_installed]
        return unmet(kept, self.snapshot) - self.resolution.request.must_hold

    def why(self, package: str) -> list[str]:
        """Return why *package* is at its version, or goes, or stays, one sentence each.

        Raises InvalidInput for what is no name, NotFound for what is neither
        installed nor part of the stack.
        """
        try:
            name = canonicalize_name(package, validate=True)
        except InvalidName as error:
            raise InvalidInput(f"`{package}` is no name of a project") from error
        lines = [_told(step) for step in self.plan.steps if step.name == name]
        lines += [
            f"keep {name} {kept.version}: {kept.reason}" for kept in self.plan.kept if kept.name == name
        ]
        pin = self.resolution.pins.get(name)
        for parent in pin.parents if pin is not None else ():
            lines.append(f"{parent.name or parent.path} asks for {parent.requirement}")
        for breakage in self.plan.breakages:
            if breakage.name == name:
                lines += [f"{link}" for link in breakage.because]
                lines.append(f"so it is broken by this plan; what is done: {breakage.remedy.value}")
        there = self.snapshot.installed.get(name)
        if not lines and there is not None:
            lines = [f"{name} {there.version} is installed, and this plan does not concern it"]
        if not lines:
            raise NotFound(f"{name} is neither installed nor part of {self.matrix.name}")
        return list(dict.fromkeys(lines))


def _told(step: Step) -> str:
    versions = " -> ".join(filter(None, (step.previous, step.version)))
    return f"{step.action.value} {step.name} {versions}: {step.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """A matrix with its variant chosen, the user's additions, and where candidates come from."""

    matrix: Matrix
    kernel: Snapshot
    settings: Settings
    environ: Mapping[str, str]
    reporter: Reporter
    with_: tuple[str, ...] = ()
    broken: Remedy | None = None
    lock: Path | None = None  # asked for by name
    lock_store: LockStore | None = None  # of the locks that stand beside the matrix
    preferred: Mapping[NormalizedName, Version] = field(default_factory=dict)  # of an earlier lock
    python: str | None = None  # asked for by name
    must_hold: frozenset[tuple[NormalizedName, str]] = frozenset()  # of the kernel: see Request

    # -- in the kernel

    def in_kernel(self, why: str) -> PlannedChange:
        """Return the plan for the kernel.  Raises NoSolution with what else would do."""
        kernel = self.kernel
        self.reporter.stage(
            f"Resolving {self.matrix.name} for Python {kernel.environment.python_version} as it stands"
        )
        locked = self._locked(kernel.environment, kernel)
        preparer = self._preparer(kernel.environment, kernel.python, settled=kernel.installed, locked=locked)
        request = self._request(
            kernel.environment,
            preparer.source,
            installed=kernel.installed,
            protected=kernel.protected,
            must_hold=self.must_hold,
        )
        try:
            resolution = self._resolve(request, preparer.source)
        except NoSolution as error:
            if locked is None or self.lock is not None:
                raise
            self._set_aside(locked, error)
            return replace(self, lock_store=None).in_kernel(why)
        plan = make_plan(
            matrix=self.matrix,
            resolution=resolution,
            snapshot=kernel,
            target=Target.KERNEL,
            why_target=why,
            repair=Repairer(request, preparer.source),
            broken=self.broken,
            fingerprint=fingerprint(kernel),
            notes=(*kernel.notes, *_managed(kernel), *self._notes(resolution, locked)),
        )
        return PlannedChange(
            plan=plan, matrix=self.matrix, resolution=resolution, snapshot=kernel, preparer=preparer
        )

    # -- from nothing

    def from_nothing(self, environment: Environment, python: str) -> tuple[Resolution, WheelPreparer]:
        """Return the newest solution for *environment*; *python* builds where something is built.

        Where a complete lock stands beside the matrix, its pins are the solution.
        """
        self.reporter.stage(f"Resolving {self.matrix.name} for Python {environment.python_version}")
        locked = self._locked(environment)
        preparer = self._preparer(environment, python, locked=locked)
        try:
            return self._resolve(self._request(environment, preparer.source), preparer.source), preparer
        except NoSolution as error:
            if locked is None or self.lock is not None:
                raise
            self._set_aside(locked, error)
            return replace(self, lock_store=None).from_nothing(environment, python)

    def in_env(self, why: str) -> PlannedChange:
        """Return the plan for an isolated environment with the Python at hand that takes the stack best.

        Raises NoSolution with the reason of each Python when none does.
        """
        tried = _Tried()
        for environment, python in self._pythons():
            self._try(environment, python, tried)
            if tried.offers and has_preferred_builds(tried.offers[-1].resolution, self.matrix.packages):
                break
            if not tried.worthwhile:
                break
        if not tried.offers and tried.worthwhile and self.kernel.python and self.python is None:
            for environment in self._fetchable(tried.minors):
                self._try(environment, "", tried)
                if tried.offers:
                    break
        if not tried.offers:
            raise _no_python(self.matrix, tried.refusals)
        best, reason = best_offer(tried.offers)
        return self._env_plan(best, tried.workshops[best.version], f"{why}; {reason}")

    def in_env_of(self, environment: Environment, why: str) -> PlannedChange:
        """Return the plan for an isolated environment of this very Python, which need not be at hand."""
        resolution, preparer = self.from_nothing(environment, "")
        return self._env_plan(
            PythonCandidate(python="", environment=environment, resolution=resolution), preparer, why
        )

    def _env_plan(self, offer: PythonCandidate, preparer: WheelPreparer, why: str) -> PlannedChange:
        empty = _empty(offer, self.kernel)
        plan = make_plan(
            matrix=self.matrix,
            resolution=offer.resolution,
            snapshot=empty,
            target=Target.ENV,
            why_target=why,
            notes=self._notes(offer.resolution, preparer.source),
        )
        return PlannedChange(
            plan=plan, matrix=self.matrix, resolution=offer.resolution, snapshot=empty, preparer=preparer
        )

    def _try(self, environment: Environment, python: str, tried: _Tried) -> None:
        """Solve for one Python, and keep the offer or the reason why there is none."""
        version = environment.python_version
        tried.minors.add(environment.short)
        try:
            resolution, tried.workshops[version] = self.from_nothing(environment, python)
        except NoSolution as error:
            tried.refusals[str(version)] = error
            # A conflict among plain ranges hardly ends with another Python; a second one tells.
            tried.worthwhile = error.is_about_python or len(tried.refusals) < _ENOUGH
            return
        running = environment.short == self.kernel.environment.short
        offer = PythonCandidate(
            python=python, environment=environment, resolution=resolution, running=running
        )
        tried.offers.append(offer)

    def _pythons(self) -> Iterator[tuple[Environment, str]]:
        """Yield each Python that may carry the environment, one per minor version, with its executable.

        The executable is "" for a recorded runtime's.
        """
        if self.kernel.python == "":
            yield from self._recorded_pythons()
            return
        if self.python is not None:
            yield self.kernel.environment, self.kernel.python
            return
        seen: set[str] = set()
        for found in self._interpreters():
            short = ".".join(found.version.split(".")[:2])
            if Version(found.version) < _OLDEST or short in seen:
                continue
            if not self.matrix.requires_python.contains(found.version, prereleases=True):
                continue
            seen.add(short)
            try:
                state = snapshot_of(
                    Path(found.path), environ=self.environ, accelerator=self.kernel.accelerator
                )
            except InvalidInput:
                continue
            yield state.environment, found.path

    def _interpreters(self) -> list[Interpreter]:
        """Return what is at hand, the kernel's minor version first; a stack that compiles needs Python.h."""
        compiles = self.kernel.accelerator.kind == "cuda"
        found = [one for one in find_interpreters(self.environ) if one.has_headers or not compiles]
        return sorted(found, key=lambda one: not one.version.startswith(f"{self.kernel.environment.short}."))

    def _fetchable(self, seen: Collection[str]) -> Iterator[Environment]:
        """Yield the environments of Pythons that uv can fetch, newest first, apart from those *seen*."""
        for short in FETCHABLE:
            if short not in seen and self.matrix.requires_python.contains(f"{short}.0", prereleases=True):
                yield environment_for(short, self.kernel.environment.platform)

    def _recorded_pythons(self) -> Iterator[tuple[Environment, str]]:
        own = self.kernel.environment
        if self.matrix.requires_python.contains(own.python_version, prereleases=True):
            yield own, ""
        for short in FETCHABLE:
            allowed = self.matrix.requires_python.contains(f"{short}.0", prereleases=True)
            if allowed and not str(own.python_version).startswith(f"{short}."):
                yield environment_for(short, own.platform), ""

    # -- one solve

    def _request(self, environment: Environment, source: CandidateSource, **facts: object) -> Request:
        asked = roots(self.matrix, self.with_)
        locked = source if isinstance(source, LockSource) else None
        known = {entry.name for entry in asked}
        base = Request(
            environment=environment,
            roots=(*asked, *(entry for entry in locked.entries() if entry.name not in known))
            if locked
            else asked,
            fixed=locked.versions if locked else {},
            constraints=self.matrix.constraints,
            absent=self.matrix.absent,
            requires_python=self.matrix.requires_python,
            prerelease=self.matrix.prerelease,
            preferred=self.preferred,
        )
        return replace(base, **facts)  # type: ignore[arg-type]

    def _resolve(self, request: Request, source: CandidateSource) -> Resolution:
        try:
            return resolve(request, source, self.reporter)
        except Unsolvable as error:
            found = misfits(request, source)
            hint = self._ways_out(request) if found or PYTHON in error.conflict.names else None
            raise explain(error.conflict, asker=self.matrix.name, misfits=found, hint=hint) from error

    def _ways_out(self, request: Request) -> str | None:
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
        """Return the source of candidates for *environment*, with what makes wheels of their files."""
        fetcher = Fetcher.for_settings(self.settings, self.environ)
        builder = Builder(
            python=python or partial(self._builder_for, environment),
            environment=environment,
            cache=fetcher.cache,
            environ=self.environ,
            index=fetcher.address(self.settings.default_index),
            find_links=self.settings.find_links,
            exclude_newer=self.matrix.exclude_newer,
            offline=self.settings.offline,
        )
        asked = roots(self.matrix, self.with_)
        source: CandidateSource
        if locked is not None:
            source = locked
        else:
            source = IndexSource.for_matrix(
                self.matrix,
                environment=environment,
                fetcher=fetcher,
                default_index=self.settings.default_index,
                find_links=self.settings.find_links,
                additions=asked[len(self.matrix.packages) :],
                build=builder,
                settled=settled,
            )
        entries = {
            entry.name: entry
            for entry in asked
            if entry.marker is None or entry.marker.evaluate(dict(environment.markers))
        }
        return WheelPreparer(
            source=source,
            fetcher=fetcher,
            builder=builder,
            entries=entries,
            allow_build=self.matrix.options.allow_build,
        )

    def _builder_for(self, environment: Environment) -> str:
        """Return an interpreter that tells what an sdist needs where the target's own is not here.

        The requirements of an sdist seldom depend on who builds it; its own
        minor version is asked first.
        """
        if not self.matrix.options.allow_build:
            return ""
        here = find_interpreters(self.environ)
        same = (one for one in here if one.version.startswith(f"{environment.short}."))
        return next(same, here[0]).path if here else sys.executable

    def _locked(self, environment: Environment, kernel: Snapshot | None = None) -> LockSource | None:
        """Return the lock to go by as a source: the one asked for, else the one beside the matrix that fits.

        Raises NoSolution where the one asked for is for another Python, or assumes
        to be installed what *kernel* has not.
        """
        if self.lock is not None:
            _check_assumed(read_head(self.lock), kernel)
            return self._lock_source(self.lock, environment)
        if self.lock_store is None:
            return None
        head = self.lock_store.for_kernel(kernel) if kernel else self.lock_store.for_environment(environment)
        try:
            return self._lock_source(head.path, environment) if head is not None else None
        except NoSolution as error:  # it is for another platform
            self.reporter.note(f"a lock is left aside: {error.message.splitlines()[0]}")
            return None

    def _lock_source(self, path: Path, environment: Environment) -> LockSource:
        return LockSource(
            read_lock(path),
            path.parent,
            environment,
            allow_build=self.matrix.options.allow_build,
            name=f"the lock `{path.name}`",
        )

    def _set_aside(self, locked: LockSource, error: NoSolution) -> None:
        self.reporter.note(f"{locked.name} is left aside: {error.message.splitlines()[0]}")

    def _notes(self, resolution: Resolution, source: CandidateSource | None) -> tuple[str, ...]:
        builds = filter(None, (build_note(resolution, entry) for entry in self.matrix.packages))
        if self.lock is None and isinstance(source, LockSource):
            return (*builds, f"the versions are those of {source.name}")
        return (*builds, *resolution.remarks())


@dataclass(slots=True)
class _Tried:
    """What the Pythons that were asked so far have to offer."""

    offers: list[PythonCandidate] = field(default_factory=list)
    workshops: dict[Version, WheelPreparer] = field(default_factory=dict)
    refusals: dict[str, NoSolution] = field(default_factory=dict)
    minors: set[str] = field(default_factory=set)
    worthwhile: bool = True  # to ask another Python: nothing refused so far but for the Python's sake


def _check_assumed(head: LockHead | None, kernel: Snapshot | None) -> None:
    """Raise NoSolution where a runtime delta is for another state than that of *kernel*."""
    if head is None or head.kind != DELTA:
        return
    what = f"the lock `{head.path.name}` is a delta over {head.runtime}"
    if kernel is None:
        hint = "Use it with `--into kernel`, or make a complete lock with `--python-version`"
        raise NoSolution(f"{what}, and nothing is installed in an isolated environment", hint=hint)
    differing = assumed_otherwise(head, kernel)
    if differing:
        hint = "Make a lock for this state, or call without `--lock`"
        raise NoSolution("\n  ".join([f"{what}, and this is another state", *differing]), hint=hint)


def _managed(kernel: Snapshot) -> Iterator[str]:
    if kernel.externally_managed is not None:
        yield (
            f"{kernel.prefix or 'this runtime'} is externally managed (PEP 668): "
            "`apply` changes it with `--break-system-packages` only"
        )


def _empty(offer: PythonCandidate, kernel: Snapshot) -> Snapshot:
    """Return the state of an environment that is to be made with the Python of *offer*."""
    return Snapshot(
        environment=offer.environment,
        python=offer.python,
        prefix="",
        site="",
        installed={},
        accelerator=kernel.accelerator,
    )


def _no_python(matrix: Matrix, refusals: Mapping[str, NoSolution]) -> Unmet:
    """Return why no Python takes the stack: the reason of each, in full when they are the same."""
    if not refusals:
        allowed = matrix.requires_python or "any"
        return Refused(f"no Python that {matrix.name} takes ({allowed}) is at hand or can be fetched")
    texts = {str(error) for error in refusals.values()}
    first = next(iter(refusals.values()))
    if len(texts) == 1:
        return first
    lines = [f"no Python at hand takes {matrix.name}"]
    for version, error in refusals.items():
        lines.append(f"with Python {version}: {error}")
    return NoSolution("\n".join(lines))
