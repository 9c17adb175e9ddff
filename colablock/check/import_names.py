"""Import names: which files are modules, which distribution provides them, which belong to Python."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import field
from functools import lru_cache
from typing import NamedTuple

from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version

__all__ = [
    "ImportProvider",
    "ImportProviders",
    "ModuleFile",
    "Modules",
    "ProviderMatch",
    "installed_path",
    "modules_of",
    "standard_library",
]

# The two folders of a wheel's .data that are installed beside the modules (binary distribution format).
_INSTALLED = re.compile(r"^[^/]+\.data/(?:pure|plat)lib/")
_MODULE = re.compile(r"(?P<stem>[^.]+)\.(?:(?P<source>py)|pyc|(?:[\w-]+\.)?(?:so|pyd))")
_DISTUTILS = "distutils-precedence.pth"  # of setuptools: provides ``distutils`` if Python does not
#: Modules that were added to and removed from Python, by minor version.
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
    """Return the top-level modules of the standard library of *python*.

    They are those of this Python, corrected by the known differences.
    """
    names = set(sys.stdlib_module_names)
    for changes, is_added in ((_ADDED, True), (_REMOVED, False)):
        for minor, changed in changes.items():
            if (python.minor >= minor) is is_added:
                names |= changed
            else:
                names -= changed
    return frozenset(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFile:
    """A file that can be imported by the dotted *name*: a source file, or a compiled one."""

    name: str
    is_package: bool
    is_source: bool

    @classmethod
    def of(cls, path: str) -> ModuleFile | None:
        """Return the module of the file at *path*, relative to the folder of modules; None if it is none."""
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

    *packages* are those with an ``__init__`` in Python, so that a missing submodule can be
    recognised.  With *partial*, each may have more submodules than are listed.
    """

    names: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    partial: bool = False


def installed_path(path: str) -> str:
    """Return the path at which a file of a wheel is installed, relative to the folder of modules."""
    return _INSTALLED.sub("", path)


def modules_of(paths: Iterable[str], *, partial: bool = False) -> Modules:
    """Return the modules among the files of a wheel or of an installed distribution."""
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
    """One distribution of a stack, and its modules."""

    name: NormalizedName
    version: str
    modules: Modules


class ProviderMatch(NamedTuple):
    """The providers of an imported name; *missing* is the part of it that they do not have."""

    providers: frozenset[NormalizedName]
    missing: str | None = None


@dataclass(slots=True)
class ImportProviders:
    """Looks up the providers of modules.  A namespace may have portions from several (PEP 420)."""

    providers: Mapping[NormalizedName, ImportProvider]
    _owners: dict[str, set[NormalizedName]] = field(init=False)
    _namespaces: dict[str, set[NormalizedName]] = field(init=False)

    def __post_init__(self) -> None:
        self._owners, self._namespaces = defaultdict(set), defaultdict(set)
        for provider in self.providers.values():
            for module in provider.modules.names:
                self._owners[module].add(provider.name)
                for parent in _parents(module):
                    self._namespaces[parent].add(provider.name)

    def find(self, base: str, member: str | None = None) -> ProviderMatch | None:
        """Return the providers of ``import base`` or ``from base import member``; None if there are none.

        The longest part of the name that is a module decides.
        """
        full = f"{base}.{member}" if member and member != "*" else base
        for name in dict.fromkeys((full, base)):
            if name in self._owners:
                return ProviderMatch(frozenset(self._owners[name]))
        if self.is_namespace(base):
            return None if full != base else ProviderMatch(frozenset(self._namespaces[base]))
        for parent in _parents(base):
            if parent in self._owners:
                return ProviderMatch(
                    frozenset(self._owners[parent]), base if self._is_known(parent) else None
                )
        return None

    def is_module(self, name: str) -> bool:
        """Whether a distribution has a module with that name."""
        return name in self._owners

    def is_namespace(self, name: str) -> bool:
        """Whether *name* is not a module itself, but has modules below it."""
        return name in self._namespaces and name not in self._owners

    def gap(self, base: str, member: str | None = None) -> str:
        """Return the shortest part of a name without a provider."""
        full = f"{base}.{member}" if member and member != "*" else base
        known = next((parent for parent in _parents(full) if parent in self._namespaces), "")
        return ".".join(full.split(".")[: known.count(".") + 2 if known else 1])

    def _is_known(self, package: str) -> bool:
        """Whether all submodules of *package* are listed, because no owner is compiled or partial."""
        owners = [self.providers[name].modules for name in self._owners[package]]
        return all(package in modules.packages and not modules.partial for modules in owners)


def _parents(module: str) -> list[str]:
    """Return the parents of *module*, the innermost first."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]
