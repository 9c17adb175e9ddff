"""Only valid checkpoints are restored from a mirror."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from colablock.errors import NotFound, Unmet
from colablock.training.runs.checkpoints.archives import CheckpointArchive
from colablock.training.runs.checkpoints.finder import verify_checkpoint
from colablock.training.runs.checkpoints.restore import restore_checkpoint
from colablock.training.runs.checkpoints.stores import (
    FolderStore,
)
from colablock.training.runs.folder import RunFolder
from tests.support.checkpoints import make_checkpoint
from tests.support.mirrors import ODDITIES, NotedMirror, archived_steps, flip_bit, names_in, restore_from
from tests.support.reporters import Notes

MANIFEST = "colablock.json"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another byte": lambda path: flip_bit(path, 3000),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another hash": lambda path: flip_bit(path.with_name(f"{path.name}.sha256"), 5),
    "an empty hash": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(b""),
}


@pytest.fixture
def two(run: RunFolder, drive: Path) -> Path:
    NotedMirror(run, drive).mirror_newest()
    make_checkpoint(run.path, 40)
    NotedMirror(run, drive).mirror_newest()
    assert archived_steps(drive) == [40, 20]
    return drive


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_an_archive_with_a_wrong_hash_is_skipped_with_a_note(
    two: Path, how: Callable[[Path], object], tmp_path: Path
) -> None:
    how(two / "run-1-checkpoint-40.tar")
    found, notes = restore_from(two, tmp_path / "new")
    assert found.name == "checkpoint-20"
    assert verify_checkpoint(found) == ()
    reason = "its SHA-256 differs from the one in its hash file"
    assert notes == [f"the mirrored checkpoint-40 cannot be used: {reason}; trying checkpoint-20"]
    assert not (tmp_path / "new" / "checkpoint-40").exists()


@pytest.mark.parametrize("suffix", ["", ".sha256"])
@pytest.mark.parametrize("make", ODDITIES.values(), ids=ODDITIES)
def test_what_is_no_file_is_skipped_with_a_note(
    two: Path, make: Callable[[Path], object], suffix: str, tmp_path: Path
) -> None:
    path = two / f"run-1-checkpoint-40.tar{suffix}"
    path.unlink()
    make(path)
    for name in ("other\n.tar", "run-1-checkpoint-60.tar\n", "run-1-checkpoint-x.tar", ".x.tar"):
        make(two / name)
        make(two / f"{name}.sha256")
    found, notes = restore_from(two, tmp_path / "new")
    assert found.name == "checkpoint-20"
    assert [note.startswith("the mirrored checkpoint-40 cannot be used: ") for note in notes] == [True]


def test_an_archive_without_a_hash_file_is_ignored(two: Path, tmp_path: Path) -> None:
    (two / "run-1-checkpoint-40.tar.sha256").unlink()
    assert restore_from(two, tmp_path / "new") == (tmp_path / "new" / "checkpoint-20", [])


def repack(archive: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Write an archive of *members* with a matching hash file."""
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
def test_an_archive_with_other_members_writes_no_files(
    two: Path, members: list[tuple[tarfile.TarInfo, bytes]], said: str, tmp_path: Path
) -> None:
    repack(two / "run-1-checkpoint-40.tar", *members)
    found, notes = restore_from(two, tmp_path / "new")
    assert found.name == "checkpoint-20"
    assert said in notes[0]
    names = ["checkpoint-20", "metrics.jsonl", "mirror.json", "run.json"]
    assert names_in(tmp_path / "new") == names
    assert not (tmp_path / "x").exists()


def test_valid_checkpoints_are_kept_and_damaged_ones_replaced(
    run: RunFolder, two: Path, tmp_path: Path
) -> None:
    (run.path / "checkpoint-40" / "optimizer.pt").write_bytes(b"damaged")
    (run.path / "run.json").write_text((run.path / "run.json").read_text().replace("some/tiny-llama", "c/d"))
    found, _ = restore_from(two, run.path)
    assert verify_checkpoint(found) == ()
    record = run.record()
    assert record is not None
    assert record.model == "c/d"
    # What came back is not mirrored again.
    new = tmp_path / "new"
    restore_from(two, new)
    again = NotedMirror(RunFolder(new), two)
    assert again.mirror_newest()
    assert again.notes == []
    # Nothing is fetched for one that is whole, and what a killed process left there goes.
    (two / "run-1-checkpoint-40.tar").write_bytes(b"")
    (run.path / ".restore-left").mkdir()
    assert restore_from(two, run.path) == (found, [])
    assert not (run.path / ".restore-left").exists()


def test_without_a_valid_archive_every_reason_is_reported(two: Path, tmp_path: Path) -> None:
    for step in (20, 40):
        (two / f"run-1-checkpoint-{step}.tar").write_bytes(b"")
    with pytest.raises(Unmet, match="no mirrored checkpoint can be used") as caught:
        restore_from(two, tmp_path / "new")
    assert str(caught.value).count("its SHA-256 differs") == 2
    assert names_in(tmp_path / "new") == []


def test_archives_of_other_runs_are_not_restored(two: Path, tmp_path: Path) -> None:
    for run_id in ("run", "run-1-checkpoint-40", "other"):
        with pytest.raises(NotFound, match=f"the mirror has no checkpoint of the run `{run_id}`") as caught:
            restore_checkpoint(FolderStore(two), run_id, tmp_path / "new", reporter=Notes())
        assert caught.value.hint == "It has checkpoints of `run-1`"
    with pytest.raises(NotFound) as caught:
        restore_checkpoint(FolderStore(tmp_path / "none"), "run-1", tmp_path / "new", reporter=Notes())
    assert caught.value.hint is None


def test_archives_are_recognised_by_name() -> None:
    assert CheckpointArchive.of("run-1-checkpoint-40.tar") == CheckpointArchive("run-1", 40)
    for name in ("run-1-checkpoint-40.tar.sha256", ".run-checkpoint-1.tar", "checkpoint-4.tar", "x.tar"):
        assert CheckpointArchive.of(name) is None
