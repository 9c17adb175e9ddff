"""What a terminal and a notebook show of names and messages that somebody else wrote."""

from __future__ import annotations

import json

import pytest

from colablock.display.html import to_html
from colablock.display.text import error_text, to_text
from colablock.display.view import Document, Note, Preformatted
from colablock.errors import InvalidInput
from tests.support.hostile import Target

EVIL = "[red]a[/red]\x1b]8;;http://127.0.0.1/\x07b\x1b[2J\rc\u202ed\u200be\x9bf\u2028g"
SHOWN = r"[red]a[/red]\x1b]8;;http://127.0.0.1/\x07b\x1b[2J\rc\u202ed\u200be\x9bf\u2028g"


def _is_clean(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


def test_text_shows_escapes() -> None:
    document = Document(blocks=(Note(text=EVIL), Preformatted(lines=(EVIL,))))
    text = to_text(document, width=200)
    assert text.count(SHOWN) == 2
    assert _is_clean(text)


def test_html_shows_escapes_and_isolates_directions() -> None:
    html = to_html(Document(blocks=(Note(text=EVIL + "<script>"), Preformatted(lines=(EVIL,)))))
    assert html.count(SHOWN) == 2
    assert "<script>" not in html
    assert "unicode-bidi:isolate" in html
    assert _is_clean(html)


def test_an_error_shows_escapes() -> None:
    text = error_text(InvalidInput(f"`{EVIL}` is no file", hint=f"Remove `{EVIL}`"), width=300)
    assert text.count(SHOWN) == 2
    assert _is_clean(text)


@pytest.mark.slow  # whole commands
def test_a_command_shows_escapes(target: Target) -> None:
    name = EVIL.replace("/", "_")
    done = target.run("plan", name, COLUMNS="300")
    assert SHOWN.replace("/", "_") in done.err
    assert _is_clean(done.err + done.out)
    as_json = target.run("plan", name, "--json").out
    assert name in json.loads(as_json)["error"]["message"]
    assert _is_clean(as_json)
