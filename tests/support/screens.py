"""Targets of display tests: consoles in memory, the shell of a notebook, and a clock."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console

__all__ = ["Clock", "FakeKernel", "FakeShell", "Publisher", "console", "stripped", "written"]


def console(*, width: int = 80, terminal: bool = False, colour: bool = False) -> Console:
    """Return a console that writes into memory; one with *colour* is a terminal."""
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=terminal or colour,
        color_system="standard" if colour else None,
    )


def written(to: Console) -> str:
    """Return all that was written to *to*."""
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def stripped(to: Console) -> str:
    """Return all that was written to *to*, without spaces at the end of a line."""
    return "".join(f"{line.rstrip()}\n" for line in written(to).splitlines())


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Publisher:
    """Record what is sent to a notebook: the data, the transient part, and whether it is an update."""

    def __init__(self) -> None:
        self.sent: list[tuple[Mapping[str, Any], Mapping[str, object], bool]] = []
        self.is_broken = False

    def publish(
        self,
        data: Mapping[str, object],
        metadata: Mapping[str, object] | None = None,
        *,
        transient: Mapping[str, object] | None = None,
        update: bool = False,
    ) -> None:
        assert metadata is None
        if self.is_broken:
            raise ConnectionError
        self.sent.append((data, transient or {}, update))

    def plain(self) -> list[str]:
        """Return the plain texts."""
        return [str(data["text/plain"]) for data, _, _ in self.sent if "text/plain" in data]


class FakeKernel:
    """Record how it was shut down."""

    def __init__(self) -> None:
        self.ends: list[bool] = []

    def do_shutdown(self, restart: bool) -> None:
        self.ends.append(restart)


class FakeShell:
    """The part of a notebook's shell that our views use."""

    def __init__(self) -> None:
        self.display_pub = Publisher()
        self.kernel = FakeKernel()
