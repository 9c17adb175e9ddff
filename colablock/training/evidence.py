"""What is known about a matrix: that it resolves, was applied, imports and trains, each with a date.

The evidence lies beside the matrix file: ``MATRIX.checks.json`` of `colablock check`, receipts of
`colablock smoke`, and receipts of `colablock verify`, which prove an apply without a training.
Nothing here is measured: without a file there is no evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.decoding import read_bounded
from colablock._common.fs import write_atomic
from colablock._common.limits import RUN_FILE
from colablock._common.plain_values import from_plain
from colablock._records import dataclass
from colablock.errors import InvalidInput
from colablock.training.receipts import (
    STALE,
    Receipt,
    admits,
    asks_for,
    is_old,
    read_receipts,
    receipts_folder,
)

if TYPE_CHECKING:
    from colablock.matrix.model import Matrix

__all__ = [
    "REMARKS",
    "ApplyReceipt",
    "evidence_of",
    "passed_receipts",
    "proofs_of",
    "read_apply_receipts",
    "remarks_of",
    "write_apply_receipt",
]

REMARKS = {"old": f"older than {STALE.days} days", "earlier": "earlier matrix"}
"""What the two marks of a date say, wherever it is shown."""

SCHEMA = 1
_KIND = "apply"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyReceipt:
    """One apply whose *checks* passed, by their number.  *imports* are the modules that were imported."""

    matrix: str
    matrix_digest: str
    variant: str | None
    lock: str
    target: str  # "kernel" or "env"
    python_version: str
    card: str  # its name, or "cpu"
    checks: int
    imports: tuple[str, ...]
    date: str  # ISO 8601, UTC
    colablock: str
    versions: Mapping[str, str] = field(default_factory=dict)
    runtime: str | None = None
    kind: str = _KIND
    schema: int = SCHEMA


def write_apply_receipt(receipt: ApplyReceipt, path: Path) -> None:
    """Write *receipt* to *path* atomically.  Raises InvalidInput if that fails."""
    write_atomic(path, (json.dumps(asdict(receipt), indent=2) + "\n").encode())


def read_apply_receipts(source: str) -> tuple[ApplyReceipt, ...]:
    """Return the receipts of applies of the matrix file *source*; unreadable ones are ignored."""
    found = []
    for path in sorted(receipts_folder(source).glob("*.json")):
        try:
            value = json.loads(read_bounded(path, RUN_FILE))
            if isinstance(value, Mapping) and (value.get("kind"), value.get("schema")) == (_KIND, SCHEMA):
                found.append(from_plain(ApplyReceipt, value, "receipt"))
        except (OSError, ValueError, RecursionError, InvalidInput):  # noqa: PERF203 - a handful of files
            continue
    return tuple(found)


def passed_receipts(matrix: Matrix) -> tuple[Receipt, ...]:
    """Return the receipts of trainings beside the file of *matrix* that passed."""
    return tuple(one for one in read_receipts(matrix.source) if one.passed)


def evidence_of(
    matrix: Matrix,
    *,
    trained: Sequence[Receipt] | None = None,
    here: Iterable[ApplyReceipt] = (),
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the evidence beside the file of *matrix*, newest first, as JSON values.

    ``resolved``, ``applied`` and ``imported`` are a date with two marks, or None: ``old`` after 90
    days, and ``earlier`` if the matrix no longer asks for what was proven.  ``planned`` counts the
    recorded runtimes by verdict.  ``trained`` lists each kind of card, a CPU first.  *trained* are the
    `passed_receipts`, which are read if they are not given.  *here* are applies on this machine.
    """
    today = now or datetime.now(timezone.utc)
    resolved, planned = _checked(matrix, today)
    trained = passed_receipts(matrix) if trained is None else trained
    applied = [*read_apply_receipts(matrix.source), *here]
    imported = [one for one in applied if one.imports]
    return {
        "resolved": resolved,
        "planned": planned,
        # A smoke run trains only in an environment whose apply was proven, and imports the stack.
        "applied": _newest(matrix, [*trained, *applied], today),
        "imported": _newest(matrix, [*trained, *imported], today),
        "trained": list(_by_card(matrix, trained, today)),
    }


def proofs_of(matrix: Matrix, trained: Iterable[Receipt]) -> list[dict[str, Any]]:
    """Return each receipt of *trained* as JSON values: card, variant, date, and what its marks say."""
    today = datetime.now(timezone.utc)
    dated = ((one, _dated(one.date, today, is_earlier=_is_earlier(matrix, one))) for one in trained)
    return [
        {"card": _card(one), "variant": one.variant, "date": when["date"], "remarks": remarks_of(when)}
        for one, when in dated
    ]


def remarks_of(dated: Mapping[str, Any]) -> list[str]:
    """Return what the marks of *dated*, a date of the evidence, say."""
    return [text for mark, text in REMARKS.items() if dated[mark]]


def _checked(matrix: Matrix, now: datetime) -> tuple[dict[str, Any] | None, dict[str, int]]:
    """Return when the locks were checked last, and the recorded runtimes by their best verdict."""
    path = Path(matrix.source).with_name(f"{matrix.name}.checks.json")
    try:
        value = json.loads(read_bounded(path, RUN_FILE))
        results = value["results"]
        date = str(value.get("date") or "")
        best: dict[str, str] = {}
        for one in results:
            verdict, before = str(one["verdict"]), best.get(str(one["runtime"]), "none")
            best[str(one["runtime"])] = min(verdict, before, key=_RANK.__getitem__)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, {}
    planned = {verdict: sum(one == verdict for one in best.values()) for verdict in _RANK}
    found = any(isinstance(one, Mapping) and one.get("lock") for one in results)
    is_earlier = value.get("matrix-digest") != matrix.digest
    resolved = _dated(f"{date}T00:00:00", now, is_earlier=is_earlier) if date and found else None
    return resolved, {verdict: number for verdict, number in planned.items() if number}


_RANK = {verdict: rank for rank, verdict in enumerate(("kernel", "env", "unknown", "none"))}


def _newest(
    matrix: Matrix, receipts: Iterable[Receipt | ApplyReceipt], now: datetime
) -> dict[str, Any] | None:
    """Return the date of the newest receipt, of those that the matrix still asks for if there are any."""
    ranked = [(not _is_earlier(matrix, one), one.date) for one in receipts]
    if not ranked:
        return None
    is_current, date = max(ranked)
    return _dated(date, now, is_earlier=not is_current)


def _by_card(matrix: Matrix, receipts: Iterable[Receipt], now: datetime) -> Iterator[dict[str, Any]]:
    cards: dict[str, list[Receipt]] = {}
    for one in receipts:
        cards.setdefault(_card(one), []).append(one)
    for card in sorted(cards, key=lambda name: (name != "CPU", name)):
        best = max(cards[card], key=lambda one: (not _is_earlier(matrix, one), one.date))
        facts = {"card": card, "variant": best.variant, "runner": best.runner, "receipts": len(cards[card])}
        yield {**facts, **_dated(best.date, now, is_earlier=_is_earlier(matrix, best))}


def _card(receipt: Receipt) -> str:
    return "CPU" if receipt.card == "cpu" else receipt.card


def _is_earlier(matrix: Matrix, receipt: Receipt | ApplyReceipt) -> bool:
    if receipt.matrix_digest == matrix.digest:
        return False
    if isinstance(receipt, Receipt):
        return not admits(matrix, receipt)
    return not asks_for(matrix, receipt.variant, receipt.python_version, receipt.versions)


def _dated(date: str, now: datetime, *, is_earlier: bool) -> dict[str, Any]:
    return {"date": date[:10], "old": is_old(date, now), "earlier": is_earlier}
