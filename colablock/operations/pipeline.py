"""The stations joined: what the command line and the front door call."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.reporter import Reporter
from colablock._common.urls import redacted
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.accelerator import Accelerator, detect
from colablock.environment.dependency_graph import unmet
from colablock.environment.interpreters import fetch_interpreter
from colablock.environment.site import Site, is_unfinished, read_site
from colablock.environment.snapshot import (
    Host,
    Snapshot,
    find_executable,
    fingerprint,
    installed_versions,
    is_version,
    snapshot_of,
    take_snapshot,
)
from colablock.errors import (
    BadDistribution,
    InvalidInput,
    NoSolution,
    NotFound,
    NotProven,
    Refused,
    RolledBack,
)
from colablock.lockfile.pylock import lock_digest, make_lock
from colablock.lockfile.store import LockHead, LockStore
from colablock.matrix.catalog import find_matrix, lock_files
from colablock.matrix.model import select_variant
from colablock.matrix.reader import is_path
from colablock.network.settings import Settings, read_settings
from colablock.operations.lock import LockMaker, LockOptions, LockResult
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import Plan, Target
from colablock.planning.solver import PlannedChange, Solver
from colablock.planning.target import is_kernel, why_not_kernel
from colablock.runtimes.catalog import load_runtime
from colablock.training.preflight.ready import ProvenEnvironment
from colablock.training.receipts import proof_note
from colablock.transaction import apply_record as applied
from colablock.transaction import isolated_envs as envs
from colablock.transaction.apply import ChangeOrigin, apply_plan, refuse_externally_managed
from colablock.transaction.apply_record import ApplyRecord
from colablock.transaction.disk_space import room_note, undo_cost
from colablock.transaction.drift import SINCE, Drift, find_drifts, notes_of
from colablock.transaction.history import Change, drop, read_history
from colablock.transaction.journal import RecoveryOutcome, recover
from colablock.transaction.rollback import UndoneChange, roll_back
from colablock.transaction.serialise import report_from_json, report_to_json
from colablock.transaction.site_lock import locked
from colablock.transaction.up_to_date import digest_of, request_key, up_to_date_report
from colablock.verification.verify import Check, Report, files_checks, prove, run_in

if TYPE_CHECKING:
    from colablock.check.results_file import MatrixCheck
    from colablock.matrix.model import Matrix
    from colablock.training.receipts import Receipt

__all__ = ["ApplyOptions", "Pipeline"]

_STANDS = "the environment of this lock stands already: nothing is fetched"
_UNFINISHED = "a change of this environment was interrupted: the next `apply` sees to it first"


class Pipeline:
    """One call's work.  *environ* are the variables it may depend on; *reporter* follows it.

    *in_kernel* says that this process is the notebook's kernel, so that what it
    has loaded counts.
    """

    def __init__(
        self, *, environ: Mapping[str, str], reporter: Reporter | None = None, in_kernel: bool = False
    ) -> None:
        self._environ = environ
        self.reporter = reporter or Reporter()
        self._in_kernel = in_kernel
        self._home = applied.home_folder(environ)
        self._has_told = False
        self._sites: dict[str | None, Site] = {}  # an interpreter is started to tell its own

    def matrix(self, name: str) -> Matrix:
        """Return the matrix of that name or path, no variant chosen."""
        return find_matrix(name, environ=self._environ)

    def prepare(self, options: ApplyOptions, *, recover: bool = False) -> PlannedChange:
        """Return the plan with what is needed to carry it out; nothing is touched.

        With *recover* a change that was interrupted is put back first; else the
        plan only notes that there is one.  Raises NoSolution, FetchFailed and
        Refused (exit 1), InvalidInput (exit 2).
        """
        kernel = self._kernel(options, may_recover=recover)
        matrix = self.matrix(options.name)
        last = None if options.runtime else applied.load(matrix.name, self._home)
        solver = replace(
            self._solver(options, kernel), must_hold=_must_hold(last, kernel) if last else frozenset()
        )
        planned = self._with_costs(options, self._planned(options, solver))
        is_same = last is not None and last.key == request_key(options, matrix, self._environ)
        since = tuple(notes_of(self._drifts(last, kernel))) if last and is_same else ()
        proof = self._proof(matrix, kernel.accelerator)
        plan = replace(planned.plan, beforehand=(*since, *planned.plan.beforehand, *proof))
        return replace(planned, plan=plan)

    def carry_out(self, options: ApplyOptions, planned: PlannedChange) -> Report:
        """Change the target as planned, prove it, and return the report.

        Raises RolledBack when it failed and was undone, Refused or Unmet before
        anything has changed.  A report with failed checks is returned only when
        the user keeps what fails.
        """
        if options.runtime:
            raise InvalidInput(
                "a recorded runtime can be planned for, not changed", hint="Leave `--runtime` out"
            )
        started = time.monotonic()
        to_target = self._to_env if planned.plan.target is Target.ENV else self._to_kernel
        applied.check_home(self._home)
        report = to_target(options, planned)
        report = replace(report, seconds=time.monotonic() - started)
        return self._remember(options, planned, report)

    def apply(self, options: ApplyOptions) -> Report:
        """Change the environment and prove it; nothing is done where it stands already."""
        return up_to_date_report(options, self._environ) or self.carry_out(
            options, self.prepare(options, recover=True)
        )

    def lock(self, options: ApplyOptions, wanted: LockOptions) -> LockResult:
        """Make the lock of *options*: a runtime delta where it names a runtime, else a complete one.

        Of this machine nothing is read but the tags that are not given.
        """
        return self._lock_maker(options).one(options, wanted)

    def standing_lock(self, options: ApplyOptions, wanted: LockOptions) -> Path | None:
        """Return the lock beside the matrix that serves *options*; None if there is none or it is stale."""
        return self._lock_maker(options).standing(options, wanted)

    def lay_wheels(self, head: LockHead, into: Path) -> Path:
        """Make the wheels of ours that a lock names, in the folder *into*; see `LockMaker.lay_wheels`."""
        return self._lock_maker(ApplyOptions(name=head.matrix)).lay_wheels(head, into)

    def lock_all(self, options: ApplyOptions, wanted: LockOptions) -> Iterator[LockResult]:
        """Make the locks for every recorded runtime and every Python; see `LockMaker.all`."""
        return self._lock_maker(options).all(options, wanted)

    def check(
        self, names: Sequence[str], *, update: bool = False, imports: bool = False
    ) -> tuple[MatrixCheck, ...]:
        """Return whether matrices hold on every recorded runtime; see `checking.check_matrices`."""
        from colablock.operations.check import check_matrices  # noqa: PLC0415 - processes and walks no plan needs

        return check_matrices(
            [self.matrix(name) for name in names],
            environ=self._environ,
            solver=self._solver,
            reporter=self.reporter,
            update=update,
            imports=imports,
        )

    def verify(self, name: str) -> Report:
        """Prove again what was applied last; versions that moved since fail their check."""
        last = self._last(name)
        matrix = select_variant(self.matrix(last.source or name), detect(self._environ), last.variant)
        started = time.monotonic()
        proofs = self._prove(last.python, matrix, last.pins, last.unmet)
        drifts = self._drifts(last)
        told = {str(drift.name): drift.text for drift in drifts if drift.is_pin}
        checks = tuple(_with_cause(check, told) for check in (*files_checks(last.sites, last.pins), *proofs))
        kept = report_from_json(last.report)
        notes = (*kept.notes, *notes_of(drifts, with_pins=False))
        if matrix.digest != last.matrix_digest:
            notes = (*notes, f"{matrix.name} has changed since it was applied: these are its proofs of today")
        return replace(kept, checks=checks, changed=False, seconds=time.monotonic() - started, notes=notes)

    def run(self, name: str, argv: Sequence[str]) -> int:
        """Run *argv* in the environment that was applied last for *name*, and return its exit code."""
        return run_in(self._last(name).python, argv, self._environ)

    def ready(self, name: str) -> ProvenEnvironment:
        """Return the environment that was applied last for *name*, to train in.

        Raises NotFound where none was, Refused where what was applied is no longer
        there: a run is started on what was proven.
        """
        last = self._last(name)
        accelerator = detect(self._environ)
        matrix = select_variant(self.matrix(last.source or name), accelerator, last.variant)
        moved = [drift.text for drift in self._drifts(last) if drift.is_pin]
        if moved:
            raise Refused(
                "\n".join(
                    [f"the stack of `{last.name}` is not as it was proven", *(f"  {one}" for one in moved)]
                ),
                hint=f"`colablock apply {name}` makes it so again",
            )
        kept = report_from_json(last.report)
        return ProvenEnvironment(
            matrix=last.name,
            python=last.python,
            lock=kept.lock_digest or applied.versions_digest(last.pins),
            runner=matrix.train.runner,
            mends=matrix.train.mends,
            variant=last.variant,
            matrix_digest=last.matrix_digest,
            matrix_source=matrix.source,
            python_version=kept.python_version,
            versions={str(project): version for project, version in last.pins.items()},
            accelerator=accelerator,
        )

    def smoke(self, name: str, *, runner: str | None = None) -> Receipt:
        """Train a tiny model in the environment that was applied for *name*; see `smoke.smoke`."""
        from colablock.training.preflight.machine import visible  # noqa: PLC0415 - only who trains reads YAML
        from colablock.training.runs.runners import runner_of  # noqa: PLC0415
        from colablock.training.smoke import smoke  # noqa: PLC0415

        ready = self.ready(name)
        return smoke(
            ready,
            runner=runner_of(runner or ready.runner).name,
            accelerator=visible(ready.accelerator, self._environ),
            environ=self._environ,
            reporter=self.reporter,
        )

    def history(self, python: str | None = None) -> tuple[Change, ...]:
        """Return what colablock changed in the environment of *python* (default: this one), oldest first."""
        return read_history(self._site(python).state)

    def drop(self, python: str | None = None, number: int | None = None) -> tuple[Change, ...]:
        """Give up the way back over change *number* and those before it (default: all); return them.

        Raises NotFound for a change that there is not, Refused while another process
        changes the environment.
        """
        site = self._site(python)
        if not read_history(site.state):
            raise NotFound(f"colablock has changed nothing in `{site.prefix}`, so nothing is kept")
        with locked(site):
            return drop(site.state, number)

    def settle(self, python: str | None = None) -> RecoveryOutcome | None:
        """Put back, or finish, a change of the environment of *python* that was interrupted."""
        site = self._site(python)
        settled = recover(site)
        if settled is not None:
            self.reporter.note(f"a change of {site.prefix} that was interrupted {settled.value}")
        return settled

    def rollback(self, python: str | None = None, *, to_first: bool = False) -> tuple[UndoneChange, ...]:
        """Undo the last change in the environment of *python*, or every one; see `rollback.roll_back`.

        Where the last one was interrupted it is put back, and that is all: then
        nothing is returned.
        """
        if self.settle(python) is RecoveryOutcome.UNDONE and not to_first:
            return ()
        site = self._site(python)
        undone = roll_back(
            site, look=lambda: self._look(python, drives=False), to_first=to_first, reporter=self.reporter
        )
        try:
            for change in (one.change for one in undone):
                applied.put_back(change.matrix, self._home, change.applied_before, prefix=site.prefix)
        except OSError as error:
            self.reporter.note(f"undone, but not recorded in {self._home}: {error.strerror}")
        return undone

    # -- the parts

    def _lock_maker(self, options: ApplyOptions) -> LockMaker:
        return LockMaker(
            matrix=self.matrix(options.name),
            solver=self._solver,
            reporter=self.reporter,
            environ=self._environ,
        )

    def _proof(self, matrix: Matrix, accelerator: Accelerator) -> tuple[str, ...]:
        """Return whether training with a matrix is proven on such a card; nothing without a runner."""
        if matrix.train.runner is None:
            return ()
        return (proof_note(matrix.source, matrix.name, accelerator, digest=matrix.digest),)

    def _planned(self, options: ApplyOptions, solver: Solver) -> PlannedChange:
        if options.into is not None:
            return solver.in_env("asked for") if options.into is Target.ENV else solver.in_kernel("asked for")
        if not is_kernel(solver.kernel, named=bool(options.python or options.runtime)):
            return solver.in_env("no notebook runs here")
        try:
            planned = solver.in_kernel("harmless: nothing that is loaded changes and nothing breaks")
        except (NoSolution, Refused) as error:
            self.reporter.note(f"not into the kernel: {error.message.splitlines()[0]}")
            return solver.in_env("the kernel cannot take it")
        harm = why_not_kernel(planned.plan)
        if harm is None and planned.plan.steps and _is_closed(planned.snapshot, options):
            harm = "the environment is externally managed"
        return planned if harm is None else solver.in_env(f"in the kernel {harm}")

    def _with_costs(self, options: ApplyOptions, planned: PlannedChange) -> PlannedChange:
        """Return *planned* with what can be told beforehand of what its plan costs on this machine."""
        if options.runtime:
            return planned
        plan, folder = planned.plan, Path(planned.snapshot.site)
        if plan.target is Target.ENV:
            if self._stands(planned):
                return replace(planned, plan=replace(plan, beforehand=(_STANDS,)))
            folder = self._home
        elif options.undo:
            plan = replace(plan, undo_cost=undo_cost(plan, planned.snapshot))
        note = room_note(plan, folder)
        return replace(planned, plan=replace(plan, beforehand=(note,) if note else ()))

    def _drifts(self, last: ApplyRecord, snapshot: Snapshot | None = None) -> tuple[Drift, ...]:
        """Return what has changed in the environment of *last*, which *snapshot* may be of."""
        now = installed_versions(last.sites)
        if not (now and last.versions) or now == last.versions:
            return ()
        if snapshot is None or snapshot.site not in last.sites:
            try:
                snapshot = snapshot_of(Path(last.python), environ=self._environ, accelerator=Accelerator())
            except (InvalidInput, NotFound):
                return ()  # the environment is gone, or no longer one
        return find_drifts(last.versions, now, snapshot, last.pins)

    def _stands(self, planned: PlannedChange) -> bool:
        """Whether the environment stands already, as far as that can be known with nothing fetched."""
        if not planned.preparer.is_at_hand(planned.resolution):
            return False
        try:
            return envs.read_env(self._home, self._digest(planned)) is not None
        except BadDistribution:
            return False  # the apply says what is wrong with it

    def _site(self, python: str | None) -> Site:
        if python not in self._sites:
            executable = find_executable(Path(python), self._environ) if python else sys.executable
            self._sites[python] = read_site(executable, self._environ)
        return self._sites[python]

    def _solver(self, options: ApplyOptions, kernel: Snapshot) -> Solver:
        matrix = select_variant(self.matrix(options.name), kernel.accelerator, options.variant)
        settings = self._settings(options, matrix)
        return Solver(
            matrix=matrix,
            kernel=kernel,
            settings=settings,
            environ=self._environ,
            reporter=self.reporter,
            with_=options.with_,
            broken=options.broken,
            lock=options.lock,
            lock_store=self._shelf(options, matrix, settings),
            # Without `into` it names the kernel: where that cannot take the stack, any Python may.
            python=options.python if options.into is Target.ENV else None,
        )

    def _settings(self, options: ApplyOptions, matrix: Matrix) -> Settings:
        """Return where indexes and folders are; what was taken from another tool's settings is said once."""
        settings = read_settings(
            self._environ,
            default_index=options.default_index,
            find_links=options.find_links,
            offline=options.offline,
            indexes=matrix.indexes,
        )
        for note in settings.notes if not self._has_told else ():
            self.reporter.note(note)
        self._has_told = True
        return settings

    def _shelf(self, options: ApplyOptions, matrix: Matrix, settings: Settings) -> LockStore | None:
        """Return the locks that stand beside *matrix*, as far as they count for *options*."""
        paths = (
            lock_files(matrix, environ=self._environ) if options.use_locks and options.lock is None else ()
        )
        if paths and settings.find_links:
            self.reporter.note(f"the locks beside {matrix.name} are left aside: find-links come first")
            return None
        return LockStore(
            paths=paths,
            matrix=matrix,
            with_=options.with_,
            index=redacted(settings.default_index),
            reporter=self.reporter,
        )

    def _kernel(self, options: ApplyOptions, *, may_recover: bool = False) -> Snapshot:
        """Return the state that a plan would change: a recorded one, a named one's, or this interpreter's."""
        if options.runtime:
            return _readable(load_runtime(options.runtime, environ=self._environ))
        snapshot = self._look(options.python, options.protect)
        if is_unfinished(snapshot.prefix, snapshot.site):
            snapshot = self._recovered(options, snapshot) if may_recover else _noted(snapshot, _UNFINISHED)
        if options.python:
            return _readable(snapshot)
        if snapshot.host is not Host.PLAIN and not self._in_kernel:
            # `!colablock` is a process of its own: what the kernel holds is out of its sight.
            note = "what the notebook's kernel has loaded cannot be seen from here: restart it after a change"
            snapshot = _noted(snapshot, note)
        return _readable(snapshot)

    def _look(self, python: str | None, protect: Iterable[str] = (), *, drives: bool = True) -> Snapshot:
        """Return the state of *python*, else of this interpreter; with *drives*, its accelerator too."""
        accelerator = None if drives else Accelerator()
        if python:
            return snapshot_of(Path(python), protect=protect, environ=self._environ, accelerator=accelerator)
        modules = sys.modules if self._in_kernel else None
        return take_snapshot(
            protect=protect, loaded_modules=modules, environ=self._environ, accelerator=accelerator
        )

    def _recovered(self, options: ApplyOptions, snapshot: Snapshot) -> Snapshot:
        """Return the state after an interrupted change was put back."""
        self.settle(snapshot.python)
        return self._look(options.python, options.protect)

    def _to_kernel(self, options: ApplyOptions, planned: PlannedChange) -> Report:
        plan = planned.plan
        pins = planned.pins()

        def prove_it() -> tuple[Check, ...]:
            return self._prove(
                plan.python,
                planned.matrix,
                pins,
                planned.unmet_before(),
                plan=plan,
                before=planned.snapshot,
            )

        if not plan.steps:
            checks = prove_it()
            if not (options.keep or all(check.passed for check in checks)):
                raise NotProven(_failures(checks, "nothing was to be changed"))
            return self._report(planned, plan.python, checks, changed=False)
        if not options.break_system_packages:
            refuse_externally_managed(plan, planned.snapshot)  # before gigabytes are fetched for it
        with tempfile.TemporaryDirectory(prefix="colablock-") as folder:
            files = planned.preparer.gather(plan, Path(folder), self.reporter)
            checks = apply_plan(
                plan,
                planned.snapshot,
                files,
                prove=prove_it,
                origin=ChangeOrigin(
                    stack=applied.versions_digest(pins),
                    lock=digest_of(options.lock) if options.lock else None,
                    applied_before=applied.read_text(planned.matrix.name, self._home),
                ),
                keep=options.keep,
                undo=options.undo,
                break_system_packages=options.break_system_packages,
                environ=self._environ,
                reporter=self.reporter,
                fingerprint=lambda: fingerprint(_readable(self._look(options.python, options.protect))),
            )
        report = self._report(planned, plan.python, checks, changed=True)
        where = ["--python", options.python] if options.python else []
        return replace(report, undo=shlex.join(["colablock", "rollback", *where]) if options.undo else "")

    def _to_env(self, options: ApplyOptions, planned: PlannedChange) -> Report:
        digest = self._digest(planned)
        standing = envs.read_env(self._home, digest)
        if standing is not None and _STANDS not in planned.plan.beforehand:
            self.reporter.note(_STANDS)
        python = standing.python if standing is not None else self._build(planned, digest)
        checks = self._prove(python, planned.matrix, planned.pins(), bytecode=True)
        if not all(check.passed for check in checks) and not options.keep:
            if standing is not None:
                raise NotProven(_failures(checks, "the environment, which stood already, is left as it was"))
            envs.discard_env(self._home, digest)
            hint = "`--keep` keeps an environment that is not proven"
            raise RolledBack(_failures(checks, "the environment was taken away again"), hint=hint)
        envs.select_env(self._home, planned.matrix.name, digest)
        report = self._report(planned, python, checks, changed=standing is None)
        return replace(report, lock_digest=digest)

    def _digest(self, planned: PlannedChange) -> str:
        """Return the name of the environment; our own wheels are made for that where they are not yet."""
        wheels = planned.preparer.wheels_beside(planned.resolution, None)
        return lock_digest(make_lock(planned.resolution, planned.matrix, wheels=wheels))

    def _build(self, planned: PlannedChange, digest: str) -> str:
        """Return the interpreter of the environment of a lock, which is built now."""
        plan = planned.plan
        short = planned.snapshot.environment.short
        interpreter = plan.python or fetch_interpreter(short, self._environ, self.reporter).path
        with tempfile.TemporaryDirectory(prefix="colablock-") as folder:
            files = planned.preparer.gather(plan, Path(folder), self.reporter)
            python = envs.build_env(
                plan,
                files,
                lock_hash=digest,
                home=self._home,
                environ=self._environ,
                interpreter=interpreter,
                reporter=self.reporter,
            )
        return str(python)

    def _prove(
        self,
        python: str,
        matrix: Matrix,
        pins: Mapping[NormalizedName, str],
        unmet: Collection[tuple[str, str]] = (),
        *,
        plan: Plan | None = None,
        before: Snapshot | None = None,
        bytecode: bool = False,
    ) -> tuple[Check, ...]:
        return prove(
            python,
            verify=matrix.verify,
            pins=pins,
            environ=self._environ,
            expected_unmet=unmet,
            plan=plan,
            before=before,
            bytecode=bytecode,
            reporter=self.reporter,
        )

    def _report(
        self, planned: PlannedChange, python: str, checks: tuple[Check, ...], *, changed: bool
    ) -> Report:
        plan = planned.plan
        return Report(
            matrix=plan.matrix,
            variant=plan.variant,
            target=plan.target.value,
            python=python,
            python_version=plan.python_version,
            checks=checks,
            changed=changed,
            needs_restart=plan.needs_restart and changed,
            restart=tuple(one for modules in plan.restart.values() for one in modules) if changed else (),
            notes=plan.notes,
        )

    def _remember(self, options: ApplyOptions, planned: PlannedChange, report: Report) -> Report:
        """Keep what was applied for `run`, `verify` and the next `apply`; say so where that fails."""
        after = snapshot_of(
            Path(report.python), environ=self._environ, accelerator=planned.snapshot.accelerator
        )
        versions = installed_versions([after.site])
        record = ApplyRecord(
            name=planned.matrix.name,
            key=request_key(options, self.matrix(options.name), self._environ),
            target=report.target,
            python=report.python,
            prefix=after.prefix,
            sites=(after.site,),
            state=applied.versions_digest(versions),
            versions=versions,
            matrix_digest=planned.matrix.digest,
            variant=planned.matrix.variant,
            pins=planned.pins(),
            unmet=tuple(sorted(planned.unmet_before())),
            report=report_to_json(report),
            source=str(Path(options.name).absolute()) if is_path(options.name) else options.name,
            process=os.getpid(),
        )
        try:
            applied.save(record, self._home)
        except OSError as error:
            note = f"applied, but not recorded in {self._home}: {error.strerror}; `run` and `verify` miss it"
            return replace(report, notes=(*report.notes, note))
        return report

    def _last(self, name: str) -> ApplyRecord:
        """Return the last apply of a matrix by its name, or by a path; one applied by path has a name too.

        A later change of that environment that was interrupted is put back first.
        """
        last = None if is_path(name) else applied.load(name, self._home)
        last = last or applied.require(self.matrix(name).name, self._home)
        if last.target == Target.KERNEL.value and is_unfinished(last.prefix, last.sites[0]):
            self.settle(last.python)
        return last


def _is_closed(snapshot: Snapshot, options: ApplyOptions) -> bool:
    return snapshot.externally_managed is not None and not options.break_system_packages


def _noted(snapshot: Snapshot, note: str) -> Snapshot:
    return replace(snapshot, notes=(*snapshot.notes, note))


def _readable(snapshot: Snapshot) -> Snapshot:
    """Return *snapshot* without what has a version of no known form (PEP 440): nothing can be said of it."""
    odd = sorted(name for name, there in snapshot.installed.items() if not is_version(there.version))
    if not odd:
        return snapshot
    installed = {name: there for name, there in snapshot.installed.items() if name not in odd}
    return replace(snapshot, installed=installed, unreadable=frozenset(odd))


def _must_hold(last: ApplyRecord, kernel: Snapshot) -> frozenset[tuple[NormalizedName, str]]:
    """Return the requirements of the stack that *last* proved to hold, and that *kernel* does not meet."""
    if kernel.site not in last.sites or not report_from_json(last.report).passed:
        return frozenset()
    there = kernel.installed
    standing = [name for name, pin in last.pins.items() if name in there and there[name].version == pin]
    return unmet(standing, kernel) - frozenset((NormalizedName(name), line) for name, line in last.unmet)


def _with_cause(check: Check, told: Mapping[str, str]) -> Check:
    """Return a failed check of a version with what has changed since the apply."""
    if check.passed or check.kind != "version" or check.subject not in told:
        return check
    return replace(check, detail=f"{check.detail}\n{SINCE}{told[check.subject]}")


def _failures(checks: Iterable[Check], then: str) -> str:
    failed = [check for check in checks if not check.passed]
    lines = [f"{len(failed)} of the proofs failed, and {then}"]
    for check in failed:
        lines.append(f"  {check.kind} {check.subject}")
        lines += [f"    {line}" for line in check.detail.splitlines()[-8:]]
    return "\n".join(lines)
