"""Whether a matrix holds on every recorded runtime and card, told from its locks: no network is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.version import Version
from colablock.check.capabilities import judge_capability
from colablock.environment.accelerator import accelerators_of
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.errors import NoSolution, Refused
from colablock.lockfile.store import PLATFORM, LockHead, LockStore, environment_target, read_refusals
from colablock.matrix.catalog import lock_files, lock_folder
from colablock.matrix.model import select_variant
from colablock.network.settings import DEFAULT_INDEX, Settings
from colablock.planning.plan import Action, Remedy
from colablock.planning.solver import PlannedChange, Solver
from colablock.planning.target import why_not_kernel
from colablock.runtimes.catalog import load_runtime, runtime_names, runtimes

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.accelerator import Accelerator
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix

__all__ = ["MatrixChecker", "Outcome", "Regression", "Verdict", "broken_since", "differences", "outcomes_of"]


class Verdict(Enum):
    """Where a stack goes on a runtime, the best first."""

    KERNEL = "kernel"  # harmless in the running kernel
    ENV = "env"  # an isolated environment takes it
    NONE = "none"  # nothing that is locked takes it
    UNKNOWN = "unknown"  # no lock says anything of it


_Refusals = Mapping[tuple[str, "str | None"], str]
_RANK = {verdict: rank for rank, verdict in enumerate(Verdict)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of a matrix on one runtime with one accelerator.

    *fetch_bytes* are to be downloaded, None where not known; *python* is that
    of the target.  *restart*: a kernel that has loaded what is replaced has to.
    *claims* maps each capability to ``holds`` or why not.
    """

    runtime: str
    accelerator: str
    variant: str | None
    verdict: Verdict
    reason: str
    lock: str | None = None
    python: str | None = None
    fetch_bytes: int | None = None
    installs: int = 0
    replaces: int = 0
    removes: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    restart: bool = False
    claims: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return what stands in the file beside the matrix."""
        return {
            "runtime": self.runtime,
            "accelerator": self.accelerator,
            "variant": self.variant,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "lock": self.lock,
            "python": self.python,
            "fetch-bytes": self.fetch_bytes,
            "installs": self.installs,
            "replaces": self.replaces,
            "removes": list(self.removes),
            "breaks": list(self.breaks),
            "restart": self.restart,
            "claims": dict(self.claims),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Outcome:
        """Return the outcome that `to_json` wrote.  Raises LookupError, TypeError or ValueError."""
        rest = {key.replace("-", "_"): value for key, value in row.items()}
        return cls(
            **{
                **rest,
                "verdict": Verdict(row["verdict"]),
                "removes": tuple(row["removes"]),
                "breaks": tuple(row["breaks"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """A runtime from which on a card does worse than on the runtime before it."""

    accelerator: str
    runtime: str
    was: Verdict
    now: Verdict
    reason: str


def broken_since(outcomes: Iterable[Outcome]) -> tuple[Regression, ...]:
    """Return for each card the first runtime, in the order given, that did worse than the one before it."""
    last: dict[tuple[str, str], Verdict] = {}
    found: dict[str, Regression] = {}
    for one in outcomes:
        # Images of one host and kind follow each other: `colab-2026.08-gpu` after `colab-2026.07-gpu`.
        line = (one.accelerator, re.sub(r"\d[\d.]*", "", one.runtime))
        was = last.get(line)
        if was is not None and _RANK[one.verdict] > _RANK[was]:
            broke = Regression(
                accelerator=one.accelerator, runtime=one.runtime, was=was, now=one.verdict, reason=one.reason
            )
            found.setdefault(one.accelerator, broke)
        last[line] = one.verdict
    return tuple(found.values())


def differences(before: Sequence[Outcome], now: Sequence[Outcome]) -> tuple[str, ...]:
    """Return how *now* differs from the outcomes of *before*, a line each, the oldest runtime first."""
    old = {(one.runtime, one.accelerator): one for one in before}
    new = {(one.runtime, one.accelerator): one for one in now}
    lines = []
    for key, one in new.items():
        title, was = _title(key), old.get(key)
        if was is None:
            lines.append(f"{title}: new, {one.verdict.value}: {one.reason}")
        elif was.verdict is not one.verdict:
            lines.append(f"{title}: {was.verdict.value} -> {one.verdict.value}: {one.reason}")
        elif was != one:
            lines += [f"{title}: {text}" for text in _details(was, one)]
    return (*lines, *(f"{_title(key)}: no longer recorded" for key in old if key not in new))


def _title(key: tuple[str, str]) -> str:
    runtime, accelerator = key
    return runtime if accelerator == "none" else f"{runtime} with {accelerator}"


def _details(was: Outcome, one: Outcome) -> Iterator[str]:
    before, after = was.to_json(), one.to_json()
    for key, value in after.items():
        if before.get(key) != value:
            yield f"{key} {_short(before.get(key))} -> {_short(value)}"


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value not in (None, "") else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a lock gives on one target: a plan, or the *reason* why there is none (None: no lock)."""

    head: LockHead | None = None
    planned: PlannedChange | None = None
    reason: str | None = None
    python: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixChecker:
    """Checks one matrix, no variant chosen.  Of this machine's settings nothing counts."""

    matrix: Matrix
    environ: Mapping[str, str]
    cwd: Path = field(default_factory=Path)
    _envs: dict[tuple[str | None, str], _Found] = field(default_factory=dict)
    _versions: dict[tuple[str, str | None], Mapping[NormalizedName, str]] = field(default_factory=dict)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield what becomes of the matrix on every recorded runtime with each card, oldest runtime first."""
        refusals = read_refusals(self._folders(), self.matrix)
        for name in runtime_names(environ=self.environ, cwd=self.cwd):
            runtime = load_runtime(name, environ=self.environ, cwd=self.cwd)
            kept: dict[str | None, Outcome] = {}
            for card, accelerator in accelerators_of(runtime.accelerator).items():
                try:
                    variant = select_variant(self.matrix, accelerator).variant
                except Refused as error:
                    reason = "\n".join(line.strip() for line in error.message.splitlines()[1:])
                    yield Outcome(
                        runtime=name,
                        accelerator=card,
                        variant=None,
                        verdict=Verdict.NONE,
                        reason=reason or error.message,
                    )
                    continue
                if variant not in kept:
                    state = replace(runtime, accelerator=accelerator)
                    kept[variant] = self._outcome(state, card, variant, refusals)
                claims = _claims(self.matrix, self._versions[name, variant], accelerator)
                yield replace(kept[variant], accelerator=card, claims=claims)

    def _outcome(
        self,
        runtime: Snapshot,
        card: str,
        variant: str | None,
        refusals: _Refusals,
    ) -> Outcome:
        """Return the outcome of one variant: in the kernel where that is harmless, else in an environment."""
        base = Outcome(
            runtime=runtime.source, accelerator=card, variant=variant, verdict=Verdict.UNKNOWN, reason=""
        )
        solver = self._solver(runtime, variant)
        kernel = self._in_kernel(solver, runtime, refusals)
        harm = kernel.reason
        if kernel.planned is not None:
            harm = why_not_kernel(kernel.planned.plan)
            if harm is None:
                self._versions[runtime.source, variant] = kernel.planned.pins()
                return _told(base, Verdict.KERNEL, kernel, _summary(kernel.planned))
            harm = f"in the kernel {harm}"
        found = self._in_env(solver, runtime, variant, refusals)
        if found.planned is not None:
            self._versions[runtime.source, variant] = found.planned.pins()
            why = harm or "no lock is for this kernel"
            return _told(base, Verdict.ENV, found, why)
        self._versions[runtime.source, variant] = {}
        reasons = [harm, found.reason]
        if None in reasons:
            missing = f"`colablock lock {self.matrix.name} --all` makes the locks that tell"
            return replace(base, reason="\n".join([*filter(None, reasons), missing]))
        return replace(base, verdict=Verdict.NONE, reason="\n".join(dict.fromkeys(filter(None, reasons))))

    def _solver(self, runtime: Snapshot, variant: str | None) -> Solver:
        matrix = select_variant(self.matrix, runtime.accelerator, variant)
        return Solver(
            matrix=matrix,
            kernel=runtime,
            settings=Settings(default_index=DEFAULT_INDEX, offline=True),
            environ=self.environ,
            reporter=Reporter(),
            lock_store=LockStore(
                paths=lock_files(self.matrix, environ=self.environ, cwd=self.cwd), matrix=matrix
            ),
        )

    def _in_kernel(self, solver: Solver, runtime: Snapshot, refusals: _Refusals) -> _Found:
        head = solver.lock_store.for_kernel(runtime) if solver.lock_store else None
        if head is None:
            return _Found(reason=refusals.get((runtime.source, solver.matrix.variant)))
        try:
            planned = replace(solver, lock=head.path, lock_store=None).in_kernel("checked")
        except (NoSolution, Refused) as error:
            return _Found(head=head, reason=error.message)
        python = str(runtime.environment.python_version)
        return _Found(head=head, planned=planned, python=python)

    def _in_env(
        self,
        solver: Solver,
        runtime: Snapshot,
        variant: str | None,
        refusals: _Refusals,
    ) -> _Found:
        """Return what an environment takes: with the runtime's own Python, else with the newest that does."""
        own = runtime.environment.short
        reasons: list[str | None] = []
        for short in (own, *(one for one in self._shorts() if one != own)):
            if not self.matrix.requires_python.contains(f"{short}.0", prereleases=True):
                continue
            if (variant, short) not in self._envs:
                environment = environment_for(short, PLATFORM)
                self._envs[variant, short] = self._locked_env(solver, environment, refusals)
            found = self._envs[variant, short]
            if found.planned is not None:
                return found
            reasons.append(found.reason)
        told = [reason for reason in reasons if reason]
        return _Found(reason="\n".join(dict.fromkeys(told)) if told and None not in reasons else None)

    def _locked_env(
        self,
        solver: Solver,
        environment: Environment,
        refusals: _Refusals,
    ) -> _Found:
        head = solver.lock_store.for_environment(environment) if solver.lock_store else None
        if head is None:
            called = environment_target(environment)
            return _Found(reason=refusals.get((called, solver.matrix.variant)))
        try:
            locked = replace(solver, lock=head.path, lock_store=None)
            planned = locked.in_env_of(environment, "checked")
        except (NoSolution, Refused) as error:
            return _Found(head=head, reason=error.message)
        return _Found(head=head, planned=planned, python=environment.short)

    def _shorts(self) -> list[str]:
        """Return the Pythons of the recorded runtimes, newest first: complete locks are made for these."""
        recorded = runtimes(environ=self.environ, cwd=self.cwd)
        newest_first = sorted({Version(one.python_version).release[:2] for one in recorded}, reverse=True)
        return [f"{major}.{minor}" for major, minor in newest_first]

    def _folders(self) -> list[Path]:
        beside = (path.parent for path in lock_files(self.matrix, environ=self.environ, cwd=self.cwd))
        return list(dict.fromkeys([*beside, lock_folder(self.matrix, cwd=self.cwd)]))


def outcomes_of(
    matrices: Sequence[Matrix], environ: Mapping[str, str], *, cwd: Path | None = None
) -> Iterator[tuple[Outcome, ...]]:
    """Yield the outcomes of each matrix in turn; several are checked side by side, in processes."""
    job = partial(_outcomes, environ=dict(environ), cwd=cwd or Path())
    workers = min(len(matrices), os.cpu_count() or 1)
    if workers < 2:  # noqa: PLR2004 - nothing to share the work with
        yield from map(job, matrices)
        return
    # Not forked: a progress line may be drawn by a thread of this process.
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, matrices)


def _outcomes(matrix: Matrix, environ: Mapping[str, str], cwd: Path) -> tuple[Outcome, ...]:
    return tuple(MatrixChecker(matrix=matrix, environ=environ, cwd=cwd).outcomes())


def _told(base: Outcome, verdict: Verdict, found: _Found, reason: str) -> Outcome:
    assert found.planned is not None  # noqa: S101 - the callers' case
    plan = found.planned.plan
    count = {action: sum(step.action is action for step in plan.steps) for action in Action}
    in_kernel = verdict is Verdict.KERNEL
    removed = (step for step in plan.steps if step.action is Action.REMOVE)
    left = (item for item in plan.breakages if item.remedy is Remedy.LEAVE)
    return replace(
        base,
        verdict=verdict,
        reason=reason,
        lock=found.head.path.name if found.head else None,
        python=found.python,
        fetch_bytes=plan.fetch_size,
        installs=count[Action.INSTALL],
        replaces=count[Action.REPLACE],
        removes=tuple(f"{step.name} {step.previous}" for step in removed),
        breaks=tuple(f"{item.name}: {item.requirement}" for item in left),
        restart=in_kernel and count[Action.REPLACE] > 0,
    )


def _summary(planned: PlannedChange) -> str:
    """Return in a line what a harmless plan does."""
    parts = []
    words = {Action.INSTALL: "come", Action.REPLACE: "move", Action.REMOVE: "go"}
    steps = sorted(planned.plan.steps, key=lambda step: not step.requested)  # the matrix's own first
    for action, word in words.items():
        names = [str(step.name) for step in steps if step.action is action]
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - as many as read well
            parts.append(f"{shown} {word if len(names) > 1 else _SINGULAR[word]}")
    return f"{'; '.join(parts) or 'all is there'}; nothing that worked breaks"


_SINGULAR = {"come": "comes", "move": "moves", "go": "goes"}


def _claims(
    matrix: Matrix, versions: Mapping[NormalizedName, str], accelerator: Accelerator
) -> dict[str, str]:
    if not versions:
        return {}
    return {claim: judge_capability(claim, versions, accelerator) for claim in matrix.verify.capabilities}
