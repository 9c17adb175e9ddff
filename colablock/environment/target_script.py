"""Run one of colablock's scripts in the interpreter of the target.

A script gets two paths: of the job (JSON) to read, and of the answer to write.  The answer is a
JSON object with one of these keys:

- ``answer``: the result of the job
- ``refused``: a message for the user why the job cannot be done; a ``hint`` may stand beside it
- ``invalid``: a message for the user which part of the job is invalid; a ``hint`` may stand beside it
- ``error``: an unexpected exception, whose traceback the script prints
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from colablock._common.child_environment import Purpose, environment_of, opt_outs
from colablock._common.decoding import Malformed, decode, fitted, read_bounded
from colablock._common.limits import WORKER_ANSWER
from colablock._common.process import (
    exit_words,
    kill_session,
    last_lines,
    source_command,
    start_session,
)
from colablock._common.scratch import scratch_folder
from colablock.errors import InvalidInput, Unmet

__all__ = ["ask_target"]

_KEPT = 200  # lines of output, of which the last say what went wrong
_SHOWN = 8
_IMPORT = re.compile(r"^from (colablock(?:\.\w+)+)\.(\w+) import ", re.MULTILINE)
_ERRORS: Mapping[str, type[Unmet | InvalidInput]] = {"refused": Unmet, "invalid": InvalidInput}


def ask_target(
    python: str | Path,
    script: Path,
    job: Mapping[str, Any],
    *,
    doing: str,
    environ: Mapping[str, str],
    purpose: Purpose = Purpose.TRAINING,
    secrets: Mapping[str, str] | None = None,
    said: Callable[[str], None] | None = None,
    timeout: float | None = None,
    answers: Any = object,
) -> Any:
    """Run *script* with *job* in the environment of *python*, and return its answer as an *answers*.

    The script runs in a folder with nothing but the modules beside it that it imports, so paths in
    *job* must be absolute.  *said* gets each line when the script prints it.  It gets the
    variables of *environ* for *purpose*, none of which is a secret, and *secrets*, such as a token,
    which never belongs in *job*.
    *doing* completes "... could not".  An exception in this process, such as Ctrl-C, and
    the end of *timeout* (seconds) kill the script and every process that it started.

    Raises Unmet if the job cannot be done or the script fails, InvalidInput if the job is
    invalid.  The message is the script's own if it has one.
    """
    variables = environment_of(python, environ, purpose, **opt_outs(environ), **(secrets or {}))
    answer = _answered(python, script, job, doing=doing, environ=variables, said=said, timeout=timeout)
    try:
        return answer if answers is object else fitted(answer, answers)
    except Malformed as error:
        raise Unmet(f"`{python}` could not {doing}: its answer cannot be read: {error}") from error


def _answered(
    python: str | Path,
    script: Path,
    job: Mapping[str, Any],
    *,
    doing: str,
    environ: Mapping[str, str],
    said: Callable[[str], None] | None,
    timeout: float | None,
) -> Any:
    source = script.read_text(encoding="utf-8")
    with scratch_folder() as folder:
        _write_imported(script.parent, source, folder)
        asked, answered = folder / "job.json", folder / "answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        try:
            process = start_session(  # a session of its own, so that its child processes end with it
                source_command(python, source, str(asked), str(answered)),
                environ=environ,
                folder=folder,
                output=subprocess.PIPE,
            )
        except OSError as error:
            raise Unmet(f"`{python}` could not {doing}: {error.strerror}") from error
        end, lines = _wait(process, said, timeout)
        answer = _read(answered)
    for key, kind in _ERRORS.items():
        if key in answer:
            hint = answer.get("hint")
            raise kind(str(answer[key]), hint=hint if isinstance(hint, str) else None)
    if "answer" not in answer:
        why = answer.get("error") or end
        raise Unmet("\n".join(filter(None, [f"`{python}` could not {doing}: {why}", lines])))
    return answer["answer"]


def _write_imported(beside: Path, source: str, folder: Path) -> None:
    """Write the modules in the folder *beside* that *source* imports to *folder*, and what they import.

    The script runs there, so that it finds them by their full names, also if colablock is not installed
    in the target.
    """
    for package, name in _IMPORT.findall(source):
        place = folder.joinpath(*package.split("."))
        if package.rpartition(".")[2] != beside.name or (place / f"{name}.py").exists():
            continue
        imported = (beside / f"{name}.py").read_text(encoding="utf-8")
        place.mkdir(parents=True, exist_ok=True)
        for parent in [place, *place.parents]:
            if parent == folder:
                break
            (parent / "__init__.py").touch()
        (place / f"{name}.py").write_text(imported, encoding="utf-8")
        _write_imported(beside, imported, folder)


def _read(answered: Path) -> dict[str, Any]:
    """Return the object in the file *answered*, or an empty one: the script may have been killed."""
    try:
        return decode(read_bounded(answered, WORKER_ANSWER), dict, by_python=True)
    except (OSError, Malformed):
        return {}


def _wait(
    process: subprocess.Popen[bytes], said: Callable[[str], None] | None, timeout: float | None
) -> tuple[str, str]:
    """Return how *process* ended, and its last lines of output."""
    lines: deque[str] = deque(maxlen=_KEPT)
    late: list[str] = []

    def give_up() -> None:
        late.append(f"it did not finish within {timeout:g} seconds")
        kill_session(process)

    timer = threading.Timer(timeout or 0.0, give_up)
    if timeout is not None:
        timer.start()
    try:
        with io.TextIOWrapper(cast("IO[bytes]", process.stdout), "utf-8", "replace") as output:
            for line in output:  # a carriage return ends a line too, as progress bars use it
                lines.append(line.rstrip("\n"))
                if said is not None:
                    said(lines[-1])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until it is reaped, its pid is not reused
    finally:
        timer.cancel()
        kill_session(process)
        status = process.wait()
    ended = f"the process {exit_words(status)}"
    return (*late, ended)[0], last_lines("\n".join(lines), _SHOWN, indent="  ")
