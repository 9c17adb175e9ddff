"""Run ``_probe.py`` in another interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from colablock._common.decoding import Malformed, decode
from colablock._common.process import ChildFailed, exit_words, last_lines, run_python
from colablock.environment import _probe

__all__ = ["ask_interpreter", "is_no_interpreter", "read_answer"]

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


def ask_interpreter(
    python: str | Path, environ: Mapping[str, str], *, timeout: float, distributions: bool = True
) -> dict[str, Any]:
    """Return the answer of the probe run by *python*: facts and installed distributions, or facts only.

    Raises ChildFailed if there is no answer.  ``str()`` of the error gives the reason in one line,
    and its *status* is None if *python* cannot be started.
    """
    arguments = [_probe.__file__] if distributions else [_probe.__file__, _probe.ONLY_FACTS]
    try:
        output, status = run_python(python, arguments, environ=environ, timeout=timeout), 0
    except ChildFailed as error:
        if error.status is None:
            raise
        output, status = error.output, error.status  # the answer may precede the failure
    for line in reversed(output.text.splitlines()):
        if line.startswith(_probe.MARK):
            with suppress(Malformed):  # cut off, or printed by a module of that interpreter
                return read_answer(line.removeprefix(_probe.MARK), distributions=distributions)
    said = last_lines(output.error_text, 1) or f"it {exit_words(status)} and said nothing"
    raise ChildFailed(said, status=status, output=output)


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
