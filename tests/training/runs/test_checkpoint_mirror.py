"""What is in a mirror is whole, whatever stopped the copying, and only what is whole comes back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.training.runs.checkpoint_mirror import (
    CheckpointArchive,
    FileOperations,
    FolderStore,
    HubStore,
    Mirror,
    list_archives,
    main,
    mirror_notes,
    restore,
    start_mirror,
    store_of,
    watch,
)
from colablock.training.runs.checkpoints import verify_checkpoint
from colablock.training.runs.folder import RunFolder, State
from tests.support.faults import die, full, has_own_mounts, in_a_child, in_own_mounts, mounted
from tests.support.reporters import Notes
from tests.support.run_folders import CHECKPOINT, end, make_checkpoint, make_run
from tests.support.runtime import make_venv, site_of
from tests.support.training_stack import until

MANIFEST = "colablock.json"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = make_run(tmp_path / "run")
    found.metrics_file.write_text('{"event": "start"}\n')
    make_checkpoint(found.path, 20)
    return found


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


class Mirrored:
    """A mirror and what it said."""

    def __init__(self, run: RunFolder, drive: Path, files: FileOperations | None = None) -> None:
        self.said: list[str] = []
        self.store = FolderStore(drive, files or FileOperations())
        self.mirror = Mirror(run, self.store, self.said.append)

    def once(self) -> bool:
        return self.mirror.once()


def steps(drive: Path, run_id: str = "run-1") -> list[int]:
    return [archive.step for archive in list_archives(FolderStore(drive), run_id)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bring_back(drive: Path, into: Path) -> tuple[Path, list[str]]:
    told = Notes()
    return restore(FolderStore(drive), "run-1", into, reporter=told), told.notes


# Mirroring


def test_a_whole_checkpoint_is_mirrored_once_and_comes_back_as_it_was(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    mirrored = Mirrored(run, drive)
    assert mirrored.once()
    assert mirrored.once()
    assert mirrored.said == ["checkpoint-20 is mirrored, not confirmed"]
    assert names_in(drive) == ["run-1-checkpoint-20.tar", "run-1-checkpoint-20.tar.sha256"]
    archive = drive / "run-1-checkpoint-20.tar"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (drive / f"{archive.name}.sha256").read_text() == f"{digest}  {archive.name}\n"
    found, notes = bring_back(drive, tmp_path / "new")
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


def test_only_whole_checkpoints_are_mirrored(run: RunFolder, drive: Path) -> None:
    make_checkpoint(run.path, 40, is_whole=False)
    (make_checkpoint(run.path, 60) / "optimizer.pt").unlink()
    mirrored = Mirrored(run, drive)
    for _ in range(2):
        assert mirrored.once()
    assert mirrored.said == [
        "checkpoint-60 is damaged, and not mirrored: `optimizer.pt` is missing",
        "checkpoint-20 is mirrored, not confirmed",
    ]
    assert steps(drive) == [20]


def test_the_newest_two_are_kept_and_other_runs_left_alone(run: RunFolder, drive: Path) -> None:
    (drive / "other-checkpoint-1.tar").write_text("another run's")
    (drive / "run-1-checkpoint-5.tar").write_text("cut off before its hash")
    (drive / ".run-1-checkpoint-6.tar.partial").write_text("cut off before its name")
    (drive / "notes.txt").write_text("the user's")
    mirrored = Mirrored(run, drive)
    for step in (40, 60, 80):
        make_checkpoint(run.path, step)
        mirrored.once()
    assert steps(drive) == [80, 60]
    assert names_in(drive) == [
        "notes.txt",
        "other-checkpoint-1.tar",
        *(f"run-1-checkpoint-{step}.tar{end}" for step in (60, 80) for end in ("", ".sha256")),
    ]


def test_a_checkpoint_that_is_made_anew_is_mirrored_anew(run: RunFolder, drive: Path, tmp_path: Path) -> None:
    mirrored = Mirrored(run, drive)
    mirrored.once()
    shutil.rmtree(run.path / "checkpoint-20")
    make_checkpoint(run.path, 20, more=b"other")
    mirrored.once()
    assert len(mirrored.said) == 2
    found, _ = bring_back(drive, tmp_path / "new")
    assert (found / "adapter_model.safetensors").read_bytes().endswith(b"other")


def test_another_process_knows_what_is_mirrored_and_where(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    Mirrored(run, drive).once()
    again = Mirrored(run, drive)
    again.once()
    assert again.said == []
    elsewhere = Mirrored(run, tmp_path / "elsewhere")
    elsewhere.once()
    assert elsewhere.said == ["checkpoint-20 is mirrored, not confirmed"]
    (run.path / "mirror.json").write_text("[]")
    again.once()
    assert again.said == ["checkpoint-20 is mirrored, not confirmed"]


def test_a_step_before_older_ones_is_kept_with_them(run: RunFolder, drive: Path) -> None:
    mirrored = Mirrored(run, drive)
    for step in (60, 80):
        make_checkpoint(run.path, step)
        mirrored.once()
    for step in (60, 80):
        (run.path / f"checkpoint-{step}" / MANIFEST).write_text("{}")
    make_checkpoint(run.path, 40)  # gone on from 20
    mirrored.once()
    assert mirrored.said[-1] == "checkpoint-40 is mirrored, not confirmed"
    assert steps(drive) == [80, 60, 40]


def test_without_a_record_nothing_is_mirrored(tmp_path: Path, drive: Path) -> None:
    make_checkpoint(tmp_path / "run", 20)
    assert Mirrored(RunFolder(tmp_path / "run"), drive).once()
    assert names_in(drive) == []


# What stops it


class Failing(FileOperations):
    """Fails at the operation *at*, counted from nought; a file that is to be synced is then half there."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.at = at
        self.error = error
        self.count = 0

    def _next(self) -> None:
        self.count += 1
        if self.count - 1 == self.at:
            raise self.error()

    def create(self, path: Path) -> IO[bytes]:
        self._next()
        return super().create(path)

    def sync(self, file: IO[bytes]) -> None:
        if self.count == self.at:
            file.truncate(file.tell() // 2)
        self._next()
        super().sync(file)

    def rename(self, source: Path, destination: Path) -> None:
        self._next()
        super().rename(source, destination)

    def remove(self, path: Path) -> None:
        self._next()
        super().remove(path)


def each_operation(run: RunFolder, drive: Path, kept: Path) -> Iterator[int]:
    """Mirror two checkpoints, have a third one wait, and count what is done to mirror it.

    Yields each operation's position, the drive and the run's memory as they were before the first one.
    """
    for step in (20, 40, 60):
        make_checkpoint(run.path, step)
        if step < 60:
            Mirrored(run, drive).once()
    shutil.copytree(drive, kept)
    memory = (run.path / "mirror.json").read_text()
    counting = Failing(-1, full)
    assert Mirrored(run, drive, counting).once()
    assert counting.count > 6
    for at in range(counting.count):
        shutil.rmtree(drive)
        shutil.copytree(kept, drive)
        (run.path / "mirror.json").write_text(memory)
        yield at


def test_wherever_a_copy_fails_what_is_there_is_whole_and_it_is_tried_again(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    for at in each_operation(run, drive, tmp_path / "kept"):
        failing = Mirrored(run, drive, Failing(at, full))
        is_done = failing.once()
        reason = "No space left on device"
        assert failing.said == (
            [
                "checkpoint-60 is mirrored, not confirmed",
                f"older archives are not taken away yet: {reason}",
            ]
            if is_done
            else [f"checkpoint-60 is not mirrored: {reason}; it is tried again"]
        )
        assert not [name for name in names_in(drive) if name.endswith(".partial")]
        found, notes = bring_back(drive, tmp_path / f"new-{at}")
        assert notes == []
        assert found.name in {"checkpoint-40", "checkpoint-60"}
        assert failing.once()
        assert steps(drive)[:2] == [60, 40]
        assert bring_back(drive, tmp_path / f"after-{at}")[0].name == "checkpoint-60"


def test_wherever_the_process_is_killed_what_is_there_is_whole(
    run: RunFolder, drive: Path, tmp_path: Path
) -> None:
    for at in each_operation(run, drive, tmp_path / "kept"):
        assert in_a_child(Mirrored(run, drive, Failing(at, die)).once) == -signal.SIGKILL
        found, notes = bring_back(drive, tmp_path / f"new-{at}")
        assert notes == []
        assert found.name in {"checkpoint-40", "checkpoint-60"}
        Mirrored(run, drive).once()
        assert steps(drive)[:2] == [60, 40]
        make_checkpoint(run.path, 80)
        Mirrored(run, drive).once()
        assert names_in(drive) == [
            f"run-1-checkpoint-{step}.tar{end}" for step in (60, 80) for end in ("", ".sha256")
        ]
        shutil.rmtree(run.path / "checkpoint-80")


def test_what_is_said_about_a_failure_is_said_once(run: RunFolder, drive: Path) -> None:
    mirrored = Mirrored(run, drive / "not" / "there")
    assert not mirrored.once()
    assert not mirrored.once()
    assert mirrored.said == ["checkpoint-20 is not mirrored: No such file or directory; it is tried again"]


class Lying(FileOperations):
    """A drive that keeps something else than what it is given."""

    def sync(self, file: IO[bytes]) -> None:
        super().sync(file)
        file.seek(100)
        file.write(b"?")
        file.flush()


def test_what_cannot_be_read_back_is_no_copy(run: RunFolder, drive: Path) -> None:
    mirrored = Mirrored(run, drive, Lying())
    assert not mirrored.once()
    assert "is not what can be read there; it is tried again" in mirrored.said[0]
    assert names_in(drive) == []


@pytest.mark.skipif(not has_own_mounts(), reason="no mounts of one's own here")
def test_a_full_drive_keeps_what_it_has(run: RunFolder, drive: Path) -> None:
    def work() -> tuple[list[str], list[str], list[str]]:
        with mounted("tmpfs", drive, "size=128k"):
            mirrored = Mirrored(run, drive)
            mirrored.once()
            make_checkpoint(run.path, 40, more=os.urandom(200_000))
            is_done = mirrored.once()
            there = names_in(drive)
            shutil.rmtree(run.path / "checkpoint-40")
            make_checkpoint(run.path, 60)
            mirrored.once()
            return [*mirrored.said, str(is_done)], there, names_in(drive)

    said, there, later = in_own_mounts(work)
    assert said == [
        "checkpoint-20 is mirrored, not confirmed",
        "checkpoint-40 is not mirrored: No space left on device; it is tried again",
        "checkpoint-60 is mirrored, not confirmed",
        "False",
    ]
    assert there == ["run-1-checkpoint-20.tar", "run-1-checkpoint-20.tar.sha256"]
    assert len(later) == 4


# Restoring


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another byte": lambda path: damage(path, 3000),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another hash": lambda path: damage(path.with_name(f"{path.name}.sha256"), 5),
    "an empty hash": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(b""),
}


@pytest.fixture
def two(run: RunFolder, drive: Path) -> Path:
    Mirrored(run, drive).once()
    make_checkpoint(run.path, 40)
    Mirrored(run, drive).once()
    assert steps(drive) == [40, 20]
    return drive


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_an_archive_with_another_hash_is_passed_over_and_said(
    two: Path, how: Callable[[Path], object], tmp_path: Path
) -> None:
    how(two / "run-1-checkpoint-40.tar")
    found, notes = bring_back(two, tmp_path / "new")
    assert found.name == "checkpoint-20"
    assert verify_checkpoint(found) == ()
    reason = "its hash is not the one that was kept with it"
    assert notes == [f"the mirrored checkpoint-40 cannot be used: {reason}; checkpoint-20 is taken"]
    assert not (tmp_path / "new" / "checkpoint-40").exists()


def test_an_archive_without_a_hash_is_none(two: Path, tmp_path: Path) -> None:
    (two / "run-1-checkpoint-40.tar.sha256").unlink()
    assert bring_back(two, tmp_path / "new") == (tmp_path / "new" / "checkpoint-20", [])


def repack(archive: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Write another archive, with a hash that holds."""
    with tarfile.open(archive, "w") as packed:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            packed.addfile(member, io.BytesIO(data))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name(f"{archive.name}.sha256").write_text(f"{digest}  {archive.name}\n")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


def manifest(**files: bytes) -> bytes:
    rows = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    return json.dumps({"schema": 1, "step": 40, "files": rows}).encode()


OF_OTHERS: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "above": ([(member("checkpoint-40/../../x"), b"x")], "it holds `checkpoint-40/../../x`"),
    "absolute": ([(member("/tmp/x"), b"x")], "it holds `/tmp/x`"),  # noqa: S108 (it is not written)
    "beside": ([(member("job.json"), b"x")], "it holds `job.json`"),
    "another step": ([(member("checkpoint-20/x"), b"x")], "it holds `checkpoint-20/x`"),
    "a link": ([(member("checkpoint-40/x", tarfile.SYMTYPE, "/etc"), b"")], "it holds `checkpoint-40/x`"),
    "a hard link": ([(member("checkpoint-40/x", tarfile.LNKTYPE, "run.json"), b"")], "it holds"),
    "a device": ([(member("checkpoint-40/x", tarfile.CHRTYPE), b"")], "it holds `checkpoint-40/x`"),
    "a pipe": ([(member("checkpoint-40/x", tarfile.FIFOTYPE), b"")], "it holds `checkpoint-40/x`"),
    "twice": ([(member("checkpoint-40/x"), b"x"), (member("checkpoint-40/x"), b"y")], "File exists"),
    "nothing": ([], "it has no manifest"),
    "no manifest": ([(member("checkpoint-40/x"), b"x")], "it has no manifest"),
    "a file too few": ([(member(f"checkpoint-40/{MANIFEST}"), manifest(a=b"1"))], "`a` is missing"),
}


@pytest.mark.parametrize(("members", "said"), OF_OTHERS.values(), ids=OF_OTHERS)
def test_an_archive_that_is_not_ours_writes_nothing(
    two: Path, members: list[tuple[tarfile.TarInfo, bytes]], said: str, tmp_path: Path
) -> None:
    repack(two / "run-1-checkpoint-40.tar", *members)
    found, notes = bring_back(two, tmp_path / "new")
    assert found.name == "checkpoint-20"
    assert said in notes[0]
    names = ["checkpoint-20", "metrics.jsonl", "mirror.json", "run.json"]
    assert names_in(tmp_path / "new") == names
    assert not (tmp_path / "x").exists()


def test_what_is_there_whole_stays_and_what_is_damaged_is_replaced(
    run: RunFolder, two: Path, tmp_path: Path
) -> None:
    (run.path / "checkpoint-40" / "optimizer.pt").write_bytes(b"damaged")
    (run.path / "run.json").write_text((run.path / "run.json").read_text().replace("a/b", "c/d"))
    found, _ = bring_back(two, run.path)
    assert verify_checkpoint(found) == ()
    record = run.record()
    assert record is not None
    assert record.model == "c/d"
    # What came back is not mirrored again.
    new = tmp_path / "new"
    bring_back(two, new)
    again = Mirrored(RunFolder(new), two)
    assert again.once()
    assert again.said == []
    # Nothing is fetched for one that is whole, and what a killed process left there goes.
    (two / "run-1-checkpoint-40.tar").write_bytes(b"")
    (run.path / ".restore-left").mkdir()
    assert bring_back(two, run.path) == (found, [])
    assert not (run.path / ".restore-left").exists()


def test_where_nothing_of_it_can_be_used_each_reason_is_said(two: Path, tmp_path: Path) -> None:
    for step in (20, 40):
        (two / f"run-1-checkpoint-{step}.tar").write_bytes(b"")
    with pytest.raises(Unmet, match="no mirrored checkpoint can be used") as caught:
        bring_back(two, tmp_path / "new")
    assert str(caught.value).count("its hash is not the one") == 2
    assert names_in(tmp_path / "new") == []


def test_another_run_is_not_taken_for_this_one(two: Path, tmp_path: Path) -> None:
    for run_id in ("run", "run-1-checkpoint-40", "other"):
        with pytest.raises(NotFound, match=f"no checkpoint of the run `{run_id}`") as caught:
            restore(FolderStore(two), run_id, tmp_path / "new", reporter=Notes())
        assert caught.value.hint == "There are checkpoints of `run-1`"
    with pytest.raises(NotFound) as caught:
        restore(FolderStore(tmp_path / "none"), "run-1", tmp_path / "new", reporter=Notes())
    assert caught.value.hint is None


def test_archives_are_told_by_their_name() -> None:
    assert CheckpointArchive.of("run-1-checkpoint-40.tar") == CheckpointArchive("run-1", 40)
    for name in ("run-1-checkpoint-40.tar.sha256", ".run-checkpoint-1.tar", "checkpoint-4.tar", "x.tar"):
        assert CheckpointArchive.of(name) is None


# The process


def test_a_mirror_ends_once_the_run_has_ended_and_its_last_checkpoint_is_there(
    run: RunFolder, drive: Path
) -> None:
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            make_checkpoint(run.path, 40)
            end(run)

    mirrored = Mirrored(run, drive)
    watch(mirrored.mirror, pause=1, sleep=sleep)
    assert naps == [1, 1, 1]
    assert mirrored.said == [
        "checkpoint-20 is mirrored, not confirmed",
        "checkpoint-40 is mirrored, not confirmed",
    ]


def test_a_drive_that_takes_nothing_is_asked_ever_less_and_it_is_said(run: RunFolder, drive: Path) -> None:
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 5:
            end(run)

    mirrored = Mirrored(run, drive / "not" / "there")
    watch(mirrored.mirror, pause=1, sleep=sleep)
    assert naps == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    assert mirrored.said[-1] == "the run has ended, and its last checkpoint is not mirrored"


def test_a_run_that_never_starts_is_not_waited_for_for_ever(tmp_path: Path, drive: Path) -> None:
    naps: list[float] = []
    watch(Mirrored(make_run(tmp_path / "run", process=0), drive).mirror, pause=60, sleep=naps.append)
    assert naps == [60] * 10


@pytest.fixture
def trained() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_mirror_is_a_process_of_its_own_and_outlives_who_started_it(
    tmp_path: Path, drive: Path, trained: subprocess.Popen[bytes]
) -> None:
    run = make_run(tmp_path / "run", process=trained.pid)
    (run.path / ".mirror-left").mkdir()
    make_checkpoint(run.path, 20)
    starter = (
        "import os, pathlib; from colablock.training.runs.checkpoint_mirror import start_mirror; "
        f"print(start_mirror(pathlib.Path({str(run.path)!r}), {str(drive)!r}, environ=os.environ))"
    )
    started = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    process = int(started.stdout)
    until(lambda: steps(drive) == [20], patience=60)
    assert os.getsid(process) == process
    assert not (run.path / ".mirror-left").exists()
    # A second one waits for its turn.
    second = start_mirror(run.path, str(drive), environ=os.environ)
    make_checkpoint(run.path, 40)
    trained.kill()
    trained.wait()
    until(lambda: not any(Path(f"/proc/{each}/cmdline").exists() for each in (process, second)), patience=60)
    assert steps(drive) == [40, 20]
    assert mirror_notes(run.path) == (
        "checkpoint-20 is mirrored, not confirmed",
        "checkpoint-40 is mirrored, not confirmed",
    )
    assert (run.path / "mirror-errors.txt").read_text() == ""


def test_a_target_that_cannot_be_is_named_before_anything_starts(tmp_path: Path, run: RunFolder) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        str(tmp_path / "drive" / "runs" / "mine"): NotFound,
        str(tmp_path / "file"): InvalidInput,
        "hf://name": InvalidInput,
        "hf://org/name/folder": InvalidInput,
    }
    for target, kind in cases.items():
        with pytest.raises(kind):
            start_mirror(run.path, target, environ=os.environ)
    assert main([str(run.path), str(tmp_path / "file")]) == 2
    assert mirror_notes(run.path) == (
        f"nothing is mirrored: `{tmp_path / 'file'}` is no folder to mirror to",
    )
    assert mirror_notes(tmp_path) == ()


# The hub

HUB = '''\
"""A stand-in for the hub's library: repositories are folders below HUB."""
import hashlib, os, pathlib, shutil
from dataclasses import dataclass

from . import utils

HUB = pathlib.Path(os.environ["HUB"])


def _allowed():
    if os.environ.get("HF_TOKEN") != "secret":
        raise utils.HfHubHTTPError("401 Client Error: Unauthorized\\nfor url ...")


@dataclass
class CommitOperationAdd:
    path_in_repo: str
    path_or_fileobj: str


@dataclass
class CommitOperationDelete:
    path_in_repo: str


@dataclass
class Lfs:
    sha256: str


@dataclass
class File:
    path: str
    lfs: object


class HfApi:
    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        _allowed()
        folder = HUB / repo_id
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / ".private").write_text(str(private))

    def list_repo_files(self, repo_id):
        _allowed()
        if not (HUB / repo_id).exists():
            raise utils.RepositoryNotFoundError("404")
        return [path.name for path in (HUB / repo_id).iterdir()]

    def create_commit(self, repo_id, operations, *, commit_message):
        _allowed()
        with (HUB / "commits").open("a") as commits:
            commits.write(commit_message + "\\n")
        for one in operations:
            path = HUB / repo_id / one.path_in_repo
            if isinstance(one, CommitOperationAdd):
                shutil.copyfile(one.path_or_fileobj, path)
            else:
                path.unlink()

    def get_paths_info(self, repo_id, paths):
        lied = os.environ.get("LIES")
        return [
            File(name, Lfs(lied or hashlib.sha256((HUB / repo_id / name).read_bytes()).hexdigest()))
            for name in paths
        ]


def hf_hub_download(repo_id, filename, *, local_dir):
    _allowed()
    target = pathlib.Path(local_dir) / filename
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HUB / repo_id / filename, target)
    return str(target)
'''
HUB_UTILS = "class HfHubHTTPError(OSError): pass\n\n\nclass RepositoryNotFoundError(HfHubHTTPError): pass\n"


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """Return an interpreter that has a stand-in of the hub's library."""
    python = make_venv(tmp_path / "env", sys.executable)
    package = site_of(tmp_path / "env") / "huggingface_hub"
    package.mkdir()
    (package / "__init__.py").write_text(HUB)
    (package / "utils.py").write_text(HUB_UTILS)
    (tmp_path / "hub").mkdir()
    return str(python)


def hub_store(tmp_path: Path, python: str, **more: str) -> HubStore:
    environ = {**os.environ, "HUB": str(tmp_path / "hub"), "HF_TOKEN": "secret", **more}
    store = store_of("hf://org/name", python=python, environ=environ)
    assert isinstance(store, HubStore)
    assert "secret" not in repr(store)
    return store


def test_the_hub_keeps_the_newest_two_in_a_private_repository(
    run: RunFolder, stub: str, tmp_path: Path
) -> None:
    store = hub_store(tmp_path, stub)
    said: list[str] = []
    mirror = Mirror(run, store, said.append)
    assert list_archives(store) == ()
    for step in (20, 40, 60):
        make_checkpoint(run.path, step)
        assert mirror.once()
    assert said == [f"checkpoint-{step} is mirrored" for step in (20, 40, 60)]
    assert [archive.step for archive in list_archives(store, "run-1")] == [60, 40]
    assert (tmp_path / "hub" / "org" / "name" / ".private").read_text() == "True"
    assert (tmp_path / "hub" / "commits").read_text().splitlines() == [
        "Add run-1-checkpoint-20.tar",
        "Add run-1-checkpoint-40.tar",
        "Add run-1-checkpoint-60.tar",
        "Take away what is older",
    ]
    damage(tmp_path / "hub" / "org" / "name" / "run-1-checkpoint-60.tar", 3000)
    told = Notes()
    found = restore(store, "run-1", tmp_path / "new", reporter=told)
    assert found.name == "checkpoint-40"
    assert verify_checkpoint(found) == ()
    assert len(told.notes) == 1
    assert not list(run.path.glob(".mirror-*"))


def test_what_the_hub_has_otherwise_is_not_confirmed(run: RunFolder, stub: str, tmp_path: Path) -> None:
    said: list[str] = []
    Mirror(run, hub_store(tmp_path, stub, LIES="0" * 64), said.append).once()
    assert said == ["checkpoint-20 is mirrored, not confirmed"]


def test_a_hub_that_refuses_is_worded_in_one_line(run: RunFolder, stub: str, tmp_path: Path) -> None:
    said: list[str] = []
    assert not Mirror(run, hub_store(tmp_path, stub, HF_TOKEN="other"), said.append).once()
    reason = f"`{stub}` could not reach `hf://org/name`: HfHubHTTPError: 401 Client Error: Unauthorized"
    assert said == [f"checkpoint-20 is not mirrored: {reason}; it is tried again"]
    with pytest.raises(Unmet, match="could not reach"):
        list_archives(hub_store(tmp_path, stub, HF_TOKEN="other"))
