"""One change at a time per environment."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from colablock.errors import Refused
from colablock.site import Site

__all__ = ["locked"]

_PAUSE = 0.05  # seconds between two tries


@contextmanager
def locked(site: Site, *, wait: float = 10.0) -> Iterator[Path]:
    """Hold *site* for this change and give its state folder, made if need be.

    The lock is on the folder itself, so it leaves no file, and it ends with
    the process however that ends.  Raises Refused when another process holds
    it for longer than *wait* seconds, or when the folder cannot be written.
    """
    deadline = time.monotonic() + wait
    with ExitStack() as held:
        held.enter_context(_flock(Path(site.data), deadline, site))
        uv_lock = Path(site.prefix) / ".lock"
        if site.is_venv and uv_lock.is_file():  # uv's own lock on this environment
            held.enter_context(_flock(uv_lock, deadline, site))
        state = _make_state(site)
        try:
            with suppress(OSError):  # a full disk must not keep a change from being put back
                (state / "pid").write_text(f"{os.getpid()}\n", encoding="ascii")
            yield state
        finally:
            with suppress(OSError):
                (state / "pid").unlink(missing_ok=True)
                state.rmdir()  # stays while it holds an unfinished change


@contextmanager
def _flock(path: Path, deadline: float, site: Site) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Refused(
                        f"{_holder(site)} is changing `{site.prefix}`",
                        hint="Wait until it has ended, then call again",
                    ) from error
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _holder(site: Site) -> str:
    try:
        pid = int((site.state / "pid").read_text(encoding="ascii"))
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
