"""Read the rows of a table, the text of cells that a separator parts."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import tee, zip_longest
from pathlib import Path

from colablock.training.scripts.rows.conversations import Missing
from colablock.training.scripts.rows.messages import UnusableData

__all__ = ["table_rows"]

# The marks of pandas for a missing value that are no word of any text.
MISSING = frozenset(
    {"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None", "#NA"}
)
_SEPARATORS = {";": "`;`", "\t": "tabs", "|": "`|`", ",": "`,`"}
_QUOTES = "put cells with a separator in them into quotes, and name every column"
_DECLARED = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # the first line of a table for Excel


def table_rows(lines: Iterator[str], path: Path, notes: list[str], usual: str) -> Iterator[Mapping[str, str]]:
    """Yield the rows of the table *lines* with a header; *usual* is what separates the cells in such a file.

    Every cell is text; one without a value is a `Missing`.  Raises UnusableData.
    """
    csv.field_size_limit(sys.maxsize)
    separator, is_declared, lines = _separated(lines, usual)
    if separator != usual:
        notes.append(f"the cells of `{path.name}` are read as separated by {_SEPARATORS[separator]}")
    rows = csv.reader(lines, delimiter=separator, strict=True)
    numbers: dict[str, tuple[int, str]] = {}
    texts: set[str] = set()
    try:
        header = _header(rows)
        if is_declared:
            header = _header(rows)
        twice = [name for at, name in enumerate(header) if name in header[:at]]
        if twice:
            raise UnusableData(f"`{path}` has two columns `{twice[0]}`")
        for number, cells in enumerate((row for row in rows if any(row)), 1):
            if any(cells[len(header) :]):
                is_spaced = any(re.match(r'\s+"', cell) for cell in cells)
                fix = "remove the space before a quote" if is_spaced else _QUOTES
                counts = f"{len(cells)} cells, and the header names {len(header)}"
                raise UnusableData(f"row {number} of `{path}` has {counts}: {fix}")
            row = {
                name: Missing(cell) if cell in MISSING else cell
                for name, cell in zip_longest(header, cells[: len(header)], fillvalue="")
            }
            for name, cell in row.items():
                if name not in texts and not isinstance(cell, Missing):
                    if _is_number(cell):
                        numbers.setdefault(name, (number, cell))
                    else:
                        texts.add(name)
            yield row
    except csv.Error as error:
        raise UnusableData(f"`{path}` cannot be read as csv: {error} (line {rows.line_num})") from error
    for name, (number, cell) in numbers.items():
        if name not in texts and name in ("text", "prompt", "completion", "instruction", "output"):
            notes.append(f"`{name}` has numbers (row {number}: `{cell}`), which are read as text")


def _separated(lines: Iterator[str], usual: str) -> tuple[str, bool, Iterator[str]]:
    """Return what separates the cells of *lines*, whether their first line says so, and again all of them.

    That is the *usual* separator, or another one if only that parts the cells of the header.
    """
    lines, start = tee(lines)
    declared = _DECLARED.fullmatch(next(filter(str.strip, start), ""))
    if declared is not None and declared[1] in _SEPARATORS:
        return declared[1], True, lines
    for separator in (usual, *_SEPARATORS):
        lines, start = tee(lines)
        with suppress(csv.Error):  # a quoted cell ends with another separator
            if len(_header(csv.reader(start, delimiter=separator, strict=True))) > 1:
                return separator, False, lines
    return usual, False, lines


def _header(rows: Iterator[list[str]]) -> list[str]:
    """Return the first of *rows* that is not blank, without the empty columns after the last name."""
    header = next((row for row in rows if any(map(str.strip, row))), [])
    while header and not header[-1].strip():
        header.pop()
    return header


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
