"""The folders that an interpreter installs into."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from colablock._common.process import ChildFailed
from colablock.environment.probe import ask_interpreter
from colablock.errors import NotFound

__all__ = ["JOURNAL", "STATE", "Site", "is_unfinished", "read_site"]

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
