"""Limits of time that hold on a machine of any speed, also one that has other work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["PATIENCE", "processes_of", "slowness", "state_of", "takes_at_most", "until"]

#: Seconds to wait for something that takes a few on a machine that has nothing else to do.
PATIENCE = 240
_USUAL = 0.0065  # seconds of processor time for `_work` on the machine where the limits were measured
_ROUNDS = 5


def until(
    holds: Callable[[], Any],
    *,
    patience: float = PATIENCE,
    told: Callable[[], str] = lambda: "it did not come to pass",
) -> None:
    """Wait until *holds* is true.  *told* is the message of the failure after *patience* seconds."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, told()
        time.sleep(0.005)


def state_of(process: int) -> str:
    """Return the letter for the state of a process (proc_pid_stat(5)); that of one that is gone is Z."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def processes_of(path: Path) -> list[int]:
    """Return the processes that have *path*, or something below it, in their command."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if os.fsencode(path) in command.read_bytes():
                found.append(int(command.parent.name))
    return found


def slowness() -> float:
    """Return how many times longer than there a fixed piece of work takes here and now; 1 at least.

    Other work on the same core makes that of this process take more processor time, too.
    """
    started = time.process_time()
    for _ in range(_ROUNDS):
        _work()
    return max(1.0, (time.process_time() - started) / _ROUNDS / _USUAL)


@contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    """Expect that the block takes less than *seconds* of processor time, on a machine of the usual speed."""
    started = time.process_time()
    yield
    taken = time.process_time() - started
    assert taken < seconds or taken < seconds * slowness(), f"it took {taken:.1f} s, not {seconds:g}"


def _work() -> int:
    return len({" ".join(sorted(str(one) for one in range(at, at + 50))) for at in range(0, 10_000, 10)})
