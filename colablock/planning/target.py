"""Choose the target: the kernel if a change there is harmless, else an isolated environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from colablock._common.text import size_text
from colablock._common.urls import redacted
from colablock._records import dataclass
from colablock.environment.snapshot import Host, Snapshot
from colablock.errors import NoSolution, Refused, Unmet
from colablock.planning.plan import Remedy
from colablock.resolver.members import mixed

if TYPE_CHECKING:
    from colablock._vendor.packaging.version import Version
    from colablock.environment.accelerator import Accelerator
    from colablock.environment.markers_and_tags import Environment
    from colablock.matrix.model import Matrix, PackageEntry
    from colablock.planning.plan import Plan
    from colablock.planning.planned import PlannedChange
    from colablock.planning.wheels import WheelPreparer
    from colablock.resolver.model import Resolution

__all__ = [
    "PythonCandidate",
    "TriedPythons",
    "best_python",
    "build_note",
    "fetch_size",
    "has_preferred_builds",
    "is_kernel",
    "is_preferred",
    "more_harm",
    "no_python",
    "why_not_kernel",
]

_NEAR = 1.1  # downloads within a tenth of each other count as the same


def is_kernel(snapshot: Snapshot, *, named: bool) -> bool:
    """Whether *snapshot* may be the kernel target: it is a notebook's, or the user names it.

    The environment of a tool (a plain terminal, ``uvx``) is changed on request only.
    """
    return named or snapshot.host is not Host.PLAIN


def why_not_kernel(plan: Plan, left: Sequence[str] = ()) -> str | None:
    """Return the harm that *plan* does to a kernel; None if it is harmless.

    *left* are sentences about requirements of the stack that nothing meets there.

    A plan is harmless if no loaded module changes and nothing is newly broken.
    It may remove a distribution that no other requires.
    """
    if plan.restart:
        return f"{_some(sorted(plan.restart))} would change while loaded, which takes a restart"
    if left:
        return left[0]
    names = sorted(item.name for item in plan.breakages if item.remedy is not Remedy.REPAIR)
    if names:
        return f"{_some(names)} would break"
    if plan.unknown:
        return f"what it would break is not known: the requirements of {_some(plan.unknown)} are not recorded"
    return None


def more_harm(planned: PlannedChange, change: PlannedChange) -> str | None:
    """Return the harm that *change* does to a kernel and *planned* does not; None if there is none."""
    plan, other = planned.plan, change.plan
    known = {item.name for item in plan.breakages}
    return why_not_kernel(
        replace(
            other,
            restart={name: modules for name, modules in other.restart.items() if name not in plan.restart},
            breakages=tuple(item for item in other.breakages if item.name not in known),
            unknown=() if plan.unknown else other.unknown,
        ),
        () if mixed(planned.resolution) else mixed(change.resolution),
    )


def _some(names: Sequence[str]) -> str:
    if len(names) <= 3:  # noqa: PLR2004 - as many as read well in one line
        return ", ".join(names)
    return f"{len(names)} distributions ({', '.join(names[:3])}, ...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCandidate:
    """A Python that the stack fits, with its resolution."""

    python: str  # the executable; "" if it has to be fetched or unpacked first
    environment: Environment
    resolution: Resolution
    running: bool = False
    bundled: bool = False

    @property
    def version(self) -> Version:
        """The full Python version."""
        return self.environment.python_version

    @property
    def size(self) -> int:
        """The bytes to fetch."""
        return fetch_size(self.resolution)

    def empty(self, accelerator: Accelerator) -> Snapshot:
        """Return the snapshot of an environment that is yet to be created with this Python."""
        return Snapshot(
            environment=self.environment,
            python=self.python,
            prefix="",
            site="",
            installed={},
            accelerator=accelerator,
        )


@dataclass(slots=True)
class TriedPythons:
    """The resolutions and refusals of the Pythons tried so far."""

    candidates: list[PythonCandidate] = field(default_factory=list)
    preparers: dict[Version, WheelPreparer] = field(default_factory=dict)
    refusals: dict[str, Unmet] = field(default_factory=dict)
    minors: set[str] = field(default_factory=set)
    worthwhile: bool = True  # to try another Python: so far only the Python was at fault


def fetch_size(resolution: Resolution) -> int:
    """Return the size of the chosen files in bytes, without those whose index gives no size."""
    files = (pin.candidate.file for pin in resolution.pins.values())
    return sum(file.size or 0 for file in files if file is not None)


def best_python(candidates: Sequence[PythonCandidate]) -> tuple[PythonCandidate, str]:
    """Return the best Python and why: the smallest download, then the running one, then the newest.

    A CPU build may exist for one Python only, and be a tenth of the size of the others.
    """
    least = min(candidate.size for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.size <= least * _NEAR]
    best = max(near, key=lambda candidate: (bool(candidate.python), candidate.running, candidate.version))
    dearer = [candidate for candidate in candidates if candidate not in near]
    if dearer:
        others = ", ".join(f"{o.version.major}.{o.version.minor} {size_text(o.size)}" for o in dearer)
        return best, f"Python {best.version} fits with {size_text(best.size)} to download (others: {others})"
    if best.running:
        here = "the one that runs here" if best.python else "the runtime's own"
        return best, f"Python {best.version} is {here}"
    if not best.python:
        return (
            best,
            f"Python {best.version} fits, and is {'in the bundle' if best.bundled else 'downloaded first'}",
        )
    return best, f"Python {best.version} is the newest installed one that fits"


def has_preferred_builds(resolution: Resolution, entries: Iterable[PackageEntry]) -> bool:
    """Whether every package got a build with its preferred local label, so no other Python does better."""
    return all(is_preferred(resolution, entry) for entry in entries)


def build_note(resolution: Resolution, entry: PackageEntry, searched: str) -> str | None:
    """Return which build of a package with a preferred local label was found, and where; else None.

    *searched* names the places in which none was found, such as "in find-links or an index".
    """
    pin = resolution.pins.get(entry.name)
    if entry.prefer_local is None or pin is None or pin.candidate.file is None:
        return None
    file = pin.candidate.file
    where = redacted(file.index) if file.index else "find-links"
    if is_preferred(resolution, entry):
        return f"{pin.candidate} is a `+{entry.prefer_local}` build from {where}: {size_text(file.size or 0)}"
    whole = size_text(fetch_size(resolution))
    if entry.name in resolution.unused:
        unused, cause = resolution.unused[entry.name]
        return (
            f"not using {unused}, a `+{entry.prefer_local}` build: {cause};"
            f" {pin.candidate} is the build of {where}, and all files together have {whole}"
        )
    python = resolution.request.environment.short
    return (
        f"no `+{entry.prefer_local}` build of {entry.name} for Python {python} was found {searched}:"
        f" {pin.candidate} is the build of {where}, and all files together have {whole}"
    )


def is_preferred(resolution: Resolution, entry: PackageEntry) -> bool:
    """Whether *entry* has no preferred local label, or its build has it, or is installed already."""
    pin = resolution.pins.get(entry.name)
    if entry.prefer_local is None or pin is None or pin.is_installed:
        return True
    return (pin.version.local or "").split(".")[0] == entry.prefer_local


def no_python(matrix: Matrix, refusals: Mapping[str, Unmet]) -> Unmet:
    """Return why no Python fits the stack: the reason for each, or one reason if all are the same."""
    if not refusals:
        allowed = matrix.requires_python or "any"
        return Refused(f"no Python that {matrix.name} admits ({allowed}) is installed or can be fetched")
    groups: dict[str, list[str]] = {}
    for version, error in refusals.items():
        groups.setdefault(error.message.splitlines()[0], []).append(version)
    errors = {headline: refusals[versions[0]] for headline, versions in groups.items()}
    first = next(iter(errors.values()))
    if len(groups) == 1:
        return first
    lines = [f"no available Python fits {matrix.name}"]
    for headline, versions in groups.items():
        lines.append(f"with Python {_listed(versions)}: {errors[headline]}")
    return NoSolution("\n".join(lines), hint=first.hint)


def _listed(versions: Sequence[str]) -> str:
    return f"{', '.join(versions[:-1])} and {versions[-1]}" if len(versions) > 1 else versions[0]
