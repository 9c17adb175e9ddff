"""The results file of a check, and the differences to the committed results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from colablock._common.decoding import Malformed, decode, fitted, read_bounded
from colablock._common.fs import write_atomic
from colablock._common.limits import RUN_FILE
from colablock.check.outcomes import Difference, Outcome, Verdict, broken_since, differences
from colablock.errors import InvalidInput
from colablock.matrix.model import Matrix

__all__ = ["MatrixCheck", "compared", "fits_kernel", "replaces_requirements", "results_path"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCheck:
    """The results of a check of one matrix, and the *differences* to the committed results.

    *imports* are the findings about imports, as JSON values; None if imports were not examined.
    *path* is the file to write, and *before* says in words which results were compared with.
    *asked* is the matrix as the user names it.
    """

    matrix: str
    summary: str
    digest: str
    path: Path
    outcomes: tuple[Outcome, ...]
    imports: tuple[Mapping[str, Any], ...] | None = None
    differences: tuple[Difference, ...] = ()
    is_first: bool = False  # there were no committed results, which is the first difference
    before: str = ""
    asked: str = ""

    @property
    def drift(self) -> tuple[str, ...]:
        """The differences, a line each."""
        return tuple(map(str, self.differences))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known, for want of locks: there is nothing to write."""
        has_verdict = any(one.verdict is not Verdict.UNKNOWN for one in self.outcomes)
        return bool(self.outcomes) and not has_verdict and self.imports is None

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file, in an order that keeps diffs small."""
        imports = {"imports": [dict(one) for one in self.imports]} if self.imports is not None else {}
        return {
            "schema": SCHEMA,
            "matrix": self.matrix,
            "matrix-digest": self.digest,
            "results": [one.to_json() for one in self.outcomes],
            **imports,
        }

    def facts(self) -> dict[str, Any]:
        """Return all results as JSON values, for other programs."""
        broke = [
            {**asdict(one), "was": one.was.value, "now": one.now.value} for one in broken_since(self.outcomes)
        ]
        return {**self.to_json(), "file": str(self.path), "broken-since": broke, "drift": list(self.drift)}

    def write(self) -> None:
        """Write the file, with the date of today (UTC).  Raises InvalidInput if that fails."""
        value = self.to_json()
        results = {name: value.pop(name) for name in ("results", "imports") if name in value}
        dated: dict[str, Any] = {**value, "date": datetime.now(timezone.utc).date().isoformat()}
        text = json.dumps({**dated, **results}, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path, text.encode())


def results_path(matrix: Matrix, folder: Path) -> Path:
    """Return the path of the results file of *matrix* in *folder*."""
    return folder / f"{matrix.name}.checks.json"


def compared(
    matrix: Matrix,
    folder: Path,
    outcomes: Sequence[Outcome],
    imports: Sequence[Mapping[str, Any]] | None = None,
    *,
    asked: str = "",
) -> MatrixCheck:
    """Compare *outcomes* and the findings about *imports* to the results committed in *folder*.

    A shipped matrix has results of its own, which count if there are none in *folder*.  If *imports* is
    None, the committed findings are kept, provided that they are for the same matrix.  Raises
    InvalidInput if the committed file cannot be read.
    """
    path = results_path(matrix, folder)
    committed, before = _read(path), f"those of `{path}`"
    if committed is None:
        committed, before = _read(results_path(matrix, Path(matrix.source).parent)), "the shipped ones"
    found: tuple[Mapping[str, Any], ...] | None = None
    if imports is not None:
        found = tuple(dict(one) for one in imports)
    elif committed is not None and committed.digest == matrix.digest:
        found = committed.imports
    if committed is None:
        text = f"there are no committed results in `{path}`"
        drift: tuple[Difference, ...] = (Difference(text=text, advice="`--update` writes them"),)
    else:
        drift = differences(committed.outcomes, outcomes)
        if imports is not None and found != committed.imports:
            drift = (*drift, Difference(text="the findings about imports differ"))
        if drift and committed.digest != matrix.digest:
            text = "the matrix has changed since these results were written"
            drift = (Difference(text=text), *drift)
    if found is None and replaces_requirements(matrix):
        text = "the imports of replaced packages have not been examined"
        drift = (*drift, Difference(text=text, advice="pass `--imports`"))
    return MatrixCheck(
        matrix=matrix.name,
        asked=asked or matrix.name,
        summary=matrix.summary or "",
        digest=matrix.digest,
        path=path,
        outcomes=tuple(outcomes),
        imports=found,
        differences=drift,
        is_first=committed is None,
        before=f"{before} of {committed.date}" if committed is not None and committed.date else before,
    )


def fits_kernel(matrix: Matrix, runtime: str) -> bool:
    """Whether the committed results beside *matrix* say that it fits the kernel of *runtime*."""
    try:
        committed = _read(results_path(matrix, Path(matrix.source).parent))
    except InvalidInput:
        return False
    if committed is None or committed.digest != matrix.digest:
        return False
    return any(one.runtime == runtime and one.verdict is Verdict.KERNEL for one in committed.outcomes)


def replaces_requirements(matrix: Matrix) -> bool:
    """Whether *matrix* replaces metadata, modules or archives of packages."""
    entries = (*matrix.packages, *(one for variant in matrix.variants.values() for one in variant.packages))
    return any(entry.is_rebuilt or entry.url for entry in entries)


@dataclass(frozen=True, slots=True)
class _Committed:
    digest: str
    outcomes: list[Outcome]
    imports: tuple[Mapping[str, Any], ...] | None
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _ResultsFile:
    schema: int
    digest: str
    results: tuple[dict[str, Any], ...]
    imports: tuple[dict[str, Any], ...] | None = None
    date: str = ""


def _read(path: Path) -> _Committed | None:
    try:
        value = decode(read_bounded(path, RUN_FILE), dict, by_python=True)
        found = fitted(value, _ResultsFile, renamed={"matrix-digest": "digest"})
        outcomes = [Outcome.from_json(row) for row in found.results]
    except FileNotFoundError:
        return None
    except (OSError, Malformed) as error:
        hint = "Rewrite it with `colablock check NAME --update`"
        message = f"cannot read the results in `{path}`: {error}"
        raise InvalidInput(message, hint=hint) from error
    if found.schema != SCHEMA:
        raise InvalidInput(f"`{path}` has schema {found.schema}, and this colablock reads {SCHEMA}")
    return _Committed(found.digest, outcomes, found.imports, found.date)
