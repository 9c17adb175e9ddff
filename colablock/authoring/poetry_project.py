"""Read the tables of Poetry in a ``pyproject.toml`` as PEP 508 requirements."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colablock._common.urls import redacted
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.authoring.requirements_txt import archive_of, parse_named
from colablock.environment.requirements import version_of
from colablock.errors import Fault, FetchFailed, InvalidInput

__all__ = ["poetry_file"]

_KEYS = frozenset({"extras", "markers", "optional", "python", "version", "source", "platform"})
_MICRO = 2  # dots of a version with a micro part
_CLAUSE = re.compile(r"(\^|~=|~|===|==|!=|>=|<=|>|<|=)?\s*([0-9A-Za-z.*+!_-]+)")


def poetry_file(
    poetry: Mapping[str, Any], source: str, folder: Path, group: str
) -> tuple[RequirementFile, list[Fault]]:
    """Return the dependencies of ``[tool.poetry]``, or of one of its groups, and their faults."""
    reader = _PoetryReader(where=f"{source}:tool.poetry", folder=folder)
    return reader.read(poetry, group), reader.faults


@dataclass
class _PoetryReader:
    """The tables of Poetry in one file."""

    where: str
    folder: Path
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _named: dict[str, str] = field(default_factory=dict)  # the URLs of sources by their names

    def read(self, poetry: Mapping[str, Any], group: str) -> RequirementFile:
        """Return the dependencies, of *group* if it is not empty."""
        file = self._with_indexes(poetry)
        groups = poetry.get("group", {}) if isinstance(poetry.get("group", {}), dict) else {}
        key = f"group.{group}.dependencies" if group else "dependencies"
        table = (groups.get(group, {}) if group else poetry).get("dependencies", {})
        if not isinstance(table, dict):
            self.faults.append(Fault(path=f"{self.where}.{key}", message="must be a table"))
            return file
        python, found = None, []
        for name, value in table.items():
            where = f"{self.where}.{key}.{name}"
            if name == "python":
                python = self._specifier(value, where)
                continue
            for item in value if isinstance(value, list) else [value]:
                one = self._requirement(name, item, where)
                found += [one] if one is not None else []
        left = [f"group.{one}" for one in groups if one != group]
        left += [one for one in ("dev-dependencies", "extras") if poetry.get(one)]
        if left:
            listed = ", ".join(f"`tool.poetry.{one}`" for one in left)
            self.notes.append(f"omitted {listed}")
        return replace(
            file, requirements=tuple(found), requires_python=python, notes=(*file.notes, *self.notes)
        )

    def _with_indexes(self, poetry: Mapping[str, Any]) -> RequirementFile:
        sources = poetry.get("source", [])
        default, urls, names = None, [], {}
        for item in sources if isinstance(sources, list) else ():
            name, url = (item.get("name"), item.get("url")) if isinstance(item, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(url, str):
                continue  # PyPI, which needs no URL
            try:
                plain = redacted(url)
            except FetchFailed as error:
                self.faults.append(Fault(path=f"{self.where}.source", message=error.message))
                continue
            self._named[name] = plain
            names[plain] = name
            if item.get("default") is True or item.get("priority") in ("default", "primary"):
                default = default or plain
            urls.append(plain)
        return RequirementFile(
            indexes=tuple(url for url in urls if url != default), default_index=default, index_names=names
        )

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
            self.notes.append(f"left out {name}: `{where}` is no archive that can be pinned")
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
            index=self._named.get(index) if isinstance(index, str) else None,
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
