"""The results of a check as they stand beside the matrix, and what has changed since they were committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colablock._common.fs import write_atomic
from colablock.check.outcomes import Outcome, broken_since, differences
from colablock.errors import InvalidInput
from colablock.matrix.model import Matrix

__all__ = ["MatrixCheck", "compared", "replaces_requirements", "results_path"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCheck:
    """What a check found of one matrix, and how it differs from what is committed (*drift*).

    *imports* are findings about imports that no requirement covers, as
    JSON-ready values; None where nobody has looked.
    """

    matrix: str
    summary: str
    digest: str
    path: Path
    outcomes: tuple[Outcome, ...]
    imports: tuple[Mapping[str, Any], ...] | None = None
    drift: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file, in an order that keeps changes of it small."""
        imports = {"imports": [dict(one) for one in self.imports]} if self.imports is not None else {}
        return {
            "schema": SCHEMA,
            "matrix": self.matrix,
            "matrix-digest": self.digest,
            "results": [one.to_json() for one in self.outcomes],
            **imports,
        }

    def facts(self) -> dict[str, Any]:
        """Return all that is known, for other programs."""
        broke = [
            {**asdict(one), "was": one.was.value, "now": one.now.value} for one in broken_since(self.outcomes)
        ]
        return {**self.to_json(), "file": str(self.path), "broken-since": broke, "drift": list(self.drift)}

    def write(self) -> None:
        """Write the file.  Raises InvalidInput where that fails."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path, text.encode())


def results_path(matrix: Matrix, folder: Path) -> Path:
    """Return where the results of *matrix* stand in *folder*."""
    return folder / f"{matrix.name}.checks.json"


def compared(
    matrix: Matrix,
    folder: Path,
    outcomes: Sequence[Outcome],
    imports: Sequence[Mapping[str, Any]] | None = None,
) -> MatrixCheck:
    """Return *outcomes*, and the findings about *imports*, beside those that are committed in *folder*.

    Where the imports were not examined this time (None) the committed findings
    stand, as long as they are of this very matrix.  Raises InvalidInput where
    the committed file cannot be read.
    """
    path = results_path(matrix, folder)
    committed = _read(path)
    found: tuple[Mapping[str, Any], ...] | None = None
    if imports is not None:
        found = tuple(dict(one) for one in imports)
    elif committed is not None and committed.digest == matrix.digest:
        found = committed.imports
    if committed is None:
        drift: tuple[str, ...] = (f"no results are committed as `{path}`",)
    else:
        drift = differences(committed.outcomes, outcomes)
        if imports is not None and found != committed.imports:
            drift = (*drift, "the findings about imports are others")
    if found is None and replaces_requirements(matrix):
        drift = (*drift, "the imports of what the matrix replaces are to be examined: pass `--imports`")
    return MatrixCheck(
        matrix=matrix.name,
        summary=matrix.summary or "",
        digest=matrix.digest,
        path=path,
        outcomes=tuple(outcomes),
        imports=found,
        drift=drift,
    )


def replaces_requirements(matrix: Matrix) -> bool:
    """Whether *matrix* names something of its own in place of what an index has."""
    entries = (*matrix.packages, *(one for variant in matrix.variants.values() for one in variant.packages))
    return any(entry.is_rebuilt or entry.url for entry in entries)


@dataclass(frozen=True, slots=True)
class _Committed:
    digest: str
    outcomes: list[Outcome]
    imports: tuple[Mapping[str, Any], ...] | None


def _read(path: Path) -> _Committed | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise InvalidInput(f"`{path}` has schema {value['schema']}, and this colablock reads {SCHEMA}")
        outcomes = [Outcome.from_json(row) for row in value["results"]]
        imports = tuple(value["imports"]) if "imports" in value else None
        return _Committed(value["matrix-digest"], outcomes, imports)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        hint = "Write it anew with `colablock check NAME --update`"
        message = f"`{path}` cannot be read as the results of a check: {error}"
        raise InvalidInput(message, hint=hint) from error
