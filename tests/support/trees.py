"""Whole folders to compare: paths, bytes, modes and links."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.support.timing import PATIENCE

__all__ = [
    "Listing",
    "StrictListing",
    "Tree",
    "differences",
    "installed_listing",
    "listing",
    "timeless",
    "tree_digest",
]

Listing = dict[str, tuple[str, int, str | bytes]]
StrictListing = dict[str, tuple[object, ...]]


def listing(root: Path) -> Listing:
    """Return everything below *root*: kind, permissions, and the content or the target of a link.

    Waits for the background process that deletes the trash of a change, in *root* or a folder in it.
    """
    for state in (root / ".colablock", *root.glob("*/.colablock")):
        _wait_for_deletion(state)
    return dict(_listed(str(root), ""))


def _listed(folder: str, prefix: str) -> Iterator[tuple[str, tuple[str, int, str | bytes]]]:
    # Hundreds of thousands of paths are listed: each `Path` would take longer than the system call.
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        path = prefix + entry.name
        status = entry.stat(follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            yield path, ("link", mode, str(Path(entry.path).readlink()))
        elif stat.S_ISDIR(status.st_mode):
            yield path, ("folder", mode, "")
            yield from _listed(entry.path, f"{path}/")
        else:
            yield path, ("file", mode, Path(entry.path).read_bytes())


def _is_deleting(paths: Collection[str]) -> bool:
    """Whether a background process still deletes the trash of a change."""
    states = [path for path in paths if path.rpartition("/")[2] == ".colablock"]
    inside = {state: [path for path in paths if path.startswith(f"{state}/")] for state in states}
    return any(not below or f"{state}/trash" in below for state, below in inside.items())


def _wait_for_deletion(state: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while (state / "trash").exists() or _is_empty(state):
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError:  # there is none, or it was deleted as we looked
        return False


def installed_listing(root: Path) -> Listing:
    """Return the listing without the stashes that colablock keeps for a rollback."""
    return {path: what for path, what in listing(root).items() if ".colablock" not in Path(path).parts}


def timeless(path: str, content: bytes) -> bytes:
    """Return *content*, of bytecode without the time of its source at bytes 8 to 11 (PEP 552).

    Proofs write the bytecode of what a change has installed, and each apply sets other times.
    """
    return content[:8] + content[12:] if path.endswith(".pyc") else content


class Tree:
    """The folder *root*, listed repeatedly.  A file is read again only if its inode has changed.

    Stricter than `listing`: it has owners, and the times of all but folders.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[tuple[int, int, int], bytes] = {}

    def listing(self) -> StrictListing:
        """Return the state of each path, without the fields of a change record that differ each time."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found = dict(self._below(str(self.root), ""))
            except FileNotFoundError:  # it was deleted as we looked
                if time.monotonic() > deadline:
                    raise
            else:
                if not _is_deleting(found) or time.monotonic() > deadline:
                    return found
            time.sleep(0.05)

    def _below(self, folder: str, prefix: str) -> Iterator[tuple[str, tuple[object, ...]]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                status = entry.stat(follow_symlinks=False)
                owned = (status.st_mode, status.st_uid, status.st_gid)
                if stat.S_ISDIR(status.st_mode):
                    yield path, owned
                    yield from self._below(entry.path, f"{path}/")
                elif stat.S_ISLNK(status.st_mode):
                    yield path, (*owned, str(Path(entry.path).readlink()), status.st_mtime_ns)
                elif entry.name == "record.json":
                    yield path, (*owned, _without_process(self._bytes(entry.path, status)))
                else:
                    yield path, (*owned, self._bytes(entry.path, status), status.st_mtime_ns)

    def _bytes(self, path: str, status: os.stat_result) -> bytes:
        key = (status.st_ino, status.st_ctime_ns, status.st_size)
        if key not in self._known:
            self._known[key] = Path(path).read_bytes()
        return self._known[key]


def tree_digest(root: Path) -> str:
    """Return the SHA-256 of everything below *root*: paths, bytes, modes, owners, links, file times."""
    return hashlib.sha256(repr(sorted(Tree(root).listing().items())).encode()).hexdigest()


def differences(expected: StrictListing, found: StrictListing) -> list[str]:
    """Return the differences of *found* from *expected*, a line for each path."""
    paths = sorted(expected.keys() | found.keys())
    return [
        f"{path!r}: {expected.get(path)} became {found.get(path)}"
        for path in paths
        if expected.get(path) != found.get(path)
    ]


def _without_process(record: bytes) -> str:
    facts = json.loads(record)
    return json.dumps(
        {key: value for key, value in facts.items() if key not in {"pid", "when"}}, sort_keys=True
    )
