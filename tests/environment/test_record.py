"""Reading and writing RECORD."""

from __future__ import annotations

from pathlib import Path

import pytest

from colablock.environment.record import Row, read_record, write_record

LONG = "x" * 140_000  # more than a field of CSV may have
ROWS = {
    "plain": ("a.py,sha256=x,1\nb/c.py,,\n", [Row("a.py", "sha256=x", "1"), Row("b/c.py")]),
    "without a newline at the end": ("a.py,sha256=x,1", [Row("a.py", "sha256=x", "1")]),
    "empty lines": ("\na.py,,\n\n", [Row("a.py")]),
    "Windows line ends": ("a.py,,\r\nb.py,,\r\n", [Row("a.py"), Row("b.py")]),
    "fields left out": ("a.py\nb.py,sha256=x\n", [Row("a.py"), Row("b.py", "sha256=x")]),
    "a quoted path with a comma": (
        '"a, b.py",sha256=x,1\nc.py,,\n',
        [Row("a, b.py", "sha256=x", "1"), Row("c.py")],
    ),
    "a quoted path with a quote": ('"a ""b"".py",,\n', [Row('a "b".py')]),
    "a quoted path with a newline": ('"a\nb.py",,\n', [Row("a\nb.py")]),
    "a path with a comma that is not quoted": ("a, b.py,sha256=x,1\n", [Row("a, b.py", "sha256=x", "1")]),
    "a line separator in a path": ("a\u2028b.py,,\n", [Row("a\u2028b.py")]),
    "quotes that are no CSV": (
        f'a.py,,\n"{"x" * 140_000}.py,,\n',
        [Row("a.py"), Row(f'"{"x" * 140_000}.py')],
    ),
}


@pytest.mark.parametrize(("text", "rows"), ROWS.values(), ids=ROWS.keys())
def test_the_rows_of_a_record(tmp_path: Path, text: str, rows: list[Row]) -> None:
    (tmp_path / "RECORD").write_bytes(text.encode())
    assert read_record(tmp_path) == tuple(rows)


def test_a_path_that_is_not_text_is_kept(tmp_path: Path) -> None:
    (tmp_path / "RECORD").write_bytes(b"\xe9t\xe9.txt,,\n")
    rows = read_record(tmp_path)
    assert rows == (Row("\udce9t\udce9.txt"),)
    write_record(tmp_path, rows)
    assert (tmp_path / "RECORD").read_bytes() == b"\xe9t\xe9.txt,,\n"


def test_a_missing_record_differs_from_an_empty_one(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "missing") is None
    (tmp_path / "RECORD").touch()
    assert read_record(tmp_path) == ()


def test_a_written_record_is_read_back(tmp_path: Path) -> None:
    rows = (Row("b.py", "sha256=x", "1"), Row('a, "b"\nc.py'))
    write_record(tmp_path, rows)
    assert read_record(tmp_path) == tuple(sorted(rows))
