"""Check whether a matrix works on every recorded runtime and card, from its locks, without a network."""

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

from colablock._common.decoding import fitted
from colablock._common.reporter import Reporter
from colablock._common.urls import Url
from colablock._vendor.packaging.version import Version
from colablock.check.capabilities import check_capability
from colablock.environment.accelerator import accelerators_of
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.errors import InvalidInput, NoSolution, Refused
from colablock.lockfile.store import LockHead, LockStore, read_refusals
from colablock.lockfile.targets import PLATFORM, environment_target
from colablock.matrix.catalog import lock_files, lock_folder
from colablock.matrix.model import select_variant
from colablock.network.settings import DEFAULT_INDEX, Settings
from colablock.planning.plan import Action, Plan, Remedy
from colablock.planning.planned import PlannedChange
from colablock.planning.solver import Solver
from colablock.planning.target import why_not_kernel
from colablock.runtimes.catalog import load_runtime, runtime_names, runtimes

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.accelerator import Accelerator
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile

__all__ = [
    "Difference",
    "MatrixChecker",
    "Outcome",
    "Regression",
    "Verdict",
    "broken_since",
    "differences",
    "outcomes_of",
]


class Verdict(Enum):
    """Where a stack can be installed on a runtime, best first."""

    KERNEL = "kernel"  # in the running kernel, without harm
    ENV = "env"  # in an isolated environment
    NONE = "none"  # nowhere, by the locks
    UNKNOWN = "unknown"  # there is no lock for it


_Refusals = Mapping[tuple[str, "str | None"], str]
_RANK = {verdict: rank for rank, verdict in enumerate(Verdict)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result for a matrix on one runtime with one accelerator.

    *fetch_bytes* is the size of the download, None if unknown, without the distributions *unsized*,
    whose size no index and no lock tells.  *python* is the version of the
    target.  *restart* is true if a kernel with replaced modules loaded has to restart.
    *capabilities* maps each declared capability to ``holds`` or the reason why not.
    *lacks_kernel_lock* says that the kernel was not judged; the results file does not have it.
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
    capabilities: Mapping[str, str] = field(default_factory=dict)  # "claims" in JSON
    unsized: tuple[str, ...] = ()
    lacks_kernel_lock: bool = field(default=False, compare=False)

    def to_json(self) -> dict[str, object]:
        """Return the outcome as in the results file."""
        return {
            "runtime": self.runtime,
            "accelerator": self.accelerator,
            "variant": self.variant,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "lock": self.lock,
            "python": self.python,
            "fetch-bytes": self.fetch_bytes,
            **({"fetch-unknown": list(self.unsized)} if self.unsized else {}),
            "installs": self.installs,
            "replaces": self.replaces,
            "removes": list(self.removes),
            "breaks": list(self.breaks),
            "restart": self.restart,
            "claims": dict(self.capabilities),
        }

    @property
    def lacks_lock(self) -> bool:
        """Whether there would be more to say of it with a lock that is missing or stale."""
        return self.verdict is Verdict.UNKNOWN or self.lacks_kernel_lock

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Outcome:
        """Return the outcome from the value of `to_json`.  Raises Malformed."""
        renamed = {"fetch-bytes": "fetch_bytes", "fetch-unknown": "unsized", "claims": "capabilities"}
        return fitted(dict(row), cls, renamed=renamed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """The first runtime on which the verdict for a card is worse than on the runtime before it."""

    accelerator: str
    runtime: str
    was: Verdict
    now: Verdict
    reason: str


def broken_since(outcomes: Iterable[Outcome]) -> tuple[Regression, ...]:
    """Return for each card the first runtime with a worse verdict than the runtime before it."""
    last: dict[tuple[str, str], Verdict] = {}
    found: dict[str, Regression] = {}
    for one in outcomes:
        # Compare images of one host and kind only: `colab-2026.08-gpu` with `colab-2026.07-gpu`.
        line = (one.accelerator, re.sub(r"\d[\d.]*", "", one.runtime))
        was = last.get(line)
        if was is not None and _RANK[one.verdict] > _RANK[was]:
            broke = Regression(
                accelerator=one.accelerator, runtime=one.runtime, was=was, now=one.verdict, reason=one.reason
            )
            found.setdefault(one.accelerator, broke)
        last[line] = one.verdict
    return tuple(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference to the committed results, on a runtime with an accelerator, or "" of all of them.

    *advice* says what to do about it, if that is not to write the new results.
    """

    text: str
    runtime: str = ""
    accelerator: str = "none"
    advice: str = ""

    def __str__(self) -> str:
        where = self.runtime if self.accelerator == "none" else f"{self.runtime} with {self.accelerator}"
        return ": ".join(filter(None, (where, self.text, self.advice)))


def differences(before: Sequence[Outcome], now: Sequence[Outcome]) -> tuple[Difference, ...]:
    """Return the differences between the outcomes *before* and *now*, oldest runtime first."""
    old = {(one.runtime, one.accelerator): one for one in before}
    new = {(one.runtime, one.accelerator): one for one in now}
    texts = {key: tuple(_changes(old.get(key), one)) for key, one in new.items()}
    texts.update((key, ("no longer recorded",)) for key in old if key not in new)
    return tuple(
        Difference(text=text, runtime=runtime, accelerator=accelerator)
        for (runtime, accelerator), changed in texts.items()
        for text in changed
    )


def _changes(was: Outcome | None, one: Outcome) -> Iterator[str]:
    if was is None:
        yield f"new, {one.verdict.value}: {one.reason}"
    elif was.verdict is not one.verdict:
        yield f"{was.verdict.value} -> {one.verdict.value}: {one.reason}"
    elif was != one:
        yield from _details(was, one)


def _details(was: Outcome, one: Outcome) -> Iterator[str]:
    before, after = was.to_json(), one.to_json()
    for key, value in after.items():
        if before.get(key) != value:
            title = "bytes to fetch" if key == "fetch-bytes" else key
            yield f"{title} {_short(before.get(key))} -> {_short(value)}"


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value) if value not in (None, "") else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class _LockedPlan:
    """The plan by a lock for one target, or the *reason* why there is none (None: there is no lock)."""

    head: LockHead | None = None
    planned: PlannedChange | None = None
    reason: str | None = None
    python: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixChecker:
    """Checks one matrix with all its variants.  The settings of this machine are ignored."""

    matrix: Matrix
    environ: Mapping[str, str]
    cwd: Path = field(default_factory=Path)
    _envs: dict[tuple[str | None, str], _LockedPlan] = field(default_factory=dict)
    _heads: dict[LockFile, LockHead | None] = field(default_factory=dict)
    _versions: dict[tuple[str, str | None], Mapping[NormalizedName, str]] = field(default_factory=dict)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome on every recorded runtime with each of its cards, oldest runtime first."""
        refusals = read_refusals(self._folders(), self.matrix)
        for name in runtime_names(environ=self.environ, cwd=self.cwd):
            runtime = load_runtime(name, environ=self.environ, cwd=self.cwd)
            kept: dict[str | None, Outcome] = {}
            for card, accelerator in accelerators_of(runtime.accelerator).items():
                try:
                    variant = select_variant(self.matrix, accelerator).variant
                except Refused as error:
                    reason = _why_no_variant(error, self.matrix)
                    yield Outcome(
                        runtime=name, accelerator=card, variant=None, verdict=Verdict.NONE, reason=reason
                    )
                    continue
                if variant not in kept:
                    state = replace(runtime, accelerator=accelerator)
                    kept[variant] = self._outcome(state, card, variant, refusals)
                capabilities = _capabilities(self.matrix, self._versions[name, variant], accelerator)
                yield replace(kept[variant], accelerator=card, capabilities=capabilities)

    def _outcome(
        self,
        runtime: Snapshot,
        card: str,
        variant: str | None,
        refusals: _Refusals,
    ) -> Outcome:
        """Return the outcome of one variant: in the kernel if that does no harm, else in an environment."""
        base = Outcome(
            runtime=runtime.source, accelerator=card, variant=variant, verdict=Verdict.UNKNOWN, reason=""
        )
        solver = self._solver(runtime, variant)
        kernel = self._in_kernel(solver, runtime, refusals)
        harm = kernel.reason
        if kernel.planned is not None:
            harm = why_not_kernel(kernel.planned.plan, kernel.planned.resolution.left)
            if harm is None:
                self._versions[runtime.source, variant] = kernel.planned.pins()
                return _planned_outcome(base, Verdict.KERNEL, kernel, _summary(kernel.planned))
            harm = f"in the kernel {harm}"
        found = self._in_env(solver, runtime, variant, refusals)
        if found.planned is not None:
            self._versions[runtime.source, variant] = found.planned.pins()
            base = replace(base, lacks_kernel_lock=harm is None)
            return _planned_outcome(base, Verdict.ENV, found, harm or "there is no lock for this kernel")
        self._versions[runtime.source, variant] = {}
        reasons = [harm, found.reason]
        if None in reasons:
            return replace(base, reason="\n".join([*filter(None, reasons), "the lock is missing or stale"]))
        return replace(base, verdict=Verdict.NONE, reason="\n".join(dict.fromkeys(filter(None, reasons))))

    def _solver(self, runtime: Snapshot, variant: str | None) -> Solver:
        matrix = select_variant(self.matrix, runtime.accelerator, variant)
        return Solver(
            matrix=matrix,
            kernel=runtime,
            settings=Settings(default_index=Url(DEFAULT_INDEX), offline=True),
            environ=self.environ,
            reporter=Reporter(),
            copies_first=False,  # the result must not depend on what this machine has fetched
            lock_store=LockStore(
                paths=lock_files(self.matrix, environ=self.environ, cwd=self.cwd),
                matrix=matrix,
                _read=self._heads,
            ),
        )

    def _in_kernel(self, solver: Solver, runtime: Snapshot, refusals: _Refusals) -> _LockedPlan:
        head = solver.lock_store.for_kernel(runtime) if solver.lock_store else None
        if head is None:
            return _LockedPlan(reason=refusals.get((runtime.source, solver.matrix.variant)))
        try:
            planned = _with_lock(solver, head).in_kernel("checked")
        except (InvalidInput, NoSolution, Refused) as error:
            return _LockedPlan(head=head, reason=error.message)
        python = str(runtime.environment.python_version)
        return _LockedPlan(head=head, planned=planned, python=python)

    def _in_env(
        self,
        solver: Solver,
        runtime: Snapshot,
        variant: str | None,
        refusals: _Refusals,
    ) -> _LockedPlan:
        """Return the plan for an environment with the runtime's Python, else with the newest that works."""
        own = runtime.environment.short
        reasons: list[str | None] = []
        for short in (own, *(one for one in self._python_versions() if one != own)):
            if not self.matrix.requires_python.contains(f"{short}.0", prereleases=True):
                continue
            if (variant, short) not in self._envs:
                environment = environment_for(short, PLATFORM)
                self._envs[variant, short] = self._locked_env(solver, environment, refusals)
            found = self._envs[variant, short]
            if found.planned is not None:
                return found
            reasons.append(found.reason)
        known = [reason for reason in reasons if reason]
        return _LockedPlan(reason="\n".join(dict.fromkeys(known)) if known and None not in reasons else None)

    def _locked_env(
        self,
        solver: Solver,
        environment: Environment,
        refusals: _Refusals,
    ) -> _LockedPlan:
        head = solver.lock_store.for_environment(environment) if solver.lock_store else None
        if head is None:
            called = environment_target(environment)
            return _LockedPlan(reason=refusals.get((called, solver.matrix.variant)))
        try:
            locked = _with_lock(solver, head)
            planned = locked.in_env_of(environment, "checked")
        except (InvalidInput, NoSolution, Refused) as error:
            return _LockedPlan(head=head, reason=error.message)
        return _LockedPlan(head=head, planned=planned, python=environment.short)

    def _python_versions(self) -> list[str]:
        """Return the Python versions of the recorded runtimes, newest first; complete locks are for these."""
        recorded = runtimes(environ=self.environ, cwd=self.cwd)
        newest_first = sorted({Version(one.python_version).release[:2] for one in recorded}, reverse=True)
        return [f"{major}.{minor}" for major, minor in newest_first]

    def _folders(self) -> list[Path]:
        beside = (path.parent for path in lock_files(self.matrix, environ=self.environ, cwd=self.cwd))
        return list(dict.fromkeys([*beside, lock_folder(self.matrix, cwd=self.cwd)]))


def _with_lock(solver: Solver, head: LockHead) -> Solver:
    """Return *solver* for the lock of *head*, which may be for another default index than PyPI."""
    settings = replace(solver.settings, default_index=Url(head.index or solver.settings.default_index))
    return replace(solver, lock=head.path, lock_store=None, settings=settings)


def outcomes_of(
    matrices: Sequence[Matrix], environ: Mapping[str, str], *, cwd: Path | None = None
) -> Iterator[tuple[Outcome, ...]]:
    """Yield the outcomes of each matrix in order.  Several matrices are checked in parallel processes."""
    job = partial(_outcomes, environ=dict(environ), cwd=cwd or Path())
    workers = min(len(matrices), os.cpu_count() or 1)
    if workers < 2:  # noqa: PLR2004 - one process is enough
        yield from map(job, matrices)
        return
    # Not forked: a thread of this process may draw a progress line.
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, matrices)


def _outcomes(matrix: Matrix, environ: Mapping[str, str], cwd: Path) -> tuple[Outcome, ...]:
    return tuple(MatrixChecker(matrix=matrix, environ=environ, cwd=cwd).outcomes())


def _planned_outcome(base: Outcome, verdict: Verdict, found: _LockedPlan, reason: str) -> Outcome:
    assert found.planned is not None  # noqa: S101 - the callers' case
    plan = found.planned.plan
    count = {action: sum(step.action is action for step in plan.steps) for action in Action}
    in_kernel = verdict is Verdict.KERNEL
    sizes = _fetched_sizes(plan)
    removed = (step for step in plan.steps if step.action is Action.REMOVE)
    left = (item for item in plan.breakages if item.remedy is Remedy.LEAVE)
    return replace(
        base,
        verdict=verdict,
        reason=reason,
        lock=found.head.path.name if found.head else None,
        python=found.python,
        fetch_bytes=sum(size or 0 for size in sizes.values()),
        unsized=tuple(sorted(name for name, size in sizes.items() if size is None)),
        installs=count[Action.INSTALL],
        replaces=count[Action.REPLACE],
        removes=tuple(f"{step.name} {step.previous}" for step in removed),
        breaks=tuple(f"{item.name}: {item.requirement}" for item in left),
        restart=in_kernel and count[Action.REPLACE] > 0,
    )


def _fetched_sizes(plan: Plan) -> dict[str, int | None]:
    """Return the bytes to fetch for each distribution, without local files; None if its size is unknown.

    A wheel that colablock rebuilt may lie beside a lock or not: git ignores it, and a fresh clone has to
    get the same result.  So it is left out, and its archive too.
    """
    found = {}
    for step in plan.steps:
        is_rebuilt = "+colablock." in (step.version or "")
        if step.artifact is not None and not is_rebuilt and not step.artifact.url.startswith("file:"):
            found[str(step.name)] = step.artifact.size
    return found


def _summary(planned: PlannedChange) -> str:
    """Return in one line what a plan without harm does."""
    parts = []
    verbs = {Action.INSTALL: "installs", Action.REPLACE: "replaces", Action.REMOVE: "removes"}
    steps = sorted(planned.plan.steps, key=lambda step: not step.requested)  # the matrix's own first
    for action, verb in verbs.items():
        names = [str(step.name) for step in steps if step.action is action]
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - as many as read well
            parts.append(f"{verb} {shown}")
    return f"{'; '.join(parts) or 'nothing to do'}; breaks nothing"


def _why_no_variant(error: Refused, matrix: Matrix) -> str:
    """Return the facts that exclude each variant, and the reasons that the matrix gives."""
    lines = error.details or [error.message]
    has_reasons = any(variant.system.why for variant in matrix.variants.values())
    return "\n".join([*lines, error.hint] if has_reasons and error.hint else lines)


def _capabilities(
    matrix: Matrix, versions: Mapping[NormalizedName, str], accelerator: Accelerator
) -> dict[str, str]:
    if not versions:
        return {}
    return {name: check_capability(name, versions, accelerator) for name in matrix.verify.capabilities}
