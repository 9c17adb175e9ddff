"""Paint a `Document` as self-contained HTML for a notebook, light or dark, wide or narrow.

Nothing is loaded from outside, and everything that is shown is escaped.  Text has the colour of the
page, and only tints are set.  If a viewer strips the styles, headings, lists, tables and `<details>`
still read well.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import singledispatch
from html import escape
from typing import TYPE_CHECKING

from colablock.display.view import (
    Bar,
    Bullets,
    Document,
    FactLine,
    Grid,
    GridRow,
    Headline,
    Item,
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
    one_line,
    plain,
    spans_of,
)

if TYPE_CHECKING:
    from colablock.display.view import Block

__all__ = ["STYLE", "text_to_html", "to_html"]

# Every rule starts at our own class.  Doubling it outweighs the rules that notebooks have for lists and code.
STYLE = """
.colablock.colablock{container-type:inline-size;font-size:13px;line-height:1.5;max-width:68em;overflow-wrap:anywhere;text-align:left}
.colablock.colablock :is(p,li,td,th,summary,b,code,span){unicode-bidi:isolate}
.colablock.colablock p{margin:.2em 0}
.colablock.colablock .cl-head{font-size:15px;font-weight:600;margin:.1em 0}
.colablock.colablock .cl-soft{opacity:.75}
.colablock.colablock .cl-head .cl-soft{font-weight:400}
.colablock.colablock code{font-size:12px;background:rgba(127,127,127,.14);color:inherit;padding:.1em .35em;\
border-radius:3px}
.colablock.colablock pre{font-size:12px;line-height:1.45;background:rgba(127,127,127,.12);color:inherit;\
padding:.5em .7em;margin:.3em 0 .5em;border-radius:4px;white-space:pre-wrap;overflow-wrap:anywhere}
.colablock.colablock mark{background:rgba(46,160,67,.28);color:inherit;border-radius:3px}
.colablock.colablock details{border-top:1px solid rgba(127,127,127,.3);padding:.25em 0;margin:.35em 0 0}
.colablock.colablock details details{border:0;margin-left:1.1em}
.colablock.colablock summary{cursor:pointer;font-weight:600;padding:.15em 0}
.colablock.colablock details details>summary{font-weight:400}
.colablock.colablock details>p,.colablock.colablock details>table{margin-left:1.1em}
.colablock.colablock ul{list-style:none;margin:.1em 0 .4em;padding:0 0 0 1.1em}
.colablock.colablock li{display:flex;flex-wrap:wrap;gap:0 1em;margin:0;padding:.12em 0}
.colablock.colablock li>:first-child{flex:2 1 19em;max-width:100%}
.colablock.colablock li>:nth-child(2){flex:3 1 20em;max-width:100%}
.colablock.colablock>.cl-short{padding-left:0}
.colablock.colablock .cl-short>li>:first-child{flex:0 0 7.5em}
.colablock.colablock .cl-short>li>:nth-child(2){flex:1 1 14em}
.colablock.colablock .cl-pairs{display:grid;grid-template-columns:fit-content(45%) 1fr;gap:.24em 1.2em;\
@container (max-width:36em){display:block}}
.colablock.colablock .cl-pairs>li{display:contents;@container (max-width:36em){display:flex}}
.colablock.colablock .cl-bullets{list-style:disc;padding-left:2.5em}
.colablock.colablock .cl-bullets>li{display:list-item}
.colablock.colablock table{display:block;overflow-x:auto;border-collapse:collapse;border:0;margin:.2em 0 .4em}
.colablock.colablock tr{background:none}
.colablock.colablock td,.colablock.colablock th{text-align:left;vertical-align:baseline;border:0;\
padding:.12em .9em .12em 0;font-size:13px;max-width:none;white-space:normal}
.colablock.colablock :is(td,th):not(:last-child){width:1px;overflow-wrap:normal;white-space:nowrap}
.colablock.colablock :is(td,th){@container (max-width:36em){padding-right:.5em;font-size:12px}}
.colablock.colablock :is(td,th):last-child{min-width:7em;\
@container (max-width:36em){min-width:6em;padding-right:0}}
.colablock.colablock :is(th,td:first-child):not(:last-child){@container (max-width:36em)\
{width:auto;white-space:normal}}
.colablock.colablock time{white-space:nowrap}
.colablock.colablock .cl-tag{display:inline-block;padding:0 .5em;margin:.1em .4em .1em 0;border-radius:3px;\
font-size:12px;font-weight:600;background:rgba(127,127,127,.18)}
.colablock.colablock .cl-good{background:rgba(46,160,67,.28)}
.colablock.colablock .cl-warn{background:rgba(210,153,34,.32)}
.colablock.colablock .cl-bad{background:rgba(229,83,75,.36)}
.colablock.colablock .cl-many{column-width:15em;column-gap:1.2em;padding-left:1.1em}
.colablock.colablock .cl-many>span{display:block;break-inside:avoid}
.colablock.colablock .cl-facts{display:flex;flex-wrap:wrap;align-items:center;gap:.1em 1.5em;margin:.3em 0}
.colablock.colablock .cl-facts>span{font-variant-numeric:tabular-nums}
.colablock.colablock progress{width:min(34em,100%)}
.colablock.colablock .cl-picture{margin:.5em 0}
.colablock.colablock img{display:block;width:100%;max-width:560px;height:auto;border-radius:4px}
""".strip()

_SHORT = 16  # characters; leads of at most as many get a narrow column
_DATE = re.compile(r"(?<![\w-])\d{4}-\d\d-\d\d(?![\w-])")
_TINTS = {Tone.GOOD: "cl-tag cl-good", Tone.WARN: "cl-tag cl-warn", Tone.BAD: "cl-tag cl-bad"}


def to_html(document: Document) -> str:
    """Return *document* as one block of HTML, with its styles."""
    head = "" if document.headline is None else _headline(document.headline)
    return f'<div class="colablock"><style>{STYLE}</style>{head}{_all(document.blocks)}</div>'


def text_to_html(value: str) -> str:
    """Return *value* in one line and escaped; words in backticks become code, and ``->`` an arrow."""
    return _marked_up(one_line(value))


def _marked_up(text: str) -> str:
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        f"<code>{escape(part)}</code>" if at % 2 else escape(part.replace(" -> ", " \N{RIGHTWARDS ARROW} "))
        for at, part in enumerate(parts)
    )


def _words(words: Words) -> str:
    spans = spans_of(words)
    parts = []
    for before, span in zip((None, *spans), spans, strict=False):
        is_apart = before is not None and before.tone in _TINTS and span.text.startswith(": ")
        # A tag stands apart by its tint: a colon after it is for plain text.
        parts.append(_span(Span(span.text[2:], span.tone) if is_apart else span))
    return "".join(parts)


def _span(span: Span) -> str:
    if span.tone is Tone.CODE:
        return f"<code>{escape(span.text)}</code>"
    text = _marked_up(span.text)
    if span.tone is Tone.PLAIN:
        return text
    if span.tone is Tone.STRONG:
        return f"<b>{text}</b>"
    return f'<span class="{_TINTS.get(span.tone, "cl-soft")}">{text}</span>'


def _headline(headline: Headline) -> str:
    tag = _span(Span(headline.badge, headline.tone)) if headline.badge else ""
    aside = _span(Span(headline.aside, Tone.SOFT)) if headline.aside else ""
    text = " ".join(filter(None, [text_to_html(headline.text), aside]))
    return f'<p class="cl-head">{tag}{text}</p>'


def _all(blocks: Iterable[Block]) -> str:
    return "".join(map(_block, blocks))


@singledispatch
def _block(block: Block) -> str:
    """Return *block* as HTML."""
    raise TypeError(block)


@_block.register
def _(block: Note) -> str:
    tag = f'<span class="{_TINTS.get(block.tone, "cl-tag")}">{text_to_html(block.label)}</span>'
    kind = ' class="cl-soft"' if block.tone is Tone.SOFT else ""
    return f"<p{kind}>{tag if block.label else ''}{_words(block.text)}</p>"


@_block.register
def _(block: Pairs) -> str:
    is_short = all(len(plain(pair.lead)) <= _SHORT for pair in block.pairs)
    kind = "cl-short" if is_short else "cl-pairs"
    return f'<ul class="{kind}">{"".join(_pair(pair, is_short=is_short) for pair in block.pairs)}</ul>'


def _pair(pair: Pair, *, is_short: bool) -> str:
    lead = f"<span>{_words(pair.lead)}</span>"
    if pair.tone in _TINTS or is_short:
        kind = _TINTS.get(pair.tone, "cl-soft")
        lead = f'<span><span class="{kind}">{_words(pair.lead)}</span></span>'
    text = (
        f"<span>{_words(pair.text)}</span>"
        if is_short
        else f'<span class="cl-soft">{_words(pair.text)}</span>'
    )
    return f"<li>{lead}{text}</li>"


@_block.register
def _(block: Items) -> str:
    return f"<ul>{''.join(map(_item, block.items))}</ul>"


def _item(item: Item) -> str:
    outcome = _span(item.outcome) if item.outcome is not None else ""
    notes = "<br>".join(map(_words, item.notes))
    return f"<li><span>{_words(item.text)}</span><span>{outcome}{notes}</span></li>"


@_block.register
def _(block: Names) -> str:
    names = " ".join(f"<span>{text_to_html(name)}</span>" for name in block.names)
    return f'<div class="cl-many">{names}</div>'


@_block.register
def _(block: Grid) -> str:
    rows = [row.cells for row in block.rows]
    columns = [at for at in range(len(rows[0]) if rows else 0) if any(plain(row[at]) for row in rows)]
    head = "".join(f"<th>{text_to_html(block.header[at])}</th>" for at in columns if block.header)
    body = "".join(_row(row, columns) for row in block.rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _time(found: re.Match[str]) -> str:
    return f"<time>{found[0]}</time>"  # not broken at its hyphens


def _row(row: GridRow, columns: list[int]) -> str:
    cells = "".join(f"<td>{_DATE.sub(_time, _words(row.cells[at]))}</td>" for at in columns)
    below = f'<tr><td colspan="{len(columns)}">{_block(row.below)}</td></tr>' if row.below is not None else ""
    return f"<tr>{cells}</tr>{below}"


@_block.register
def _(block: Preformatted) -> str:
    return f"<pre>{escape(clean(chr(10).join(line.rstrip() for line in block.lines)))}</pre>"


@_block.register
def _(block: Bullets) -> str:
    bullets = "".join(f"<li>{text_to_html(text)}</li>" for text in block.bullets)
    return f'<p><b>{text_to_html(block.title)}:</b></p><ul class="cl-bullets">{bullets}</ul>'


@_block.register
def _(block: FactLine) -> str:
    facts = (
        f"<span>{_span(Span(label, Tone.SOFT))} {text_to_html(text)}</span>"
        if label
        else f"<span>{text_to_html(text)}</span>"
        for label, text in block.facts
    )
    return f'<div class="cl-facts">{"".join(facts)}</div>'


@_block.register
def _(block: Bar) -> str:
    value = "" if block.share is None else f' max="1" value="{block.share:.3f}"'
    return f"<progress{value}></progress>"


@_block.register
def _(block: Picture) -> str:
    if block.png is None:
        return f'<div class="cl-picture">{block.svg}</div>'
    data = base64.b64encode(block.png).decode()
    alt = escape(one_line(block.alt), quote=True)
    return f'<div class="cl-picture"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'


@_block.register
def _(block: Sample) -> str:
    labels = dict.fromkeys(label for label, _ in block.pieces)
    legend = " ".join(_piece(label, is_marked=label == block.marked) for label in labels)
    pieces = "".join(_piece(text, is_marked=label == block.marked) for label, text in block.pieces)
    return f"<p>{legend}</p><pre>{pieces}</pre>"


def _piece(text: str, *, is_marked: bool) -> str:
    tag = "mark" if is_marked else "span"
    return f"<{tag}>{escape(clean(text))}</{tag}>"


@_block.register
def _(block: Section) -> str:
    title = text_to_html(block.title)
    if block.tone in _TINTS:
        title = f'<span class="{_TINTS[block.tone]}">{title}</span>'
    is_open = " open" if block.is_open else ""
    return f"<details{is_open}><summary>{title}</summary>{_all(block.body)}</details>"
