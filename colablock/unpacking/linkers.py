"""Processes that link the files of unpacked wheels into an environment, each on a core.

Threads do not help: each of 25,000 links takes 10 microseconds, after which they would wait for each other.
A process that fails or is killed does no harm: the wheels that it was to link, the caller installs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

from colablock.unpacking.layout import Layout
from colablock.unpacking.link_files import WheelPart, link_part, put, take
from colablock.unpacking.store import StoredWheel
from colablock.unpacking.unpackers import MOST, cores, end, started

__all__ = ["link_wheels"]

Name = TypeVar("Name", bound=str)

_SHARE = 3000  # files for each process, at least: a process starts in the time of 1500 links
_PART = 2000  # files that a process takes at once


def link_wheels(
    wheels: Mapping[Name, StoredWheel], layout: Layout, environ: Mapping[str, str]
) -> dict[Name, StoredWheel]:
    """Link the files of *wheels* that go to the folder of the modules; return the wheels with all of them.

    The files of these are as they were written.  Nothing is replaced: of a path in two wheels, one wheel
    is not returned.  Without a second core, for few files and for copies, no wheel is.
    """
    number = min(cores(), MOST, sum(len(stored.wheel.files) for stored in wheels.values()) // _SHARE)
    if number < 2 or layout.copies or not sys.executable:  # noqa: PLR2004 - one process is no gain
        return {}
    ordered = sorted(wheels, key=lambda name: -len(wheels[name].wheel.files))
    parts = [(name, part) for name in ordered for part in _parts(wheels[name], layout)]
    linked = _link([(wheels[name], part) for name, part in parts], layout, environ, number - 1)
    failed = {name for at, (name, _) in enumerate(parts) if at not in linked}
    return {name: stored for name, stored in wheels.items() if name not in failed}


def _parts(stored: StoredWheel, layout: Layout) -> Iterator[WheelPart]:
    manifest, tree = str(stored.manifest), str(stored.folder)
    target = layout.folders["purelib" if stored.wheel.is_pure else "platlib"]
    for first in range(0, len(stored.wheel.files), _PART):
        yield WheelPart(manifest, tree, stored.wheel.info, target, first, first + _PART)


def _link(
    parts: Sequence[tuple[StoredWheel, WheelPart]], layout: Layout, environ: Mapping[str, str], helpers: int
) -> set[int]:
    """Link *parts* of wheels here and in *helpers* other processes; return which ones are linked."""
    mode, linked = 0o777 & ~layout.umask, set()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as found, ExitStack() as processes:
        for number in range(len(parts)):
            put(given.fileno(), number)
        given.seek(0)
        job = {
            "parts": [part for _, part in parts],
            "given": given.fileno(),
            "linked": found.fileno(),
            "mode": mode,
            "parent": os.getpid(),
        }
        running = []
        for _ in range(helpers):
            with suppress(OSError):  # the others link them
                shared = given.fileno(), found.fileno()
                running.append(started(link_part.__module__, json.dumps(job).encode(), environ, *shared))
                processes.callback(end, running[-1])
        for number in take(given.fileno()):
            stored, part = parts[number]
            if link_part(part, stored.wheel.files[part.first : part.last], mode, layout.made):
                linked.add(number)
        for process in running:
            process.wait()
        found.seek(0)
        return linked | {*take(found.fileno())}
