"""Read the rows of a dataset: a local file, a folder, or a name on the hub.

Tables and JSON are read here, row by row: pandas and Arrow would turn texts into numbers, dates and
missing values, and add the keys of one row to all others.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

from colablock.training.scripts.rows.conversations import CONTENT_KEYS, FORMS, MESSAGES, ROLE_KEYS
from colablock.training.scripts.rows.messages import NotJson, UnusableData, parsed_json
from colablock.training.scripts.rows.tables import table_rows

Row = Mapping[str, Any]

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
_KEPT = frozenset({*CONTENT_KEYS, *ROLE_KEYS})  # keys whose null is a fault of the row
# The words in names of files that tell their split.
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_ABOUT = frozenset({"dataset_info.json", "dataset_infos.json", "metadata.csv", "metadata.jsonl"})
# The longest first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_COLUMNS = frozenset(
    {*MESSAGES, "tools", "functions", "history", "chosen", "rejected"}.union(*FORMS.values())
)
_SPLIT = re.compile(
    r"(?P<name>\w[\w.-]*)"
    r"(?:\[(?:(?P<start>-?\d[\d_]*)(?P<of_start>%?))?:(?:(?P<end>-?\d[\d_]*)(?P<of_end>%?))?\])?"
    r"(?:\(closest\))?"
)
_ALL = 100  # percent
_FROM_HUB = (
    "DatasetNotFoundError",
    "DataFilesNotFoundError",
    "DatasetGenerationError",
    "DatasetGenerationCastError",
)


class Unreachable(Exception):
    """The data cannot be read now; it may be fine.  The message says why."""


def rows_of(source: Mapping[str, Any], notes: list[str]) -> Iterator[Row]:
    """Return the rows of *source*; what has to be said about it is added to *notes*.

    A file is read row by row; a folder or a dataset on the hub is loaded now.  Raises UnusableData, or
    Unreachable.
    """
    return _some(_rows(source, Path(source["path"]).expanduser(), notes), source["path"])


def _some(rows: Iterator[Row], path: str) -> Iterator[Row]:
    found = False
    for row in rows:
        found = True
        yield row
    if not found:
        raise UnusableData(f"`{path}` is empty: it has no row")


def _rows(source: Mapping[str, Any], path: Path, notes: list[str]) -> Iterator[Row]:
    kind = format_of(path)
    if path.is_file():
        if kind is None:
            raise UnusableData(
                f"the format of `{path}` is unknown: supported suffixes are {', '.join(FORMATS)}, "
                "also with .gz"
            )
        parts = _known_parts(source, ("train",), "it is one file")
        return chain.from_iterable(part.rows(partial(_READERS[kind], path, notes)) for part in parts)
    if path.is_dir():
        return _of_folder(source, path, notes)
    if kind is not None:  # not the name of a dataset on the hub
        raise UnusableData(f"the file `{path}` does not exist")
    return _of_library(source, source["path"])


def format_of(path: Path) -> str | None:
    """Return the format of a file by its name."""
    name = path.name.lower()
    if name.endswith(".gz"):
        name = name[: -len(".gz")]
        return None if name.endswith(".parquet") else FORMATS.get(Path(name).suffix)
    return FORMATS.get(Path(name).suffix)


# Splits


@dataclass(frozen=True)
class _SplitPart:
    """A split, or a slice of it in the notation of `datasets`: ``train[10:-5]``, ``train[:10%]``."""

    name: str
    start: int | None
    end: int | None
    in_percent: bool

    @property
    def is_whole(self) -> bool:
        return self.start is None and self.end is None

    def within(self, count: int) -> range:
        """Return the indices of *count* rows that are meant, rounded as `datasets` does."""
        ends = []
        for edge, otherwise in ((self.start, 0), (self.end, count)):
            at = otherwise if edge is None else round(edge * count / _ALL) if self.in_percent else edge
            ends.append(min(max(at + count, 0) if at < 0 else at, count))
        return range(ends[0], max(ends))

    def rows(self, read: Callable[[], Iterator[Row]]) -> Iterator[Row]:
        """Return the rows of the part; where it depends on their number, they are counted first."""
        if self.is_whole:
            return read()
        if self.in_percent or (self.start or 0) < 0 or (self.end or 0) < 0:
            indices = self.within(sum(1 for _ in read()))
            return islice(read(), indices.start, indices.stop)
        return islice(read(), self.start or 0, self.end)


def _parts(split: str) -> list[_SplitPart] | None:
    """Return the parts of a split, which ``+`` joins; None if it is in another notation."""
    found = []
    for text in split.split("+"):
        match = _SPLIT.fullmatch(text.strip())
        if match is None:
            return None
        edges = [None if match[one] is None else int(match[one]) for one in ("start", "end")]
        units = {match[f"of_{one}"] for one in ("start", "end") if match[one] is not None}
        if len(units) > 1 or (units == {"%"} and any(abs(edge or 0) > _ALL for edge in edges)):
            return None
        found.append(_SplitPart(match["name"], edges[0], edges[1], units == {"%"}))
    return found


def _known_parts(source: Mapping[str, Any], names: Sequence[str], why: str = "") -> list[_SplitPart]:
    """Return the parts of the split of *source*, which has *names*.  Raises UnusableData."""
    path, split = source["path"], source["split"]
    parts = _parts(split)
    if parts is None:
        raise UnusableData(
            f"`split: {split}` of `{path}` is not a valid split:"
            " write `train`, `train[:100]` or `train[10%:20%]`"
        )
    for part in parts:
        if part.name not in names:
            known = ", ".join(f"`{name}`" for name in names)
            reason = f"{why}, which has only {known}" if why else f"it has {known}"
            raise UnusableData(f"`{path}` has no split `{part.name}`: {reason}")
    return parts


# Files


def _opened(path: Path, kind: str) -> IO[str]:
    """Return the text of a file, which is UTF-8 or, if its first bytes say so, UTF-16 or UTF-32."""
    with _bytes_of(path) as file:
        start = file.read(4)
    encoding = next((_MARKS[mark] for mark in _MARKS if start.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(_bytes_of(path), encoding=encoding, newline="" if kind == "csv" else None)


def _bytes_of(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _lines(path: Path, kind: str) -> Iterator[str]:
    """Yield the lines of a file.  Raises UnusableData if it is not text."""
    try:
        with _opened(path, kind) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UnusableData(
                        f"`{path}` is not text (line {number} has a NUL character), or UTF-16 or UTF-32 "
                        "without a byte order mark: save it as UTF-8"
                    )
                yield line
    except UnicodeDecodeError as error:
        raise UnusableData(f"`{path}` is not UTF-8{_first_bad_line(path)}: save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UnusableData(f"`{path}` cannot be read: {cause_of(error)}") from error


def _first_bad_line(path: Path) -> str:
    with _bytes_of(path) as file:
        for number, line in enumerate(file, 1):
            valid = line.decode("utf-8", "surrogateescape").encode("utf-8", "replace")
            if valid != line:
                at = next(at for at, byte in enumerate(line) if valid[at : at + 1] != bytes([byte]))
                return f" (line {number} has the byte 0x{line[at]:02x})"
    return ""


def _json_rows(path: Path, _: list[str]) -> Iterator[Row]:
    """Yield the rows of JSON lines, or of a list in one JSON document."""
    first, lines = _first_line(_lines(path, "json"))
    if first.lstrip()[:1] == "[" or path.name.lower().removesuffix(".gz").endswith(".json"):
        whole = _whole_document(lines, path)
        if whole is not None:
            for number, row in enumerate(whole, 1):
                yield _object(row, number, path)
            return
        lines = _lines(path, "json")
    number = 0
    for at, line in enumerate(lines, 1):
        if line.strip():
            number += 1
            yield _object(_json(line, path, at), number, path)


def _first_line(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """Return the first of *lines* that is not blank, and again all of them."""
    start = []
    for line in lines:
        start.append(line)
        if line.strip():
            break
    return start[-1] if start else "", chain(start, lines)


def _whole_document(lines: Iterator[str], path: Path) -> list[Any] | None:
    """Return the rows of a document that is a list, or an object with one; None if it is JSON lines."""
    text = "".join(lines)
    if not text.strip():
        return []
    try:
        value = parsed_json(text)
    except NotJson as error:
        if str(error) == "Extra data" and text.lstrip()[:1] == "{":
            return None
        raise _not_json(path, error, error.line) from error
    if isinstance(value, dict):
        return _wrapped(value) or [value]
    if not isinstance(value, list):
        raise UnusableData(f"`{path}` cannot be read as json: it is neither a list nor lines of objects")
    return value


def _wrapped(value: Mapping[str, Any]) -> list[Any]:
    """Return the rows in an object that has nothing else, as ``{"data": [...]}``; empty if it is a row."""
    ((key, rows), *others) = value.items() if value else [("", None)]
    if others or not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return []
    return rows if key not in _COLUMNS or not _COLUMNS.isdisjoint(rows[0]) else []


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return parsed_json(line)
    except NotJson as error:
        raise _not_json(path, error, number) from error


def _not_json(path: Path, error: NotJson, line: int) -> UnusableData:
    end = ", where it ends" if error.is_at_end else ""
    column = f", column {error.column}{end}" if error.column else ""
    where = f" (line {line}{column})" if line else ""
    return UnusableData(f"`{path}` cannot be read as json: {error}{where}")


def _object(value: Any, number: int, path: Path) -> Row:
    if not isinstance(value, dict):
        raise UnusableData(f"row {number} of `{path}` is not an object with named values")
    return value


def _csv_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    return table_rows(_lines(path, "csv"), path, notes, ",")


def _tab_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    return table_rows(_lines(path, "csv"), path, notes, "\t")


def _paragraphs(path: Path, notes: list[str]) -> Iterator[Row]:
    """Yield the paragraphs of a text, which blank lines part."""
    lines: list[str] = []
    count = 0
    for line in _lines(path, "text"):
        if line.strip():
            lines.append(line)
        elif lines:
            count += 1
            yield {"text": "".join(lines).rstrip("\n")}
            lines = []
    if lines:
        count += 1
        yield {"text": "".join(lines).rstrip("\n")}
    if count == 1:
        notes.append(f"`{path.name}` has no blank line between texts: all of it is one row")
    elif count:
        notes.append(f"each paragraph of `{path.name}` is a row: blank lines part {count:,} of them")


def _parquet_rows(path: Path, _: list[str]) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(str(path)) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from map(without_gaps, batch.to_pylist())
    except (ArrowException, OSError) as error:
        raise UnusableData(f"`{path}` cannot be read as parquet: {cause_of(error)}") from error


_READERS: Mapping[str, Callable[[Path, list[str]], Iterator[Row]]] = {
    "json": _json_rows,
    "csv": _csv_rows,
    "tsv": _tab_rows,
    "text": _paragraphs,
    "parquet": _parquet_rows,
}


# Folders and the hub


def _of_folder(source: Mapping[str, Any], path: Path, notes: list[str]) -> Iterator[Row]:
    """Return the rows of a folder that `save_to_disk` wrote, or of its data files."""
    if not ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        has_judge = bool(source["name"]) or (path / "README.md").is_file()
        parts = [] if has_judge else _parts(source["split"]) or []
        chosen = [(part, _files_of(path, part.name)) for part in parts]
        if not chosen or any(files is None for _, files in chosen):
            return _of_library(source, str(path))
        return chain.from_iterable(
            part.rows(partial(_of_files, files or [], notes)) for part, files in chosen
        )
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(path))
    except Exception as error:
        raise UnusableData(f"`{path}` cannot be read: {cause_of(error)}") from error
    is_one = not (path / "dataset_dict.json").is_file()
    names = dict.fromkeys(("train", str(getattr(data, "split", None) or "train"))) if is_one else data
    found = []
    for part in _known_parts(source, list(names)):
        rows = data if is_one else data[part.name]
        found.append(rows if part.is_whole else rows.select(part.within(len(rows))))
    return chain.from_iterable(_decoded(rows, str(path)) for rows in found)


def _of_files(files: Sequence[Path], notes: list[str]) -> Iterator[Row]:
    return chain.from_iterable(_READERS[str(format_of(file))](file, notes) for file in files)


def _files_of(folder: Path, split: str) -> list[Path] | None:
    """Return the data files of a split by their names, as `datasets` does; None if it has to judge.

    Without names of splits, all files are for training.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if split not in _SPLITS or any(format_of(path) is None or path.name in _ABOUT for path in files):
        return None
    words = {path: set(re.split(r"[^a-z]+", str(path.relative_to(folder)).lower())) for path in files}
    named = {path for path in files if any(words[path] & names for names in _SPLITS.values())}
    chosen = [path for path in files if words[path] & _SPLITS[split]] if named else files
    return chosen if chosen and (named or split == "train") else None


def _of_library(source: Mapping[str, Any], path: str) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        data = load_dataset(path, source["name"], split=source["split"])
    except Exception as error:
        words = f"`{source['path']}` cannot be loaded: {cause_of(error)}"
        kind = type(error).__name__
        is_fault = isinstance(error, (ValueError, FileNotFoundError, RuntimeError)) or kind in _FROM_HUB
        raise (UnusableData(words) if is_fault else Unreachable(words)) from error
    return _decoded(data, source["path"])


def _decoded(data: Any, path: str) -> Iterator[Row]:
    """Yield the rows of a dataset."""
    try:
        yield from map(without_gaps, data)
    except UnusableData:
        raise
    except Exception as error:
        raise UnusableData(f"`{path}` cannot be read: {cause_of(error)}") from error


def without_gaps(row: Row) -> Row:
    """Return a row of Arrow without the keys of other rows, which are null in its nested values."""
    return {key: _filled(value) if isinstance(value, (list, dict)) else value for key, value in row.items()}


def _filled(value: Any) -> Any:
    if isinstance(value, list):
        return [_filled(one) for one in value]
    if isinstance(value, dict):
        return {key: _filled(one) for key, one in value.items() if one is not None or key in _KEPT}
    return value


def cause_of(error: BaseException) -> str:
    """Return the root cause in one line: the exceptions of datasets only say that it failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
