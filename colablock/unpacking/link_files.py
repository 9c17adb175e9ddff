"""Link files of unpacked wheels into an environment: the part that processes of other cores share.

It needs only the standard library, so that such a process starts in 20 ms.
"""

# Paths are strings here: a stack has 25,000 files.
# ruff: noqa: PTH102, PTH112

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

__all__ = [
    "OF_INSTALLERS",
    "WheelPart",
    "data_prefix",
    "differs",
    "link_part",
    "main",
    "make_folder",
    "put",
    "take",
]


#: Of installers.  What a wheel has under these names says nothing about this installation.
OF_INSTALLERS = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json")
_WIDTH = 6  # bytes of a number in a file, which are read and written at once


class WheelPart(NamedTuple):
    """Files of an unpacked wheel in *tree*, from *first* to before *last*, and the folder to link them to.

    *manifest* lists the files, and *info* is the metadata folder of the wheel.
    """

    manifest: str
    tree: str
    info: str
    target: str
    first: int
    last: int


def data_prefix(info: str) -> str:
    """Return how the paths begin that go to other folders than the one of the modules."""
    return f"{info.removesuffix('.dist-info')}.data/"


def differs(status: os.stat_result, size: int, mode: int, mtime: int) -> bool:
    """Whether a file of the store is not as it was written."""
    return status.st_size != size or status.st_mode != mode or status.st_mtime_ns != mtime


def make_folder(folder: str, mode: int, made: set[str]) -> None:
    """Create *folder* and the missing folders above it, unless it is in *made*, and add it there."""
    if folder in made:
        return
    try:
        os.mkdir(folder, mode)
    except FileNotFoundError:
        make_folder(folder.rpartition("/")[0], mode, made)
        make_folder(folder, mode, made)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise
    made.add(folder)


def link_part(
    part: WheelPart, files: Iterable[tuple[str, str, int, int, int]], mode: int, made: set[str]
) -> bool:
    """Link the *files* of *part* that go to the folder of the modules; return whether all is well.

    It is not if a file is not as it was written, belongs to another user, or cannot be linked, for example
    because something is at its place.  *mode* is that of new folders.
    """
    own, data = os.geteuid(), data_prefix(part.info)
    left = {f"{part.info}/{name}" for name in OF_INSTALLERS}
    try:
        for path, _, size, file_mode, mtime in files:
            source = f"{part.tree}/{path}"
            status = os.lstat(source)
            if status.st_uid != own or differs(status, size, file_mode, mtime):
                return False
            if path in left or path.startswith(data):
                continue
            destination = f"{part.target}/{path}"
            make_folder(destination.rpartition("/")[0], mode, made)
            os.link(source, destination)
    except OSError:
        return False
    return True


def take(numbers: int) -> Iterator[int]:
    """Yield the next numbers of an open file whose position processes share: each goes to one of them."""
    while found := os.read(numbers, _WIDTH):
        yield int(found)


def put(numbers: int, number: int) -> None:
    """Write a number to an open file whose position processes share."""
    os.write(numbers, b"%*d" % (_WIDTH, number))


def main(_: Sequence[str]) -> int:
    """Link parts of the wheels that standard input names, and write the numbers of those that are linked."""
    job: dict[str, Any] = json.load(sys.stdin)
    parts = [WheelPart(*part) for part in job["parts"]]
    made: set[str] = set()
    manifest, files = "", []
    for number in take(job["given"]):
        part = parts[number]
        if part.manifest != manifest:
            with open(part.manifest, encoding="utf-8") as stream:  # noqa: PTH123
                manifest, files = part.manifest, json.load(stream)["files"]
        # Without its parent, which was killed, the environment is one that another process clears or builds.
        wanted = takewhile(lambda _: os.getppid() == job["parent"], files[part.first : part.last])
        if link_part(part, wanted, job["mode"], made):
            put(job["linked"], number)
    return 0
