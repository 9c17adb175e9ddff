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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

__all__ = ["PART_MARK", "TargetProcess", "ask_target", "start_target"]

#: What a script prints, with the name of the part, once it has written a part of its answer to ``NAME.json``.
PART_MARK = "--- colablock: answered "

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

    The script runs in a folder with nothing but the modules beside and below it that it imports, so paths in
    *job* must be absolute.  *said* gets each line when the script prints it.  It gets the
    variables of *environ* for *purpose*, none of which is a secret, and *secrets*, such as a token,
    which never belongs in *job*.
    *doing* completes "... could not".  An exception in this process, such as Ctrl-C, and
    the end of *timeout* (seconds) kill the script and every process that it started.

    Raises Unmet if the job cannot be done or the script fails, InvalidInput if the job is
    invalid.  The message is the script's own if it has one.
    """
    started = start_target(python, script, job, environ=environ, purpose=purpose, secrets=secrets, said=said)
    with started as process:
        return process.answer(doing=doing, timeout=timeout, answers=answers)


@contextmanager
def start_target(
    python: str | Path,
    script: Path,
    job: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    purpose: Purpose = Purpose.TRAINING,
    secrets: Mapping[str, str] | None = None,
    said: Callable[[str], None] | None = None,
    bytecode: Path | None = None,
) -> Iterator[TargetProcess]:
    """Start *script* as `ask_target` does, and yield its process; at the end of the block it is killed.

    It reads bytecode from the folder *bytecode*, and not from the environment, if that is given.
    """
    variables = environment_of(python, environ, purpose, **opt_outs(environ), **(secrets or {}))
    if bytecode is not None:
        variables["PYTHONPYCACHEPREFIX"] = str(bytecode)
    source = script.read_text(encoding="utf-8")
    with scratch_folder() as folder:
        _write_imported(script.parent, source, folder)
        asked, answered = folder / "job.json", folder / "answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        try:
            process = start_session(  # a session of its own, so that its child processes end with it
                source_command(python, source, str(asked), str(answered)),
                environ=variables,
                folder=folder,
                output=subprocess.PIPE,
            )
        except OSError as error:
            fault: str | None = str(error.strerror)
            yield TargetProcess(python, None, answered, said, fault)
            return
        target = TargetProcess(python, process, answered, said)
        try:
            yield target
        finally:
            target.end()


class TargetProcess:
    """A script that runs in a target, and its answers."""

    def __init__(
        self,
        python: str | Path,
        process: subprocess.Popen[bytes] | None,
        answered: Path,
        said: Callable[[str], None] | None,
        fault: str | None = None,
    ) -> None:
        self._python, self._process, self._answered, self._said = python, process, answered, said
        self._fault = fault  # why it could not be started
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._output = (
            io.TextIOWrapper(cast("IO[bytes]", process.stdout), "utf-8", "replace") if process else None
        )

    def part(self, name: str, *, doing: str, timeout: float | None = None, answers: Any = object) -> Any:
        """Return the part *name* of the answer: the script writes it first, and then prints its mark.

        A script that ends before has one answer only, whose errors are raised as `answer` does.
        """
        end = self._read(timeout, until=f"{PART_MARK}{name}")
        found = _read(self._answered.with_name(f"{name}.json"))
        return self._checked(found or _read(self._answered), end, doing, answers)

    def answer(self, *, doing: str, timeout: float | None = None, answers: Any = object) -> Any:
        """Return the answer once the script has ended; see `ask_target`."""
        end = self._read(timeout)
        return self._checked(_read(self._answered), end, doing, answers)

    def _checked(self, found: Mapping[str, Any], end: str, doing: str, answers: Any) -> Any:
        for key, kind in _ERRORS.items():
            if key in found:
                hint = found.get("hint")
                raise kind(str(found[key]), hint=hint if isinstance(hint, str) else None)
        if "answer" not in found:
            what = f"`{self._python}` could not {doing}: {found.get('error') or end}"
            lines = last_lines("\n".join(self._lines), _SHOWN, indent="  ")
            raise Unmet("\n".join(filter(None, [what, lines])))
        try:
            return found["answer"] if answers is object else fitted(found["answer"], answers)
        except Malformed as error:
            raise Unmet(f"`{self._python}` could not {doing}: its answer cannot be read: {error}") from error

    def _read(self, timeout: float | None, until: str | None = None) -> str:
        """Read the output to the line *until*, or else to the end; return how the process has ended."""
        process, late = self._process, []
        if process is None or self._output is None:
            return str(self._fault)

        def give_up() -> None:
            late.append(f"it did not finish within {timeout:g} seconds")
            kill_session(process)

        timer = threading.Timer(timeout or 0.0, give_up)
        if timeout is not None:
            timer.start()
        try:
            for line in (
                () if self._output.closed else self._output
            ):  # a carriage return ends a line too, as progress bars use it
                text = line.rstrip("\n")
                if text == until:
                    return ""
                self._lines.append(text)
                if self._said is not None:
                    self._said(text)
            if process.returncode is None:
                # Until it is reaped, its pid is not reused.
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            timer.cancel()
        return (*late, f"the process {exit_words(self.end())}")[0]

    def end(self) -> int:
        """Kill the script, and every process that it started; return its exit status."""
        process = self._process
        if process is None or self._output is None:
            return 0
        if process.returncode is None:
            kill_session(process)
        self._output.close()
        return process.wait()


def _write_imported(beside: Path, source: str, folder: Path) -> None:
    """Write the modules in or below *beside* that *source* imports to *folder*, and what they import.

    The script runs there, so that it finds them by their full names, also if colablock is not installed
    in the target.
    """
    for package, name in _IMPORT.findall(source):
        _, is_beside, below = f"{package}.".partition(f".{beside.name}.")
        place = folder.joinpath(*package.split("."), f"{name}.py")
        if not is_beside or place.exists():
            continue
        imported = beside.joinpath(*below.split("."), f"{name}.py").read_text(encoding="utf-8")
        place.parent.mkdir(parents=True, exist_ok=True)
        for parent in place.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        place.write_text(imported, encoding="utf-8")
        _write_imported(beside, imported, folder)


def _read(answered: Path) -> dict[str, Any]:
    """Return the object in the file *answered*, or an empty one: the script may have been killed."""
    try:
        return decode(read_bounded(answered, WORKER_ANSWER), dict, by_python=True)
    except (OSError, Malformed):
        return {}
