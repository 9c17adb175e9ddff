"""The format of the file that has all shipped locks in an installed wheel.

The locks of one matrix share most of their packages, but a wheel compresses
each file alone.  In the pack, a lock is a list of blocks, and a block that
several locks have is written once.  The pack has four lines of JSON: the names
of the locks, the blocks of each by their places, the hashes of all blocks, and the
blocks, with a mark in the place of each hash: apart, both compress better.  Another
mark is in the place of the name of a file at the end of its URL.

The build of a wheel runs this module where nothing of colablock and none of its
requirements can be imported.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain

__all__ = ["LOCK_PACK", "MARK", "pack_locks", "with_hashes"]

LOCK_PACK = "locks.json.gz"
MARK = "\n\n"
"""A lock is cut between its tables: files that several packages list are written once, too."""


def pack_locks(locks: Mapping[str, str]) -> bytes:
    """Return the content of a pack of *locks*, texts by file name.  The same locks give the same bytes."""
    parts = {name: text.split(MARK) for name, text in sorted(locks.items())}
    # Sorted: gzip finds repetition in the last 32 KiB, and the blocks of one project resemble each other.
    blocks = {block: place for place, block in enumerate(sorted({*chain.from_iterable(parts.values())}))}
    places = [[blocks[block] for block in split] for split in parts.values()]
    # The names are in a line of their own, so that they can be listed without the rest.
    hashes, texts = _without_hashes(blocks)
    lines = (json.dumps(value, separators=(",", ":")) for value in (list(parts), places, hashes, texts))
    import gzip  # noqa: PLC0415 - the no-op check of an apply reads no lock

    return gzip.compress("\n".join(lines).encode(), mtime=0)


# A SHA-256, or the part of a BLAKE2b in a URL of an index, and the mark of each: TOML has neither.
_HASH = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{60})(?![0-9a-f])")
_MARKS = {64: "\x7f", 60: "\x1f"}
_NAME = "\x0e"
_HASH_MARK = re.compile("[\x7f\x1f]")
_MARKED = re.compile(f"[\x7f\x1f{_NAME}]")
_LENGTHS = {mark: length for length, mark in _MARKS.items()}
# The table of a file up to the name at the end of its URL.
_FILE = r'(name = "([^"\n]+)"\n(?:.*\n){0,3}?url = "[^"\n]*/)'
_ENDS_IN_NAME, _ENDS_IN_MARK = (re.compile(_FILE + end) for end in (r'\2(?=")', _NAME))


def _without_hashes(blocks: Iterable[str]) -> tuple[str, list[str]]:
    """Return the hashes of *blocks* in their order, in base64, and the blocks with marks instead."""
    blocks = list(blocks)
    hashes = "".join(chain.from_iterable(map(_HASH.findall, blocks)))
    if not hashes or any(map(_MARKED.search, blocks)):
        return "", blocks  # of something other than a lock
    texts = [_HASH.sub(lambda found: _MARKS[len(found[0])], block) for block in blocks]
    texts = [_ENDS_IN_NAME.sub(rf"\1{_NAME}", text) for text in texts]
    return base64.b64encode(bytes.fromhex(hashes)).decode(), texts


def with_hashes(hashes: str, texts: Iterable[str]) -> list[str]:
    """Return blocks as they were packed.  Raises ValueError if there are not as many *hashes* as marks."""
    if not hashes:
        return list(texts)
    digits, at = base64.b64decode(hashes, validate=True).hex(), 0

    def put_back(found: re.Match[str]) -> str:
        nonlocal at
        at += _LENGTHS[found[0]]
        return digits[at - _LENGTHS[found[0]] : at]

    named = (_ENDS_IN_MARK.sub(r"\1\2", text) if _NAME in text else text for text in texts)
    blocks = [_HASH_MARK.sub(put_back, text) for text in named]
    if at != len(digits):
        raise ValueError("its hashes do not belong to its blocks")
    return blocks
