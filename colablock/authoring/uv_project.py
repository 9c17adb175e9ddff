"""Read the tables of uv in a ``pyproject.toml``: what a matrix has is taken over, the rest is named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from colablock._common.toml import in_utc
from colablock._vendor.packaging.markers import InvalidMarker, Marker
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.authoring.declared_indexes import DeclaredIndexes, listed
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.authoring.requirements_txt import archive_of, parse_named
from colablock.environment.requirements import marker_of
from colablock.errors import Fault, InvalidInput

__all__ = ["with_uv_tables"]

_PRERELEASE = ("allow", "disallow", "explicit", "if-necessary", "if-necessary-or-explicit")
# Keys that a matrix has, and keys that say nothing about the versions to install.
_TAKEN = frozenset(
    {"constraint-dependencies", "exclude-newer", "extra-index-url", "find-links", "index", "index-url"}
    | {"no-binary", "no-binary-package", "override-dependencies", "prerelease", "sources"}
)
_IRRELEVANT = frozenset(
    {"add-bounds", "allow-insecure-host", "build-backend", "cache-dir", "cache-keys", "check-url"}
    | {"compile-bytecode", "concurrent-builds", "concurrent-downloads", "concurrent-installs"}
    | {"default-groups", "environments", "http-proxy", "https-proxy", "keyring-provider", "link-mode"}
    | {"managed", "native-tls", "offline", "package", "pip", "preview", "publish-url"}
    | {"python-downloads", "python-install-mirror", "python-preference", "reinstall", "required-version"}
    | {"required-environments", "trusted-publishing", "upgrade", "workspace"}
)


def with_uv_tables(
    file: RequirementFile, tool: Mapping[str, Any], source: str, folder: Path, *, asked: frozenset[str]
) -> tuple[RequirementFile, list[Fault]]:
    """Return *file* with ``[tool.uv]``, and the faults of that table.

    *source* names the file in messages.  *asked* are the extras and dependency groups that are read.
    """
    table = tool.get("uv", {})
    if not isinstance(table, dict):
        return file, [Fault(path=f"{source}:tool.uv", message="must be a table")]
    reader = _UvReader(table=table, where=f"{source}:tool.uv", folder=folder, asked=asked)
    found = reader.read(file)
    return replace(found, notes=(*found.notes, *reader.notes)), reader.faults


@dataclass
class _UvReader:
    """One table ``[tool.uv]``."""

    table: Mapping[str, Any]
    where: str
    folder: Path
    asked: frozenset[str]
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.indexes = DeclaredIndexes(
            tool="uv", source=self.where.removesuffix(":tool.uv"), table="tool.uv.index", faults=self.faults
        )

    def read(self, file: RequirementFile) -> RequirementFile:
        """Return *file* with the content of the table."""
        file = self._with_indexes(file)
        requirements = self._overridden(self._with_sources(file.requirements))
        constraints = [one for one in self._lines("constraint-dependencies") if not self._has_extras(one)]
        omitted = sorted(self.table.keys() - _TAKEN - _IRRELEVANT)
        if omitted:
            self.notes.append(f"omitted {listed(f'tool.uv.{key}' for key in omitted)}")
        return replace(
            file,
            requirements=tuple(requirements),
            constraints=(*file.constraints, *constraints),
            find_links=(*file.find_links, *self._strings("find-links")),
            prerelease=self._prerelease(),
            exclude_newer=self._exclude_newer(),
            no_binary=self._no_binary(),
        )

    # -- indexes

    def _with_indexes(self, file: RequirementFile) -> RequirementFile:
        """Return *file* with the indexes of the table; none is asked for a name that does not name it."""
        for place, index in enumerate(self._tables("index")):
            url, name = index.get("url"), index.get("name")
            if not isinstance(url, str) or not isinstance(name, (str, type(None))):
                self._fault(f"index[{place}]", "needs a `url`")
            elif index.get("format") == "flat":
                self.indexes.find_links.append(self.indexes.plain(url))
            else:
                is_searched = index.get("explicit") is not True
                self.indexes.add(url, name, is_searched=is_searched, is_default=index.get("default") is True)
        for url in self._strings("index-url"):
            self.indexes.add(url, is_searched=True, is_default=True)
        for url in self._strings("extra-index-url"):
            self.indexes.add(url, is_searched=True)
        return self.indexes.added_to(file)

    # -- sources

    def _with_sources(self, found: Sequence[FoundRequirement]) -> list[FoundRequirement]:
        """Return the requirements with the sources that the table gives them."""
        raw = self.table.get("sources", {})
        if not isinstance(raw, dict):
            self._fault("sources", "must be a table")
            return list(found)
        sources = {canonicalize_name(name): (name, value) for name, value in raw.items()}
        used = {canonicalize_name(one.requirement.name) for one in found}
        unused = [f"tool.uv.sources.{name}" for key, (name, _) in sources.items() if key not in used]
        if unused:
            self.notes.append(f"omitted {listed(unused)}: nothing here asks for it")
        result: list[FoundRequirement] = []
        for one in found:
            name, value = sources.get(canonicalize_name(one.requirement.name), ("", []))
            result += self._sourced(one, name, value) if name else [one]
        return result

    def _sourced(self, found: FoundRequirement, name: str, value: object) -> Iterator[FoundRequirement]:
        """Yield the requirement once for each of its sources, and once for where none of them applies."""
        items = value if isinstance(value, list) else [value]
        rest = True
        for place, item in enumerate(items):
            where = f"sources.{name}" + (f"[{place}]" if isinstance(value, list) else "")
            if not isinstance(item, dict):
                self._fault(where, "must be a table")
                continue
            only = [str(item[key]) for key in ("extra", "group") if key in item]
            if only and not {canonicalize_name(one) for one in only} & self.asked:
                self.notes.append(f"omitted `tool.uv.{where}`: it is for {listed(only)} only")
                continue
            marker = self._marker(item, where)
            rest = rest and marker is not None
            one = self._with_source(found, item, where)
            if one is not None:
                yield _where(one, marker)
        if rest:
            yield found

    def _with_source(
        self, found: FoundRequirement, item: Mapping[str, Any], where: str
    ) -> FoundRequirement | None:
        """Return the requirement with one source; None, with a note, if a matrix cannot have that source."""
        name = found.requirement.name
        index, url, git, path = (item.get(key) for key in ("index", "url", "git", "path"))
        if isinstance(index, str):
            named = self.indexes.named(index, f"{self.where}.{where}")
            return replace(found, index=named) if named is not None else None
        if isinstance(git, str):
            revision = item.get("rev") or item.get("tag")
            place = archive_of(git, revision) if isinstance(revision, str) else None
        elif isinstance(path, str):
            place = path if re.search(r"\.(whl|tar\.gz|zip)$", path) and not item.get("editable") else None
        else:
            place = url if isinstance(url, str) else None
        if place is None:
            kind = next((key for key in ("git", "path", "workspace") if key in item), "source")
            reason = (
                "only a `rev` or a `tag` on GitHub can be pinned"
                if kind == "git"
                else "only an archive or a wheel can be installed"
            )
            self.notes.append(f"left out {name}: `tool.uv.{where}` names a {_KINDS[kind]}: {reason}")
            return None
        subdirectory = item.get("subdirectory")
        tail = f"#subdirectory={subdirectory}" if isinstance(subdirectory, str) else ""
        try:
            archive = parse_named(f"{name} @ {place}{tail}", self.folder)
        except InvalidInput as error:
            self._fault(where, error.message, error.hint)
            return None
        archive.extras, archive.marker = found.requirement.extras, found.requirement.marker
        return replace(found, requirement=archive)

    def _marker(self, item: Mapping[str, Any], where: str) -> Marker | None:
        text = item.get("marker")
        if text is None:
            return None
        try:
            return marker_of(str(text))
        except InvalidMarker as error:
            self._fault(where, f"`{text}` is not a marker: {str(error).partition(chr(10))[0]}")
            return None

    # -- other keys

    def _overridden(self, found: Sequence[FoundRequirement]) -> list[FoundRequirement]:
        """Return the requirements with the versions of ``override-dependencies``."""
        overrides: dict[NormalizedName, list[FoundRequirement]] = {}
        for line in self._lines("override-dependencies"):
            overrides.setdefault(canonicalize_name(line.requirement.name), []).append(line)
        result = [one for one in found if canonicalize_name(one.requirement.name) not in overrides]
        for name, lines in overrides.items():
            own = [one for one in found if canonicalize_name(one.requirement.name) == name]
            for line in lines:
                if not own:
                    self.notes.append(
                        f"omitted the override `{line.requirement}`: a matrix replaces the requirements of a"
                        " package with `requires-dist`"
                    )
                    continue
                taken = Requirement(str(line.requirement))
                taken.extras = {extra for one in own for extra in one.requirement.extras} | taken.extras
                result.append(replace(own[0], requirement=taken, where=line.where))
                self.notes.append(f"took the override `{line.requirement}` for the version of {name}")
        return result

    def _prerelease(self) -> str | None:
        value = self.table.get("prerelease")
        if value is None or value in _PRERELEASE:
            return value
        self._fault("prerelease", f"`{value}` is not one of {', '.join(_PRERELEASE)}")
        return None

    def _exclude_newer(self) -> datetime | None:
        value = self.table.get("exclude-newer")
        if value is None:
            return None
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(_rfc3339(value))
        except (TypeError, ValueError):  # a duration, such as `1 week`
            self.notes.append(f"omitted `tool.uv.exclude-newer`: `{value}` is not a date")
            return None
        return in_utc(moment)

    def _no_binary(self) -> tuple[str, ...]:
        if self.table.get("no-binary") is True:
            return (":all:",)
        names = self._strings("no-binary-package")
        self.notes += [f"{name} has to be built: add it to `options.allow-build`" for name in names]
        return tuple(sorted(map(canonicalize_name, names)))

    def _lines(self, key: str) -> Iterator[FoundRequirement]:
        """Yield the requirements of an array."""
        for place, text in enumerate(self._strings(key)):
            try:
                requirement = parse_named(text, self.folder)
            except InvalidInput as error:
                self._fault(f"{key}[{place}]", error.message, error.hint)
                continue
            yield FoundRequirement(requirement=requirement, where=f"{self.where}.{key}[{place}]")

    def _has_extras(self, found: FoundRequirement) -> bool:
        if found.requirement.extras:
            self.notes.append(f"omitted the constraint `{found.requirement}`: it has extras")
        return bool(found.requirement.extras)

    def _strings(self, key: str) -> list[str]:
        raw = self.table.get(key, [])
        values = [raw] if isinstance(raw, str) else raw
        if isinstance(values, list) and all(isinstance(one, str) for one in values):
            return values
        self._fault(key, "must be an array of strings")
        return []

    def _tables(self, key: str) -> list[Mapping[str, Any]]:
        raw = self.table.get(key, [])
        if isinstance(raw, list) and all(isinstance(one, dict) for one in raw):
            return raw
        self._fault(key, "must be an array of tables")
        return []

    def _fault(self, key: str, message: str, hint: str | None = None) -> None:
        self.faults.append(Fault(path=f"{self.where}.{key}", message=message, hint=hint))


_KINDS = {"git": "repository", "path": "path", "workspace": "workspace member", "source": "source"}


def _where(found: FoundRequirement, marker: Marker | None) -> FoundRequirement:
    """Return the requirement for where *marker* holds, too."""
    if marker is None:
        return found
    requirement = Requirement(str(found.requirement))
    own = requirement.marker
    requirement.marker = marker if own is None else Marker(f"({own}) and ({marker})")
    return replace(found, requirement=requirement)


def _rfc3339(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value.replace("Z", "+00:00")
