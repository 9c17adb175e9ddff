"""Files that appeared, since a change, in the folders that it created."""

# Paths are strings here: a change of a whole stack has 30,000 of them.
# ruff: noqa: PTH112, PTH114

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colablock._common.fs import make_private
from colablock.environment.site import Site
from colablock.environment.snapshot import Installed
from colablock.transaction.file_moves import has_ancestor, listed_among, source_of
from colablock.transaction.history import Change

__all__ = ["Leftovers", "find_leftovers", "setting_aside"]

_CACHE = "/__pycache__/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """Files of no distribution in the folders that a change created.

    *caches* can be deleted.  *unknown* may be data of the user.  *beside* are in folders that
    existed before the change under the same path, and that the undo restores.
    """

    caches: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()


def find_leftovers(
    change: Change, site: Site, owned: Collection[str], since: Iterable[Installed]
) -> Leftovers:
    """Return the leftovers of *change* beside the files *owned*, which the undo removes anyway.

    *since* are the distributions that others have installed since, and that stay.
    """
    found = {path for path in _files_below(change.created) if path not in owned}
    if not found:
        return Leftovers()
    known = found | {source for path in found if (source := source_of(path)) is not None}
    staying = {path for one in since for path in listed_among(site, one, known)}
    found = {path for path in found if path not in staying and source_of(path) not in staying}
    before = _FoldersBefore.of(change)
    beside = {path for path in found if before.has(path.rpartition("/")[0])}
    # Bytecode in folders that existed before is of the interpreter's own starts, and is no change.
    caches = {path for path in found if _CACHE in path or path.endswith(".pyc")}
    return Leftovers(
        caches=frozenset(caches - beside),
        unknown=frozenset(found - beside - caches),
        beside=frozenset(beside - caches),
    )


@contextmanager
def setting_aside(
    paths: Collection[str], site: Site, into: Path, *, is_done: Callable[[], bool]
) -> Iterator[None]:
    """Copy *paths* of *site* to the new folder *into*, and remove the copies if the block fails.

    They stay if the change *is_done* nevertheless: they are then all that is left of these files.
    On the same file system the copies are hard links.  Raises OSError.
    """
    try:
        for path in sorted(paths):
            root = next(root for root in (site.data, *site.roots) if path.startswith(f"{root}/"))
            copy = into / os.path.relpath(path, root)
            make_private(copy.parent)
            _copy(path, str(copy))
        yield
    except BaseException:
        if paths and not is_done():
            shutil.rmtree(into, ignore_errors=True)
        raise


def _copy(path: str, copy: str) -> None:
    try:
        os.link(path, copy, follow_symlinks=False)
    except OSError:  # another file system, or one without hard links
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):  # the others, such as a socket, have no content
            shutil.copy2(path, copy, follow_symlinks=False)


def _files_below(created: Iterable[str]) -> Iterator[str]:
    """Yield the files and links below the folders *created*."""
    tops = frozenset(created)
    for top in tops:
        if not os.path.isdir(top) or os.path.islink(top) or has_ancestor(top, tops):
            continue
        for folder, folders, files in os.walk(top):
            yield from (f"{folder}/{name}" for name in files)
            yield from (f"{folder}/{name}" for name in folders if os.path.islink(f"{folder}/{name}"))


@dataclass(frozen=True, slots=True)
class _FoldersBefore:
    """The folders that the stash of a change shows to have existed before it."""

    stash: Path
    names: Mapping[str, str]  # stashed paths → their names in the stash
    parents: frozenset[str]

    @classmethod
    def of(cls, change: Change) -> _FoldersBefore:
        """Return the folders of *change*."""
        names = {path: name for name, path in change.stashed.items()}
        parents: set[str] = set()
        for path in names:
            parent = path.rpartition("/")[0]
            while parent and parent not in parents:
                parents.add(parent)
                parent = parent.rpartition("/")[0]
        return cls(change.stash, names, frozenset(parents))

    def has(self, folder: str) -> bool:
        """Whether *folder* existed before the change."""
        if folder in self.parents:
            return True
        top = folder
        while top and top not in self.names:
            top = top.rpartition("/")[0]
        stashed = f"{self.stash}/{self.names[top]}{folder[len(top) :]}" if top else ""
        return bool(top) and os.path.isdir(stashed) and not os.path.islink(stashed)
