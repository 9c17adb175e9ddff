"""Import names: which files are modules, whose they are, and which come with Python."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version

__all__ = [
    "ImportProvider",
    "ImportProviders",
    "ModuleFile",
    "Modules",
    "Supply",
    "installed_path",
    "modules_of",
    "standard_library",
]

# The two folders of a wheel's .data that are installed among the modules (binary distribution format).
_INSTALLED = re.compile(r"^[^/]+\.data/(?:pure|plat)lib/")
_MODULE = re.compile(r"(?P<stem>[^.]+)\.(?:(?P<source>py)|pyc|(?:[\w-]+\.)?(?:so|pyd))")
_DISTUTILS = "distutils-precedence.pth"  # of setuptools: gives ``distutils`` where Python has none
#: Modules that Python gained and lost, by the minor version that made the change.
_ADDED = {11: {"tomllib"}, 14: {"annotationlib", "compression"}}
_REMOVED = {
    11: {"binhex"},
    12: {"asynchat", "asyncore", "distutils", "imp", "smtpd"},
    13: {
        *(
            "aifc",
            "audioop",
            "cgi",
            "cgitb",
            "chunk",
            "crypt",
            "imghdr",
            "lib2to3",
            "mailcap",
            "msilib",
            "nis",
        ),
        *("nntplib", "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib"),
    },
}


@lru_cache
def standard_library(python: Version) -> frozenset[str]:
    """Return the top-level modules of that Python's standard library.

    What this Python knows of, with what is known to differ.
    """
    names = set(sys.stdlib_module_names)
    for changes, is_there in ((_ADDED, True), (_REMOVED, False)):
        for minor, changed in changes.items():
            if (python.minor >= minor) is is_there:
                names |= changed
            else:
                names -= changed
    return frozenset(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFile:
    """A file that can be imported, under the dotted *name*; one that is no source is compiled."""

    name: str
    is_package: bool
    is_source: bool

    @classmethod
    def of(cls, path: str) -> ModuleFile | None:
        """Return what the file at *path*, relative to where modules are installed, is imported as."""
        match = _MODULE.fullmatch(path)
        parts = match["stem"].split("/") if match is not None else []
        if match is None or not all(part.isidentifier() and part != "__pycache__" for part in parts):
            return None
        is_package = len(parts) > 1 and parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        return cls(name=name, is_package=is_package, is_source=match["source"] is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """The modules of a distribution by their dotted names.

    *packages* are those that have an ``__init__`` in Python, so that what they
    lack can be told.  *partial*: there may be more below each than is listed.
    """

    names: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    partial: bool = False


def installed_path(path: str) -> str:
    """Return where a file of a wheel is installed, relative to the other modules."""
    return _INSTALLED.sub("", path)


def modules_of(paths: Iterable[str], *, partial: bool = False) -> Modules:
    """Return the modules among the files of a distribution, as a wheel or the site has them."""
    names, packages = set(), set()
    for path in paths:
        file = ModuleFile.of(installed_path(path))
        if file is not None:
            names.add(file.name)
        if file is not None and file.is_package and file.is_source:
            packages.add(file.name)
        if path == _DISTUTILS:
            names.add("distutils")
    return Modules(names=frozenset(names), packages=frozenset(packages), partial=partial)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProvider:
    """One distribution of a stack, and the modules that it brings."""

    name: NormalizedName
    version: str
    modules: Modules


class Supply(NamedTuple):
    """Who provides an imported name; *lacking* is the part of it that they turn out not to have."""

    providers: frozenset[NormalizedName]
    lacking: str | None = None


@dataclass(slots=True)
class ImportProviders:
    """Looks up who provides what.  Portions of one namespace may come from many (PEP 420)."""

    providers: Mapping[NormalizedName, ImportProvider]
    _holding: dict[str, set[NormalizedName]] = field(init=False)
    _namespaces: dict[str, set[NormalizedName]] = field(init=False)

    def __post_init__(self) -> None:
        self._holding, self._namespaces = defaultdict(set), defaultdict(set)
        for provider in self.providers.values():
            for module in provider.modules.names:
                self._holding[module].add(provider.name)
                for parent in _parents(module):
                    self._namespaces[parent].add(provider.name)

    def find(self, base: str, member: str | None = None) -> Supply | None:
        """Return who provides ``import base`` or ``from base import member``; None when nobody does.

        The longest part of the name that is somebody's module decides.
        """
        full = f"{base}.{member}" if member and member != "*" else base
        for name in dict.fromkeys((full, base)):
            if name in self._holding:
                return Supply(frozenset(self._holding[name]))
        if self.is_namespace(base):
            return None if full != base else Supply(frozenset(self._namespaces[base]))
        for parent in _parents(base):
            if parent in self._holding:
                return Supply(frozenset(self._holding[parent]), base if self._is_known(parent) else None)
        return None

    def is_module(self, name: str) -> bool:
        """Whether somebody has a module of that name."""
        return name in self._holding

    def is_namespace(self, name: str) -> bool:
        """Whether *name* is no module itself, and holds some."""
        return name in self._namespaces and name not in self._holding

    def gap(self, base: str, member: str | None = None) -> str:
        """Return the shortest part of a name that nobody provides: what has to come from somewhere."""
        full = f"{base}.{member}" if member and member != "*" else base
        known = next((parent for parent in _parents(full) if parent in self._namespaces), "")
        return ".".join(full.split(".")[: known.count(".") + 2 if known else 1])

    def _is_known(self, package: str) -> bool:
        """Whether all that is below *package* is listed: no part of it is compiled or left out."""
        owners = [self.providers[name].modules for name in self._holding[package]]
        return all(package in modules.packages and not modules.partial for modules in owners)


def _parents(module: str) -> list[str]:
    """Return what *module* lies in, the innermost first."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]
