"""The folders that an interpreter installs into."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path

from colablock._common.fs import open_locked, unusable
from colablock._common.ownership import fault_of, trusted_owners
from colablock._common.process import ChildFailed
from colablock._records import dataclass
from colablock.environment.probe import ask_interpreter
from colablock.errors import NotFound, Refused

__all__ = [
    "JOURNAL",
    "STATE",
    "Site",
    "SiteBounds",
    "check_state",
    "is_interrupted",
    "is_state_path",
    "is_unfinished",
    "python_words",
    "read_site",
]

STATE = ".colablock"
JOURNAL = "journal.json"

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The folders that an interpreter installs into, symbolic links resolved.

    On Debian and hosted notebooks *data* is ``/usr/local`` and *purelib*
    ``/usr/local/lib/python3.X/dist-packages``, whatever the prefix is.
    """

    python: str
    prefix: str
    purelib: str
    platlib: str
    scripts: str
    data: str
    is_venv: bool = False

    @property
    def state(self) -> Path:
        """The folder for the stage, the stash and the journal of a change, on the same mount as the site."""
        return Path(self.data) / STATE

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that a distribution may have files in."""
        return tuple(dict.fromkeys((self.data, self.purelib, self.platlib, self.scripts)))

    def holds(self, path: str) -> bool:
        """Whether *path* (absolute, its folder resolved) lies in one of the roots."""
        return any(path.startswith(root.rstrip(os.sep) + os.sep) for root in self.roots)


@dataclass(slots=True)
class SiteBounds:
    """Says which paths lie in a site or in its state folder.  A change has 30,000, so folders are cached."""

    site: Site
    _real: dict[str, str] = field(default_factory=dict)
    _held: dict[str, bool] = field(default_factory=dict)

    def in_site(self, path: str) -> bool:
        """Whether *path* is the path of a file in the site, outside of the state folder.

        It is absolute and normalised, and so is its folder with all symbolic links resolved.
        """
        folder, _, name = path.rpartition("/")
        if folder not in self._held:
            real = self._resolved(folder)
            self._held[folder] = bool(real) and self._is_held(f"{folder}/") and self._is_held(f"{real}/")
        return self._held[folder] and _is_name(name) and not is_state_path((name,))

    def in_state(self, path: str, *folder: str) -> bool:
        """Whether *path* lies in this *folder* of the state folder, also with symbolic links resolved."""
        above = os.path.join(self.site.data, STATE, *folder, "")  # noqa: PTH118 (hot: every file of a change)
        parent, _, name = path.rpartition("/")
        real = self._resolved(parent)
        return path.startswith(above) and f"{real}/".startswith(above) and _is_name(name)

    def _is_held(self, folder: str) -> bool:
        """Whether *folder*, which ends with a slash, is a root of the site or below one."""
        root = next((root for root in self.site.roots if folder.startswith(root.rstrip("/") + "/")), None)
        return root is not None and not is_state_path(folder[len(root) :].split("/"))

    def _resolved(self, folder: str) -> str:
        """Return *folder* with all links resolved; "" if it is not absolute and normalised."""
        if folder not in self._real:
            is_plain = folder.startswith("/") and not folder.startswith("//") and "\0" not in folder
            is_normal = is_plain and os.path.normpath(folder) == folder
            self._real[folder] = os.path.realpath(folder) if is_normal else ""
        return self._real[folder]


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "\0" not in name


def is_state_path(parts: Iterable[str]) -> bool:
    """Whether one of the *parts* of a path is the name of the state folder, as any file system may fold it.

    Some file systems ignore case, the Unicode form, or characters that are not visible.
    """
    return any(_folded(part) == STATE for part in parts)


def _folded(name: str) -> str:
    if not name.isascii():
        import unicodedata  # noqa: PLC0415 - before each apply, and hardly ever needed

        name = "".join(one for one in name if unicodedata.category(one) != "Cf")
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return name.lower().rstrip(" .")


def check_state(site: Site) -> None:
    """Raise Refused if other users can change the state folder of *site*, or put one there.

    Its journal and history say which files to move.  It must be a folder, not a
    link.  The owner of the site is trusted, and so is everybody who can write to
    the site: they can change the code in it, too.
    """
    state = site.state
    try:
        data = os.stat(site.data)  # noqa: PTH116
        found = [(str(state), os.lstat(state))]
        if stat.S_ISDIR(found[0][1].st_mode):
            found += _inner(state) + _inner(state / "changes")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Refused(
            f"`{error.filename or state}` cannot be read: {error.strerror}", hint="Correct its permissions"
        ) from error
    owners = trusted_owners() | {data.st_uid}
    for path, status in found:
        why = fault_of(status, owners, allowed=data.st_mode & _WRITABLE)
        if stat.S_ISLNK(status.st_mode):
            why = "is a symbolic link"
        elif path == str(state) and not stat.S_ISDIR(status.st_mode):
            why = "is not a folder"
        if why:
            raise Refused(
                f"the state of `{site.prefix}` is not used: `{path}` {why}",
                hint="If you trust its content, make yourself the owner (`chown`) and remove the write"
                " permission of others (`chmod -R go-w`). Otherwise move it away: that ends the history",
            )


def _inner(folder: Path) -> list[tuple[str, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.path, entry.stat(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return []


def is_unfinished(prefix: str, purelib: str) -> bool:
    """Whether a change of an environment with these two folders was interrupted, and has left something.

    What the change of another process has there does not count, except for its journal.
    """
    return any(map(_has_leftovers, _data_folders(prefix, purelib)))


def is_interrupted(prefix: str, purelib: str) -> bool:
    """Whether a change of an environment with these two folders has begun, and has not ended.

    What the last one has left to delete does not count.
    """
    return any((folder / STATE / JOURNAL).exists() for folder in _data_folders(prefix, purelib))


def _data_folders(prefix: str, purelib: str) -> set[Path]:
    return {Path(prefix), *Path(purelib).parents[:4]}  # one of these is the data folder


def _has_leftovers(data: Path) -> bool:
    try:
        found = set(os.listdir(data / STATE))  # noqa: PTH208 - every no-op looks here
    except (FileNotFoundError, NotADirectoryError):
        return False
    if JOURNAL in found:
        return True
    if found == {"changes"}:
        changes = data / STATE / "changes"
        if all((changes / name / "record.json").exists() for name in os.listdir(changes)):  # noqa: PTH208
            return False
    held = open_locked(data, wait=False)
    if held is not None:
        os.close(held)
    return held is not None


def python_words(python: str, prefix: str) -> tuple[str, ...]:
    """Return the option that names the environment at *prefix* to a command; nothing if it is this one."""
    is_here = os.path.realpath(prefix) == os.path.realpath(sys.prefix)
    return () if is_here else ("--python", python)


def read_site(python: str | Path, environ: Mapping[str, str], *, timeout: float = 60) -> Site:
    """Return the site that *python* reports.  Raises NotFound or Unmet if it does not run."""
    try:
        facts = ask_interpreter(python, environ, timeout=timeout, distributions=False)["facts"]
    except ChildFailed as error:
        message = f"the interpreter `{python}` does not run: {error}"
        raise unusable(error.__cause__, message, otherwise=NotFound) from error
    kinds = ("purelib", "platlib", "scripts", "data")
    return Site(
        python=facts["executable"],
        prefix=os.path.realpath(facts["prefix"]),
        is_venv=facts["prefix"] != facts["base_prefix"],
        **{kind: os.path.realpath(facts["paths"][kind]) for kind in kinds},
    )
