"""Paint a `Document` as lines of text that read well at 80 columns and without colour.

The lines are made without rich.  The caller's `Console` only writes them: whoever shows HTML must not
load rich into a kernel whose rich the plan may replace.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, NamedTuple

from colablock._common.text import PROGRAM, as_called
from colablock.display.view import (
    Bar,
    Bullets,
    Document,
    FactLine,
    Grid,
    GridRow,
    Headline,
    Items,
    Names,
    Note,
    Pair,
    Pairs,
    Picture,
    Preformatted,
    Sample,
    Section,
    Span,
    Tone,
    Words,
    clean,
    cut,
    one_line,
    plain,
    spans_of,
    spoken_as,
)
from colablock.errors import NotRestored

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.display.view import Block
    from colablock.errors import ColablockError

__all__ = ["error_text", "in_lines", "program_of", "render", "render_error", "to_text"]

_LEAD = 24  # columns for the leads of pairs whose texts are wrapped; a longer lead moves only its own text
_LEAST = 12  # columns; a cell that is cut to fewer tells nothing
_NO_BREAK = "\N{NO-BREAK SPACE}"
_CLAUSE_END = re.compile(r"[,;:] ")
_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kKMGT]i?B|s|min|h|d)(?!\w))")
# Half a command does something else, and a path is copied whole.  Other quotations may be sentences.
_QUOTED = re.compile(rf"(?<!\w)`(?:(?:{PROGRAM} |pip |[~./])[^`]+|[^`]{{1,60}})`")
_STYLES = {  # of rich
    Tone.PLAIN: "",
    Tone.STRONG: "bold",
    Tone.SOFT: "dim",
    Tone.CODE: "",
    Tone.GOOD: "green",
    Tone.WARN: "yellow",
    Tone.BAD: "red",
}


class TextSpan(NamedTuple):
    """A piece of a line, and the rich style that it has if there is colour."""

    text: str
    style: str = ""


class _Canvas(NamedTuple):
    """How much room there is, how much is shown, and how deep the blocks are nested."""

    width: int
    verbose: bool
    depth: int = 0

    @property
    def indent(self) -> int:
        return 2 * self.depth


Lines = Iterator[list[TextSpan]]


def render(document: Document, console: Console, *, verbose: bool = False) -> None:
    """Write *document* to *console*; *verbose* opens every section and cuts nothing.

    A console of a notebook cell has a function ``publish``, which shows the document as HTML.  One of a
    command has ``program``, which is how the caller has called colablock, and ``write_plain`` if it writes
    text only.
    """
    publish: Callable[[Document], None] | None = getattr(console, "publish", None)
    document = spoken_as(document, program_of(console))
    if publish is not None:
        publish(document)
        return
    _write(_document_lines(document, _Canvas(console.width, verbose)), console)


def to_text(document: Document, *, width: int = 80, verbose: bool = False) -> str:
    """Return *document* as plain text."""
    return _joined(_document_lines(document, _Canvas(width, verbose)))


def render_error(error: ColablockError, console: Console) -> None:
    """Write *error* to *console*: what failed, why, and what to do."""
    _write(_error_lines(error, console.width, program_of(console)), console)


def program_of(console: Console) -> str:
    """Return how the caller of the command that writes to *console* has called colablock."""
    return str(getattr(console, "program", PROGRAM))


def error_text(error: ColablockError, *, width: int = 80) -> str:
    """Return *error* as plain text."""
    return _joined(_error_lines(error, width))


def in_lines(text: str, width: int, indent: int = 0) -> str:
    """Return *text* in lines of *width*, indented, and its later ones more."""
    return _joined(_wrapped(text, width, indent, indent + 2))


def _write(lines: Iterable[Sequence[TextSpan]], console: Console) -> None:
    write: Callable[[str], None] | None = getattr(console, "write_plain", None)
    if write is not None:
        write("".join(f"{''.join(span.text for span in line)}\n" for line in lines))
        return
    from rich.text import Text  # noqa: PLC0415 - whoever has another console has loaded it

    # One call: rich draws a live line again after each, and a notebook shows each as an output.
    texts = [Text.assemble(*((span.text, span.style) for span in line)) for line in lines]
    if texts:
        console.print(
            Text("\n").join(texts), no_wrap=True, overflow="ignore", crop=False, emoji=False, highlight=False
        )


def _joined(lines: Iterable[Sequence[TextSpan]]) -> str:
    return "\n".join("".join(span.text for span in line).rstrip() for line in lines)


def _document_lines(document: Document, canvas: _Canvas) -> Lines:
    parts = [(_stands_apart(block), list(_lines(block, canvas))) for block in document.blocks]
    if document.headline is not None:
        parts.insert(0, (False, list(_headline_lines(document.headline, canvas))))
    parts = [part for part in parts if part[1]]
    for at, (is_apart, lines) in enumerate(parts):
        if at and (is_apart or parts[at - 1][0]):
            yield []
        yield from lines


def _stands_apart(block: Block) -> bool:
    """Whether a blank line is before and after *block*."""
    return isinstance(block, Section) or (isinstance(block, Grid) and bool(block.header))


def _headline_lines(headline: Headline, canvas: _Canvas) -> Lines:
    text = ": ".join(filter(None, [headline.text, headline.aside]))
    yield from _wrapped(text, canvas.width, later=2, style=f"bold {_STYLES[headline.tone]}".strip())


@singledispatch
def _lines(block: Block, canvas: _Canvas) -> Lines:
    """Yield the lines of *block*."""
    raise TypeError(block, canvas)


@_lines.register
def _(block: Note, canvas: _Canvas) -> Lines:
    style = _STYLES[block.tone]
    words: tuple[str | Span, ...] = spans_of(block.text)
    hang = 2
    if block.label:
        words = (Span(f"{block.label}:", Tone.STRONG), _NO_BREAK, *words)
        hang = len(block.label) + 2
    yield from _wrapped(words, canvas.width, canvas.indent, canvas.indent + hang, style=style)


@_lines.register
def _(block: Pairs, canvas: _Canvas) -> Lines:
    indent = max(canvas.indent, 2)
    column = max((_length(pair.lead) for pair in block.pairs), default=0)
    if indent + column + 2 + max((_length(pair.text) for pair in block.pairs), default=0) > canvas.width:
        column = min(column, _LEAD)
    for pair in block.pairs:
        yield from _pair_lines(pair, canvas.width, indent=indent, column=column)
        for words in pair.more if canvas.verbose else ():
            yield from _wrapped(words, canvas.width, indent + 2, indent + 4, style="dim")


def _pair_lines(pair: Pair, width: int, *, indent: int, column: int) -> Lines:
    lead = [TextSpan(span.text, _STYLES[span.tone] or _STYLES[pair.tone]) for span in spans_of(pair.lead)]
    start = indent + max(_length(pair.lead), column) + 2
    yield from _wrapped(pair.text, width, start, indent + column + 2, lead=[TextSpan(" " * indent), *lead])


@_lines.register
def _(block: Items, canvas: _Canvas) -> Lines:
    indent = canvas.indent
    for item in block.items:
        outcome = () if item.outcome is None else (Span(": "), item.outcome)
        yield from _wrapped((*spans_of(item.text), *outcome), canvas.width, indent, indent + 4)
        for note in item.notes:
            yield from _wrapped(note, canvas.width, indent + 2, indent + 4)


@_lines.register
def _(block: Names, canvas: _Canvas) -> Lines:
    text = block.separator.join(one_line(name).replace(" ", _NO_BREAK) for name in block.names)
    indent = max(canvas.indent, 2)
    yield from _wrapped(text, canvas.width, indent, indent)


@_lines.register
def _(block: Grid, canvas: _Canvas) -> Lines:
    header = [GridRow(cells=tuple(Span(cell, Tone.STRONG) for cell in block.header))]
    rows = [*(header if block.header else ()), *block.rows]
    if not rows:
        return
    widths = [max(map(_length, column)) for column in zip(*(row.cells for row in rows), strict=True)]
    shown = [at for at, width in enumerate(widths) if width]
    start = canvas.indent + sum(widths[at] + 2 for at in shown[:-1])
    room = canvas.width - start
    if block.may_cut and room < min(widths[shown[-1]], _LEAST):
        shown = shown[:-1]
        room = canvas.width
    for row in rows:
        yield from _row_lines(block, row, canvas, widths=widths, shown=shown, room=room)
        if row.below is not None:
            yield from _lines(row.below, canvas._replace(depth=canvas.depth + 4))


def _row_lines(
    grid: Grid, row: GridRow, canvas: _Canvas, *, widths: Sequence[int], shown: Sequence[int], room: int
) -> Lines:
    """Yield a row: each cell padded to its column, the last one cut or wrapped."""
    line = [TextSpan(" " * canvas.indent)]
    for at in shown[:-1]:
        gap = TextSpan(" " * (widths[at] - _length(row.cells[at])))
        cell = [TextSpan(span.text, _STYLES[span.tone]) for span in spans_of(row.cells[at])]
        line += [gap, *cell] if at in grid.right else [*cell, gap]
        line.append(TextSpan("  "))
    start = sum(len(span.text) for span in line)
    last = row.cells[shown[-1]]
    if grid.may_cut and grid.most > 1:
        last = Span(_cut_at_clause(plain(last), max(room, _LEAST), grid.most), spans_of(last)[0].tone)
    elif grid.may_cut:
        text = _cut_at_word(plain(last), max(room, 1))
        last = Span(text.replace(" ", _NO_BREAK), spans_of(last)[0].tone)
    yield from _wrapped(last, canvas.width, start, start, lead=line)


@_lines.register
def _(block: Preformatted, canvas: _Canvas) -> Lines:
    lines = [line.rstrip() for line in map(clean, block.lines)]
    left = 0 if canvas.verbose or block.tail is None else len(lines) - block.tail
    indent = " " * max(canvas.indent, 2)
    if left > 0:
        yield [TextSpan(f"{indent}({left} more above: -v)", "dim")]
    for line in lines[max(left, 0) :]:
        yield [TextSpan(indent + line, _STYLES[block.tone])]


@_lines.register
def _(block: Bullets, canvas: _Canvas) -> Lines:
    yield from _wrapped(Span(f"{block.title}:", Tone.STRONG), canvas.width, canvas.indent, canvas.indent)
    for text in block.bullets:
        yield from _wrapped(f"-{_NO_BREAK}{text}", canvas.width, canvas.indent + 2, canvas.indent + 4)


@_lines.register
def _(block: FactLine, canvas: _Canvas) -> Lines:
    text = "; ".join(f"{label} {fact}".strip() for label, fact in block.facts)
    indent = max(canvas.indent, 2)
    yield from _wrapped(text, canvas.width, indent, indent)


@_lines.register
def _(block: Bar, canvas: _Canvas) -> Lines:
    del block, canvas  # a terminal has a live bar of its own
    yield from ()


@_lines.register
def _(block: Picture, canvas: _Canvas) -> Lines:
    del block, canvas
    yield from ()


@_lines.register
def _(block: Sample, canvas: _Canvas) -> Lines:
    column = max(len(label) for label, _ in block.pieces)
    indent = " " * max(canvas.indent, 2)
    for label, text in block.pieces:
        style = "" if label == block.marked else "dim"
        for at, line in enumerate(clean(text).splitlines() or [""]):
            lead = f"{indent}{('' if at else label).ljust(column)}  "
            # A row keeps its own white space, and is wrapped only if it is longer than a line.
            room = max(canvas.width - len(lead), 20)
            pieces = textwrap.wrap(
                line, room, drop_whitespace=False, break_long_words=False, break_on_hyphens=False
            )
            first, *others = pieces or [""]
            yield _trimmed([TextSpan(lead + first, style)])
            for piece in others:
                yield _trimmed([TextSpan(" " * len(lead) + piece.lstrip(), style)])


@_lines.register
def _(block: Section, canvas: _Canvas) -> Lines:
    if block.is_extra and not canvas.verbose:
        return
    body = block.body if canvas.verbose or block.brief is None else block.brief
    below = canvas._replace(depth=canvas.depth + 1)
    lines = [line for part in body for line in _lines(part, below)]
    style = _STYLES[block.tone]
    if canvas.depth:
        title = f"{block.title}:" if lines else block.title
        yield from _wrapped(title, canvas.width, canvas.indent, canvas.indent + 2, style=style)
    else:
        yield from _wrapped(block.title, canvas.width, later=2, style=f"bold {style}".strip())
    yield from lines


# Words


def _cut_at_word(text: str, width: int) -> str:
    """Return *text* cut to *width*, at the end of a word if most of it is left."""
    short = cut(text, width)
    if short == text:
        return text
    whole = text[: len(short) - 1].rpartition(" ")[0]
    return f"{whole} {short[-1]}" if 2 * len(whole) > width and text[len(short) - 1] != " " else short


def _cut_at_clause(text: str, width: int, most: int) -> str:
    """Return *text* if it fits into *most* lines; else its clauses that do, or as many words.

    Half a clause can say the opposite of the whole: "requires the 1.x client of the …".
    """
    wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    if len(wrapped) <= most:
        return text
    whole = " ".join(wrapped[:most])[:-2]  # room for the dots
    ends = [found.start() for found in _CLAUSE_END.finditer(whole)]
    return f"{whole[: ends[-1]] if ends else whole.rpartition(' ')[0]}{_NO_BREAK}…"


def _length(words: Words) -> int:
    return len(plain(words))


def _wrapped(
    words: Words,
    width: int,
    first: int = 0,
    later: int = 0,
    *,
    style: str = "",
    lead: Sequence[TextSpan] = (),
) -> Lines:
    """Yield *words* in lines; the first one begins at column *first*, the others at *later*.

    *lead* comes before the first word.  A word is never broken: names, versions and paths are copied
    from here.  A long one that fits into a line begins further left.  *style* is that of words without
    a tone of their own.
    """
    limit = max(width, first + 20, later + 20)
    gap = first - sum(len(span.text) for span in lead)
    line, column, is_empty = [*lead, TextSpan(" " * gap)], first, True
    for word in _split(words, style):
        length = sum(len(span.text) for span in word)
        if not is_empty and column + 1 + length > limit:
            yield _trimmed(line)
            # A terminal would break what is longer than the rest of its line.
            column = min(later, limit - length) if length <= limit else later
            line, is_empty = [TextSpan(" " * column)], True
        if not is_empty:
            line.append(TextSpan(" ", word[0].style if word[0].style == line[-1].style else ""))
            column += 1
        line += word
        column += length
        is_empty = False
    yield _trimmed(line)


def _split(words: Words, style: str) -> Iterator[list[TextSpan]]:
    """Yield each word, which may have several styles.  A unit stays with its number, and code is one word."""
    word: list[TextSpan] = []
    for span in spans_of(words):
        if span.tone is Tone.CODE:
            text = span.text.replace(" ", _NO_BREAK)
        else:
            text = _QUOTED.sub(_unbroken, _UNIT.sub(_NO_BREAK, span.text))
        for at, part in enumerate(text.split(" ")):
            if at and word:
                yield word
                word = []
            if part:
                word.append(TextSpan(part.replace(_NO_BREAK, " "), _STYLES[span.tone] or style))
    if word:
        yield word


def _unbroken(found: re.Match[str]) -> str:
    return found[0].replace(" ", _NO_BREAK)


def _trimmed(line: Sequence[TextSpan]) -> list[TextSpan]:
    """Return *line* with neighbours of one style as one span, and without white space at the end."""
    spans: list[TextSpan] = []
    for span in line:
        if spans and spans[-1].style == span.style:
            spans[-1] = TextSpan(spans[-1].text + span.text, span.style)
        elif span.text:
            spans.append(span)
    while spans and not spans[-1].text.rstrip():
        spans.pop()
    if spans:
        spans[-1] = spans[-1]._replace(text=spans[-1].text.rstrip())
    return spans


# Errors


def _error_lines(error: ColablockError, width: int, program: str = PROGRAM) -> Lines:
    message = as_called(clean(str(error)), program)
    first, *others = message.splitlines() or [type(error).__name__]
    yield from _first_lines(one_line(first), f"[{error.reference}]", width)
    if isinstance(error, NotRestored) and error.stash not in str(error):
        others.append(f"the files that were moved away are in `{error.stash}`")
    for line in others:
        indent = max(2, len(line) - len(line.lstrip()))
        yield from _wrapped(line.strip(), width, indent, indent + 2)
    if error.hint:
        yield []
        hint = as_called(error.hint, program)
        yield from _wrapped((Span("hint:", Tone.STRONG), f" {hint}"), width)


def _first_lines(message: str, reference: str, width: int) -> Lines:
    """Yield the message, with the reference at the right end of its first line."""
    lead = "error:"
    room = max(width - len(lead) - 1 - len(reference) - 2, 20)
    lines = list(_wrapped(message, room))
    first = "".join(span.text for span in lines[0])
    gap = " " * max(width - len(lead) - 1 - len(first) - len(reference), 2)
    yield [TextSpan(lead, "bold red"), TextSpan(f" {first}{gap}"), TextSpan(reference, "dim")]
    rest = message[len(first) :].strip()
    if rest:
        yield from _wrapped(rest, width, len(lead) + 1, len(lead) + 1)
