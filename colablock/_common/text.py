"""Text for people: counts, sizes, durations, and suggestions for a misspelt word.

Sizes of files and disks use powers of 1000, sizes of memory powers of 1024.
"""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

__all__ = [
    "PROGRAM",
    "as_called",
    "changes",
    "command_line",
    "count",
    "decoded",
    "memory_text",
    "near",
    "nearest",
    "option_words",
    "printable",
    "seconds_text",
    "size_text",
    "some_of",
]

Name = TypeVar("Name", bound=str)

#: The command, as messages write it.
PROGRAM: Final = "colablock"

_STEP = 1000
_SMALL = 9.95  # smaller numbers are shown with one decimal
_MINUTE = 60
_UNITS = ("kB", "MB", "GB", "TB")


# Characters that change how others are shown, or that nobody sees: controls, line and paragraph separators,
# bidirectional controls, zero-width characters, fillers, surrogates and tags.
_HIDDEN: Final = (
    r"\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Emoji, Persian and Indic text have joiners and variation selectors.  Nobody sees them in other text.
_SCRIPTS: Final = r"\u0300-\u1fff\u2100-\ufdff\U0001f000-\U0001ffff"
_FIRST_MARK: Final = "\u0300"  # all that is hidden before it is not printable, either
# Compiled at the first use: that takes longer than all else here.
_ESCAPED: Final = (
    rf"[{_HIDDEN}]|(?<![{_SCRIPTS}\ufe0f])\u200d|(?<![{_SCRIPTS}])[\u200c\ufe00-\ufe0d]"
    rf"|(?<![{_SCRIPTS}\xa9\xae])[\ufe0e\ufe0f](?!\u20e3)"
)


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return *text* on one line, with characters that are not shown as escapes: ``\x1b``, ``\u202e``.

    With *lines*, line feeds and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    if lines:
        text = text.replace("\r\n", "\n")
    shown = text.replace("\xa0", " ")
    if lines:
        shown = shown.replace("\n", " ").replace("\t", " ")
    if shown.isprintable() and max(shown) < _FIRST_MARK:
        return text  # nearly every text: the pattern takes 10 ms to compile
    return re.sub(
        _ESCAPED, lambda found: found[0] if lines and found[0] in "\n\t" else _escape(found[0]), text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def size_text(size: int) -> str:
    """Return a number of bytes as text, in powers of 1000: ``812 kB``, ``2.9 GB``."""
    value = float(size)
    unit = "byte" if size == 1 else "bytes"
    for larger in _UNITS:
        if value < _STEP - 0.5:
            break
        value, unit = value / _STEP, larger
    return f"{value:.1f} {unit}" if unit in _UNITS and value < _SMALL else f"{value:.0f} {unit}"


def memory_text(size: float) -> str:
    """Return bytes of memory as text, in powers of 1024 as torch does: ``9.5 GiB``, ``450 MiB``."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


# A command in backticks, or on a line of its own.  Elsewhere the word is the name of the tool.
_COMMAND: Final = re.compile(rf"(?:(?<=`)|(?<=^  )){PROGRAM}(?= [a-z])", re.MULTILINE)


def as_called(text: str, program: str, *, is_code: bool = False) -> str:
    """Return *text* with each command as the caller types it; with *is_code*, all of it is a command."""
    if program == PROGRAM:
        return text
    if is_code and text.startswith(f"{PROGRAM} "):
        return program + text[len(PROGRAM) :]
    return _COMMAND.sub(lambda _: program, text)


def near(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return a hint that suggests the word of *known* closest to *word*, or None if none is close.

    *likeness* is the least share of equal characters, from 0 to 1.
    """
    found = nearest(word, known, likeness=likeness)
    return f"did you mean `{found}`?" if found is not None else None


def nearest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the word of *known* closest to *word*, or None if none is as like it as *likeness*."""
    import difflib  # noqa: PLC0415 - every command loads this module, and few words are misspelt

    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=likeness)
    return found[0] if found else None


def seconds_text(seconds: float) -> str:
    """Return a duration as text: ``0.3 s``, ``12 s``, ``2 min 5 s``."""
    if seconds < _SMALL:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return *number* and *noun*: ``1 file``, ``2 files``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def changes(before: Mapping[Name, object], after: Mapping[Name, object]) -> list[str]:
    """Return a line for each name whose version is another, is new or is gone: ``torch 2.8 -> 2.9``."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None:
            lines.append(f"+ {name} {new}")
        elif new is None:
            lines.append(f"- {name} {old}")
        elif old != new:
            lines.append(f"{name} {old} -> {new}")
    return lines


def command_line(*words: str) -> str:
    """Return the call of colablock with *words*, quoted for a shell, as it can be typed."""
    return shlex.join((PROGRAM, *words))


def option_words(given: Mapping[str, object]) -> tuple[str, ...]:
    """Return options and their values as words of a command line.

    A list is an option that is repeated, True one without a value.  An option whose value is None, False
    or an empty list is left out.  A value that begins like an option is one word with its own.
    """
    words: list[str] = []
    for option, value in given.items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if one is True:
                words.append(option)
            elif one is not None and one is not False:
                text = str(one)
                words += [f"{option}={text}"] if text.startswith("-") else [option, text]
    return tuple(words)


def some_of(items: Sequence[str], limit: int) -> str:
    """Return the first *limit* of *items* and the number of the others: ``a, b and 3 more``."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


#: The marks of a whole text.  That of UTF-32 starts with that of UTF-16, so it comes first.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COOKIE: Final = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)
_ENCODING: Final = re.compile(r"(ascii|big5|cp|euc|gb|hp|iso8859|koi8|latin|mac|ptcp|shift|tis|utf|johab|hz)")


def decoded(data: bytes) -> str:
    """Decode a text file: by its byte order mark, its coding cookie (PEP 263), as UTF-8, or as Latin-1.

    Latin-1 is for files with an accent in a comment.  Raises ValueError, in one line, for what is no
    text, and for a cookie that names no known encoding.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _decoded(data, name)
    for line in data.split(b"\n", 2)[:2]:
        if match := _COOKIE.match(line):
            return _decoded(data, match[1].decode("ascii"))
    if data[:2].count(0) == 1 and len(data) % 2 == 0:  # UTF-16 without its mark
        return _decoded(data, "utf-16-le" if data[1] == 0 else "utf-16-be")
    if b"\0" in data:
        number = data.count(b"\n", 0, data.index(0)) + 1
        message = f"line {number} has a null byte"
        raise ValueError(message)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _decoded(data: bytes, name: str) -> str:
    try:
        encoding = codecs.lookup(name).name
        # Others are no encodings of characters, such as `hex`.
        text = data.decode(encoding) if _ENCODING.match(encoding) else None
    except LookupError:
        text = None
    except UnicodeError as error:
        message = f"it is not {name}: {error.reason if isinstance(error, UnicodeDecodeError) else error}"
        raise ValueError(message) from error
    if text is None:
        message = f"it names the encoding `{name}`, which is not known"
        raise ValueError(message)
    return text
