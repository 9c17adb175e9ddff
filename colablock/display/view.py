"""The view model: what a display shows, as plain values.

The modules `plan_view`, `report_view`, `run_view` and so on turn a plan, a report or a run into a
`Document`.  They decide what is shown, in which order, in which words, and what is folded.
`text` and `html` paint a document; they decide nothing but the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

from colablock._common.text import PROGRAM, as_called, printable
from colablock._python_words import code_in_python, in_python
from colablock._records import dataclass

__all__ = [
    "FOLD",
    "Bar",
    "Block",
    "Bullets",
    "Document",
    "FactLine",
    "Grid",
    "GridRow",
    "Headline",
    "Item",
    "Items",
    "Names",
    "Note",
    "Pair",
    "Pairs",
    "Picture",
    "Preformatted",
    "Sample",
    "Section",
    "Span",
    "Tone",
    "Words",
    "clean",
    "cut",
    "first_of",
    "one_line",
    "pairs_of",
    "plain",
    "spans_of",
    "spoken_as",
    "spoken_in_python",
    "unfolded",
]

FOLD = 12  # a list with more entries than this is folded, or shown in short

_SPACE = re.compile(r"(?:(?!\xa0)\s)+")  # painters glue words with no-break spaces


class Tone(Enum):
    """What a piece of text means; each painter has its own style for it."""

    PLAIN = "plain"
    STRONG = "strong"  # stands out
    SOFT = "soft"  # a detail
    CODE = "code"  # a command or a path, which is copied: text never breaks it
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text with its meaning."""

    text: str
    tone: Tone = Tone.PLAIN


#: Running text.  A word in backticks is code, as in Markdown.
Words: TypeAlias = str | Span | tuple[str | Span, ...]


class Headline(NamedTuple):
    """The result in one sentence.

    *tone* colours it.  *badge* says the tone in one word, for HTML; the sentence says it too.
    *aside* is a detail after it.
    """

    text: str
    tone: Tone = Tone.PLAIN
    badge: str = ""
    aside: str = ""


class Note(NamedTuple):
    """A paragraph, with a *label* such as ``note`` or ``next`` before it."""

    text: Words
    label: str = ""
    tone: Tone = Tone.PLAIN


class Pair(NamedTuple):
    """A short *lead*, and the *text* that belongs to it.

    *tone* is that of the lead.  *more* are further lines, which only verbose text shows.
    """

    lead: Words
    text: Words
    tone: Tone = Tone.PLAIN
    more: tuple[Words, ...] = ()


class Pairs(NamedTuple):
    """Pairs, with their texts aligned."""

    pairs: tuple[Pair, ...]


class Item(NamedTuple):
    """An entry of a list: a line of *text*, its *outcome*, and *notes* below it."""

    text: Words
    outcome: Span | None = None
    notes: tuple[Words, ...] = ()


class Items(NamedTuple):
    """A list of entries that need a line each, or more."""

    items: tuple[Item, ...]


class Names(NamedTuple):
    """Short texts, one after the other; no line of text ends within one."""

    names: tuple[str, ...]
    separator: str = ", "


class GridRow(NamedTuple):
    """The cells of one row, and a block *below* it."""

    cells: tuple[Words, ...]
    below: Preformatted | None = None


class Grid(NamedTuple):
    """A table.  Columns without a word are left out.

    The columns with an index in *right* are aligned to the right.  If the last column has too
    little room in text, it is cut after *most* lines if *may_cut* is true, and wrapped otherwise.
    """

    rows: tuple[GridRow, ...]
    header: tuple[str, ...] = ()
    right: frozenset[int] = frozenset()
    may_cut: bool = False
    most: int = 1


class Preformatted(NamedTuple):
    """Lines that keep their spaces.  Text that is not verbose shows only the last *tail* of them."""

    lines: tuple[str, ...]
    tone: Tone = Tone.PLAIN
    tail: int | None = None


class Bullets(NamedTuple):
    """What can be done, or what belongs together: a *title* and bullets."""

    title: str
    bullets: tuple[str, ...]


class FactLine(NamedTuple):
    """Short facts as label and text, side by side as far as there is room; a label may be empty."""

    facts: tuple[tuple[str, str], ...]


class Bar(NamedTuple):
    """A progress bar, for HTML only.  *share* is between 0 and 1; None if the end is not known."""

    share: float | None


class Picture(NamedTuple):
    """A picture, for HTML only: trusted *svg* markup, or the bytes of a *png*."""

    alt: str
    svg: str = ""
    png: bytes | None = None


class Sample(NamedTuple):
    """Text in pieces, each with its label; a piece with the label *marked* is highlighted in HTML."""

    pieces: tuple[tuple[str, str], ...]
    marked: str


class Section(NamedTuple):
    """Blocks under a *title*.

    HTML shows *body*, folded unless *is_open*.  Text cannot fold: it shows *brief* instead of *body*
    if there is one, and the whole *body* if it is verbose.  An empty *brief* leaves only the title.
    Text that is not verbose leaves a section with *is_extra* out.
    """

    title: str
    body: tuple[Block, ...]
    brief: tuple[Block, ...] | None = None
    is_open: bool = True
    is_extra: bool = False
    tone: Tone = Tone.PLAIN


Block: TypeAlias = (
    Bar | Bullets | FactLine | Grid | Items | Names | Note | Pairs | Picture | Preformatted | Sample | Section
)


class Document(NamedTuple):
    """What is shown of one value: a headline, then blocks from top to bottom."""

    headline: Headline | None = None
    blocks: tuple[Block, ...] = ()


def unfolded(document: Document) -> Document:
    """Return *document* with every section open, and with all of it in text, too."""
    return Document(document.headline, tuple(map(_unfolded, document.blocks)))


def _unfolded(block: Block) -> Block:
    if not isinstance(block, Section):
        return block
    return block._replace(body=tuple(map(_unfolded, block.body)), brief=None, is_open=True, is_extra=False)


def spoken_in_python(document: Document) -> Document:
    """Return *document* with options and commands as Python says them; what is quoted stays as it is."""
    return cast("Document", _spoken(document, in_python, code_in_python))


def spoken_as(document: Document, program: str) -> Document:
    """Return *document* with commands as the caller has to type them; what is quoted stays as it is."""
    if program == PROGRAM:
        return document
    say = partial(as_called, program=program)
    return cast("Document", _spoken(document, say, partial(say, is_code=True)))


def _spoken(value: object, say: Callable[[str], str], say_code: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return say(value)
    if isinstance(value, Span):
        is_code = value.tone is Tone.CODE and "`" not in value.text
        return Span((say_code if is_code else say)(value.text), value.tone)
    if isinstance(value, (Picture, Preformatted, Sample)) or not isinstance(value, tuple):
        return value
    parts = (_spoken(one, say, say_code) for one in value)
    make: Any = type(value) if hasattr(value, "_fields") else lambda *some: some
    return make(*parts)


def clean(text: str) -> str:
    """Return *text* with its lines, and what must not steer a terminal as escapes, see `printable`."""
    return printable(text, lines=True).expandtabs(4)


def one_line(text: str) -> str:
    """Return *text* in one line, with single spaces."""
    return " ".join(clean(text).split())


def spans_of(words: Words) -> tuple[Span, ...]:
    """Return *words* as spans, cleaned and with single spaces."""
    parts = words if isinstance(words, tuple) else (words,)
    spans = (part if isinstance(part, Span) else Span(part) for part in parts)
    return tuple(Span(_SPACE.sub(" ", clean(span.text)), span.tone) for span in spans)


def pairs_of(facts: Mapping[str, str]) -> Pairs:
    """Return *facts* as pairs."""
    return Pairs(tuple(Pair(lead=lead, text=text) for lead, text in facts.items()))


def plain(words: Words) -> str:
    """Return *words* as one string."""
    return "".join(span.text for span in spans_of(words))


def first_of(names: tuple[str, ...], limit: int, *, more: str = "and {} more") -> tuple[str, ...]:
    """Return the first *limit* of *names*, then how many are left out."""
    left = len(names) - limit
    return (*names[:limit], more.format(left)) if left > 0 else names


def cut(text: str, width: int) -> str:
    """Return *text* with at most *width* characters; an ellipsis ends a text that is cut."""
    return text if len(text) <= width else text[: max(width - 1, 1)].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
