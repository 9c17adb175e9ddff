"""Lock a matrix: for one Python, for one recorded runtime, or for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from colablock._common.fs import write_atomic
from colablock._common.text import changes, near
from colablock._common.urls import local_path, redacted
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment._probe import interpreter_facts
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.environment.requirements import applies
from colablock.environment.snapshot import Snapshot
from colablock.errors import InvalidInput, NoSolution, NotFound, Refused
from colablock.index.candidates import STRONG_HASHES, CandidateOrigin
from colablock.lockfile.pylock import check_lock_name, make_lock, read_lock, write_lock
from colablock.lockfile.store import read_head, refusals_path, write_refusals
from colablock.lockfile.targets import PLATFORM, LockTarget, lock_file_name, target_of, variants_for
from colablock.lockfile.tool_table import LockOrigin
from colablock.matrix.catalog import lock_files, lock_folder
from colablock.matrix.model import roots
from colablock.operations.plan import solver_for
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.planned import PlannedChange
from colablock.planning.sources import source_notes
from colablock.resolver.model import Pin
from colablock.runtimes.catalog import load_runtime, runtime_names

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import Package, Pylock
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile
    from colablock.planning.solver import Solver
    from colablock.planning.wheels import WheelPreparer
    from colablock.resolver.model import Resolution

__all__ = [
    "LockResult",
    "lock_all",
    "lock_matrix",
    "lock_state",
    "lock_with_links",
    "nothing_installed",
    "up_to_date_lock",
]

_STDOUT = Path("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockResult:
    """One lock and the pins that *moved* in it; or a *refusal*, the reason why there is no lock."""

    target: str  # a recorded runtime, or ``py312``
    variant: str | None
    path: LockFile
    text: bytes = b""
    packages: int = 0
    moved: tuple[str, ...] = ()
    is_changed: bool = False
    is_new: bool = False  # there was no such file
    hosts: tuple[str, ...] = ()  # of the files, sorted
    refusal: str | None = None
    recorded: Path | None = None  # the file with the refusal, for `check`


def lock_matrix(session: Session, options: ApplyOptions, wanted: LockOptions) -> LockResult:
    """Make the lock of *options*: a runtime delta where it names a runtime, else a complete lock.

    Nothing of this machine is read but the tags that are not given.  Raises
    NoSolution, FetchFailed, Refused (exit 1), InvalidInput (exit 2).
    """
    run = _LockRun.of(session, options, wanted)
    if options.runtime is None:
        return _lock_environment(run, _target_environment(wanted))
    if wanted.python_version or wanted.platform:
        message = "a recorded runtime has its own Python and platform"
        raise InvalidInput(message, hint="Omit `--python-version` and `--platform`")
    return _lock_runtime(run, load_runtime(options.runtime, environ=session.environ))


def lock_state(session: Session, options: ApplyOptions, wanted: LockOptions, state: Snapshot) -> LockResult:
    """Make a delta over *state*, the live state of an environment.  Raises as `lock_matrix` does."""
    return _lock_runtime(_LockRun.of(session, options, wanted), state)


def lock_with_links(session: Session, options: ApplyOptions, wanted: LockOptions) -> LockResult | None:
    """Make the lock that an apply on this machine uses: the one beside the matrix with builds of find-links.

    None if no build there takes the place of one of the lock.  Raises as `lock_matrix` does.
    """
    run = _LockRun.of(session, options, wanted)
    environment = _target_environment(wanted)
    path = _path(run, target := target_of(run.matrix, environment))
    run = run.for_variant(options.variant or target.variant)
    beside = solver_for(session, run.options, nothing_installed())
    if not beside.settings.find_links:
        return None
    solver = replace(_solver(run, beside.kernel, path), lock_store=beside.lock_store)
    resolution, preparer = solver.from_nothing(environment, solver.kernel.python)
    if not any(pin.candidate.origin is CandidateOrigin.FIND_LINKS for pin in resolution.pins.values()):
        return None
    for note in source_notes(resolution, solver.matrix, preparer.source, ""):
        session.reporter.note(note)
    return _write(run, path, target=target.name, solver=solver, resolution=resolution, preparer=preparer)


def lock_all(session: Session, options: ApplyOptions, wanted: LockOptions) -> Iterator[LockResult]:
    """Yield the lock for every recorded runtime, then a complete one for each Python that these have.

    One for each variant that an accelerator of a runtime selects.  A request
    without a solution is yielded as a refusal, and recorded beside the matrix
    for `colablock check`.  Raises FetchFailed where an index cannot be read.
    """
    run = _LockRun.of(session, options, wanted)
    refused: list[dict[str, str | None]] = []
    recorded = refusals_path(run.folder, run.matrix)
    for made in _lock_each(run):
        if made.refusal is None:
            yield made
            continue
        refused.append({"target": made.target, "variant": made.variant, "reason": made.refusal})
        yield made if wanted.dry else replace(made, recorded=recorded)
    if not wanted.dry:
        write_refusals(run.folder, run.matrix, refused)


def up_to_date_lock(session: Session, options: ApplyOptions, wanted: LockOptions) -> LockFile | None:
    """Return the lock beside the matrix that `lock_matrix` would make again; None if missing or stale."""
    if options.find_links:
        return None
    if options.runtime is not None:
        runtime = load_runtime(options.runtime, environ=session.environ)
        lock_store = solver_for(session, options, runtime).lock_store
        head = lock_store.for_kernel(runtime) if lock_store else None
    else:
        variant = options.variant or next(iter(session.matrix(options.name).variants), None)
        lock_store = solver_for(session, replace(options, variant=variant), nothing_installed()).lock_store
        head = lock_store.for_environment(_target_environment(wanted)) if lock_store else None
    return head.path if head is not None else None


def nothing_installed() -> Snapshot:
    """Return this interpreter with nothing installed: the state that a complete lock starts from."""
    here = Environment.from_facts(interpreter_facts())
    return Snapshot(environment=here, python=sys.executable, prefix="", site="", installed={})


def _target_environment(wanted: LockOptions) -> Environment:
    here = nothing_installed().environment
    if not (wanted.python_version or wanted.platform):
        return here
    return environment_for(
        wanted.python_version or str(here.python_version), wanted.platform or here.platform
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LockRun:
    """One call: *matrix* has no variant selected yet."""

    session: Session
    matrix: Matrix
    options: ApplyOptions
    wanted: LockOptions
    away: set[str] = field(default_factory=set)  # the URLs of archives that cannot be reached
    _read: dict[LockFile, Sequence[Package]] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, options: ApplyOptions, wanted: LockOptions) -> _LockRun:
        return cls(session=session, matrix=session.matrix(options.name), options=options, wanted=wanted)

    @property
    def folder(self) -> Path:
        """Where the locks of the matrix are written."""
        return lock_folder(self.matrix, cwd=Path())

    def packages(self, path: LockFile) -> Sequence[Package]:
        """Return the packages of the lock at *path*, as it was before this run; none if it cannot be read."""
        if path not in self._read:
            try:
                self._read[path] = read_lock(path).packages if path.is_file() else ()
            except InvalidInput:
                self._read[path] = ()  # an unreadable lock is replaced
        return self._read[path]

    def versions(self, path: LockFile) -> dict[NormalizedName, Version]:
        """Return the versions of the lock at *path*."""
        return {package.name: package.version for package in self.packages(path) if package.version}

    def for_variant(self, variant: str | None) -> _LockRun:
        return replace(self, options=replace(self.options, variant=variant))


def _lock_each(run: _LockRun) -> Iterator[LockResult]:
    """Yield a result for each runtime and variant, then for each Python and variant."""
    variants: dict[str | None, None] = {}
    shorts: dict[str, None] = {}
    for name in runtime_names(environ=run.session.environ):
        runtime = load_runtime(name, environ=run.session.environ)
        shorts.setdefault(runtime.environment.short)
        for variant in variants_for(run.matrix, runtime):
            variants.setdefault(variant)
            yield _attempt(run.for_variant(variant), runtime)
    for short in shorts:
        if run.matrix.requires_python.contains(f"{short}.0", prereleases=True):
            for variant in variants:
                yield _attempt(run.for_variant(variant), environment_for(short, PLATFORM))


def _attempt(run: _LockRun, target: Snapshot | Environment) -> LockResult:
    """Return the lock for *target*, or its refusal: then the lock of an earlier matrix is deleted."""
    try:
        if isinstance(target, Environment):
            return _lock_environment(run, target)
        return _lock_runtime(run, target)
    except (NoSolution, Refused) as error:
        named = target_of(run.matrix, target)
        path = _path(run, named)
        if not run.wanted.dry and isinstance(path, Path):
            path.unlink(missing_ok=True)
        return LockResult(target=named.name, variant=run.options.variant, path=path, refusal=error.message)


def _lock_runtime(run: _LockRun, runtime: Snapshot) -> LockResult:
    """Return the delta for a recorded runtime: the distributions to install or to replace there."""
    path = _path(run, target_of(run.matrix, runtime))
    solver = _solver(run, runtime, path)
    planned = solver.in_kernel("locked")
    return _write(
        run,
        path,
        target=runtime.source,
        solver=solver,
        resolution=planned.resolution,
        preparer=planned.preparer,
        repairs=_repairs(planned),
    )


def _lock_environment(run: _LockRun, environment: Environment) -> LockResult:
    """Return the complete lock for *environment*, where nothing is installed."""
    target = target_of(run.matrix, environment)
    path = _path(run, target)
    solver = _solver(run.for_variant(run.options.variant or target.variant), nothing_installed(), path)
    resolution, preparer = solver.from_nothing(environment, solver.kernel.python)
    return _write(run, path, target=target.name, solver=solver, resolution=resolution, preparer=preparer)


def _solver(run: _LockRun, kernel: Snapshot, path: LockFile) -> Solver:
    """Return the solver for the state *kernel*; it prefers the versions of the lock at *path*."""
    solver = solver_for(run.session, run.options, kernel)
    matrix = solver.matrix
    if run.wanted.exclude_newer is not None:
        matrix = replace(matrix, exclude_newer=run.wanted.exclude_newer)
    beside = lock_files(matrix, environ=run.session.environ)
    standing = (path, *beside) if path.is_file() else beside
    _check_upgrades(run, path)
    preferred = _preferred(run, path)
    return replace(
        solver,
        matrix=matrix,
        lock_store=None,
        standing=standing,
        away=run.away,
        preferred=preferred,
        expected=_expected(run, path, preferred, redacted(solver.settings.default_index)),
        takes_unhashed=True,
        is_portable=not run.wanted.has_files,
    )


def _write(
    run: _LockRun,
    path: LockFile,
    *,
    target: str,
    solver: Solver,
    resolution: Resolution,
    preparer: WheelPreparer,
    repairs: Sequence[Pin] = (),
) -> LockResult:
    """Write the lock, and the rebuilt wheels that it names, where the options ask for that."""
    wanted, note = run.wanted, run.session.reporter.note
    for remark in resolution.remarks():
        note(remark)
    pins = {name: _with_hash(pin, preparer, note) for name, pin in resolution.pins.items()}
    resolution = replace(resolution, pins=pins)
    repairs = [_with_hash(pin, preparer, note) for pin in repairs]
    is_kept = wanted.output != _STDOUT and not wanted.dry
    file = path if is_kept and isinstance(path, Path) else None
    wheels = preparer.wheels_beside(resolution, file)
    if wheels and wanted.output == _STDOUT:
        names = ", ".join(sorted(wheels))
        note(f"the lock names a rebuilt wheel of {names}: `--output FILE` writes it beside the lock")
    origin = LockOrigin(
        runtime=target if resolution.request.installed else None,
        index=redacted(solver.settings.default_index),
        with_=solver.with_,
    )
    lock = make_lock(
        resolution,
        solver.matrix,
        wheels=wheels,
        origin=origin,
        repairs=repairs,
        all_files=_lists_all_files(path) if wanted.all_files is None else wanted.all_files,
    )
    text = write_lock(lock)
    local = [str(pin.name) for pin in resolution.pins.values() if _is_local(pin)]
    if local and not wanted.has_files:
        note(f"the lock works on this machine only: it names local files of {', '.join(local)}")
    before = path.read_bytes() if path.is_file() else None
    earlier = run.versions(path)
    moved = changes(earlier, {p.name: p.version for p in lock.packages if p.version}) if earlier else ()
    if file is not None and text != before:
        write_atomic(file, text)
    return LockResult(
        target=target,
        variant=solver.matrix.variant,
        path=path,
        text=text,
        packages=len(lock.packages),
        moved=tuple(moved),
        is_changed=text != before,
        is_new=before is None,
        hosts=tuple(sorted(_hosts(lock))),
    )


def _with_hash(pin: Pin, preparer: WheelPreparer, note: Callable[[str], None]) -> Pin:
    """Return *pin* with the SHA-256 of its file: if its page lists no strong hash, the file is fetched.

    Raises FetchFailed.
    """
    file = pin.candidate.file
    if (
        file is None
        or pin.candidate.origin not in {CandidateOrigin.INDEX, CandidateOrigin.FIND_LINKS}
        or not STRONG_HASHES.isdisjoint(file.hashes)
    ):
        return pin
    path = preparer.fetcher.fetch(file)
    sha256 = preparer.fetcher.cache.local_digest(path)
    hashed = file.replaced(hashes={**file.hashes, "sha256": sha256}, size=path.stat().st_size)
    others = [one for one in pin.candidate.all_files if one.filename != file.filename]
    note(
        f"`{file.filename}` is listed without a sha256, sha384 or sha512: the lock has the hash of the file"
        f" that was fetched from `{redacted(file.url)}`"
    )
    return replace(pin, candidate=replace(pin.candidate, files=(hashed,), all_files=(hashed, *others)))


def _hosts(lock: Pylock) -> set[str]:
    """Return the hosts of the files that *lock* lists."""
    files = [one for p in lock.packages for one in (*(p.wheels or ()), p.sdist, p.archive) if one is not None]
    return {urlsplit(one.url or "").netloc for one in files} - {""}


def _path(run: _LockRun, target: LockTarget) -> LockFile:
    """Return the path of a lock; a variant that the target selects by itself is not in its name.

    To be checked, a lock that is not there is the one that an installed package has beside the matrix.
    """
    output = run.wanted.output
    if output is not None:
        if output != _STDOUT:
            check_lock_name(output)
        if os.path.isdir(output):  # noqa: PTH112 - Path raises of a long name
            raise InvalidInput(f"`{output}` cannot be written: it is a folder")
        return output
    variant = run.options.variant
    further = variant if variant != target.variant else None
    path = run.folder / lock_file_name(run.matrix.name, target.name, further)
    if not run.wanted.dry or path.is_file():
        return path
    beside = lock_files(run.matrix, environ=run.session.environ)
    return next((one for one in beside if one.name == path.name), path)


def _repairs(planned: PlannedChange) -> list[Pin]:
    """Return the pins that the plan installs only to repair what the stack breaks."""
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


def _lists_all_files(path: LockFile) -> bool:
    """Whether the lock at *path*, which is to be replaced, lists the files of every platform."""
    head = read_head(path)
    return head is not None and head.all_files


def _preferred(run: _LockRun, path: LockFile) -> dict[NormalizedName, Version]:
    """Return the versions to prefer: those of the lock at *path*, without the ones to upgrade."""
    if run.wanted.upgrade:
        return {}
    upgraded = run.wanted.upgrade_packages
    return {name: version for name, version in run.versions(path).items() if name not in upgraded}


def _expected(
    run: _LockRun, path: LockFile, preferred: Mapping[NormalizedName, Version], index: str
) -> dict[NormalizedName, Version | None]:
    """Return the names of the lock at *path*, which are asked for first, each with its preferred version.

    No name is sent to another index than that from which the lock has it.
    """
    return {one.name: preferred.get(one.name) for one in run.packages(path) if one.index == index}


def _check_upgrades(run: _LockRun, path: LockFile) -> None:
    """Raise NotFound for a name to upgrade that neither a lock of the matrix nor the request has."""
    variants = (one.packages for one in run.matrix.variants.values())
    entries = chain(roots(run.matrix, run.options.with_), *variants)
    known = {one.name for one in entries} | run.versions(path).keys()
    if run.wanted.upgrade_packages <= known:
        return
    locks = [run.versions(one) for one in (path, *lock_files(run.matrix, environ=run.session.environ))]
    known = known.union(*locks)
    for name in sorted(run.wanted.upgrade_packages - known):
        otherwise = "`--upgrade` moves every package" if any(locks) else "Omit `--upgrade-package`"
        raise NotFound(
            f"`{name}` cannot be upgraded: no lock of `{run.matrix.name}` has it",
            hint=near(name, known) or otherwise,
        )
