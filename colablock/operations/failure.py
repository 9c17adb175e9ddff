"""Explain a failure of any program that trains, by what is installed where it ran."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import expanded
from colablock._common.limits import CRASH_TEXT
from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import installed_versions, snapshot_of
from colablock.errors import InvalidInput
from colablock.operations.session import Session
from colablock.runtimes.catalog import recorded_distributions, runtime_names
from colablock.training.failures import explain_text
from colablock.training.runs.crash import Explanation
from colablock.training.runs.crash_facts import found_matrices
from colablock.transaction.apply_record import load_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from colablock.transaction.apply_record import ApplyRecord

__all__ = ["explain_failure"]

_STACK = {"torch", "transformers", "peft", "trl", "accelerate", "datasets"}  # where a program trains
# A folder of installed packages in a path, of Linux or of Windows.  Its bounds keep a hostile text cheap.
_PACKAGE_FOLDER = re.compile(
    r"""(?:~|\b[A-Za-z]:)?(?:[/\\][^/\\\n"'`()\[\]:;,<>|]{1,120}){1,30}?[/\\](?:site|dist)-packages(?=[/\\])"""
)
_MAX_FOLDERS = 4  # that are looked at


def explain_failure(
    session: Session, text: str, *, python: str | None = None, is_here: bool = False
) -> Explanation:
    """Return why the process that wrote *text*, a traceback or a log, failed.

    *python* is the interpreter that it ran in, by default the one of the environment that the text
    names, or this one if it has a training stack, else that of the last apply.  *is_here* tells that
    this process wrote it.  Uses no network.  Raises NotFound, InvalidInput if *python* is no interpreter.
    """
    records = list(load_all(session.home))
    place = _place_of(text, records, python) if not is_here or python is not None else _Place(_here())
    executable = Path(sys.executable)
    versions = place.versions
    if place.python is not None:
        snapshot = snapshot_of(place.python, environ=session.environ, accelerator=Accelerator())
        versions = {str(name): one.version for name, one in snapshot.installed.items()}
        executable = Path(snapshot.python)
    known = [one for one in records if _is_same(one.python, executable)] if place.is_applied else []
    applied = known[:1]
    return explain_text(
        text,
        versions=versions,
        matrices=found_matrices(session.environ),
        applied=applied[0].name if applied else None,
        source=applied[0].source if applied else "",
        is_intact=any(one.pins and one.pins.items() <= versions.items() for one in applied),
        is_guess=place.is_guess,
        elsewhere=place.elsewhere,
        real=_projects_of_an_image(session),
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a program ran: its *versions*, or the interpreter *python* that has them.

    *is_guess* tells that nothing says so, *elsewhere* is the folder of its packages if it is not on
    this machine, and *is_applied* tells that the interpreter may be one that a matrix was applied to.
    """

    versions: Mapping[str, str]
    python: str | None = None
    is_guess: bool = False
    is_applied: bool = True
    elsewhere: str = ""


def _place_of(text: str, records: Sequence[ApplyRecord], python: str | None) -> _Place:
    """Return where the program that wrote *text* ran: in *python*, where its files are, or most likely."""
    here = _here()
    if python is not None:
        return _Place({}, python)
    standing = [one for one in records if Path(one.python).is_file()]
    for one in standing:
        if f"{one.prefix.rstrip('/')}/" in text and one.prefix != sys.prefix:
            return _Place({}, one.python)
    folders = _package_folders(text)
    if folders:
        if not {*folders}.isdisjoint(sys.path):
            return _Place(here)
        versions = _versions(folders)
        if _STACK.isdisjoint(versions):  # a path of another machine
            return _Place({}, is_applied=False, elsewhere=folders[-1])
        return _Place(versions, is_applied=False)
    if f"{sys.prefix}/" in text or not _STACK.isdisjoint(here):
        return _Place(here)
    if any(_is_same(one.python, Path(sys.executable)) for one in standing):
        return _Place(here)
    if standing:
        return _Place({}, standing[0].python, is_guess=True)
    return _Place({})  # the environment of a tool has nothing to do with the program


def _here() -> dict[str, str]:
    return _versions(sys.path)


def _versions(folders: Iterable[str]) -> dict[str, str]:
    return {str(name): version for name, version in installed_versions(folders).items()}


def _package_folders(text: str) -> list[str]:
    """Return the folders of installed packages that the frames of *text* name, the last ones."""
    named = dict.fromkeys(found[0] for found in _PACKAGE_FOLDER.finditer(text[-CRASH_TEXT:]))
    found: list[str] = []
    for one in named:
        with suppress(InvalidInput):  # the home folder is not known
            found.append(str(expanded(one, "the text")))
    return found[-_MAX_FOLDERS:]


def _projects_of_an_image(session: Session) -> Iterator[str]:
    """Yield the projects of the newest recorded runtime."""
    for name in runtime_names(environ=session.environ)[-1:]:
        yield from (one.spelled for one in recorded_distributions(name, environ=session.environ))


def _is_same(one: str, other: Path) -> bool:
    """Whether two interpreters have the same folder; links to a base interpreter are not followed."""
    return Path(one).parent == other.parent
