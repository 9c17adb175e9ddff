from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from colablock.display.run_progress import (
    NotebookRunDisplay,
    PlainRunDisplay,
    RunDisplay,
    TerminalRunDisplay,
    run_display_for,
)
from colablock.errors import Unmet
from colablock.training.runs.folder import RunFolder, State
from colablock.training.runs.progress import Progress
from tests.support.run_summaries import LOADING, TRAINING, summary
from tests.support.runs import STARTED
from tests.support.screens import Clock, FakeShell, console, written

PNG = b"\x89PNG picture"


def at_step(step: int, **facts: object) -> Progress:
    return replace(TRAINING, step=step, **facts)  # type: ignore[arg-type]


def test_notebook_is_updated_at_most_five_times_a_second(tmp_path: Path) -> None:
    shell, clock = FakeShell(), Clock(STARTED)
    with NotebookRunDisplay(shell, title="tiny", draw=lambda: PNG, clock=clock, display_id="x") as display:
        display.update(LOADING)
        for step in range(100):
            clock.now += 0.05
            display.update(at_step(step))
        shown = len(shell.display_pub.sent)
        assert 20 <= shown <= 28
        display.note("a note")
        display.close(summary(State.DONE, tmp_path))
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


def test_display_that_is_left_shows_the_last_update() -> None:
    shell, clock = FakeShell(), Clock(STARTED)
    with NotebookRunDisplay(shell, clock=clock, display_id="x") as display:
        display.update(at_step(1))
        display.update(at_step(2))
    assert [line.split(",")[0] for line in shell.display_pub.plain()] == ["step 1/6000", "step 2/6000"]
    assert all(transient == {"display_id": "x"} for _, transient, _ in shell.display_pub.sent)
    assert shell.kernel.ends == []


def test_lost_notebook_does_not_stop_following() -> None:
    shell = FakeShell()
    shell.display_pub.is_broken = True
    with NotebookRunDisplay(shell, display_id="x") as display:
        display.update(TRAINING)
        display.note("x")
    assert shell.kernel.ends == []


def test_plain_lines_come_every_ten_seconds_and_with_each_checkpoint() -> None:
    to, clock = console(), Clock(STARTED)
    with PlainRunDisplay(to, clock=clock) as display:
        display.update(LOADING)
        for step in range(50):
            clock.now += 0.5
            display.update(at_step(step, checkpoints=int(step >= 45), checkpoint="checkpoint-45"))
        display.note("a note")
        display.update(at_step(50, checkpoints=2, checkpoint="checkpoint-50", stage="finishing: writing"))
        display.note("a long note " * 10)
        display.update(replace(TRAINING, state=State.DONE, stage="done", checkpoints=3))
    lines = written(to).splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line.split(",")[0] for line in lines]
    assert starts == [
        "starting: loading the model",
        "step 0/6000",
        "step 20/6000",
        "step 40/6000",
        "saved checkpoint-45: step 45/6000",
        "a note",
        "saved checkpoint-50: step 50/6000",
        "a long note a long note a long note a long note a long note a long note a long",
        "  note a long note a long note a long note",
        "saved checkpoint-1000",
    ]


@pytest.mark.parametrize("colour", [False, True])
def test_terminal_keeps_checkpoints_and_notes(colour: bool) -> None:
    system: Literal["standard"] | None = "standard" if colour else None
    to = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=system)
    with TerminalRunDisplay(to) as display:
        display.update(LOADING)
        display.update(at_step(10))
        display.update(at_step(20, checkpoint="checkpoint-20", checkpoints=3))
        display.note("a `note` of 20 [bold]words[/bold]")
        display.close()
        display.close()
    text = written(to)
    assert ("\x1b[3" in text) == colour  # only the live line has colours
    kept = [line for line in text.splitlines() if "saved" in line or "note" in line]
    # Lines that stay are unchanged: no number in them is coloured, and no bracket taken for markup.
    assert [re.sub(r"^(\x1b\[[\d;?]*[A-Zl]|\r)*", "", line) for line in kept] == [
        "saved checkpoint-1000",
        "saved checkpoint-20",
        "a `note` of 20 [bold]words[/bold]",
    ]


@pytest.mark.parametrize("kind", [PlainRunDisplay, TerminalRunDisplay])
def test_closed_stream_does_not_stop_following(kind: type[RunDisplay]) -> None:
    to = console(terminal=True)
    with kind(to) as display:  # type: ignore[call-arg]
        to.file.close()
        display.update(TRAINING)
        display.update(at_step(1300, checkpoints=3))
        display.note("x")


def test_svg_stays_if_no_png_can_be_drawn(tmp_path: Path) -> None:
    def draw() -> bytes:
        raise Unmet("no")

    shell = FakeShell()
    with NotebookRunDisplay(shell, draw=draw, display_id="x") as display:
        display.close(summary(State.DONE, tmp_path))
        display.close(summary(State.RUNNING, tmp_path, progress=TRAINING))
    assert len(shell.display_pub.sent) == 2
    assert all(transient == {"display_id": "x"} for _, transient, _ in shell.display_pub.sent)
    assert shell.kernel.ends == []
    assert "<svg" in str(shell.display_pub.sent[0][0]["text/html"])


@pytest.mark.parametrize("kind", [PlainRunDisplay, TerminalRunDisplay])
@pytest.mark.parametrize("writes_end", [True, False])
def test_end_is_written_unless_the_caller_does(
    kind: type[PlainRunDisplay | TerminalRunDisplay], writes_end: bool, tmp_path: Path
) -> None:
    to = console(terminal=True)
    with kind(to, writes_end=writes_end) as display:
        display.update(TRAINING)
        display.close(summary(State.DONE, tmp_path))
    assert ("tiny: done, 1200 steps" in written(to)) == writes_end


@pytest.mark.parametrize("kind", [PlainRunDisplay, TerminalRunDisplay, NotebookRunDisplay])
def test_the_end_of_a_call_from_python_is_in_its_words(kind: type[RunDisplay], tmp_path: Path) -> None:
    to, shell = console(terminal=True), FakeShell()
    is_cell = kind is NotebookRunDisplay
    display = NotebookRunDisplay(shell) if is_cell else kind(to, writes_end=True)  # type: ignore[call-arg]
    display.note("another `--output-dir` keeps both")
    display.close(summary(State.STOPPED, tmp_path))
    sent = shell.display_pub.sent
    for text in map(str, sent[-1][0].values()) if is_cell else [written(to)]:
        assert "fresh=True" in text
        assert "--fresh" not in text
    if not is_cell:  # in a cell the end takes the place of a note
        assert "another `output_dir=` keeps both" in written(to)


@pytest.mark.parametrize("kind", [PlainRunDisplay, TerminalRunDisplay])
def test_a_note_of_a_command_has_the_words_of_its_caller(
    kind: type[PlainRunDisplay | TerminalRunDisplay],
) -> None:
    to = console(terminal=True)
    to.program = "%colablock"  # type: ignore[attr-defined]
    kind(to).note("the run continues; `colablock runs follow x` shows it")
    assert written(to).strip() == "the run continues; `%colablock runs follow x` shows it"


def test_display_fits_the_place(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert type(run_display_for("x", folder, console=console(), quiet=True)) is RunDisplay
    assert type(run_display_for("x", folder)) is RunDisplay
    assert isinstance(run_display_for("x", folder, console=console(), environ={}), PlainRunDisplay)
    assert isinstance(run_display_for("x", folder, notebook=True, environ={"CI": "1"}), PlainRunDisplay)
    terminal = console(terminal=True)
    assert isinstance(
        run_display_for("x", folder, console=terminal, environ={"TERM": "xterm"}), TerminalRunDisplay
    )
    assert isinstance(run_display_for("x", folder, console=terminal, environ={"CI": "true"}), PlainRunDisplay)
    silent = RunDisplay()
    with silent:
        silent.update(TRAINING)
        silent.note("x")
