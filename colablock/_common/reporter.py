"""The protocol for progress.  The library never prints: the caller passes a reporter that does."""

from __future__ import annotations

__all__ = ["Reporter"]


class Reporter:
    """A reporter that does nothing.  The terminal and the notebook override the methods that they show.

    Methods may be called from several threads and must not raise.
    """

    def stage(self, text: str) -> None:
        """A stage of the work starts: "Resolving qlora-2026 for Python 3.12"."""

    def resolving(self, name: str, pinned: int) -> None:
        """The resolver looks for a version of *name*; *pinned* projects have one so far."""

    def fetch_started(self, files: int, size: int) -> None:
        """A download of *files* files starts, with *size* bytes in total."""

    def fetched(self, filename: str, size: int) -> None:
        """Another *size* bytes of *filename* have arrived."""

    def fetch_finished(self) -> None:
        """All files have arrived and have the expected hashes."""

    def step(self, text: str, done: int, total: int, *, is_sized: bool = False) -> None:
        """Step *done* of *total* of a change or a verification has ended; with *is_sized* they are bytes."""

    def stage_finished(self) -> None:
        """The stage has ended, and what follows belongs to no stage."""

    def note(self, text: str) -> None:
        """A message for the user, such as a warning or a fallback that is used."""
