"""What a change takes of the disk: sizes, free space, and what it costs to keep an image's files."""

# Paths are strings here: a change of a whole stack has 30,000 of them.

from __future__ import annotations

import os
import re
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from colablock._common.fs import free_space
from colablock._common.text import size_text
from colablock.environment.record import Row, read_record, recorded_paths
from colablock.environment.snapshot import Installed, Snapshot
from colablock.errors import Unmet
from colablock.planning.plan import Action, Plan, UndoCost

__all__ = ["check_room", "room_note", "tree_size", "undo_cost", "unpacked_size"]

_BLOCK = 4096  # bytes: what a file takes is a multiple of it on nearly every file system
_UNPACKED = 2.0  # a stack's unpacked size over that of its wheels: 2.1 for torch and its CUDA libraries
_LOOKED_AT = 4000  # files: a tenth of a second of stats
_WORTH_MEASURING = 100_000_000  # bytes
_SMALL = 65536  # bytes: a file whose copy costs what any file costs
_FEW = 20  # files that tell what one costs
_SAMPLE = 32 << 20  # bytes that tell the rate
_PATIENCE = 0.2  # seconds for each of the two measurements


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    kind: str
    options: str

    @property
    def upper(self) -> str | None:
        """The folder of an overlay's own layer, where it can be seen from here."""
        found = re.search(r"(?:^|,)upperdir=(/(?:\\.|[^,\\])+)", self.options)  # a relative one leads nowhere
        path = found[1].replace("\\,", ",") if found else None
        return path if path is not None and os.access(path, os.R_OK | os.X_OK) else None


def tree_size(folder: Path) -> int:
    """Return the bytes of all files below *folder*."""
    size, pending = 0, [str(folder)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def unpacked_size(wheels: Iterable[Path]) -> int:
    """Return the bytes of disk that *wheels* take unpacked, as their zip directories say."""
    size = 0
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                size += sum(-(-member.file_size // _BLOCK) * _BLOCK for member in archive.infolist())
        except (OSError, zipfile.BadZipFile):  # noqa: PERF203 - there are a hundred of them
            continue  # who unpacks it says what is wrong with it
    return size


def check_room(need: int, folder: Path, *, hint: str) -> None:
    """Raise Unmet, with *hint*, where less than *need* bytes are free in *folder*."""
    free = free_space(folder)
    if need > free:
        raise Unmet(
            f"{size_text(need)} are needed in `{folder}`, and {size_text(free)} are free there; "
            "nothing was changed",
            hint=hint,
        )


def room_note(plan: Plan, folder: Path) -> str | None:
    """Return that the disk of *folder* looks too small for *plan*, by the sizes that the indexes give."""
    copied = plan.undo_cost.bytes if plan.undo_cost is not None else 0
    need, free = round(plan.fetch_size * _UNPACKED) + copied, free_space(folder)
    if need <= free:
        return None
    return (
        f"the disk looks too small: by an estimate {size_text(need)} are needed in `{folder}`, "
        f"and {size_text(free)} are free"
    )


def undo_cost(
    plan: Plan,
    snapshot: Snapshot,
    *,
    mountinfo: Path = Path("/proc/self/mountinfo"),
    started: float | None = None,
) -> UndoCost | None:
    """Return what it costs to keep the files of an image that *plan* takes away; None where it costs nothing.

    An overlay moves a file of its lower layers by copying it.  Which files lie
    there is looked up in a sample of them: in the overlay's own layer where that
    can be seen, else by their time of change, which is before *started* (default:
    the start of process 1, with which a container begins).
    """
    site = os.path.realpath(snapshot.site)
    mount = _mount_of(site, mountinfo)
    if mount is None or mount.kind != "overlay":
        return None
    gone = [
        installed
        for step in plan.steps
        if step.action is not Action.INSTALL and (installed := snapshot.installed.get(step.name)) is not None
    ]
    image = _Image(mount, _boot() if started is None else started)
    each = max(_LOOKED_AT // max(len(gone), 1), 1)
    files, size, sample = 0.0, 0.0, []
    for installed in gone:
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
    """Return the mount that *path* lies on: the longest mount point that leads to it, the last one there."""
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
    """Return a field with its octal escapes resolved."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _boot() -> float:
    """Return when process 1 started, in seconds since the epoch; infinity where that is not known."""
    try:
        ticks = int(Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        found = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError, IndexError):
        return float("inf")
    return int(found[1]) + ticks / os.sysconf("SC_CLK_TCK") if found else float("inf")


class _Image:
    """Tells the files of an overlay's lower layers from those of its own."""

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
    rows = read_record(Path(installed.path)) if installed.path else None
    if rows is None or installed.path is None:
        return []
    site = os.path.realpath(os.path.dirname(installed.path))  # noqa: PTH120
    return list(zip(recorded_paths(site, rows), rows, strict=True))


def _copy_time(sample: Sequence[str], files: int, size: float, folder: str) -> float:
    """Return the seconds to copy *files* of *size* bytes, by what some of *sample* take in *folder*."""
    sizes = sorted((os.lstat(path).st_size, path) for path in sample if not os.path.islink(path))  # noqa: PTH114
    try:
        with tempfile.TemporaryFile(dir=folder) as target:
            small = [path for length, path in sizes if 0 < length <= _SMALL]
            copied, _, taken = _copy(small[:: max(len(small) // _FEW, 1)], target, each=True)
            large = [path for _, path in reversed(sizes)]
            _, done, spent = _copy(large, target, each=False)
    except OSError:
        return 0.0  # the change says what is wrong with it
    return files * taken / max(copied, 1) + size * spent / max(done, 1)


def _copy(paths: Iterable[str], target: IO[bytes], *, each: bool) -> tuple[int, int, float]:
    """Copy up to the sample's size or time; return files, bytes and seconds.  *each* file is synced."""
    begun = time.monotonic()
    files = done = 0
    for path in paths:
        target.seek(0)
        with open(path, "rb") as source:  # noqa: PTH123
            while done < _SAMPLE and time.monotonic() - begun < _PATIENCE and (data := source.read(1 << 20)):
                done += target.write(data)
        files += 1
        if each:
            os.fsync(target.fileno())
        if done >= _SAMPLE or time.monotonic() - begun >= _PATIENCE:
            break
    target.flush()
    os.fsync(target.fileno())
    return files, done, time.monotonic() - begun
