"""Documents from nothing, made by hypothesis: JSON with the keys of the samples, lines, and bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutations import STRINGS
from tests.fuzz.target import Target

__all__ = ["documents"]


def documents(target: Target) -> st.SearchStrategy[bytes]:
    """Return a strategy for inputs of *target* that are not changed samples."""
    if target.form == "json":
        return _values(_keys(target)).map(lambda value: json.dumps(value).encode())
    if target.form in {"lines", "toml"}:
        heads = sorted({line[:30] for sample in target.samples() for line in sample.split(b"\n")})
        words = st.sampled_from([head.decode("utf-8", "replace") for head in heads])
        line = st.lists(words | st.text(max_size=20) | st.sampled_from(STRINGS), max_size=3).map("".join)
        return st.lists(line, max_size=12).map(
            lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
        )
    return st.binary(max_size=400)


def _keys(target: Target) -> list[str]:
    found: set[str] = set()
    level: list[Any] = [json.loads(sample) for sample in target.samples()]
    while level:
        found.update(key for one in level if isinstance(one, dict) for key in one)
        inner = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))
        ]
        level = [value for values in inner for value in values]
    return sorted(found) or ["x"]


def _values(keys: list[str]) -> st.SearchStrategy[Any]:
    texts = st.sampled_from(STRINGS) | st.text(max_size=10) | st.sampled_from(keys)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
    names = st.sampled_from(keys)
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
        max_leaves=25,
    )
