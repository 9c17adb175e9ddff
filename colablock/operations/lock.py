"""Makes the lock files of a matrix: for one Python, for one recorded runtime, or for all there are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from colablock._common.fs import write_atomic
from colablock._common.urls import local_path, redacted
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment._probe import interpreter_facts
from colablock.environment.accelerator import Accelerator, accelerators_of
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.environment.requirements import applies
from colablock.environment.snapshot import Snapshot
from colablock.errors import InvalidInput, NoSolution, Refused
from colablock.lockfile.pylock import LockOrigin, check_lock_name, make_lock, read_lock, write_lock
from colablock.lockfile.refusals import write_refusals
from colablock.lockfile.store import (
    PLATFORM,
    LockHead,
    environment_target,
    lock_file_name,
    runtime_target,
)
from colablock.matrix.catalog import lock_folder
from colablock.matrix.model import select_variant
from colablock.planning.options import ApplyOptions
from colablock.planning.solver import PlannedChange
from colablock.resolver.model import Pin
from colablock.runtimes.catalog import load_runtime, runtime_names

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock.matrix.model import Matrix
    from colablock.planning.solver import Solver
    from colablock.planning.wheels import WheelPreparer
    from colablock.resolver.model import Resolution

__all__ = ["LockMaker", "LockOptions", "LockResult", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOptions:
    """What a lock is asked for beside the matrix.

    Without *upgrade*, or *upgrade_packages* that name it, a version of the lock
    that is there stays as long as it fits.  *exclude_newer* replaces the matrix's own.
    With *dry* nothing is written.
    """

    python_version: str | None = None
    platform: str | None = None
    output: Path | None = None  # default: beside the matrix
    upgrade: bool = False
    upgrade_packages: frozenset[NormalizedName] = frozenset()
    exclude_newer: datetime | None = None
    dry: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LockResult:
    """One lock that was made, with how its pins moved; or the *refusal*: why there is none."""

    target: str  # a recorded runtime, or ``py312``
    variant: str | None
    path: Path
    text: bytes = b""
    packages: int = 0
    moved: tuple[str, ...] = ()
    is_changed: bool = False
    refusal: str | None = None


def nobody() -> Snapshot:
    """Return this interpreter with nothing installed: what a solve from nothing starts with."""
    here = Environment.from_facts(interpreter_facts())
    return Snapshot(environment=here, python=sys.executable, prefix="", site="", installed={})


@dataclass(frozen=True, slots=True, kw_only=True)
class LockMaker:
    """Makes locks of one matrix, no variant chosen; *solver* gives the solve of a request over a state."""

    matrix: Matrix
    solver: Callable[[ApplyOptions, Snapshot], Solver]
    reporter: Reporter
    environ: Mapping[str, str]
    cwd: Path = field(default_factory=Path)

    def one(self, options: ApplyOptions, wanted: LockOptions) -> LockResult:
        """Return the lock of *options*: a runtime delta where it names a runtime, else a complete one.

        Raises NoSolution, FetchFailed, Refused (exit 1), InvalidInput (exit 2).
        """
        if options.runtime is None:
            return self._complete(options, wanted, self._environment(wanted))
        if wanted.python_version or wanted.platform:
            message = "a recorded runtime has its own Python and platform"
            raise InvalidInput(message, hint="Leave `--python-version` and `--platform` out")
        return self._delta(options, wanted, load_runtime(options.runtime, environ=self.environ))

    def standing(self, options: ApplyOptions, wanted: LockOptions) -> Path | None:
        """Return the lock beside the matrix that is what `one` would make; None where there is none."""
        if options.runtime is not None:
            runtime = load_runtime(options.runtime, environ=self.environ)
            lock_store = self.solver(options, runtime).lock_store
            head = lock_store.for_kernel(runtime) if lock_store else None
        else:
            environment = self._environment(wanted)
            variant = options.variant or self._aim(environment).variant
            lock_store = self.solver(replace(options, variant=variant), nobody()).lock_store
            head = lock_store.for_environment(environment) if lock_store else None
        return head.path if head is not None else None

    def lay_wheels(self, head: LockHead, into: Path) -> Path:
        """Make the wheels of ours that a lock names, in the folder *into* as beside the lock; return it.

        Raises NoSolution where the lock is of another matrix than it is now, FetchFailed, BadDistribution.
        """
        options = ApplyOptions(name=self.matrix.source, variant=head.variant, use_locks=False)
        if head.runtime is not None:
            runtime = load_runtime(head.runtime, environ=self.environ)
            planned = replace(self.solver(options, runtime), lock=head.path, lock_store=None).in_kernel(
                "exported"
            )
            resolution, preparer = planned.resolution, planned.preparer
        else:
            solver = replace(self.solver(options, nobody()), lock=head.path, lock_store=None)
            environment = environment_for(head.python, head.platform)
            resolution, preparer = solver.from_nothing(environment, solver.kernel.python)
        preparer.wheels_beside(resolution, into / head.path.name)
        return into

    def all(self, options: ApplyOptions, wanted: LockOptions) -> Iterator[LockResult]:
        """Yield the locks for every recorded runtime, then the complete ones for the Pythons that these have.

        For each variant that an accelerator there chooses.  What has no solution
        is yielded as a refusal, and kept beside the matrix for `colablock check`.
        Raises FetchFailed where an index cannot be read.
        """
        refused: list[dict[str, str | None]] = []
        for made in self._each(options, wanted):
            if made.refusal is not None:
                refused.append({"target": made.target, "variant": made.variant, "reason": made.refusal})
            yield made
        if not wanted.dry:
            write_refusals(self._folder, self.matrix, refused)

    def _each(self, options: ApplyOptions, wanted: LockOptions) -> Iterator[LockResult]:
        variants: dict[str | None, None] = {}
        shorts: dict[str, None] = {}
        for name in runtime_names(environ=self.environ):
            runtime = load_runtime(name, environ=self.environ)
            shorts.setdefault(runtime.environment.short)
            for variant in self._variants(runtime):
                variants.setdefault(variant)
                yield self._tried(options, wanted, variant, runtime)
        for short in shorts:
            if self.matrix.requires_python.contains(f"{short}.0", prereleases=True):
                for variant in variants:
                    yield self._tried(options, wanted, variant, environment_for(short, PLATFORM))

    # -- one lock

    def _delta(self, options: ApplyOptions, wanted: LockOptions, runtime: Snapshot) -> LockResult:
        path = self._path(wanted, self._aim(runtime), options.variant)
        solver = self._solver(options, wanted, runtime, path)
        planned = solver.in_kernel("locked")
        return self._written(
            wanted,
            path,
            target=runtime.source,
            solver=solver,
            resolution=planned.resolution,
            preparer=planned.preparer,
            repairs=_repairs(planned),
        )

    def _complete(self, options: ApplyOptions, wanted: LockOptions, environment: Environment) -> LockResult:
        aim = self._aim(environment)
        path = self._path(wanted, aim, options.variant)
        solver = self._solver(
            replace(options, variant=options.variant or aim.variant), wanted, nobody(), path
        )
        resolution, preparer = solver.from_nothing(environment, solver.kernel.python)
        return self._written(
            wanted,
            path,
            target=aim.title,
            solver=solver,
            resolution=resolution,
            preparer=preparer,
        )

    def _tried(
        self, options: ApplyOptions, wanted: LockOptions, variant: str | None, target: Snapshot | Environment
    ) -> LockResult:
        """Return the lock for *target*, or the refusal: then the lock of an older matrix goes."""
        options = replace(options, variant=variant)
        try:
            if isinstance(target, Environment):
                return self._complete(options, wanted, target)
            return self._delta(options, wanted, target)
        except (NoSolution, Refused) as error:
            aim = self._aim(target)
            path = self._path(wanted, aim, variant)
            if not wanted.dry:
                path.unlink(missing_ok=True)
            return LockResult(target=aim.title, variant=variant, path=path, refusal=error.message)

    def _solver(self, options: ApplyOptions, wanted: LockOptions, kernel: Snapshot, path: Path) -> Solver:
        solver = self.solver(options, kernel)
        matrix = solver.matrix
        if wanted.exclude_newer is not None:
            matrix = replace(matrix, exclude_newer=wanted.exclude_newer)
        return replace(solver, matrix=matrix, lock_store=None, preferred=_preferred(path, wanted))

    def _written(
        self,
        wanted: LockOptions,
        path: Path,
        *,
        target: str,
        solver: Solver,
        resolution: Resolution,
        preparer: WheelPreparer,
        repairs: Sequence[Pin] = (),
    ) -> LockResult:
        for remark in resolution.remarks():
            self.reporter.note(remark)
        is_kept = wanted.output != _STDOUT and not wanted.dry
        wheels = preparer.wheels_beside(resolution, path if is_kept else None)
        if wheels and wanted.output == _STDOUT:
            names = ", ".join(sorted(wheels))
            self.reporter.note(f"the lock names our own wheel of {names}: `--output FILE` lays it beside")
        origin = LockOrigin(
            runtime=target if resolution.request.installed else None,
            index=redacted(solver.settings.default_index),
            with_=solver.with_,
        )
        lock = make_lock(resolution, solver.matrix, wheels=wheels, origin=origin, repairs=repairs)
        text = write_lock(lock)
        local = [str(pin.name) for pin in resolution.pins.values() if _is_local(pin)]
        if local:
            self.reporter.note(
                f"of use on this machine only: the lock names local files of {', '.join(local)}"
            )
        before = path.read_bytes() if path.is_file() else None
        moved = tuple(_moves(_versions(path), {p.name: p.version for p in lock.packages if p.version}))
        if is_kept and text != before:
            write_atomic(path, text)
        return LockResult(
            target=target,
            variant=solver.matrix.variant,
            path=path,
            text=text,
            packages=len(lock.packages),
            moved=moved,
            is_changed=text != before,
        )

    # -- names and places

    @property
    def _folder(self) -> Path:
        return lock_folder(self.matrix, cwd=self.cwd)

    def _aim(self, target: Snapshot | Environment) -> _Aim:
        """Return what a lock for *target* is called by, and the variant that it chooses by itself."""
        if isinstance(target, Environment):
            first = next(iter(self.matrix.variants), None)
            return _Aim(environment_target(target), environment_target(target), first)
        own = self._variant(target.accelerator)
        return _Aim(target.source, runtime_target(target.source), own)

    def _path(self, wanted: LockOptions, aim: _Aim, variant: str | None) -> Path:
        """Return where a lock goes; a *variant* that is the target's own choice is not in its name."""
        if wanted.output is not None:
            if wanted.output != _STDOUT:
                check_lock_name(wanted.output)
            if os.path.isdir(wanted.output):  # noqa: PTH112 - Path raises of a long name
                raise InvalidInput(f"`{wanted.output}` cannot be written: it is a folder")
            return wanted.output
        further = variant if variant != aim.variant else None
        return self._folder / lock_file_name(self.matrix.name, aim.name, further)

    def _environment(self, wanted: LockOptions) -> Environment:
        here = nobody().environment
        if not (wanted.python_version or wanted.platform):
            return here
        return environment_for(
            wanted.python_version or str(here.python_version), wanted.platform or here.platform
        )

    def _variants(self, runtime: Snapshot) -> list[str | None]:
        """Return the variants that the accelerators of a runtime choose, each once."""
        if not self.matrix.variants:
            return [None]
        chosen = map(self._variant, accelerators_of(runtime.accelerator).values())
        return list(dict.fromkeys(variant for variant in chosen if variant is not None))

    def _variant(self, accelerator: Accelerator) -> str | None:
        """Return the variant for *accelerator*; None where none fits, which `colablock check` tells."""
        try:
            return select_variant(self.matrix, accelerator).variant
        except Refused:
            return None


_STDOUT = Path("-")


class _Aim(NamedTuple):
    title: str
    name: str
    variant: str | None


def _repairs(planned: PlannedChange) -> list[Pin]:
    """Return what the plan installs to mend what the stack breaks, which no part of the stack asks for."""
    found = []
    stack = {name for name, pin in planned.resolution.pins.items() if not pin.is_installed}
    source = planned.preparer.source
    for step in planned.plan.steps:
        if step.artifact is None or step.name in stack:
            continue
        candidates = source.judge(step.name).candidates
        candidate = next(one for one in candidates if str(one.version) == step.version)
        needs = source.metadata(candidate).requires
        requires = tuple(str(need) for need in needs if applies(need, planned.snapshot.environment))
        found.append(Pin(name=step.name, candidate=candidate, requires=requires))
    return found


def _is_local(pin: Pin) -> bool:
    file = pin.candidate.file
    return file is not None and local_path(file.url) is not None


def _versions(path: Path) -> dict[NormalizedName, Version]:
    if not path.is_file():
        return {}
    try:
        return {package.name: package.version for package in read_lock(path).packages if package.version}
    except InvalidInput:
        return {}  # it is written anew


def _preferred(path: Path, wanted: LockOptions) -> dict[NormalizedName, Version]:
    """Return the versions that the lock at *path* has, as far as they are to stay."""
    if wanted.upgrade:
        return {}
    found = _versions(path)
    return {name: version for name, version in found.items() if name not in wanted.upgrade_packages}


def _moves(
    before: Mapping[NormalizedName, Version], after: Mapping[NormalizedName, Version]
) -> Iterator[str]:
    """Yield how the pins moved, one line for each; nothing where there was no lock."""
    for name in sorted(before.keys() | after.keys()) if before else ():
        old, new = before.get(name), after.get(name)
        if old is None:
            yield f"+ {name} {new}"
        elif new is None:
            yield f"- {name} {old}"
        elif old != new:
            yield f"{name} {old} -> {new}"


# -- refusals: what `colablock check` says of a runtime without asking an index again
