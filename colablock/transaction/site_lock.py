"""The lock of an environment: one change at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from colablock._common.fs import flock, replace_file, without_locks
from colablock._common.reporter import Reporter
from colablock.environment.site import Site, check_state
from colablock.errors import Refused

__all__ = ["locked"]

_PAUSE = 0.05  # seconds between two tries
_PID = "pid"
_MADE = "made-uv-lock"


@contextmanager
def locked(site: Site, *, wait: float = 10.0, reporter: Reporter | None = None) -> Iterator[Path]:
    """Lock *site* for a change and yield its state folder, which is created if missing.

    The lock is on the data folder itself, so it leaves no file, and it ends with
    the process.  In a virtual environment, the lock of uv is held, too.  While
    another process holds the lock, *reporter* gets a note.  Raises Refused if
    this lasts longer than *wait* seconds, or if the folder is not writable.
    """
    attempt = _LockAttempt(site=site, deadline=time.monotonic() + wait, reporter=reporter or Reporter())
    with ExitStack() as held:
        held.enter_context(attempt.held(Path(site.data)))
        state = _make_state(site)
        held.callback(_leave, state)
        with suppress(OSError):  # a full disk must not prevent recovery
            replace_file(state / _PID, f"{os.getpid()}\n".encode(), private=True)
        if site.is_venv:
            held.enter_context(_uv_lock(Path(site.prefix) / ".lock", state, attempt))
        yield state


def _leave(state: Path) -> None:
    with suppress(OSError):
        (state / _PID).unlink(missing_ok=True)
        state.rmdir()  # fails while it has an interrupted change or a stash


@contextmanager
def _uv_lock(path: Path, state: Path, attempt: _LockAttempt) -> Iterator[None]:
    """Hold the lock of uv on a virtual environment, a file that uv creates on first use.

    If it was missing, it is created and removed again.  A mark in the state
    folder lets the next call remove it if this one is killed.  A uv that waits
    on the removed file gets a lock that later processes do not see, but never
    while we hold it.
    """
    mark = state / _MADE
    with suppress(OSError):
        if not path.exists():
            mark.touch(mode=0o600)
            path.touch(mode=0o644)
    if not path.exists():  # a full disk
        with suppress(OSError):
            mark.unlink(missing_ok=True)
        yield
        return
    with attempt.held(path):
        try:
            yield
        finally:
            with suppress(OSError):
                if mark.exists():
                    path.unlink(missing_ok=True)
                    mark.unlink()


@dataclass(slots=True, kw_only=True)
class _LockAttempt:
    """The attempt to take locks until a deadline."""

    site: Site
    deadline: float
    reporter: Reporter
    is_told: bool = False

    @contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Hold the lock of *path* during the block."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise Refused(f"`{path}` cannot be locked: {error.strerror}") from error
        try:
            try:
                while not flock(descriptor, wait=False):
                    self._wait()
            except OSError as error:
                raise without_locks(path, error) from error
            yield
        finally:
            os.close(descriptor)

    def _wait(self) -> None:
        if time.monotonic() >= self.deadline:
            raise Refused(
                f"{_holder(self.site)} is changing `{self.site.prefix}`",
                hint="Wait until it has finished, then try again",
            )
        if not self.is_told:
            self.is_told = True
            self.reporter.note(f"waiting: {_holder(self.site)} is changing {self.site.prefix}")
        time.sleep(_PAUSE)


def _holder(site: Site) -> str:
    try:
        pid = int((site.state / _PID).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return "another process"
    return f"another process ({pid})"


def _make_state(site: Site) -> Path:
    try:
        with suppress(FileExistsError):
            site.state.mkdir(mode=0o700)
        check_state(site)
        if (status := site.state.stat()).st_uid == os.geteuid() and status.st_mode & 0o077:
            site.state.chmod(0o700)  # of an earlier release
    except OSError as error:
        raise Refused(
            f"`{site.data}` cannot be changed: {error.strerror}",
            hint="Use an isolated environment, with `--into env`",
        ) from error
    return site.state
