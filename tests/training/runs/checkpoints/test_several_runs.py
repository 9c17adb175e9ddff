"""Several runs with one id in one mirror: the one that was started last is restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from colablock.errors import NotFound, Unmet
from colablock.training.runs.checkpoints.finder import is_sharded
from colablock.training.runs.checkpoints.restore import restore_checkpoint
from colablock.training.runs.checkpoints.stores import FolderStore
from colablock.training.runs.folder import RunFolder
from tests.support.checkpoints import make_checkpoint, write_manifest
from tests.support.faults import die, full, in_a_child
from tests.support.mirrors import ODDITIES, Failing, NotedMirror, names_in, restore_from
from tests.support.reporters import Notes
from tests.support.runs import STARTED, make_run, process_facts

EARLIER, NEWER = "0000000a", "0000000b"
NEWEST = "run-1-newest.txt"


def make_marked(folder: Path, mark: str, *steps: int, started: float = STARTED) -> RunFolder:
    """Return a run that is running, with checkpoints of *steps*."""
    run = make_run(folder, id="run-1", mark=mark, started=started, **process_facts())
    for step in steps:
        make_checkpoint(run.path, step, more=mark.encode())
    return run


def restored(drive: Path, into: Path) -> tuple[str, str]:
    """Return the mark and the checkpoint that are restored in an empty folder."""
    checkpoint, _ = restore_from(drive, into)
    record = RunFolder(into).record()
    assert record is not None
    assert (checkpoint / "adapter_model.safetensors").read_bytes().endswith(record.mark.encode())
    return record.mark, checkpoint.name


@pytest.fixture
def earlier(tmp_path: Path, drive: Path) -> RunFolder:
    """Return a run of which *drive* has steps 60 and 80."""
    run = make_marked(tmp_path / "earlier", EARLIER)
    for step in (60, 80):
        make_checkpoint(run.path, step, more=EARLIER.encode())
        assert NotedMirror(run, drive).mirror_newest()
    return run


@pytest.mark.usefixtures("earlier")
def test_each_run_keeps_two_archives_of_its_own(drive: Path, tmp_path: Path) -> None:
    run = make_marked(tmp_path / "newer", NEWER)
    for step in (60, 100, 120):
        make_checkpoint(run.path, step, more=NEWER.encode())
        assert NotedMirror(run, drive).mirror_newest()
    assert [name for name in names_in(drive) if not name.endswith(".sha256")] == [
        f"run-1-checkpoint-100-{NEWER}.tar",
        f"run-1-checkpoint-120-{NEWER}.tar",
        f"run-1-checkpoint-60-{EARLIER}.tar",
        f"run-1-checkpoint-80-{EARLIER}.tar",
        NEWEST,
    ]


@pytest.mark.usefixtures("earlier")
def test_no_clock_tells_which_run_is_the_newest(drive: Path, tmp_path: Path) -> None:
    newer = make_marked(tmp_path / "newer", NEWER, 20, started=STARTED - 86_400)
    assert NotedMirror(newer, drive).mirror_newest()
    assert restored(drive, tmp_path / "new") == (NEWER, "checkpoint-20")


def test_of_two_runs_at_once_the_one_that_was_started_last_is_restored(
    earlier: RunFolder, drive: Path, tmp_path: Path
) -> None:
    newer = make_marked(tmp_path / "newer", NEWER, 20)
    assert NotedMirror(newer, drive).mirror_newest()
    make_checkpoint(earlier.path, 100, more=EARLIER.encode())
    assert NotedMirror(earlier, drive).mirror_newest()
    make_checkpoint(newer.path, 40, more=NEWER.encode())
    assert NotedMirror(newer, drive).mirror_newest()
    assert restored(drive, tmp_path / "new") == (NEWER, "checkpoint-40")
    make_marked(earlier.path, EARLIER, started=STARTED + 1)  # it is resumed
    assert NotedMirror(earlier, drive).mirror_newest()
    assert restored(drive, tmp_path / "other") == (EARLIER, "checkpoint-100")


@pytest.mark.usefixtures("earlier")
def test_a_newer_run_without_a_checkpoint_has_none_to_restore(drive: Path, tmp_path: Path) -> None:
    assert NotedMirror(make_marked(tmp_path / "newer", NEWER), drive).mirror_newest()
    with pytest.raises(NotFound, match="the mirror has no checkpoint of the run `run-1`"):
        restore_from(drive, tmp_path / "new")


@pytest.mark.usefixtures("earlier")
def test_checkpoints_of_a_damaged_newer_run_are_not_replaced_by_earlier_ones(
    drive: Path, tmp_path: Path
) -> None:
    assert NotedMirror(make_marked(tmp_path / "newer", NEWER, 20), drive).mirror_newest()
    (drive / f"run-1-checkpoint-20-{NEWER}.tar").write_bytes(b"")
    with pytest.raises(Unmet, match="no mirrored checkpoint can be used"):
        restore_from(drive, tmp_path / "new")


@pytest.mark.usefixtures("earlier")
def test_archives_without_a_mark_are_of_an_earlier_version(drive: Path, tmp_path: Path) -> None:
    """They are restored until a run with a mark begins, and such a run goes on without one."""
    old = make_marked(tmp_path / "old", "", 20, 200)
    other = tmp_path / "other"
    assert NotedMirror(old, other).mirror_newest()
    assert names_in(other) == ["run-1-checkpoint-200.tar", "run-1-checkpoint-200.tar.sha256"]
    assert restored(other, tmp_path / "new") == ("", "checkpoint-200")
    assert NotedMirror(old, drive).mirror_newest()
    assert restored(drive, tmp_path / "newer") == (EARLIER, "checkpoint-80")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:4]),
    "zeroed": lambda path: path.write_bytes(bytes(9)),
}


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.usefixtures("earlier")
def test_without_the_newest_run_the_latest_step_is_restored(
    drive: Path, tmp_path: Path, how: Callable[[Path], object]
) -> None:
    """A mounted drive uploads later, and may have been cut off."""
    assert NotedMirror(make_marked(tmp_path / "newer", NEWER, 20), drive).mirror_newest()
    how(drive / NEWEST)
    assert restored(drive, tmp_path / "new") == (EARLIER, "checkpoint-80")


@pytest.mark.parametrize("make", ODDITIES.values(), ids=ODDITIES)
@pytest.mark.usefixtures("earlier")
def test_a_newest_run_that_cannot_be_read_is_an_error(
    drive: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    (drive / NEWEST).unlink()
    make(drive / NEWEST)
    with pytest.raises(Unmet, match=f"the mirror cannot return `{NEWEST}`: "):
        restore_from(drive, tmp_path / "new")


@pytest.mark.parametrize("error", [full, die])
@pytest.mark.usefixtures("earlier")
def test_a_start_that_is_cut_off_mixes_no_runs(
    drive: Path, tmp_path: Path, error: Callable[[], BaseException]
) -> None:
    """After a failure or a kill at any operation, the newer run follows the earlier one or nothing."""
    found = []
    for at in range(20):
        newer = make_marked(tmp_path / f"newer-{at}", NEWER, 20)
        cut = NotedMirror(newer, drive, Failing(at, error))
        in_a_child(cut.mirror_newest) if error is die else cut.mirror_newest()
        try:
            found.append(restored(drive, tmp_path / f"new-{at}")[0])
        except NotFound:
            found.append("none")
        assert NotedMirror(newer, drive).mirror_newest()
        assert restored(drive, tmp_path / f"after-{at}") == (NEWER, "checkpoint-20")
        for name in (NEWEST, *(name for name in names_in(drive) if NEWER in name)):
            (drive / name).unlink()
        (drive / NEWEST).write_text(EARLIER)
    assert found == sorted(found, key=[EARLIER, "none", NEWER].index)
    assert set(found) == {EARLIER, "none", NEWER}


def test_a_folder_with_a_run_gets_only_its_own_checkpoints(
    earlier: RunFolder, drive: Path, tmp_path: Path
) -> None:
    newer = make_marked(tmp_path / "newer", NEWER, 20)
    assert NotedMirror(newer, drive).mirror_newest()
    for run, step in ((earlier, 80), (newer, 20)):
        (run.path / "mirror.json").unlink()
        (run.path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
        store = FolderStore(drive)
        found = restore_checkpoint(store, "run-1", run.path, reporter=Notes(), only_own=True)
        assert found == run.path / f"checkpoint-{step}"


@pytest.mark.usefixtures("earlier")
def test_archives_of_a_sharded_run_are_told_apart(drive: Path, tmp_path: Path) -> None:
    newer = make_marked(tmp_path / "newer", NEWER, 80)
    part = "pytorch_model_fsdp_0/__1_0.distcp"
    (newer.path / "checkpoint-80" / part).parent.mkdir()
    (newer.path / "checkpoint-80" / part).write_text(NEWER)
    write_manifest(newer.path / "checkpoint-80")
    assert NotedMirror(newer, drive).mirror_newest()
    found, _ = restore_from(drive, tmp_path / "new")
    assert is_sharded(found)
    assert (found / part).read_text() == NEWER
