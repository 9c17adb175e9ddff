"""All messages that a person can meet, on one page: `tests/data/messages.txt`."""

from __future__ import annotations

import ast
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support.paths import DATA, ROOT

PAGE = DATA / "messages.txt"
UPDATE = "UPDATE_SNAPSHOTS"
HOW = f"to write it again: `{UPDATE}=1 pytest {Path(__file__).relative_to(ROOT)}`"
HEAD = f"""\
Every message of colablock that a person can meet, by package: errors, hints, notes, help and titles.
{{name}} stands for a value.  A test compares this page with the source; {HOW}
"""
# Two words or more, with a space between them.
_SENTENCE = re.compile(r"[A-Za-z`'}\])]{2,}[,:;]? [\w`'{(\[-]{2,}")
# Templates, styles and code of other languages, which are no messages.
_CODE = re.compile(
    r"\{%|\{\{|^bold |^dim |^cl-|^default-src|[{;]\s*$"
    r"|^\s*[<#.]|</|\\[wsdb]|\(\?|^import |^from |^SELECT |^#!|==>|^def ",
    re.MULTILINE,
)
_LONG = 1500  # characters; longer texts are templates of files
_PLACE = re.compile(r"\{\w*\}")
_WORD = re.compile(r"[A-Za-z]{2,}")
_SKIPPED = ("_vendor", "scripts/_toy", "usage/completion")


def messages(path: Path) -> Iterator[str]:
    """Yield the texts of a module that read as sentences, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    skipped -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))  # a docstring
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {
            "compile",
            "sub",
            "fullmatch",
            "search",
        }:
            skipped.update(id(one) for argument in node.args for one in ast.walk(argument))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(map(_piece, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        words = _WORD.findall(_PLACE.sub("", text))
        if len(words) > 1 and _SENTENCE.search(text) and not _CODE.search(text) and len(text) < _LONG:
            yield " ".join(text.split())


def _piece(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    if not isinstance(part, ast.FormattedValue):
        return "{}"
    names = [
        one.attr if isinstance(one, ast.Attribute) else one.id
        for one in ast.walk(part.value)
        if isinstance(one, (ast.Attribute, ast.Name))
    ]
    return f"{{{names[0] if names else 'value'}}}"


@lru_cache
def page() -> str:
    """Return the page: a heading for each package, and its messages sorted."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "colablock").rglob("*.py")):
        module = path.relative_to(ROOT / "colablock").as_posix()
        if not any(part in module for part in _SKIPPED):
            area = module.split("/")[0] if "/" in module else "colablock"
            found[area].update(messages(path))
    parts = [HEAD]
    for area in sorted(found):
        parts.append(f"\n{area}\n{'-' * len(area)}\n")
        parts += [f"{text}\n" for text in sorted(found[area], key=lambda text: (text.casefold(), text))]
    return "".join(parts)


def test_the_page_of_messages_is_current() -> None:
    current = page()
    if os.environ.get(UPDATE):
        PAGE.write_text(current, encoding="utf-8")
    known = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    new = [line for line in current.splitlines() if line not in known]
    gone = [line for line in known if line not in current.splitlines()]
    if current.splitlines() != known:
        changes = "\n".join([*(f"+ {line}" for line in new[:20]), *(f"- {line}" for line in gone[:20])])
        pytest.fail(f"messages have changed: read them on the page, and {HOW}\n{changes}")


# Words that make a reader stop, and what a message says in their place.  See CONTRIBUTING.md.
RIDDLES = {
    r"(?<!there )\bis no (?!longer)": "is not a",
    r"\bhas what\b": "has an entry that",
    r"\bat hand\b": "available",
    r"\bnobody\b": "no user",
    r"\bset aside\b|\bleft aside\b": "not using",
    r"\bway back\b|\bway out\b": "undo, alternative",
    r"\bwants\b": "requires",
}


def test_messages_are_plain() -> None:
    found = [
        f"{line}\n  instead of {riddle!r}, write: {better}"
        for line in page().splitlines()
        for riddle, better in RIDDLES.items()
        if re.search(riddle, line)
    ]
    assert found == [], "\n".join(found)
