"""What is known before a run starts, and the receipt of a smoke run, as text and as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import memory_text, seconds_text
from colablock.display.html import page, text_to_html
from colablock.display.text import (
    Section,
    TextSpan,
    heading,
    joined,
    pair,
    paragraph,
    section_lines,
    write_lines,
)
from colablock.display.words import clean, one_line
from colablock.training.preflight.facts import Level

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.training.find_or_start import Briefing
    from colablock.training.receipts import Receipt

__all__ = [
    "briefing_text",
    "briefing_to_html",
    "receipt_text",
    "receipt_title",
    "receipt_to_html",
    "render_briefing",
    "render_receipt",
]

_SHOWN = 1200  # characters of one piece of the row that is shown
_WORDS = {Level.REFUSE: "refused", Level.WARN: "warning", Level.NOTE: "note"}
_TINTS = {"refused": "cl-bad", "warning": "cl-warn", "FAIL": "cl-bad", "PASS": "cl-good"}
_LEARNT = 'style="background:rgba(46,160,67,.28);color:inherit;border-radius:3px"'  # of both kinds of page
_STYLES = {"refused": "bold red", "warning": "yellow", "note": "dim", "FAIL": "bold red", "PASS": "green"}

Fact = tuple[str, str]  # a label and what stands beside it


def briefing_title(briefing: Briefing) -> str:
    """Return what starts, on what: ``QLoRA of tiny with trl, bf16, on NVIDIA L4``."""
    config, preflight = briefing.config, briefing.preflight
    kind = "QLoRA" if config.adapter.value == "qlora" else "LoRA"
    counted = (f"{number} {name}" if number > 1 else name for name, number in Counter(briefing.cards).items())
    where = " and ".join(counted) or "the CPU"
    several = f", {preflight.processes} processes" if preflight.processes > 1 else ""
    what = f"{kind} of {_short(config.base_model)} with {briefing.runner}"
    resumed = f", going on from {briefing.resumed_from}" if briefing.resumed_from else ""
    return one_line(f"{what}, {preflight.precision.name}, on {where}{several}{resumed}")


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
        shown = ", ".join(f"{name} {memory_text(size)}" for name, size in parts if size >= 2**27)
        yield "memory", f"about {memory_text(estimate.total)}" + (f": {shown}" if shown else "")
    prepared = briefing.prepared
    if prepared is not None:
        yield "data", _data_words(briefing)
    if briefing.workarounds:
        yield "workarounds", ", ".join(briefing.workarounds)
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
    yield "memory", f"at most {memory_text(receipt.memory)}"
    if receipt.workarounds:
        yield "workarounds", ", ".join(receipt.workarounds)
    for note in receipt.notes:
        yield "note", note


def briefing_text(briefing: Briefing, *, width: int = 80) -> str:
    """Return *briefing* as plain text."""
    return joined(_briefing_lines(briefing, width=width))


def receipt_text(receipt: Receipt, *, width: int = 80) -> str:
    """Return *receipt* as plain text."""
    return joined(_receipt_lines(receipt, width=width))


def render_briefing(briefing: Briefing, console: Console) -> None:
    """Write *briefing* to *console*."""
    write_lines(_briefing_lines(briefing, width=console.width), console)


def render_receipt(receipt: Receipt, console: Console, *, path: Path | None = None) -> None:
    """Write *receipt* to *console*, and that it stands in the file *path*."""
    write_lines(_receipt_lines(receipt, width=console.width, path=path), console)


def _briefing_lines(briefing: Briefing, *, width: int) -> Iterator[list[TextSpan]]:
    yield from paragraph(briefing_title(briefing), width=width, hang=2, style="bold")
    yield from section_lines(Section("", list(briefing_facts(briefing)), styles=_STYLES), width=width)
    pieces = list(sample_pieces(briefing))
    if pieces:
        yield from heading("one row as it is trained on:")
    for label, text in pieces:
        style = "" if label == "learnt" else "dim"
        for number, line in enumerate(clean(text).splitlines() or [""]):
            shown = pair("" if number else label, line, width=width, column=len("learnt"))
            yield from ([span._replace(style=style) for span in spans] for spans in shown)


def _receipt_lines(receipt: Receipt, *, width: int, path: Path | None = None) -> Iterator[list[TextSpan]]:
    yield from paragraph(receipt_title(receipt), width=width, hang=2, style="bold")
    written = [("receipt", str(path))] if path is not None else []
    facts = Section("", [*receipt_facts(receipt), *written], styles=_STYLES)
    yield from section_lines(facts, width=width)


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
