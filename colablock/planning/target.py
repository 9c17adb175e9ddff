"""Choose the target: the kernel if a change there is harmless, else an isolated environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._common.text import size_text
from colablock._common.urls import redacted
from colablock.environment.notebook_host import Host
from colablock.environment.snapshot import Snapshot
from colablock.planning.plan import Remedy
from colablock.resolver.members import mixed

if TYPE_CHECKING:
    from colablock.matrix.model import PackageEntry
    from colablock.planning.plan import Plan
    from colablock.planning.planned import PlannedChange
    from colablock.resolver.model import Resolution

__all__ = [
    "build_note",
    "fetch_size",
    "has_preferred_builds",
    "is_kernel",
    "is_preferred",
    "more_harm",
    "why_not_kernel",
]


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


def fetch_size(resolution: Resolution) -> int:
    """Return the size of the chosen files in bytes, without those whose index gives no size."""
    files = (pin.candidate.file for pin in resolution.pins.values())
    return sum(file.size or 0 for file in files if file is not None)


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
