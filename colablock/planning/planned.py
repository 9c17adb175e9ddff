"""A plan with everything that is needed to apply it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colablock._vendor.packaging.utils import InvalidName, NormalizedName, canonicalize_name
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.requirements import same_version
from colablock.errors import InvalidInput, NotFound, PlanOutdated
from colablock.planning.shared_files import families, wheel_claim

if TYPE_CHECKING:
    from pathlib import Path

    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix
    from colablock.planning.plan import Plan, Step
    from colablock.planning.wheels import WheelPreparer
    from colablock.resolver.model import Resolution

__all__ = ["PlannedChange"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """A plan with everything needed to apply it.

    *snapshot* is the state of the target, empty for an environment that is yet to be created.
    """

    plan: Plan
    matrix: Matrix
    resolution: Resolution
    snapshot: Snapshot
    preparer: WheelPreparer

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

    def why(self, package: str) -> list[str]:
        """Return the reasons why *package* has its version, is removed, or stays; one sentence each.

        Raises InvalidInput if *package* is no valid name, NotFound if it is neither
        installed nor part of the stack.
        """
        try:
            name = canonicalize_name(package, validate=True)
        except InvalidName as error:
            raise InvalidInput(f"`{package}` is no name of a project") from error
        lines = [_told(step) for step in self.plan.steps if step.name == name]
        lines += [
            f"keep {name} {kept.version}: {kept.reason}" for kept in self.plan.kept if kept.name == name
        ]
        pin = self.resolution.pins.get(name)
        for parent in pin.parents if pin is not None else ():
            lines.append(f"{parent.name or parent.path} asks for {parent.requirement}")
        for breakage in self.plan.breakages:
            if breakage.name == name:
                lines += [f"{link}" for link in breakage.because]
                lines.append(f"so it is broken by this plan; what is done: {breakage.remedy.value}")
                lines += [note for note in self.plan.notes if note.startswith(f"no repair of {name}:")]
        there = self.snapshot.installed.get(name)
        if not lines and there is not None:
            lines = [f"{name} {there.version} is installed, and this plan does not concern it"]
        if not lines:
            raise NotFound(f"{name} is neither installed nor part of {self.matrix.name}")
        return list(dict.fromkeys(lines))


def _told(step: Step) -> str:
    versions = " -> ".join(filter(None, (step.previous, step.version)))
    return f"{step.action.value} {step.name} {versions}: {step.reason}"
