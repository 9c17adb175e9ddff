"""The tokenizer of a model, and the tokens of a text of which the loss includes some parts."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

__all__ = ["IGNORED", "NoTokenizer", "Span", "spans_between", "tokenised", "tokenizer_of"]

Span = tuple[int, int]

IGNORED = -100  # the label of a token that the loss ignores

_TOKENIZER_FILE = re.compile(
    r"tokenizer|vocab|merges\.|tekken|spiece|sentencepiece|.*\.(?:model|tiktoken|spm)$"
)


class NoTokenizer(Exception):
    """The folder of a model has no file of a tokenizer."""


def tokenizer_of(model: str, revision: str | None) -> Any:
    """Return the tokenizer of *model*.  Raises NoTokenizer, and what transformers raises else."""
    # A module of the target, which is not installed where this is checked.
    from transformers import AutoTokenizer  # type: ignore[import-not-found]  # noqa: PLC0415

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision)
    except Exception as error:
        folder = Path(model)
        if folder.is_dir() and not any(_TOKENIZER_FILE.match(file.name) for file in folder.iterdir()):
            message = f"the model `{model}` has no tokenizer: its folder has no `tokenizer.json`"
            raise NoTokenizer(message) from error
        raise


def spans_between(spans: Sequence[Span], length: int) -> Iterator[Span]:
    """Yield what lies between *spans* in a text of *length* characters."""
    begin = 0
    for first, last in spans:
        if begin < first:
            yield begin, first
        begin = last
    if begin < length:
        yield begin, length


def tokenised(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """Return the tokens of *text* without special ones added, and whether each is learnt.

    At generation the tokens of the prompt end where the answer begins.  Therefore no token lies across
    the start of a span, unless the tokenizer cannot write the parts one by one.
    """

    def encoded(part: str) -> list[int]:
        return list(tokenizer(part, add_special_tokens=False)["input_ids"]) if part else []

    if not getattr(tokenizer, "is_fast", False):
        return _joined(
            [(encoded(text[slice(*part)]), is_learnt) for part, is_learnt in _cut(spans, len(text))]
        )
    ids, offsets = _with_offsets(tokenizer, text)
    # A space before a word is in its token, and the model writes both.
    firsts = [first for first, _ in offsets]
    edges = []
    for begin, _ in spans:
        number = bisect_left(firsts, begin) - 1  # the last token that begins before
        if number >= 0 and offsets[number][1] > begin and text[firsts[number] : begin].strip(" "):
            edges.append(begin)
    if edges:
        parts = [
            _with_offsets(tokenizer, text[first:last], first)
            for first, last in zip([0, *edges], [*edges, len(text)])  # noqa: B905 (Python 3.9 has no strict)
        ]
        apart = list(chain.from_iterable(part for part, _ in parts))
        if _decoded(tokenizer, apart) == _decoded(tokenizer, ids):
            ids, offsets = apart, list(chain.from_iterable(places for _, places in parts))
    return ids, _learnt_tokens(offsets, spans)


def _with_offsets(tokenizer: Any, text: str, begin: int = 0) -> tuple[list[int], list[Span]]:
    """Return the tokens of *text*, and the range of each, counted from *begin*."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(found["input_ids"]), [
        (first + begin, last + begin) for first, last in found["offset_mapping"]
    ]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _cut(spans: Sequence[Span], length: int) -> Iterator[tuple[Span, bool]]:
    """Yield the parts of a text, each with whether it is learnt."""
    parts = [(span, True) for span in spans] + [(span, False) for span in spans_between(spans, length)]
    yield from sorted(part for part in parts if part[0][0] < part[0][1])


def _joined(pieces: Sequence[tuple[list[int], bool]]) -> tuple[list[int], list[bool]]:
    ids = [token for part, _ in pieces for token in part]
    return ids, [is_learnt for part, is_learnt in pieces for _ in part]


def _learnt_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Return for each token whether it lies in a span, or begins before one and reaches into it."""
    learnt, number = [], 0
    for first, last in offsets:
        while number < len(spans) and spans[number][1] <= first:
            number += 1
        if number == len(spans):
            learnt.append(False)
            continue
        begin, _ = spans[number]
        learnt.append(last > begin or (first == last and first >= begin))
    return learnt
