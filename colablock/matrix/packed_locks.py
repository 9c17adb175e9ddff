"""The locks that colablock ships, in the one file that an installed wheel has in their place.

``lock_pack`` has the format.  In a checkout the locks are plain files;
``tools/pack_locks.py`` packs them when a wheel is built.
"""

from __future__ import annotations

import json
import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from colablock._common.decoding import is_plain_name
from colablock._common.limits import RECORD_FILE, SHOWN, TEXT_FILE
from colablock._records import dataclass
from colablock.errors import InvalidInput
from colablock.matrix.lock_pack import LOCK_PACK, MARK, with_hashes

__all__ = ["LockFile", "PackedLock", "packed_locks"]

#: What reading a damaged pack raises: of the file, of its compression, of its JSON.
_DAMAGED = (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error)


@dataclass(frozen=True, slots=True)
class PackedLock:
    """The lock *name* in the file *pack*, to be read like a `Path` in the folder of the pack."""

    pack: Path
    name: str

    @property
    def parent(self) -> Path:
        """The folder of the pack."""
        return self.pack.parent

    def read_bytes(self) -> bytes:
        """Return the content.  Raises OSError, and InvalidInput if the pack is damaged."""
        blocks, places = _unpacked(self.pack, self.stat().st_mtime_ns)
        try:
            parts = [blocks[place] for place in places[self.name]]
            if sum(map(len, parts)) > TEXT_FILE:  # a block may be named any number of times
                raise _invalid(self.pack, f"`{self.name}` has more than {TEXT_FILE >> 20} MiB")
            return MARK.join(parts).encode("utf-8", "surrogatepass")
        except (LookupError, TypeError) as error:
            raise _invalid(self.pack, "its lists do not belong together") from error

    def is_file(self) -> bool:
        """Whether the pack is still there."""
        return self.pack.is_file()

    def stat(self) -> os.stat_result:
        """Return the status of the pack.  Raises OSError."""
        return self.pack.stat()

    def __str__(self) -> str:
        return str(self.parent / self.name)


LockFile: TypeAlias = Path | PackedLock


def packed_locks(folder: Path) -> tuple[PackedLock, ...]:
    """Return the locks in the pack of *folder*, sorted by name; none if there is no pack."""
    path = folder / LOCK_PACK
    if not path.is_file():
        return ()
    import gzip  # noqa: PLC0415 - most folders have no pack

    try:
        with gzip.open(path) as file:
            names = json.loads(file.readline(TEXT_FILE))
    except _DAMAGED as error:
        raise _invalid(path, str(error)) from error
    if not _are_names(names):
        raise _invalid(path, "its first line does not list the names of locks")
    return tuple(PackedLock(path, name) for name in names)


def _are_names(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(one, str) and is_plain_name(one) for one in names)


def _invalid(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"the locks in `{path}` cannot be read: {why[:SHOWN]}", hint="Remove the file")


@lru_cache(maxsize=2)
def _unpacked(pack: Path, _changed: int) -> tuple[list[str], dict[str, list[int]]]:
    """Return the blocks of a pack, and the blocks that make each lock."""
    import gzip  # noqa: PLC0415 - as above

    try:
        with gzip.open(pack) as file:
            data = file.read(RECORD_FILE + 1)
        if len(data) > RECORD_FILE:
            raise _invalid(pack, f"they have more than {RECORD_FILE >> 20} MiB")
        names, places, hashes, texts = map(json.loads, data.split(b"\n", 3))
        blocks = with_hashes(hashes, texts)
    except _DAMAGED as error:
        raise _invalid(pack, str(error)) from error
    is_known = _are_names(names) and isinstance(places, list)
    if not is_known or len(names) != len(places):
        raise _invalid(pack, "it has another form")
    return blocks, dict(zip(names, places, strict=True))
