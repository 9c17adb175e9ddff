"""TOML that others may have written."""

from __future__ import annotations

import time

import pytest

from colablock._common.toml import NotToml, load_toml


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
    started = time.process_time()
    with pytest.raises(NotToml):
        load_toml(text.encode())
    assert time.process_time() - started < 2


@pytest.mark.parametrize("value", ["." * 1000, "1.2" * 100, "a.b=" * 100])
def test_dots_in_a_string_are_no_keys(value: str) -> None:
    assert load_toml(f'a = ["{value}", \'{value}\', "\\"{value}"]'.encode())["a"][0] == value
