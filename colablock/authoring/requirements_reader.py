"""Read requirements files of other tools.

Supported are ``requirements.txt`` and ``.in`` with the files they include, the output of
``pip freeze``, ``pylock.toml`` (PEP 751) and ``pyproject.toml`` (PEP 621, PEP 735).
"""

from __future__ import annotations

import codecs
import os
import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from colablock._common.fs import expanded
from colablock._common.limits import INCLUDE_DEPTH, REQUIREMENT_LINES, TEXT_FILE
from colablock._common.text import decoded, near, some_of
from colablock._common.toml import NotToml, load_toml, read_text_file
from colablock._common.urls import local_path, redacted, split_credentials
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.authoring.local_labels import with_pypi_as_default
from colablock.authoring.pyproject import default_of, locked_requirements, project_file, script_file
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.authoring.requirements_txt import (
    Line,
    index_annotations,
    logical_lines,
    parse_built_elsewhere,
    parse_line,
    parse_named,
    release_hint,
)
from colablock.errors import Fault, FetchFailed, InvalidInput, InvalidRequirements, NotFound
from colablock.lockfile.pylock import read_lock

__all__ = ["RequirementFile", "read_requirements"]


def read_requirements(path: str) -> RequirementFile:
    """Return the content of the file at *path*; ``pyproject.toml:GROUP`` names a dependency group.

    A ``pyproject.toml`` without a group means its ``[project].dependencies``.  Raises NotFound if
    the file does not exist, InvalidRequirements with all faults of the file and its includes.
    """
    file, colon, group = path.rpartition(":")
    if not (colon and file.endswith(".toml")):
        file, group = path, ""
    file = str(expanded(file, "an argument"))
    data = _content(file)
    if file.endswith(".toml"):
        return _from_toml(file, data, group)
    _check_kind(file, data)
    script = _from_script(file, data) if b"# /// script" in data else None
    if script is not None:
        return script
    reader = _RequirementsReader()
    reader.read(file, data, is_constraint=False, above=(Path(file).resolve(),))
    if reader.faults:
        raise InvalidRequirements(file, reader.faults)
    return reader.result()


def _check_kind(file: str, data: bytes) -> None:
    """Raise InvalidInput, with what to do, for a file of another tool whose form is not read."""
    name = Path(file).name
    hint = next((hint for pattern, hint in _FOREIGN.items() if re.fullmatch(pattern, name)), None)
    if hint is None and _CONDA_LIST.search(data[:4096]):
        hint = _CONDA
    if hint is not None:
        raise InvalidInput(f"`{file}` is not a requirements file", hint=hint)


def _content(file: str) -> bytes:
    path = Path(file)
    try:
        return read_text_file(path)
    except FileNotFoundError:
        names = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise NotFound(f"the file `{file}` does not exist", hint=near(path.name, names)) from None
    except OSError as error:
        raise InvalidInput(f"cannot read `{file}`: {error.strerror}") from error
    except ValueError as error:  # a null character
        raise InvalidInput(f"`{file!r}` is not a path: {error}") from error


def _from_toml(file: str, content: bytes, group: str) -> RequirementFile:
    try:
        data = load_toml(content.removeprefix(codecs.BOM_UTF8))
    except NotToml as error:
        raise InvalidInput(f"`{file}` is not valid TOML: {error}") from error
    folder = Path(file).parent
    if "lock-version" in data:
        return _from_lock(file)
    return _without_faults(file, project_file(data, group, file, folder))


def _without_faults(file: str, found: tuple[RequirementFile, list[Fault]]) -> RequirementFile:
    content, faults = found
    if faults:
        raise InvalidRequirements(file, faults)
    return content


def _from_script(file: str, content: bytes) -> RequirementFile | None:
    """Return the requirements of a script (PEP 723); None if it has no metadata block."""
    try:
        found = script_file(decoded(content), file, Path(file).parent)
    except NotToml as error:
        raise InvalidInput(f"the metadata block of `{file}` is not valid TOML: {error}") from error
    except ValueError:
        return None  # no text, which is reported elsewhere
    return _without_faults(file, found) if found is not None else None


def _from_lock(file: str) -> RequirementFile:
    lock = read_lock(Path(file))
    found, faults = locked_requirements(lock, file)
    if faults:
        raise InvalidRequirements(file, faults)
    beside = {
        Path(file).parent / wheel.path for one in lock.packages for wheel in one.wheels or () if wheel.path
    }
    return RequirementFile(
        requirements=tuple(found),
        indexes=tuple(sorted({one.index for one in found if one.index})),
        default_index=default_of(lock),
        requires_python=str(lock.requires_python) if lock.requires_python else None,
        find_links=tuple(sorted({str(path.parent) for path in beside})),
    )


_CONDA = "Run `pip list --format=freeze` in that environment: conda has other names and builds"
_FOREIGN = {
    r"uv\.lock": "Run `uv export --format pylock.toml -o pylock.toml`, and name that file",
    r"poetry\.lock": "Run `poetry export -o requirements.txt`, and name that file",
    r"pdm\.lock": "Run `pdm export -o requirements.txt`, and name that file",
    r"Pipfile(\.lock)?": "Run `pipenv requirements > requirements.txt`, and name that file",
    r"(environment|conda).*\.ya?ml|conda-lock\.yml|pixi\.lock": _CONDA,
    r"setup\.(py|cfg)": "Build a wheel from it, or write its requirements into a requirements file",
    r".*\.(cdx\.)?json": "Name a requirements file, a pylock.toml or a pyproject.toml",
}
_CONDA_LIST = re.compile(
    rb"^@EXPLICIT\s*$|^# This file may be used to create an environment using", re.MULTILINE
)
_INDEX_OPTIONS = frozenset({"--extra-index-url", "--index-url"})
_SHOWN = 10  # names in a note
_HASH = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
# Options without a field in a RequirementFile, and what replaces them.
_UNSUPPORTED = {
    "--config-settings": "builds have no settings",
    "--global-option": "builds have no options",
    "--no-index": "use `--offline` with `--find-links`",
    "--pre": 'use `prerelease = "allow"` in the matrix',
    "--trusted-host": "set `SSL_CERT_FILE` to the certificates to trust",
    "--use-feature": "it is a feature of pip",
}


@dataclass
class _RequirementsReader:
    """Collects the content of a file and its includes."""

    faults: list[Fault] = field(default_factory=list)
    _requirements: list[FoundRequirement] = field(default_factory=list)
    _constraints: list[FoundRequirement] = field(default_factory=list)
    _indexes: list[str] = field(default_factory=list)
    _default: str | None = None
    _find_links: list[str] = field(default_factory=list)
    _no_binary: list[str] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    _elsewhere: list[str] = field(default_factory=list)  # requirements that were built on another machine
    _bytes: int = 0  # of all files, with those of a file that is included twice counted twice
    _lines: int = 0

    def result(self) -> RequirementFile:
        """Return the collected content."""
        file = RequirementFile(
            requirements=tuple(map(self._with_known_index, self._requirements)),
            constraints=tuple(self._constraints),
            indexes=tuple(dict.fromkeys(self._indexes)),
            default_index=self._default,
            find_links=tuple(dict.fromkeys(self._find_links)),
            no_binary=tuple(dict.fromkeys(self._no_binary)),
            notes=(*self._notes, *self._elsewhere_notes()),
        )
        return with_pypi_as_default(file)

    def _with_known_index(self, found: FoundRequirement) -> FoundRequirement:
        """Return *found* without an index that no option of the file names: a comment adds none."""
        return found if found.index in self._indexes else replace(found, index=None)

    def _elsewhere_notes(self) -> Iterator[str]:
        """Yield one note about the builds on other machines."""
        if self._elsewhere:
            names = some_of(self._elsewhere, _SHOWN)
            yield (
                f"read the builds of another machine (`@ file:`) as names: {names};"
                " `pip list --format=freeze` prints their versions"
            )

    def read(self, file: str, data: bytes, *, is_constraint: bool, above: tuple[Path, ...]) -> None:
        """Add the content of one file; *above* are the files that include it, and itself."""
        self._bytes += len(data)
        if self._bytes > TEXT_FILE or len(above) > INCLUDE_DEPTH:
            reason = "are too large" if self._bytes > TEXT_FILE else "are nested too deeply"
            raise InvalidInput(f"the files that `{above[0].name}` includes {reason}")
        try:
            text = decoded(data)
        except ValueError as error:
            self.faults.append(Fault(path=file, message=f"is not text: {error}", hint="save it as UTF-8"))
            return
        lines = list(logical_lines(text))
        starts = [number for number, _ in lines]
        annotated = {bisect(starts, at): url for at, url in index_annotations(text).items()}
        for place, (number, content) in enumerate(lines, start=1):
            where = f"{file}:{number}"
            self._lines += 1
            if self._lines > REQUIREMENT_LINES:
                raise InvalidRequirements(where, [Fault(path=where, message="there are too many lines")])
            try:
                line = parse_line(content)
                self._options(line, file, where, above)
                if line.requirement:
                    index = self._own_index(line, where) or annotated.get(place)
                    self._add(line, Path(file).parent, where, is_constraint=is_constraint, index=index)
            except InvalidInput as error:
                self.faults.append(Fault(path=where, message=error.message, hint=error.hint))

    def _options(self, line: Line, file: str, where: str, above: tuple[Path, ...]) -> None:
        folder = Path(file).parent
        for option in line.options:
            if option.name == "--editable":
                message = f"`{option.value}` is installed in editable mode and cannot be pinned"
                raise InvalidInput(message, hint=release_hint(option.value))
            if option.name in {"--requirement", "--constraint"}:
                is_constraint = option.name == "--constraint"
                self._nested(option.value, folder, above, is_constraint=is_constraint)
            elif option.name in _INDEX_OPTIONS and line.requirement:
                continue  # for this requirement
            elif option.name == "--index-url":
                self._default = self._index(option.value, where)
            elif option.name == "--extra-index-url":
                self._indexes.append(self._index(option.value, where))
            elif option.name == "--find-links":
                self._find_links.append(self._place(option.value, folder, where))
            elif option.name == "--no-binary":
                self._source_only(option.value, where)
            elif option.name in _UNSUPPORTED:
                self._notes.append(f"{where}: omitted `{option.name}`: {_UNSUPPORTED[option.name]}")

    def _own_index(self, line: Line, where: str) -> str | None:
        """Return the index that a requirement has on its own line, which pip ignores."""
        named = [option.value for option in line.options if option.name in _INDEX_OPTIONS]
        if not named:
            return None
        index = self._index(named[-1], where)
        self._indexes.append(index)
        self._notes.append(f"{where}: `{line.requirement}` comes from `{index}` only, which its line names")
        return index

    def _source_only(self, names: str, where: str) -> None:
        """Add the names of ``--no-binary``; ``:none:`` forgets the ones before, as in pip."""
        for name in names.split(","):
            if name == ":none:":
                self._no_binary.clear()
            elif name == ":all:":
                self._no_binary.append(name)
            elif name:
                self._no_binary.append(canonicalize_name(name))
                self._notes.append(f"{where}: {name} has to be built: add it to `options.allow-build`")

    def _nested(self, name: str, folder: Path, above: tuple[Path, ...], *, is_constraint: bool) -> None:
        path = local_path(name)
        if path is None:
            message = f"`{redacted(name)}` is remote and is not downloaded"
            raise InvalidInput(message, hint="save it beside this file, and name the copy")
        path = folder / path
        if "\0" in name:
            raise InvalidInput(f"{name!r} is not a path")
        if path.resolve() in above:
            raise InvalidInput(f"`{name}` includes itself")
        data = _content(str(path))
        self.read(str(path), data, is_constraint=is_constraint, above=(*above, path.resolve()))

    def _index(self, url: str, where: str) -> str:
        """Return the URL of an index, without user and password."""
        local_path(url)  # an index may be a folder, and raises if the home folder in its path is not known
        try:
            plain, _ = split_credentials(url)
        except FetchFailed as error:
            raise InvalidInput(error.message) from error
        if plain != url:
            self._notes.append(f"{where}: omitted user and password of `{plain}`: put them into a netrc file")
        return plain

    def _place(self, link: str, folder: Path, where: str) -> str:
        """Return a find-links location.  A relative path starts in the file's folder if it exists there."""
        path = local_path(link)
        if path is None:
            return self._index(link, where)
        beside = folder / path
        return str(beside if os.path.exists(beside) else path)  # noqa: PTH110 - Path raises of a long name

    def _add(self, line: Line, folder: Path, where: str, *, is_constraint: bool, index: str | None) -> None:
        elsewhere = parse_built_elsewhere(line.requirement)
        if elsewhere is not None:
            self._elsewhere.append(str(elsewhere))
        requirement = elsewhere or parse_named(line.requirement, folder)
        if is_constraint and requirement.extras:
            raise InvalidInput(f"the constraint `{line.requirement}` cannot have extras")
        hashes = tuple(sorted(line.values("--hash")))
        for one in hashes:
            if not _HASH.fullmatch(one):
                raise InvalidInput(
                    f"`{one}` is not a valid hash", hint="write `--hash=sha256:` and 64 hexadecimal digits"
                )
        found = FoundRequirement(requirement=requirement, where=where, hashes=hashes, index=index)
        (self._constraints if is_constraint else self._requirements).append(found)
