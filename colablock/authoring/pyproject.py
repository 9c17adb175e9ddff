"""Read the requirements of a ``pyproject.toml`` (PEP 621, PEP 735) or a lock (PEP 751)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colablock._common.limits import INCLUDE_DEPTH, REQUIREMENT, REQUIREMENT_LINES, SHOWN
from colablock._common.text import near
from colablock._common.urls import redacted
from colablock._vendor.packaging.dependency_groups import DependencyGroupInclude, DependencyGroupResolver
from colablock._vendor.packaging.errors import ExceptionGroup
from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.authoring.requirement_file import FoundRequirement
from colablock.authoring.requirements_txt import parse_named
from colablock.errors import Fault, InvalidInput
from colablock.lockfile.pins import default_index_of, pins_of

__all__ = ["group_requirements", "locked_requirements", "project_requirements"]


def project_requirements(
    data: Mapping[str, Any], source: str, folder: Path
) -> tuple[list[FoundRequirement], list[Fault]]:
    """Return ``[project].dependencies``, and their faults (PEP 621)."""
    project = data.get("project", {})
    where = f"{source}:project.dependencies"
    lines = project.get("dependencies") if isinstance(project, dict) else None
    if lines is None:
        dynamic = project.get("dynamic") if isinstance(project, dict) else None
        is_dynamic = isinstance(dynamic, list) and "dependencies" in dynamic
        message = "the build sets them (`dynamic`)" if is_dynamic else "is missing"
        groups = data.get("dependency-groups")
        named = min(groups) if groups and isinstance(groups, dict) else None
        hint = f"name a dependency group with `{source}:{named}`" if named else None
        return [], [Fault(path=where, message=message, hint=hint)]
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return [], [Fault(path=where, message="must be an array of strings (PEP 621)")]
    return _parsed([(line, f"{where}[{place}]") for place, line in enumerate(lines)], folder)


def group_requirements(
    data: Mapping[str, Any], group: str, source: str, folder: Path
) -> tuple[list[FoundRequirement], list[Fault]]:
    """Return the requirements of the dependency group *group* and the groups it includes (PEP 735)."""
    groups = data.get("dependency-groups", {})
    try:
        _check_size(groups, group)
        resolver = DependencyGroupResolver(groups)
        resolver.resolve(group)
    except ExceptionGroup as error:
        return [], [_group_fault(one, group, source, groups) for one in error.exceptions]
    except InvalidInput as error:
        return [], [Fault(path=f"{source}:dependency-groups", message=error.message)]
    except RecursionError:
        return [], [Fault(path=f"{source}:dependency-groups", message="its groups are nested too deeply")]
    except (AttributeError, TypeError, ValueError) as error:
        message = f"must be a table of arrays (PEP 735): {error}"
        return [], [Fault(path=f"{source}:dependency-groups", message=message)]
    return _parsed(list(_placed(resolver, group, source)), folder)


def _check_size(groups: Mapping[str, Any], group: str) -> None:
    """Check how many requirements the group has, with those of the groups it includes.

    Raises InvalidInput.  The resolver expands every include again.
    """
    items = {canonicalize_name(name): value for name, value in groups.items()}
    waiting, count = [(canonicalize_name(group), 0)], 0
    while waiting:
        name, depth = waiting.pop()
        found = items.get(name)
        for item in found if isinstance(found, list) else ():
            count += 1
            if count > REQUIREMENT_LINES:
                raise InvalidInput("its groups include too many requirements")
            if isinstance(item, str) and len(item) > REQUIREMENT:
                raise InvalidInput(f"`{item[:SHOWN]}...` is longer than {REQUIREMENT:,} characters")
            included = item.get("include-group") if isinstance(item, dict) else None
            if isinstance(included, str) and depth <= INCLUDE_DEPTH:
                waiting.append((canonicalize_name(included), depth + 1))


def _group_fault(error: Exception, group: str, source: str, groups: Mapping[str, Any]) -> Fault:
    hint = None
    if isinstance(error, LookupError):
        known = ", ".join(f"`{name}`" for name in groups) or "none"
        hint = near(group, groups) or f"the groups are: {known}"
    what, *shown = str(error).splitlines()  # the second line, if any, is the requirement
    message = f"`{shown[0].strip()}` is not a valid requirement (PEP 508): {what}" if shown else what
    return Fault(path=f"{source}:dependency-groups", message=message, hint=hint)


def _placed(resolver: DependencyGroupResolver, group: str, source: str) -> Iterator[tuple[str, str]]:
    """Yield each requirement of a valid group, with its location."""
    for place, item in enumerate(resolver.lookup(group)):
        if isinstance(item, DependencyGroupInclude):
            yield from _placed(resolver, item.include_group, source)
        else:
            yield str(item), f"{source}:dependency-groups.{group}[{place}]"


def _parsed(lines: Sequence[tuple[str, str]], folder: Path) -> tuple[list[FoundRequirement], list[Fault]]:
    found, faults = [], []
    for line, where in lines:
        try:
            found.append(FoundRequirement(requirement=parse_named(line, folder), where=where))
        except InvalidInput as error:  # noqa: PERF203 - each line has its own fault
            faults.append(Fault(path=where, message=error.message, hint=error.hint))
    return found, faults


def locked_requirements(lock: Pylock, source: str) -> tuple[list[FoundRequirement], list[Fault]]:
    """Return the pins of a lock without extras and with only its default groups (PEP 751).

    Packages from another index than most name that index.
    """
    pins, faults = pins_of(lock, source)
    default = default_index_of(lock.packages)
    found = []
    for pin in pins:
        index = redacted(pin.package.index) if pin.package.index else None
        one = FoundRequirement(
            requirement=pin.requirement,
            where=pin.where,
            hashes=pin.hashes,
            index=index if index != default else None,
        )
        found.append(one)
    return found, faults
