from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.display.run_view import progress_line
from colablock.training.runs.folder import RunFolder, State
from colablock.training.runs.progress import LOADING, STOPPING, Progress, ProgressTotals, follow, last_line
from colablock.training.runs.progress import progress_of as progress_of_events
from colablock.training.runs.summary import summary_of, watch
from colablock.training.scripts.ranks import start_time_of
from tests.support.runs import STARTED, add_events, events_of, make_record, make_run, sleeping_process, train

SOON = 0.01


class KeptView:
    """A view that records what it shows."""

    def __init__(self) -> None:
        self.shown: list[Progress] = []
        self.notes: list[str] = []

    def update(self, progress: Progress) -> None:
        self.shown.append(progress)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunFolder]:
    """Return a running run without events."""
    with sleeping_process() as process:
        yield make_run(tmp_path / "run", **process)


def told(folder: RunFolder) -> Iterator[Progress]:
    """Follow the run without waiting, at a fixed time."""
    return follow(folder, clock=lambda: STARTED + 30, sleep=lambda _: None)


def progress_of(events: list[dict[str, Any]], state: State = State.RUNNING, **options: Any) -> Progress:
    totals = ProgressTotals()
    for event in events:
        totals.add(event)
    return totals.progress(state, stage="training", **options)


# A run of a real child


def test_a_run_is_followed_until_its_end(tmp_path: Path) -> None:
    with train(tmp_path / "run", waits=True, is_held=True) as (folder, _):
        seen = []
        for progress in follow(folder, poll=SOON):
            seen.append(progress)
            if progress.detail:
                (folder.path / "go").touch()
            if progress.stage == "training":
                (folder.path / "gate").unlink(missing_ok=True)
    first = next(one for one in seen if one.detail)
    assert (first.stage, first.detail) == (LOADING, "Loading checkpoint shards: 100%")
    assert first.step == 0
    assert {one.stage for one in seen} >= {LOADING, "training", "done"}
    assert [one.step for one in seen] == sorted(one.step for one in seen)
    last = seen[-1]
    assert (last.state, last.is_over, last.step, last.total, last.share) == (State.DONE, True, 30, 30, 1.0)
    assert [point.step for point in last.points] == list(range(1, 31))
    assert (last.loss, last.learning_rate, last.memory) == (5.0, 1e-4, 2**30 + 30)
    assert (last.checkpoint, last.checkpoints) == ("checkpoint-30", 3)
    assert last.tokens == 3000
    assert last.tokens_per_second == pytest.approx(3000 / last.seconds)
    assert last.seconds_left is None


def test_following_ends_when_a_run_is_killed(tmp_path: Path) -> None:
    with train(tmp_path / "run", steps=100_000) as (folder, child):
        for progress in follow(folder, poll=SOON):
            if progress.step >= 2:
                child.send_signal(signal.SIGKILL)
    assert (progress.state, progress.stage) == (State.KILLED, "killed")
    assert progress.step >= 2


def test_an_interrupt_requests_a_stop(tmp_path: Path) -> None:
    view = KeptView()

    def update(progress: Progress) -> None:
        KeptView.update(view, progress)
        if progress.stage == STOPPING:
            (tmp_path / "run" / "gate").unlink(missing_ok=True)
        if progress.step >= 3 and not view.notes:
            raise KeyboardInterrupt

    view.update = update  # type: ignore[method-assign]
    with train(tmp_path / "run", steps=100_000, is_held=True) as (folder, _):
        summary = watch("run", folder, view, poll=SOON)
    assert summary.state is State.STOPPED
    assert summary.explanation is None
    assert summary.progress.checkpoint == f"checkpoint-{summary.progress.step}"
    assert any(one.stage == STOPPING for one in view.shown)
    assert view.shown[-1].state is State.STOPPED
    (note,) = view.notes
    assert "interrupt again" in note


def test_a_second_interrupt_stops_waiting(running: RunFolder) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    view = KeptView()
    assert watch("tiny $1", running, view, sleep=interrupt).state is State.RUNNING
    assert running.stop_file.exists()
    asked, left = view.notes
    assert "interrupt again" in asked
    assert "`colablock runs follow 'tiny $1'`" in left
    assert "`colablock.attach('tiny $1')`" in left


def test_an_interrupt_after_the_end_leaves_no_stop_request(running: RunFolder) -> None:
    def end(_: float) -> None:
        running.end_file.write_text('{"state": "done"}')
        running.write_record(make_record(id="run"))
        raise KeyboardInterrupt

    view = KeptView()
    assert watch("tiny", running, view, sleep=end).state is State.DONE
    assert not running.stop_file.exists()
    assert view.notes == []


def test_an_interrupt_after_the_folder_is_deleted_ends_the_watch(running: RunFolder) -> None:
    def clear(_: float) -> None:
        shutil.rmtree(running.path)
        raise KeyboardInterrupt

    assert watch("tiny", running, KeptView(), sleep=clear).state is State.PREPARED


def test_an_interrupt_by_a_kernel_restart_requests_no_stop(running: RunFolder) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    view = KeptView()
    summary = watch("tiny", running, view, is_leaving=lambda: True, sleep=interrupt)
    assert summary.state is State.RUNNING
    assert not running.stop_file.exists()
    assert "the run continues" in view.notes[-1]


def test_a_second_interrupt_during_the_check_comes_from_the_user(running: RunFolder) -> None:
    def interrupt(_: float = 0.0) -> bool:
        raise KeyboardInterrupt

    assert watch("tiny", running, KeptView(), is_leaving=interrupt, sleep=interrupt).state is State.RUNNING
    assert running.stop_file.exists()


def test_an_interrupt_of_a_watch_without_stops_requests_no_stop(running: RunFolder) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    view = KeptView()
    summary = watch("tiny", running, view, stops=False, sleep=interrupt)
    assert summary.state is State.RUNNING
    assert not running.stop_file.exists()
    assert "continues" in view.notes[-1]


def test_notes_of_the_mirror_are_shown(running: RunFolder) -> None:
    mirrored = running.path / "mirror.txt"
    mirrored.write_text("checkpoint-10 is mirrored, not confirmed\n", encoding="utf-8")

    def sleep(_: float) -> None:
        if view.notes:
            raise KeyboardInterrupt
        with mirrored.open("a", encoding="utf-8") as file:
            file.write("checkpoint-20 is mirrored, not confirmed\n")

    view = KeptView()
    summary = watch("tiny", running, view, stops=False, sleep=sleep)
    assert view.notes[:-1] == ["checkpoint-20 is mirrored, not confirmed"]
    assert summary.mirror == "checkpoint-20 is mirrored, not confirmed"


def test_notes_of_the_mirror_are_shown_while_the_run_stops(running: RunFolder) -> None:
    mirrored = running.path / "mirror.txt"

    def sleep(_: float) -> None:
        if not running.stop_file.exists() or mirrored.exists():
            raise KeyboardInterrupt
        mirrored.write_text("checkpoint-20 is mirrored, not confirmed\n")

    view = KeptView()
    watch("tiny", running, view, sleep=sleep)
    assert view.notes[1:-1] == ["checkpoint-20 is mirrored, not confirmed"]


# The file


def test_an_incomplete_line_is_read_once_it_is_complete(running: RunFolder) -> None:
    following = told(running)
    add_events(running, *events_of([5.0], total=4))
    assert next(following).step == 1
    with running.metrics_file.open("a", encoding="utf-8") as file:
        file.write('{"event": "log", "time": 1790000024.0, "st')
        file.flush()
        assert next(following).step == 1
        file.write('ep": 2, "loss": 4.0}\nno json\n[1]\n{"event": "log", "step": 3, "loss": 3.5}\n')
    assert [point.loss for point in next(following).points] == [5.0, 4.0, 3.5]


def test_only_new_lines_are_read(running: RunFolder) -> None:
    add_events(running, *events_of([5.0, 4.0], total=4))
    following = told(running)
    assert next(following).step == 2
    # As long as before, and nothing of it could be read again.
    size = running.metrics_file.stat().st_size
    with running.metrics_file.open("r+b") as file:
        file.write(b"x" * (size - 1) + b"\n")
    add_events(running, {"event": "log", "step": 3, "loss": 3.0})
    assert [point.loss for point in next(following).points] == [5.0, 4.0, 3.0]


@pytest.mark.parametrize("way", ["moved", "cut"])
def test_a_replaced_file_is_read_from_its_start(running: RunFolder, way: str) -> None:
    add_events(running, *events_of([5.0, 4.0, 3.0], total=4))
    following = told(running)
    assert next(following).step == 3
    if way == "moved":
        running.metrics_file.rename(running.path / "metrics.1")
    else:
        running.metrics_file.write_text("")
    add_events(running, *events_of([2.0], total=9))
    progress = next(following)
    assert (progress.step, progress.total) == (1, 9)
    assert [point.loss for point in progress.points] == [2.0]


def test_following_a_run_that_was_not_started_ends_at_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", process=0)
    (progress,) = follow(folder, sleep=lambda _: pytest.fail("it waited"))
    assert (progress.state, progress.stage) == (State.PREPARED, "not started")
    assert summary_of("none", RunFolder(tmp_path / "nothing")).state is State.PREPARED


def test_a_resumed_run_loads_before_it_trains_again(running: RunFolder) -> None:
    add_events(running, *events_of([5.0, 4.0], total=4, began=STARTED - 500))
    running.log.write_text("old\n\x1b[31mLoading\x1b[0m weights\n\n")
    following = told(running)
    progress = next(following)
    assert (progress.stage, progress.detail, progress.seconds) == (LOADING, "Loading weights", 30.0)
    assert (progress.step, progress.loss, progress.seconds_left) == (2, 4.0, None)
    add_events(
        running, {"event": "evaluation", "time": STARTED + 15, "step": 0, "when": "before", "loss": 6.0}
    )
    assert next(following).stage != LOADING
    add_events(running, *events_of([3.0], total=4, first=2))
    progress = next(following)
    assert (progress.stage, progress.step, progress.first_step) == ("training", 3, 2)


def test_the_stage_between_the_last_step_and_the_end(running: RunFolder) -> None:
    add_events(running, *events_of([5.0, 4.0]))
    progress = next(told(running))
    assert (progress.stage, progress.seconds) == ("finishing: saving the adapter", 4.0)  # as when it is done
    running.stop_file.touch()
    assert next(told(running)).stage == "stopping at a checkpoint"


def test_a_stopping_run_has_no_remaining_time(running: RunFolder) -> None:
    add_events(running, *events_of([5.0, 4.0], total=9))
    assert next(told(running)).seconds_left == pytest.approx(7 * 2.0 - 2.0)
    running.stop_file.touch()
    progress = next(told(running))
    assert (progress.step, progress.seconds_left) == (2, None)
    assert "left" not in progress_line(progress)


@pytest.mark.parametrize(
    ("host", "have_met", "line"),
    [
        ("0", False, "starting: waiting for the other hosts at `10.0.0.1`, 30 s"),
        ("1", False, "starting: waiting for the other hosts at `10.0.0.1`, 30 s"),
        ("0", True, "starting: loading the model, 30 s: Loading weights"),
        ("10", True, "running: the host `10.0.0.1` shows the steps, 30 s"),
        ("$SLURM_PROCID", True, "starting: loading the model, 30 s: Loading weights"),  # in one folder
    ],
)
def test_hosts_without_events_say_what_they_wait_for(
    tmp_path: Path, host: str, have_met: bool, line: str
) -> None:
    place = ("--num_machines", "12", "--machine_rank", host, "--main_process_ip", "10.0.0.1")
    with sleeping_process() as process:
        folder = make_run(tmp_path / "run", log="Loading weights\n", command=("python", *place), **process)
        if have_met:
            (folder.path / "ranks").mkdir()
        assert progress_line(next(told(folder))) == line


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", ""),
        ("one\ntwo\n\n  \n", ""),
        ("Loading weights:  1%\rLoading weights:  50%\r Loading weights:  99%", "Loading weights:  99%"),
        ("\x1b]0;title\x07\x1b[1mLoading weights\x1b[0m\n", "Loading weights"),
        ("x" * 20_000 + "\nMap:  10%|#    | 1/9 [00:00<00:01]", "Map:  10%|#    | 1/9 [00:00<00:01]"),
        ("Loading weights\n--- colablock: started at noon\n", ""),
        (
            "model-00001.safetensors:  12%|#  | 1.2G/9.9G\nUserWarning: odd",
            "model-00001.safetensors:  12%|#  | 1.2G/9.9G",
        ),
        (
            "[2026-07-01 12:00:00,000] [INFO] [axolotl.train:89] [PID:7] [RANK:0] loading model...",
            "loading model...",
        ),
        ("wandb: You can find your API key in your browser here: https://wandb.ai/authorize", ""),
        ("host:12:12 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>", ""),
        ("/x/y.py:61: FutureWarning: `torch_dtype` is deprecated\n  warnings.warn(", ""),
        ("Setting `pad_token_id` to `eos_token_id`:2 for open-end generation.", ""),
        ("[2026-07-01 12:00:00,000] [WARNING] [axolotl.x:1] [PID:7] sample_packing", ""),
    ],
)
def test_the_last_line_of_a_log(tmp_path: Path, log: str, line: str) -> None:
    (tmp_path / "log.txt").write_text(log)
    assert last_line(tmp_path / "log.txt") == line
    assert last_line(tmp_path / "none.txt") == ""


# What events add up to


def test_rates_are_those_of_recent_steps() -> None:
    slow, fast = events_of([5.0], total=100, seconds=100), events_of([4.0] * 40, total=100)
    later = [
        event
        | {"step": event["step"] + 1, "seconds": event["seconds"] + 100, "tokens": event["tokens"] + 1000}
        for event in fast[1:]
    ]
    progress = progress_of([*slow, *later])
    assert progress.step == 41
    assert progress.seconds_left == pytest.approx(59 * 2.0)
    assert progress.tokens_per_second == pytest.approx(500)
    ended = progress_of([*slow, *later], State.DONE)
    assert ended.tokens_per_second == pytest.approx(41_000 / 180)


def test_seconds_advance_between_events() -> None:
    events = events_of([5.0] * 10, total=20)
    last = events[-1]["time"]
    assert progress_of(events, now=last).seconds_left == pytest.approx(20.0)
    later = progress_of(events, now=last + 1.5)
    assert later.seconds == pytest.approx(21.5)
    assert later.seconds_left == pytest.approx(18.5)
    assert progress_of(events, now=last + 20).seconds_left == pytest.approx(18.0)  # a long step is one
    assert progress_of(events, now=last + 600).seconds_left is None  # nothing is known about the rest


def test_a_killed_rank_is_said_while_the_others_wait(running: RunFolder) -> None:
    add_events(running, *events_of([5.0] * 4, total=20, began=STARTED + 20))
    record = running.record()
    assert record is not None
    running.write_record(replace(record, processes=2))
    (running.path / "ranks").mkdir()
    host = socket.gethostname()
    (running.path / "ranks/0").write_text(f"{os.getpid()} {start_time_of(os.getpid())} {host}")
    (running.path / "ranks/odd").write_text("x")
    (running.path / "ranks/7").write_text("x")  # being written
    assert next(told(running)).stage == "training"
    (running.path / "ranks/1").write_text(f"{os.getpid()} 1 {host}")  # the number is another process now
    progress = next(told(running))
    assert progress.stage == "failing: the process of rank 1 was killed, and the others wait for it"
    assert progress.seconds_left is None


def test_the_seconds_to_the_first_step_are_told_by_parts(running: RunFolder) -> None:
    record = make_record(id="run", started=1000.0, seconds={"facts": 4.0, "tokens": 1.5})

    def beginning(*events: dict[str, Any]) -> dict[str, float]:
        found = progress_of_events(running, record, State.RUNNING, events, clock=lambda: 1100.0)
        return dict(found.beginning)

    start = {"event": "start", "time": 1012.0, "step": 0, "loading": 9.0}
    step = {"event": "step", "time": 1013.0, "step": 1, "seconds": 0.75}
    assert beginning(start) == {}
    assert beginning({**start, "loading": None}, step) == {}
    parts = {"facts": 4.0, "tokens": 1.5, "launch": 3.0, "load": 9.0, "first step": 0.75}
    assert beginning(start, step) == parts
    assert beginning(start, step, {**step, "step": 2, "seconds": 1.5}) == parts
    earlier = {**start, "time": 900.0}
    assert beginning(earlier, {**step, "time": 901.0}) == {}
    again = {**start, "time": 1030.0, "step": 1}
    assert beginning(earlier, step, again) == {}
    assert beginning(earlier, step, again, {**step, "step": 2, "seconds": 0.5}) == {
        **parts,
        "launch": 21.0,
        "first step": 0.5,
    }


def test_tokens_include_every_rank() -> None:
    events = events_of([5.0] * 10)
    events[0]["world_size"] = 2
    assert progress_of(events).tokens == 20_000
    assert progress_of(events).tokens_per_second == pytest.approx(1000)


def test_a_resumed_run_starts_at_its_checkpoint() -> None:
    first = events_of([5.0, 4.0, 3.0, 2.0], total=6, save_every=2)
    second = events_of([3.1, 2.1], total=6, first=2, began=STARTED + 100)
    progress = progress_of([*first, *second])
    assert [tuple(point) for point in progress.points] == [(1, 5.0), (2, 4.0), (3, 3.1), (4, 2.1)]
    assert (progress.first_step, progress.seconds, progress.seconds_in_all) == (2, 4.0, 12.0)
    assert progress.checkpoint == "checkpoint-4"


def test_a_nan_loss_is_reported_and_not_drawn() -> None:
    progress = progress_of(events_of([5.0, math.nan]))
    assert progress.loss is not None
    assert math.isnan(progress.loss)
    assert [point.loss for point in progress.points] == [5.0]


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": "log"},
        {"event": "log", "step": "7", "loss": "low", "seconds": None, "tokens": True},
        {"event": "log", "step": math.inf, "loss": 1.0},
        {"event": "start", "total_steps": -1},
        {"event": "save", "path": 7},
        {"event": "evaluation", "when": "before", "loss": None},
        {"event": "of a later version", "step": None},
    ],
)
def test_invalid_values_of_events_are_ignored(event: dict[str, Any]) -> None:
    progress = progress_of([event])
    assert (progress.step, progress.total, progress.loss or 1.0, progress.checkpoint) == (0, None, 1.0, None)


def test_the_losses_of_both_kinds_of_evaluation() -> None:
    events = [
        {"event": "evaluation", "when": "before", "step": 0, "loss": 6.0},
        *events_of([5.0]),
        {"event": "log", "step": 1, "eval_loss": 5.5},
        {"event": "evaluation", "when": "after", "step": 0, "loss": 4.0},
    ]
    progress = progress_of(events)
    assert (progress.before, progress.after, progress.evaluation_loss) == (6.0, 4.0, 5.5)
    assert [tuple(point) for point in progress.evaluations] == [(1, 5.5)]
    assert progress.step == 1


def test_a_summary_has_the_facts_of_its_run(tmp_path: Path) -> None:
    events = events_of([5.0, 4.0], save_every=1)
    folder = make_run(tmp_path / "run", events=events, end={"state": "done", "step": 2})
    folder.adapter.mkdir()
    assert summary_of("run", folder).adapter is None  # nothing is in it
    (folder.adapter / "adapter_config.json").write_text("{}")
    summary = summary_of("run", folder)
    assert (summary.state, summary.adapter, summary.first_loss) == (State.DONE, folder.adapter, 5.0)
    assert summary.progress.smooth_loss == pytest.approx(4.46, abs=0.01)


def test_a_rank_left_behind_by_a_killed_launcher_is_still_running(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as launcher:
        assert launcher.stdout is not None
        rank = int(launcher.stdout.readline())
        since = start_time_of(launcher.pid)
        folder = make_run(tmp_path / "tiny", process=launcher.pid, process_started=since)
        launcher.kill()
    try:
        assert folder.state() is State.RUNNING
        folder.end_file.write_text('{"state": "done"}')  # what it says itself counts
        assert folder.state() is State.DONE
        folder.end_file.unlink()
    finally:
        os.kill(rank, signal.SIGKILL)
    while start_time_of(rank):
        time.sleep(0.01)
    assert folder.state() is State.KILLED
