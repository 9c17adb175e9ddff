"""Run ``_probe.py`` in another interpreter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from colablock._common.process import ChildFailed, exit_words, last_lines, run_python
from colablock.environment import _probe

__all__ = ["ask_interpreter", "is_no_interpreter"]

_NO_SUCH_COMMAND = 127  # the status of a pyenv shim for which no version is selected
_TOO_OLD = ("Unknown option: -I", "future feature annotations")  # Python 2; Python 3 before 3.7


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
            with suppress(ValueError):  # cut off
                answer: dict[str, Any] = json.loads(line.removeprefix(_probe.MARK))
                return answer
    said = last_lines(output.error_text, 1) or f"it {exit_words(status)} and said nothing"
    raise ChildFailed(said, status=status, output=output)


def is_no_interpreter(error: ChildFailed) -> bool:
    """Whether *error* comes from a pyenv shim without a version, or from a Python too old for the probe."""
    return error.status == _NO_SUCH_COMMAND or any(text in error.output.error_text for text in _TOO_OLD)
