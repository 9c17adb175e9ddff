"""Find the imports that a distribution reaches from its entry points, through its own modules."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from colablock._vendor.packaging.version import Version
from colablock.check.import_names import ModuleFile, standard_library
from colablock.check.import_statements import ImportTime, Statement, read_statements

__all__ = ["Import", "ReachableImports", "UnparsedModule", "find_reachable_imports"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """``import name`` or ``from name import member`` at a line of a file; *path* is "" for an entry point.

    *own* is true if the name belongs to the distribution, which does not have it.  For *unless*
    see `Statement`.
    """

    name: str
    member: str | None
    kind: ImportTime
    path: str
    line: int
    unless: tuple[frozenset[str], ...] = ()
    own: bool = False

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}" if self.path else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnparsedModule:
    """A module that this Python cannot parse, so its imports are unknown."""

    path: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachableImports:
    """The imports: hard imports first, then in the order in which the modules run."""

    imports: tuple[Import, ...]
    unread: tuple[UnparsedModule, ...] = ()


def find_reachable_imports(
    files: Mapping[str, bytes], entry_points: Iterable[str], markers: Mapping[str, str]
) -> ReachableImports:
    """Return the imports of other distributions that the modules *entry_points* reach.

    *files* maps paths to contents.  Modules of the standard library are omitted.  As at run time,
    importing a module imports its parents.  An import is at most as certain as the import that
    leads to it: below a deferred or guarded import, all are deferred or guarded.  Conditions on
    Python and the platform are decided by *markers* (PEP 508).
    """
    walk = _Walk(_OwnModules(files), markers)
    for name in entry_points:
        walk.enter(name)
    return walk.finish()


@dataclass(slots=True)
class _OwnModules:
    """The distribution's own modules."""

    files: Mapping[str, bytes]
    modules: dict[str, ModuleFile] = field(default_factory=dict)  # by dotted name
    paths: dict[str, str] = field(default_factory=dict)
    namespaces: set[str] = field(default_factory=set)  # folders without __init__ (PEP 420)

    def __post_init__(self) -> None:
        for path in self.files:
            file = ModuleFile.of(path)
            if file is not None and (file.is_source or file.name not in self.modules):
                self.modules[file.name] = file
                self.paths[file.name] = path
        for name in self.paths:
            self.namespaces.update(_chain(name))
        self.namespaces -= self.paths.keys()

    def owns(self, name: str) -> bool:
        """Whether *name* is below one of the own packages, whether it exists or not."""
        return any(part in self.paths for part in _chain(name))


@dataclass(slots=True)
class _Walk:
    own: _OwnModules
    markers: Mapping[str, str]
    _standard: frozenset[str] = field(init=False)
    _queue: list[tuple[ImportTime, int, str]] = field(default_factory=list)
    _seen: dict[str, ImportTime] = field(default_factory=dict)
    _members: dict[tuple[str, str], ImportTime] = field(default_factory=dict)
    _statements: dict[str, tuple[Statement, ...]] = field(default_factory=dict)
    _imports: list[Import] = field(default_factory=list)
    _unread: list[UnparsedModule] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._standard = standard_library(Version(self.markers["python_full_version"]))

    def enter(self, name: str) -> None:
        """Start at a module."""
        if name in self.own.paths or name in self.own.namespaces:
            self._load(name, ImportTime.HARD)
        else:
            missing = Import(name=name, member=None, kind=ImportTime.HARD, path="", line=0, own=True)
            self._imports.append(missing)

    def finish(self) -> ReachableImports:
        """Finish the walk, most certain imports first, so that each module gets its most certain kind."""
        while self._queue:
            kind, _, module = heapq.heappop(self._queue)
            if kind == self._seen[module]:  # else it was read with a more certain kind
                for statement in self._read(module):
                    self._process(statement, module, max(kind, statement.kind))
        return ReachableImports(
            imports=tuple(sorted(dict.fromkeys(self._imports), key=lambda one: one.kind)),
            unread=tuple(self._unread),
        )

    def _load(self, name: str, kind: ImportTime) -> None:
        """Queue a module and its parents."""
        for module in _chain(name):
            if module in self.own.paths and self._seen.get(module, len(ImportTime)) > kind:
                self._seen[module] = kind
                heapq.heappush(self._queue, (kind, len(self._seen), module))

    def _process(self, statement: Statement, module: str, kind: ImportTime) -> None:
        """Process one statement of *module*, which runs as *kind* says."""
        base, member = statement.base, statement.member
        groups = [{name for name in group if not self._is_standard(name)} for group in statement.unless]
        if self._is_standard(base) or not all(groups):
            return  # the standard library has it, or has what it replaces
        # An import that runs only as a replacement may not run.
        within = max(kind, ImportTime.GUARDED) if groups else kind
        found = Import(
            name=base,
            member=member,
            kind=kind if all(group - self.own.paths.keys() for group in groups) else within,
            path=self.own.paths[module],
            line=statement.line,
            unless=tuple(frozenset(rest) for group in groups if (rest := group - self.own.paths.keys())),
        )
        self._load(base, within)
        if base in self.own.paths:
            self._load_member(base, member, within)
        elif base in self.own.namespaces and member is not None and f"{base}.{member}" in self.own.paths:
            self._load(f"{base}.{member}", within)
        elif self.own.owns(base):
            self._imports.append(replace(found, own=True))
        elif base not in self.own.namespaces:
            self._imports.append(found)
        elif member is not None:  # another distribution may have this portion of the namespace
            self._imports.append(replace(found, name=f"{base}.{member}", member=None))

    def _is_standard(self, name: str) -> bool:
        top = name.partition(".")[0]
        return top in self._standard and top not in self.own.paths

    def _load_member(self, base: str, member: str | None, kind: ImportTime) -> None:
        """Load what ``from base import member`` runs besides *base*: a submodule, or a lazy name."""
        if member is None:
            return
        if f"{base}.{member}" in self.own.paths:
            self._load(f"{base}.{member}", kind)
            return
        if self._members.get((base, member), len(ImportTime)) <= kind:
            return
        self._members[base, member] = kind
        for statement in self._read(base):
            if statement.lazy and statement.bound == member and statement.base != base:
                self._process(statement, base, kind)

    def _read(self, module: str) -> tuple[Statement, ...]:
        if module not in self._statements:
            path, file = self.own.paths[module], self.own.modules[module]
            self._statements[module] = ()
            if file.is_source:
                try:
                    self._statements[module] = read_statements(
                        self.own.files[path],
                        module,
                        is_package=file.is_package,
                        markers=self.markers,
                    )
                except SyntaxError as error:
                    self._unread.append(
                        UnparsedModule(path=path, line=error.lineno or 0, reason=error.msg or "")
                    )
        return self._statements[module]


def _chain(name: str) -> Iterator[str]:
    """Yield the modules that importing *name* runs: its parents, the outermost first, and itself."""
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
