from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from colablock._common.text import memory_text
from colablock.display.training import (
    duration_text,
    loss_text,
    progress_line,
    progress_to_html,
    render_run,
    render_runs,
    render_summary,
    summary_headline,
    summary_text,
    summary_to_html,
)
from colablock.display.training_follow import (
    FollowView,
    NotebookFollow,
    PlainFollow,
    TerminalFollow,
    view_for,
)
from colablock.errors import Unmet
from colablock.training.runs.folder import RunFolder, State
from colablock.training.runs.loss_curve import Point
from colablock.training.runs.progress import Progress
from colablock.training.runs.summary import RunSummary, summary_of
from tests.support.html import body
from tests.support.runs import STARTED, a_run, events_of, record_of
from tests.support.screens import Clock, FakeShell, console, written

TRAINING = Progress(
    state=State.RUNNING,
    stage="training",
    step=1200,
    total=6000,
    loss=1.31,
    smooth_loss=1.2345,
    learning_rate=1.9e-4,
    tokens_per_second=3210.4,
    memory=10_200_000_000,
    seconds=180.0,
    seconds_left=725.0,
    checkpoint="checkpoint-1000",
    checkpoints=2,
    points=(Point(1, 6.0), Point(1200, 1.31)),
)
LOADING = Progress(
    state=State.RUNNING,
    stage="starting: loading the model",
    detail="Loading <checkpoint> shards: 50%",
    seconds=25.2,
)
PNG = b"\x89PNG picture"


def summary(state: State, path: Path, **facts: object) -> RunSummary:
    progress = replace(TRAINING, state=state, stage=state.value, seconds_left=None, seconds_in_all=300.0)
    usual: dict[str, object] = {
        "id": "tiny",
        "folder": path,
        "record": record_of(estimate=11_200_000_000),
        "progress": progress,
    }
    return RunSummary(**(usual | facts))  # type: ignore[arg-type]


@pytest.fixture
def failed(tmp_path: Path) -> RunSummary:
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. " + "And so on. " * 40
    text = f"Traceback (most recent call last):\n  File 'x'\n{error}"
    end = {"state": "failed", "error": error, "traceback": text}
    events = events_of([6.0, 5.0], total=9, save_every=2)
    folder = a_run(tmp_path / "tiny", events=events, end=end)
    (folder.path / "checkpoint-2").mkdir()
    return summary_of("tiny", folder)


@pytest.fixture
def strange(tmp_path: Path) -> RunSummary:
    text = "Traceback (most recent call last):\n  File '<x>'\nSomeError: <b>`why`\x1b[31m</b>"
    end = {"state": "failed", "error": text.splitlines()[-1], "traceback": text}
    return summary_of("<i>tiny</i>", a_run(tmp_path / "tiny", end=end, model="<script>"))


# Words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.34, "0.3 s"),
        (1.2, "1 s"),
        (59.4, "59 s"),
        (125, "2 min 5 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (11_530, "3 h 12 min"),
        (187_000, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (None, "-"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (0.0, "0.000"),
        (5.9421, "5.942"),
        (0.00213, "0.00213"),
        (12345.0, "1.23e+04"),
    ],
)
def test_losses(loss: float | None, text: str) -> None:
    assert loss_text(loss) == text


def test_memory_is_counted_as_torch_counts_it() -> None:
    assert memory_text(15_642_263_552) == "14.6 GiB"
    assert memory_text(450 << 20) == "450 MiB"


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (90, "step 1200/6000, loss 1.234, lr 1.9e-4, 3,210 tokens/s, 9.5 GiB, 12 min 5 s left"),
        (80, "step 1200/6000, loss 1.234, lr 1.9e-4, 3,210 tokens/s, 9.5 GiB, 12 min 5 s left"),
        (70, "step 1200/6000, loss 1.234, 3,210 tokens/s, 9.5 GiB, 12 min 5 s left"),
        (50, "step 1200/6000, loss 1.234, 12 min 5 s left"),
        (20, "step 1200/6000"),
        (8, "step 12…"),
    ],
)
def test_a_line_gives_way_by_what_matters_least(width: int, line: str) -> None:
    assert progress_line(TRAINING, width=width) == line


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (LOADING, "starting: loading the model, 25 s: Loading <checkpoint> shards: 50%"),
        (replace(LOADING, detail="", seconds=0.1), "starting: loading the model"),
        (replace(LOADING, detail="x" * 80), f"starting: loading the model, 25 s: {'x' * 44}…"),
        (replace(TRAINING, loss=math.nan, learning_rate=None), "step 1200/6000, loss nan, 3,210 tokens/s, "),
        (replace(TRAINING, stage="stopping at a checkpoint"), "stopping at a checkpoint: step 1200/6000, "),
        (Progress(state=State.PREPARED, stage="not started"), "not started"),
        (Progress(state=State.RUNNING, stage="training", step=3), "step 3"),
    ],
)
def test_what_a_line_says(progress: Progress, line: str) -> None:
    assert progress_line(progress).startswith(line)
    assert len(progress_line(progress)) <= 80


@pytest.mark.parametrize(
    ("state", "facts", "headline"),
    [
        (State.DONE, {}, "tiny: done, 1200 steps in 5 min 0 s, loss 6.000 -> 1.234"),
        (State.STOPPED, {}, "tiny: stopped at step 1200/6000 in 5 min 0 s, loss 6.000 -> 1.234"),
        (State.KILLED, {}, "tiny: was killed at step 1200/6000 in 5 min 0 s, loss 6.000 -> 1.234"),
        (
            State.FAILED,
            {"progress": Progress(state=State.FAILED, stage="failed")},
            "tiny: failed before the first step",
        ),
        (State.PREPARED, {"progress": Progress(state=State.PREPARED, stage="")}, "tiny: not started"),
        (State.PREPARED, {"record": None, "folder": Path("/gone")}, "tiny: its folder is gone (/gone)"),
        (State.RUNNING, {"progress": TRAINING}, "tiny: step 1200/6000, loss 1.234, lr 1.9e-4, "),
    ],
)
def test_headlines(state: State, facts: Mapping[str, object], headline: str, tmp_path: Path) -> None:
    assert summary_headline(summary(state, tmp_path, **facts)).startswith(headline)


# Text


def test_the_end_of_a_run_as_text(tmp_path: Path) -> None:
    ended = summary(State.STOPPED, tmp_path, adapter=tmp_path / "adapter")
    assert summary_text(ended).splitlines() == [
        "tiny: stopped at step 1200/6000 in 5 min 0 s, loss 6.000 -> 1.234",
        "  speed 3,210 tokens/s; card memory 9.5 GiB at the peak (estimated 10.4 GiB);",
        "  checkpoint checkpoint-1000, 2 saves in all",
        f"what was learnt: {tmp_path / 'adapter'}",
        "the same call again goes on from checkpoint-1000",
    ]


def test_a_failure_as_text_says_what_to_do(failed: RunSummary) -> None:
    to = console()
    render_summary(failed, to)
    text = written(to)
    assert "why: the card ran out of memory\n" in text
    assert "  - Set `micro_batch_size: 1` (now 4), and" in text
    assert "the same call again goes on from checkpoint-2\n" in text
    assert f"the whole log: {failed.folder / 'log.txt'}" in text
    assert "And so on. And so on" in text
    assert text.count("And so on") < 20
    assert "Traceback" not in text
    render_summary(failed, to, verbose=True)
    assert "Traceback" in written(to)
    assert all(len(line) <= 80 or len(line.split()) == 1 or "log.txt" in line for line in text.splitlines())


def test_an_unknown_failure_as_text_shows_its_traceback(strange: RunSummary) -> None:
    text = summary_text(strange)
    assert "  SomeError: <b>`why`</b>" in text.splitlines()
    assert "what to do" not in text
    assert "\x1b" not in text


def test_everything_about_a_run(tmp_path: Path) -> None:
    ended = summary(State.DONE, a_run(tmp_path / "tiny", log="x").path)
    to = console()
    render_run(ended, to)
    text = written(to)
    assert "  matrix     qlora-2026, lock ab12cd34ef56\n" in text
    assert "  started    2026-09-21 14:13 UTC\n" in text
    assert "sequence_len" not in text
    render_run(ended, to, verbose=True)
    lines = [line.split() for line in written(to).splitlines()]
    assert ["sequence_len", "1024"] in lines
    assert ["gradient_checkpointing", "true"] in lines


def test_the_list_fits_its_terminal(tmp_path: Path) -> None:
    long = record_of(model="some/a-model-whose-name-is-much-too-long-for-a-terminal-of-eighty-columns")
    found = [
        summary(State.DONE, tmp_path, record=long),
        summary(State.PREPARED, tmp_path, id="gone", record=None),
    ]
    to = console()
    render_runs(found, to)
    head, first, second = written(to).splitlines()
    assert head.split() == ["run", "state", "step", "loss", "started", "model"]
    assert first.startswith("tiny  done   1200/6000  1.234  09-21 14:13  a-model-whose")
    assert first.endswith("…")
    assert len(first) == 80
    assert second.split()[:2] == ["gone", "gone"]
    narrow = console(width=50)
    render_runs(found, narrow)
    assert "model" not in written(narrow)
    nothing = console()
    render_runs([], nothing)
    assert written(nothing) == "no run was started here\n"


# HTML


def test_progress_as_html_has_a_bar_and_a_small_curve() -> None:
    html = progress_to_html(TRAINING, title="tiny")
    block = body(html)
    assert block.one("progress").attributes["value"] == "0.200"
    assert len(block.all("polyline")) == 1
    for words in (
        "tiny",
        "training, 3 min 0 s",
        "step 1200/6000",
        "12 min 5 s left",
        "saved checkpoint-1000",
    ):
        assert words in block.text
    assert "src=" not in html


def test_while_it_loads_the_bar_has_no_end() -> None:
    block = body(progress_to_html(LOADING, title="tiny"))
    assert "value" not in block.one("progress").attributes
    assert block.one("code").text == "Loading <checkpoint> shards: 50%"


def test_the_end_of_a_run_as_html_holds_its_curve(tmp_path: Path) -> None:
    ended = summary(State.DONE, tmp_path)
    html = summary_to_html(ended, png=PNG)
    (data,) = re.findall(r'<img alt="loss curve of tiny" [^>]*src="data:image/png;base64,([^"]+)">', html)
    assert base64.b64decode(data) == PNG
    block = body(summary_to_html(ended, notes=["a `note`"]))
    assert len(block.all("svg")) == 1
    assert [one.text for one in block.all("code")] == ["note"]
    assert body(summary_to_html(replace(ended, progress=TRAINING))).all("progress")


def test_a_failure_as_html_says_what_to_do(failed: RunSummary) -> None:
    block = body(summary_to_html(failed))
    assert block.one("span", "cl-bad").text == "FAILED"
    assert len(block.all("li")) == 3
    assert "open" not in block.one("details").attributes


def test_nothing_of_a_run_is_taken_for_html(strange: RunSummary) -> None:
    for html in (
        summary_to_html(strange),
        progress_to_html(replace(LOADING, stage="<i>x</i>"), title="<i>x</i>", notes=["<i>x</i>"]),
    ):
        block = body(html)
        assert not any(block.all(tag) for tag in ("i", "script", "img"))
        assert "<" in block.text
    assert "open" in body(summary_to_html(strange)).one("details").attributes


# Views


def at_step(step: int, **facts: object) -> Progress:
    return replace(TRAINING, step=step, **facts)  # type: ignore[arg-type]


def test_a_notebook_is_updated_at_most_five_times_a_second(tmp_path: Path) -> None:
    shell, clock = FakeShell(), Clock(STARTED)
    with NotebookFollow(shell, title="tiny", draw=lambda: PNG, clock=clock, display_id="x") as view:
        view.update(LOADING)
        for step in range(100):
            clock.now += 0.05
            view.update(at_step(step))
        shown = len(shell.display_pub.sent)
        assert 20 <= shown <= 28
        view.note("a note")
        view.close(summary(State.DONE, tmp_path))
    sent = shell.display_pub.sent
    assert [update for _, _, update in sent] == [False] + [True] * (len(sent) - 1)
    assert all(transient == {"display_id": "x"} for _, transient, _ in sent)
    assert len(sent) == shown + 3
    assert "<svg" in str(sent[-2][0]["text/html"])
    assert "data:image/png" in str(sent[-1][0]["text/html"])
    assert shell.display_pub.plain()[-1].splitlines()[0].startswith("tiny: done")
    assert "a note" in shell.display_pub.plain()[-3]
    assert "a note" not in shell.display_pub.plain()[-1]
    assert shell.kernel.ends == []


def test_a_view_that_is_left_shows_what_came_last() -> None:
    shell, clock = FakeShell(), Clock(STARTED)
    with NotebookFollow(shell, clock=clock, display_id="x") as view:
        view.update(at_step(1))
        view.update(at_step(2))
    assert [line.split(",")[0] for line in shell.display_pub.plain()] == ["step 1/6000", "step 2/6000"]
    assert all(transient == {"display_id": "x"} for _, transient, _ in shell.display_pub.sent)
    assert shell.kernel.ends == []


def test_a_lost_notebook_stops_nothing() -> None:
    shell = FakeShell()
    shell.display_pub.is_broken = True
    with NotebookFollow(shell, display_id="x") as view:
        view.update(TRAINING)
        view.note("x")
    assert shell.kernel.ends == []


def test_plain_lines_come_every_ten_seconds_and_with_each_checkpoint() -> None:
    to, clock = console(), Clock(STARTED)
    with PlainFollow(to, clock=clock) as view:
        view.update(LOADING)
        for step in range(50):
            clock.now += 0.5
            view.update(at_step(step, checkpoints=int(step >= 45), checkpoint="checkpoint-45"))
        view.note("a note")
        view.update(replace(TRAINING, state=State.DONE, stage="done"))
    lines = written(to).splitlines()
    starts = [line.split(",")[0] for line in lines]
    assert starts == [
        "starting: loading the model",
        "step 0/6000",
        "step 20/6000",
        "step 40/6000",
        "saved checkpoint-45: step 45/6000",
        "a note",
        "saved checkpoint-1000",
    ]


@pytest.mark.parametrize("colour", [False, True])
def test_a_terminal_keeps_checkpoints_and_notes(colour: bool) -> None:
    system: Literal["standard"] | None = "standard" if colour else None
    to = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=system)
    with TerminalFollow(to) as view:
        view.update(LOADING)
        view.update(at_step(10))
        view.update(at_step(20, checkpoint="checkpoint-20", checkpoints=3))
        view.note("a `note` of 20 [bold]words[/bold]")
        view.close()
        view.close()
    text = written(to)
    assert ("\x1b[3" in text) == colour  # the live line is drawn in what colour there is
    kept = [line for line in text.splitlines() if "saved" in line or "note" in line]
    # What stays is read as it was told: no number in it is coloured, and no bracket taken for markup.
    assert [re.sub(r"^(\x1b\[[\d;?]*[A-Zl]|\r)*", "", line) for line in kept] == [
        "saved checkpoint-1000",
        "saved checkpoint-20",
        "a `note` of 20 [bold]words[/bold]",
    ]


@pytest.mark.parametrize("kind", [PlainFollow, TerminalFollow])
def test_a_closed_stream_stops_nothing(kind: type[FollowView]) -> None:
    to = console(terminal=True)
    with kind(to) as view:  # type: ignore[call-arg]
        to.file.close()
        view.update(TRAINING)
        view.update(at_step(1300, checkpoints=3))
        view.note("x")


def test_where_nothing_draws_a_png_the_svg_stays(tmp_path: Path) -> None:
    def draw() -> bytes:
        raise Unmet("no")

    shell = FakeShell()
    with NotebookFollow(shell, draw=draw, display_id="x") as view:
        view.close(summary(State.DONE, tmp_path))
        view.close(summary(State.RUNNING, tmp_path, progress=TRAINING))
    assert len(shell.display_pub.sent) == 2
    assert all(transient == {"display_id": "x"} for _, transient, _ in shell.display_pub.sent)
    assert shell.kernel.ends == []
    assert "<svg" in str(shell.display_pub.sent[0][0]["text/html"])


@pytest.mark.parametrize("kind", [PlainFollow, TerminalFollow])
@pytest.mark.parametrize("tells_end", [True, False])
def test_the_end_is_written_where_nobody_else_does(
    kind: type[PlainFollow | TerminalFollow], tells_end: bool, tmp_path: Path
) -> None:
    to = console(terminal=True)
    with kind(to, tells_end=tells_end) as view:
        view.update(TRAINING)
        view.close(summary(State.DONE, tmp_path))
    assert ("tiny: done, 1200 steps" in written(to)) == tells_end


def test_the_view_is_that_of_where_one_looks(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert type(view_for("x", folder, console=console(), quiet=True)) is FollowView
    assert type(view_for("x", folder)) is FollowView
    assert isinstance(view_for("x", folder, console=console(), environ={}), PlainFollow)
    assert isinstance(view_for("x", folder, notebook=True, environ={"CI": "1"}), PlainFollow)
    terminal = console(terminal=True)
    assert isinstance(view_for("x", folder, console=terminal, environ={"TERM": "xterm"}), TerminalFollow)
    assert isinstance(view_for("x", folder, console=terminal, environ={"CI": "true"}), PlainFollow)
    silent = FollowView()
    with silent:
        silent.update(TRAINING)
        silent.note("x")
