"""Plan a change: read the state, choose the target, resolve, and list the steps with their costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import command_line, option_words
from colablock._common.urls import redacted
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.notebook_host import Host
from colablock.environment.requirements import parse_requirement, project_named, same_version
from colablock.environment.site import is_interrupted, is_unfinished
from colablock.environment.snapshot import Snapshot
from colablock.errors import BadDistribution, FetchFailed, InvalidInput, NoSolution, NotFound, Refused, Unmet
from colablock.lockfile.pylock import lock_digest, make_lock
from colablock.lockfile.store import LockStore, read_head
from colablock.lockfile.tool_table import DELTA
from colablock.matrix.catalog import list_matrices, lock_files
from colablock.matrix.model import roots, select_variant, variant_choices
from colablock.network.cache import Cache, cache_folder
from colablock.operations.last_apply import drifts_since, requirements_to_hold
from colablock.operations.session import Session, comparable
from colablock.planning.locks import as_locked, check_assumed
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import ENV_EXISTS, INTERRUPTED, Target
from colablock.planning.planned import NotKernel, PlannedChange, changes_between, exclusions
from colablock.planning.request_check import check_ranges, check_reinstalled, with_protected
from colablock.planning.solver import Solver
from colablock.planning.sources import BlockedIndex, blocked_before, blocked_by, blocked_in
from colablock.planning.target import is_kernel, why_not_kernel
from colablock.training.receipts import kept_receipts, proof_note
from colablock.transaction import apply_record as applied
from colablock.transaction.disk_space import room_note, undo_cost
from colablock.transaction.drift import notes_of
from colablock.transaction.up_to_date import request_key
from colablock.verification.origins import hidden_imports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.accelerator import Accelerator
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile
    from colablock.network.settings import Settings
    from colablock.planning.plan import Step

__all__ = ["env_digest", "explain_plan", "plan_change", "solver_for"]

_EXPLAINED = "`{}` explains why the kernel is not the target, and how it can be"


def plan_change(session: Session, options: ApplyOptions, *, recover: bool = False) -> PlannedChange:
    """Return the plan, with what is needed to carry it out.

    Nothing is changed, except that with *recover* an interrupted change is
    recovered first.  Without it the plan only notes that there is one.  If an index
    that only the variant uses cannot be reached, the next variant that fits replaces it.
    Raises NoSolution, FetchFailed and Refused (exit 1), InvalidInput (exit 2).
    """
    matrix = session.matrix(options.name)
    kernel = with_protected(_read_state(session, options, recover=recover), options.protect)
    last = None if options.runtime else applied.load(matrix.name, session.home)
    must_hold = requirements_to_hold(last, kernel) if last else frozenset()
    if options.reinstall:
        planned = _reinstalled(session, options, kernel, must_hold)
    else:
        planned = _plan_variants(session, options, kernel, must_hold)
    is_checked = options.bundle is not None or not options.runtime
    if is_checked and not planned.plan.is_in_place:
        planned.preparer.check_at_hand(planned.plan)
    is_same = last is not None and last.key == request_key(options, matrix, session.environ)
    since = tuple(notes_of(drifts_since(session, last, kernel))) if last and is_same else ()
    proof = _proof(planned, kernel.accelerator, session.home)
    hidden = _hidden(session, planned).values()
    more = (_EXPLAINED.format(options.command("why")),) if planned.not_kernel else ()
    if options.bundle is not None:
        planned = replace(planned, plan=replace(planned.plan, lock=str(options.bundle), lock_hosts=()))
    plan = replace(planned.plan, beforehand=(*since, *planned.plan.beforehand, *hidden, *proof, *more))
    is_changed_here = plan.target is Target.KERNEL and not (options.runtime or recover)
    if is_changed_here and is_interrupted(kernel.prefix, kernel.site):
        plan = replace(plan, notes=(INTERRUPTED, *plan.notes), is_interrupted=True)
    return replace(planned, plan=plan, since=since)


def _reinstalled(
    session: Session,
    options: ApplyOptions,
    kernel: Snapshot,
    must_hold: frozenset[tuple[NormalizedName, str]],
) -> PlannedChange:
    """Plan to install some distributions again, in their version unless the stack needs another one."""
    names = {project_named(text) for text in options.reinstall}
    is_env = InvalidInput(
        "`--reinstall` is for the kernel, and the target is an isolated environment",
        hint=f"`colablock env remove {session.matrix(options.name).name}` and another apply build it anew;"
        " a damaged package of the kernel needs `--into kernel`",
    )
    if options.into is Target.ENV:
        raise is_env
    check_reinstalled(kernel, names)
    _check_lock(options, names)
    planned = _plan_variants(session, options, kernel, must_hold)
    if planned.plan.target is Target.ENV:
        raise is_env
    missing = sorted(names - planned.resolution.pins.keys())
    if missing:
        raise NotFound(f"`{missing[0]}` cannot be reinstalled: it is not part of {planned.matrix.name}")
    steps = {step.name: step for step in planned.plan.steps}
    for name in sorted(names):
        _check_version(planned, kernel, steps[name])
        steps[name] = replace(steps[name], reason=f"reinstalled; {steps[name].reason}")
    loaded = {name: kernel.loaded[name] for name in sorted(names) if kernel.loaded.get(name)}
    plan = replace(planned.plan, steps=tuple(steps.values()), restart={**planned.plan.restart, **loaded})
    if options.into is None and loaded:  # it is not harmless
        plan = replace(plan, why_target="`--reinstall` is for the kernel")
    return replace(planned, plan=plan)


def _check_lock(options: ApplyOptions, names: set[NormalizedName]) -> None:
    """Raise Refused if the lock of *options* is a delta over one of *names*, of which it has no file."""
    head = read_head(options.lock) if options.lock is not None else None
    assumed = sorted(names & head.assumes.keys()) if head is not None else []
    if head is None or not assumed:
        return
    command = replace(options, lock=None).command("apply", *option_words({"--reinstall": options.reinstall}))
    raise Refused(
        f"`{assumed[0]}` cannot be installed again from the lock `{head.path.name}`, which assumes it",
        hint="Name the matrix, not the bundle" if options.bundle else f"Omit the lock: `{command}`",
    )


def _check_version(planned: PlannedChange, kernel: Snapshot, step: Step) -> None:
    """Raise Refused if *step* has another version although the stack admits the installed one."""
    there, found = kernel.installed.get(step.name), planned.resolution
    if there is None or same_version(there.version, step.version or ""):
        return
    pin = found.pins[step.name]
    wants = (parse_requirement(parent.requirement) for parent in pin.parents)
    admits = all(one is None or one.specifier.contains(there.version, prereleases=True) for one in wants)
    if admits and found.request.fixed.get(step.name) is None:
        raise Refused(
            f"`{step.name}` {there.version} cannot be installed again: {step.version} would take its place",
            hint="Start a new session of the notebook, name a folder that has its wheel with `--find-links`,"
            f" or take another version with `--with '{step.name}!={there.version}'`",
        )


def explain_plan(
    session: Session, options: ApplyOptions, package: str | None = None, *, absent: str | None = None
) -> list[str]:
    """Return the reasons for what the plan says about *package*, or about its target without one.

    With additional requirements, what they change follows.  With *absent*, a name or a requirement,
    they are the reasons why the plan does not have it.  Raises what `plan_change` and
    `PlannedChange.why` raise.
    """
    if absent is not None:
        return _why_not(session, options, absent)
    if options.bundle is None:
        _check_order(session, options, package)
    planned = _with_other_matrices(session, options, plan_change(session, options))
    lines = planned.why(package, options)
    if options.with_ and options.bundle is None:  # a bundle has the lock with them alone
        before = plan_change(session, replace(options, with_=()))
        given = ", ".join(f"`{one}`" for one in options.with_)
        lines += [f"with {given}, compared to the plan without:", *changes_between(before, planned)]
    return lines


def _check_order(session: Session, options: ApplyOptions, package: str | None) -> None:
    """Raise NotFound with the right command if a package has the place of the matrix, or of *package*."""
    name = options.name
    try:
        session.matrix(name)
    except NotFound as error:
        known = {one.name for one in list_matrices(environ=session.environ)}
        matrix = package if package in known else None if package else _matrix_with(session, name)
        if matrix is not None:
            _, *asked = options.arguments("why")
            command = command_line("why", matrix, name, *asked)  # argparse takes no option between them
            hint = f"The matrix comes first: `{command}`"
            raise NotFound(error.message, hint=hint) from error
        raise


def _matrix_with(session: Session, package: str) -> str | None:
    """Return the matrix that *package* is most likely meant of: the last one applied, or one that has it."""
    name = canonicalize_name(package)
    listed = {one.name: one.matrix for one in list_matrices(environ=session.environ) if not one.shadowed_by}
    for last in applied.load_all(session.home):
        if last.name in listed and name in last.pins:
            return last.name
    found = []
    for one, matrix in listed.items():
        if matrix is None:
            continue
        others = (entry for variant in matrix.variants.values() for entry in variant.packages)
        if any(entry.name == name for entry in (*matrix.packages, *others)):
            found.append(one)
    return max(found, key=lambda one: (-len(one), one), default=None)  # `qlora-2026`, not one that extends it


def _why_not(session: Session, options: ApplyOptions, text: str) -> list[str]:
    """Return why the plan does not have the project or the versions of *text*, and what adding it does."""
    (entry,) = roots(replace(session.matrix(options.name), packages=()), (text,))
    planned = plan_change(session, options)
    version = planned.pins().get(entry.name)
    if version is not None and entry.specifier.contains(version, prereleases=True):
        return [f"{entry.name} {version} is in the plan", *planned.why(entry.name, options)]
    kernel = planned.not_kernel.planned if planned.not_kernel else None
    lines = [*planned.told(entry.name), *(kernel.told(entry.name) if kernel else ())]
    if version is None:
        lines += [line for line in exclusions(planned.matrix, entry.name) if line not in lines]
        if not lines:
            lines = [f"nothing asks for {entry.name}: neither {planned.matrix.name} nor what it installs"]
    addition = f"{entry.name}{entry.specifier}"
    added = replace(options, with_=(*options.with_, addition))
    try:
        other = plan_change(session, replace(options, with_=(*options.with_, text)))
    except NoSolution as error:
        return [*lines, f"`{addition}` cannot be added: {error.headline}", *error.details]
    lines.append(f"it can be added: `{added.command('plan')}`")
    return [*lines, *changes_between(planned, other)]


def _with_other_matrices(session: Session, options: ApplyOptions, planned: PlannedChange) -> PlannedChange:
    """Add the matrices that are known to fit the kernel which *planned* does not use."""
    from colablock.check.results_file import fits_kernel  # noqa: PLC0415 - only `why` asks

    cause = planned.not_kernel
    if cause is None:
        return planned
    runtime = options.runtime
    if runtime is None:
        from colablock.runtimes.catalog import runtime_of  # noqa: PLC0415 - only `why` asks

        runtime = runtime_of(session.snapshot(options.python), environ=session.environ)
    listed = (one.matrix for one in list_matrices(environ=session.environ) if not one.shadowed_by)
    others = [one for one in listed if one is not None and one.name != planned.matrix.name]
    fitting = tuple(one.name for one in others if runtime and fits_kernel(one, runtime))
    return replace(planned, not_kernel=replace(cause, others=fitting))


def _plan_variants(
    session: Session,
    options: ApplyOptions,
    kernel: Snapshot,
    must_hold: frozenset[tuple[NormalizedName, str]],
) -> PlannedChange:
    """Plan with the variant for *kernel*, or with the next one that fits while its own index is away."""
    matrix = session.matrix(options.name)
    options = as_locked(options, matrix)
    is_open = options.variant is None and options.lock is None and options.bundle is None
    *before, last = variant_choices(matrix, kernel.accelerator) if is_open else (matrix,)

    def plan(one: Matrix) -> PlannedChange:
        named = replace(options, variant=one.variant or options.variant)
        again = {project_named(text) for text in options.reinstall} & kernel.installed.keys()
        solver = replace(
            solver_for(session, named, kernel),
            must_hold=must_hold,
            damaged={name: Version(kernel.installed[name].version) for name in again},
        )
        return _with_costs(session, named, _plan_for_target(session, named, solver))

    away: list[BlockedIndex] = []
    for one in before:
        found = blocked_before(one, session.unreached)
        if found is None:
            try:
                planned = plan(one)
                found = blocked_in(planned) if not planned.plan.is_in_place else None
            except FetchFailed as error:
                found = blocked_by(error, one, offline=session.settings(options, one).offline)
                if found is None:
                    raise
            if found is None:
                return _with_stand_in_notes(planned, away)
        session.unreached[found.index.url] = found.error
        away.append(found)
    try:
        planned = plan(last)
        if away:
            planned.preparer.check_at_hand(planned.plan)
        return _with_stand_in_notes(planned, away)
    except Unmet as error:
        if not away or _holds_for(before[0], last, error):
            raise
    return plan(before[0])  # nothing replaces it: its own plan or error is the answer


def _holds_for(first: Matrix, other: Matrix, error: Unmet) -> bool:
    """Whether *error* of the variant *other* is one of *first*, too, whatever the index of *first* has.

    It is if it names a project, without a file for this Python, that both ask for in the same words.
    """
    if not isinstance(error, NoSolution) or not error.is_about_python:
        return False
    wanted = {one.name: (one.specifier, one.index, one.url) for one in first.packages}
    same = {one.name for one in other.packages if wanted.get(one.name) == (one.specifier, one.index, one.url)}
    return not same.isdisjoint(error.names)


def _with_stand_in_notes(planned: PlannedChange, away: Sequence[BlockedIndex]) -> PlannedChange:
    notes = tuple(one.note(planned.matrix.variant) for one in away)
    return replace(planned, plan=replace(planned.plan, notes=(*planned.plan.notes, *notes)))


def solver_for(session: Session, options: ApplyOptions, kernel: Snapshot) -> Solver:
    """Return the solver of a request for the state *kernel*."""
    matrix = select_variant(session.matrix(options.name), kernel.accelerator, options.variant)
    check_ranges(matrix, options.with_, kernel.environment, called=options.name)
    settings = session.settings(options, matrix)
    return Solver(
        matrix=matrix,
        kernel=kernel,
        settings=settings,
        environ=session.environ,
        reporter=session.reporter,
        with_=options.with_,
        broken=options.broken,
        lock=options.lock,
        lock_store=_lock_store(session, options, matrix, settings),
        standing=_lock_paths(session, options, matrix),
        away=session.away,
        readers=session.readers,
        # Without `into` it names the kernel: where that cannot take the stack, any Python may.
        python=options.python if options.into is Target.ENV else None,
    )


def env_digest(planned: PlannedChange) -> str:
    """Return the digest that names an isolated environment: that of its lock.

    A lock lists the hashes of rebuilt wheels, so those that are missing are made.
    """
    if planned.digest:
        return planned.digest
    wheels = planned.preparer.wheels_beside(planned.resolution, None)
    return lock_digest(make_lock(planned.resolution, planned.matrix, wheels=wheels))


def _read_state(session: Session, options: ApplyOptions, *, recover: bool) -> Snapshot:
    """Return the state that a plan would change: a recorded runtime's, a named Python's, or this one's."""
    if options.runtime:
        from colablock.runtimes.catalog import load_runtime  # noqa: PLC0415 - asked for only

        return comparable(load_runtime(options.runtime, environ=session.environ))
    if recover:
        from colablock.transaction.isolated_envs import sweep_home  # noqa: PLC0415 - not before a plan

        sweep_home(session.home)
    snapshot = session.snapshot(options.python, options.protect)
    if recover and is_unfinished(snapshot.prefix, snapshot.site):
        from colablock.operations.rollback import recover_interrupted  # noqa: PLC0415 - hardly ever needed

        recover_interrupted(session, snapshot.python)
        snapshot = session.snapshot(options.python, options.protect)
    if not options.python and snapshot.host is not Host.PLAIN and not session.in_kernel:
        # `!colablock` starts a process of its own.
        note = "this process cannot see which modules the notebook's kernel has loaded:"
        notes = (*snapshot.notes, f"{note} restart the kernel after a change")
        snapshot = replace(snapshot, notes=notes)
    return comparable(snapshot)


def _lock_store(session: Session, options: ApplyOptions, matrix: Matrix, settings: Settings) -> LockStore:
    """Return the locks beside *matrix*, as far as *options* allow them."""
    return LockStore(
        paths=_lock_paths(session, options, matrix),
        matrix=matrix,
        called=options.name,
        with_=options.with_,
        index=redacted(settings.default_index),
        reporter=session.reporter,
        cache=Cache(cache_folder(session.environ)),
    )


def _lock_paths(session: Session, options: ApplyOptions, matrix: Matrix) -> tuple[LockFile, ...]:
    return lock_files(matrix, environ=session.environ) if options.use_locks and options.lock is None else ()


def _plan_for_target(session: Session, options: ApplyOptions, solver: Solver) -> PlannedChange:
    """Plan for the target that was asked for, else for the kernel where that does no harm."""
    if options.into is not None:
        return solver.in_env("requested") if options.into is Target.ENV else solver.in_kernel("requested")
    may_change = is_kernel(solver.kernel, named=bool(options.python or options.runtime))
    head = read_head(solver.lock) if solver.lock is not None else None
    if head is not None and head.kind == DELTA:
        check_assumed(head, solver.kernel if may_change else None)
        return solver.in_kernel("its lock is for this environment as it stands")
    if not may_change:
        return solver.in_env("not in a notebook")
    try:
        planned = solver.in_kernel("harmless: no loaded module changes and nothing breaks")
    except NoSolution as error:
        if error.is_universal:
            raise
        session.reporter.note(f"not using the kernel: {error.headline}")
        cause = NotKernel(options=options, reason="the stack does not fit", error=error)
        return replace(solver.in_env("the stack does not fit the kernel"), not_kernel=cause)
    except Refused as error:
        cause = NotKernel(options=options, reason=error.headline, error=error)
        return replace(solver.in_env(f"not in the kernel, because {error.headline}"), not_kernel=cause)
    harm = why_not_kernel(planned.plan, planned.resolution.left) or _hidden(session, planned).get(
        "PYTHONPATH"
    )
    is_closed = planned.snapshot.externally_managed is not None and not options.break_system_packages
    if harm is None and planned.plan.steps and is_closed:
        harm = "the environment is externally managed"
    if harm is None:
        return planned
    cause = NotKernel(options=options, reason=harm, planned=planned)
    return replace(solver.in_env(f"in the kernel {harm}"), not_kernel=cause)


def _hidden(session: Session, planned: PlannedChange) -> dict[str, str]:
    """Return what hides the stack in the kernel from programs that are started here."""
    if planned.plan.target is Target.ENV or not planned.snapshot.python:
        return {}
    return hidden_imports(planned.matrix.verify.imports, session.environ, planned.snapshot.site)


def _with_costs(session: Session, options: ApplyOptions, planned: PlannedChange) -> PlannedChange:
    """Add to the plan what it costs on this machine: imports, disk space, the copies that an undo needs."""
    if options.runtime:
        return planned
    plan, folder = planned.plan, Path(planned.snapshot.site)
    if plan.target is Target.ENV:
        planned = replace(planned, digest=_digest_at_hand(planned))
        if _env_exists(session, planned.digest):
            every = tuple(step.name for step in plan.steps)
            return replace(
                planned, plan=replace(plan, beforehand=(ENV_EXISTS,), at_hand=every, is_in_place=True)
            )
        folder = session.home
    else:
        from colablock.check.import_risks import find_import_risks  # noqa: PLC0415 - of the kernel only

        plan = replace(plan, import_risks=find_import_risks(plan, planned.snapshot))
        if options.undo:
            plan = replace(plan, undo_cost=undo_cost(plan, planned.snapshot))
    note = room_note(plan, folder)
    beforehand = (note,) if note else ()
    plan = replace(plan, beforehand=beforehand, at_hand=planned.preparer.at_hand(plan))
    return replace(planned, plan=plan)


def _digest_at_hand(planned: PlannedChange) -> str:
    """Return the digest that names the isolated environment; "" where only a download could tell."""
    if not planned.preparer.is_at_hand(planned.resolution):
        return ""
    try:
        return env_digest(planned)
    except BadDistribution:
        return ""  # the apply says what is wrong with it


def _env_exists(session: Session, digest: str) -> bool:
    """Whether the isolated environment of that *digest* is complete."""
    from colablock.transaction.isolated_envs import read_env  # noqa: PLC0415 - not for the kernel

    return bool(digest) and read_env(session.home, digest) is not None


def _proof(planned: PlannedChange, accelerator: Accelerator, home: Path) -> tuple[str, ...]:
    """Return whether training with the stack is proven on this accelerator; nothing without a runner."""
    matrix = planned.matrix
    if matrix.train.runner is None:
        return ()
    note = proof_note(
        matrix.source,
        matrix.name,
        accelerator,
        digest=matrix.digest,
        variant=matrix.variant,
        pins=planned.pins(),
        asked=matrix,
        kept=kept_receipts(home, matrix.name),
    )
    return (note,)
