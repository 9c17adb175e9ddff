from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from rich.console import Console

from colablock.display.progress import (
    LiveReporter,
    NotebookReporter,
    PlainReporter,
    TerminalReporter,
    reporter_for,
)
from tests.support.screens import Clock, FakeShell, console, stripped, written

pytestmark = pytest.mark.requirements


def work(reporter: LiveReporter, clock: Clock) -> None:
    with reporter:
        reporter.stage("Resolving demo for Python 3.12")
        for number, name in enumerate(["torch", "numpy"]):
            clock.now += 1
            reporter.resolving(name, number + 1)
        reporter.note("no `+cpu` wheel [of torch] was found")
        reporter.fetch_started(2, 90_000_000)
        clock.now += 6
        reporter.fetched("torch.whl", 60_000_000)
        clock.now += 3
        reporter.fetched("numpy.whl", 30_000_000)
        reporter.fetch_finished()
        reporter.stage("Putting 2 distributions in place")
        reporter.step("install torch", 1, 2)
        clock.now += 1
        reporter.step("install numpy", 2, 2)


def test_progress_without_a_terminal_is_plain_lines() -> None:
    to, clock = console(), Clock(100.0)
    work(PlainReporter(to, clock=clock), clock)
    assert stripped(to) == (
        "Resolving demo for Python 3.12\n"
        "note: no `+cpu` wheel [of torch] was found\n"
        "Resolving demo for Python 3.12: 2 resolved, 2.0 s\n"
        "Fetching 2 files - 90 MB\n"
        "  Fetching 2 files - 60 MB of 90 MB, 10 MB/s - torch.whl\n"
        "  90 MB, 10 MB/s, 9.0 s\n"
        "Putting 2 distributions in place\n"
        "  2 of 2, 1.0 s\n"
    )


def test_terminal_keeps_the_result_of_each_stage() -> None:
    to, clock = console(colour=True), Clock(100.0)
    work(TerminalReporter(to, clock=clock), clock)
    shown = written(to)
    assert "\x1b[?25l" in shown  # the cursor is hidden while it draws
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    for line in (
        "Resolving demo for Python 3.12: 2 resolved, 2.0 s\n",
        "note: no `+cpu` wheel [of torch] was found\n",
        "Fetching 2 files: 90 MB, 10 MB/s, 9.0 s\n",
        "Putting 2 distributions in place: 2 of 2, 1.0 s\n",
    ):
        assert line in shown


def test_stopped_stage_is_reported() -> None:
    to, clock = console(), Clock(100.0)
    reporter = PlainReporter(to, clock=clock)
    reporter.stage("Proving demo")
    reporter.step("import torch", 1, 3)
    with pytest.raises(KeyError), reporter:
        raise KeyError
    assert stripped(to) == "Proving demo\n  stopped after 1 of 3, 0.0 s\n"


def test_steps_in_bytes_have_their_unit_and_no_unit_is_broken_off() -> None:
    to, clock = console(width=49), Clock(100.0)
    with PlainReporter(to, clock=clock) as reporter:
        reporter.stage("Packing 7 files into a bundle of the stack")
        reporter.note("a note")
        reporter.step("Packing a", 1_200_000, 4_300_000, is_sized=True)
        reporter.step("Packing a", 4_300_000, 4_300_000, is_sized=True)
        reporter.stage("Undoing")
        reporter.step("Undid change 1", 1, 1)
    assert stripped(to) == (
        "Packing 7 files into a bundle of the stack\n"
        "note: a note\n"
        "Packing 7 files into a bundle of the stack:\n"
        "  4.3 MB, 0.0 s\n"
        "Undoing\n"
        "  1 of 1, 0.0 s\n"
    )


@pytest.mark.parametrize("kind", [PlainReporter, TerminalReporter])
def test_closed_stream_does_not_stop_the_work(kind: type[PlainReporter | TerminalReporter]) -> None:
    to, clock = console(colour=kind is TerminalReporter), Clock(100.0)
    to.file.close()
    work(kind(to, clock=clock), clock)


def test_reporter_is_thread_safe() -> None:
    to = console()
    reporter = PlainReporter(to)
    reporter.fetch_started(8, 8000)

    def fetch(number: int) -> None:
        for _ in range(100):
            reporter.fetched(f"{number}.whl", 10)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.close()
    assert "  8.0 kB, " in stripped(to)


@pytest.mark.parametrize(
    ("environ", "terminal", "options", "kind"),
    [
        ({}, True, {}, TerminalReporter),
        ({"NO_COLOR": "1"}, True, {}, TerminalReporter),
        ({"CI": "false"}, True, {}, TerminalReporter),
        ({"CI": "true"}, True, {}, PlainReporter),
        ({}, False, {}, PlainReporter),
        ({}, True, {"progress": False}, PlainReporter),
        ({}, True, {"quiet": True}, LiveReporter),
        ({}, True, {"notebook": True}, TerminalReporter),  # no kernel runs here
    ],
)
def test_reporter_fits_the_console(
    environ: dict[str, str], *, terminal: bool, options: dict[str, Any], kind: type[LiveReporter]
) -> None:
    to = Console(file=io.StringIO(), force_terminal=terminal, _environ={"TERM": "xterm"})
    assert type(reporter_for(to, environ=environ, **options)) is kind


def test_without_a_console_it_is_silent() -> None:
    reporter = reporter_for(None)
    work(reporter, Clock(100.0))
    assert type(reporter) is LiveReporter


def test_rich_is_loaded_only_to_draw() -> None:
    modules = "sys, colablock.display.progress, colablock.display.notebook, colablock.cli.notebook_magics"
    code = f"import {modules}; print({{'rich', 'IPython'}} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


# In a notebook


def test_one_output_is_updated_and_ends_as_one_line() -> None:
    shell, clock = FakeShell(), Clock()
    with NotebookReporter(shell, clock=clock, display_id="x") as reporter:
        reporter.stage("Resolving <demo>")
        clock.now = 1.0
        reporter.resolving("torch", 3)
        reporter.note("a note")
        reporter.fetch_started(1, 100)
        clock.now = 2.0
        reporter.fetched("torch.whl", 50)
    sent = shell.display_pub.sent
    assert [update for _, _, update in sent] == [False] + [True] * (len(sent) - 1)
    assert {str(transient["display_id"]) for _, transient, _ in sent} == {"x"}
    fetched = "Fetching 1 file: 50 bytes, 50 bytes/s, 1.0 s"
    assert shell.display_pub.plain() == [
        "Resolving <demo>",
        "Resolving <demo>: 3 resolved - torch",
        "Resolving <demo>: 3 resolved - torch\nnote: a note",
        "Fetching 1 file: 100 bytes\nnote: a note",
        "Fetching 1 file: 50 bytes of 100 bytes, 50 bytes/s - torch.whl\nnote: a note",
        f"Done in 2.0 s: Resolving <demo>: 3 resolved, 1.0 s; {fetched}\nnote: a note",
    ]
    assert "Resolving &lt;demo&gt;" in sent[0][0]["text/html"]
    assert 'value="0.500"' in sent[-2][0]["text/html"]
    assert "<progress" not in sent[-1][0]["text/html"]


def test_updates_come_at_most_five_times_a_second() -> None:
    shell, clock = FakeShell(), Clock()
    with NotebookReporter(shell, clock=clock) as reporter:
        reporter.fetch_started(1, 1000)
        for _ in range(1000):
            clock.now += 0.002
            reporter.fetched("x.whl", 1)
    assert 10 <= len(shell.display_pub.sent) <= 12


def test_failure_leaves_the_stopped_stage() -> None:
    shell, clock = FakeShell(), Clock()
    reporter = NotebookReporter(shell, clock=clock)
    reporter.stage("Proving demo")
    clock.now = 3.0
    with pytest.raises(KeyError), reporter:
        raise KeyError
    assert shell.display_pub.plain()[-1] == "Stopped in 3.0 s: Proving demo: stopped after 3.0 s"


@pytest.mark.parametrize(
    ("stage", "seconds", "left"),
    [
        (None, 3.0, "note: a note"),  # nothing had been started
        ("Checking the call", 0.01, "note: a note"),
        ("Checking the call", 1.0, "Stopped in 1.0 s: Checking the call: stopped after 1.0 s\nnote: a note"),
    ],
)
def test_a_fault_of_the_call_itself_stops_nothing(stage: str | None, seconds: float, left: str) -> None:
    shell, clock = FakeShell(), Clock()
    with pytest.raises(KeyError), NotebookReporter(shell, clock=clock) as reporter:
        if stage:
            reporter.stage(stage)
        reporter.note("a note")
        clock.now = seconds
        raise KeyError
    assert shell.display_pub.plain()[-1] == left


@pytest.mark.parametrize(("program", "said"), [(None, "`fresh=True`"), ("%colablock", "`--fresh`")])
def test_a_note_is_in_the_words_of_the_caller(program: str | None, said: str) -> None:
    shell = FakeShell()
    with NotebookReporter(shell, clock=Clock(), program=program) as reporter:
        reporter.note("the run is done: `--fresh` trains again")
    assert shell.display_pub.plain()[0] == f"note: the run is done: {said} trains again"


def test_lost_notebook_does_not_stop_the_work() -> None:
    shell = FakeShell()
    with NotebookReporter(shell, clock=Clock()) as reporter:
        reporter.stage("one")
        shell.display_pub.is_broken = True
        reporter.stage("two")
        reporter.note("three")
    assert shell.display_pub.plain() == ["one"]


def test_without_work_there_is_no_output() -> None:
    shell = FakeShell()
    with NotebookReporter(shell, clock=Clock()):
        pass
    assert shell.display_pub.sent == []


def test_an_interrupt_at_the_end_of_a_live_line_stays_on_it() -> None:
    """A terminal writes ``^C`` where the line ends, and the line is erased as one."""
    to = console(terminal=True)
    with TerminalReporter(to) as reporter:
        reporter.stage("Building an environment of 51 distributions")
        reporter.step("Staging wheels of a long name that needs all the room there is", 13, 51)
    lines = re.split(r"[\r\n]+|\x1b\[[\d;?]*[A-Za-z]", written(to))
    assert 60 < max(map(len, lines)) <= 80 - len("^C")
