"""Start ``accelerate launch`` in the target.  It needs only the standard library and accelerate.

``launcher.py ARGUMENTS`` takes the arguments of ``accelerate launch``.  ``launcher.py --early GATE MODULES``
begins before they are known: it imports MODULES (``transformers:Trainer``), and then waits for them at the
file descriptor GATE, which gets one line of JSON.  Until then it changes no file.

There are two processes.  The first one imports nothing.  It reports how the second one has ended, which may
be by a signal.  The second one is the launcher of accelerate.  If that would start a single process for the
script, the script runs in the second process itself with the same variables, which saves an import of the
stack.

With ``python -m`` the working folder, which is the folder of the run, would come first on the import
path, and a file there could hide a module of the target.
"""

import os
import sys

# The folder of this file has modules of colablock, which could hide those of the target.
if os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):  # noqa: PTH120
    del sys.path[0]

import importlib
import json
import runpy
import subprocess
from pathlib import Path
from typing import Any

EARLY, INNER = "--early", "--inner"
TASK = "$SLURM_PROCID"
# These are read when something is trained.  Others are read when a library is loaded.
READ_LATE = ("ACCELERATE_", "KMP_")


def main(arguments: "list[str]") -> None:
    """Run the launcher in a second process, and end as it does.

    In the tasks of a Slurm job the arguments are the same, and each task has a machine rank of its own.
    If the process dies before it has its arguments from a gate, another one that imports nothing reads them.
    """
    arguments = [os.environ.get(TASK[1:], "0") if one == TASK else one for one in arguments]
    gates = [int(arguments[1])] if arguments[:1] == [EARLY] else []
    status, log = run_inner(arguments, gates)
    if gates and not log:
        arguments = arguments[:2]
        status, log = run_inner(arguments, gates)
    if status and (log or not gates):
        if gates:
            write_to(log)
        raise subprocess.CalledProcessError(status, [sys.executable, __file__, *arguments])


def run_inner(arguments: "list[str]", gates: "list[int]") -> "tuple[int, str]":
    """Return the status of the second process, and the log of the run if its arguments came from *gates*."""
    reading, writing = os.pipe()
    command = [sys.executable, __file__, INNER, str(writing), *arguments]
    process = subprocess.Popen(command, pass_fds=[writing, *gates])
    os.close(writing)
    status = process.wait()
    with os.fdopen(reading, "rb") as told:
        return status, os.fsdecode(told.read())


def inner(told: int, arguments: "list[str]") -> None:
    """Launch with *arguments*; those that arrive at a gate are announced at the descriptor *told*."""
    if arguments[:1] == [EARLY]:
        arguments = wait_at(int(arguments[1]), told, arguments[2:])
    os.close(told)
    script = launched(arguments)
    if script is not None:
        sys.argv = script
        sys.path.insert(0, str(Path(script[0]).resolve().parent))
        runpy.run_path(script[0], run_name="__main__")


def wait_at(gate: int, told: int, modules: "list[str]") -> "list[str]":
    """Import *modules*, and return the arguments that arrive at *gate*."""
    try:
        for name in modules:
            module, _, member = name.partition(":")
            getattr(importlib.import_module(module), member or "__name__")
    except BaseException:  # noqa: BLE001 - the training has to fail in its own words, so it imports all anew
        start_over([str(told), EARLY, str(gate)], os.environ)
    with os.fdopen(gate, "rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        os._exit(0)  # the run is not started
    start = json.loads(line)
    os.write(told, os.fsencode(start["log"]))
    said = os.pread(1, 1 << 20, 0)
    write_to(start["log"])
    os.write(1, said)
    if start["environ"] is not None:
        start_over([str(told), *start["arguments"]], start["environ"])
    return list(start["arguments"])


def start_over(arguments: "list[str]", environ: "os._Environ[str] | dict[str, str]") -> None:
    """Replace this process by one that has imported nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, __file__, INNER, *arguments], environ)  # noqa: S606


def launched(arguments: "list[str]") -> "list[str] | None":
    """Launch with *arguments*; return the script and its arguments if it has to run in this process."""
    launch: Any = importlib.import_module("accelerate.commands.launch")
    found: list[list[str]] = []

    def simple_launcher(args: object) -> None:
        command, environ = launch.prepare_simple_launcher_cmd_env(args)
        changed = {name for name in environ if environ[name] != os.environ.get(name)}
        if command[0] != sys.executable or not all(name.startswith(READ_LATE) for name in changed):
            sys.stdout.flush()
            os.execvpe(command[0], command, environ)  # noqa: S606
        os.environ.update(environ)
        found.append(command[1:])

    sys.argv = [launch.__file__, *arguments]
    if hasattr(launch, "prepare_simple_launcher_cmd_env"):
        launch.simple_launcher = simple_launcher
    launch.main()
    return found[0] if found else None


def write_to(log: str) -> None:
    """Let standard output and error go to the end of the file *log*."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    if sys.argv[1] == INNER:
        inner(int(sys.argv[2]), sys.argv[3:])
    else:
        main(sys.argv[1:])
