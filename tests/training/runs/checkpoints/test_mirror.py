"""Checkpoints are mirrored complete or not at all, whatever stops the copy."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from colablock.errors import InvalidInput, NotFound
from colablock.training.runs.checkpoints.finder import verify_checkpoint
from colablock.training.runs.checkpoints.mirror import (
    is_being_mirrored,
    main,
    mirror_notes,
    nap,
    start_mirror,
    wait_for_mirror,
    watch,
)
from colablock.training.runs.checkpoints.stores import (
    FileOperations,
)
from colablock.training.runs.folder import RunFolder, State
from colablock.training.scripts.ranks import start_time_of
from tests.support.checkpoints import CHECKPOINT, make_checkpoint
from tests.support.faults import die, full, has_own_mounts, in_a_child, in_own_mounts, mounted
from tests.support.mirrors import ODDITIES, Failing, NotedMirror, archived_steps, names_in, restore_from
from tests.support.runs import end_run, make_run, process_facts, sleeping_process
from tests.support.timing import PATIENCE, until

MANIFEST = "colablock.json"


# Mirroring


def test_a_checkpoint_is_mirrored_once_and_restored_unchanged(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    mirrored = NotedMirror(run, drive)
    assert mirrored.mirror_newest()
    assert mirrored.mirror_newest()
    assert mirrored.notes == ["checkpoint-20 is mirrored, not confirmed"]
    assert names_in(drive) == ["run-1-checkpoint-20.tar", "run-1-checkpoint-20.tar.sha256"]
    archive = drive / "run-1-checkpoint-20.tar"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (drive / f"{archive.name}.sha256").read_text() == f"{digest}  {archive.name}\n"
    found, notes = restore_from(drive, tmp_path / "new")
    assert notes == []
    assert found == tmp_path / "new" / "checkpoint-20"
    assert verify_checkpoint(found) == ()
    for name, data in CHECKPOINT.items():
        assert (found / name).read_bytes() == data
    # What another machine needs to go on is there, and no process of this one.
    back = RunFolder(tmp_path / "new")
    record = back.record()
    assert record is not None
    assert (record.id, record.process, back.state()) == ("run-1", 0, State.PREPARED)
    assert back.metrics() == [{"event": "start"}]
    assert names_in(back.path) == ["checkpoint-20", "metrics.jsonl", "mirror.json", "run.json"]


def test_only_valid_checkpoints_are_mirrored(run: RunFolder, drive: Path) -> None:
    make_checkpoint(run.path, 40, is_valid=False)
    (make_checkpoint(run.path, 60) / "optimizer.pt").unlink()
    mirrored = NotedMirror(run, drive)
    for _ in range(2):
        assert mirrored.mirror_newest()
    assert mirrored.notes == [
        "not mirroring checkpoint-60, which is damaged: `optimizer.pt` is missing",
        "checkpoint-20 is mirrored, not confirmed",
    ]
    assert archived_steps(drive) == [20]


def test_the_newest_two_are_kept_and_other_runs_are_untouched(run: RunFolder, drive: Path) -> None:
    (drive / "other-checkpoint-1.tar").write_text("another run's")
    (drive / "run-1-checkpoint-5.tar").write_text("cut off before its hash")
    (drive / ".run-1-checkpoint-6.tar.partial").write_text("cut off before its name")
    (drive / "notes.txt").write_text("the user's")
    mirrored = NotedMirror(run, drive)
    for step in (40, 60, 80):
        make_checkpoint(run.path, step)
        mirrored.mirror_newest()
    assert archived_steps(drive) == [80, 60]
    assert names_in(drive) == [
        "notes.txt",
        "other-checkpoint-1.tar",
        *(f"run-1-checkpoint-{step}.tar{end}" for step in (60, 80) for end in ("", ".sha256")),
    ]


def test_a_checkpoint_that_is_saved_again_is_mirrored_again(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    mirrored = NotedMirror(run, drive)
    mirrored.mirror_newest()
    shutil.rmtree(run.path / "checkpoint-20")
    make_checkpoint(run.path, 20, more=b"other")
    mirrored.mirror_newest()
    assert len(mirrored.notes) == 2
    found, _ = restore_from(drive, tmp_path / "new")
    assert (found / "adapter_model.safetensors").read_bytes().endswith(b"other")


def test_mirrored_archives_are_recorded_per_store(run: RunFolder, drive: Path, tmp_path: Path) -> None:
    NotedMirror(run, drive).mirror_newest()
    again = NotedMirror(run, drive)
    again.mirror_newest()
    assert again.notes == []
    elsewhere = NotedMirror(run, tmp_path / "elsewhere")
    elsewhere.mirror_newest()
    assert elsewhere.notes == ["checkpoint-20 is mirrored, not confirmed"]
    (run.path / "mirror.json").write_text("[]")
    again.mirror_newest()
    assert again.notes == ["checkpoint-20 is mirrored, not confirmed"]


def test_an_earlier_step_is_kept_beside_later_ones(run: RunFolder, drive: Path) -> None:
    mirrored = NotedMirror(run, drive)
    for step in (60, 80):
        make_checkpoint(run.path, step)
        mirrored.mirror_newest()
    for step in (60, 80):
        (run.path / f"checkpoint-{step}" / MANIFEST).write_text("{}")
    make_checkpoint(run.path, 40)  # gone on from 20
    mirrored.mirror_newest()
    assert mirrored.notes[-1] == "checkpoint-40 is mirrored, not confirmed"
    assert archived_steps(drive) == [80, 60, 40]


def test_two_are_kept_beside_later_ones_that_a_run_did_not_go_on_from(run: RunFolder, drive: Path) -> None:
    """One of 60 that is damaged must not be half of what is kept."""
    mirrored = NotedMirror(run, drive)
    for step in (40, 60, 42, 44, 62):
        make_checkpoint(run.path, step)
        mirrored.mirror_newest()
        if step == 44:
            assert archived_steps(drive) == [60, 44, 42]
        shutil.rmtree(run.path / f"checkpoint-{step}")
    assert archived_steps(drive) == [62, 60]


def test_a_run_without_a_record_is_not_mirrored(tmp_path: Path, drive: Path) -> None:
    make_checkpoint(tmp_path / "run", 20)
    assert NotedMirror(RunFolder(tmp_path / "run"), drive).mirror_newest()
    assert names_in(drive) == []


# What stops it


def each_operation(run: RunFolder, drive: Path, kept: Path) -> Iterator[int]:
    """Mirror two checkpoints, save a third, and count the operations to mirror it.

    Yields the index of each operation, with drive and ``mirror.json`` restored to the state before.
    """
    for step in (20, 40, 60):
        make_checkpoint(run.path, step)
        if step < 60:
            NotedMirror(run, drive).mirror_newest()
    shutil.copytree(drive, kept)
    memory = (run.path / "mirror.json").read_text()
    counting = Failing(-1, full)
    assert NotedMirror(run, drive, counting).mirror_newest()
    assert counting.count > 6
    for at in range(counting.count):
        shutil.rmtree(drive)
        shutil.copytree(kept, drive)
        (run.path / "mirror.json").write_text(memory)
        yield at


def test_after_any_failed_operation_archives_are_valid_and_the_copy_is_retried(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    for at in each_operation(run, drive, tmp_path / "kept"):
        failing = NotedMirror(run, drive, Failing(at, full))
        is_done = failing.mirror_newest()
        reason = "No space left on device"
        assert failing.notes == (
            [
                "checkpoint-60 is mirrored, not confirmed",
                f"older archives could not be deleted and will be retried: {reason}",
            ]
            if is_done
            else [f"checkpoint-60 could not be mirrored and will be retried: {reason}"]
        )
        assert not [name for name in names_in(drive) if name.endswith(".partial")]
        found, notes = restore_from(drive, tmp_path / f"new-{at}")
        assert notes == []
        assert found.name in {"checkpoint-40", "checkpoint-60"}
        assert failing.mirror_newest()
        assert archived_steps(drive)[:2] == [60, 40]
        assert restore_from(drive, tmp_path / f"after-{at}")[0].name == "checkpoint-60"


def test_after_a_kill_at_any_operation_archives_are_valid(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    for at in each_operation(run, drive, tmp_path / "kept"):
        assert in_a_child(NotedMirror(run, drive, Failing(at, die)).mirror_newest) == -signal.SIGKILL
        found, notes = restore_from(drive, tmp_path / f"new-{at}")
        assert notes == []
        assert found.name in {"checkpoint-40", "checkpoint-60"}
        NotedMirror(run, drive).mirror_newest()
        assert archived_steps(drive)[:2] == [60, 40]
        make_checkpoint(run.path, 80)
        NotedMirror(run, drive).mirror_newest()
        assert names_in(drive) == [
            f"run-1-checkpoint-{step}.tar{end}" for step in (60, 80) for end in ("", ".sha256")
        ]
        shutil.rmtree(run.path / "checkpoint-80")


def test_a_repeated_failure_is_noted_once(run: RunFolder, drive: Path) -> None:
    mirrored = NotedMirror(run, drive / "not" / "there")
    assert not mirrored.mirror_newest()
    assert not mirrored.mirror_newest()
    assert mirrored.notes == [
        "checkpoint-20 could not be mirrored and will be retried: No such file or directory"
    ]


@pytest.mark.parametrize("name", ["run-1-checkpoint-20.tar", ".run-1-checkpoint-20.tar.partial"])
@pytest.mark.parametrize("kind", sorted(ODDITIES.keys() - {"a folder"}))
def test_what_is_no_file_does_not_stop_a_mirror(run: RunFolder, drive: Path, name: str, kind: str) -> None:
    ODDITIES[kind](drive / name)
    mirrored = NotedMirror(run, drive)
    assert mirrored.mirror_newest() or mirrored.mirror_newest()
    assert archived_steps(drive) == [20]
    assert {path.lstat().st_mode & 0o170000 for path in drive.iterdir()} == {stat.S_IFREG}


class Lying(FileOperations):
    """A drive that stores other data than was written."""

    def sync(self, file: IO[bytes]) -> None:
        super().sync(file)
        file.seek(100)
        file.write(b"?")
        file.flush()


def test_a_copy_that_reads_back_differently_is_discarded(run: RunFolder, drive: Path) -> None:
    mirrored = NotedMirror(run, drive, Lying())
    assert not mirrored.mirror_newest()
    assert "returns other data than was written to it" in mirrored.notes[0]
    assert names_in(drive) == []


@pytest.mark.skipif(not has_own_mounts(), reason="no mounts of one's own here")
def test_a_full_drive_keeps_its_archives(run: RunFolder, drive: Path) -> None:
    def work() -> tuple[list[str], list[str], list[str]]:
        with mounted("tmpfs", drive, "size=128k"):
            mirrored = NotedMirror(run, drive)
            mirrored.mirror_newest()
            make_checkpoint(run.path, 40, more=os.urandom(200_000))
            is_done = mirrored.mirror_newest()
            there = names_in(drive)
            shutil.rmtree(run.path / "checkpoint-40")
            make_checkpoint(run.path, 60)
            mirrored.mirror_newest()
            return [*mirrored.notes, str(is_done)], there, names_in(drive)

    said, there, later = in_own_mounts(work)
    assert said == [
        "checkpoint-20 is mirrored, not confirmed",
        "checkpoint-40 could not be mirrored and will be retried: No space left on device",
        "checkpoint-60 is mirrored, not confirmed",
        "False",
    ]
    assert there == ["run-1-checkpoint-20.tar", "run-1-checkpoint-20.tar.sha256"]
    assert len(later) == 4


# The process


def test_a_mirror_ends_after_the_last_checkpoint_of_an_ended_run(run: RunFolder, drive: Path) -> None:
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            make_checkpoint(run.path, 40)
            end_run(run)

    mirrored = NotedMirror(run, drive)
    watch(mirrored.mirror, pause=1, sleep=sleep)
    assert naps == [1, 1, 1]
    assert mirrored.notes == [
        "checkpoint-20 is mirrored, not confirmed",
        "checkpoint-40 is mirrored, not confirmed",
    ]


def test_a_failing_drive_is_retried_with_growing_pauses(run: RunFolder, drive: Path) -> None:
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 5:
            end_run(run)

    mirrored = NotedMirror(run, drive / "not" / "there")
    watch(mirrored.mirror, pause=1, sleep=sleep)
    assert naps == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    assert mirrored.notes[-1] == "the run has ended, but its last checkpoint could not be mirrored"


def test_the_adapter_of_a_run_that_has_ended_is_mirrored(run: RunFolder, drive: Path, tmp_path: Path) -> None:
    """Once, and again when the run is trained again."""
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    mirrored = NotedMirror(run, drive)
    assert mirrored.mirror.mirror_adapter()
    assert mirrored.notes == []  # the run has not ended, so that it may be half written
    end_run(run, "done")
    for _ in range(2):
        assert watch(mirrored.mirror, sleep=lambda _: None)
    expected = ["checkpoint-20 is mirrored, not confirmed", "adapter is mirrored, not confirmed"]
    assert mirrored.notes == expected
    with tarfile.open(drive / "run-1-adapter.tar") as archive:
        assert "adapter/adapter_config.json" in archive.getnames()
    (run.adapter / "adapter_config.json").write_text('{"r": 8}')
    assert watch(mirrored.mirror, sleep=lambda _: None)
    assert mirrored.notes == [*expected, expected[1]]
    assert archived_steps(drive) == [20]
    drive.rename(tmp_path / "unmounted")
    (tmp_path / "drive").write_text("")
    (run.adapter / "adapter_config.json").write_text('{"r": 16}')
    assert not watch(mirrored.mirror, sleep=lambda _: None)
    assert mirrored.notes[-1] == "the run has ended, but its adapter could not be mirrored"


def test_a_mirror_stops_waiting_for_a_run_that_does_not_start(tmp_path: Path, drive: Path) -> None:
    naps: list[float] = []
    watch(NotedMirror(make_run(tmp_path / "run", process=0), drive).mirror, pause=60, sleep=naps.append)
    assert naps == [60] * 10


def test_a_mirror_does_not_sleep_on_when_its_run_ends(tmp_path: Path) -> None:
    with sleeping_process() as process:
        run = make_run(tmp_path / "run", **process)
        nap(run, 0.0)
        threading.Timer(0.1, os.kill, [process["process"], signal.SIGKILL]).start()
        began = time.monotonic()
        nap(run, PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2
        nap(run, 0.01)  # of a run that is over


@pytest.fixture
def trained() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_mirror_is_a_process_that_outlives_its_starter(
    tmp_path: Path, drive: Path, trained: subprocess.Popen[bytes]
) -> None:
    run = make_run(tmp_path / "run", id="run-1", **process_facts(trained.pid))
    (run.path / ".mirror-left").mkdir()
    make_checkpoint(run.path, 20)
    starter = (
        "import os, pathlib; from colablock.training.runs.checkpoints.mirror import start_mirror; "
        f"print(start_mirror(pathlib.Path({str(run.path)!r}), {str(drive)!r}, python={sys.executable!r},"
        " environ=os.environ))"
    )
    started = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    process = int(started.stdout)
    until(lambda: archived_steps(drive) == [20])
    assert os.getsid(process) == process
    assert not (run.path / ".mirror-left").exists()
    # A second one waits for its turn.
    second = start_mirror(run.path, str(drive), python=sys.executable, environ=os.environ)
    make_checkpoint(run.path, 40)
    trained.kill()
    trained.wait()
    until(lambda: not any(start_time_of(each) for each in (process, second)))
    assert archived_steps(drive) == [40, 20]
    assert mirror_notes(run.path) == (
        "checkpoint-20 is mirrored, not confirmed",
        "checkpoint-40 is mirrored, not confirmed",
    )
    assert (run.path / "mirror-errors.txt").read_text() == ""


def test_an_unusable_target_is_refused_before_a_process_starts(tmp_path: Path, run: RunFolder) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    cases = {
        str(tmp_path / "drive" / "runs" / "mine"): NotFound,
        str(tmp_path / "file"): InvalidInput,
        str(tmp_path / "link"): InvalidInput,
        "hf://name": InvalidInput,
        "hf://org/name/folder": InvalidInput,
        "": InvalidInput,
        "s3://bucket/runs": InvalidInput,
        f"file:{tmp_path}": InvalidInput,
    }
    for target, kind in cases.items():
        with pytest.raises(kind):
            start_mirror(run.path, target, python=sys.executable, environ=os.environ)
    assert main([str(run.path), str(tmp_path / "file"), sys.executable]) == 2
    assert mirror_notes(run.path) == (
        f"mirroring stopped: cannot mirror to `{tmp_path / 'file'}`: it is not a folder",
    )
    assert mirror_notes(tmp_path) == ()


@pytest.mark.parametrize(
    ("after", "is_kept"),
    [
        ("nothing", True),
        ("a checkpoint that was being saved", True),
        ("a damaged checkpoint", True),
        ("a checkpoint", False),
        ("an adapter", False),
    ],
)
def test_who_waits_for_a_mirror_of_another_process_is_told_what_it_has(
    run: RunFolder, drive: Path, after: str, is_kept: bool
) -> None:
    """The mirror has the checkpoint of step 20 when its process ends."""
    assert NotedMirror(run, drive).mirror_newest()
    end_run(run)
    if after == "an adapter":
        run.adapter.mkdir()
        (run.adapter / "adapter_config.json").write_text("{}")
    elif after != "nothing":
        make_checkpoint(run.path, 40)
        if after == "a checkpoint that was being saved":
            (run.path / "checkpoint-40" / "colablock.json").unlink()
        elif after == "a damaged checkpoint":
            next((run.path / "checkpoint-40").glob("*.pt")).write_bytes(b"")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as mirror:
        facts = process_facts(mirror.pid)
        words = f"{facts['process']} {facts['process_started']} {socket.gethostname()}"
        (run.path / "mirror.process").write_text(words)
        assert is_being_mirrored(run.path)
        assert not wait_for_mirror(run.path, limit=0.1)
        threading.Timer(0.1, mirror.kill).start()
        assert wait_for_mirror(run.path, limit=PATIENCE) is is_kept
    (run.path / "mirror.process").write_text(f"{facts['process']} 0 {socket.gethostname()}")  # it had ended
    assert not is_being_mirrored(run.path)
    assert wait_for_mirror(run.path, limit=30)  # nobody mirrors it
    assert wait_for_mirror(run.path, limit=30, was_seen=True) is is_kept  # it ended after somebody looked
