"""Apply a plan: fetch, change the target, prove it, and record the result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from colablock._common.scratch import scratch_folder
from colablock._common.text import command_line, count, option_words
from colablock._records import dataclass
from colablock.environment.snapshot import fingerprint, installed_versions
from colablock.errors import (
    UNCHANGED,
    InvalidInput,
    NotProven,
    PlanOutdated,
    RolledBack,
    interrupted_as,
)
from colablock.operations.last_apply import checks_note, last_report
from colablock.operations.plan import env_digest, plan_change
from colablock.operations.session import Session, comparable
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import ENV_EXISTS, Plan, Target, steps_text
from colablock.planning.planned import PlannedChange
from colablock.transaction import apply_record as applied
from colablock.transaction import isolated_envs as envs
from colablock.transaction.serialise import report_to_json
from colablock.transaction.up_to_date import absolute, digest_of, request_key
from colablock.verification.records import record_checks
from colablock.verification.verify import Check, Report, prove

__all__ = ["CHANGED", "MOST_PLANS", "apply_matrix", "carry_out"]

#: The state after an interrupt between the change and the end of the call.
CHANGED = "The change is in place; apply again to see its proof."

#: Each plan but the first knows the files of the wheels that the one before it had fetched.
MOST_PLANS = 3


def apply_matrix(
    session: Session, options: ApplyOptions, *, on_plan: Callable[[Plan], None] | None = None
) -> Report:
    """Plan, carry the plan out, and return the report.

    *on_plan* receives the plan before anything changes, and again one that takes the
    files of the fetched wheels into account.  Callers do the no-op check themselves,
    with `up_to_date_report`, before they import this module: a no-op then loads no
    resolver.  Raises what `plan_change` and `carry_out` raise.
    """
    left = MOST_PLANS
    while True:
        planned = plan_change(session, options, recover=True)
        if on_plan is not None:
            on_plan(planned.plan)
        left -= 1
        try:
            return carry_out(session, options, planned)
        except PlanOutdated as error:
            if not left:
                raise
            session.reporter.note(f"planning again: {error}")


def carry_out(session: Session, options: ApplyOptions, planned: PlannedChange) -> Report:
    """Change the target as planned, prove it, and return the report.

    Raises RolledBack when the change failed and was undone, PlanOutdated if another plan
    is needed, and Refused or Unmet, all before anything has changed.  Returns a report with
    failed checks only where *options* ask to keep the result.
    """
    if options.runtime:
        raise InvalidInput(
            "a recorded runtime can only be planned for", hint="Omit `--runtime` to change an environment"
        )
    started = time.monotonic()
    apply_to_target = _apply_to_env if planned.plan.target is Target.ENV else _apply_to_kernel
    applied.check_home(session.home)
    try:
        report = apply_to_target(session, options, planned)
    except RolledBack as error:
        if planned.plan.target is Target.KERNEL:
            _note_undone(session, options, planned, error)
        raise
    report = replace(report, seconds=time.monotonic() - started)
    before = None if report.changed else applied.load(planned.matrix.name, session.home)
    with interrupted_as(CHANGED if report.changed else UNCHANGED):
        report = _record(session, options, planned, report)
    more = () if report.changed else tuple(_unchanged_notes(planned, report, before))
    return replace(report, notes=(*report.notes, *more))


def _unchanged_notes(
    planned: PlannedChange, report: Report, before: applied.ApplyRecord | None
) -> Iterator[str]:
    """Yield what differs from the last apply, *before*, and was accepted."""
    if planned.since and report.passed:
        yield from planned.since
        yield f"{planned.matrix.name} admits what is installed now, so it stays"
    asked = report.python, planned.matrix.digest
    # The checks of another environment, or of another file, say nothing of these.
    if before is not None and (before.python, before.matrix_digest) == asked:
        with suppress(InvalidInput):
            yield from filter(None, [checks_note(last_report(before).checks, report.checks)])


def _note_undone(session: Session, options: ApplyOptions, planned: PlannedChange, error: RolledBack) -> None:
    """Keep in the history that this change was undone at once, because of *error*."""
    site = session.site(options.python)
    facts = {
        "matrix": planned.plan.matrix,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "steps": steps_text(step.action for step in planned.plan.steps),
        "why": error.headline,
    }
    with suppress(OSError):
        applied.note_undone(session.home, site.prefix, site.purelib, facts)


def _apply_to_kernel(session: Session, options: ApplyOptions, planned: PlannedChange) -> Report:
    from colablock.transaction.apply import (  # noqa: PLC0415 - an isolated environment needs no journal
        ChangeOrigin,
        apply_plan,
        refuse_externally_managed,
    )

    plan = planned.plan
    pins = planned.pins()
    prove_kernel = partial(
        prove,
        plan.python,
        verify=planned.matrix.verify,
        pins=pins,
        environ=session.environ,
        expected_unmet=planned.unmet_before(),
        plan=plan,
        before=planned.snapshot,
        reporter=session.reporter,
    )
    if not plan.steps:
        checks = prove_kernel()
        if not (options.keep or all(check.passed for check in checks)):
            raise NotProven(_failures(checks, "the plan has nothing to change"))
        return _report(planned, plan.python, checks, changed=False)
    if not options.break_system_packages:
        refuse_externally_managed(plan, planned.snapshot)  # before gigabytes are fetched for it
    risks = _RiskTrial(session=session, plan=plan)
    checks = ()
    with interrupted_as(lambda: CHANGED if checks else UNCHANGED), scratch_folder() as folder:
        files = planned.preparer.gather(plan, folder, session.reporter)
        planned.check_wheels(files)
        risks.before_change()
        checks = apply_plan(
            plan,
            planned.snapshot,
            files,
            prove=lambda own: risks.after_change(prove_kernel(bytecode=own, earlier=risks.files)),
            check_files=risks.check_files,
            origin=ChangeOrigin(
                stack=applied.versions_digest(pins),
                lock=digest_of(options.lock) if options.lock else None,
                applied_before=applied.read_text(planned.matrix.name, session.home),
            ),
            keep=options.keep,
            undo=options.undo,
            break_system_packages=options.break_system_packages,
            environ=session.environ,
            reporter=session.reporter,
            cache=planned.preparer.fetcher.cache,
            fingerprint=lambda: fingerprint(comparable(session.snapshot(options.python, options.protect))),
        )
        report = _report(planned, plan.python, checks, changed=True)
    report = replace(report, notes=(*report.notes, *risks.notes))
    where = option_words({"--python": options.python})
    return replace(report, undo=command_line("rollback", *where) if options.undo else "")


@dataclass(slots=True, kw_only=True)
class _RiskTrial:
    """Tries the imports that the plan says may fail, before and after the change; *notes* are the result."""

    session: Session
    plan: Plan
    failed: Collection[str] = ()
    notes: tuple[str, ...] = ()
    files: int = 0  # checks of files, which the report counts

    def check_files(self, sites: Iterable[str], touched: Iterable[str]) -> tuple[Check, ...]:
        """Check the records of what the plan has changed."""
        checks = record_checks(sites, touched, plan=self.plan)
        self.files = len(checks)
        return checks

    def before_change(self) -> None:
        """Find the modules that fail already."""
        from colablock.verification.trials import failed_imports  # noqa: PLC0415 - of the kernel only

        modules = [name for one in self.plan.import_risks for name in one.modules]
        if modules:
            self.session.reporter.stage(f"Trying {count(len(modules), 'import')} that the change may break")
        self.failed = failed_imports(self.plan.python, modules, self.session.environ)

    def after_change(self, checks: tuple[Check, ...]) -> tuple[Check, ...]:
        """Find the modules that fail now, unless *checks* have failed; return *checks*."""
        from colablock.verification.trials import risk_notes  # noqa: PLC0415 - of the kernel only

        if all(check.passed for check in checks):
            risks, environ = self.plan.import_risks, self.session.environ
            self.notes = risk_notes(self.plan.python, risks, self.failed, environ)
        return checks


def _apply_to_env(session: Session, options: ApplyOptions, planned: PlannedChange) -> Report:
    digest = env_digest(planned)
    existing = envs.read_env(session.home, digest)
    if existing is not None:
        session.reporter.note(ENV_EXISTS)
    with interrupted_as(lambda: UNCHANGED if existing is not None else _left_of_build(session.home, digest)):
        python = existing.python if existing is not None else _build_env(session, options, planned, digest)
        checks = prove(
            python,
            verify=planned.matrix.verify,
            pins=planned.pins(),
            environ=session.environ,
            bytecode=(str(Path(python).parents[1]),),
            reporter=session.reporter,
        )
    if not all(check.passed for check in checks) and not options.keep:
        if existing is not None:
            raise NotProven(_failures(checks, "the environment existed before and is unchanged"))
        envs.discard_env(session.home, digest)
        hint = "Pass `--keep` to keep an environment that is not proven"
        raise RolledBack(_failures(checks, "the new environment was deleted"), hint=hint)
    envs.select_env(session.home, planned.matrix.name, digest)
    report = _report(planned, python, checks, changed=existing is None)
    return replace(report, lock_digest=digest)


def _left_of_build(home: Path, digest: str) -> str:
    """Return the state after an interrupt of the build of an environment, or of its proof."""
    if envs.read_env(home, digest) is None:
        return UNCHANGED
    removes = f"`colablock env remove {digest[:12]}` removes it"
    return f"The isolated environment is built, but not proven: apply again to use it; {removes}."


def _interpreter(session: Session, options: ApplyOptions, short: str) -> str:
    """Return an interpreter for a new environment: that of the bundle, else one that uv fetches."""
    from colablock.bundles.reader import Bundle  # noqa: PLC0415 - most Pythons are found by the plan
    from colablock.environment.interpreters import fetch_interpreter  # noqa: PLC0415
    from colablock.unpacking.interpreter import unpack_interpreter  # noqa: PLC0415

    bundle = Bundle.open(options.bundle) if options.bundle is not None else None
    packed = bundle.python if bundle is not None else None
    if bundle is None or packed is None:
        return fetch_interpreter(short, session.environ, session.reporter).path
    folder = session.home / applied.PYTHONS / packed.sha256[:32]
    session.reporter.stage(f"Unpacking Python {short} of the bundle")
    with scratch_folder() as scratch:
        archive = scratch / packed.filename
        if not folder.is_dir():
            bundle.copy(packed, archive)
        return str(unpack_interpreter(archive, folder, short))


def _build_env(session: Session, options: ApplyOptions, planned: PlannedChange, digest: str) -> str:
    """Build the isolated environment of the lock with that *digest*; return its interpreter."""
    plan = planned.plan
    short = planned.snapshot.environment.short
    interpreter = plan.python or _interpreter(session, options, short)
    with scratch_folder() as folder:
        files = planned.preparer.gather(plan, folder, session.reporter)
        python = envs.build_env(
            plan,
            files,
            lock_hash=digest,
            home=session.home,
            environ=session.environ,
            interpreter=interpreter,
            reporter=session.reporter,
            cache=planned.preparer.fetcher.cache,
        )
    return str(python)


def _report(planned: PlannedChange, python: str, checks: tuple[Check, ...], *, changed: bool) -> Report:
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


def _record(session: Session, options: ApplyOptions, planned: PlannedChange, report: Report) -> Report:
    """Record the apply for `run`, `verify` and the next `apply`; add a note to *report* where that fails."""
    prefix, site = planned.snapshot.prefix, planned.snapshot.site
    if report.lock_digest:  # of an isolated environment, which the plan did not find
        folder = envs.env_folder(session.home, report.lock_digest)
        prefix, site = str(folder), str(envs.site_of(folder))
    versions = installed_versions([site])
    asked = absolute(options)
    if report.target == Target.KERNEL.value:  # the record names that Python
        asked = replace(asked, into=None, python=None)
    record = applied.ApplyRecord(
        name=planned.matrix.name,
        key=request_key(options, session.matrix(options.name), session.environ),
        target=report.target,
        python=report.python,
        prefix=prefix,
        sites=(site,),
        state=applied.versions_digest(versions),
        versions=versions,
        matrix_digest=planned.matrix.digest,
        variant=planned.matrix.variant,
        pins=planned.pins(),
        unmet=tuple(sorted(planned.unmet_before())),
        report=report_to_json(report),
        source=asked.name,
        request=asked.arguments("apply"),
        process=os.getpid(),
        caller=sys.prefix,
    )
    try:
        applied.save(record, session.home)
    except OSError as error:
        note = f"applied, but not recorded in {session.home}: {error.strerror};"
        return replace(report, notes=(*report.notes, f"{note} `run` and `verify` will not find it"))
    return report


def _failures(checks: Iterable[Check], outcome: str) -> str:
    failed = [check for check in checks if not check.passed]
    lines = [f"{count(len(failed), 'check')} failed, and {outcome}"]
    for check in failed:
        lines.append(f"  {check.kind} {check.subject}")
        lines += [f"    {line}" for line in check.detail.splitlines()[-8:]]
    return "\n".join(lines)
