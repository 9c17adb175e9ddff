"""What others wrote is decoded into typed records, or refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colablock._common.decoding import (
    Malformed,
    decode,
    is_plain_name,
    read_bounded,
    read_end,
    read_record,
)
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
    assert read_record(file, Named, limit=1 << 60) == Named("a")  # no memory is reserved for more
    with pytest.raises(InvalidInput, match=r"record\.json.*larger than 5 bytes"):
        read_record(file, Named, limit=5)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Malformed, match="not a regular file"):
        read_bounded(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none", Named)


@pytest.mark.parametrize(
    "value",
    [{"name": "odd\udce9"}, {"name": "a", "size": 3, "more": float("nan")}, {"name": "x\udcff\udc80"}],
)
def test_what_the_json_module_writes_is_read(value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    assert decode(data, Named, by_python=True) == Named(value["name"], value.get("size", 0))
    with pytest.raises(Malformed):
        decode(data, Named)


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": "\\ud800"}',  # no byte of a path
        b'{"name": NaN}',
        b'{"name": "a\\udce9", "more": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"name": "a\\udce9", "more": ' + b"[" * 100_000,
        b'{"name": "a\\udce9", "size": ' + b"9" * 5000 + b"}",
        b'{"name": "a\\udce9"',
    ],
)
def test_the_dialect_of_the_json_module_is_bounded_too(data: bytes) -> None:
    with pytest.raises(Malformed) as raised:
        decode(data, Named, by_python=True)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a", "a b", "checkpoint-5", "...", "\N{SNOWMAN}", "a\udce9", "x" * 255])
def test_a_plain_name_is_the_name_of_a_file(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/", "a\\b", "a\0", "a\nb", "\x1b", "\x7f", "x" * 256]
)
def test_a_path_is_no_plain_name(name: str) -> None:
    assert not is_plain_name(name)


def test_the_end_of_a_file_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"0123456789")
    assert read_end(tmp_path / "log", 4) == b"6789"
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "none", "a\0b"):
        assert read_end(tmp_path / name, 4) == b""


RACE = """\
import sys, threading
import msgspec
from colablock._common.decoding import decode

sys.setswitchinterval(1e-6)
for round in range(60):
    types = {"S0": msgspec.defstruct("S0", [("a", str), ("b", list[int] | None, None)])}
    for number in range(1, 12):
        below = types[f"S{number - 1}"]
        fields = [("a", str), ("b", below | None, None), ("c", list[below] | None, None)]
        types[f"S{number}"] = msgspec.defstruct(f"S{number}", fields)
    barrier, found = threading.Barrier(8), []

    def read():
        barrier.wait()
        found.append(decode(b'{"a": "x", "b": {"a": "y"}, "c": [{"a": "z"}]}', types["S11"]))

    threads = [threading.Thread(target=read) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [one.c[0].a for one in found] == ["z"] * 8
"""


def test_threads_may_read_a_type_for_the_first_time_together() -> None:
    subprocess.run([sys.executable, "-c", RACE], check=True)
