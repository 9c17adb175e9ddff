"""Say which rows are learnt, by the columns that judge their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from colablock.training.scripts.rows.conversations import WEIGHTS, Missing

__all__ = ["Judge"]

_LABELS = ("label", "is_good", "is_chosen", "accepted", "thumbs_up")  # columns that judge an answer
_TEXT = {"true": True, "false": False}
_WORDS = {
    "good": True,
    "chosen": True,
    "accepted": True,
    "desirable": True,
    "bad": False,
    "rejected": False,
    "undesirable": False,
}
_FLAGS = (0, 1, "0", "1", "0.0", "1.0")
_SHOWN = 60  # characters of a value in a note


class Judge:
    """Judges the rows of a source with the form *form*, and counts what it has to say about them.

    A row is learnt unless a column says that it is not.  *columns* are those that have judged a row.
    """

    def __init__(self, form: str) -> None:
        self._form = form
        self.columns: set[str] = set()
        self._excluded: Counter[str] = Counter()
        self._unclear: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def learns(self, row: Mapping[str, Any], number: int) -> bool:
        """Whether the row *number* (from 1) is learnt."""
        found = dict(self._verdicts(row))
        self.columns.update(name for name, verdict in found.items() if verdict is not None)
        against = next((name for name, verdict in found.items() if verdict is False), None)
        if against is not None:
            self._excluded[against] += 1
            return False
        for name in (name for name, verdict in found.items() if verdict is None):
            self._unclear[name] += 1
            self._first.setdefault(name, f"row {number}: `{str(row[name])[:_SHOWN]}`")
        return True

    def _verdicts(self, row: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
        """Yield the columns that may judge, each with whether the row is learnt; None is no judgement.

        Numbers are judgements only in weights and, as in trl's format for KTO, beside `prompt` and
        `completion`.  Words are judgements only of answers.
        """
        for name in (*_LABELS, "rejected", *WEIGHTS):
            value = row.get(name)
            if value is None or isinstance(value, Missing):
                continue
            if isinstance(value, str) and name != "rejected":
                word = value.strip().lower()
                value = _TEXT.get(word, value)
                if name in _LABELS and self._form != "text":
                    value = _WORDS.get(word, value)
            has_flag = name in WEIGHTS or (name == "label" and self._form == "completion")
            if not isinstance(value, bool) and has_flag and value in _FLAGS:
                value = float(value) == 1
            if not isinstance(value, bool):
                yield name, None
            else:
                yield name, value != (name == "rejected")

    def notes(self, rows: int) -> Iterator[str]:
        """Yield what has to be said about the *rows* rows of the source, a line each."""
        for name, number in self._excluded.items():
            yield f"left out: {number:,} of {rows:,} rows, which `{name}` marks as not to learn"
        for name, number in self._unclear.items():
            if name in self.columns:
                yield (
                    f"learnt in full: {number:,} of {rows:,} rows, whose `{name}` does not say whether "
                    f"({self._first[name]})"
                )
