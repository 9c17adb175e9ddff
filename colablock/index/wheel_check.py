"""Whether a wheel may be installed: checked before it is unpacked (Binary distribution format).

uv and pip leave out or rename some members that are not valid, and install the rest; here such a
wheel is refused as a whole.
"""

from __future__ import annotations

import csv
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from colablock._common.archive_contents import Contents, UnsafeArchive, check_path, check_zip
from colablock._common.archives import UNREADABLE, open_zip
from colablock._common.limits import METADATA
from colablock._common.text import printable, size_text, some_of
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.record import HASHES
from colablock.errors import BadDistribution
from colablock.index.core_metadata import parse_core_metadata
from colablock.index.evaluator import WheelName, parse_wheel_name

__all__ = ["RULES", "check_wheel", "script_entries"]

RULES: Final = 1
"""Raise it with the rules of this module: a wheel that was unpacked under others is checked again."""

_HINT: Final = "Exclude this version in the matrix, or report the file to its index"
_SCHEMES = frozenset({"purelib", "platlib", "headers", "scripts", "data"})
# Files that belong to the environment itself, below its prefix.
_ENVIRONMENT = re.compile(
    r"pyvenv\.cfg|(bin|scripts)/(pythonw?[0-9.]*t?(\.exe)?|(de)?activate[^/]*)"
    r"|lib(64)?/python[0-9.]+t?(/.*)?|(.*/)?\.colablock(/.*)?",
    re.IGNORECASE,
)
_SITE = re.compile(r"lib(64)?/python[0-9.]+t?/(site|dist)-packages/", re.IGNORECASE)
_SCRIPT = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*")
_OBJECT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(\s*:\s*[^\W\d]\w*(\.[^\W\d]\w*)*)?\s*(\[[\w\s.,-]*\])?")
_SCRIPT_GROUPS = ("console_scripts", "gui_scripts")
_UNHASHED = ("RECORD", "RECORD.jws", "RECORD.p7s")
_START_HOOKS = ("sitecustomize", "usercustomize")
# What every setuptools has, which finds `distutils` where Python has none: no news to anybody.
_SHIM = "distutils-precedence.pth"
_SHIM_TEXT = re.compile(
    r"import os; var = 'SETUPTOOLS_USE_DISTUTILS'; "
    r"enabled = os\.environ\.get\(var, '(?:local|stdlib)'\) == 'local'; "
    r"enabled and __import__\('_distutils_hack'\)(?:\.add_shim\(\))?;?\s*"
)


def check_wheel(path: Path) -> tuple[str, ...]:
    """Raise BadDistribution if the wheel *path* must not be installed; return notes for the user.

    A note tells of code that runs at every start of Python, or of a module that
    shares its name with one of the standard library.  Hashes of members are not
    checked: they are after unpacking.
    """
    try:
        with path.open("rb") as stream, open_zip(stream) as archive:
            return _Wheel(path, archive).check()
    except UNREADABLE as error:
        raise BadDistribution(
            f"`{path.name}` cannot be installed: {printable(str(error))}", hint=_HINT
        ) from error


class _Wheel:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._name: WheelName = parse_wheel_name(path.name)
        self._files = dict(check_zip(archive, path.stat().st_size))
        self._info = self._info_folder()
        self._data = f"{self._info.removesuffix('.dist-info')}.data"

    def check(self) -> tuple[str, ...]:
        destinations = self._destinations()
        self._check_description()
        self._check_metadata()
        self._check_record()
        self._check_entry_points()
        return tuple(self._notes(destinations))

    def _info_folder(self) -> str:
        found = sorted({path.partition("/")[0] for path in self._files if ".dist-info/" in path.lower()})
        found = [top for top in found if top.lower().endswith(".dist-info")]
        if len(found) != 1:
            listed = f": {', '.join(f'`{printable(one)}`' for one in found[:5])}" if found else ""
            raise UnsafeArchive(
                f"it has {len(found) or 'no'} .dist-info folders, and a wheel has one{listed}"
            )
        name, _, version = found[0].removesuffix(".dist-info").rpartition("-")
        if not self._is_own(name, version):
            raise UnsafeArchive(f"its folder `{printable(found[0])}` contradicts the file name")
        return found[0]

    def _is_own(self, name: str, version: str) -> bool:
        try:
            same = Version(version.replace("_", "-")) == self._name.version
        except InvalidVersion:
            return False
        return same and canonicalize_name(name) == self._name.project

    def _destinations(self) -> Iterable[str]:
        """Return where the files go, relative to the prefix, or below ``site/``.  None may be taken twice."""
        contents = Contents(0)
        found = []
        for path in self._files:
            destination = self._destination(path)
            if _ENVIRONMENT.fullmatch(destination):
                raise UnsafeArchive(f"it contains `{path}`, which is part of the environment itself")
            contents.claim(destination)
            found.append(destination)
        return found

    def _destination(self, path: str) -> str:
        top, _, inner = path.partition("/")
        if not top.lower().endswith(".data") or "-" not in top:
            return f"site/{path}"
        scheme, _, rest = inner.partition("/")
        if top != self._data or scheme not in _SCHEMES or not rest:
            raise UnsafeArchive(f"it contains `{path}`, which is in no scheme of the wheel format")
        if scheme in ("purelib", "platlib"):
            if ".dist-info/" in rest.lower() or ".data/" in rest.lower():
                raise UnsafeArchive(f"it contains `{path}`, which hides metadata of the wheel")
            return f"site/{rest}"
        if scheme == "scripts":
            return f"bin/{rest}"
        if scheme == "headers":
            return f"include/{rest}"
        return _SITE.sub("site/", rest, count=1)

    def _text(self, name: str) -> str | None:
        member = self._files.get(f"{self._info}/{name}")
        if member is None:
            return None
        if member.file_size > METADATA:
            raise UnsafeArchive(f"its {name} has {size_text(member.file_size)}")
        return self._archive.read(member).decode("utf-8", "replace")

    def _needed(self, name: str) -> str:
        text = self._text(name)
        if text is None:
            raise UnsafeArchive(f"it has no {name}")
        return text

    def _check_description(self) -> None:
        """Check the WHEEL file: its format, and that its tags do not contradict the file name."""
        fields = [line.partition(":") for line in self._needed("WHEEL").splitlines()]
        versions = [value.strip() for key, _, value in fields if key.strip().lower() == "wheel-version"]
        if len(versions) != 1 or not re.fullmatch(r"1\.[0-9]{1,3}", versions[0]):
            shown = printable(", ".join(versions))[:40] or "none"
            raise UnsafeArchive(f"its Wheel-Version is {shown}, and versions 1.x can be installed")
        # Some build backends write the tags of the file name in one line, compressed as there.
        lines = (value.strip() for key, _, value in fields if key.strip().lower() == "tag")
        tags = {_comparable(tag) for line in lines for tag in _expanded(line)}
        if tags and not tags & {_comparable(tag) for tag in _expanded(self._name.tags)}:
            shown = printable(", ".join("-".join(tag) for tag in sorted(tags))[:100])
            raise UnsafeArchive(f"its WHEEL says that it is for {shown}, which contradicts the file name")

    def _check_metadata(self) -> None:
        known = parse_core_metadata(self._needed("METADATA").encode())
        if not self._is_own(known.name, known.version):
            shown = printable(f"{known.name or '?'} {known.version or '?'}")[:100]
            raise UnsafeArchive(f"its METADATA is that of {shown}, which contradicts the file name")

    def _check_record(self) -> None:
        """Check that RECORD lists files of the wheel, with their sizes and with strong hashes."""
        rows = _rows(self._needed("RECORD"))
        unhashed = {f"{self._info}/{name}" for name in _UNHASHED}
        listed: dict[str, tuple[str, str]] = {}
        for path, hashed, size in rows:
            if path.endswith("/"):
                continue  # a folder, which some tools list
            if path not in self._files:
                check_path(path)
                raise UnsafeArchive(f"its RECORD lists `{printable(path)}`, which is not in it")
            if listed.setdefault(path, (hashed, size)) != (hashed, size):
                raise UnsafeArchive(f"its RECORD lists `{printable(path)}` twice, with different hashes")
            if size and size != str(self._files[path].file_size):
                raise UnsafeArchive(
                    f"its RECORD gives `{printable(path)}` {printable(size)[:20]} bytes,"
                    f" but it has {self._files[path].file_size}"
                )
            if path not in unhashed and not path.endswith(".pyc") and hashed.partition("=")[0] not in HASHES:
                raise UnsafeArchive(f"its RECORD has no strong hash of `{printable(path)}`")
        # There are published wheels with unlisted files in their own folders.
        tops = {path.partition("/")[0] for path in listed}
        planted = [path for path in self._files if path not in listed and path.partition("/")[0] not in tops]
        if planted:
            raise UnsafeArchive(f"its RECORD does not list `{printable(planted[0])}`")

    def _check_entry_points(self) -> None:
        """Check that the names of scripts are file names, and that their targets are names of objects."""
        text = self._text("entry_points.txt") or ""
        for line in map(str.strip, text.split("\n")):
            if printable(line) != line and not line.startswith(("#", ";")):
                raise UnsafeArchive(f"its entry point `{printable(line)[:100]}` has a control character")
        for name, target in script_entries(text):
            if not _SCRIPT.fullmatch(name) or _ENVIRONMENT.fullmatch(f"bin/{name}"):
                raise UnsafeArchive(f"its entry point `{name[:100]}` is not a valid name of a script")
            if not _OBJECT.fullmatch(target) or ":" not in target:
                raise UnsafeArchive(
                    f"the target `{target[:100]}` of its script `{name[:100]}` is not a `module:object`"
                )
            check_path(name)

    def _notes(self, destinations: Iterable[str]) -> Iterator[str]:
        tops = {path.removeprefix("site/") for path in destinations if path.startswith("site/")}
        modules = {top.partition("/")[0].partition(".")[0]: top for top in sorted(tops)}
        who = f"`{self._name.project}` {self._name.version}"
        started = sorted(
            top for top in tops if "/" not in top and top.endswith(".pth") and not self._is_shim(top)
        )
        started += [modules[name] for name in _START_HOOKS if name in modules]
        if started:
            yield f"{who} has code that runs whenever Python starts: {some_of(started, 5)}"
        shared = sorted(set(modules) & sys.stdlib_module_names)
        if shared:
            yield f"{who} has modules with names of the standard library: {some_of(shared, 5)}"

    def _is_shim(self, path: str) -> bool:
        """Whether *path* is the file of setuptools that every release of it has, with its text."""
        member = self._files.get(path)
        if self._name.project != "setuptools" or path != _SHIM or member is None:
            return False
        data = self._archive.read(member) if member.file_size <= METADATA else b""
        return _SHIM_TEXT.fullmatch(data.decode("utf-8", "replace")) is not None


def script_entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the target of each script in the text of an ``entry_points.txt``."""
    group = ""
    for line in map(str.strip, text.split("\n")):
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip().lower()
        elif group in _SCRIPT_GROUPS:
            name, _, target = (part.strip() for part in line.partition("="))
            yield name, target


def _rows(text: str) -> Iterator[tuple[str, str, str]]:
    try:
        for fields in csv.reader(text.splitlines(keepends=True)):
            if fields:
                path, hashed, size = (*fields, "", "")[:3]
                yield path, hashed, size
    except csv.Error as error:
        raise UnsafeArchive(f"its RECORD is not valid CSV: {error}") from error


def _expanded(tag: str) -> Iterator[str]:
    """Yield the tags of a compressed tag set (PEP 425)."""
    pythons, abis, platforms = (*tag.split("-"), "", "")[:3]
    for python in pythons.split("."):
        for abi in abis.split("."):
            for platform in platforms.split("."):
                yield f"{python}-{abi}-{platform}"


def _comparable(tag: str) -> tuple[str, str, str]:
    """Return a tag without the version of the C library: tools rename wheels and leave ``linux_x86_64``."""
    python, abi, platform = (*tag.lower().split("-"), "", "")[:3]
    found = re.fullmatch(r"(?:many|musl)?linux[0-9]*(?:_[0-9]+_[0-9]+)?_(\w+)", platform)
    if found:
        return python, abi, f"linux_{found[1]}"
    return python, abi, "macosx" if platform.startswith("macosx") else platform
