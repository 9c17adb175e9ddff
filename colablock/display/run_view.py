"""The views of training runs: their progress, how one ended and why, everything about one, the list."""

from __future__ import annotations

import math
import re
import shlex
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from colablock._common.text import command_line, count, memory_text, seconds_text
from colablock.display.view import (
    Bar,
    Bullets,
    Document,
    FactLine,
    Grid,
    GridRow,
    Headline,
    Note,
    Picture,
    Preformatted,
    Section,
    Span,
    Tone,
    cut,
    one_line,
    pairs_of,
)
from colablock.training.runs.folder import State
from colablock.training.runs.loss_curve import curve_svg, sparkline_svg

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from colablock.display.view import Block
    from colablock.training.runs.crash import Explanation
    from colablock.training.runs.folder import RunRecord
    from colablock.training.runs.progress import Progress
    from colablock.training.runs.summary import RunSummary

__all__ = [
    "ProgressFact",
    "checkpoint_saved",
    "duration_text",
    "loss_text",
    "progress_document",
    "progress_facts",
    "progress_line",
    "run_document",
    "runs_document",
    "summary_document",
    "summary_headline",
]

#: What takes its time before the first step, where the record's name says little.
_PARTS = {"facts": "looking at the stack", "load": "loading the model"}
_HOUR = 3600
_DAY = 24 * _HOUR
_DETAIL = 200  # characters of the last line of a log
_UNKNOWN = "it is none of the failures that colablock knows"
_FRAME = re.compile(r'\s*(?:File "|File .+:\d+|Cell In\b|-+> ?\d+ |Traceback \()')
_EXCEPTION = 220  # characters of an exception in a title
_LONG = 10_000  # columns: a line that is never cut
_COLUMNS = ("run", "state", "step", "loss", "started", "model")
_TONES = {State.DONE: Tone.GOOD, State.STOPPED: Tone.WARN, State.FAILED: Tone.BAD, State.KILLED: Tone.BAD}
_ENDED_EARLY = (State.STOPPED, State.FAILED, State.KILLED)


class ProgressFact(NamedTuple):
    """A fact about a run in progress.  If there is no room, the fact with the highest *rank* goes first."""

    label: str
    text: str
    rank: int


# Numbers


def loss_text(loss: float | None) -> str:
    """Return a loss: ``5.942``, ``0.0021``, ``nan``; a dash if none was logged."""
    if loss is None:
        return "-"
    if not math.isfinite(loss):
        return str(loss)
    return f"{loss:.3f}" if 0.1 <= abs(loss) < 1000 or not loss else f"{loss:.3g}"  # noqa: PLR2004


def duration_text(seconds: float) -> str:
    """Return a duration of any length: ``12 s``, ``2 min 5 s``, ``3 h 12 min``, ``2 d 4 h``."""
    if seconds < _HOUR - 0.5:
        return seconds_text(seconds) if seconds < 1 else seconds_text(round(seconds)).replace(".0 s", " s")
    if seconds < _DAY:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min"
    days, rest = divmod(round(seconds / _HOUR), 24)
    return f"{days} d {rest} h"


# Progress


def progress_facts(progress: Progress) -> list[ProgressFact]:
    """Return what is known of a run in progress, in the order in which it is shown."""
    facts = []
    if progress.step or progress.total:
        facts.append(ProgressFact("", _step_text(progress), 0))
    if progress.loss is not None:
        facts.append(ProgressFact("loss", loss_text(_shown_loss(progress)), 1))
    if progress.learning_rate is not None:
        facts.append(ProgressFact("lr", f"{progress.learning_rate:.1e}".replace("e-0", "e-"), 5))
    if progress.tokens_per_second:
        facts.append(ProgressFact("", f"{round(progress.tokens_per_second):,} tokens/s", 3))
    if progress.memory:
        facts.append(ProgressFact("", memory_text(progress.memory), 4))
    if progress.seconds_left is not None and progress.step != progress.total:
        facts.append(ProgressFact("", f"{duration_text(progress.seconds_left)} left", 2))
    return facts


def progress_line(progress: Progress, *, width: int = 80) -> str:
    """Return the progress in one line of at most *width* columns, without the facts that have no room."""
    stage = one_line(progress.stage)
    if stage.startswith(("starting: ", "running: ")):
        taken = f", {duration_text(progress.seconds)}" if progress.seconds >= 1 else ""
        detail = one_line(progress.detail)
        return cut(f"{stage}{taken}: {detail}" if detail else f"{stage}{taken}", width)
    facts = progress_facts(progress)
    lead = "" if stage == "training" else f"{stage}: " if facts else stage
    while True:
        text = lead + ", ".join(f"{fact.label} {fact.text}".strip() for fact in facts)
        if len(text) <= width or len(facts) <= 1:
            return cut(text, width)
        facts.remove(max(facts, key=lambda fact: fact.rank))


def checkpoint_saved(progress: Progress) -> str:
    """Return the sentence that the last checkpoint was saved."""
    return one_line(f"saved {progress.checkpoint}")


def progress_document(progress: Progress, *, title: str = "", notes: Sequence[str] = ()) -> Document:
    """Return what is shown of a run in progress: a bar, what is known, and a small loss curve."""
    blocks = list(_progress_blocks(progress))
    if progress.checkpoint:
        blocks.append(Note(text=checkpoint_saved(progress), tone=Tone.SOFT))
    blocks += [Note(text=note) for note in notes]
    return Document(headline=_progress_headline(progress, title), blocks=tuple(blocks))


def _progress_headline(progress: Progress, title: str) -> Headline:
    taken = f", {duration_text(progress.seconds)}" if progress.seconds >= 1 else ""
    return Headline(text=title, aside=f"{progress.stage}{taken}")


def _progress_blocks(progress: Progress) -> Iterator[Block]:
    if progress.share is not None and not progress.has_no_events:
        yield Bar(progress.share)
    elif not progress.is_over:
        yield Bar(None)
    facts = tuple((fact.label, fact.text) for fact in progress_facts(progress))
    if facts:
        yield FactLine(facts)
        curve = sparkline_svg(progress.points)
        if curve:
            yield Picture(alt="loss", svg=curve)
    if progress.detail:
        yield Note(text=Span(cut(one_line(progress.detail), _DETAIL), Tone.CODE), tone=Tone.SOFT)


def _step_text(progress: Progress) -> str:
    return f"step {progress.step}/{progress.total}" if progress.total else f"step {progress.step}"


def _shown_loss(progress: Progress) -> float | None:
    """Return the smoothed loss, or the last one if it is not finite: smoothing would hide that."""
    if progress.loss is None or not math.isfinite(progress.loss):
        return progress.loss
    return progress.smooth_loss


# How a run ended


def summary_headline(summary: RunSummary) -> str:
    """Return in one sentence where a run stands, or how it ended."""
    progress, state = summary.progress, summary.state
    if not summary.is_there:
        return one_line(f"{summary.id}: its folder no longer exists ({summary.folder})")
    if state is State.PREPARED:
        return one_line(f"{summary.id}: not started")
    if state is State.RUNNING:
        return one_line(f"{summary.id}{_place(summary)}: {progress_line(progress, width=_LONG)}")
    taken = f" in {duration_text(progress.seconds_in_all)}" if progress.seconds_in_all else ""
    word = "was killed" if state is State.KILLED else state.value
    if state is State.DONE:
        # Of several hosts, the first one writes the steps.
        what = f"done, {count(progress.step, 'step')}{taken}" if progress.step else "done"
    elif progress.step:
        what = f"{word} at {_step_text(progress)}{taken}"
    else:
        what = f"{word} before the first step"
    return one_line(f"{summary.id}: {what}{_losses(summary)}")


def _place(summary: RunSummary) -> str:
    """Return where a run is going on, if not here."""
    record = summary.record
    return f" on {record.host}" if record is not None and record.is_elsewhere else ""


def _losses(summary: RunSummary) -> str:
    first, last = summary.first_loss, _shown_loss(summary.progress)
    if first is None or last is None or summary.progress.step <= 1:
        return f", loss {loss_text(last)}" if last is not None else ""
    return f", loss {loss_text(first)} -> {loss_text(last)}"


def summary_document(summary: RunSummary, *, png: bytes | None = None, notes: Sequence[str] = ()) -> Document:
    """Return what is shown of a run: its progress, or how it ended and why, with the loss curve.

    The curve is the picture *png*, or an SVG of our own.
    """
    if summary.state is State.RUNNING:
        blocks = [
            *_progress_blocks(summary.progress),
            *_facts(summary, but="speed"),
        ]  # it is among the progress
        headline = _progress_headline(summary.progress, summary.id)
    else:
        badge = (summary.state.value if summary.is_there else "gone").upper()
        headline = Headline(text=summary_headline(summary), tone=_tone(summary), badge=badge)
        blocks = [*_facts(summary), *_why(summary.explanation), *_curve(summary, png)]
    blocks += [Note(text=note) for note in notes]
    return Document(headline=headline, blocks=(*blocks, *_next(summary)))


def _tone(summary: RunSummary) -> Tone:
    return _TONES.get(summary.state, Tone.PLAIN)


def _facts(summary: RunSummary, *, but: str = "") -> Iterator[Block]:
    pairs = tuple(pair for pair in _pairs(summary) if pair[0] != but)
    if pairs:
        yield FactLine(pairs)


def _pairs(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield what is known of a run, as label and text."""
    progress, record = summary.progress, summary.record
    if progress.evaluation_loss is not None:
        yield "evaluation loss", loss_text(progress.evaluation_loss)
    if progress.before is not None and progress.after is not None:
        yield "fixed loss", f"{loss_text(progress.before)} before, {loss_text(progress.after)} after"
    if progress.tokens_per_second:
        yield "speed", f"{round(progress.tokens_per_second):,} tokens/s"
    if progress.memory:
        estimate = f" (estimated {memory_text(record.estimate)})" if record and record.estimate else ""
        label = "GPU memory" if record is None or record.cards else "memory"
        yield label, f"{memory_text(progress.memory)} at the peak{estimate}"
    if progress.beginning:
        named = ((_PARTS.get(part, part), taken) for part, taken in progress.beginning.items())
        parts = ", ".join(f"{part} {seconds_text(taken)}" for part, taken in named)
        yield "first step", f"{seconds_text(sum(progress.beginning.values()))} after the call: {parts}"
    if progress.checkpoint:
        yield "checkpoint", f"{progress.checkpoint}, {count(progress.checkpoints, 'save')} in all"
    if summary.mirror:
        yield "mirror", summary.mirror


def _why(explanation: Explanation | None) -> Iterator[Section]:
    """Yield why a run ended: the cause, the exception, and what to do."""
    if explanation is None:
        return
    rank = f" (rank {explanation.rank})" if explanation.rank is not None else ""
    yield Section(title=f"Why: {explanation.means}{rank}", body=tuple(_reasons(explanation)))


def _reasons(explanation: Explanation) -> list[Block]:
    """Return the exception, what is known of it, and what to do."""
    body: list[Block] = []
    trace = explanation.trace or ((explanation.line,) if explanation.line else ())
    if trace:
        title = cut(one_line(explanation.line), _EXCEPTION) if explanation.is_known else ""
        is_traceback = any(_FRAME.match(line) for line in trace)
        body.append(
            Section(
                title=title or f"end of the {'traceback' if is_traceback else 'log'}",
                body=(Preformatted(lines=trace, tone=Tone.BAD),),
                brief=() if explanation.is_known else None,
                is_open=not explanation.is_known,
                is_extra=explanation.is_known and not explanation.line,
            )
        )
    body += [Note(text=detail) for detail in explanation.details]
    if explanation.advice:
        body.append(Bullets(title="what to do", bullets=explanation.advice))
    if explanation.log:
        body.append(Note(label="log", text=Span(explanation.log, Tone.CODE), tone=Tone.SOFT))
    return body


def explanation_document(explanation: Explanation) -> Document:
    """Lay out the explanation of a failure that is no run of colablock."""
    if explanation.is_known:
        headline = Headline(text=explanation.title, tone=Tone.BAD)
        return Document(headline=headline, blocks=tuple(_reasons(explanation)))
    if not explanation.line:
        headline = Headline(text=f"{explanation.means}: {_UNKNOWN}", tone=Tone.WARN)
        return Document(headline=headline, blocks=tuple(_reasons(explanation)))
    headline = Headline(text=explanation.line, tone=Tone.WARN)
    cause = Note(label="cause", text=f"unknown: {_UNKNOWN}")
    reasons = () if explanation.trace == (explanation.line,) else _reasons(explanation)
    return Document(headline=headline, blocks=(cause, *reasons))


def _curve(summary: RunSummary, png: bytes | None) -> Iterator[Picture]:
    progress = summary.progress
    svg = ""
    if png is None and len(progress.points) > 1:
        svg = curve_svg(progress.points, evaluations=progress.evaluations)
    if svg or png is not None:
        yield Picture(alt=f"loss curve of {summary.id}", svg=svg, png=png)


def _next(summary: RunSummary) -> Iterator[Note]:
    """Yield the result, and what can be done next."""
    if summary.adapter is not None:
        yield Note(label="adapter", text=Span(str(summary.adapter), Tone.CODE))
    checkpoint = summary.progress.checkpoint
    is_said = summary.explanation is not None and any(
        f"from {checkpoint}" in one for one in summary.explanation.advice
    )
    if summary.state in _ENDED_EARLY and checkpoint and not is_said:
        text = f"the same call continues from {checkpoint}; with `--fresh` it starts again"
        yield Note(label="resume", text=text)
    if summary.state is State.RUNNING:
        yield Note(label="follow", text=Span(command_line("runs", "follow", summary.id), Tone.CODE))


# Everything about one run, and the list


def run_document(summary: RunSummary) -> Document:
    """Return everything about one run; config, versions and command are for verbose text."""
    record = summary.record
    blocks: list[Block] = []
    known = dict(_pairs(summary))
    if known:
        blocks.append(pairs_of(known))
    if record is not None:
        blocks.append(Section(title="Started", body=(pairs_of(_record_facts(record)),)))
        blocks += _extra(record)
    files = {"log": "log.txt", "metrics": "metrics.jsonl"}
    found = {label: name for label, name in files.items() if (summary.folder / name).exists()}
    blocks.append(Section(title="Files", body=(pairs_of({"folder": str(summary.folder), **found}),)))
    blocks += _why(summary.explanation)
    headline = Headline(text=summary_headline(summary), tone=_tone(summary))
    return Document(headline=headline, blocks=(*blocks, *_next(summary)))


def _record_facts(record: RunRecord) -> dict[str, str]:
    processes = count(record.processes, "process", "processes")
    facts = {
        "model": record.model,
        "matrix": f"{record.matrix}, lock {record.lock[:12]}" if record.lock else record.matrix,
        "runner": record.runner,
        "workarounds": ", ".join(record.workarounds),
        "precision": f"{record.precision or 'not recorded'}, {processes}, seed {record.seed}",
        "GPUs": ", ".join(record.cards) or "none",
        "driver": record.driver or "",
        "runtime": record.runtime or "",
        "started": f"{_when(record.started)} UTC" if record.started else "",
        "host": record.host,
        "resumed from": record.resumed_from or "",
        "python": record.python,
        "git revision": record.git_revision or "",
        "config": f"digest {record.config_digest[:12]}",
        "data": f"digest {record.data_digest[:12]}",
    }
    return {label: text for label, text in facts.items() if text}


def _extra(record: RunRecord) -> Iterator[Section]:
    config = {key: _value(value) for key, value in record.config.items()}
    sections: tuple[tuple[str, Block | None], ...] = (
        ("Config", pairs_of(config) if config else None),
        ("Versions", pairs_of(dict(sorted(record.versions.items()))) if record.versions else None),
        ("Command", Note(text=Span(shlex.join(record.command), Tone.CODE)) if record.command else None),
    )
    for title, body in sections:
        if body is not None:
            yield Section(title=title, body=(body,), is_open=False, is_extra=True)


def runs_document(found: Iterable[RunSummary]) -> Document:
    """Return every run as one row; the model is cut if there is too little room."""
    rows = tuple(GridRow(cells=_cells(one)) for one in found)
    if not rows:
        return Document(blocks=(Note(text="no runs yet"),))
    return Document(blocks=(Grid(rows=rows, header=_COLUMNS, may_cut=True),))


def _cells(summary: RunSummary) -> tuple[str | Span, ...]:
    progress, record = summary.progress, summary.record
    place = _place(summary) if summary.state is State.RUNNING else ""
    step = f"{progress.step}/{progress.total}" if progress.total else str(progress.step or "-")
    return (
        summary.id,
        Span(f"{summary.state_word}{place}", _tone(summary)),
        step,
        loss_text(_shown_loss(progress)),
        _when(record.started)[5:] if record is not None and record.started else "-",
        record.model.rstrip("/").rpartition("/")[2] if record is not None else "-",
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M")


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(one)}" for key, one in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
