"""What others wrote is decoded into typed records, or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colablock._common.decoding import Malformed, decode, read_bounded, read_record
from colablock.errors import InvalidInput


class Named(msgspec.Struct):
    name: str
    size: int = 0


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "truncated"),
        (b'{"name": 1}', "Expected `str`, got `int` - at `[$].name`"),
        (b'{"name": "a", "size": "x"}', "Expected `int`, got `str`"),
        (b'{"name": "a", "size": NaN}', "malformed"),
        (b'{"name": "\xff"}', "UTF-8|utf-8"),
        (b'{"name": "a", "more": ' + b"[" * 100_000, "nested too deeply|truncated"),
        (b'{"size": 1}', "missing required field `name`"),
        (b'{"name": "a"', "truncated"),
    ],
)
def test_what_does_not_fit_is_one_short_line(data: bytes, fault: str) -> None:
    with pytest.raises(Malformed, match=fault) as raised:
        decode(data, Named)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("kind", [Any, dict, list])
def test_a_value_of_unknown_form_is_bounded_in_depth(kind: Any) -> None:
    opening, closing = ("[", "]") if kind is list else ('{"a":', "}")
    assert decode(opening * 60 + "1" + closing * 60, kind)
    for depth in (66, 500, 50_000):
        with pytest.raises(Malformed, match="nested too deeply"):
            decode(opening * depth + "1" + closing * depth, kind)


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert decode(b'{"name": "a", "colour": {"red": 1}}', Named) == Named("a")


def test_a_file_is_regular_and_bounded(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text('{"name": "a"}', encoding="utf-8")
    assert read_record(file, Named) == Named("a")
    with pytest.raises(InvalidInput, match=r"record\.json.*larger than 5 bytes"):
        read_record(file, Named, limit=5)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Malformed, match="not a regular file"):
        read_bounded(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none", Named)
