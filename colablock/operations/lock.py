"""Makes the lock files of a matrix: for one Python, for one recorded runtime, or for all there are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from colablock._common.fs import write_whole
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
from colablock.planning.options import Ask
from colablock.planning.solver import Prepared
from colablock.resolver.model import Pin
from colablock.runtimes.catalog import load_runtime, runtime_names

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock.matrix.model import Matrix
    from colablock.planning.solver import Solving
    from colablock.planning.wheels import Workshop
    from colablock.resolver.model import Resolution

__all__ = ["LockAsk", "Locked", "Locker", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockAsk:
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
class Locked:
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
class Locker:
    """Makes locks of one matrix, no variant chosen; *solving* gives the solve of a request over a state."""

    matrix: Matrix
    solving: Callable[[Ask, Snapshot], Solving]
    reporter: Reporter
    environ: Mapping[str, str]
    cwd: Path = field(default_factory=Path)

    def one(self, ask: Ask, wanted: LockAsk) -> Locked:
        """Return the lock of *ask*: a runtime delta where it names a runtime, else a complete one.

        Raises NoSolution, FetchFailed, Refused (exit 1), InvalidInput (exit 2).
        """
        if ask.runtime is None:
            return self._complete(ask, wanted, self._environment(wanted))
        if wanted.python_version or wanted.platform:
            message = "a recorded runtime has its own Python and platform"
            raise InvalidInput(message, hint="Leave `--python-version` and `--platform` out")
        return self._delta(ask, wanted, load_runtime(ask.runtime, environ=self.environ))

    def standing(self, ask: Ask, wanted: LockAsk) -> Path | None:
        """Return the lock beside the matrix that is what `one` would make; None where there is none."""
        if ask.runtime is not None:
            runtime = load_runtime(ask.runtime, environ=self.environ)
            shelf = self.solving(ask, runtime).shelf
            head = shelf.for_kernel(runtime) if shelf else None
        else:
            environment = self._environment(wanted)
            variant = ask.variant or self._aim(environment).variant
            shelf = self.solving(replace(ask, variant=variant), nobody()).shelf
            head = shelf.for_environment(environment) if shelf else None
        return head.path if head is not None else None

    def lay_wheels(self, head: LockHead, into: Path) -> Path:
        """Make the wheels of ours that a lock names, in the folder *into* as beside the lock; return it.

        Raises NoSolution where the lock is of another matrix than it is now, FetchFailed, BadDistribution.
        """
        ask = Ask(name=self.matrix.source, variant=head.variant, use_locks=False)
        if head.runtime is not None:
            runtime = load_runtime(head.runtime, environ=self.environ)
            prepared = replace(self.solving(ask, runtime), lock=head.path, shelf=None).in_kernel("exported")
            resolution, workshop = prepared.resolution, prepared.workshop
        else:
            solving = replace(self.solving(ask, nobody()), lock=head.path, shelf=None)
            environment = environment_for(head.python, head.platform)
            resolution, workshop = solving.from_nothing(environment, solving.kernel.python)
        workshop.wheels_beside(resolution, into / head.path.name)
        return into

    def all(self, ask: Ask, wanted: LockAsk) -> Iterator[Locked]:
        """Yield the locks for every recorded runtime, then the complete ones for the Pythons that these have.

        For each variant that an accelerator there chooses.  What has no solution
        is yielded as a refusal, and kept beside the matrix for `colablock check`.
        Raises FetchFailed where an index cannot be read.
        """
        refused: list[dict[str, str | None]] = []
        for made in self._each(ask, wanted):
            if made.refusal is not None:
                refused.append({"target": made.target, "variant": made.variant, "reason": made.refusal})
            yield made
        if not wanted.dry:
            write_refusals(self._folder, self.matrix, refused)

    def _each(self, ask: Ask, wanted: LockAsk) -> Iterator[Locked]:
        variants: dict[str | None, None] = {}
        shorts: dict[str, None] = {}
        for name in runtime_names(environ=self.environ):
            runtime = load_runtime(name, environ=self.environ)
            shorts.setdefault(runtime.environment.short)
            for variant in self._variants(runtime):
                variants.setdefault(variant)
                yield self._tried(ask, wanted, variant, runtime)
        for short in shorts:
            if self.matrix.requires_python.contains(f"{short}.0", prereleases=True):
                for variant in variants:
                    yield self._tried(ask, wanted, variant, environment_for(short, PLATFORM))

    # -- one lock

    def _delta(self, ask: Ask, wanted: LockAsk, runtime: Snapshot) -> Locked:
        path = self._path(wanted, self._aim(runtime), ask.variant)
        solving = self._solving(ask, wanted, runtime, path)
        prepared = solving.in_kernel("locked")
        return self._written(
            wanted,
            path,
            target=runtime.source,
            solving=solving,
            resolution=prepared.resolution,
            workshop=prepared.workshop,
            repairs=_repairs(prepared),
        )

    def _complete(self, ask: Ask, wanted: LockAsk, environment: Environment) -> Locked:
        aim = self._aim(environment)
        path = self._path(wanted, aim, ask.variant)
        solving = self._solving(replace(ask, variant=ask.variant or aim.variant), wanted, nobody(), path)
        resolution, workshop = solving.from_nothing(environment, solving.kernel.python)
        return self._written(
            wanted,
            path,
            target=aim.title,
            solving=solving,
            resolution=resolution,
            workshop=workshop,
        )

    def _tried(
        self, ask: Ask, wanted: LockAsk, variant: str | None, target: Snapshot | Environment
    ) -> Locked:
        """Return the lock for *target*, or the refusal: then the lock of an older matrix goes."""
        ask = replace(ask, variant=variant)
        try:
            if isinstance(target, Environment):
                return self._complete(ask, wanted, target)
            return self._delta(ask, wanted, target)
        except (NoSolution, Refused) as error:
            aim = self._aim(target)
            path = self._path(wanted, aim, variant)
            if not wanted.dry:
                path.unlink(missing_ok=True)
            return Locked(target=aim.title, variant=variant, path=path, refusal=error.message)

    def _solving(self, ask: Ask, wanted: LockAsk, kernel: Snapshot, path: Path) -> Solving:
        solving = self.solving(ask, kernel)
        matrix = solving.matrix
        if wanted.exclude_newer is not None:
            matrix = replace(matrix, exclude_newer=wanted.exclude_newer)
        return replace(solving, matrix=matrix, shelf=None, preferred=_preferred(path, wanted))

    def _written(
        self,
        wanted: LockAsk,
        path: Path,
        *,
        target: str,
        solving: Solving,
        resolution: Resolution,
        workshop: Workshop,
        repairs: Sequence[Pin] = (),
    ) -> Locked:
        for remark in resolution.remarks():
            self.reporter.note(remark)
        is_kept = wanted.output != _STDOUT and not wanted.dry
        wheels = workshop.wheels_beside(resolution, path if is_kept else None)
        if wheels and wanted.output == _STDOUT:
            names = ", ".join(sorted(wheels))
            self.reporter.note(f"the lock names our own wheel of {names}: `--output FILE` lays it beside")
        origin = LockOrigin(
            runtime=target if resolution.request.installed else None,
            index=redacted(solving.settings.default_index),
            with_=solving.with_,
        )
        lock = make_lock(resolution, solving.matrix, wheels=wheels, origin=origin, repairs=repairs)
        text = write_lock(lock)
        local = [str(pin.name) for pin in resolution.pins.values() if _is_local(pin)]
        if local:
            self.reporter.note(
                f"of use on this machine only: the lock names local files of {', '.join(local)}"
            )
        before = path.read_bytes() if path.is_file() else None
        moved = tuple(_moves(_versions(path), {p.name: p.version for p in lock.packages if p.version}))
        if is_kept and text != before:
            write_whole(path, text)
        return Locked(
            target=target,
            variant=solving.matrix.variant,
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

    def _path(self, wanted: LockAsk, aim: _Aim, variant: str | None) -> Path:
        """Return where a lock goes; a *variant* that is the target's own choice is not in its name."""
        if wanted.output is not None:
            if wanted.output != _STDOUT:
                check_lock_name(wanted.output)
            if os.path.isdir(wanted.output):  # noqa: PTH112 - Path raises of a long name
                raise InvalidInput(f"`{wanted.output}` cannot be written: it is a folder")
            return wanted.output
        further = variant if variant != aim.variant else None
        return self._folder / lock_file_name(self.matrix.name, aim.name, further)

    def _environment(self, wanted: LockAsk) -> Environment:
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


def _repairs(prepared: Prepared) -> list[Pin]:
    """Return what the plan installs to mend what the stack breaks, which no part of the stack asks for."""
    found = []
    stack = {name for name, pin in prepared.resolution.pins.items() if not pin.is_installed}
    source = prepared.workshop.source
    for step in prepared.plan.steps:
        if step.artifact is None or step.name in stack:
            continue
        candidates = source.judge(step.name).candidates
        candidate = next(one for one in candidates if str(one.version) == step.version)
        needs = source.metadata(candidate).requires
        requires = tuple(str(need) for need in needs if applies(need, prepared.snapshot.environment))
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


def _preferred(path: Path, wanted: LockAsk) -> dict[NormalizedName, Version]:
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
