"""What the stations tell while they work.  The library never prints: the edge draws."""

from __future__ import annotations

__all__ = ["Reporter"]


class Reporter:
    """Does nothing; the terminal and the notebook each override what they draw.

    Methods may be called from several threads, and never raise.
    """

    def stage(self, text: str) -> None:
        """A station begins: "Resolving qlora-2026 for Python 3.12"."""

    def resolving(self, name: str, pinned: int) -> None:
        """*name* is being decided; *pinned* projects are decided so far."""

    def fetch_started(self, files: int, size: int) -> None:
        """*files* files of *size* bytes in all are going to be fetched."""

    def fetched(self, filename: str, size: int) -> None:
        """*size* more bytes of *filename* have arrived."""

    def fetch_finished(self) -> None:
        """All files are here and their hashes hold."""

    def step(self, text: str, done: int, total: int) -> None:
        """One step of a change or a proof ended: *done* of *total*."""

    def note(self, text: str) -> None:
        """Something the user should read: a fallback taken, a warning."""
