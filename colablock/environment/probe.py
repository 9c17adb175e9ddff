"""Run ``_probe.py`` in another interpreter."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypedDict

from colablock._common.decoding import Malformed, decode, encode, read_bounded
from colablock._common.limits import TEXT_FILE
from colablock._common.process import ChildFailed, exit_words, last_lines, run_python
from colablock.environment import _probe

__all__ = ["AnswerStore", "ask_interpreter", "is_no_interpreter", "read_answer"]

_KIND = "probes"  # of the entries of a store
_NAMING = ("HOME", "PYTHON", "VIRTUAL_ENV")  # the variables that an interpreter reads at its start
_SETTLED = 2_000_000_000  # nanoseconds: the coarsest clock of a file system
_NO_SUCH_COMMAND = 127  # the status of a pyenv shim for which no version is selected
_PATHS = frozenset({"purelib", "platlib", "scripts", "data"})
_MARKERS = frozenset(
    {
        *("implementation_name", "implementation_version", "os_name", "platform_machine"),
        *("platform_python_implementation", "platform_release", "platform_system", "platform_version"),
        *("python_full_version", "python_version", "sys_platform"),
    }
)
_MOST = 1000  # of a part of a version of Python, glibc, musl or macOS
_TOO_OLD = ("Unknown option: -I", "future feature annotations")  # Python 2; Python 3 before 3.7


class _Facts(TypedDict):
    markers: dict[str, str]
    version: list[int]
    ext_suffix: str | None
    free_threaded: bool
    debug: bool
    is_32bit: bool
    platform: str
    glibc: list[int] | None
    musl: list[int] | None
    macos: list[int | str] | None
    executable: str
    prefix: str
    base_prefix: str
    base_executable: str
    paths: dict[str, str]
    has_headers: bool
    externally_managed: str | None


class _Distribution(TypedDict):
    name: str
    version: str
    requires: list[str]
    requires_python: str | None
    extras: list[str]
    import_names: list[str]
    direct_url: str | None
    provenance_url: str | None
    installer: str | None
    requested: bool
    size: int | None
    path: str


class _FactsOnly(TypedDict):
    facts: _Facts


class _Answer(_FactsOnly, total=False):
    """The answer of the probe: the facts, and what was asked for besides."""

    distributions: list[_Distribution]
    remains: dict[str, list[str]]
    search_path: list[str]
    notes: list[str]
    missing: list[str]


class AnswerStore(Protocol):
    """Keeps answers: the cache of a session."""

    def read(self, kind: str, key: str) -> bytes | None:
        """Return what was written; None if there is nothing, or it is damaged."""

    def write(self, kind: str, key: str, data: bytes) -> None:
        """Keep *data*, if possible."""


class _Kept(TypedDict):
    answer: str
    stamps: dict[str, list[int]]  # by path; empty: there is none


def ask_interpreter(
    python: str | Path,
    environ: Mapping[str, str],
    *,
    timeout: float,
    distributions: bool = True,
    store: AnswerStore | None = None,
) -> dict[str, Any]:
    """Return the answer of the probe run by *python*: facts and installed distributions, or facts only.

    With *store*, a whole answer is kept there and given again while nothing that it depends on has
    changed: the interpreter, the variables that name folders of Python, the folders of the import path
    and every file in the metadata folders.

    Raises ChildFailed if there is no answer.  ``str()`` of the error gives the reason in one line,
    and its *status* is None if *python* cannot be started.
    """
    if store is None or not distributions:
        return _asked(python, environ, timeout=timeout, distributions=distributions)[1]
    key = _key(python, environ)
    with suppress(Malformed):
        kept = decode(store.read(_KIND, key) or b"", _Kept)
        if all(_stamp(path) == stamp for path, stamp in kept["stamps"].items()):
            return read_answer(kept["answer"])
    started = time.time_ns()
    text, answer = _asked(python, environ, timeout=timeout, distributions=True)
    stamps = {path: _stamp(path) for path in _depends_on(environ, answer)}
    # A file that changes while it is read, or within the resolution of its clock, would not be noticed.
    is_settled = all(stamp[:1] < [started - _SETTLED] for stamp in stamps.values())
    # A shim of a version manager starts another interpreter, today this one and tomorrow that one.
    if is_settled and answer["facts"]["executable"] == str(python):
        store.write(_KIND, key, encode(_Kept(answer=text, stamps=stamps)))
    return answer


def _asked(
    python: str | Path, environ: Mapping[str, str], *, timeout: float, distributions: bool
) -> tuple[str, dict[str, Any]]:
    """Return the line of the answer without its mark, and the answer in it."""
    arguments = [_probe.__file__] if distributions else [_probe.__file__, _probe.ONLY_FACTS]
    try:
        output, status = run_python(python, arguments, environ=environ, timeout=timeout), 0
    except ChildFailed as error:
        if error.status is None:
            raise
        output, status = error.output, error.status  # the answer may precede the failure
    for line in reversed(output.text.splitlines()):
        if line.startswith(_probe.MARK):
            text = line.removeprefix(_probe.MARK)
            with suppress(Malformed):  # cut off, or printed by a module of that interpreter
                return text, read_answer(text, distributions=distributions)
    said = last_lines(output.error_text, 1) or f"it {exit_words(status)} and said nothing"
    raise ChildFailed(said, status=status, output=output)


def _key(python: str | Path, environ: Mapping[str, str]) -> str:
    """Return what names the answer of *python*: variables, the system, and the probe itself."""
    named = sorted(f"{name}={value}" for name, value in environ.items() if name.startswith(_NAMING))
    libc = "-".join(platform.libc_ver())
    return "\n".join([str(python), *os.uname(), libc, str(_stamp(_probe.__file__)), *named])


def _depends_on(environ: Mapping[str, str], answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths that *answer* depends on, also those that do not exist."""
    facts: Any = answer["facts"]
    paths: dict[str, str] = facts["paths"]
    short = "python{}.{}".format(*facts["version"])
    yield from (facts["executable"], facts["base_executable"], *paths.values())
    yield f"{facts['prefix']}/pyvenv.cfg"
    yield f"{paths.get('stdlib')}/EXTERNALLY-MANAGED"
    yield f"{paths.get('include')}/Python.h"
    user = environ.get("PYTHONUSERBASE") or f"{environ.get('HOME')}/.local"
    bases = (facts["prefix"], facts["base_prefix"], f"{facts['base_prefix']}/local", user)
    yield from (f"{base}/lib/{short}/{kind}-packages" for base in bases for kind in ("site", "dist"))
    for folder in answer["search_path"]:
        yield from (folder, f"{folder}/sitecustomize.py", f"{folder}/usercustomize.py")
        for name in _listed(folder):
            if name.endswith(".pth"):
                yield from _named_by(f"{folder}/{name}")
    found = [one["path"] for one in answer["distributions"]]
    for entry in (*found, *(path for those in answer["remains"].values() for path in those)):
        yield entry
        yield from (f"{entry}/{name}" for name in _listed(entry))


def _named_by(path: str) -> Iterator[str]:
    """Yield a path file, and the folders that it names: the import names of a project come from there."""
    yield path
    with suppress(OSError, Malformed):
        lines = read_bounded(Path(path), TEXT_FILE).decode("utf-8", "replace").splitlines()
        yield from (line.strip() for line in lines if line.startswith("/"))


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - hundreds of folders
    except OSError:
        return []


def _stamp(path: str) -> list[int]:
    """Return the mtime of *path*, its size, its inode and its ctime; nothing if it does not exist.

    No program can set the ctime back.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - thousands of files
    except (OSError, ValueError):
        return []
    return [status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns]


def read_answer(text: str, *, distributions: bool = True) -> dict[str, Any]:
    """Return the answer of the probe in *text*, which is JSON.  Raises Malformed if it has another form."""
    answer: Any = decode(text, _Answer)
    facts: Any = answer["facts"]
    if distributions and not answer.keys() >= {"distributions", "remains", "search_path", "notes"}:
        raise Malformed("it has no distributions")
    missing = [*(_MARKERS - facts["markers"].keys()), *(_PATHS - facts["paths"].keys())]
    pairs = [facts[key] for key in ("version", "glibc", "musl") if facts[key] is not None]
    numbers = [*(part for pair in pairs for part in pair), *(facts["macos"] or ())[:2]]
    # A tag is made for each version up to these.
    is_far = not all(isinstance(number, int) and 0 <= number < _MOST for number in numbers)
    if missing or is_far or any(len(pair) != 2 for pair in pairs) or len(facts["macos"] or "abc") != 3:  # noqa: PLR2004
        raise Malformed("its facts are not complete")
    found: dict[str, Any] = answer
    return found


def is_no_interpreter(error: ChildFailed) -> bool:
    """Whether *error* comes from a pyenv shim without a version, or from a Python too old for the probe."""
    return error.status == _NO_SUCH_COMMAND or any(text in error.output.error_text for text in _TOO_OLD)
