from __future__ import annotations

import pytest

from colablock._common.text import decoded, printable

HIDDEN = {
    "an escape sequence": ("\x1b[31mred", r"\x1b[31mred"),
    "a link of a terminal": ("\x1b]8;;https://example.org\x07x", r"\x1b]8;;https://example.org\x07x"),
    "a carriage return": ("safe\revil", r"safe\revil"),
    "a backspace": ("ab\x08c", r"ab\x08c"),
    "a C1 control": ("\x9b31m", r"\x9b31m"),
    "a line feed": ("a\nb", r"a\nb"),
    "a tab": ("a\tb", r"a\tb"),
    "other line breaks": ("\x0b\x0c\x1c\x1e\x85\u2028\u2029", r"\x0b\x0c\x1c\x1e\x85\u2028\u2029"),
    "overrides of the direction": ("\u202a\u202b\u202c\u202d\u202e", r"\u202a\u202b\u202c\u202d\u202e"),
    "isolates of the direction": ("\u2066\u2067\u2068\u2069", r"\u2066\u2067\u2068\u2069"),
    "marks of the direction": ("\u200e\u200f\u061c", r"\u200e\u200f\u061c"),
    "a zero-width space": ("num\u200bpy", r"num\u200bpy"),
    "joiners in Latin text": ("num\u200c\u200dpy", r"num\u200c\u200dpy"),
    "a row of joiners": ("\u6f22\u200d\u200d", "\u6f22\u200d" + r"\u200d"),
    "a word joiner and a byte order mark": ("\u2060x\ufeff", r"\u2060x\ufeff"),
    "a soft hyphen": ("num\xadpy", r"num\xadpy"),
    "tags": ("x\U000e0041\U000e007f", r"x\U000e0041\U000e007f"),
    "a variation selector in Latin text": ("x\ufe0f\ufe00", r"x\ufe0f\ufe00"),
    "fillers": ("\u115f\u3164\uffa0", r"\u115f\u3164\uffa0"),
    "a surrogate": ("x\udc80", r"x\udc80"),
}
READABLE = {
    "accents": "\u00e9t\u00e9 na\u00efve \u0141\u00f3d\u017a e\u0301",
    "Chinese": "\u6f22\u5b57\u3001\u304b\u306a",
    "Arabic": "\u0645\u0631\u062d\u0628\u0627",
    "Persian with a joiner": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Hindi with a joiner": "\u0915\u094d\u200d\u0937",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\u2764\ufe0f\u200d\U0001f525 #\ufe0f\u20e3 \xa9\ufe0f",
    "markup of rich": "[red]not red[/red]",
    "HTML": "<b>&amp;</b>",
    "a no-break space": "10\xa0GB",
}


@pytest.mark.parametrize(("text", "shown"), HIDDEN.values(), ids=HIDDEN)
def test_hidden_characters_become_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize("text", READABLE.values(), ids=READABLE)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_text_of_several_lines_keeps_them() -> None:
    assert printable("a\n\tb\r\nc\rd\x1b", lines=True) == "a\n\tb\nc" + r"\rd\x1b"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"a", "a"),
        ("é".encode(), "é"),
        ("é".encode("utf-8-sig"), "é"),
        ("é\r\n".encode("utf-16"), "é\r\n"),
        ("aé".encode("utf-16-le"), "aé"),
        ("aé".encode("utf-16-be"), "aé"),
        ("é".encode("utf-32"), "é"),
        ("# é".encode("latin-1"), "# é"),
        ("# coding: latin-1\n# é".encode("latin-1"), "# coding: latin-1\n# é"),
        ("#!x\n# -*- coding=cp1252 -*-\n# €".encode("cp1252"), "#!x\n# -*- coding=cp1252 -*-\n# €"),
        ("#\n#\n# coding: hex\né".encode(), "#\n#\n# coding: hex\né"),  # a cookie is in the first two lines
    ],
)
def test_a_text_is_decoded_by_its_mark_its_cookie_or_as_utf_8(data: bytes, text: str) -> None:
    assert decoded(data) == text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"# coding: rot13\n", "it names the encoding `rot13`, which is not known"),
        (b"# coding: base64\n", "it names the encoding `base64`, which is not known"),
        (b"# coding: nothing\n", "it names the encoding `nothing`, which is not known"),
        (b"# coding: ascii\n\xff", "it is not ascii: ordinal not in range"),
        (b"\xff\xfea", "it is not utf-16: truncated data"),
        (b"a\nb\0", "line 2 has a null byte"),
    ],
)
def test_what_is_no_text_is_a_fault_in_one_line(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        decoded(data)
    assert len(str(caught.value).splitlines()) == 1
