"""Child processes: their variables, how they are started, and what their failure is.

Four ways are enough:

- ``run_python`` asks another interpreter, isolated, and waits for its output
- ``run_child`` does the same with any program, ``run_uv`` with uv
- ``start_session`` starts a process in a session of its own; it goes on
  without us, or ``kill_session`` ends it with all that it started
- a command on the user's own terminal: ``verification.verify.run_in`` only
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import uv

from colablock.errors import Unmet

__all__ = [
    "OPT_OUTS",
    "ChildFailed",
    "ChildOutput",
    "clean_environment",
    "environment_of",
    "exit_words",
    "kill_session",
    "last_lines",
    "run_child",
    "run_python",
    "run_uv",
    "source_command",
    "start_session",
    "uv_command",
]

# What would steer uv, pip or an interpreter away from what we ask of it.  Notebooks preset some:
# ipykernel a MPLBACKEND that its own kernel alone has, hosted runtimes UV_SYSTEM_PYTHON and UV_CONSTRAINT.
_DROPPED_PREFIXES = ("UV_", "PIP_", "CONDA_")
_DROPPED = frozenset(
    {
        "MPLBACKEND",
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
        "PYTHONINSPECT",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "VIRTUAL_ENV_PROMPT",
        "_CONDA_EXE",
        "__PYVENV_LAUNCHER__",
    }
)
# Where uv keeps and finds things is the user's to say; it changes no answer.
_KEPT = frozenset(
    {"UV_CACHE_DIR", "UV_PYTHON_DOWNLOADS_JSON_URL", "UV_PYTHON_INSTALL_DIR", "UV_PYTHON_INSTALL_MIRROR"}
)

OPT_OUTS: Mapping[str, str] = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Variables that turn off the telemetry of the stack's libraries, for proofs and training."""


def clean_environment(environ: Mapping[str, str], **extra: str) -> dict[str, str]:
    """Return *environ* without what steers uv, pip or an interpreter, and with *extra*."""
    kept = {name: value for name, value in environ.items() if not _is_dropped(name)}
    return kept | extra


def environment_of(python: str | Path, environ: Mapping[str, str], **extra: str) -> dict[str, str]:
    """Return the cleaned variables for a child of *python*'s environment, its commands first on PATH."""
    folder = Path(python).absolute().parent
    path = os.pathsep.join([str(folder), *filter(None, [environ.get("PATH")])])
    cleaned = clean_environment(environ, PATH=path)
    if (folder.parent / "pyvenv.cfg").is_file():
        cleaned["VIRTUAL_ENV"] = str(folder.parent)
    return cleaned | extra


@dataclass(frozen=True, slots=True)
class ChildOutput:
    """What a child process wrote."""

    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def text(self) -> str:
        """Its standard output, decoded."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """Its standard error, decoded."""
        return self.stderr.decode("utf-8", "replace")


class ChildFailed(Exception):
    """A child process did not start, did not end in time, or ended with a status other than 0.

    ``str()`` says which, as the end of a sentence: "it ended with status 1".
    *status* is None where the process did not start or was out of time, and
    negative where a signal ended it.
    """

    def __init__(self, reason: str, *, status: int | None = None, output: ChildOutput | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.output = output or ChildOutput()


def run_child(
    command: Sequence[str | Path],
    *,
    environ: Mapping[str, str],
    timeout: float | None = None,
    folder: Path | None = None,
    data: bytes = b"",
    own_session: bool = False,
) -> ChildOutput:
    """Run *command* with exactly the variables *environ* and return its output.

    *data* is its standard input.  It works in *folder*, or else in ours.  An
    *own_session* takes the terminal away from it: it cannot ask for a password
    there.  Raises ChildFailed; after *timeout* seconds the process is killed.
    """
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            cwd=folder,
            input=data,
            capture_output=True,
            timeout=timeout,
            start_new_session=own_session,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"it did not end within {timeout:g} seconds") from error
    except OSError as error:
        raise ChildFailed(error.strerror or str(error)) from error
    output = ChildOutput(done.stdout, done.stderr)
    if done.returncode != 0:
        raise ChildFailed(f"it {exit_words(done.returncode)}", status=done.returncode, output=output)
    return output


def run_python(
    python: str | Path, arguments: Sequence[str | Path], *, environ: Mapping[str, str], timeout: float
) -> ChildOutput:
    """Run an interpreter isolated and return its output.  Raises ChildFailed.

    ``-I`` keeps ``PYTHON*`` variables, the user's own packages and the current
    folder away from it, and the variables are cleaned.
    """
    return run_child([python, "-I", *arguments], environ=clean_environment(environ), timeout=timeout)


def run_uv(
    args: Sequence[str],
    *,
    environ: Mapping[str, str],
    doing: str = "do its part",
    timeout: float | None = None,
    downloads: bool = False,
) -> str:
    """Run uv and return its standard output; see ``uv_command``.

    Raises Unmet with the last lines of what uv wrote; *doing* completes "uv could not ...".
    """
    command = uv_command(args, environ, downloads=downloads)
    try:
        return run_child(command, environ=clean_environment(environ), timeout=timeout).text
    except ChildFailed as error:
        lines = last_lines(error.output.error_text, indent="  ")
        raise Unmet(f"uv could not {doing}" + (f"\n{lines}" if lines else f": {error}")) from error


def uv_command(args: Sequence[str], environ: Mapping[str, str], *, downloads: bool = False) -> list[str]:
    """Return the command of uv without configuration files; it fetches interpreters only with *downloads*.

    Raises Unmet where there is no uv.
    """
    fetching = () if downloads else ("--no-python-downloads",)
    return [_find_uv(environ), "--no-config", "--color=never", "--no-progress", *fetching, *args]


def source_command(python: str | Path, source: str, *arguments: str) -> list[str]:
    """Return the command that runs the text *source* as a script with *arguments*.

    It is given as text: run as a file, its folder would be first on the import
    path, and its neighbours would hide modules.  The current folder takes that
    place, so it has to be an empty one.
    """
    return [str(Path(python).absolute()), "-c", source, *arguments]


def start_session(
    command: Sequence[str | Path],
    *,
    environ: Mapping[str, str],
    folder: Path | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start *command* in a session of its own, with exactly the variables *environ*, and do not wait.

    Ctrl-C does not reach it, and it goes on when this process ends, a restarted
    kernel among them.  Both its outputs go to *output*; it keeps the open
    *descriptors*.  Raises OSError.
    """
    return subprocess.Popen(
        command,
        env=dict(environ),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=descriptors,
        start_new_session=True,
    )


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of ``start_session`` that was not waited for yet, with all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def exit_words(status: int) -> str:
    """Return how a process ended, after "it": "ended with status 1", "was ended by SIGKILL"."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def last_lines(text: str, count: int = 12, *, indent: str = "") -> str:
    """Return the last *count* lines of *text* that are not blank."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(indent + line for line in lines[-count:])


def _is_dropped(name: str) -> bool:
    if name in _KEPT:
        return False
    return name in _DROPPED or name.upper().startswith(_DROPPED_PREFIXES)


def _find_uv(environ: Mapping[str, str]) -> str:
    try:
        return os.fsdecode(uv.find_uv_bin())
    except FileNotFoundError as error:
        found = shutil.which("uv", path=environ.get("PATH"))
        if found is None:
            raise Unmet("uv is not to be found", hint="Install it with `pip install uv`") from error
        return found
