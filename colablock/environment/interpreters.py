"""Find the interpreters on this machine that an isolated environment can be made with, or fetch one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from colablock._common.child_environment import absolute_path
from colablock._common.process import ChildFailed, run_uv
from colablock._common.reporter import Reporter
from colablock._records import dataclass
from colablock._vendor.packaging.version import Version
from colablock.environment.probe import ask_interpreter, is_no_interpreter
from colablock.errors import NotFound, Unmet

__all__ = [
    "FoundInterpreters",
    "Interpreter",
    "fetch_interpreter",
    "find_interpreters",
    "look_for_interpreters",
    "standalone_interpreter",
]

_NAME = re.compile(r"python(3(\.\d+)?)?")
_TIMEOUT = 20.0  # seconds; a cold start on a busy notebook takes a few


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A working CPython.  *source* is ``running``, ``path``, ``pyenv``, ``uv`` or ``fetched``."""

    path: str  # of the base interpreter, never of one in a virtual environment
    version: str  # full, such as "3.12.11"
    has_headers: bool
    implementation: str = "cpython"
    source: str = "path"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundInterpreters:
    """The working interpreters, newest first, and a line for each broken one."""

    interpreters: tuple[Interpreter, ...] = ()
    broken: tuple[str, ...] = ()


def find_interpreters(environ: Mapping[str, str]) -> list[Interpreter]:
    """Return every CPython on this machine, newest first; each real file once."""
    return list(look_for_interpreters(environ).interpreters)


def look_for_interpreters(environ: Mapping[str, str]) -> FoundInterpreters:
    """Return what `find_interpreters` returns, and the broken interpreters.

    It searches the base of the running interpreter, PATH, the versions of pyenv and
    the interpreters that uv manages.
    """
    candidates = _unique(_candidates(environ))
    with ThreadPoolExecutor(max_workers=min(8, len(candidates))) as pool:
        answers = list(pool.map(lambda item: _ask(item[0], item[1], environ), candidates))
    interpreters: dict[str, Interpreter] = {}
    for answer in answers:
        if isinstance(answer, Interpreter) and answer.implementation == "cpython":
            interpreters.setdefault(os.path.realpath(answer.path), answer)
    newest_first = sorted(interpreters.values(), key=lambda found: Version(found.version), reverse=True)
    return FoundInterpreters(
        interpreters=tuple(newest_first),
        broken=tuple(answer for answer in answers if isinstance(answer, str)),
    )


def fetch_interpreter(
    version: str, environ: Mapping[str, str], reporter: Reporter | None = None
) -> Interpreter:
    """Return a CPython of *version* (``3.12`` or ``3.12.11``), which uv downloads and keeps.

    ``UV_PYTHON_INSTALL_MIRROR`` and ``UV_PYTHON_INSTALL_DIR`` apply.  Raises Unmet with
    the message of uv if the download fails.
    """
    (reporter or Reporter()).stage(f"Fetching Python {version}")
    try:
        run_uv(
            ["python", "install", "--no-bin", version],
            environ=environ,
            doing=f"fetch Python {version}",
            downloads=True,
        )
    except Unmet as error:
        raise Unmet(error.message, hint=_fetch_hint(environ)) from error
    found = run_uv(
        ["python", "find", "--managed-python", "--no-project", version],
        environ=environ,
        doing=f"find the Python {version} that it fetched",
    )
    answer = _ask(found.strip(), "fetched", environ)
    if not isinstance(answer, Interpreter):
        raise NotFound(answer or f"the Python {version} that uv downloaded does not run")
    return answer


def standalone_interpreter(
    short: str, environ: Mapping[str, str], reporter: Reporter | None = None
) -> Interpreter:
    """Return a CPython of version *short* that can be moved: one that uv manages, else one that it fetches.

    Raises Unmet with the message of uv if the download fails.
    """
    for path in _managed_by_uv(environ):
        if Path(path).name == f"python{short}":
            answer = _ask(path, "uv", environ)
            if isinstance(answer, Interpreter):
                return answer
    return fetch_interpreter(short, environ, reporter)


def _fetch_hint(environ: Mapping[str, str]) -> str | None:
    if environ.get("UV_PYTHON_INSTALL_MIRROR"):
        return "`UV_PYTHON_INSTALL_MIRROR` sets where Python is downloaded from"
    return None


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield paths with their source, the best source first: an interpreter found twice keeps the first."""
    yield getattr(sys, "_base_executable", None) or sys.executable, "running"
    for path in _pyenv(environ):
        yield path, "pyenv"
    # A shim of pyenv is a shell script that starts one of its versions, or none.  Each takes 0.25 s.
    shims = os.path.realpath(_pyenv_root(environ) / "shims")
    for folder in absolute_path(environ).split(os.pathsep):
        if os.path.realpath(folder) == shims:
            continue
        for name in _names(folder):
            yield str(Path(folder, name)), "path"
    for path in _managed_by_uv(environ):
        yield path, "uv"


def _unique(candidates: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return *candidates* with each real file once.  The real file of a shim is the shim itself."""
    seen: dict[str, tuple[str, str]] = {}
    for path, source in candidates:
        # The python of a virtual environment links to its base, and the base is wanted.
        seen.setdefault(os.path.realpath(path), (path, source))
    return list(seen.values())


def _names(folder: str) -> list[str]:
    try:
        return sorted(path.name for path in Path(folder or ".").iterdir() if _NAME.fullmatch(path.name))
    except OSError:
        return []


def _pyenv_root(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("PYENV_ROOT") or Path(environ.get("HOME", "/"), ".pyenv"))


def _pyenv(environ: Mapping[str, str]) -> Iterator[str]:
    for path in sorted(_pyenv_root(environ).glob("versions/*/bin/python")):
        yield str(path)


def _managed_by_uv(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the interpreters in the folder of uv.  `uv python list` would also start every one on PATH."""
    try:
        folder = run_uv(["python", "dir"], environ=environ, doing="name its folder", timeout=_TIMEOUT)
    except Unmet:
        return  # without uv it manages none
    for scripts in sorted(Path(folder.strip()).glob("cpython-*/bin")):
        for name in _names(str(scripts)):
            yield str(scripts / name)


def _ask(path: str, source: str, environ: Mapping[str, str]) -> Interpreter | str | None:
    """Return the base interpreter of *path*, a line if it is broken, None for a shim without a version."""
    try:
        answer = ask_interpreter(path, environ, timeout=_TIMEOUT, distributions=False)
    except ChildFailed as error:
        return None if is_no_interpreter(error) else f"`{path}` does not run: {error}"
    if answer.get("missing"):
        return f"`{path}` lacks modules that a training stack needs: {'; '.join(answer['missing'])}"
    facts = answer["facts"]
    return Interpreter(
        path=facts["base_executable"],
        version=facts["markers"]["python_full_version"],
        has_headers=facts["has_headers"],
        implementation=facts["markers"]["implementation_name"],
        source=source,
    )
