"""Having one of our scripts do a job in the target's own interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from colablock.children import OPT_OUTS, environment_of, last_lines
from colablock.errors import Unmet

__all__ = ["ask_target"]

_KEPT = 200  # lines of output: the last of them say what went wrong
_SHOWN = 8


def ask_target(
    python: str | Path,
    script: str,
    job: Mapping[str, Any],
    *,
    doing: str,
    environ: Mapping[str, str],
    said: Callable[[str], None] | None = None,
) -> Any:
    """Return what *script*, a module of this folder, answers to *job* in the environment of *python*.

    *said* gets each line that it prints, as it does.  Tokens belong into
    *environ*, never into *job*.  Raises Unmet, worded by the script where it knows
    better than a traceback; *doing* completes "... could not".  An exception
    here, Ctrl-C among them, ends the script with all that it has started.
    """
    source = resources.files("colablock.training").joinpath(script).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="colablock-") as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        # Given as text: run as a file, its folder would be first on the import path, and hide modules.
        command = [str(python), "-c", source, str(asked), str(answered)]
        status, lines = _run(command, environment_of(python, environ, **OPT_OUTS), said, doing)
        answer = _read(answered)
    if "refused" in answer:
        raise Unmet(str(answer["refused"]), hint=answer.get("hint"))
    if "answer" not in answer:
        end = f"status {status}" if status >= 0 else signal.Signals(-status).name
        why = answer.get("error") or f"the process ended with {end}"
        raise Unmet("\n".join(filter(None, [f"`{python}` could not {doing}: {why}", lines])))
    return answer["answer"]


def _run(
    command: list[str], environ: Mapping[str, str], said: Callable[[str], None] | None, doing: str
) -> tuple[int, str]:
    """Return the status of *command*, and the last lines that it printed."""
    lines: deque[str] = deque(maxlen=_KEPT)
    try:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that what it starts ends with it
        )
    except OSError as error:
        raise Unmet(f"`{command[0]}` could not {doing}: {error.strerror}") from error
    try:
        with process:
            for line in process.stdout or ():  # a carriage return ends one, too: progress bars
                lines.append(line.rstrip("\n"))
                if said is not None:
                    said(lines[-1])
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, last_lines("\n".join(lines), _SHOWN, indent="  ")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
