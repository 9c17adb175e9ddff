"""Training runs in words, as lines of text and as HTML: progress, the end of one, why it failed, the list."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from colablock._common.text import count, memory_text, seconds_text
from colablock.display.html import page, text_to_html
from colablock.display.text import Section, TextSpan, joined, paragraph, render_sections, write_lines
from colablock.display.words import clean, one_line
from colablock.training.runs.folder import State
from colablock.training.runs.loss_curve import curve_svg, sparkline_svg

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.training.runs.crash import Explanation
    from colablock.training.runs.folder import RunRecord
    from colablock.training.runs.progress import Progress
    from colablock.training.runs.summary import RunSummary

__all__ = [
    "Part",
    "checkpoint_words",
    "duration_text",
    "loss_text",
    "progress_line",
    "progress_parts",
    "progress_to_html",
    "render_run",
    "render_runs",
    "render_summary",
    "summary_headline",
    "summary_text",
    "summary_to_html",
]

_HOUR = 3600
_DAY = 24 * _HOUR
_LEAST = 12  # columns: a name that is cut to fewer says nothing
_COLUMNS = ("run", "state", "step", "loss", "started", "model")
_STATE_TINT = {
    State.DONE: "cl-good",
    State.STOPPED: "cl-warn",
    State.FAILED: "cl-bad",
    State.KILLED: "cl-bad",
}
_STATE_STYLE = {
    State.DONE: "bold green",
    State.STOPPED: "bold yellow",
    State.FAILED: "bold red",
    State.KILLED: "bold red",
}


class Part(NamedTuple):
    """A fact about a run that goes on, and how soon it gives way where there is no room: the least last."""

    label: str
    text: str
    gives_way: int


# Words


def loss_text(loss: float | None) -> str:
    """Return a loss: ``5.942``, ``0.0021``, ``nan``; a dash where none was logged."""
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


def progress_parts(progress: Progress) -> list[Part]:
    """Return what is known of a run that goes on, in the order in which it is shown."""
    parts = []
    if progress.step or progress.total:
        parts.append(Part("", _step_text(progress), 0))
    if progress.loss is not None:
        parts.append(Part("loss", loss_text(_shown_loss(progress)), 1))
    if progress.learning_rate is not None:
        parts.append(Part("lr", f"{progress.learning_rate:.1e}".replace("e-0", "e-"), 5))
    if progress.tokens_per_second:
        parts.append(Part("", f"{round(progress.tokens_per_second):,} tokens/s", 3))
    if progress.memory:
        parts.append(Part("", memory_text(progress.memory), 4))
    if progress.seconds_left is not None and progress.step != progress.total:
        parts.append(Part("", f"{duration_text(progress.seconds_left)} left", 2))
    return parts


def progress_line(progress: Progress, *, width: int = 80) -> str:
    """Return how far a run is in one line of at most *width* columns: what matters least is left out."""
    head = one_line(progress.stage)
    if head.startswith("starting"):
        taken = f", {duration_text(progress.seconds)}" if progress.seconds >= 1 else ""
        detail = one_line(progress.detail)
        return _cut(f"{head}{taken}: {detail}" if detail else f"{head}{taken}", width)
    parts = progress_parts(progress)
    lead = "" if head == "training" else f"{head}: " if parts else head
    while True:
        text = lead + ", ".join(f"{part.label} {part.text}".strip() for part in parts)
        if len(text) <= width or len(parts) <= 1:
            return _cut(text, width)
        parts.remove(max(parts, key=lambda part: part.gives_way))


def checkpoint_words(progress: Progress) -> str:
    """Return that a checkpoint was saved."""
    return one_line(f"saved {progress.checkpoint}")


def summary_headline(summary: RunSummary) -> str:
    """Return what became of a run in one sentence."""
    progress, state = summary.progress, summary.state
    if not summary.is_there:
        return one_line(f"{summary.id}: its folder is gone ({summary.folder})")
    if state is State.PREPARED:
        return one_line(f"{summary.id}: not started")
    if state is State.RUNNING:
        return one_line(f"{summary.id}: {progress_line(progress, width=10_000)}")
    taken = f" in {duration_text(progress.seconds_in_all)}" if progress.seconds_in_all else ""
    if state is State.DONE:
        what = f"done, {count(progress.step, 'step')}{taken}"
    elif progress.step:
        word = "was killed" if state is State.KILLED else state.value
        what = f"{word} at {_step_text(progress)}{taken}"
    else:
        word = "was killed" if state is State.KILLED else state.value
        what = f"{word} before the first step"
    return one_line(f"{summary.id}: {what}{_from_to(summary)}")


def _step_text(progress: Progress) -> str:
    return f"step {progress.step}/{progress.total}" if progress.total else f"step {progress.step}"


def _shown_loss(progress: Progress) -> float | None:
    """Return the smoothed loss; the last one where that is no number, which must not be smoothed away."""
    if progress.loss is None or not math.isfinite(progress.loss):
        return progress.loss
    return progress.smooth_loss


def _from_to(summary: RunSummary) -> str:
    first, last = summary.first_loss, _shown_loss(summary.progress)
    if first is None or last is None or summary.progress.step <= 1:
        return f", loss {loss_text(last)}" if last is not None else ""
    return f", loss {loss_text(first)} -> {loss_text(last)}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 1)].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _when(seconds: float) -> str:
    if not seconds:
        return "-"
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M")


def _next_words(summary: RunSummary) -> list[str]:
    """Return what there is now, and what can be done with it."""
    words = []
    if summary.adapter is not None:
        words.append(f"what was learnt: {summary.adapter}")
    checkpoint = summary.progress.checkpoint
    is_said = summary.explanation is not None and any(
        f"from {checkpoint}" in one for one in summary.explanation.advice
    )
    if summary.state in (State.STOPPED, State.FAILED, State.KILLED) and checkpoint and not is_said:
        words.append(f"the same call again goes on from {checkpoint}")
    if summary.state is State.RUNNING:
        words.append(f"follow it: `colablock runs follow {summary.id}`")
    return words


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
        label = "card memory" if record is None or record.cards else "memory"
        yield label, f"{memory_text(progress.memory)} at the peak{estimate}"
    if progress.checkpoint:
        yield "checkpoint", f"{progress.checkpoint}, {count(progress.checkpoints, 'save')} in all"
    if summary.mirror:
        yield "mirror", summary.mirror


def _record_pairs(record: RunRecord) -> Iterator[tuple[str, str]]:
    yield "model", record.model
    yield "matrix", f"{record.matrix}, lock {record.lock[:12]}" if record.lock else record.matrix
    yield (
        "runner",
        record.runner + (f", workarounds {', '.join(record.workarounds)}" if record.workarounds else ""),
    )
    processes = count(record.processes, "process", "processes")
    yield "precision", f"{record.precision or 'not told'}, {processes}, seed {record.seed}"
    yield "cards", ", ".join(record.cards) or "none"
    yield "driver", record.driver or ""
    yield "runtime", record.runtime or ""
    yield "started", f"{_when(record.started)} UTC" if record.started else ""
    yield "resumed from", record.resumed_from or ""
    yield "python", record.python
    yield "git revision", record.git_revision or ""
    yield "config", f"digest {record.config_digest[:12]}"
    yield "data", f"digest {record.data_digest[:12]}"


# Text


def summary_text(summary: RunSummary, *, width: int = 80) -> str:
    """Return what became of a run, and why, as plain text."""
    return joined(_summary_lines(summary, width=width, verbose=False))


def render_summary(summary: RunSummary, console: Console, *, verbose: bool = False) -> None:
    """Write what became of a run, and why."""
    write_lines(_summary_lines(summary, width=console.width, verbose=verbose), console)


def render_run(summary: RunSummary, console: Console, *, verbose: bool = False) -> None:
    """Write everything about one run."""
    about = [pair for pair in _pairs(summary) if pair[1]]
    sections = [Section("", about)] if about else []
    record = summary.record
    if record is not None:
        sections.append(Section("What was started", [pair for pair in _record_pairs(record) if pair[1]]))
        if verbose:
            config = [(key, _plain(value)) for key, value in record.config.items()]
            sections.append(Section("Config", config))
            sections.append(Section("Versions", sorted(record.versions.items())))
            sections.append(Section("Command", listed=list(record.command)))
    sections.append(Section("Where", [("folder", str(summary.folder)), *_files(summary)]))
    render_sections(summary_headline(summary), [one for one in sections if one.pairs or one.listed], console)
    if summary.explanation is not None:
        why = _explanation_lines(summary.explanation, width=console.width, verbose=verbose)
        write_lines([[], *why], console)
    for word in _next_words(summary):
        write_lines([[], [TextSpan(one_line(word))]], console)


def render_runs(found: Iterable[RunSummary], console: Console) -> None:
    """Write every run as one row; the model gives way where there is no room."""
    rows = [_row(one) for one in found]
    if not rows:
        console.out("no run was started here", highlight=False)
        return
    widths = [max(map(len, column)) for column in zip(*[_COLUMNS, *rows], strict=True)]
    room = console.width - sum(widths[:-1]) - 2 * (len(widths) - 1)
    shown = len(widths) if room >= min(widths[-1], _LEAST) else len(widths) - 1
    for at, row in enumerate([_COLUMNS, *rows]):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        cells.append(_cut(row[-1], max(room, 1)))
        line = "  ".join(cells[:shown]).rstrip()
        console.out(line, style="bold" if at == 0 else None, highlight=False)


def _files(summary: RunSummary) -> list[tuple[str, str]]:
    named = [("log", "log.txt"), ("metrics", "metrics.jsonl")]
    return [(label, name) for label, name in named if (summary.folder / name).exists()]


def _row(summary: RunSummary) -> tuple[str, ...]:
    progress, record = summary.progress, summary.record
    step = f"{progress.step}/{progress.total}" if progress.total else str(progress.step or "-")
    return (
        one_line(summary.id),
        summary.state.value if summary.is_there else "gone",
        step,
        loss_text(_shown_loss(progress)),
        _when(record.started)[5:] if record is not None and record.started else "-",
        one_line(record.model.rstrip("/").rpartition("/")[2]) if record is not None else "-",
    )


def _summary_lines(summary: RunSummary, *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    style = _STATE_STYLE.get(summary.state, "bold")
    yield from paragraph(summary_headline(summary), width=width, hang=2, style=style)
    pairs = [f"{label} {text}" for label, text in _pairs(summary)]
    if pairs:
        yield from paragraph("; ".join(map(one_line, pairs)), width=width, indent=2)
    if summary.explanation is not None:
        yield []
        yield from _explanation_lines(summary.explanation, width=width, verbose=verbose)
    for word in _next_words(summary):
        yield [TextSpan(one_line(word))]  # in one line: it ends in what is copied


def _explanation_lines(explanation: Explanation, *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    rank = f" (rank {explanation.rank})" if explanation.rank is not None else ""
    yield from paragraph(f"why: {one_line(explanation.means)}{rank}", width=width, hang=5, style="bold")
    if explanation.line and (explanation.is_known or not explanation.trace):
        line = _cut(one_line(explanation.line), 3 * width - 20)
        yield from paragraph(line, width=width, indent=2, hang=2, style="red")
    for detail in explanation.details:
        yield from paragraph(one_line(detail), width=width, indent=2, hang=2)
    if verbose or not explanation.is_known:
        for line in explanation.trace:
            yield [TextSpan(f"  {clean(line)}", "red")]
    if explanation.advice:
        yield [TextSpan("what to do:", "bold")]
    for advice in explanation.advice:
        yield from paragraph(f"- {one_line(advice)}", width=width, indent=2, hang=2)
    yield [TextSpan(f"the whole log: {one_line(explanation.log)}")]


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


# HTML

_FACTS = 'style="display:flex;flex-wrap:wrap;align-items:center;gap:.1em 1.5em;margin:.3em 0"'
_FACT = 'style="overflow-wrap:anywhere;font-variant-numeric:tabular-nums"'


def progress_to_html(progress: Progress, *, title: str = "", notes: Sequence[str] = ()) -> str:
    """Return how far a run is as a block that is updated in place: a bar, what is known, a small curve."""
    return page(_progress_blocks(progress, title, notes))


def summary_to_html(summary: RunSummary, *, png: bytes | None = None, notes: Sequence[str] = ()) -> str:
    """Return what became of a run as one block, its loss curve with it: *png*, or an SVG of our own."""
    if summary.state is State.RUNNING:
        said = [*notes, *_next_words(summary)]
        return page(_progress_blocks(summary.progress, summary.id, said))
    return page(_summary_blocks(summary, png, notes))


def _progress_blocks(progress: Progress, title: str, notes: Sequence[str]) -> Iterator[str]:
    taken = f", {duration_text(progress.seconds)}" if progress.seconds >= 1 else ""
    stage = f'<span class="cl-soft">{text_to_html(progress.stage)}{taken}</span>'
    yield f'<p class="cl-head">{text_to_html(title)} {stage}</p>' if title else f"<p>{stage}</p>"
    if progress.share is not None and not progress.stage.startswith("starting: loading"):
        yield f'<progress max="1" value="{progress.share:.3f}" style="width:min(34em,100%)"></progress>'
    elif not progress.is_over:
        yield '<progress style="width:min(34em,100%)"></progress>'
    cells = [_cell(part.label, part.text) for part in progress_parts(progress)]
    if cells:
        yield f"<div {_FACTS}>{''.join(cells)}{sparkline_svg(progress.points)}</div>"
    if progress.detail:
        yield f'<p class="cl-soft"><code>{escape(_cut(one_line(progress.detail), 200))}</code></p>'
    if progress.checkpoint:
        yield f'<p class="cl-soft">{text_to_html(checkpoint_words(progress))}</p>'
    yield from (f"<p>{text_to_html(note)}</p>" for note in notes)


def _cell(label: str, text: str) -> str:
    lead = f'<span class="cl-soft">{text_to_html(label)}</span> ' if label else ""
    return f"<span {_FACT}>{lead}{text_to_html(text)}</span>"


def _summary_blocks(summary: RunSummary, png: bytes | None, notes: Sequence[str]) -> Iterator[str]:
    tint = _STATE_TINT.get(summary.state, "")
    word = (summary.state.value if summary.is_there else "gone").upper()
    tag = f'<span class="cl-tag {tint}">{word}</span>'
    yield f'<p class="cl-head">{tag}{text_to_html(summary_headline(summary))}</p>'
    cells = [_cell(label, text) for label, text in _pairs(summary)]
    if cells:
        yield f"<div {_FACTS}>{''.join(cells)}</div>"
    if summary.explanation is not None:
        yield _explained(summary.explanation)
    yield _curve(summary, png)
    yield from (f"<p>{text_to_html(note)}</p>" for note in [*notes, *_next_words(summary)])


def _curve(summary: RunSummary, png: bytes | None) -> str:
    progress = summary.progress
    if png is not None:
        about = escape(f"loss curve of {one_line(summary.id)}", quote=True)
        data = base64.b64encode(png).decode()
        style = "display:block;width:100%;max-width:560px;height:auto;border-radius:4px;margin:.5em 0"
        return f'<img alt="{about}" style="{style}" src="data:image/png;base64,{data}">'
    svg = curve_svg(progress.points, evaluations=progress.evaluations) if len(progress.points) > 1 else ""
    return f'<div style="margin:.5em 0">{svg}</div>' if svg else ""


def _explained(explanation: Explanation) -> str:
    rank = f" (rank {explanation.rank})" if explanation.rank is not None else ""
    parts = [f"<p><b>Why:</b> {text_to_html(explanation.means)}{rank}</p>"]
    parts += [f"<p>{text_to_html(detail)}</p>" for detail in explanation.details]
    if explanation.advice:
        items = "".join(
            f'<li style="display:list-item">{text_to_html(one)}</li>' for one in explanation.advice
        )
        parts.append(f'<p><b>What to do:</b></p><ul style="list-style:disc;padding-left:1.6em">{items}</ul>')
    lines = explanation.trace or ((explanation.line,) if explanation.line else ())
    if lines:
        trace = f"<pre>{escape(clean(chr(10).join(lines)))}</pre>"
        is_open = "" if explanation.is_known else " open"
        head = text_to_html(_cut(one_line(explanation.line), 160)) or "the end of the log"
        parts.append(f"<details{is_open}><summary>{head}</summary>{trace}</details>")
    parts.append(f'<p class="cl-soft">the whole log: <code>{escape(one_line(explanation.log))}</code></p>')
    return "".join(parts)
