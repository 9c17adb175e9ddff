"""Run colablock's command line in processes that are forked from one that has imported it.

A command is a process of its own, with its own variables, folder and standard streams, as with
``python -m colablock``.  It saves the imports, which take longer than most commands.  Variables that an
interpreter reads when it starts must be those of the server.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import BinaryIO, NoReturn

import colablock

__all__ = ["become", "load", "run_warm"]

#: Modules that no command of this process loads: scripts for other interpreters, and the start of a process.
NOT_LOADED = ("colablock.__main__", "colablock._vendor.", "colablock.training.scripts.")
#: What commands import only when they need it.
NEEDED_LATER = ("encodings.idna", "rich.console", "rich.progress", "rich.table", "rich.text", "yaml")
#: Commands that fill what a process keeps about shipped files: recordings, requirements, markers.
PRACTICE = (
    ("list",),
    ("show", "none"),
    ("runs", "list"),
    ("plan", "qlora-2026", "--runtime", "colab-2026.08-gpu", "--offline"),
)
AT_START = ("PYTHON", "LANG", "LC_", "TZ", "LD_", "MALLOC_")
Result = tuple[int, str, str]

_servers: dict[tuple[tuple[str, str], ...], _Server] = {}


def run_warm(
    argv: Sequence[str],
    environ: Mapping[str, str],
    cwd: Path,
    *,
    timeout: float | None = None,
    umask: int | None = None,
    errors: str = "strict",
) -> Result:
    """Run a command without input to its end; return its status, its output and its errors.

    Raises TimeoutError after *timeout* seconds, when it has been killed.  *errors* says what becomes of
    output that is not UTF-8.
    """
    key = tuple(sorted((name, value) for name, value in environ.items() if name.startswith(AT_START)))
    server = _servers.get(key)
    if server is None:
        server = _servers[key] = _Server(dict(key))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        status = server.run([list(argv), dict(environ), str(cwd), umask], (out, err), timeout)
        return status, _text(out, errors), _text(err, errors)


def _text(stream: BinaryIO, errors: str) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", errors)


class _Server:
    """The process that commands are forked from; it ends with this process, whose socket it reads."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())],
            env={**kept, **variables},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        atexit.register(self._end)

    def run(self, command: object, streams: Sequence[BinaryIO], timeout: float | None) -> int:
        with tempfile.TemporaryFile() as asked:
            asked.write(json.dumps(command).encode("utf-8", "surrogateescape"))
            asked.flush()
            files = array.array("i", [asked.fileno(), *(stream.fileno() for stream in streams)])
            self._socket.sendmsg([b"run"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
            child = int(self._socket.recv(64))
            self._socket.settimeout(timeout)
            try:
                return int(self._socket.recv(64))
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                self._socket.settimeout(None)
                self._socket.recv(64)
                raise
            finally:
                self._socket.settimeout(None)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()


def load() -> None:
    """Import what commands load, so that a process forked from this one has it."""
    for module in pkgutil.walk_packages(colablock.__path__, "colablock."):
        if not module.name.startswith(NOT_LOADED):
            importlib.import_module(module.name)
    for name in NEEDED_LATER:
        importlib.import_module(name)
    gc.freeze()  # no collection of a fork goes through all that again


def _practise() -> None:
    """Run some commands in this process, with an empty home and without the network."""
    from colablock.cli.main import main  # noqa: PLC0415 - `load` has imported it

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        places = {
            "HOME": folder,
            "COLABLOCK_HOME": f"{folder}/home",
            "COLABLOCK_CACHE_DIR": f"{folder}/cache",
        }
        for argv in PRACTICE:
            main(argv, {"PATH": os.defpath, **places})
    gc.collect()
    gc.freeze()


def _serve(told: socket.socket) -> None:
    load()
    _practise()
    while True:
        said, files, _, _ = socket.recv_fds(told, 16, 3)
        if not said:
            return
        child = os.fork()
        if child == 0:
            told.close()
            _command(*files)
        told.send(str(child).encode())
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _command(asked: int, out: int, err: int) -> None:
    """Become the command that the file *asked* has, and end."""
    try:
        with os.fdopen(asked, "rb") as file:
            file.seek(0)
            argv, environ, cwd, umask = json.loads(file.read().decode("utf-8", "surrogateescape"))
        for stream, number in ((out, 1), (err, 2)):
            os.dup2(stream, number)
            os.close(stream)
        if umask is not None:
            os.umask(umask)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environ)
        tempfile.tempdir = None  # the server has asked for its own
        sys.path[0] = cwd
        become(argv)
    finally:
        os._exit(1)


def become(argv: Sequence[str]) -> NoReturn:
    """Run colablock's command line in this process, a fork of one that called `load`, and end."""
    status = 1
    try:
        sys.argv = ["colablock", *argv]
        try:
            from colablock.__main__ import main  # noqa: PLC0415 - as the installed command does

            sys.exit(main())
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        except BaseException:  # noqa: BLE001 - as the interpreter does
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _serve(socket.socket(fileno=int(sys.argv[1])))
