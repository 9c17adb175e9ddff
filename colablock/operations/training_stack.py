"""Find the stack that a new training config is for: that of a matrix, or the one that was applied last."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colablock._vendor.packaging.version import Version
from colablock.errors import ColablockError
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import read_head
from colablock.lockfile.tool_table import COMPLETE
from colablock.matrix.catalog import lock_files
from colablock.matrix.model import select_variant
from colablock.matrix.schema import RUNNERS
from colablock.training.preflight.facts import Stack
from colablock.transaction import apply_record as applied

if TYPE_CHECKING:
    from colablock.environment.accelerator import Accelerator
    from colablock.lockfile.store import LockHead
    from colablock.matrix.model import Matrix
    from colablock.operations.session import Session
    from colablock.transaction.apply_record import ApplyRecord

__all__ = ["TrainingStack", "training_stack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStack:
    """The runner and the versions of a matrix; unknown versions are left out.  *matrix* may be None."""

    runner: str
    stack: Stack
    matrix: str | None = None

    @property
    def trainer(self) -> str | None:
        """The runner with its version, ``trl 1.16.0``; None if that is unknown."""
        version = self.stack.runners.get(self.runner)
        return f"{self.runner} {version.partition('+')[0]}" if version else None


def training_stack(
    session: Session, name: str | None, accelerator: Accelerator, *, runner: str | None = None
) -> TrainingStack:
    """Return the stack of the matrix *name*: of its last apply, or else of its lock for this Python.

    Without *name* it is the newest apply that has a runner.  *runner* replaces that of the matrix.
    Raises NotFound or InvalidMatrix for *name*.
    """
    if name is None:
        for one in applied.load_all(session.home):
            if any(runner in one.pins for runner in RUNNERS):
                return _found(_matrix_of(session, one), one.name, _versions(one), runner)
        return _found(None, None, {}, runner)
    matrix = select_variant(session.matrix(name), accelerator)
    last = applied.load(matrix.name, session.home)
    if last is not None:
        return _found(matrix, name, _versions(last), runner)
    return _found(matrix, name, _locked(session, matrix), runner)


def _found(
    matrix: Matrix | None, name: str | None, versions: Mapping[str, str], runner: str | None
) -> TrainingStack:
    own = matrix.train.runner if matrix is not None else None
    default = "axolotl" if "axolotl" in versions and "trl" not in versions else "trl"
    default = "unsloth" if "unsloth" in versions else default  # it needs trl
    stack = Stack(
        torch=versions.get("torch", ""),
        transformers=versions.get("transformers", ""),
        trl=versions.get("trl"),
        axolotl=versions.get("axolotl"),
        unsloth=versions.get("unsloth"),
        flash_attn=versions.get("flash-attn"),
    )
    return TrainingStack(runner=runner or own or default, stack=stack, matrix=name)


def _matrix_of(session: Session, last: ApplyRecord) -> Matrix | None:
    """Return the matrix of *last*, or None: its file may have been removed since."""
    try:
        return session.matrix(last.source or last.name)
    except ColablockError:
        return None


def _versions(last: ApplyRecord) -> dict[str, str]:
    return {str(project): version for project, version in {**last.versions, **last.pins}.items()}


def _locked(session: Session, matrix: Matrix) -> dict[str, str]:
    """Return the versions of the complete lock of *matrix* that is nearest to this Python, or nothing."""
    heads = [head for path in lock_files(matrix, environ=session.environ) if (head := read_head(path))]
    heads = [head for head in heads if head.kind == COMPLETE and head.matrix == matrix.name]
    if not heads:
        return {}
    try:
        lock = read_lock(max(heads, key=lambda head: _nearness(head, matrix)).path)
    except ColablockError:
        return {}
    return {str(one.name): str(one.version) for one in lock.packages if one.version is not None}


def _nearness(head: LockHead, matrix: Matrix) -> tuple[bool, bool, bool, Version]:
    here = ".".join(platform.python_version_tuple()[:2])
    is_fresh = head.matrix_digest == matrix.digest
    return is_fresh, head.variant == matrix.variant, head.short == here, Version(head.short)
