"""RECORD: the files of a distribution, and whether they are unchanged (Recording installed projects)."""

from __future__ import annotations

import base64
import csv
import errno
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from colablock._common.decoding import Malformed, read_bounded
from colablock._common.fs import file_digest

__all__ = [
    "HASHES",
    "Row",
    "digest",
    "hash_text",
    "lost_files",
    "read_record",
    "readable_rows",
    "recorded_paths",
    "row_differs",
    "write_record",
]

HASHES = frozenset({"sha256", "sha384", "sha512"})
"""The algorithms of hashes in RECORD that are compared: the format requires sha256 or better."""

_FIELDS = 3  # of a row: path, hash, size


class Row(NamedTuple):  # not a dataclass, because 60,000 of them are made at a time
    """One line of a RECORD: *path* as written, *hash* as ``sha256=...`` or empty, *size* in bytes."""

    path: str
    hash: str = ""
    size: str = ""


def read_record(dist_info: Path) -> tuple[Row, ...] | None:
    """Return the rows of the RECORD in *dist_info*; None if there is no RECORD.  Raises OSError."""
    try:
        text = read_bounded(dist_info / "RECORD").decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Malformed as error:
        raise OSError(errno.EINVAL, str(error), str(dist_info / "RECORD")) from error
    if "\0" in text:
        raise OSError(errno.EINVAL, "it has a null character", str(dist_info / "RECORD"))
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return tuple(_rows(text))


def readable_rows(dist_info: Path) -> tuple[Row, ...]:
    """Return the rows of the RECORD in *dist_info*; none if it is missing or cannot be read."""
    try:
        return read_record(dist_info) or ()
    except OSError:
        return ()


def write_record(dist_info: Path, rows: Iterable[Row]) -> None:
    """Write the RECORD in *dist_info*, sorted by path."""
    ordered = sorted(rows, key=itemgetter(0))
    text = "".join([f"{path},{found},{size}\n" for path, found, size in ordered])
    # The writer, which quotes fields, takes five times as long.
    if '"' in text or "\r" in text or text.count("\n") + text.count(",") != _FIELDS * len(ordered):
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(ordered)
        text = out.getvalue()
    _replace_text(dist_info / "RECORD", text)


def _replace_text(path: Path, text: str) -> None:
    """Replace *path* by a new file with *text*.  The old file may be a hard link into the cache
    of an installer.

    Whatever the umask is, only the owner may write to the new file.
    """
    data = text.encode("utf-8", "surrogateescape")
    try:
        descriptor = _guarded(path)
    except FileExistsError:
        path.unlink()
        descriptor = _guarded(path)
    with os.fdopen(descriptor, "wb") as file:  # buffered: it goes on after a write of a part
        file.write(data)


def _guarded(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def recorded_paths(site: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the absolute path of each row of a distribution in the folder *site*."""
    site = os.path.normpath(site)
    for row in rows:
        path = row.path
        if path.startswith(("/", ".")) or "/." in path or "//" in path or path.endswith("/"):
            yield os.path.normpath(os.path.join(site, path))  # noqa: PTH118 (hot: every file of a runtime)
        else:  # as in almost every row, there is nothing to normalise
            yield f"{site}/{path}"


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file as RECORD writes it (urlsafe base64 without padding)."""
    return hash_text(algorithm, bytes.fromhex(file_digest(path, algorithm)))


def hash_text(algorithm: str, raw: bytes) -> str:
    """Return a hash as RECORD writes it (urlsafe base64 without padding)."""
    return f"{algorithm}={base64.urlsafe_b64encode(raw).rstrip(b'=').decode()}"


def lost_files(site: str, records: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """Return the files that are missing or have another size, by dist-info name, without bytecode.

    The contents are not read.  A file that several distributions list must have the size that
    one of them recorded.
    """
    lost: dict[str, list[str]] = {}
    resized: list[tuple[str, Row, str]] = []
    for name, rows in records.items():
        for row in rows:
            if row.path.endswith(".pyc"):
                continue
            try:
                size = str(os.stat(os.path.join(site, row.path)).st_size)  # noqa: PTH116, PTH118 (hot: every file)
            except (OSError, ValueError):  # a null character in a path
                lost.setdefault(name, []).append(f"`{row.path}` is missing")
                continue
            if row.size not in ("", size):
                resized.append((name, row, size))
    claims = {(row.path, row.size) for rows in records.values() for row in rows} if resized else set()
    for name, row, size in resized:
        if (row.path, size) not in claims:
            lost.setdefault(name, []).append(f"`{row.path}` has {size} bytes instead of {row.size}")
    return lost


def row_differs(path: Path, row: Row) -> bool:
    """Whether the existing file *path* has another size or hash than *row* states."""
    return row.size not in ("", str(path.stat().st_size)) or not _agrees(path, row)


def _agrees(path: Path, row: Row) -> bool:
    algorithm = row.hash.partition("=")[0]
    return algorithm not in HASHES or digest(path, algorithm) == row.hash


def _rows(text: str) -> Iterator[Row]:
    """Yield the rows of a RECORD, which is CSV (Binary distribution format, "The .dist-info directory").

    If nothing is quoted, or the CSV is not valid, each line is split at its last two commas.  That
    takes half the time, and reads a path with a comma that should have been quoted.
    """
    if '"' in text:
        try:
            yield from [Row(*fields[:_FIELDS]) for fields in csv.reader(io.StringIO(text)) if fields]
        except csv.Error:
            pass
        else:
            return
    for line in text.split("\n"):
        if line:
            fields = line.rsplit(",", _FIELDS - 1)
            yield Row._make(fields) if len(fields) == _FIELDS else Row(*fields)
