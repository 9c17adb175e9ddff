"""Having one of our scripts do a job in the target's own interpreter.

A script is given two paths: of the job, in JSON, and of the file for its answer, an object with one of

- ``answer``: what came of the job
- ``refused``: why it cannot be done, in words for a user (with a ``hint``, or without)
- ``invalid``: what of the job is no use, likewise
- ``error``: the exception that it did not expect; its traceback is printed
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from colablock._common.fs import read_object
from colablock._common.process import (
    OPT_OUTS,
    environment_of,
    exit_words,
    kill_session,
    last_lines,
    source_command,
    start_session,
)
from colablock.errors import InvalidInput, Unmet

__all__ = ["ask_target"]

_KEPT = 200  # lines of output: the last of them say what went wrong
_SHOWN = 8
_NO: Mapping[str, type[Unmet | InvalidInput]] = {"refused": Unmet, "invalid": InvalidInput}


def ask_target(
    python: str | Path,
    script: Path,
    job: Mapping[str, Any],
    *,
    doing: str,
    environ: Mapping[str, str],
    said: Callable[[str], None] | None = None,
    timeout: float | None = None,
) -> Any:
    """Return what *script* answers to *job* in the environment of *python*.

    It works in an empty folder, so paths in *job* are absolute.  *said* gets each
    line that it prints, as it does.  Tokens belong into *environ*, never into
    *job*.  Raises Unmet and InvalidInput, worded by the script where it knows
    better than a traceback; *doing* completes "... could not".  An exception
    here, Ctrl-C among them, ends the script with all that it has started, and so
    does the end of *timeout*, in seconds.
    """
    source = script.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="colablock-") as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        try:
            process = start_session(  # its own, so that what it starts ends with it
                source_command(python, source, str(asked), str(answered)),
                environ=environment_of(python, environ, **OPT_OUTS),
                folder=Path(folder),
                output=subprocess.PIPE,
            )
        except OSError as error:
            raise Unmet(f"`{python}` could not {doing}: {error.strerror}") from error
        end, lines = _wait(process, said, timeout)
        answer = read_object(answered)
    for key, kind in _NO.items():
        if key in answer:
            raise kind(str(answer[key]), hint=answer.get("hint"))
    if "answer" not in answer:
        why = answer.get("error") or end
        raise Unmet("\n".join(filter(None, [f"`{python}` could not {doing}: {why}", lines])))
    return answer["answer"]


def _wait(
    process: subprocess.Popen[bytes], said: Callable[[str], None] | None, timeout: float | None
) -> tuple[str, str]:
    """Return how *process* ended, and the last lines that it printed."""
    lines: deque[str] = deque(maxlen=_KEPT)
    late: list[str] = []

    def give_up() -> None:
        late.append(f"it was not done within {timeout:g} seconds")
        kill_session(process)

    timer = threading.Timer(timeout or 0.0, give_up)
    if timeout is not None:
        timer.start()
    try:
        with io.TextIOWrapper(cast("IO[bytes]", process.stdout), "utf-8", "replace") as output:
            for line in output:  # a carriage return ends one, too: progress bars
                lines.append(line.rstrip("\n"))
                if said is not None:
                    said(lines[-1])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its number is its own until it is reaped
    finally:
        timer.cancel()
        kill_session(process)
        status = process.wait()
    ended = f"the process {exit_words(status)}"
    return (*late, ended)[0], last_lines("\n".join(lines), _SHOWN, indent="  ")
