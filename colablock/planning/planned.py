"""A plan with everything that is needed to apply it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._common.text import changes, near, size_text
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.requirements import project_named, same_version
from colablock.errors import NotFound, PlanOutdated
from colablock.matrix.model import is_addition
from colablock.planning.plan import Remedy, Target
from colablock.planning.shared_files import families, wheel_claim

if TYPE_CHECKING:
    from pathlib import Path

    from colablock.environment.snapshot import Snapshot
    from colablock.errors import Unmet
    from colablock.matrix.model import Matrix
    from colablock.planning.options import ApplyOptions
    from colablock.planning.plan import Breakage, Plan, Step
    from colablock.planning.wheels import WheelPreparer
    from colablock.resolver.model import Resolution

__all__ = ["NotKernel", "PlannedChange", "changes_between", "exclusions"]

_REMEDIES = {
    Remedy.REPAIR: "repaired with another version",
    Remedy.REMOVE: "removed",
    Remedy.LEAVE: "left broken",
}
_PAIR = 2  # names of a chain that its requirements tell as well
_MOST_CHANGES = 20
_MOST = 5  # breakages that are told one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """A plan with everything needed to apply it.

    *snapshot* is the state of the target, empty for an environment that is yet to be created.
    *not_kernel* says why the kernel was not chosen, where the choice was colablock's.  *digest* is
    that of the lock, which names an isolated environment, or "" if it is not known yet.  *since*
    says what has changed since the last apply of the same request.
    """

    plan: Plan
    matrix: Matrix
    resolution: Resolution
    snapshot: Snapshot
    preparer: WheelPreparer
    not_kernel: NotKernel | None = None
    digest: str = ""
    since: tuple[str, ...] = ()

    def pins(self) -> dict[NormalizedName, str]:
        """Return the versions of the stack, by name."""
        changed = {step.name: step.version for step in self.plan.steps if step.version is not None}
        return {name: changed.get(name, str(pin.version)) for name, pin in self.resolution.pins.items()}

    def unmet_before(self) -> frozenset[tuple[NormalizedName, str]]:
        """Return the requirements of kept distributions that were already unmet: owner and line.

        Those of an extra are included where something installed asks for the extra.
        """
        kept = [name for name, pin in self.resolution.pins.items() if pin.is_installed]
        graph = DependencyGraph.of(self.snapshot)
        demands = (demand for node in graph.nodes_of(kept) for demand in graph.demands_of(node))
        unmet = frozenset((one.owner, one.line) for one in demands if not graph.is_met(one))
        return unmet - self.resolution.request.must_hold

    def check_wheels(self, wheels: Mapping[NormalizedName, Path]) -> None:
        """Raise PlanOutdated if a wheel of the stack has the modules of another version that the plan leaves.

        The plan knows the files of what is installed, but not always those of a new wheel.
        """
        changed = {step.name: step for step in self.plan.steps}
        left = {item.name for item in self.plan.breakages}
        staying = {
            name: one
            for name, one in self.snapshot.installed.items()
            if name not in changed and name not in left
        }
        site, stack = self.snapshot.site, self.resolution.pins
        claims = [wheel_claim(name, site, wheel) for name, wheel in wheels.items() if name in stack]
        builds = families(staying.values(), claims)
        for name in sorted(wheels.keys() & builds.keys()):
            for other in sorted(builds[name] & staying.keys()):
                if not same_version(staying[other].version, changed[name].version or ""):
                    raise PlanOutdated(
                        f"{name} {changed[name].version} has the same files as {other}"
                        f" {staying[other].version}, which this plan does not change",
                        hint="Nothing was changed. Run the command again: the next plan knows these files",
                    )

    def why(self, package: str | None, options: ApplyOptions) -> list[str]:
        """Return the reasons why *package* has its version, is removed, or stays; one sentence each.

        Without *package* they are the reasons for the target.  *options* are those of this plan, with which
        a hint asks further.  Raises InvalidInput if *package* is no
        valid name, NotFound if it is neither installed nor part of the stack.
        """
        if package is None:
            return [*self._target_lines(), *(self.not_kernel.lines() if self.not_kernel else ())]
        name = project_named(package)
        kernel = self.not_kernel.planned if self.not_kernel else None
        lines = self.told(name)
        if kernel is not None:
            lines += [f"in the kernel: {line}" for line in kernel.told(name) if line not in lines]
        if not lines and (excluded := list(exclusions(self.matrix, name))):
            lines = [f"{name} is neither installed nor part of {self.matrix.name}", *excluded]
        if not lines:
            known = {
                *self.snapshot.installed,
                *self.resolution.pins,
                *(kernel.snapshot.installed if kernel else ()),
            }
            absent = f"`{options.command('why', '--not', name)}` says what adding it would change"
            raise NotFound(
                f"{name} is neither installed nor part of {self.matrix.name}",
                hint=near(name, known, likeness=0.75) or absent,
            )
        if self.not_kernel is not None:
            lines += self.not_kernel.lines(name)
        return list(dict.fromkeys(lines))

    def told(self, name: NormalizedName) -> list[str]:
        """Return what this plan says about *name*; nothing if it neither has it nor found it installed."""
        lines = self._lines(name)
        there = self.snapshot.installed.get(name)
        if name in self.plan.restart:
            modules = ", ".join(self.plan.restart[name][:3])
            lines.append(f"the kernel has loaded {modules}: the change takes a restart")
        lines += [
            f"{risk.name} {risk.version}: {risk.reason}"
            for risk in self.plan.import_risks
            if risk.name == name
        ]
        if not lines and there is not None:
            return [f"{name} {there.version} is installed, and this plan does not concern it"]
        return lines

    def _lines(self, name: NormalizedName) -> list[str]:
        steps = [step for step in self.plan.steps if step.name == name]
        lines = [_told(step) for step in steps]
        lines += [
            f"keep {name} {kept.version}: {kept.reason}" for kept in self.plan.kept if kept.name == name
        ]
        pin = self.resolution.pins.get(name)
        for parent in pin.parents if pin is not None else ():
            asked = parent.name or parent.path, parent.requirement
            if all(asked != (step.asked_by, step.requirement) for step in steps):  # else it is the reason
                asker = "`--with`" if is_addition(parent.path) else self._named(parent.name) or parent.path
                lines.append(f"{asker} asks for {parent.requirement}")
        chain = self._chain(name)
        if len(chain) > _PAIR:
            lines.append(f"chain: {' -> '.join([self.matrix.name, *map(self._named, chain)])}")
        for breakage in self.plan.breakages:
            if breakage.name == name:
                lines += [f"{link}" for link in breakage.because]
                lines.append(f"so this plan breaks it; it is {_REMEDIES[breakage.remedy]}")
                lines += [breakage.tried] if breakage.tried else []
        return lines

    def _named(self, name: NormalizedName | None) -> str:
        """Return *name* with its version in the stack."""
        pin = self.resolution.pins.get(name) if name else None
        return f"{name} {pin.version}" if pin is not None else (name or "")

    def _chain(self, name: NormalizedName) -> list[NormalizedName]:
        """Return the shortest chain of names from one that the matrix asks for to *name*."""
        chains = {name: [name]}
        queue = deque([name])
        while queue:
            current = queue.popleft()
            pin = self.resolution.pins.get(current)
            for parent in pin.parents if pin is not None else ():
                if parent.name is None:
                    return chains[current]
                if parent.name not in chains:
                    chains[parent.name] = [parent.name, *chains[current]]
                    queue.append(parent.name)
        return []

    def _target_lines(self) -> list[str]:
        if self.plan.target is Target.KERNEL:
            lines = [f"the target is the kernel ({self.plan.why_target})"]
        else:
            lines = [f"the target is an isolated environment: {self.plan.why_target}"]
        lines += [line for broken in self.plan.breakages for line in _broken(broken)]
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class NotKernel:
    """Why the kernel is not the target although nobody asked for another one: *reason*, in a few words.

    *options* are those of the plan.
    *planned* is the plan for the kernel that would do harm; *error* says why there is none.
    *others* are matrices that are known to fit this kernel.
    """

    options: ApplyOptions
    reason: str
    planned: PlannedChange | None = None
    error: Unmet | None = None
    others: tuple[str, ...] = ()

    def lines(self, name: NormalizedName | None = None) -> list[str]:
        """Return the chain of reasons, and the ways round; with *name* only the chain that concerns it."""
        lines = [f"the target is an isolated environment: in the kernel {self.reason}"] if name else []
        if self.error is not None:
            lines = [f"not in the kernel: {self.error.headline}"]
            if name is None or name in getattr(self.error, "names", ()):
                lines += self.error.details
        elif self.planned is not None and name is None:
            plan = self.planned.plan
            broken = [one for one in plan.breakages if one.remedy is not Remedy.REPAIR]
            lines += [line for one in broken[:_MOST] for line in _broken(one)]
            if len(broken) > _MOST:
                lines.append(f"and {len(broken) - _MOST} more would break: see the plan with `--into kernel`")
            for loaded, modules in plan.restart.items():
                lines.append(f"{loaded} would change, and the kernel has loaded {', '.join(modules[:3])}")
        return [*lines, *self._ways_round()]

    def _ways_round(self) -> Iterator[str]:
        if self.planned is not None:
            broken = "; `--broken repair` or `--broken remove` says what to do with what breaks"
            extra = broken if self.planned.plan.breakages else ""
            # A recorded runtime has no interpreter here.
            kernel = "the kernel" if self.planned.plan.python else "the kernel of that runtime"
            command = replace(self.options, runtime=None, into=Target.KERNEL).command("apply")
            yield f"to change {kernel} nevertheless: `{command}`{extra}"
        elif self.error is not None and self.error.hint:
            yield self.error.hint
        if self.others:
            names = " or ".join(f"`{name}`" for name in self.others)
            yield f"another matrix fits this kernel: {names}"


def exclusions(matrix: Matrix, name: NormalizedName) -> Iterator[str]:
    """Yield what *matrix* says against *name*: versions that must be absent, and constraints."""
    for absent in matrix.absent:
        if absent.name == name:
            yield _with_reason(f"{absent.path} excludes `{name}{absent.specifier}`", absent.why)
    for limit in matrix.constraints:
        if limit.name == name:
            yield _with_reason(f"{limit.path} allows only `{name}{limit.specifier}`", limit.why)


def _with_reason(text: str, why: str | None) -> str:
    return f"{text}: {why}" if why else text


def changes_between(before: PlannedChange, after: PlannedChange) -> list[str]:
    """Return how the stack of *after* differs from that of *before*, one sentence each.

    Where only *before* changes the kernel, it is compared with what *after* would do there.
    """
    there = after.not_kernel.planned if after.not_kernel else None
    compared = there if there is not None and before.plan.target is Target.KERNEL else after
    lines = changes(before.pins(), compared.pins())
    if len(lines) > _MOST_CHANGES:
        lines[_MOST_CHANGES:] = [f"and {len(lines) - _MOST_CHANGES} more"]
    if before.plan.target is not after.plan.target:
        places = {Target.KERNEL: "the kernel", Target.ENV: "an isolated environment"}
        target = f"{places[before.plan.target]} -> {places[after.plan.target]}"
        lines.append(f"target: {target} ({after.plan.why_target})")
    sizes = [size_text(one.plan.fetch_size) for one in (before, after)]
    if sizes[0] != sizes[1]:
        lines.append(f"to fetch: {' -> '.join(sizes)}")
    return lines or ["nothing changes"]


def _broken(breakage: Breakage) -> list[str]:
    """Return the chain of one breakage, in lines."""
    chain = "; ".join(dict.fromkeys(breakage.because))
    line = f"{breakage.name} {breakage.version} would break: it needs {breakage.requirement}"
    return [f"{line} (because {chain})" if chain and breakage.requirement not in chain else line]


def _told(step: Step) -> str:
    versions = " -> ".join(filter(None, (step.previous, step.version)))
    return f"{step.action.value} {step.name} {versions}: {step.reason}"
