"""What the front door takes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import colablock
from colablock.errors import InvalidInput, InvalidMatrix


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: colablock.run("x", []), "no command to run"),
        (lambda: colablock.run("x", " "), "no command to run"),
        (lambda: colablock.run("x", "say 'it"), "cannot be split"),
        (lambda: colablock.plan("x", into="foo"), "one of `kernel`, `env`"),
        (lambda: colablock.plan("x", broken="x"), "one of `repair`, `remove`, `leave`"),
        (lambda: colablock.plan("x", default_index="foo"), "neither a URL nor an existing folder"),
    ],
)
def test_what_cannot_be_used_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        call()


def test_paths_and_nothing_are_taken(tmp_path: Path) -> None:
    matrix = tmp_path / "m.toml"
    matrix.write_text("schema = 0\n")
    with pytest.raises(InvalidMatrix):
        colablock.plan(matrix, with_=None, protect=None, find_links=tmp_path, quiet=True)
