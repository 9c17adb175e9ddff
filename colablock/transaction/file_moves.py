"""Plan the file moves of a change: the operations of its journal."""

# Paths are strings here: a change of a whole stack has 30,000 of them, and Path objects would take seconds.
# ruff: noqa: PTH112, PTH114, PTH116, PTH118, PTH120, PTH208

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from heapq import heapify, heappop, heappush
from itertools import chain
from pathlib import Path

from colablock._records import dataclass
from colablock.environment.record import readable_rows, recorded_paths
from colablock.environment.removable import own_files, removable_rows, removal_hint
from colablock.environment.site import Site, is_state_path
from colablock.environment.snapshot import Installed
from colablock.errors import Refused
from colablock.transaction.disk_operations import Operation, OperationKind

__all__ = [
    "StagedTree",
    "has_ancestor",
    "listed_among",
    "moves_back",
    "moves_in",
    "moves_out",
    "owned_files",
    "placed_among",
    "removable_folders",
    "source_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedTree:
    """A staged prefix and the destinations of its folders, the most specific first."""

    folder: Path
    places: tuple[tuple[str, str], ...]  # (staged folder, folder of the site)


@dataclass(slots=True)
class _Folders:
    """Caches the content of folders and resolved paths."""

    site: Site
    _files: dict[str, frozenset[str]] = field(default_factory=dict)
    _real: dict[str, str] = field(default_factory=dict)
    _held: dict[str, bool] = field(default_factory=dict)

    def files(self, folder: str) -> frozenset[str]:
        """Return the names of the files and links in *folder*, without its subfolders."""
        if folder not in self._files:
            try:
                with os.scandir(folder) as entries:
                    found = frozenset(one.name for one in entries if not one.is_dir(follow_symlinks=False))
            except (FileNotFoundError, NotADirectoryError):
                found = frozenset()
            self._files[folder] = found
        return self._files[folder]

    def resolve(self, path: str) -> str:
        """Return *path* with the symbolic links of its folder resolved, but not its own."""
        folder, _, name = path.rpartition("/")
        return f"{self._resolved(folder)}/{name}"

    def holds(self, path: str) -> bool:
        """Return whether *path* (resolved) is in the site; computed once for each folder."""
        folder = path.rpartition("/")[0]
        if folder not in self._held:
            below = folder[len(self.site.data) :].split("/")
            self._held[folder] = self.site.holds(f"{folder}/") and not is_state_path(below)
        return self._held[folder]

    def _resolved(self, folder: str) -> str:
        """Return *folder* (normalised) with all links resolved; known parents are not resolved again."""
        if folder and folder not in self._real:
            parent, _, name = folder.rpartition("/")
            above = self._resolved(parent)
            path = f"{above}/{name}"
            self._real[folder] = os.path.realpath(path).rstrip("/") if os.path.islink(path) else path
        return self._real.get(folder, folder)


def owned_files(
    site: Site, removed: Sequence[Installed], staying: Iterable[Installed], *, left_over: bool = True
) -> frozenset[str]:
    """Return the files to remove with *removed*: recorded files that no *staying* one lists, and bytecode.

    With *left_over*, this includes bytecode in the same folders whose source
    does not exist.  Raises Refused if a distribution has no RECORD or lists
    files outside of the site.
    """
    folders = _Folders(site)
    owned: set[str] = set()
    for installed in removed:
        owned.update(_recorded(installed, folders))
    names = frozenset(map(os.path.basename, owned))
    for installed in staying:
        owned.difference_update(_listed(installed, names, folders))
    return frozenset(owned | set(_bytecode(owned, folders, left_over=left_over)))


def listed_among(site: Site, installed: Installed, paths: Collection[str]) -> frozenset[str]:
    """Return those of *paths* (absolute, folders resolved) that *installed* lists."""
    names = frozenset(map(os.path.basename, paths))
    return frozenset(_listed(installed, names, _Folders(site))).intersection(paths)


def placed_among(paths: Iterable[str], placed: Collection[str]) -> frozenset[str]:
    """Return the *paths* that are *placed* or in a placed folder, and the bytecode of such sources."""
    is_below = _below(placed)

    def is_placed(path: str) -> bool:
        return path in placed or is_below(path)

    return frozenset(path for path in paths if is_placed(path) or is_placed(source_of(path) or path))


def moves_out(
    site: Site,
    owned: frozenset[str],
    stash: Path,
    *,
    may_go: Callable[[str], bool] = lambda _folder: True,
) -> list[Operation]:
    """Return the moves of the files *owned* to *stash*: whole folders without other files, else single files.

    A folder is moved as a whole only if *may_go* is true for it.
    """
    whole = frozenset(filter(may_go, _whole_folders(site, owned)))
    is_below = _below(whole)
    covered = [path for path in sorted(owned) if not is_below(path)]
    tops = [path for path in sorted(whole) if not is_below(path)]
    return [
        Operation(kind=OperationKind.OUT, source=path, destination=str(stash / f"{number}"))
        for number, path in enumerate([*tops, *covered])
    ]


def moves_in(tree: StagedTree, outs: Sequence[Operation], stash: Path) -> list[Operation]:
    """Return the moves of a staged tree to the site: whole folders if they are new, else single files.

    An existing file of no removed distribution is moved to the stash first, so
    that an undo restores it.
    """
    placement = _Placement(tree=tree, gone={move.source for move in outs}, stash=stash, count=len(outs))
    placement.fill_all()
    return placement.ordered()


def removable_folders(
    created: Iterable[str], outs: Sequence[Operation], needed: Iterable[str]
) -> list[Operation]:
    """Return the removals of the *created* folders, and their subfolders, that are empty after *outs*.

    A folder that contains one of the paths *needed* stays.
    """
    gone = {move.source for move in outs}
    needed = tuple(needed)
    operations = []
    for top in created:
        if not os.path.isdir(top) or os.path.islink(top) or top in gone or has_ancestor(top, gone):
            continue
        for folder, folders, files in os.walk(top, topdown=False):
            inside = {f"{folder}/{name}" for name in (*folders, *files)}
            is_needed = any(path == folder or path.startswith(f"{folder}/") for path in needed)
            if folder not in gone and inside <= gone and not is_needed and not has_ancestor(folder, gone):
                mode = os.stat(folder).st_mode & 0o7777
                operations.append(Operation(kind=OperationKind.RMDIR, source=folder, mode=mode))
                gone.add(folder)
    return operations


def moves_back(
    old: Path,
    stashed: Mapping[str, str],
    before: Sequence[Operation],
    stash: Path,
    *,
    beside: StagedTree | None = None,
) -> list[Operation]:
    """Return the moves from the stash *old* to the original paths, and those of the staged tree *beside*.

    *before* are the operations that run first.  Files of others at these paths
    are moved to the new *stash*.  Of a path in both, the stashed file is moved.
    """
    placement = _Placement(
        tree=beside or StagedTree(folder=old, places=()),
        gone={operation.source for operation in before},
        stash=stash,
        count=sum(operation.kind is OperationKind.OUT for operation in before),
    )
    for name, path in stashed.items():
        placement.put(f"{old}/{name}", path)
    placement.fill_all()
    return placement.ordered()


@dataclass(slots=True)
class _Placement:
    tree: StagedTree
    gone: set[str]
    stash: Path
    count: int
    operations: list[Operation] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    placed: dict[str, str] = field(default_factory=dict)  # destinations → sources

    def fill_all(self) -> None:
        """Move the content of the tree into the site."""
        for staged, destination in self.tree.places:
            if os.path.isdir(staged):
                self.fill(staged, destination)

    def fill(self, staged: str, destination: str) -> None:
        """Move the content of the folder *staged* into *destination*."""
        places = [place for place, _ in self.tree.places]
        with os.scandir(staged) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                target = f"{destination}/{entry.name}"
                if entry.path in places:
                    continue  # has another destination
                if any(place.startswith(entry.path + "/") for place in places):
                    self.fill(entry.path, target)
                else:
                    self.put(entry.path, target)

    def ordered(self) -> list[Operation]:
        """Return the operations, moves out first."""
        return sorted(self.operations, key=lambda operation: operation.kind is not OperationKind.OUT)

    def put(self, staged: str, target: str) -> None:
        """Move the file or folder *staged* to *target*; merge it into an existing folder."""
        if os.path.isdir(staged) and not os.path.islink(staged) and self._is_folder(target):
            self.fill(staged, target)
        elif self._coming(target) is None:
            self._place(staged, target)

    def _coming(self, path: str) -> str | None:
        """Return the source of what an earlier move puts at *path*; None if there is none."""
        if path in self.placed:
            return self.placed[path]
        if not self.placed or not has_ancestor(path, self.placed):
            return None
        top = path
        while top not in self.placed:
            top = top.rpartition("/")[0]
        source = self.placed[top] + path[len(top) :]
        return source if os.path.lexists(source) else None

    def _place(self, staged: str, target: str) -> None:
        self.placed[target] = staged
        self._make(os.path.dirname(target))
        if self._remains(target):
            if os.path.isdir(target) and not os.path.islink(target):
                raise Refused(f"`{target}` is a folder, but the plan has a file with this path")
            self._stash(target)
        for cached in self._bytecode_of(target):  # also of a source that no longer exists
            self._stash(cached)
        self.operations.append(Operation(kind=OperationKind.IN, source=staged, destination=target))

    def _bytecode_of(self, path: str) -> list[str]:
        cache = os.path.join(os.path.dirname(path), "__pycache__")
        if not path.endswith(".py") or not os.path.isdir(cache):
            return []
        found = (os.path.join(cache, name) for name in os.listdir(cache))
        return sorted(one for one in found if source_of(one) == path and self._remains(one))

    def _stash(self, path: str) -> None:
        destination = str(self.stash / f"{self.count}")
        self.operations.append(Operation(kind=OperationKind.OUT, source=path, destination=destination))
        self.gone.add(path)
        self.count += 1

    def _make(self, folder: str) -> None:
        if self._is_folder(folder):
            return
        self._make(os.path.dirname(folder))
        self.operations.append(Operation(kind=OperationKind.MKDIR, destination=folder))
        self.made.add(folder)

    def _remains(self, path: str) -> bool:
        return os.path.lexists(path) and path not in self.gone and not has_ancestor(path, self.gone)

    def _is_folder(self, path: str) -> bool:
        """Whether *path* is a folder when the next operation runs."""
        if path in self.made or (os.path.isdir(path) and self._remains(path)):
            return True
        coming = self._coming(path)
        return coming is not None and os.path.isdir(coming) and not os.path.islink(coming)


def _recorded(installed: Installed, folders: _Folders) -> Iterator[str]:
    rows, why = removable_rows(installed.path)
    if why is not None or installed.path is None:
        raise Refused(
            f"`{installed.name}` {installed.version} cannot be removed: {why}", hint=removal_hint(installed)
        )
    for path in chain(recorded_paths(os.path.dirname(installed.path), rows), own_files(installed.path)):
        folder, _, name = path.rpartition("/")
        if name not in folders.files(folder) and path != installed.path:
            continue
        resolved = folders.resolve(path)
        if not folders.holds(resolved):
            raise Refused(
                f"`{installed.name}` {installed.version} lists `{path}`, outside of `{folders.site.data}`"
            )
        yield resolved


def _listed(installed: Installed, names: frozenset[str], folders: _Folders) -> Iterator[str]:
    """Yield the paths that a staying distribution lists, only those with one of the file *names*."""
    if installed.path is None:
        return
    rows = readable_rows(Path(installed.path))
    alike = [row for row in rows if row.path.rpartition("/")[2] in names]
    for path in recorded_paths(os.path.dirname(installed.path), alike):
        yield folders.resolve(path)


def source_of(path: str) -> str | None:
    """Return the source file of the bytecode file *path* (PEP 3147), or None for another file."""
    if not path.endswith(".pyc"):
        return None
    folder, _, name = path.rpartition("/")
    parent, _, cache = folder.rpartition("/")
    return f"{parent}/{name.partition('.')[0]}.py" if cache == "__pycache__" else None


def _bytecode(owned: Iterable[str], folders: _Folders, *, left_over: bool) -> Iterator[str]:
    """Yield the bytecode of each owned source and, with *left_over*, bytecode without source (PEP 3147)."""
    stems: dict[str, set[str]] = {}
    for path in owned:
        if path.endswith(".py"):
            folder, _, name = path.rpartition("/")
            stems.setdefault(folder, set()).add(name[:-3])
    for folder, own in stems.items():
        sources = folders.files(folder)
        for name in folders.files(f"{folder}/__pycache__"):
            stem = name.partition(".")[0]
            is_left = left_over and f"{stem}.py" not in sources and folder not in folders.site.roots
            if name.endswith(".pyc") and (stem in own or is_left):
                yield f"{folder}/__pycache__/{name}"


def _whole_folders(site: Site, owned: frozenset[str]) -> frozenset[str]:
    """Return the folders with only owned files, but no root of the site and no direct child of data."""
    whole: set[str] = set()
    within: dict[str, set[str]] = {}
    for path in owned:
        within.setdefault(path.rpartition("/")[0], set()).add(path)
    pending = [(-len(folder), folder) for folder in within]
    heapify(pending)
    while pending:
        _, folder = heappop(pending)  # the longest path first, since a parent depends on its children
        if folder in whole or _is_fixed(site, folder) or not _is_whole(folder, within.get(folder, set())):
            continue
        whole.add(folder)
        parent = os.path.dirname(folder)
        within.setdefault(parent, set()).add(folder)
        heappush(pending, (-len(parent), parent))
    return frozenset(whole)


def _is_whole(folder: str, within: set[str]) -> bool:
    with os.scandir(folder) as entries:
        return all(entry.path in within or _is_empty_tree(entry) for entry in entries)


def _is_empty_tree(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir(follow_symlinks=False):
        return False
    with os.scandir(entry.path) as entries:
        return all(_is_empty_tree(child) for child in entries)


def _is_fixed(site: Site, folder: str) -> bool:
    return folder in site.roots or os.path.dirname(folder) == site.data or not site.holds(folder)


def has_ancestor(path: str, folders: Collection[str]) -> bool:
    """Return whether one of *folders* is an ancestor of *path* (absolute)."""
    parent = path.rpartition("/")[0]
    while parent:
        if parent in folders:
            return True
        parent = parent.rpartition("/")[0]
    return False


def _below(folders: Collection[str]) -> Callable[[str], bool]:
    """Return a cached `has_ancestor` for *folders*, which must not change meanwhile."""
    known: dict[str, bool] = {}

    def is_below(path: str) -> bool:
        parent = path.rpartition("/")[0]
        if parent not in known:
            known[parent] = parent in folders or has_ancestor(parent, folders)
        return known[parent]

    return is_below
