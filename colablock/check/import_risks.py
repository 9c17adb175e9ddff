"""Find installed distributions that may no longer import after a change, although no requirement says so.

Such a distribution stays, and imports a module of a distribution that is removed without requiring
it, or a distribution that moves out of the range that an extra of it names.  A plan must not take
longer because of it, so only likely distributions are read: small ones, and those that mention the
removed distribution in their metadata or in their first module.
"""

# Paths are strings here: an image has 70,000 modules.
# ruff: noqa: PTH113, PTH120, PTH123

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._records import dataclass
from colablock.check.import_names import ModuleFile
from colablock.check.import_statements import Statement, read_statements
from colablock.environment.record import readable_rows
from colablock.environment.requirements import applies, only_with, parse_requirement, required_name
from colablock.environment.snapshot import is_version
from colablock.planning.plan import Action, ImportRisk, Plan, Step

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = ["find_import_risks"]

_SMALL = 1500  # bytes of a RECORD; a third of the distributions of an image have a smaller one
_FILES = 40  # modules of one distribution
_ALL_FILES = 2000  # modules of all
_LONGEST = 1 << 20  # bytes of a module; real ones that import others have less
# The imports at the start of a line, which always run.  Each pattern begins with a literal: that is fast.
_FROM = re.compile(rb"\nfrom[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]*)")
_IMPORT = re.compile(rb"\nimport[ \t]+([\w., \t]+)")
_NAME = re.compile(rb"(\w+)(?:[ \t]+as[ \t]+\w+)?")


def find_import_risks(plan: Plan, snapshot: Snapshot) -> tuple[ImportRisk, ...]:
    """Return the distributions of *snapshot* that stay with *plan* and may no longer import."""
    steps = {step.name: step for step in plan.steps if step.previous is not None}
    told = {item.name for item in plan.breakages}
    staying = [one for name, one in snapshot.installed.items() if name not in steps and one.path]
    going = _Going.of([step for step in steps.values() if step.version is None], staying, snapshot)
    search = _ImportSearch(going=going, markers=snapshot.environment.markers)
    asked = [one for one in staying if one.name not in told and one.import_names]
    reasons = {one.name: _out_of_range(one, steps, snapshot, search) for one in asked}
    for one in search.likely(asked) if going.modules else ():
        reasons[one.name] = reasons[one.name] or search.reason(one)
    return tuple(
        ImportRisk(name=one.name, version=one.version, modules=_modules_of(one), reason=reason)
        for one in sorted(asked, key=lambda one: one.name)
        if (reason := reasons[one.name]) is not None
    )


def _out_of_range(
    one: Installed, steps: Mapping[NormalizedName, Step], snapshot: Snapshot, search: _ImportSearch
) -> str | None:
    """Return why *one* may not import a distribution that moves out of the range that its extras name."""
    for line in one.requires:
        extra = only_with(line)
        step = steps.get(required_name(line) or one.name) if extra is not None else None
        if step is None or step.version is None or step.action is Action.REMOVE:
            continue
        requirement = parse_requirement(line)
        if requirement is None or not is_version(step.previous or "") or not is_version(step.version):
            continue
        if not applies(requirement, snapshot.environment, extra or ""):
            continue
        specifier = requirement.specifier
        if specifier.contains(step.version, prereleases=True) or not specifier.contains(
            step.previous or "", prereleases=True
        ):
            continue
        modules = _own_modules(snapshot.installed[step.name], snapshot)
        where = search.any_import(one, modules)
        if where is not None:
            moves = f"{step.name} {step.previous} becomes {step.version}"
            return f"{where}, its extra `{extra}` requires `{requirement}`, and {moves}"
    return None


def _own_modules(installed: Installed, snapshot: Snapshot) -> frozenset[str]:
    """Return the import names of *installed* that no other distribution has: no namespaces."""
    others = (one for one in snapshot.installed.values() if one.name != installed.name)
    return frozenset(installed.import_names) - {name for one in others for name in one.import_names}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Going:
    """The modules that go, by their dotted names, and the words that tell of them."""

    modules: Mapping[str, Step] = field(default_factory=dict)
    words: tuple[bytes, ...] = ()
    names: tuple[bytes, ...] = ()  # of the modules

    @classmethod
    def of(cls, removed: Collection[Step], staying: Collection[Installed], snapshot: Snapshot) -> _Going:
        """Return the modules of the *removed* that no *staying* distribution has."""
        kept = {name for one in staying for name in one.import_names}
        found: dict[str, Step] = {}
        for step in removed:
            installed = snapshot.installed.get(step.name)
            if installed is None:
                continue
            for name in installed.import_names or _tops(installed):
                if name not in kept and _is_module(installed, name):
                    found[name] = step
                else:  # a namespace
                    found.update(dict.fromkeys(_packages_below(installed, name), step))
        names = sorted(name.encode() for name in found)
        words = {name.lower() for name in names} | {step.name.encode() for step in found.values()}
        return cls(modules=found, words=tuple(sorted(words)), names=tuple(names))

    def owner(self, statement: Statement) -> Step | None:
        """Return the step that removes what *statement* imports."""
        names = [statement.base]
        if statement.member not in (None, "*"):
            names.append(f"{statement.base}.{statement.member}")
        for name in names:
            parts = name.split(".")
            for depth in range(len(parts), 0, -1):
                if step := self.modules.get(".".join(parts[:depth])):
                    return step
        return None

    def is_mentioned(self, text: bytes) -> bool:
        """Whether *text*, in lower case, names one of the modules or of their distributions."""
        return any(word in text for word in self.words)


def _imports_one(data: bytes, modules: Collection[bytes]) -> bool:
    """Whether a line with an import in *data* has the name of one of *modules*."""
    for module in modules:
        at = data.find(module)
        while at >= 0:
            line = data[data.rfind(b"\n", 0, at) + 1 : at].lstrip()
            if line.startswith((b"from", b"import")):
                return True
            at = data.find(module, at + 1)
    return False


def _modules_of(installed: Installed) -> tuple[str, ...]:
    return tuple(name for name in installed.import_names if _is_module(installed, name))


def _tops(installed: Installed) -> frozenset[str]:
    """Return the folders of modules of *installed*, which has no list of its import names."""
    rows = readable_rows(Path(installed.path)) if installed.path else ()
    return frozenset(row.path.partition("/")[0] for row in rows if row.path.endswith("/__init__.py"))


def _is_module(installed: Installed, name: str) -> bool:
    """Whether *name* is a module of Python code, and no folder of other files or of a namespace."""
    path = f"{os.path.dirname(installed.path or '')}/{name}"
    return os.path.isfile(f"{path}/__init__.py") or os.path.isfile(f"{path}.py")


def _packages_below(installed: Installed, namespace: str) -> Iterator[str]:
    """Yield the packages of *installed* directly below *namespace*, which others have, too."""
    for row in readable_rows(Path(installed.path)) if installed.path else ():
        file = ModuleFile.of(row.path) if row.path.endswith("/__init__.py") else None
        if file is not None and file.name.count(".") == 1 and file.name.startswith(f"{namespace}."):
            yield file.name


@dataclass(slots=True, kw_only=True)
class _ImportSearch:
    going: _Going
    markers: Mapping[str, str]
    read: int = 0  # files so far

    def reason(self, one: Installed) -> str | None:
        """Return what *one* imports of what goes, when it is imported itself."""
        walk = _ModuleWalk(
            folder=os.path.dirname(one.path or ""), tops=frozenset(one.import_names), search=self
        )
        for name in one.import_names:
            found = walk.enter(name)
            if found is not None:
                path, line, step, module = found
                return f"it imports `{module}` ({path}:{line}), and {step.name} {step.previous} is removed"
        return None

    def any_import(self, one: Installed, modules: Collection[str]) -> str | None:
        """Return a clause about the first import of one of *modules* in *one* that is not caught."""
        if not modules:
            return None
        folder = os.path.dirname(one.path or "")
        names = [name.encode() for name in modules]
        rows = readable_rows(Path(one.path or ""))
        for row in rows:
            if not row.path.endswith(".py") or self.read >= _ALL_FILES:
                continue
            data = self.content(f"{folder}/{row.path}")
            if not _imports_one(data, names):
                continue
            for statement in self.statements(data, "x.x", is_package=False):
                if statement.base.partition(".")[0] in modules and not (statement.caught or statement.unless):
                    return f"it imports `{statement.base}` ({row.path}:{statement.line})"
        return None

    def content(self, path: str) -> bytes:
        """Return the content of a module; empty if it cannot be read."""
        self.read += 1
        return self._read(path)

    @staticmethod
    def _read(path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read(_LONGEST)
        except OSError:
            return b""

    def statements(
        self, data: bytes, module: str, *, is_package: bool, deferred: bool = True
    ) -> tuple[Statement, ...]:
        """Return the imports of a module."""
        try:
            return read_statements(
                data, module, is_package=is_package, markers=self.markers, deferred=deferred
            )
        except SyntaxError:
            return ()

    def likely(self, installed: Collection[Installed]) -> list[Installed]:
        """Return those of *installed* to read: those that mention what goes, and small ones."""
        small = {one.name for one in installed if _is_small(one)}
        large = [one for one in installed if one.name not in small and self._mentions(one)]
        return [*large, *(one for one in installed if one.name in small)]

    def _mentions(self, one: Installed) -> bool:
        """Whether the metadata or the first module of *one* names what goes."""
        folder = os.path.dirname(one.path or "")
        files = [f"{one.path}/METADATA", *(f"{folder}/{name}/__init__.py" for name in one.import_names)]
        return any(self.going.is_mentioned(self._read(file).lower()) for file in files)


def _is_small(one: Installed) -> bool:
    try:
        return os.stat(f"{one.path}/RECORD").st_size <= _SMALL  # noqa: PTH116
    except OSError:
        return False


@dataclass(slots=True, kw_only=True)
class _ModuleWalk:
    """Follows the imports of a distribution through its own modules, in the order in which they run."""

    folder: str
    tops: frozenset[str]
    search: _ImportSearch
    seen: set[str] = field(default_factory=set)
    files: int = 0

    def enter(self, name: str) -> tuple[str, int, Step, str] | None:
        """Return where the import of *name* imports what goes: path, line, step, module."""
        stack = [name]
        while stack:
            module = stack.pop()
            if module in self.seen or self.files >= _FILES or self.search.read >= _ALL_FILES:
                continue
            self.seen.add(module)
            path = self._path(module)
            if path is None:
                continue
            self.files += 1
            data = self.search.content(f"{self.folder}/{path}")
            is_package = path.endswith("/__init__.py")
            if not _imports_one(data, self.search.going.names):
                stack += reversed(
                    list(self._edges(data, module if is_package else module.rpartition(".")[0]))
                )
                continue
            edges: list[str] = []
            for statement in self.search.statements(data, module, is_package=is_package, deferred=False):
                if statement.caught or statement.unless or statement.lazy:
                    continue
                own = list(self._own(statement.base, statement.member))
                step = None if own else self.search.going.owner(statement)
                if step is not None:
                    return path, statement.line, step, statement.base
                edges += own
            # A module that is named after what goes most likely imports it.
            stack += sorted(edges, key=lambda one: not self.search.going.is_mentioned(one.encode()))[::-1]
        return None

    def _path(self, module: str) -> str | None:
        stem = module.replace(".", "/")
        for path in (f"{stem}/__init__.py", f"{stem}.py"):
            if os.path.isfile(f"{self.folder}/{path}"):
                return path
        return None

    def _own(self, base: str, member: str | None) -> Iterator[str]:
        """Yield the own modules that an import runs: the parents of *base*, itself, and *member*."""
        parts = base.split(".")
        if parts[0] in self.tops:
            yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
            if member not in (None, "*"):
                yield f"{base}.{member}"

    def _edges(self, data: bytes, package: str) -> Iterator[str]:
        """Yield the own modules that the imports at the start of a line run."""
        data = b"\n" + data
        for plain in _IMPORT.findall(data):
            for name in plain.split(b","):
                yield from self._own(name.split()[0].decode() if name.split() else "", None)
        for base, members in _FROM.findall(data):
            text = _absolute(base.decode(), package)
            if text.partition(".")[0] not in self.tops:
                continue
            yield from self._own(text, None)
            yield from (f"{text}.{name.decode()}" for name in _NAME.findall(members))


def _absolute(name: str, package: str) -> str:
    """Return the absolute name of a relative one; "" if it leaves the top-level package."""
    tail = name.lstrip(".")
    level = len(name) - len(tail)
    if not level:
        return name
    parts = package.split(".")
    if level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - level + 1], *([tail] if tail else [])])
