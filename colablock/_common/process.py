"""Child processes: how they start, and how their failures are reported.  See also `child_environment`.

There are four ways to start one, and ``own_command`` is the command for one that runs our own code:

- ``run_python`` runs another interpreter in isolation and returns its output
- ``run_child`` does the same for any program, and ``run_uv`` for uv
- ``start_session`` starts a process in its own session.  It outlives this
  process (``detach``), or ``kill_session`` kills it and its descendants
- ``verification.verify.run_in`` alone runs a command on the user's terminal

A child does not work in the folder of the user, where a file may have the name of a module, and no
program is taken from there.
"""

from __future__ import annotations

import atexit
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import uv

from colablock._common.child_environment import Purpose, absolute_path, child_environment
from colablock._masking import masked
from colablock._records import dataclass
from colablock.errors import Unmet

_START = 60.0  # seconds for an interpreter to start
_COUNT_THREADS = "import sys; t = sys.modules.get('threading'); print(t.active_count() if t else 1)"
# The process imports from where this one does, but not from its working folder, as `-m` would.
_RUN_OWN = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))"
)
# Only the code of the caller writes to the real standard output, and nothing follows its answer.
_ANSWER_ON_3 = """\
import _thread, os, sys
class Answer:
    file, caller = os.fdopen(3, "w", encoding="utf-8"), _thread.get_ident()
    def write(self, text):
        return self.file.write(text) if _thread.get_ident() == self.caller else len(text)
    def flush(self):
        self.file.flush()
sys.stdout = Answer()
status = 0
try:
    exec(sys.argv.pop(), {"__name__": "__main__"})
except SystemExit as error:
    status = error.code if isinstance(error.code, int) else int(error.code is not None)
sys.stdout.flush()
os._exit(status)
"""

__all__ = [
    "ISOLATED",
    "ChildFailed",
    "ChildOutput",
    "detach",
    "exit_words",
    "find_program",
    "kill_session",
    "last_lines",
    "own_command",
    "quiet_python",
    "run_child",
    "run_python",
    "run_uv",
    "safe_umask",
    "source_command",
    "start_session",
    "uv_command",
]

ISOLATED = ("-I", "-B")
"""The options of an isolated interpreter: it ignores the variable that forbids writing bytecode."""


@dataclass(frozen=True, slots=True)
class ChildOutput:
    """The output of a child process."""

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

    ``str()`` says which of them: "it ended with status 1".  *status* is None if
    the process did not start or ran out of time, and negative for a signal.
    """

    def __init__(self, reason: str, *, status: int | None = None, output: ChildOutput | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.output = output or ChildOutput()


def safe_umask() -> int:
    """Return the umask for child processes: this process's own, with no write permission for others.

    What a child creates, such as an environment, nobody else can then change.
    """
    return _umask() | 0o022


def _umask() -> int:
    try:
        with Path("/proc/self/status").open(encoding="ascii", errors="replace") as lines:  # Linux
            return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        found = os.umask(0o077)  # the only other way to read it is to set it
        os.umask(found)
        return found


def find_program(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the path of a program on PATH, or None.  Relative folders on PATH are not searched."""
    return shutil.which(name, path=absolute_path(environ))


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

    *data* is its standard input, and *folder* its working folder (default: the
    root, never that of the user).  With *own_session* it has no terminal and cannot prompt for a
    password.  After *timeout* seconds it is killed.  Raises ChildFailed.
    """
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            cwd=folder or os.sep,
            input=data,
            capture_output=True,
            timeout=timeout,
            start_new_session=own_session,
            check=False,
            umask=safe_umask(),
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
    """Run an interpreter in isolation and return its output.  Raises ChildFailed.

    It gets only the variables of the allow-list.  ``-I`` makes it ignore ``PYTHON*``
    variables, the user site and the current folder.
    """
    program = os.path.abspath(python) if os.sep in str(python) else python  # noqa: PTH100
    command = [program, *ISOLATED, *arguments]
    return run_child(command, environ=child_environment(Purpose.LOCAL, environ), timeout=timeout)


def quiet_python(python: str | Path, environ: Mapping[str, str], folder: Path) -> str:
    """Return *python*, or if something that runs at its start prints, a script in *folder* that is silent.

    uv asks an interpreter with ``-c`` and reads all of its standard output, so a `sitecustomize` or a
    ``.pth`` file that prints would make the answer unreadable.
    """
    try:
        said = run_python(python, ["-c", _COUNT_THREADS], environ=environ, timeout=_START)
    except ChildFailed as error:
        said = error.output
    if said.text in ("1\n", ""):  # if it did not start, uv says what is wrong with it
        return str(python)
    script = folder / "quiet-python"
    command = shlex.join([str(python), "-I", "-B", "-c", _ANSWER_ON_3])
    script.write_text(
        f'#!/bin/sh\nfor code in "$@"; do :; done\nexec 3>&1 >/dev/null\nexec {command} "$code"\n', "utf-8"
    )
    script.chmod(0o700)
    return str(script)


def run_uv(
    args: Sequence[str],
    *,
    environ: Mapping[str, str],
    doing: str = "do its part",
    timeout: float | None = None,
    downloads: bool = False,
) -> str:
    """Run uv and return its standard output; see ``uv_command``.  Paths in *args* have to be absolute.

    Raises Unmet with the last lines of what uv wrote; *doing* completes "uv could not ...".
    """
    command = uv_command(args, environ, downloads=downloads)
    try:
        purpose = Purpose.DOWNLOAD if downloads else Purpose.LOCAL
        return run_child(command, environ=child_environment(purpose, environ), timeout=timeout).text
    except ChildFailed as error:
        lines = last_lines(error.output.error_text, indent="  ")
        raise Unmet(f"uv could not {doing}" + (f"\n{lines}" if lines else f": {error}")) from error


def uv_command(
    args: Sequence[str], environ: Mapping[str, str], *, downloads: bool = False, configured: bool = False
) -> list[str]:
    """Return the uv command for *args*: no configuration files, and no Python downloads by default.

    With *configured*, the configuration is its standard input, which no child of uv can read again.
    Raises Unmet if there is no uv.
    """
    fetching = () if downloads else ("--no-python-downloads",)
    config = ("--config-file", "/dev/stdin") if configured else ("--no-config",)
    return [_find_uv(environ), *config, "--color=never", "--no-progress", *fetching, *args]


def own_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs ``main(arguments)`` of a module of colablock with this interpreter."""
    ours = str(Path(__file__).parents[2])
    here = ""
    with suppress(OSError):  # it was deleted
        here = os.path.realpath(Path.cwd())
    found = [path for path in sys.path if Path(path).is_absolute() and os.path.realpath(path) != here]
    return [sys.executable, *ISOLATED, "-c", _RUN_OWN, json.dumps([*found, ours]), module, *arguments]


def source_command(
    python: str | Path, source: str, *arguments: str, options: Sequence[str] = ()
) -> list[str]:
    """Return the command that runs the text *source* as a script with *arguments*.

    *options* are those of the interpreter.

    The script is passed as text (``-c``).  Run as a file, its folder would come
    first on the import path, and other files there would shadow modules.  With
    ``-c`` the working folder comes first, so it has nothing but what the script imports.
    """
    return [str(Path(python).absolute()), "-B", *options, "-c", source, *arguments]


def start_session(
    command: Sequence[str | Path],
    *,
    environ: Mapping[str, str],
    folder: Path | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
    descriptors: Sequence[int] = (),
    private: bool = False,
) -> subprocess.Popen[bytes]:
    """Start *command* in its own session, with exactly the variables *environ*, and do not wait for it.

    Ctrl-C does not reach it, and it survives the end of this process, such as
    the restart of a kernel.  Standard output and error go to *output*, and it
    inherits *descriptors*.  Nobody else can write to its files, or with *private*
    read them.  Raises OSError.
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
        umask=0o077 if private else safe_umask(),
    )


def detach(process: subprocess.Popen[bytes]) -> None:
    """Let *process* outlive this one, for which `Popen` would give a ResourceWarning.

    If it ends earlier, it is reaped when the next one is detached.
    """
    _DETACHED[:] = [one for one in (*_DETACHED, process) if one.poll() is None]


_DETACHED: list[subprocess.Popen[bytes]] = []


@atexit.register
def _leave_detached() -> None:
    for process in _DETACHED:
        if process.poll() is None:
            process.returncode = 0  # with None, `Popen` takes it for forgotten


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of ``start_session`` and its descendants.  It must not have been waited for yet."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def exit_words(status: int) -> str:
    """Return how a process ended, without a subject: "ended with status 1", "was ended by SIGKILL"."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def last_lines(text: str, count: int = 12, *, indent: str = "") -> str:
    """Return the last *count* non-blank lines of *text*, the output of a child, with secrets masked."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return masked("\n".join(indent + line for line in lines[-count:]))


def _find_uv(environ: Mapping[str, str]) -> str:
    try:
        return os.fsdecode(uv.find_uv_bin())
    except FileNotFoundError as error:
        found = find_program("uv", environ)
        if found is None:
            raise Unmet("uv is not installed", hint="Install it with `pip install uv`") from error
        return found
