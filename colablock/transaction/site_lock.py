"""One change at a time per environment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from colablock._common.fs import flock
from colablock._common.reporter import Reporter
from colablock.environment.site import Site
from colablock.errors import Refused

__all__ = ["locked"]

_PAUSE = 0.05  # seconds between two tries
_PID = "pid"
_MADE = "made-uv-lock"


@contextmanager
def locked(site: Site, *, wait: float = 10.0, reporter: Reporter | None = None) -> Iterator[Path]:
    """Hold *site* for this change and give its state folder, made if need be.

    The lock is on the folder itself, so it leaves no file, and it ends with
    the process however that ends.  In a virtual environment uv's own lock is
    held too.  *reporter* is told whom we wait for.  Raises Refused when another
    process holds it for longer than *wait* seconds, or when the folder cannot
    be written.
    """
    waiting = _Waiting(site=site, deadline=time.monotonic() + wait, reporter=reporter or Reporter())
    with ExitStack() as held:
        held.enter_context(waiting.held(Path(site.data)))
        state = _make_state(site)
        held.callback(_leave, state)
        with suppress(OSError):  # a full disk must not keep a change from being put back
            (state / _PID).write_text(f"{os.getpid()}\n", encoding="ascii")
        if site.is_venv:
            held.enter_context(_uv_lock(Path(site.prefix) / ".lock", state, waiting))
        yield state


def _leave(state: Path) -> None:
    with suppress(OSError):
        (state / _PID).unlink(missing_ok=True)
        state.rmdir()  # stays while it holds an unfinished change, or what leads back over a finished one


@contextmanager
def _uv_lock(path: Path, state: Path, waiting: _Waiting) -> Iterator[None]:
    """Hold uv's lock on a virtual environment: a file that it makes when it first needs it.

    One that we made goes again.  The mark beside the journal says so to the
    next call, should this one be killed.  A uv that has opened the file and waits
    then holds a lock that no later one sees, but never one that we hold.
    """
    mark = state / _MADE
    with suppress(OSError):
        if not path.exists():
            mark.touch()
            path.touch()
    if not path.exists():  # a full disk again
        with suppress(OSError):
            mark.unlink(missing_ok=True)
        yield
        return
    with waiting.held(path):
        try:
            yield
        finally:
            with suppress(OSError):
                if mark.exists():
                    path.unlink(missing_ok=True)
                    mark.unlink()


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A wait for locks: until when, and who is told of it."""

    site: Site
    deadline: float
    reporter: Reporter
    is_told: bool = False

    @contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Hold the lock of *path*."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while not flock(descriptor, wait=False):
                self._wait()
            yield
        finally:
            os.close(descriptor)

    def _wait(self) -> None:
        if time.monotonic() >= self.deadline:
            raise Refused(
                f"{_holder(self.site)} is changing `{self.site.prefix}`",
                hint="Wait until it has ended, then call again",
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
        site.state.mkdir(exist_ok=True)
    except OSError as error:
        raise Refused(
            f"`{site.data}` cannot be changed: {error.strerror}",
            hint="Use an isolated environment, with `--into env`",
        ) from error
    return site.state
