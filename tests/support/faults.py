"""Failing file operations, killed processes, and mounts that only a test sees."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from colablock._common.fs import NEW
from colablock.transaction.disk_operations import TEMPORARY, Operations

__all__ = [
    "Faulty",
    "FaultyAndStuck",
    "Moment",
    "die",
    "error_of",
    "full",
    "has_own_mounts",
    "in_a_child",
    "in_own_mounts",
    "mounted",
]

T = TypeVar("T")

_CLONE_NEWNS = 0x00020000
WRITING = frozenset({"copy", "mkdir", "write"})  # they take disk space


class Moment(Enum):
    """When an operation fails.  One that makes several system calls can fail midway, between them."""

    BEFORE = "before"
    MIDWAY = "midway"
    AFTER = "after"


class Faulty(Operations):
    """Fail one operation, counted from 0: before, midway or after it is done.

    With *stays* every later operation that *only* names (default: each) fails too.
    """

    def __init__(
        self,
        at: int,
        error: Callable[[], BaseException],
        *,
        moment: Moment = Moment.BEFORE,
        stays: bool = False,
        only: Iterable[str] | None = None,
    ) -> None:
        self.at = at
        self.error = error
        self.moment = moment
        self.stays = stays
        self.only = None if only is None else frozenset(only)
        self.names: list[str] = []  # the operations so far

    @property
    def count(self) -> int:
        return len(self.names)

    def _around(self, name: str, done: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        position = len(self.names)
        self.names.append(name)
        fails = position == self.at or (self.stays and position > self.at >= 0)
        if not fails or not (self.only is None or name in self.only):
            done()
            return
        if self.moment is Moment.AFTER:
            with suppress(OSError):  # an operation that the system refuses has ended, too
                done()
        elif self.moment is Moment.MIDWAY and half is not None:
            half()
        raise self.error()

    def rename(self, source: str, destination: str) -> None:
        self._around("rename", lambda: super(Faulty, self).rename(source, destination))

    def copy(self, source: str, destination: str) -> None:
        def half() -> None:
            data = Path(source).read_bytes() if not Path(source).is_symlink() else b""
            Path(destination).write_bytes(data[: len(data) // 2])

        self._around("copy", lambda: super(Faulty, self).copy(source, destination), half)

    def unlink(self, path: str) -> None:
        self._around("unlink", lambda: super(Faulty, self).unlink(path))

    def mkdir(self, path: str, mode: int) -> None:
        self._around("mkdir", lambda: super(Faulty, self).mkdir(path, mode), lambda: Path(path).mkdir())

    def rmdir(self, path: str) -> None:
        self._around("rmdir", lambda: super(Faulty, self).rmdir(path))

    def write(self, path: str, text: str) -> None:
        def half() -> None:
            Path(path).with_name(f"{NEW}0").write_text(text[: len(text) // 2], encoding="ascii")

        self._around("write", lambda: super(Faulty, self).write(path, text), half)


class FaultyAndStuck(Faulty):
    """Refuse renames too: of nothing, of folders (overlayfs) or of everything (another mount)."""

    def __init__(self, what: str, at: int, error: Callable[[], BaseException], **more: Any) -> None:
        super().__init__(at, error, **more)
        self._what = what

    def rename(self, source: str, destination: str) -> None:
        is_folder = Path(source).is_dir() and not Path(source).is_symlink()
        is_ours = source.endswith((TEMPORARY, ".json"))
        if (self._what == "everything" and not is_ours) or (self._what == "folders" and is_folder):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
        super().rename(source, destination)


def error_of(number: int) -> Callable[[], OSError]:
    """Return a function that makes the OSError with that number."""
    return lambda: OSError(number, os.strerror(number))


def full() -> OSError:
    """Return the error of a full disk."""
    return error_of(errno.ENOSPC)()


def die() -> BaseException:
    """Kill this process, as a kernel restart or a lack of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError  # the signal comes first


def in_a_child(work: Callable[[], object]) -> int:
    """Run *work* in a child process, and return its exit code: negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 (it must not return into the test)
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_own_mounts(work: Callable[[], T]) -> T:
    """Run *work* in a child process with private mounts, and return its result."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _leave_mounts()
            answer: tuple[object, str | None] = (work(), None)
        except BaseException:  # noqa: BLE001 (it must not return into the test)
            answer = (None, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    value, failure = pickle.loads(data)  # noqa: S301 (our own child wrote it)
    assert failure is None, failure
    result: T = value
    return result


@cache
def has_own_mounts() -> bool:
    """Whether a process here may have private mounts: root may, but not in most containers."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]  # gone with the process
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _leave_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _run("mount", "--make-rprivate", "/")


@contextmanager
def mounted(kind: str, at: Path, options: str) -> Iterator[None]:
    """Mount a file system of *kind* at *at* for the block."""
    _run("mount", "-t", kind, "-o", options, kind, str(at))
    try:
        yield
    finally:
        _run("umount", str(at))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
