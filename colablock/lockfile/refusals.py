"""Why a target has no lock: recorded beside the matrix, so that `colablock check` needs no index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import write_atomic

if TYPE_CHECKING:
    from colablock.matrix.model import Matrix

__all__ = ["read_refusals", "write_refusals"]


_REFUSED = "refused"


def _refusals_path(folder: Path, matrix: Matrix) -> Path:
    return folder / f"{matrix.name}.{_REFUSED}.json"


def write_refusals(folder: Path, matrix: Matrix, refused: Sequence[Mapping[str, str | None]]) -> None:
    """Write *refused* (target, variant, reason) beside the matrix; delete the file if it is empty."""
    path = _refusals_path(folder, matrix)
    if refused:
        value = {"schema": 1, "matrix": matrix.name, "matrix-digest": matrix.digest, _REFUSED: refused}
        write_atomic(path, f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode())
    else:
        path.unlink(missing_ok=True)


def read_refusals(folders: Iterable[Path], matrix: Matrix) -> dict[tuple[str, str | None], str]:
    """Return the reasons by target and variant; none if the matrix has changed since."""
    for folder in folders:
        try:
            value = json.loads(_refusals_path(folder, matrix).read_text(encoding="utf-8"))
            if value["matrix-digest"] == matrix.digest:
                return {(row["target"], row["variant"]): row["reason"] for row in value[_REFUSED]}
        except (OSError, ValueError, LookupError, TypeError):  # noqa: PERF203 - a folder or two
            continue
    return {}
