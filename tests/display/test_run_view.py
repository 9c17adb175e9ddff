from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from colablock._common.text import memory_text
from colablock.display.html import to_html
from colablock.display.run_view import (
    duration_text,
    loss_text,
    progress_document,
    progress_line,
    run_document,
    runs_document,
    summary_document,
    summary_headline,
)
from colablock.display.text import render, to_text
from colablock.display.view import Bar
from colablock.training.runs.folder import State
from colablock.training.runs.progress import Progress
from colablock.training.runs.summary import RunSummary, summary_of
from tests.support.html import body
from tests.support.run_summaries import LOADING, TRAINING, summary
from tests.support.runs import events_of, make_record, make_run
from tests.support.screens import console, written

PNG = b"\x89PNG picture"


@pytest.fixture
def failed(tmp_path: Path) -> RunSummary:
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. " + "And so on. " * 40
    text = f"Traceback (most recent call last):\n  File 'x'\n{error}"
    end = {"state": "failed", "error": error, "traceback": text}
    events = events_of([6.0, 5.0], total=9, save_every=2)
    folder = make_run(tmp_path / "tiny", events=events, end=end)
    (folder.path / "checkpoint-2").mkdir()
    return summary_of("tiny", folder)


@pytest.fixture
def strange(tmp_path: Path) -> RunSummary:
    text = "Traceback (most recent call last):\n  File '<x>'\nSomeError: <b>`why`\x1b[31m</b>"
    end = {"state": "failed", "error": text.splitlines()[-1], "traceback": text}
    return summary_of("<i>tiny</i>", make_run(tmp_path / "tiny", end=end, model="<script>"))


# Numbers and lines


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
def test_duration_text(seconds: float, text: str) -> None:
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
def test_loss_text(loss: float | None, text: str) -> None:
    assert loss_text(loss) == text


def test_memory_is_in_binary_units() -> None:
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
def test_narrow_line_drops_the_least_important_facts(width: int, line: str) -> None:
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
def test_progress_line(progress: Progress, line: str) -> None:
    assert progress_line(progress).startswith(line)
    assert len(progress_line(progress)) <= 80


@pytest.mark.parametrize(
    "stage",
    [
        LOADING.stage,
        "starting: waiting for the other hosts at `10.0.0.1`",
        "running: the host `10.0.0.1` shows the steps",
    ],
)
def test_no_bar_shows_the_steps_of_an_earlier_start(stage: str) -> None:
    """This start has taken none that this host knows of."""
    shown = progress_document(replace(TRAINING, stage=stage))
    assert [block for block in shown.blocks if isinstance(block, Bar)] == [Bar(None)]


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
        (
            State.PREPARED,
            {"record": None, "folder": Path("/gone")},
            "tiny: its folder no longer exists (/gone)",
        ),
        (State.RUNNING, {"progress": TRAINING}, "tiny: step 1200/6000, loss 1.234, lr 1.9e-4, "),
    ],
)
def test_summary_headline(state: State, facts: Mapping[str, object], headline: str, tmp_path: Path) -> None:
    assert summary_headline(summary(state, tmp_path, **facts)).startswith(headline)


def test_a_host_that_writes_no_steps_shows_none(tmp_path: Path) -> None:
    """Of several hosts, only the first writes them."""
    done = Progress(state=State.DONE, stage="done")
    assert summary_headline(summary(State.DONE, tmp_path, progress=done)) == "tiny: done"


# Text


def test_ended_run_as_text(tmp_path: Path) -> None:
    ended = summary(State.STOPPED, tmp_path, adapter=tmp_path / "adapter")
    assert to_text(summary_document(ended)).splitlines() == [
        "tiny: stopped at step 1200/6000 in 5 min 0 s, loss 6.000 -> 1.234",
        "  speed 3,210 tokens/s; GPU memory 9.5 GiB at the peak (estimated 10.4 GiB);",
        "  checkpoint checkpoint-1000, 2 saves in all",
        f"adapter: {tmp_path / 'adapter'}",
        "resume: the same call continues from checkpoint-1000; with `--fresh` it starts",
        "        again",
    ]


def test_the_way_to_the_first_step_is_shown(tmp_path: Path) -> None:
    beginning = {"facts": 6.12, "tokens": 0.4, "launch": 3.0, "load": 75.0, "first step": 0.04}
    ended = summary(State.DONE, tmp_path, progress=replace(TRAINING, beginning=beginning))
    words = (
        "first step 1 min 25 s after the call: looking at the stack 6.1 s, tokens 0.4 s, launch 3.0 s,"
        " loading the model 1 min 15 s,"
    )
    assert words in " ".join(to_text(summary_document(ended)).split())


def test_known_failure_as_text_says_what_to_do(failed: RunSummary) -> None:
    to = console()
    render(summary_document(failed), to)
    text = written(to)
    assert "Why: the card ran out of memory\n" in text
    assert "  - Set `micro_batch_size: 1` (now 4), and" in text
    assert "resume: the same call continues from checkpoint-2; with `--fresh` it starts\n" in text
    assert f"log: {failed.folder / 'log.txt'}" in text
    assert "And so on. And so on" in text
    assert text.count("And so on") < 20
    assert "Traceback" not in text
    render(summary_document(failed), to, verbose=True)
    assert "Traceback" in written(to)
    assert all(len(line) <= 80 or len(line.split()) == 1 or "log.txt" in line for line in text.splitlines())


def test_unknown_failure_as_text_shows_its_traceback(strange: RunSummary) -> None:
    text = to_text(summary_document(strange))
    assert "    SomeError: <b>`why`</b>" in text.splitlines()
    assert "what to do" not in text
    assert "\x1b" not in text


def test_view_of_one_run(tmp_path: Path) -> None:
    ended = summary(State.DONE, make_run(tmp_path / "tiny", log="x").path)
    to = console()
    render(run_document(ended), to)
    text = written(to)
    assert "  matrix     qlora-2026, lock ab12cd34ef56\n" in text
    assert "  started    2026-09-21 14:13 UTC\n" in text
    assert "sequence_len" not in text
    render(run_document(ended), to, verbose=True)
    lines = [line.split() for line in written(to).splitlines()]
    assert ["sequence_len", "1024"] in lines
    assert ["gradient_checkpointing", "true"] in lines


def test_list_of_runs_fits_the_terminal(tmp_path: Path) -> None:
    long = make_record(model="some/a-model-whose-name-is-much-too-long-for-a-terminal-of-eighty-columns")
    found = [
        summary(State.DONE, tmp_path, record=long),
        summary(State.PREPARED, tmp_path, id="gone", record=None),
    ]
    to = console()
    render(runs_document(found), to)
    head, first, second = written(to).splitlines()
    assert head.split() == ["run", "state", "step", "loss", "started", "model"]
    assert first.startswith("tiny  done   1200/6000  1.234  09-21 14:13  a-model-whose")
    assert first.endswith("…")
    assert len(first) == 80
    assert second.split()[:2] == ["gone", "gone"]
    narrow = console(width=50)
    render(runs_document(found), narrow)
    assert "model" not in written(narrow)
    nothing = console()
    render(runs_document([]), nothing)
    assert written(nothing) == "no runs yet\n"


# HTML


def test_progress_as_html_has_a_bar_and_a_small_curve() -> None:
    html = to_html(progress_document(TRAINING, title="tiny"))
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


def test_bar_has_no_end_while_the_model_loads() -> None:
    block = body(to_html(progress_document(LOADING, title="tiny")))
    assert "value" not in block.one("progress").attributes
    assert block.one("code").text == "Loading <checkpoint> shards: 50%"


def test_ended_run_as_html_has_a_loss_curve(tmp_path: Path) -> None:
    ended = summary(State.DONE, tmp_path)
    html = to_html(summary_document(ended, png=PNG))
    (data,) = re.findall(r'<img alt="loss curve of tiny" src="data:image/png;base64,([^"]+)">', html)
    assert base64.b64decode(data) == PNG
    block = body(to_html(summary_document(ended, notes=["a `note`"])))
    assert len(block.all("svg")) == 1
    assert [one.text for one in block.all("code")] == ["note"]
    assert body(to_html(summary_document(replace(ended, progress=TRAINING)))).all("progress")


def test_known_failure_as_html_says_what_to_do(failed: RunSummary) -> None:
    block = body(to_html(summary_document(failed)))
    assert block.one("span", "cl-bad").text == "FAILED"
    assert len(block.all("li")) == 3
    assert ["open" in one.attributes for one in block.all("details")] == [True, False]


def test_text_of_a_run_is_escaped(strange: RunSummary) -> None:
    for html in (
        to_html(summary_document(strange)),
        to_html(progress_document(replace(LOADING, stage="<i>x</i>"), title="<i>x</i>", notes=["<i>x</i>"])),
    ):
        block = body(html)
        assert not any(block.all(tag) for tag in ("i", "script", "img"))
        assert "<" in block.text
    assert ["open" in one.attributes for one in body(to_html(summary_document(strange))).all("details")] == [
        True,
        True,
    ]
