"""Read the tables of Poetry in a ``pyproject.toml`` as PEP 508 requirements."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colablock._common.text import near
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.authoring.declared_indexes import DeclaredIndexes, listed
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.authoring.requirements_txt import archive_of, parse_named
from colablock.environment.requirements import version_of
from colablock.errors import Fault, InvalidInput
from colablock.network.settings import DEFAULT_INDEX

__all__ = ["poetry_file", "poetry_group", "with_poetry_tables"]

_PYPI = "pypi"  # the source that needs no URL
_MICRO = 2  # dots of a version with a micro part
_CLAUSE = re.compile(r"(\^|~=|~|===|==|!=|>=|<=|>|<|=)?\s*([0-9A-Za-z.*+!_-]+)")


def poetry_file(
    poetry: Mapping[str, Any], source: str, folder: Path, group: str
) -> tuple[RequirementFile, list[Fault]]:
    """Return the dependencies of ``[tool.poetry]``, or of one of its groups, and their faults."""
    reader = _PoetryReader(source=source, folder=folder)
    return reader.read(poetry, group), reader.faults


def with_poetry_tables(
    file: RequirementFile, tool: Mapping[str, Any], source: str, folder: Path, group: str
) -> tuple[RequirementFile, list[Fault]]:
    """Return *file*, which is of ``[project]``, with the sources of ``[tool.poetry]``, and their faults.

    Poetry 2 takes the version from ``[project]``, and the source from its own table.
    """
    poetry = tool.get("poetry")
    if not isinstance(poetry, dict):
        return file, []
    reader = _PoetryReader(source=source, folder=folder)
    return reader.enrich(file, poetry, group), reader.faults


def poetry_group(poetry: object, group: str) -> str | None:
    """Return the name of *group* in ``[tool.poetry.group]``; None if it has no such group."""
    groups = poetry.get("group") if isinstance(poetry, dict) else None
    wanted = canonicalize_name(group)
    names = groups if group and isinstance(groups, dict) else ()
    return next((one for one in names if canonicalize_name(one) == wanted), None)


@dataclass
class _PoetryReader:
    """The tables of Poetry in one file."""

    source: str
    folder: Path
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.where = f"{self.source}:tool.poetry"
        self.indexes = DeclaredIndexes(
            tool="Poetry", source=self.source, table="tool.poetry.source", faults=self.faults
        )

    def read(self, poetry: Mapping[str, Any], group: str) -> RequirementFile:
        """Return the dependencies, of *group* if it is not empty."""
        self._read_sources(poetry)
        key, table = self._dependencies(poetry, group)
        python, found = None, []
        for name, value in table.items():
            where = f"{self.where}.{key}.{name}"
            if name == "python":
                python = self._specifier(value, where)
                continue
            for item in value if isinstance(value, list) else [value]:
                one = self._requirement(name, item, where)
                found += [one] if one is not None else []
        self._note_rest(poetry, key)
        file = RequirementFile(requirements=tuple(found), requires_python=python)
        return self._finished(file)

    def enrich(self, file: RequirementFile, poetry: Mapping[str, Any], group: str) -> RequirementFile:
        """Return *file* with the sources that the tables give its requirements."""
        self._read_sources(poetry)
        tables = [self._dependencies(poetry, "")]
        if poetry_group(poetry, group) is not None:
            tables.append(self._dependencies(poetry, group))
        items = {
            canonicalize_name(name): (name, value, f"{self.where}.{key}.{name}")
            for key, table in tables
            for name, value in table.items()
            if name != "python"
        }
        used = {canonicalize_name(one.requirement.name) for one in file.requirements}
        unused = [where.partition(":")[2] for name, (_, _, where) in items.items() if name not in used]
        if unused:
            self.notes.append(f"omitted {listed(unused)}: nothing here asks for it")
        found: list[FoundRequirement] = []
        for one in file.requirements:
            name, value, where = items.get(canonicalize_name(one.requirement.name), ("", None, ""))
            found += self._enriched(one, name, value, where) if name else [one]
        self._note_rest(poetry, *(key for key, _ in tables), "extras")
        return self._finished(replace(file, requirements=tuple(found)))

    def _enriched(
        self, found: FoundRequirement, name: str, value: object, where: str
    ) -> Iterator[FoundRequirement]:
        """Yield *found* once for each of its sources."""
        for item in value if isinstance(value, list) else [value]:
            keys = item if isinstance(item, dict) else {}
            more = self._requirement(
                name, {key: keys[key] for key in keys if key not in ("optional", "version")}, where
            )
            if more is None or found.requirement.url is not None:
                if more is not None:
                    yield found
                continue
            own, taken = found.requirement, more.requirement
            if taken.url is None:
                taken.specifier = own.specifier
            taken.extras |= own.extras
            if own.marker is not None:
                both = own.marker if taken.marker is None else Marker(f"({own.marker}) and ({taken.marker})")
                taken.marker = both
            yield replace(found, requirement=taken, index=more.index)

    def _dependencies(self, poetry: Mapping[str, Any], group: str) -> tuple[str, Mapping[str, Any]]:
        """Return the key of a table of dependencies, and the table; with a fault, if there is none."""
        if not group:
            return "dependencies", self._table("dependencies", poetry.get("dependencies", {}))
        groups = self._table("group", poetry.get("group", {}))
        name = poetry_group(poetry, group)
        if name is not None:
            key = f"group.{name}"
            table = self._table(key, groups[name]).get("dependencies", {})
            return f"{key}.dependencies", self._table(f"{key}.dependencies", table)
        key = "dev-dependencies"
        if group == "dev" and key in poetry:  # before Poetry 1.2
            return key, self._table(key, poetry[key])
        hint = near(group, groups) or f"the groups are: {listed(groups) or 'none'}"
        self.faults.append(Fault(path=f"{self.where}.group.{group}", message="not found", hint=hint))
        return key, {}

    def _table(self, key: str, value: object) -> Mapping[str, Any]:
        if isinstance(value, dict):
            return value
        self.faults.append(Fault(path=f"{self.where}.{key}", message="must be a table"))
        return {}

    def _note_rest(self, poetry: Mapping[str, Any], *keys: str) -> None:
        """Add the note about the tables other than *keys*."""
        groups = poetry.get("group")
        left = [f"group.{one}" for one in groups] if isinstance(groups, dict) else []
        left += [one for one in ("dev-dependencies", "extras") if poetry.get(one)]
        rest = [f"tool.poetry.{one}" for one in left if not {one, f"{one}.dependencies"} & set(keys)]
        if rest:
            self.notes.append(f"omitted {listed(rest)}")

    def _finished(self, file: RequirementFile) -> RequirementFile:
        file = self.indexes.added_to(file)
        return replace(file, notes=(*file.notes, *self.notes))

    # -- sources

    def _read_sources(self, poetry: Mapping[str, Any]) -> None:
        sources = poetry.get("source", [])
        if not isinstance(sources, list) or not all(isinstance(item, dict) for item in sources):
            self.faults.append(Fault(path=self.indexes.where, message="must be an array of tables"))
            return
        for place, item in enumerate(sources):
            name, url = item.get("name"), item.get("url")
            is_first = item.get("default") is True or item.get("priority") in ("default", "primary")
            is_default = is_first and self.indexes.default is None
            if isinstance(name, str) and isinstance(url, str):
                is_searched = item.get("priority") != "explicit"
                self.indexes.add(url, name, is_searched=is_searched, is_default=is_default)
            elif isinstance(name, str) and name.lower() == _PYPI:
                self.indexes.default = DEFAULT_INDEX if is_default else self.indexes.default
            else:
                self.faults.append(
                    Fault(path=f"{self.indexes.where}[{place}]", message="needs a `name` and a `url`")
                )

    def _index(self, name: str, where: str) -> str | None:
        """Return the URL of the source *name*; None if that is the default, or with a fault."""
        if name.lower() != _PYPI or self.indexes.has(name, any_case=True):
            return self.indexes.named(name, where, any_case=True)
        if self.indexes.default in (None, DEFAULT_INDEX):
            return None
        if DEFAULT_INDEX not in self.indexes.urls:
            self.indexes.add(DEFAULT_INDEX, _PYPI, is_searched=False)
        return DEFAULT_INDEX

    # -- dependencies

    def _requirement(self, name: str, value: object, where: str) -> FoundRequirement | None:
        item = {"version": value} if isinstance(value, str) else value
        if not isinstance(item, dict):
            self.faults.append(Fault(path=where, message="must be a version or a table"))
            return None
        if item.get("optional") is True:
            self.notes.append(f"left out {name}: `{where}` is optional")
            return None
        place = self._place(item)
        if place is None and item.keys() & {"git", "path", "url", "file"}:
            self.notes.append(f"left out {name}: `{where}` is not an archive that can be pinned")
            return None
        extras = item.get("extras", [])
        extra = f"[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else ""
        specifier = self._specifier(item.get("version", "*"), where) if place is None else f" @ {place}"
        if specifier is None:
            return None
        text = f"{name}{extra}{specifier}"
        markers = [f"({one})" for one in self._markers(item, where)]
        try:
            requirement = parse_named(text + (f" ; {' and '.join(markers)}" if markers else ""), self.folder)
        except InvalidInput as error:
            self.faults.append(Fault(path=where, message=error.message, hint=error.hint))
            return None
        index = item.get("source")
        return FoundRequirement(
            requirement=requirement,
            where=where,
            index=self._index(index, where) if isinstance(index, str) else None,
        )

    def _place(self, item: Mapping[str, Any]) -> str | None:
        """Return the URL or the path of an archive."""
        revision = item.get("rev") or item.get("tag")
        if isinstance(item.get("git"), str) and isinstance(revision, str):
            return archive_of(item["git"], revision)
        place = item.get("url") or item.get("file") or item.get("path")
        is_archive = isinstance(place, str) and re.search(r"\.(whl|tar\.gz|zip)$", place)
        return str(place) if is_archive else None

    def _markers(self, item: Mapping[str, Any], where: str) -> Iterator[str]:
        if isinstance(item.get("markers"), str):
            yield item["markers"]
        if isinstance(item.get("platform"), str):
            yield f"sys_platform == '{item['platform']}'"
        python = self._specifier(item["python"], where) if "python" in item else None
        for clause in (python or "").split(",") if python else ():
            match = re.fullmatch(r"([<>=!~]+)(.*)", clause)
            if match is not None:
                name = "python_version" if match[2].count(".") < _MICRO else "python_full_version"
                yield f"{name} {match[1]} '{match[2]}'"

    def _specifier(self, value: object, where: str) -> str | None:
        """Return a version constraint of Poetry as one of PEP 440."""
        try:
            return poetry_specifier(str(value))
        except (InvalidVersion, ValueError):
            self.faults.append(Fault(path=where, message=f"`{value}` cannot be written as a specifier"))
            return None


def poetry_specifier(text: str) -> str:
    """Return a constraint (``^1.2``, ``~1.2``, ``1.*``, ``>=1,<2``) as a specifier.  Raises ValueError."""
    clauses: list[str] = []
    if "|" in text:
        raise ValueError(text)
    rest = text.replace(",", " ").strip()
    while rest:
        match = _CLAUSE.match(rest)
        if match is None:
            raise ValueError(text)
        clauses += _clauses(match[1] or "", match[2])
        rest = rest[match.end() :].strip()
    return ",".join(clauses)


def _clauses(operator: str, version: str) -> list[str]:
    if version == "*":
        return []
    if operator in {"", "="}:
        return [f"=={version}"]
    if operator not in {"^", "~"}:
        return [f"{operator}{version}"]
    found = version_of(version)
    return [f">={found}", f"<{_above(found, is_caret=operator == '^')}"]


def _above(version: Version, *, is_caret: bool) -> str:
    """Return the first version that ``^version`` or ``~version`` excludes."""
    release = version.release
    if is_caret:
        place = next((at for at, part in enumerate(release) if part), len(release) - 1)
    else:
        place = min(1, len(release) - 1)
    return ".".join(map(str, (*release[:place], release[place] + 1)))
