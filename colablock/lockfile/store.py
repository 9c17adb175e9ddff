"""The lock files of a matrix: their heads, and which one fits a target."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.decoding import read_bounded
from colablock._common.fs import write_atomic
from colablock._common.limits import TEXT_FILE
from colablock._common.reporter import Reporter
from colablock._common.text import command_line, option_words
from colablock._common.toml import load_toml, read_text_file
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.markers_and_tags import Environment, platform_family
from colablock.environment.snapshot import Snapshot
from colablock.lockfile.fields import table_faults
from colablock.lockfile.parsed import parsed
from colablock.lockfile.tool_table import ALL_FILES, COMPLETE, DELTA
from colablock.matrix.model import Matrix
from colablock.matrix.packed_locks import LockFile, PackedLock

if TYPE_CHECKING:
    from colablock.network.cache import Cache

__all__ = [
    "LockHead",
    "LockStore",
    "assumption_failures",
    "read_head",
    "read_refusals",
    "refusals_path",
    "write_refusals",
]

_HEAD = b"\n[tool.colablock]\n"
_SHOWN = 3  # differences in a message
_FEW = 10  # differences of a state that is nearly the same


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHead:
    """The table ``[tool.colablock]`` of a lock, without its packages."""

    path: LockFile
    kind: str
    matrix: str
    matrix_digest: str
    python: str
    platform: str
    variant: str | None = None
    runtime: str | None = None
    index: str | None = None
    with_: frozenset[str] = frozenset()
    exclude_newer: datetime | None = None
    all_files: bool = False
    assumes: Mapping[NormalizedName, str] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """The Python version without its micro part."""
        return ".".join(self.python.split(".")[:2])

    def command(self, matrix: str) -> str:
        """Return the command that makes this lock again; *matrix* is its name or path."""
        target: dict[str, object] = {"--runtime": self.runtime}
        if self.runtime is None:
            target = {"--python-version": self.short, "--platform": self.platform}
        more = {"--variant": self.variant, "--with": sorted(self.with_)}
        return command_line("lock", matrix, *option_words({**target, **more}))


def read_head(path: LockFile, cache: Cache | None = None) -> LockHead | None:
    """Return the head of a lock of colablock; None for another file, or one that cannot be read.

    The table is at the end of the file, and only that part is parsed, with *cache* once.
    """
    try:
        text = path.read_bytes() if isinstance(path, PackedLock) else read_text_file(path)
        return parsed(text[text.rindex(_HEAD) :], _checked, partial(_head_of, path), cache)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None


def _head_of(path: LockFile, table: Mapping[str, Any]) -> LockHead:
    """Return the head of the lock at *path* that *table* is."""
    return LockHead(
        path=path,
        kind=str(table["kind"]),
        matrix=str(table["matrix"]),
        matrix_digest=str(table["matrix-digest"]),
        python=str(table["python"]),
        platform=str(table["platform"]),
        variant=table.get("variant"),
        runtime=table.get("runtime"),
        index=table.get("index"),
        with_=frozenset(table.get("with", ())),
        exclude_newer=table.get("exclude-newer"),
        all_files=table.get("files") == ALL_FILES,
        assumes={NormalizedName(name): str(version) for name, version in table.get("assumes", {}).items()},
    )


def _checked(text: bytes) -> dict[str, Any]:
    """Return the table in *text*.  Raises ValueError if it is not valid."""
    table: dict[str, Any] = load_toml(text)["tool"]["colablock"]
    for fault in table_faults(table):
        raise ValueError(fault)
    return table


def assumption_failures(head: LockHead, snapshot: Snapshot) -> list[str]:
    """Return how *snapshot* differs from the assumptions of a delta, one clause for each distribution."""
    differing = []
    for name, version in head.assumes.items():
        there = snapshot.installed.get(name)
        if there is None:
            differing.append(f"{name} {version} is not installed")
        elif there.version != version:
            differing.append(f"{name} is {there.version}, not {version}")
    return differing


@dataclass(frozen=True, slots=True, kw_only=True)
class LockStore:
    """The lock files of one matrix (its variant selected), nearest first.

    *called* is what the user calls the matrix.  *with_* are the user's additions and *index* is the
    default index in force.  A lock that was made with others does not fit.  If a lock is for the
    target but does not fit, the reason is noted.  *cache* keeps what was parsed.
    """

    paths: Sequence[LockFile]
    matrix: Matrix
    called: str = ""
    with_: Sequence[str] = ()
    index: str | None = None
    reporter: Reporter = field(default_factory=Reporter)
    cache: Cache | None = None
    _noted: set[str] = field(default_factory=set)
    _read: dict[LockFile, LockHead | None] = field(default_factory=dict)

    def for_kernel(self, snapshot: Snapshot) -> LockHead | None:
        """Return the delta whose assumptions hold in *snapshot*, None if there is none."""
        nearest: tuple[int, str] | None = None
        for head in self._heads(DELTA, snapshot.environment):
            if not snapshot.python and head.runtime != snapshot.source:
                continue  # another recorded runtime
            differing = assumption_failures(head, snapshot)
            if not differing and self._is_fresh(head):
                return head
            if _is_near(head, differing) and (nearest is None or len(differing) < nearest[0]):
                nearest = len(differing), _difference(head, differing)
        if nearest is not None:
            self._note(nearest[1])
        return None

    def for_environment(self, environment: Environment) -> LockHead | None:
        """Return the complete lock for *environment*, None if there is none."""
        other: LockHead | None = None
        for head in self._heads(COMPLETE, environment):
            is_here = platform_family(head.platform) == platform_family(environment.platform)
            # With all files it may fit another C library: the markers and the files decide.
            if not (is_here or head.all_files):
                other = other or head
            elif self._is_fresh(head):
                return head
        if other is not None:
            self._note(
                f"not using the lock `{other.path.name}`: it is for {other.platform},"
                f" and this is {environment.platform}"
            )
        return None

    def _heads(self, kind: str, environment: Environment) -> Iterable[LockHead]:
        short = f"py{environment.short.replace('.', '')}"
        for path in self.paths:
            other = re.search(r"--py(\d+)", path.name)
            if other and (kind == DELTA or f"py{other[1]}" != short):
                continue  # the name says that it is for another target
            head = self._head(path)
            if head is None or (head.kind, head.short) != (kind, environment.short):
                continue
            if head.matrix == self.matrix.name and head.variant == self.matrix.variant:
                yield head

    def _head(self, path: LockFile) -> LockHead | None:
        """Return the head of a lock, read once: a plan may ask for several Pythons."""
        if path not in self._read:
            self._read[path] = read_head(path, self.cache)
        return self._read[path]

    def _is_fresh(self, head: LockHead) -> bool:
        """Whether the lock was made from this matrix with the same options; notes the reason if not."""
        if head.matrix_digest != self.matrix.digest:
            called = self.called or self.matrix.name
            every = command_line("lock", called, "--all")
            again = f"`{head.command(called)}` makes it again, and `{every}` makes all again"
            self._note(f"the lock `{head.path.name}` is stale: {self.matrix.name} has changed since; {again}")
            return False
        if head.with_ != frozenset(self.with_):
            return False
        if head.index is not None and self.index is not None and head.index != self.index:
            self._note(
                f"not using the lock `{head.path.name}`: it was made from {head.index},"
                f" and the default index is {self.index}"
            )
            return False
        return True

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self.reporter.note(text)


def _is_near(head: LockHead, differing: Sequence[str]) -> bool:
    """Whether a delta that does not fit is worth a note: it is for a state that resembles this one."""
    return bool(differing) and (len(differing) <= _FEW or len(differing) * 2 < len(head.assumes))


def _difference(head: LockHead, differing: Sequence[str]) -> str:
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    shown = "; ".join(differing[:_SHOWN])
    return (
        f"no lock fits the installed distributions; the nearest, `{head.path.name}`, differs: {shown}{more}"
    )


_REFUSED = "refused"


def refusals_path(folder: Path, matrix: Matrix) -> Path:
    """Return where `write_refusals` writes."""
    return folder / f"{matrix.name}.{_REFUSED}.json"


def write_refusals(folder: Path, matrix: Matrix, refused: Sequence[Mapping[str, str | None]]) -> None:
    """Write *refused* (target, variant, reason) beside the matrix; delete the file if it is empty."""
    path = refusals_path(folder, matrix)
    if refused:
        value = {"schema": 1, "matrix": matrix.name, "matrix-digest": matrix.digest, _REFUSED: refused}
        write_atomic(path, f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode())
    else:
        path.unlink(missing_ok=True)


def read_refusals(folders: Iterable[Path], matrix: Matrix) -> dict[tuple[str, str | None], str]:
    """Return the reasons by target and variant; none if the matrix has changed since."""
    for folder in folders:
        try:
            value = json.loads(read_bounded(refusals_path(folder, matrix), TEXT_FILE))
            if value["matrix-digest"] != matrix.digest:
                continue
            found = {(row["target"], row["variant"]): row["reason"] for row in value[_REFUSED]}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if all(isinstance(text, str) for (target, _), reason in found.items() for text in (target, reason)):
            return found
    return {}
