"""The disk space of a change: sizes, free space, and the cost of keeping files of the image for an undo."""

# Paths are strings here: a change of a whole stack has 30,000 of them.

from __future__ import annotations

import os
import re
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from colablock._common.archives import open_zip
from colablock._common.fs import free_space
from colablock._common.text import command_line, size_text
from colablock._records import dataclass
from colablock.environment.record import Row, readable_rows, recorded_paths
from colablock.environment.site import Site, python_words
from colablock.environment.snapshot import Installed, Snapshot
from colablock.errors import Unmet
from colablock.planning.plan import Action, Plan, UndoCost

__all__ = ["TreeSize", "check_room", "more_room", "room_note", "tree_size", "undo_cost", "unpacked_size"]

_BLOCK = 4096  # bytes: files occupy a multiple of this on nearly every file system
_UNPACKED = 2.0  # unpacked size of a stack divided by the size of its wheels; 2.1 for torch with CUDA
_LOOKED_AT = 4000  # files to check: 0.1 s of stat calls
_WORTH_MEASURING = 100_000_000  # bytes
_SMALL = 65536  # bytes: copying a smaller file costs as much as copying an empty one
_FEW = 20  # files to measure the cost of one
_SAMPLE = 32 << 20  # bytes to measure the copy rate
_PATIENCE = 0.2  # seconds, limit for each of the two measurements


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    kind: str
    options: str

    @property
    def upper(self) -> str | None:
        """The upper folder of an overlay, if it is visible from here."""
        found = re.search(r"(?:^|,)upperdir=(/(?:\\.|[^,\\])+)", self.options)  # not a relative one
        path = found[1].replace("\\,", ",") if found else None
        return path if path is not None and os.access(path, os.R_OK | os.X_OK) else None


class TreeSize(NamedTuple):
    """Bytes: of all files, and of those that other folders have links to, so that they outlive this one."""

    total: int
    shared: int


def tree_size(folder: Path) -> TreeSize:
    """Return the size of the files below *folder*; one that several paths are links to counts once."""
    size, pending = 0, [str(folder)]
    linked: dict[tuple[int, int], tuple[int, int, int]] = {}  # by inode: its bytes, its links, those here
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink == 1:
                    size += status.st_size
                    continue
                inode = (status.st_dev, status.st_ino)
                linked[inode] = (status.st_size, status.st_nlink, linked.get(inode, (0, 0, 0))[2] + 1)
    size += sum(own for own, _, _ in linked.values())
    return TreeSize(size, sum(own for own, links, here in linked.values() if links > here))


def unpacked_size(wheels: Iterable[Path]) -> int:
    """Return the bytes that *wheels* occupy when unpacked, according to their zip directories."""
    size = 0
    for wheel in wheels:
        try:
            with wheel.open("rb") as stream, open_zip(stream) as archive:
                size += sum(-(-member.file_size // _BLOCK) * _BLOCK for member in archive.infolist())
        except (OSError, zipfile.BadZipFile):  # noqa: PERF203 - about a hundred wheels
            continue  # unpacking it reports the fault
    return size


def more_room(site: Site) -> str:
    """Return which commands free disk space for a change of *site*."""
    drop = command_line("history", "--drop", *python_words(site.python, site.prefix))
    prune = "`colablock cache prune` what no environment uses"
    return f"`{drop}` deletes the stashes of earlier changes, and {prune}"


def check_room(need: int, folder: Path, *, hint: str) -> None:
    """Raise Unmet, with *hint*, if *folder* has less than *need* free bytes."""
    free = free_space(folder)
    if need > free:
        raise Unmet(
            f"`{folder}` needs {size_text(need)} of free space and has {size_text(free)}; "
            "nothing was changed",
            hint=hint,
        )


def room_note(plan: Plan, folder: Path) -> str | None:
    """Return a warning if *folder* probably has too little space for *plan*, by the sizes on the indexes."""
    copied = plan.undo_cost.bytes if plan.undo_cost is not None else 0
    need, free = round(plan.file_size * _UNPACKED) + copied, free_space(folder)
    if need <= free:
        return None
    return (
        f"the disk is probably too small: `{folder}` needs about {size_text(need)} of free space "
        f"and has {size_text(free)}"
    )


def undo_cost(
    plan: Plan,
    snapshot: Snapshot,
    *,
    mountinfo: Path = Path("/proc/self/mountinfo"),
    started: float | None = None,
) -> UndoCost | None:
    """Return the cost of keeping the files of the image that *plan* removes, or None if there is none.

    An overlay moves a file of a lower layer by copying it.  A sample of the files
    shows how many these are: those not in the upper layer, if that is visible,
    or else those with a ctime before *started* (default: the start of process 1,
    the first process of a container).
    """
    site = os.path.realpath(snapshot.site)
    mount = _mount_of(site, mountinfo)
    if mount is None or mount.kind != "overlay":
        return None
    removed = [
        installed
        for step in plan.steps
        if step.action is not Action.INSTALL and (installed := snapshot.everything.get(step.name)) is not None
    ]
    image = _Image(mount, _boot() if started is None else started)
    each = max(_LOOKED_AT // max(len(removed), 1), 1)
    files, size, sample = 0.0, 0.0, []
    for installed in removed:
        rows = _rows(installed)
        looked_at = rows[:: max(len(rows) // each, 1)]
        found = [path for path, _ in looked_at if image.holds(path)]
        share = len(found) / max(len(looked_at), 1)
        files += share * len(rows)
        size += share * sum(int(row.size) for _, row in rows if row.size.isdecimal())
        sample += found
    if not files:
        return None
    seconds = _copy_time(sample, round(files), size, site) if size >= _WORTH_MEASURING else 0.0
    return UndoCost(files=round(files), bytes=round(size), seconds=seconds)


def _mount_of(path: str, mountinfo: Path) -> _Mount | None:
    """Return the mount of *path*: the longest mount point above it, and the last mount at that point."""
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    best = None
    for line in lines:  # proc_pid_mountinfo(5)
        before, _, after = line.partition(" - ")
        point = _plain(before.split(" ")[4])
        kind, _, options = after.split(" ", 2)
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best.point)):
            best = _Mount(point, kind, _plain(options))
    return best


def _plain(text: str) -> str:
    """Return a field without octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _boot() -> float:
    """Return the start of process 1 in seconds since the epoch, or infinity if it is unknown."""
    try:
        ticks = int(Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        found = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError, IndexError):
        return float("inf")
    return int(found[1]) + ticks / os.sysconf("SC_CLK_TCK") if found else float("inf")


class _Image:
    """Distinguishes files in the lower layers of an overlay from those in the upper layer."""

    def __init__(self, mount: _Mount, started: float) -> None:
        self._point = mount.point.rstrip("/")
        self._upper = mount.upper
        self._started = started

    def holds(self, path: str) -> bool:
        try:
            changed = os.lstat(path).st_ctime
        except OSError:
            return False
        if self._upper is None:
            return changed < self._started
        return path.startswith(f"{self._point}/") and not os.path.lexists(
            self._upper + path[len(self._point) :]
        )


def _rows(installed: Installed) -> list[tuple[str, Row]]:
    rows = readable_rows(Path(installed.path)) if installed.path else None
    if rows is None or installed.path is None:
        return []
    site = os.path.realpath(os.path.dirname(installed.path))  # noqa: PTH120
    return list(zip(recorded_paths(site, rows), rows, strict=True))


def _copy_time(sample: Sequence[str], files: int, size: float, folder: str) -> float:
    """Return the estimated seconds to copy *files* of *size* bytes, from copies of some of *sample*."""
    sizes = sorted((os.lstat(path).st_size, path) for path in sample if not os.path.islink(path))  # noqa: PTH114
    try:
        with tempfile.TemporaryFile(dir=folder) as target:
            small = [path for length, path in sizes if 0 < length <= _SMALL]
            copied, _, taken = _copy(small[:: max(len(small) // _FEW, 1)], target, each=True)
            large = [path for _, path in reversed(sizes)]
            _, done, spent = _copy(large, target, each=False)
    except OSError:
        return 0.0  # the change reports the fault
    return files * taken / max(copied, 1) + size * spent / max(done, 1)


def _copy(paths: Iterable[str], target: IO[bytes], *, each: bool) -> tuple[int, int, float]:
    """Copy until a limit of size or time; return files, bytes and seconds.  With *each*, sync every file."""
    start = time.monotonic()
    files = done = 0
    for path in paths:
        target.seek(0)
        with open(path, "rb") as source:  # noqa: PTH123
            # The first block counts in any case: without one, the rate of a busy machine would be zero.
            while done < _SAMPLE and (not done or time.monotonic() - start < _PATIENCE):
                if not (data := source.read(1 << 20)):
                    break
                done += target.write(data)
        files += 1
        if each:
            os.fsync(target.fileno())
        if done >= _SAMPLE or time.monotonic() - start >= _PATIENCE:
            break
    target.flush()
    os.fsync(target.fileno())
    return files, done, time.monotonic() - start
