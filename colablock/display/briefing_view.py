"""The views of a briefing, before a run starts, and of the receipt of a smoke run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import count, memory_text, seconds_text
from colablock.display.view import Document, Headline, Note, Pair, Pairs, Sample, Section, Span, Tone
from colablock.training.preflight.facts import Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from colablock.display.view import Block
    from colablock.training.find_or_start import Briefing
    from colablock.training.receipts import Receipt
    from colablock.training.runs.config import TrainConfig

__all__ = ["briefing_document", "receipt_document"]

_SHOWN = 1200  # characters of a piece of the sample row
_LEAST = 2**27  # bytes; a smaller part of the memory estimate is left out
_LEVELS = {
    Level.REFUSE: ("refused", Tone.BAD),
    Level.WARN: ("warning", Tone.WARN),
    Level.NOTE: ("note", Tone.SOFT),
}
_TRAINED, _MASKED = "trained", "masked"


def briefing_document(briefing: Briefing) -> Document:
    """Return what is shown before a run starts: what is trained, what it needs, and one row of data."""
    blocks: list[Block] = [Pairs(tuple(_briefing_pairs(briefing)))]
    pieces = tuple(_sample_pieces(briefing))
    if pieces:
        title = f"One training row; the loss counts only what is {_TRAINED}"
        blocks.append(Section(title=title, body=(Sample(pieces=pieces, marked=_TRAINED),)))
    return Document(headline=Headline(text=_briefing_title(briefing)), blocks=tuple(blocks))


def _briefing_title(briefing: Briefing) -> str:
    """Return what starts, and where: ``QLoRA of tiny with trl, bf16, on NVIDIA L4``."""
    config, preflight = briefing.config, briefing.preflight
    kind = "QLoRA" if config.adapter.value == "qlora" else "LoRA"
    cards = (f"{number} {name}" if number > 1 else name for name, number in Counter(briefing.cards).items())
    where = " and ".join(cards) or "the CPU"
    several = f", {preflight.processes} processes" if preflight.processes > 1 else ""
    what = f"{kind} of {_model_name(config.base_model)} with {briefing.runner}"
    resumed = f", resuming from {briefing.resumed_from}" if briefing.resumed_from else ""
    return f"{what}, {preflight.precision.name}, on {where}{several}{resumed}"


def _model_name(model: str) -> str:
    """Return the name of a model; for one in a local folder, the name of the folder."""
    return Path(model).name if Path(model).is_absolute() else model


def _briefing_pairs(briefing: Briefing) -> Iterator[Pair]:
    if Path(briefing.config.base_model).is_absolute():
        yield Pair(lead="model", text=briefing.config.base_model)
    estimate = briefing.preflight.estimate
    if estimate is not None:
        parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{name} {memory_text(size)}" for name, size in parts if size >= _LEAST)
        yield Pair(
            lead="memory", text=f"about {memory_text(estimate.total)}" + (f": {shown}" if shown else "")
        )
    if briefing.prepared is not None:
        yield Pair(lead="data", text=_data_text(briefing))
    if briefing.steps is not None and not briefing.config.extra.get("sample_packing"):  # else they are fewer
        yield Pair(lead="steps", text=_steps_text(briefing.config, *briefing.steps))
    for note in (briefing.prepared or {}).get("notes", ()):
        yield Pair(lead="note", text=str(note), tone=Tone.SOFT)
    if briefing.workarounds:
        yield Pair(lead="workarounds", text=", ".join(briefing.workarounds))
    yield Pair(lead="output", text=Span(str(briefing.folder), Tone.CODE))
    for finding in briefing.preflight.findings:
        label, tone = _LEVELS[finding.level]
        words = ": ".join(filter(None, [finding.what, finding.why]))
        yield Pair(lead=label, text=f"{words}; {finding.fix}" if finding.fix else words, tone=tone)


def _data_text(briefing: Briefing) -> str:
    prepared = briefing.prepared or {}
    rows, tokens = prepared["rows"], prepared["tokens"]
    forms = ", ".join(dict.fromkeys(prepared["forms"]))
    text = f"{rows:,} rows ({forms}), {tokens:,} tokens, {prepared['trained']:,} of them trained"
    limit = briefing.config.sequence_len
    if prepared["cut"]:
        text += (
            f"; {prepared['cut']:,} rows ({_percent(prepared['cut'], rows)}) are longer than {limit:,} tokens"
            f" and are cut, which loses {_percent(prepared['lost'], tokens)} of all tokens"
        )
    else:
        text += f"; no row is longer than {limit:,} tokens (the longest has {prepared['longest']:,})"
    if prepared["dropped"]:
        text += f"; {prepared['dropped']:,} rows have no trained token left and are dropped"
    return text


def _steps_text(config: TrainConfig, steps: int, rows: int) -> str:
    """Return how many steps there are, and why: ``151, of 8 rows each (1 at a time), for 1 epoch``."""
    text = f"{steps:,}, of {count(rows, 'row')}{' each' if steps > 1 else ''}"
    if rows > 1 and config.micro_batch_size != rows:
        text += f" ({config.micro_batch_size} at a time)"
    epochs = "1 epoch" if config.num_epochs == 1 else f"{config.num_epochs:g} epochs"
    return f"{text}, as `max_steps` says" if config.max_steps else f"{text}, for {epochs}"


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(1, whole)
    return f"{share:.0f} %" if share >= 1 or not part else f"{share:.1g} %"


def _sample_pieces(briefing: Briefing) -> Iterator[tuple[str, str]]:
    for text, is_trained in (briefing.prepared or {}).get("sample", ()):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text) - _SHOWN:,} more)"
        yield _TRAINED if is_trained else _MASKED, shown


def receipt_document(receipt: Receipt, *, path: Path | None = None) -> Document:
    """Return what is shown of *receipt*; *path* is the file that it was written to."""
    headline = Headline(text=_receipt_title(receipt), tone=Tone.GOOD if receipt.passed else Tone.BAD)
    blocks: list[Block] = [Pairs(tuple(_receipt_pairs(receipt, path)))]
    if receipt.passed:
        command = f"colablock train {receipt.matrix} --model MODEL --dataset FILE"
        blocks.append(Note(label="next", text=Span(command, Tone.CODE)))
    return Document(headline=headline, blocks=tuple(blocks))


def _receipt_title(receipt: Receipt) -> str:
    kind = "QLoRA" if receipt.quantized else "LoRA"
    where = "the CPU" if receipt.card == "cpu" else receipt.card
    outcome = "trains" if receipt.passed else "does not train"
    return (
        f"{receipt.matrix} {outcome}: {receipt.steps} steps of {kind} with {receipt.runner} on {where},"
        f" {receipt.precision}, in {seconds_text(receipt.seconds)}"
    )


def _receipt_pairs(receipt: Receipt, path: Path | None) -> Iterator[Pair]:
    fell = f"{receipt.before:.3f} -> {receipt.after:.3f} in {receipt.steps} steps"
    yield _claim(f"the loss of fixed rows falls: {fell}", holds=receipt.fell)
    held = f"{receipt.held[0]:.3f} -> {receipt.held[1]:.3f}"
    yield _claim(f"with learning rate 0 it stays: {held}", holds=receipt.held_still)
    yield Pair(lead="memory", text=f"at most {memory_text(receipt.memory)}")
    if receipt.workarounds:
        yield Pair(lead="workarounds", text=", ".join(receipt.workarounds))
    for note in receipt.notes:
        yield Pair(lead="note", text=note, tone=Tone.SOFT)
    if path is not None:
        yield Pair(lead="receipt", text=Span(str(path), Tone.CODE))


def _claim(text: str, *, holds: bool) -> Pair:
    return Pair(lead="PASS" if holds else "FAIL", text=text, tone=Tone.GOOD if holds else Tone.BAD)
