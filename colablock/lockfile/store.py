"""Lock files beside a matrix: how they are called, what their heads say, and which one fits."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.markers_and_tags import Environment
from colablock.environment.snapshot import Snapshot
from colablock.lockfile.tool_table import ALL_FILES, COMPLETE, DELTA
from colablock.matrix.model import Matrix
from colablock.matrix.packed_locks import LockFile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "PLATFORM",
    "LockHead",
    "LockStore",
    "assumed_otherwise",
    "environment_target",
    "lock_file_name",
    "read_head",
    "runtime_target",
]

#: What locks for no runtime are made for when nothing else is asked: the images' glibc (Ubuntu 22.04).
PLATFORM = "manylinux_2_35_x86_64"
_HEAD = b"\n[tool.colablock]\n"
_SHOWN = 3  # differences that are worth reading


def lock_file_name(matrix: str, target: str, variant: str | None = None) -> str:
    """Return the name of a lock file by the rules of PEP 751: no dot but those around NAME.

    ``pylock.qlora-2024--colab-2026_07-gpu.toml``, or with a *variant* that is not
    the target's own choice ``pylock.qlora-2024--colab-2026_07-gpu--cu118.toml``.
    """
    parts = [matrix, target, *([variant] if variant else [])]
    return f"pylock.{'--'.join(part.replace('.', '_') for part in parts)}.toml"


def runtime_target(runtime: str) -> str:
    """Return what the lock of a recorded runtime is called by."""
    return runtime.replace(".", "_")


def environment_target(environment: Environment) -> str:
    """Return what a complete lock is called by: ``py312``, with the platform where it is another one."""
    short = f"py{environment.short.replace('.', '')}"
    return short if environment.platform == PLATFORM else f"{short}-{environment.platform}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHead:
    """What a lock of ours says of itself, without the packages that it lists."""

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


def read_head(path: LockFile) -> LockHead | None:
    """Return the head of a lock of ours; None for what is none, or cannot be read.

    It stands at the end of the file, and is read without the megabyte before it.
    """
    try:
        text = path.read_bytes()
        table: dict[str, Any] = tomllib.loads(text[text.rindex(_HEAD) :].decode())["tool"]["colablock"]
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
            assumes={
                NormalizedName(name): str(version) for name, version in table.get("assumes", {}).items()
            },
        )
    except (OSError, ValueError, LookupError, AttributeError):
        return None


def assumed_otherwise(head: LockHead, snapshot: Snapshot) -> list[str]:
    """Return how *snapshot* differs from what the lock assumes to be installed, a sentence for each name."""
    differing = []
    for name, version in head.assumes.items():
        there = snapshot.installed.get(name)
        if there is None:
            differing.append(f"{name} {version} is not here")
        elif there.version != version:
            differing.append(f"{name} is {there.version} here, not {version}")
    return differing


@dataclass(frozen=True, slots=True, kw_only=True)
class LockStore:
    """The lock files that stand beside one matrix (its variant selected), nearest first.

    *with_* are the user's additions and *index* the default index in force: a lock
    that was made with others does not fit.  Why one that is meant for the target does not fit is noted.
    """

    paths: Sequence[LockFile]
    matrix: Matrix
    with_: Sequence[str] = ()
    index: str | None = None
    reporter: Reporter = field(default_factory=Reporter)
    _told: set[str] = field(default_factory=set)

    def for_kernel(self, snapshot: Snapshot) -> LockHead | None:
        """Return the runtime delta for the state of *snapshot*, None where no lock fits it."""
        nearest: tuple[int, str] | None = None
        for head in self._heads(DELTA, snapshot.environment):
            if not snapshot.python and head.runtime != snapshot.source:
                continue  # a recorded runtime has its own
            differing = assumed_otherwise(head, snapshot)
            if not differing and self._is_fresh(head):
                return head
            if differing and (nearest is None or len(differing) < nearest[0]):
                nearest = len(differing), _told(head, differing)
        if nearest is not None:
            self._note(nearest[1])
        return None

    def for_environment(self, environment: Environment) -> LockHead | None:
        """Return the complete lock for *environment*, None where there is none."""
        heads = self._heads(COMPLETE, environment)
        return next((head for head in heads if self._is_fresh(head)), None)

    def _heads(self, kind: str, environment: Environment) -> Iterable[LockHead]:
        short = f"py{environment.short.replace('.', '')}"
        for path in self.paths:
            other = re.search(r"--py(\d+)", path.name)
            if other and (kind == DELTA or f"py{other[1]}" != short):
                continue  # told by its name: not worth opening
            head = read_head(path)
            if head is None or (head.kind, head.short) != (kind, environment.short):
                continue
            if head.matrix == self.matrix.name and head.variant == self.matrix.variant:
                yield head

    def _is_fresh(self, head: LockHead) -> bool:
        """Whether the lock was made from this matrix, asked the same way; says so where it was not."""
        if head.matrix_digest != self.matrix.digest:
            again = "make it anew with `colablock lock`"
            self._note(f"the lock `{head.path.name}` is stale: {self.matrix.name} has changed since; {again}")
            return False
        if head.with_ != frozenset(self.with_):
            return False
        if head.index is not None and self.index is not None and head.index != self.index:
            self._note(
                f"the lock `{head.path.name}` is left aside: it was made from {head.index},"
                f" and {self.index} is the default index here"
            )
            return False
        return True

    def _note(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.reporter.note(text)


def _told(head: LockHead, differing: Sequence[str]) -> str:
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    shown = "; ".join(differing[:_SHOWN])
    return f"no lock is for what is installed here; the nearest, `{head.path.name}`, differs: {shown}{more}"
