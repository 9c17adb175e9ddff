"""Prove an environment in fresh interpreters."""

from __future__ import annotations

import errno
import json
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.child_environment import Purpose, environment_of, opt_outs
from colablock._common.fs import unusable
from colablock._common.process import last_lines
from colablock._common.reporter import Reporter
from colablock._common.scratch import scratch_folder
from colablock._common.text import count
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion
from colablock.environment.dependency_graph import DependencyGraph, UnmetRequirement, newly_unmet, unmet_text
from colablock.environment.markers_and_tags import Environment
from colablock.environment.record import lost_files, readable_rows
from colablock.environment.requirements import version_of
from colablock.environment.snapshot import Installed
from colablock.errors import NotFound, Unmet
from colablock.matrix.model import Verify
from colablock.planning.plan import Plan, Remedy
from colablock.verification.launch import as_in_training, told_as
from colablock.verification.origins import misplaced, owner_of
from colablock.verification.worker import Child, JobResult, RunningCommand, is_python, run_jobs

if TYPE_CHECKING:
    from colablock.environment.snapshot import Snapshot

__all__ = ["Check", "Report", "files_checks", "first_lines", "prove", "run_in"]

_FILES = 5  # listed in a failed check


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One proof, of a *kind*.

    ``version``, ``requirements``, ``import``, ``command`` and ``capability`` concern the stack.
    ``files`` concerns it and, after a change, every other distribution whose files were touched.
    ``breakage`` concerns the other distributions, which a change must not break unless the plan
    lists them.  A *skipped* check could not run here, and *detail* says why.
    It counts as passed.
    """

    kind: str
    subject: str
    passed: bool
    detail: str = ""  # the version found, or the last lines of the traceback
    seconds: float = 0.0
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The checks of one environment, and what the call changed there."""

    matrix: str
    variant: str | None
    target: str  # "kernel" or "env"
    python: str  # the interpreter to run things with
    python_version: str
    checks: tuple[Check, ...]
    lock_digest: str = ""
    changed: bool = False  # whether this call changed anything
    seconds: float = 0.0
    needs_restart: bool = False
    restart: tuple[str, ...] = ()  # changed modules that the kernel has loaded in their old version
    notes: tuple[str, ...] = ()
    undo: str = ""  # the command that undoes what this call changed
    is_recorded: bool = False  # the checks are those of the last apply: this call compared versions only

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def prove(
    python: str | Path,
    *,
    verify: Verify,
    pins: Mapping[NormalizedName, str],
    environ: Mapping[str, str],
    expected_unmet: Collection[tuple[str, str]] = (),
    plan: Plan | None = None,
    before: Snapshot | None = None,
    bytecode: Sequence[str] = (),
    earlier: int = 0,
    timeout: float = 300.0,
    reporter: Reporter | None = None,
) -> tuple[Check, ...]:
    """Run the checks of an environment: versions, requirements, imports, capabilities, commands.

    They run in fresh interpreters of *python*, with the variables of a training process and without the
    network.  *expected_unmet* are requirements of the stack that were unmet before: the owner and the
    line of each.  With *plan*, which has changed the state *before*, the change must not break any
    distribution outside *pins*, unless the plan lists it as left.  Imports write bytecode into the
    folders *bytecode* only, for faster next starts; nothing else of the environment changes.  The
    commands run beside the other jobs.  *timeout* is in seconds, for one job.  The progress counts every
    check of the report, of which *earlier* ones were made before.

    Raises Unmet if the interpreter does not run.
    """
    reporter = reporter or Reporter()
    reporter.stage("Proving the environment")
    left = len(verify.imports) + len(verify.capabilities) + len(verify.commands)
    checks: list[Check] = []

    def add(text: str, *more: Check) -> None:
        checks.extend(more)
        proofs = sum(check.kind in ("import", "capability", "command") for check in checks)
        done = earlier + len(checks)
        if done:
            reporter.step(text, done, done + left - proofs)

    with scratch_folder() as scratch, ExitStack() as running:
        child = _child(python, environ, scratch, timeout=timeout, bytecode=bytecode)
        jobs = [("import", name) for name in verify.imports]
        jobs += [("capability", name) for name in verify.capabilities]
        answers = run_jobs(child, [("facts", json.dumps(sorted(pins))), *jobs])
        state = _state_of(next(answers), python)
        standing = _state_checks(state, pins, frozenset(expected_unmet))
        if plan is not None and plan.steps and before is not None:
            standing += _breakage_checks(state, plan, before, frozenset(pins))
        add("versions", *standing)
        commands = {
            command: (ran, running.enter_context(child.start_command(ran, state.scripts)))
            for command in verify.commands
            for ran in [as_in_training(command, child.python, state.scripts, state.folders, scratch)]
        }
        for answer in answers:
            add(f"{answer.kind} {answer.subject}", _check_of(_compared(answer, pins, state)))
        for command, (ran, started) in commands.items():
            add(f"command {' '.join(command)}", _command_check(command, ran, started))
    return tuple(checks)


def _state_of(answer: JobResult, python: str | Path) -> _State:
    """Return the state that a process of *python* has read.  Raises Unmet if it could not."""
    if not answer.passed:
        raise Unmet(f"the interpreter `{python}` does not run\n{last_lines(answer.detail, indent='  ')}")
    return _State.of(answer.facts)


def _child(
    python: str | Path, environ: Mapping[str, str], scratch: Path, *, timeout: float, bytecode: Sequence[str]
) -> Child:
    """Return how the proofs run, with all that they write in *scratch*."""
    work = scratch / "work"  # what is in it can be imported, so it has none of the caches
    work.mkdir()
    variables = proof_environment(python, environ, scratch)
    return Child(python=str(python), environ=variables, folder=work, timeout=timeout, bytecode=bytecode)


def files_checks(sites: Iterable[str], pins: Mapping[NormalizedName, str]) -> tuple[Check, ...]:
    """Return a failed check for each of *pins* with lost files, or one passed check.

    Only distributions that colablock installed are checked, because hosted images lack files
    of others.  A file must exist and have its recorded size; its contents are not read.
    """
    started = time.monotonic()
    lost: dict[str, list[str]] = {}
    checked = 0
    for site in sites:
        records = {info.name: readable_rows(info) for info in _ours(Path(site), pins)}
        checked += len(records)
        lost.update(lost_files(site, records))
    if not lost and checked:
        subject = count(checked, "distribution")
        return (Check(kind="files", subject=subject, passed=True, seconds=time.monotonic() - started),)
    return tuple(
        Check(
            kind="files",
            subject=canonicalize_name(info.partition("-")[0]),
            passed=False,
            detail=first_lines(lines),
        )
        for info, lines in sorted(lost.items())
    )


def _ours(site: Path, pins: Mapping[NormalizedName, str]) -> Iterator[Path]:
    """Yield the dist-info folders of *pins* that colablock installed."""
    for info in sorted(site.glob("*.dist-info")):
        if canonicalize_name(info.name.partition("-")[0]) not in pins:
            continue
        with suppress(OSError):
            if (info / "INSTALLER").read_text(encoding="utf-8").strip() == "colablock":
                yield info


def first_lines(lines: Sequence[str]) -> str:
    """Return the first of *lines*, and the number of the others, as the detail of a failed check."""
    more = [f"and {len(lines) - _FILES} more"] if len(lines) > _FILES else []
    return "\n".join([*lines[:_FILES], *more])


def proof_environment(python: str | Path, environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return the variables of a proof: of a training process, offline, with every cache in *scratch*."""
    caches = {
        "HF_HOME": "huggingface",
        "MPLCONFIGDIR": "matplotlib",
        "NUMBA_CACHE_DIR": "numba",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "XDG_CACHE_HOME": "cache",
    }
    offline = {
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
    folders = {name: str(scratch / folder) for name, folder in caches.items()}
    extra = {**opt_outs(environ), **offline, **folders}
    return environment_of(python, environ, Purpose.LOCAL, **extra)


def run_in(python: str | Path, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command in the environment of *python*, on this terminal, and return its exit status.

    ``python`` and ``python3`` mean *python*.  Other commands are searched for in the environment
    first.  The status of a command ended by signal n is 128 + n, as in a shell.  Raises NotFound
    if there is no such command, and InvalidInput or Unmet if it cannot be run.
    """
    variables = environment_of(python, environ, Purpose.COMMAND, **opt_outs(environ))
    # It is the user's command, so it shares the terminal, the process group and standard input.
    command = [str(python), *argv[1:]] if is_python(argv[0]) else list(argv)
    try:
        process = subprocess.Popen(command, env=variables)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise NotFound(f"the environment of `{python}` has no command `{argv[0]}`") from error
    except OSError as error:
        hint = (
            "Start the file with an interpreter line: `#!/bin/sh`" if error.errno == errno.ENOEXEC else None
        )
        raise unusable(
            error, f"the command `{argv[0]}` cannot be run: {error.strerror}", hint=hint
        ) from error
    status = _wait_for_end(process)
    return status if status >= 0 else 128 - status


def _wait_for_end(process: subprocess.Popen[bytes]) -> int:
    """Return the status of *process* when it has ended by itself.

    Ctrl-C also reaches the process, because it is in the same process group.  It may take its
    time to end, as a training run that saves a checkpoint does.
    """
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # noqa: PERF203 - it happens once for each Ctrl-C
            continue


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """The installed distributions of the target, which the target itself reports."""

    graph: DependencyGraph
    scripts: str
    versions: Mapping[str, str | None]  # what `importlib.metadata.version` returns for the pins
    folders: Mapping[NormalizedName, str]  # of the metadata

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> _State:
        installed: dict[NormalizedName, Installed] = {}
        folders: dict[NormalizedName, str] = {}
        for row in facts["distributions"]:
            name = canonicalize_name(row["name"])
            one = Installed(name=name, version=row["version"], requires=tuple(row["requires"]))
            installed.setdefault(name, one)
            folders.setdefault(name, row["path"])
        environment = Environment(markers=facts["markers"], tags=())
        graph = DependencyGraph(installed, environment)
        return cls(graph=graph, scripts=facts["scripts"], versions=facts["versions"], folders=folders)

    def version(self, name: NormalizedName) -> str | None:
        """Return the installed version of *name*; None if it is not installed."""
        there = self.graph.installed.get(name)
        return there.version if there is not None else None


def _command_check(command: Sequence[str], ran: Sequence[str], started: RunningCommand) -> Check:
    """Return the check of *command*, which was *started* as *ran*."""
    passed, detail, seconds = started.result()
    if ran is not command:
        detail = "\n".join(filter(None, (told_as(command), detail)))
    return Check(kind="command", subject=" ".join(command), passed=passed, detail=detail, seconds=seconds)


def _compared(answer: JobResult, pins: Mapping[NormalizedName, str], state: _State) -> JobResult:
    """Return *answer*, failed if it is an import of the stack that came from another place."""
    if answer.kind != "import" or not answer.passed or answer.skipped:
        return answer
    owner = owner_of(answer.subject, pins, state.folders)
    other = misplaced(answer.subject, answer.origin, owner) if owner is not None else None
    return answer if other is None else replace(answer, passed=False, detail=other)


def _check_of(answer: JobResult) -> Check:
    return Check(
        kind=answer.kind,
        subject=answer.subject,
        passed=answer.passed,
        detail=answer.detail,
        seconds=answer.seconds,
        skipped=answer.skipped,
    )


def _state_checks(
    state: _State, pins: Mapping[NormalizedName, str], expected_unmet: Collection[tuple[str, str]]
) -> list[Check]:
    """Return the checks of what is installed: a version for each of *pins*, and their requirements."""
    versions = [_version_check(name, wanted, state) for name, wanted in sorted(pins.items())]
    return [*versions, _requirements_check(pins, state, expected_unmet)] if pins else versions


def _version_check(name: NormalizedName, wanted: str, state: _State) -> Check:
    told = state.versions.get(name)
    found = state.version(name) if told is None else told
    passed = found is not None and _same(found, wanted)
    if passed:
        detail = str(found)
    elif found == "":
        detail = f"expected {wanted}, but the folder that importlib.metadata finds for it has no metadata"
    else:
        detail = f"expected {wanted}, but " + (f"{found} is installed" if found else "it is not installed")
    return Check(kind="version", subject=name, passed=passed, detail=detail)


def _same(found: str, wanted: str) -> bool:
    try:
        return version_of(found) == version_of(wanted)
    except InvalidVersion:
        return found == wanted


def _requirements_check(
    pins: Mapping[NormalizedName, str], state: _State, expected: Collection[tuple[str, str]]
) -> Check:
    found: dict[tuple[str, str], UnmetRequirement] = {}
    for one in state.graph.unmet(pins):
        found.setdefault(one.key, one)  # each requirement is listed once, however many need it
    lines = [unmet_text(one, state.graph.installed) for key, one in found.items() if key not in expected]
    return Check(
        kind="requirements",
        subject=count(len(pins), "distribution"),
        passed=not lines,
        detail="\n".join(lines),
    )


def _breakage_checks(
    state: _State, plan: Plan, before: Snapshot, pins: frozenset[NormalizedName]
) -> list[Check]:
    """Return a failed check for each newly broken distribution that *plan* does not list, or a passed one.

    Only the changes of *plan* count.  Other differences between *before* and *state* come from
    the ``PYTHONPATH`` of this interpreter.
    """
    installed = state.graph.installed
    listed = {item.name for item in plan.breakages if item.remedy is Remedy.LEAVE}
    others = installed.keys() - pins - listed
    graph = DependencyGraph.of(before)
    changed = {step.name for step in plan.steps}
    lines: dict[NormalizedName, list[str]] = {}
    found = newly_unmet(others, graph, graph.with_installed(installed), changed)
    for one in sorted(found, key=lambda one: (one.name, one.demand.line)):
        lines.setdefault(one.name, []).append(unmet_text(one, state.graph.installed))
    if not lines and others:
        return [Check(kind="breakage", subject=count(len(others), "other distribution"), passed=True)]
    return [
        Check(kind="breakage", subject=name, passed=False, detail="\n".join(told))
        for name, told in lines.items()
    ]
