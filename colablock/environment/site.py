"""The folders that an interpreter installs into."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from colablock._common.process import ChildFailed
from colablock.environment.probe import ask_interpreter
from colablock.errors import NotFound

__all__ = ["JOURNAL", "STATE", "Site", "SiteBounds", "is_state_path", "is_unfinished", "read_site"]

STATE = ".colablock"
JOURNAL = "journal.json"


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
    """Says which paths lie in a site or in its state folder.  Resolved folders are cached."""

    site: Site
    _real: dict[str, str] = field(default_factory=dict)

    def in_site(self, path: str) -> bool:
        """Whether *path* is the path of a file in the site, outside of the state folder.

        It is absolute and normalised, and so is its folder with all symbolic links resolved.
        """
        return self._is_held(path) and self._is_held(self._resolved(path))

    def in_state(self, path: str, *folder: str) -> bool:
        """Whether *path* lies in this *folder* of the state folder, also with symbolic links resolved."""
        above = os.path.join(self.site.data, STATE, *folder, "")  # noqa: PTH118 (hot: every file of a change)
        return path.startswith(above) and self._resolved(path).startswith(above)

    def _is_held(self, path: str) -> bool:
        root = next((root for root in self.site.roots if path.startswith(root.rstrip("/") + "/")), None)
        return root is not None and not is_state_path(path[len(root) :].split("/"))

    def _resolved(self, path: str) -> str:
        """Return *path* with the links of its folder resolved; "" if it is not absolute and normalised."""
        folder, _, name = path.rpartition("/")
        is_plain = path.startswith("/") and not path.startswith("//") and "\0" not in path
        if not is_plain or os.path.normpath(path) != path:
            return ""
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder or "/").rstrip("/")
        return f"{self._real[folder]}/{name}"


def is_state_path(parts: Iterable[str]) -> bool:
    """Whether one of the *parts* of a path is the name of the state folder, as any file system may fold it.

    Some file systems ignore case, the Unicode form, or characters that are not visible.
    """
    return any(_folded(part) == STATE for part in parts)


def _folded(name: str) -> str:
    if not name.isascii():
        name = "".join(one for one in name if unicodedata.category(one) != "Cf")
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return name.lower().rstrip(" .")


def is_unfinished(prefix: str, purelib: str) -> bool:
    """Whether an interrupted change left a journal in an environment with these two folders."""
    folders = {Path(prefix), *Path(purelib).parents[:4]}  # one of these is the data folder
    return any((folder / STATE / JOURNAL).exists() for folder in folders)


def read_site(python: str | Path, environ: Mapping[str, str], *, timeout: float = 60) -> Site:
    """Return the site that *python* reports.  Raises NotFound if it does not run."""
    try:
        facts = ask_interpreter(python, environ, timeout=timeout, distributions=False)["facts"]
    except ChildFailed as error:
        raise NotFound(f"the interpreter `{python}` does not run: {error}") from error
    kinds = ("purelib", "platlib", "scripts", "data")
    return Site(
        python=facts["executable"],
        prefix=os.path.realpath(facts["prefix"]),
        is_venv=facts["prefix"] != facts["base_prefix"],
        **{kind: os.path.realpath(facts["paths"][kind]) for kind in kinds},
    )
