"""Proofs in a fresh interpreter of the environment that was changed."""

from __future__ import annotations

import errno
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.process import OPT_OUTS, environment_of, last_lines
from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.dependency_graph import DependencyGraph, UnmetRequirement, newly_unmet
from colablock.environment.markers_and_tags import Environment
from colablock.environment.record import lost_files, read_record
from colablock.environment.snapshot import Installed
from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.matrix.model import Verify
from colablock.planning.plan import Plan, Remedy
from colablock.verification.worker import Child, JobResult, is_python, run_jobs

if TYPE_CHECKING:
    from colablock.environment.snapshot import Snapshot

__all__ = ["Check", "Report", "files_checks", "prove", "run_in"]

_FILES = 5  # that a failed check names


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One proof, of a *kind*.

    ``version``, ``requirements``, ``files``, ``import``, ``command`` and ``capability`` are
    about the stack; ``breakage`` is about what stands beside it, which a change must not
    break unless the plan says so.  A *skipped* one could not be tried here,
    and *detail* says why; it stands as passed, since nothing speaks against it.
    """

    kind: str
    subject: str
    passed: bool
    detail: str = ""  # the version found, or the last lines of the traceback
    seconds: float = 0.0
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Checks and their outcome, kept with the lock's hash."""

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
    restart: tuple[str, ...] = ()  # the modules that the kernel still holds as they were
    notes: tuple[str, ...] = ()
    undo: str = ""  # the command that undoes what this call changed

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
    bytecode: bool = False,
    timeout: float = 300.0,
    reporter: Reporter | None = None,
) -> tuple[Check, ...]:
    """Return the checks of an environment: versions, requirements, imports, capabilities, commands.

    They run in fresh interpreters of *python* with the variables that a
    training child gets, and without the network.  *expected_unmet* holds
    pairs of a name and a requirement line that are known not to be met.  With
    *plan*, which has changed the state *before*, a distribution beside *pins*
    must not be broken by that, unless the plan lists it as one that is left so.
    With *bytecode* the imports may leave theirs in the environment, which
    speeds up the next start; without, nothing there changes.  *timeout* is
    for one import, one capability or one command.
    """
    reporter = reporter or Reporter()
    reporter.stage("Proving the environment")
    total = len(verify.imports) + len(verify.capabilities) + len(verify.commands)
    checks: list[Check] = []

    def add(check: Check) -> None:
        checks.append(check)
        done = sum(check.kind in ("import", "capability", "command") for check in checks)
        reporter.step(f"{check.kind} {check.subject}", done, total)

    with tempfile.TemporaryDirectory(prefix="colablock-proof-") as scratch:
        child = Child(
            python=str(python),
            environ=proof_environment(python, environ, Path(scratch), bytecode=bytecode),
            folder=Path(scratch),
            timeout=timeout,
        )
        jobs = [("import", name) for name in verify.imports]
        jobs += [("capability", name) for name in verify.capabilities]
        answers = run_jobs(child, [("facts", ""), *jobs])
        found = next(answers)
        if not found.passed:
            raise Unmet(f"the interpreter `{python}` does not run\n{last_lines(found.detail, indent='  ')}")
        state = _State.of(found.facts)
        checks += [_version_check(name, wanted, state) for name, wanted in sorted(pins.items())]
        checks += [_requirements_check(pins, state, frozenset(expected_unmet))] if pins else []
        if plan is not None and plan.steps and before is not None:
            checks += _breakage_checks(state, plan, before, frozenset(pins))
        for answer in answers:
            add(_check_of(answer))
        for command in verify.commands:
            add(_command_check(command, child, state.scripts))
    return tuple(checks)


def files_checks(sites: Iterable[str], pins: Mapping[NormalizedName, str]) -> tuple[Check, ...]:
    """Return a failed check for each of *pins* that lacks files, else one that passed.

    Only what colablock installed is looked at: hosted images leave files out of
    what they ship.  Existence and size count, contents are not read.
    """
    started = time.monotonic()
    lost: dict[str, list[str]] = {}
    count = 0
    for site in sites:
        records = {info.name: read_record(info) or () for info in _ours(Path(site), pins)}
        count += len(records)
        lost.update(lost_files(site, records))
    if not lost and count:
        subject = "1 distribution" if count == 1 else f"{count} distributions"
        return (Check(kind="files", subject=subject, passed=True, seconds=time.monotonic() - started),)
    return tuple(
        Check(
            kind="files",
            subject=canonicalize_name(info.partition("-")[0]),
            passed=False,
            detail=_in_short(lines),
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


def _in_short(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _FILES} more"] if len(lines) > _FILES else []
    return "\n".join([*lines[:_FILES], *more])


def proof_environment(
    python: str | Path, environ: Mapping[str, str], scratch: Path, *, bytecode: bool = False
) -> dict[str, str]:
    """Return the variables of a proof: a training child's, the network off and every cache in *scratch*."""
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
    extra = {**OPT_OUTS, **offline, **{name: str(scratch / folder) for name, folder in caches.items()}}
    if not bytecode:
        extra["PYTHONPYCACHEPREFIX"] = str(scratch / "bytecode")
    return environment_of(python, environ, **extra)


def run_in(python: str | Path, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command in the environment of *python*, on this terminal, and return its exit status.

    ``python`` and ``python3`` are this interpreter, and the environment's commands
    come first.  One ended by signal n gives 128 + n, as in a shell.  Raises NotFound
    when there is no such command, InvalidInput when it cannot be run.
    """
    variables = environment_of(python, environ)
    # Unlike every other child it has our terminal, process group and standard input: it is the user's own.
    command = [str(python), *argv[1:]] if is_python(argv[0]) else list(argv)
    try:
        process = subprocess.Popen(command, env=variables)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise NotFound(
            f"the command `{argv[0]}` is not to be found in the environment of `{python}`"
        ) from error
    except OSError as error:
        hint = (
            "Its first line has to name what runs it: `#!/bin/sh`" if error.errno == errno.ENOEXEC else None
        )
        raise InvalidInput(f"the command `{argv[0]}` cannot be run: {error.strerror}", hint=hint) from error
    status = _outlast(process)
    return status if status >= 0 else 128 - status


def _outlast(process: subprocess.Popen[bytes]) -> int:
    """Return the status of *process* once it ends by itself.

    Ctrl-C reaches it as well, since it is in the same process group: what it
    does then (a training saves) is its own affair, and takes as long as it takes.
    """
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # noqa: PERF203 - once for each Ctrl-C
            continue


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What is installed in the target, by the facts that the target itself reports."""

    graph: DependencyGraph
    scripts: str

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> _State:
        installed: dict[NormalizedName, Installed] = {}
        for row in facts["distributions"]:
            name = canonicalize_name(row["name"])
            one = Installed(name=name, version=row["version"], requires=tuple(row["requires"]))
            installed.setdefault(name, one)
        environment = Environment(markers=facts["markers"], tags=())
        return cls(graph=DependencyGraph(installed, environment), scripts=facts["scripts"])

    def version(self, name: NormalizedName) -> str | None:
        """Return the installed version of *name*; None if it is not installed."""
        there = self.graph.installed.get(name)
        return there.version if there is not None else None


def _check_of(answer: JobResult) -> Check:
    return Check(
        kind=answer.kind,
        subject=answer.subject,
        passed=answer.passed,
        detail=answer.detail,
        seconds=answer.seconds,
        skipped=answer.skipped,
    )


def _version_check(name: NormalizedName, wanted: str, state: _State) -> Check:
    found = state.version(name)
    passed = found is not None and _same(found, wanted)
    detail = (
        found
        if passed and found
        else f"{wanted} is wanted, " + (f"{found} is there" if found else "none is there")
    )
    return Check(kind="version", subject=name, passed=passed, detail=detail)


def _same(found: str, wanted: str) -> bool:
    try:
        return Version(found) == Version(wanted)
    except InvalidVersion:
        return found == wanted


def _requirements_check(
    pins: Mapping[NormalizedName, str], state: _State, expected: Collection[tuple[str, str]]
) -> Check:
    found: dict[tuple[str, str], UnmetRequirement] = {}
    for one in state.graph.unmet(pins):
        found.setdefault(one.key, one)  # one of those that need it is enough
    lines = [_unmet_text(one, state) for key, one in found.items() if key not in expected]
    return Check(
        kind="requirements",
        subject="1 distribution" if len(pins) == 1 else f"{len(pins)} distributions",
        passed=not lines,
        detail="\n".join(lines),
    )


def _breakage_checks(
    state: _State, plan: Plan, before: Snapshot, pins: frozenset[NormalizedName]
) -> list[Check]:
    """Return a failed check for each distribution that is broken unlisted; one that passed if there is none.

    Only what *plan* has changed can break something: this interpreter may see other
    distributions than *state* does, because of its ``PYTHONPATH``.
    """
    installed = {
        name: there for name, there in state.graph.installed.items() if name not in before.unreadable
    }
    listed = {item.name for item in plan.breakages if item.remedy is Remedy.LEAVE}
    others = installed.keys() - pins - listed
    graph = DependencyGraph.of(before)
    changed = {step.name for step in plan.steps}
    lines: dict[NormalizedName, list[str]] = {}
    found = newly_unmet(others, graph, graph.with_installed(installed), changed)
    for one in sorted(found, key=lambda one: (one.name, one.demand.line)):
        lines.setdefault(one.name, []).append(_unmet_text(one, state))
    if not lines and others:
        subject = "1 other distribution" if len(others) == 1 else f"{len(others)} other distributions"
        return [Check(kind="breakage", subject=subject, passed=True)]
    return [
        Check(kind="breakage", subject=name, passed=False, detail="\n".join(told))
        for name, told in lines.items()
    ]


def _unmet_text(unmet: UnmetRequirement, state: _State) -> str:
    lines = ", which requires ".join(f"`{demand.line}`" for demand in unmet.chain)
    there = state.version(unmet.demand.target)
    found = "none is installed" if there is None else f"{there} is installed"
    return f"{unmet.name} {state.version(unmet.name)} requires {lines}, but {found}"


def _command_check(command: Sequence[str], child: Child, scripts: str) -> Check:
    subject = " ".join(command)
    started = time.monotonic()
    passed, detail = child.command(command, scripts)
    return Check(
        kind="command", subject=subject, passed=passed, detail=detail, seconds=time.monotonic() - started
    )
