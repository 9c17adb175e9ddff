"""TOML that others may have written."""

from __future__ import annotations

from datetime import datetime

import pytest

from colablock._common.toml import NotToml, in_utc, load_toml
from tests.support.timing import takes_at_most


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 20_000 + "=1",
        "[" + "a . " * 20_000 + "a]",
        "x={" + '"a".' * 20_000 + "a=1}",
        "a=1 # " + "." * 100 + '\nb="' + '\\"' * 100_000 + "." * 100,
        'a="' * 100_000 + "." * 100,
        "a = " + "[" * 5_000,
        "a = " + "9" * 5_000,
    ],
)
def test_absurd_documents_are_refused_in_time(text: str) -> None:
    with takes_at_most(2), pytest.raises(NotToml):
        load_toml(text.encode())


@pytest.mark.parametrize("value", ["." * 1000, "1.2" * 100, "a.b=" * 100])
def test_dots_in_a_string_are_no_keys(value: str) -> None:
    assert load_toml(f'a = ["{value}", \'{value}\', "\\"{value}"]'.encode())["a"][0] == value


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2024-09-01T00:00:00", "2024-09-01T00:00:00+00:00"),
        ("2024-09-01T00:00:00+02:00", "2024-08-31T22:00:00+00:00"),
        ("0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59.999999+00:00"),
    ],
)
def test_every_moment_has_one_in_utc(written: str, expected: str) -> None:
    assert in_utc(load_toml(f"at = {written}".encode())["at"]).isoformat() == expected
    assert in_utc(datetime.fromisoformat(written)).isoformat() == expected
