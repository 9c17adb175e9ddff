"""Read requirements of a ``pyproject.toml`` (PEP 621, PEP 735), a script (PEP 723) or a lock (PEP 751)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colablock._common.limits import INCLUDE_DEPTH, REQUIREMENT, REQUIREMENT_LINES, SHOWN
from colablock._common.text import near
from colablock._common.toml import load_toml
from colablock._common.urls import redacted
from colablock._vendor.packaging.dependency_groups import DependencyGroupInclude, DependencyGroupResolver
from colablock._vendor.packaging.errors import ExceptionGroup
from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.authoring.pdm_project import with_pdm_sources
from colablock.authoring.poetry_project import poetry_file, poetry_group, with_poetry_tables
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.authoring.requirements_txt import parse_named
from colablock.authoring.uv_project import with_uv_tables
from colablock.errors import Fault, InvalidInput
from colablock.lockfile.pins import default_index_of, pins_of
from colablock.network.settings import DEFAULT_INDEX

__all__ = ["default_of", "locked_requirements", "project_file", "script_file"]

_OF_POETRY = frozenset({"dependencies", "dev-dependencies", "group"})  # tables with requirements
_SCRIPT = re.compile(r"^# /// script$\s((?:^#(?: .*)?$\s)+)^# ///$", re.MULTILINE)  # PEP 723


def project_file(
    data: Mapping[str, Any], group: str, source: str, folder: Path
) -> tuple[RequirementFile, list[Fault]]:
    """Return the requirements of a ``pyproject.toml`` with the tables of uv, Poetry and PDM, and the faults.

    *group* is a dependency group or an extra; without one they are ``[project].dependencies``.
    """
    tool = data.get("tool") if isinstance(data.get("tool"), dict) else {}
    tool = tool or {}
    project = data.get("project") if isinstance(data.get("project"), dict) else {}
    project = project or {}
    extras = project.get("optional-dependencies")
    extra = next((one for one in extras if _same(one, group)), None) if isinstance(extras, dict) else None
    groups = data.get("dependency-groups")
    has_group = isinstance(groups, dict) and any(_same(one, group) for one in groups)
    poetry = tool.get("poetry")
    is_own_group = poetry_group(poetry, group) is not None and not has_group and extra is None
    is_poetry = isinstance(poetry, dict) and ("dependencies" not in project or is_own_group)
    if isinstance(poetry, dict) and is_poetry and poetry.keys() & _OF_POETRY:
        file, faults = poetry_file(poetry, source, folder, group)
        return replace(file, requires_python=file.requires_python or _python(project)), faults
    if group and (has_group or extra is None):
        found, faults = group_requirements(data, group, source, folder)
    else:
        found, faults = project_requirements(data, source, folder)
        if extra is not None and isinstance(extras, dict):
            more, further = _extra_requirements(project, extra, source, folder)
            found, faults = [*found, *more], [*faults, *further]
    if faults:
        return RequirementFile(), faults
    file = RequirementFile(
        requirements=tuple(found),
        requires_python=_python(project),
        notes=tuple(_left_out(data, project, tool, source, group)),
    )
    asked = frozenset({canonicalize_name(group)} if group else ())
    file, of_poetry = with_poetry_tables(file, tool, source, folder, group)
    file, of_pdm = with_pdm_sources(file, tool, source)
    file, of_uv = with_uv_tables(file, tool, source, folder, asked=asked)
    return file, [*of_poetry, *of_pdm, *of_uv]


def script_file(text: str, source: str, folder: Path) -> tuple[RequirementFile, list[Fault]] | None:
    """Return the requirements in the metadata block of a script (PEP 723); None if it has no block.

    Raises NotToml.
    """
    match = _SCRIPT.search(text)
    if match is None:
        return None
    lines = (line[2:] if line.startswith("# ") else line[1:] for line in match[1].splitlines())
    data = load_toml("\n".join(lines).encode())
    keys = {key: data[key] for key in ("dependencies", "requires-python") if key in data}
    return project_file(
        {"project": {"dependencies": [], **keys}, "tool": data.get("tool", {})}, "", source, folder
    )


def _python(project: Mapping[str, Any]) -> str | None:
    python = project.get("requires-python")
    return python if isinstance(python, str) else None


def _same(one: str, other: str) -> bool:
    return bool(other) and canonicalize_name(one) == canonicalize_name(other)


def _extra_requirements(
    project: Mapping[str, Any], extra: str, source: str, folder: Path
) -> tuple[list[FoundRequirement], list[Fault]]:
    """Return the requirements of an extra and of the extras of the same project that it names."""
    extras = project["optional-dependencies"]
    own = canonicalize_name(str(project.get("name", "")))
    found: list[FoundRequirement] = []
    faults: list[Fault] = []
    waiting, seen = [extra], {canonicalize_name(extra)}
    while waiting:
        name = waiting.pop(0)
        where = f"{source}:project.optional-dependencies.{name}"
        lines = extras[name]
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            faults.append(Fault(path=where, message="must be an array of strings (PEP 621)"))
            continue
        more, further = _parsed([(line, f"{where}[{at}]") for at, line in enumerate(lines)], folder)
        faults += further
        for one in more:
            if canonicalize_name(one.requirement.name) != own:
                found.append(one)
                continue
            named = {canonicalize_name(each) for each in one.requirement.extras} - seen
            waiting += [each for each in extras if canonicalize_name(each) in named]
            seen |= named
    return found, faults


def _left_out(
    data: Mapping[str, Any], project: Mapping[str, Any], tool: Mapping[str, Any], source: str, group: str
) -> Iterator[str]:
    """Yield notes about the tables that are not read."""
    groups, extras = data.get("dependency-groups"), project.get("optional-dependencies")
    if not group:
        names = [*(extras if isinstance(extras, dict) else ()), *(groups if isinstance(groups, dict) else ())]
        if names:
            listed = ", ".join(f"`{name}`" for name in names)
            yield f"omitted the extras and dependency groups {listed}: name one, as `{source}:{names[0]}`"
    for name, key in (("pdm", "dev-dependencies"), ("pdm", "resolution"), ("hatch", "envs"), ("pixi", "")):
        table = tool.get(name)
        if isinstance(table, dict) and (table.get(key) if key else table):
            yield f"omitted `tool.{name}{'.' if key else ''}{key}`"


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
        return [], [Fault(path=where, message=message, hint=_other_place(data, source))]
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return [], [Fault(path=where, message="must be an array of strings (PEP 621)")]
    return _parsed([(line, f"{where}[{place}]") for place, line in enumerate(lines)], folder)


def _other_place(data: Mapping[str, Any], source: str) -> str | None:
    """Return a hint where the requirements may be: in a file that setuptools reads, or in a group."""
    tool: object = data.get("tool")
    for key in ("setuptools", "dynamic", "dependencies", "file"):
        tool = tool.get(key) if isinstance(tool, dict) else None
    files = [tool] if isinstance(tool, str) else tool
    if isinstance(files, list) and files and isinstance(files[0], str):
        return f"read the file that setuptools takes them from: `{Path(source).parent / files[0]}`"
    groups = data.get("dependency-groups")
    named = min(groups) if groups and isinstance(groups, dict) else None
    return f"name a dependency group with `{source}:{named}`" if named else None


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

    Packages from another index than `default_of` name that index.
    """
    pins, faults = pins_of(lock, source)
    default = default_of(lock)
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


def default_of(lock: Pylock) -> str | None:
    """Return the index of the packages that name none: PyPI if the lock uses it, else the one used most."""
    used = {redacted(package.index) for package in lock.packages if package.index}
    pypi = next((url for url in sorted(used) if url.rstrip("/") == DEFAULT_INDEX.rstrip("/")), None)
    return pypi or default_index_of(lock.packages)
