"""What is known before a run starts, and the receipt of a smoke run, as text and as HTML."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from colablock.display_html import page, text_to_html
from colablock.display_words import clean, one_line, seconds_text
from colablock.training.circumstances import Level, gib

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.training.receipts import Receipt
    from colablock.training.run import Briefing

__all__ = [
    "briefing_text",
    "briefing_to_html",
    "receipt_text",
    "receipt_title",
    "receipt_to_html",
    "render_briefing",
    "render_receipt",
]

_LABEL = 10  # columns
_SHOWN = 1200  # characters of one piece of the row that is shown
_WORDS = {Level.REFUSE: "refused", Level.WARN: "warning", Level.NOTE: "note"}
_UNIT = re.compile(r" (?=(?:%|[KMGT]i?B)(?!\w))")  # stands in one line with its number
_TINTS = {"refused": "cl-bad", "warning": "cl-warn", "FAIL": "cl-bad", "PASS": "cl-good"}
_LEARNT = 'style="background:rgba(46,160,67,.28);color:inherit;border-radius:3px"'  # of both kinds of page
_STYLES = {"refused": "bold red", "warning": "yellow", "note": "dim", "FAIL": "bold red", "PASS": "green"}

Fact = tuple[str, str]  # a label and what stands beside it


def briefing_title(briefing: Briefing) -> str:
    """Return what starts, on what: ``QLoRA of tiny with trl, bf16, on NVIDIA L4``."""
    config, preflight = briefing.config, briefing.preflight
    kind = "QLoRA" if config.adapter.value == "qlora" else "LoRA"
    several = f", {preflight.processes} processes" if preflight.processes > 1 else ""
    resumed = f", going on from {briefing.resumed_from}" if briefing.resumed_from else ""
    return one_line(
        f"{kind} of {_short(config.base_model)} with {briefing.runner}, {preflight.precision.name}"
        f"{several}{resumed}"
    )


def _short(model: str) -> str:
    """Return the name of a model: of one in a folder, the folder's."""
    return Path(model).name if Path(model).is_absolute() else model


def briefing_facts(briefing: Briefing) -> Iterator[Fact]:
    """Yield the facts of a run that is about to start, in the order in which they are shown."""
    if Path(briefing.config.base_model).is_absolute():
        yield "model", briefing.config.base_model
    estimate = briefing.preflight.estimate
    if estimate is not None:
        parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{name} {gib(size)}" for name, size in parts if size >= 2**27)
        yield "memory", f"about {gib(estimate.total)}" + (f": {shown}" if shown else "")
    prepared = briefing.prepared
    if prepared is not None:
        yield "data", _data_words(briefing)
    if briefing.mends:
        yield "mends", ", ".join(briefing.mends)
    yield "output", str(briefing.folder)
    for finding in briefing.preflight.findings:
        words = ": ".join(filter(None, [finding.what, finding.why]))
        yield _WORDS[finding.level], f"{words}; {finding.fix}" if finding.fix else words


def _data_words(briefing: Briefing) -> str:
    prepared = briefing.prepared or {}
    rows, tokens = prepared["rows"], prepared["tokens"]
    forms = ", ".join(dict.fromkeys(prepared["forms"]))
    text = f"{rows:,} rows ({forms}), {tokens:,} tokens, {prepared['trained']:,} of them learnt"
    limit = briefing.config.sequence_len
    if prepared["cut"]:
        text += (
            f"; {prepared['cut']:,} rows ({_percent(prepared['cut'], rows)}) are longer than {limit:,} tokens"
            f" and lose {_percent(prepared['lost'], tokens)} of all tokens"
        )
    else:
        text += f"; none is longer than {limit:,} tokens (the longest has {prepared['longest']:,})"
    if prepared["dropped"]:
        text += f"; {prepared['dropped']:,} rows have nothing left to learn and are left out"
    return text


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(1, whole)
    return f"{share:.0f} %" if share >= 1 or not part else f"{share:.1g} %"


def sample_pieces(briefing: Briefing) -> Iterator[Fact]:
    """Yield one row as it is trained on, piece by piece: ``given`` or ``learnt``, and the text."""
    for text, is_learnt in (briefing.prepared or {}).get("sample", ()):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text) - _SHOWN:,} more)"
        yield "learnt" if is_learnt else "given", shown


def receipt_title(receipt: Receipt) -> str:
    """Return the outcome of a smoke run in one sentence."""
    what = "QLoRA" if receipt.quantized else "LoRA"
    where = "the CPU" if receipt.card == "cpu" else receipt.card
    outcome = "trains" if receipt.passed else "does not train"
    return one_line(
        f"{receipt.matrix} {outcome}: {receipt.steps} steps of {what} with {receipt.runner} on {where},"
        f" {receipt.precision}, in {seconds_text(receipt.seconds)}"
    )


def receipt_facts(receipt: Receipt) -> Iterator[Fact]:
    """Yield what a smoke run proved."""
    fell = f"{receipt.before:.3f} → {receipt.after:.3f} over {receipt.steps} steps"
    yield "PASS" if receipt.fell else "FAIL", f"a fixed loss falls: {fell}"
    held = f"{receipt.held[0]:.3f} → {receipt.held[1]:.3f}"
    yield "PASS" if receipt.held_still else "FAIL", f"and stays with learning rate 0: {held}"
    yield "memory", f"at most {gib(receipt.memory)}"
    if receipt.mends:
        yield "mends", ", ".join(receipt.mends)
    for note in receipt.notes:
        yield "note", note


def briefing_text(briefing: Briefing, *, width: int = 80) -> str:
    """Return *briefing* as lines of at most *width* columns, without colour."""
    return "\n".join(line for line, _ in _briefing_lines(briefing, width))


def receipt_text(receipt: Receipt, *, width: int = 80) -> str:
    """Return *receipt* as lines of at most *width* columns, without colour."""
    return "\n".join(line for line, _ in _lines(receipt_title(receipt), receipt_facts(receipt), width))


def render_briefing(briefing: Briefing, console: Console) -> None:
    """Print *briefing*."""
    for line, style in _briefing_lines(briefing, console.width):
        console.out(line, style=style or None, highlight=False)


def render_receipt(receipt: Receipt, console: Console) -> None:
    """Print *receipt*."""
    for line, style in _lines(receipt_title(receipt), receipt_facts(receipt), console.width):
        console.out(line, style=style or None, highlight=False)


def _briefing_lines(briefing: Briefing, width: int) -> Iterator[tuple[str, str]]:
    yield from _lines(briefing_title(briefing), briefing_facts(briefing), width)
    pieces = list(sample_pieces(briefing))
    if pieces:
        yield "", ""
        yield "one row as it is trained on:", "bold"
    for label, text in pieces:
        style = "" if label == "learnt" else "dim"
        for number, line in enumerate(clean(text).splitlines() or [""]):
            head = f"  {label if not number else '':<{_LABEL}}"
            room = max(20, width - len(head))
            for at, part in enumerate(textwrap.wrap(line, room, drop_whitespace=False) or [""]):
                yield (head if not at else " " * len(head)) + part, style


def _lines(title: str, facts: Iterator[Fact], width: int) -> Iterator[tuple[str, str]]:
    for line in textwrap.wrap(title, width, subsequent_indent="  "):
        yield line, "bold"
    for label, text in facts:
        head = f"  {label:<{_LABEL}}"
        whole = _UNIT.sub("\N{NO-BREAK SPACE}", one_line(text))
        wrapped = textwrap.wrap(whole, max(20, width - len(head)), break_on_hyphens=False) or [""]
        for number, line in enumerate(wrapped):
            shown = line.replace("\N{NO-BREAK SPACE}", " ")
            yield (head if not number else " " * len(head)) + shown, _STYLES.get(label, "")


def briefing_to_html(briefing: Briefing) -> str:
    """Return *briefing* as a block for a notebook."""
    parts = [_head(briefing_title(briefing)), _list(briefing_facts(briefing))]
    pieces = [
        f"<span>{escape(text)}</span>" if label == "given" else f"<mark {_LEARNT}>{escape(text)}</mark>"
        for label, text in sample_pieces(briefing)
    ]
    if pieces:
        title = "One row as it is trained on; what is learnt is marked"
        parts.append(f"<details open><summary>{title}</summary><pre>{''.join(pieces)}</pre></details>")
    return page(parts)


def receipt_to_html(receipt: Receipt) -> str:
    """Return *receipt* as a block for a notebook."""
    return page([_head(receipt_title(receipt)), _list(receipt_facts(receipt))])


def _head(title: str) -> str:
    return f'<p class="cl-head">{text_to_html(title)}</p>'


def _list(facts: Iterator[Fact]) -> str:
    rows = (
        f'<li><span style="flex:0 0 5.5em">{_label(label)}</span>'
        f'<span style="flex:1 1 20em">{text_to_html(text)}</span></li>'
        for label, text in facts
    )
    return f'<ul style="padding-left:0">{"".join(rows)}</ul>'


def _label(label: str) -> str:
    tint = _TINTS.get(label)
    kind = f"cl-tag {tint}" if tint else "cl-soft"
    return f'<span class="{kind}">{escape(label)}</span>'
