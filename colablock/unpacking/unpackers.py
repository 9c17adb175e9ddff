"""Processes that unpack wheels into the store: zlib and hashes of one process keep one core busy.

Threads do not help, because a wheel has many small files, for each of which they would wait for each other.
A process that fails or is killed does no harm: what it has not unpacked, this process unpacks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from colablock._common.child_environment import Purpose, child_environment
from colablock._common.process import own_command
from colablock.network.cache import Cache
from colablock.unpacking.store import UnpackedStore

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MOST", "Unpackers", "cores", "end", "main", "started"]

MOST = 4  # processes: then the disk is the limit
_WORTH = 64 << 20  # bytes of unpacked files, half a second: a process starts in a tenth of one
_SHARE = 32 << 20  # bytes of unpacked files for each process, at least


class Unpackers:
    """Processes that unpack *wheels*, by path with SHA-256 and unpacked size, into the store of *cache*.

    There are none if the wheels are small, or if there is one core.  Leaving the context ends them.
    """

    def __init__(
        self, wheels: Mapping[Path, tuple[str, int]], cache: Cache | None, environ: Mapping[str, str]
    ) -> None:
        self._wheels = wheels if cache is not None and sys.executable else {}
        self._folder = str(cache.folder) if cache is not None else ""
        self._environ = environ
        self._outputs: dict[Path, IO[bytes]] = {}  # by wheel, of the process that unpacks it
        self._processes = ExitStack()

    def __enter__(self) -> Self:
        for part in _parts({wheel: size for wheel, (_, size) in self._wheels.items()}, cores()):
            job = json.dumps([self._folder, [[str(wheel), self._wheels[wheel][0]] for wheel in part]])
            with suppress(OSError):  # this process unpacks them
                process = started(__name__, job.encode(), self._environ, output=subprocess.PIPE)
                self._processes.callback(end, process)
                self._outputs |= dict.fromkeys(part, cast("IO[bytes]", process.stdout))
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def wait(self, wheel: Path) -> None:
        """Wait until the process that unpacks *wheel* has done so, or has ended."""
        output = self._outputs.get(wheel)
        while output is not None and wheel in self._outputs:
            line = output.readline()
            if line:
                self._outputs.pop(Path(os.fsdecode(line[:-1])), None)  # a `.pth` file may print lines, too
            else:
                self._outputs = {one: other for one, other in self._outputs.items() if other is not output}


def started(
    module: str, job: bytes, environ: Mapping[str, str], *descriptors: int, output: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process that runs `main` of a *module* with *job* as its standard input.  Raises OSError."""
    with tempfile.TemporaryFile() as given:
        given.write(job)
        given.seek(0)
        return subprocess.Popen(
            own_command(module),
            env=child_environment(Purpose.LOCAL, environ),
            cwd=os.sep,
            stdin=given,
            stdout=output,
            stderr=subprocess.DEVNULL,  # what it could not do, this process says
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C is for this process
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and wait for it."""
    with process:
        process.kill()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main(_: Sequence[str]) -> int:
    """Unpack the wheels that standard input names, and print the path of each one that is unpacked."""
    folder, wheels = json.load(sys.stdin)
    cache = Cache(Path(folder))
    store = UnpackedStore(cache, target=cache.folder, scratch=cache.unfinished)
    for path, sha256 in wheels:
        store.get(Path(path), sha256)
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.buffer.flush()
    store.close()
    return 0


def _parts(sizes: Mapping[Path, int], most: int) -> list[list[Path]]:
    """Return the wheels for each process: the largest first, each to the one that has the fewest bytes."""
    total = sum(sizes.values())
    number = min(most, MOST, total // _SHARE, len(sizes))
    if total < _WORTH or number < 2:  # noqa: PLR2004 - one process is no gain
        return []
    parts: list[tuple[int, list[Path]]] = [(0, []) for _ in range(number)]
    for wheel in sorted(sizes, key=lambda path: -sizes[path]):
        at = min(range(number), key=lambda one: parts[one][0])
        size, part = parts[at]
        parts[at] = size + sizes[wheel], [*part, wheel]
    return [part for _, part in parts]
