"""Lay out an unpacked wheel in the folders of a prefix: links, scripts, and the rows of its RECORD."""

# Paths are strings here: a stack has 25,000 files.
# ruff: noqa: PTH101, PTH108

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import field
from pathlib import Path

from colablock._common.process import safe_umask
from colablock._common.text import printable
from colablock._records import dataclass
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.record import Row, hash_text, write_record
from colablock.errors import BadDistribution
from colablock.index.wheel_check import script_entries
from colablock.unpacking.link_files import OF_INSTALLERS, data_prefix, make_folder
from colablock.unpacking.store import StoredWheel
from colablock.unpacking.unpack import UnpackedFile

__all__ = ["Layout", "lay_out"]

_LONGEST_SHEBANG = 127  # bytes, with `#!` and the newline: Linux cuts off more
_COPIED = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})
_SCRIPT = """\
# -*- coding: utf-8 -*-
import sys
from {module} import {first}
if __name__ == "__main__":
    if sys.argv[0].endswith("-script.pyw"):
        sys.argv[0] = sys.argv[0][:-11]
    elif sys.argv[0].endswith(".exe"):
        sys.argv[0] = sys.argv[0][:-4]
    sys.exit({function}())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the files of wheels go, and from where they are moved later.

    *folders* has the folder to write to for each scheme (purelib, platlib, scripts, data, headers), and
    *final* its place when the environment is complete.  *python* is the interpreter of scripts.
    """

    folders: Mapping[str, str]
    final: Mapping[str, str]
    python: str
    copies: bool = False
    umask: int = field(default_factory=safe_umask)
    made: set[str] = field(default_factory=set, repr=False)


def lay_out(
    stored: StoredWheel, layout: Layout, own: Mapping[str, str], *, linked: bool = False
) -> tuple[Path, tuple[Row, ...]]:
    """Put the files of *stored* in place; return its metadata folder and the rows of its RECORD.

    *own* are the texts of files of the metadata folder that the installer writes, by name.  With *linked*,
    the files that go to the folder of the modules are there already, see `link_wheels`.  A file that an
    earlier distribution has put there is replaced.  Raises BadDistribution if a file and a folder have one
    path, and OSError.
    """
    root = "purelib" if stored.wheel.is_pure else "platlib"
    try:
        rows = {row.path: row for row in _rows(stored, layout, root, own, linked=linked)}
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        path = printable(str(error.filename2 or error.filename))
        raise BadDistribution(
            f"`{stored.wheel.filename}` has a file where another wheel has a folder: `{path}`"
        ) from error
    info = Path(layout.folders[root], stored.wheel.info)
    record = Row(path=f"{stored.wheel.info}/RECORD")
    write_record(info, [*rows.values(), record])
    return info, (*rows.values(), record)


def _rows(
    stored: StoredWheel, layout: Layout, root: str, own: Mapping[str, str], *, linked: bool
) -> Iterator[Row]:
    info = stored.wheel.info
    left = {f"{info}/{name}" for name in OF_INSTALLERS}
    data = data_prefix(info)
    tree, target = str(stored.folder), layout.folders[root]
    are_linked = stored.is_own and not layout.copies  # an installed file must not be another user's
    for file in stored.wheel.files:
        path = file.path
        if path in left:
            continue
        if path.startswith(data):
            yield _row_of_data(stored, file, layout, root, path.removeprefix(data))
            continue
        if not linked:
            source, destination = f"{tree}/{path}", f"{target}/{path}"
            _make_folder(destination, layout)
            if not (are_linked and _is_linked(source, destination)):
                _copy(source, destination, layout, is_script=False)
        yield Row(path, file.hash, str(file.size))
    points = Path(stored.folder, info, "entry_points.txt")
    for name, target in _scripts(points).items():
        made = (_shebang(layout.python) + _entry_text(target)).encode()
        yield _written(layout, root, "scripts", name, made, mode=0o777)
    for name, text in own.items():
        yield _written(layout, root, root, f"{info}/{name}", text.encode(), mode=0o666)


def _row_of_data(stored: StoredWheel, file: UnpackedFile, layout: Layout, root: str, path: str) -> Row:
    """Put *file* in place, which has the *path* in the ``.data`` folder of the wheel; return its row."""
    scheme, _, path = path.partition("/")
    place = _path(scheme, path, stored.wheel.info)
    source = f"{stored.folder}/{file.path}"
    script = _script_text(source, layout.python) if scheme == "scripts" else None
    if script is not None:
        return _written(layout, root, scheme, place, script, mode=0o777)
    destination = f"{layout.folders[scheme]}/{place}"
    _make_folder(destination, layout)
    if scheme == "scripts" or layout.copies or not stored.is_own or not _is_linked(source, destination):
        _copy(source, destination, layout, is_script=scheme == "scripts")
    return Row(_recorded(layout, root, scheme, place), file.hash, str(file.size))


def _path(scheme: str, path: str, info: str) -> str:
    """Return *path* below the folder of its scheme: headers have a folder for each project."""
    if scheme != "headers":
        return path
    return f"{canonicalize_name(info.removesuffix('.dist-info').rpartition('-')[0])}/{path}"


def _recorded(layout: Layout, root: str, scheme: str, path: str) -> str:
    """Return a path as RECORD has it: relative to the final folder of the metadata."""
    if scheme == root or layout.final[scheme] == layout.final[root]:
        return path
    return os.path.relpath(f"{layout.final[scheme]}/{path}", layout.final[root])


def _is_linked(source: str, destination: str) -> bool:
    """Link *source* to *destination*; return False where the disk, or the number of links, prevents it."""
    try:
        try:
            os.link(source, destination)
        except FileExistsError:
            os.unlink(destination)  # of an earlier distribution
            os.link(source, destination)
    except OSError as error:
        if error.errno not in _COPIED:
            raise
        return False
    return True


def _copy(source: str, destination: str, layout: Layout, *, is_script: bool) -> None:
    with suppress(FileNotFoundError):
        os.unlink(destination)
    shutil.copyfile(source, destination)
    status = os.lstat(source)
    os.chmod(destination, (0o777 if is_script else status.st_mode & 0o777) & ~layout.umask)
    os.utime(destination, ns=(status.st_atime_ns, status.st_mtime_ns))


def _written(layout: Layout, root: str, scheme: str, path: str, data: bytes, *, mode: int) -> Row:
    destination = f"{layout.folders[scheme]}/{path}"
    _make_folder(destination, layout)
    flags, mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & ~layout.umask
    try:
        descriptor = os.open(destination, flags, mode)
    except FileExistsError:
        os.unlink(destination)  # of an earlier distribution
        descriptor = os.open(destination, flags, mode)
    with os.fdopen(descriptor, "wb") as file:  # buffered: it goes on after a write of a part
        file.write(data)
    found = hash_text("sha256", hashlib.sha256(data).digest())
    return Row(_recorded(layout, root, scheme, path), found, str(len(data)))


def _make_folder(destination: str, layout: Layout) -> None:
    """Create the folder of *destination*."""
    make_folder(destination.rpartition("/")[0], 0o777 & ~layout.umask, layout.made)


def _script_text(source: str, python: str) -> bytes | None:
    """Return the text of a script with the interpreter in place of ``#!python``; None for another file."""
    with Path(source).open("rb") as file:
        first = file.readline(_LONGEST_SHEBANG)
        if not first.startswith(b"#!python"):
            return None
        return _shebang(python).encode() + file.read()


def _shebang(python: str) -> str:
    line = f"#!{python}\n"
    if len(os.fsencode(line)) <= _LONGEST_SHEBANG and not set(python) & set(" \t"):
        return line
    # Both a shell script and Python: the shell runs its second line, and Python reads that as a string.
    quoted = python.replace("'", "'\"'\"'")
    return f"#!/bin/sh\n'''exec' '{quoted}' \"$0\" \"$@\"\n' '''\n"


def _scripts(entry_points: Path) -> dict[str, str]:
    """Return the scripts of an ``entry_points.txt``, which `check_wheel` has checked."""
    try:
        text = entry_points.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    return dict(script_entries(text))


def _entry_text(target: str) -> str:
    module, _, function = target.partition("[")[0].replace(" ", "").partition(":")
    return _SCRIPT.format(module=module, first=function.partition(".")[0], function=function)
