from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from colablock.environment.site import Site
from colablock.errors import NotRestored, Refused
from colablock.transaction.disk_operations import Operation, OperationKind, Operations
from colablock.transaction.journal import Journal
from colablock.transaction.recovery import recover
from colablock.transaction.site_lock import locked
from tests.support.faults import Faulty, FaultyAndStuck, Moment, die, full, in_a_child
from tests.support.timing import PATIENCE, until
from tests.support.trees import Listing, listing

pytestmark = pytest.mark.stdlib


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    root = tmp_path / "env"
    purelib = root / "lib" / "site"
    write(purelib, old__a="a", old__deep__b="b", single="s", shared__stays="x", shared__goes="y")
    (purelib / "old" / "empty").mkdir(mode=0o700)
    (purelib / "old" / "link").symlink_to("a")
    (purelib / "single").chmod(0o640)
    (purelib / "old" / "a").chmod(0o755)
    return Site(
        python="",
        prefix=str(root),
        data=str(root),
        purelib=str(purelib),
        platlib=str(purelib),
        scripts=str(root / "bin"),
    )


def stash_of(site: Site) -> Path:
    return site.state / "changes" / "0001" / "stash"


def journal(site: Site, state: Path, disk: Operations | None = None) -> Journal:
    return Journal(state, operations(site), becomes=stash_of(site).with_name("record.json"), disk=disk)


def without_record(root: Path) -> Listing:
    """Return a listing of everything, except the record of a change, which differs in its operations."""
    return {path: what for path, what in listing(root).items() if not path.endswith("/record.json")}


def operations(site: Site) -> list[Operation]:
    """Stage new files, and return a change with operations of every kind."""
    pure, state = site.purelib, site.state
    write(state / "stage", new__a="new a", new__deep__c="new c", single="new s", goes="new y")
    stash = stash_of(site)
    stash.mkdir(parents=True)
    (state / "stage" / "new" / "deep").chmod(0o750)
    outs = [f"{pure}/old", f"{pure}/single", f"{pure}/shared/goes"]
    ins = [("new", f"{pure}/old"), ("single", f"{pure}/single"), ("goes", f"{pure}/made/goes")]
    return [
        *(
            Operation(kind=OperationKind.OUT, source=path, destination=str(stash / str(number)))
            for number, path in enumerate(outs)
        ),
        *(
            Operation(kind=OperationKind.IN, source=str(state / "stage" / name), destination=path)
            for name, path in ins[:2]
        ),
        Operation(kind=OperationKind.MKDIR, destination=f"{pure}/made"),
        Operation(kind=OperationKind.IN, source=str(state / "stage" / ins[2][0]), destination=ins[2][1]),
    ]


def change(site: Site, disk: Operations) -> None:
    with locked(site) as state, journal(site, state, disk) as change:
        change.run()
        change.commit()


def test_a_committed_change_keeps_only_its_record_and_stash(site: Site) -> None:
    change(site, Operations())
    pure = Path(site.purelib)
    found = {
        path.relative_to(pure).as_posix(): path.read_text() for path in pure.rglob("*") if path.is_file()
    }
    assert found == {
        "old/a": "new a",
        "old/deep/c": "new c",
        "single": "new s",
        "shared/stays": "x",
        "made/goes": "new y",
    }
    assert [path.name for path in site.state.iterdir()] == ["changes"]
    assert stash_of(site).joinpath("0", "deep", "b").read_text() == "b"


@pytest.mark.parametrize("what", ["folders", "everything"])
def test_without_renames_the_result_is_the_same(site: Site, what: str, tmp_path: Path) -> None:
    (tmp_path / "env").rename(tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", tmp_path / "env", symlinks=True)
    change(site, Operations())
    renamed = without_record(tmp_path / "env")
    shutil.rmtree(tmp_path / "env")
    (tmp_path / "kept").rename(tmp_path / "env")
    change(site, FaultyAndStuck(what, -1, full))
    assert without_record(tmp_path / "env") == renamed


@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER])
@pytest.mark.parametrize("error", [full, KeyboardInterrupt], ids=["disk full", "interrupt"])
@pytest.mark.parametrize("what", ["nothing", "folders", "everything"])
def test_a_failure_of_any_operation_restores_the_old_state(
    site: Site, tmp_path: Path, what: str, error: Callable[[], BaseException], moment: Moment
) -> None:
    before = listing(tmp_path)
    failures = 0
    for at in range(200):
        try:
            change(site, FaultyAndStuck(what, at, error, moment=moment))
        except (OSError, KeyboardInterrupt):
            failures += 1
            if listing(tmp_path) != before:
                break
        else:
            break
    # The rename of the journal is the commit: a failure after it does not undo the change.
    assert failures >= 8
    assert stash_of(site).with_name("record.json").is_file()
    assert Path(site.purelib, "made", "goes").read_text() == "new y"


@pytest.mark.slow  # at each operation
@pytest.mark.parametrize("what", ["nothing", "folders", "everything"])
def test_the_next_call_undoes_the_change_of_a_process_that_died(
    site: Site, tmp_path: Path, what: str
) -> None:
    before = listing(tmp_path)
    for at in range(200):
        if in_a_child(partial(change, site, FaultyAndStuck(what, at, die))) == 0:
            break
        recover(site)
        assert listing(tmp_path) == before, at
    assert at >= 8


@pytest.mark.slow  # at each operation
def test_the_next_call_continues_a_recovery_that_died(site: Site, tmp_path: Path) -> None:
    before = listing(tmp_path)
    for first in (6, 17, 30):
        for at in range(200):
            in_a_child(partial(change, site, FaultyAndStuck("everything", first, die)))
            if in_a_child(partial(recover, site, disk=Faulty(at, die))) == 0:
                break
            recover(site)
            assert listing(tmp_path) == before, (first, at)
        assert listing(tmp_path) == before


def test_recovery_sets_the_permissions_of_a_folder_that_was_just_created(site: Site, tmp_path: Path) -> None:
    Path(site.purelib, "old").chmod(0o700)
    before = listing(tmp_path)
    stop = partial(change, site, FaultyAndStuck("folders", 12, die))
    in_a_child(stop)
    seen = Faulty(-1, die)
    assert recover(site, disk=seen)
    in_a_child(stop)
    cut_short = Faulty(seen.names.index("mkdir"), die, moment=Moment.MIDWAY)
    assert in_a_child(partial(recover, site, disk=cut_short)) < 0
    assert recover(site)
    assert listing(tmp_path) == before


def test_the_lock_works_on_a_full_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("colablock.transaction.site_lock.replace_file", is_full)
    with locked(site):
        pass
    assert not site.state.exists()


def test_without_commit_the_change_is_undone(site: Site, tmp_path: Path) -> None:
    before = listing(tmp_path)
    with locked(site) as state, journal(site, state) as change:
        change.run()
    assert listing(tmp_path) == before


def test_files_of_others_do_not_prevent_an_undo(site: Site, tmp_path: Path) -> None:
    before = listing(tmp_path)
    with locked(site) as state, journal(site, state) as change:
        change.run()
        write(Path(site.purelib), made____pycache____goes="bytecode", old__more="m")
        write(Path(site.purelib, "shared"), goes="in the way")
    assert listing(tmp_path) == before


class Image(Faulty):
    """A disk on which folders of the image cannot be renamed, as on overlayfs."""

    def __init__(
        self, at: int = -1, error: Callable[[], BaseException] = full, *, moment: Moment = Moment.BEFORE
    ) -> None:
        super().__init__(at, error, moment=moment)

    def rename(self, source: str, destination: str) -> None:
        if Path(source).is_dir() and "/.colablock/" not in source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
        super().rename(source, destination)


def change_without_undo(site: Site, disk: Operations) -> None:
    becomes = stash_of(site).with_name("record.json")
    with (
        locked(site) as state,
        Journal(state, operations(site), becomes=becomes, undo=False, disk=disk) as change,
    ):
        change.run()
        change.commit()


def test_without_undo_folders_that_cannot_be_renamed_are_deleted(site: Site) -> None:
    change_without_undo(site, Image())
    pure = Path(site.purelib)
    assert (pure / "old" / "a").read_text() == "new a"
    assert not (pure / "old" / "empty").exists()
    record = json.loads(stash_of(site).with_name("record.json").read_text())
    assert record["is_dropped"]
    assert not stash_of(site).exists()


def test_without_undo_a_change_that_deletes_nothing_can_be_undone(site: Site) -> None:
    change_without_undo(site, Operations())
    assert not json.loads(stash_of(site).with_name("record.json").read_text())["is_dropped"]
    assert (stash_of(site) / "1").read_text() == "s"


class Written(FaultyAndStuck):
    """Cannot rename any folder, and records for each journal whether recovery would finish the change."""

    def __init__(self) -> None:
        super().__init__("folders", -1, full)
        self.forward: list[bool] = []

    def write(self, path: str, text: str) -> None:
        self.forward.append(json.loads(text)["forward"])
        super().write(path, text)


def test_a_change_that_cannot_be_undone_is_marked_in_every_later_journal(site: Site) -> None:
    disk = Written()
    change_without_undo(site, disk)
    assert disk.forward == [False, True, True]


@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER])
@pytest.mark.parametrize("dies", [False, True], ids=["disk full", "killed"])
def test_without_undo_a_stopped_change_is_undone_or_finished(
    site: Site, tmp_path: Path, moment: Moment, dies: bool
) -> None:
    before = listing(tmp_path)
    kept = tmp_path.with_name(f"{tmp_path.name}-kept")
    shutil.copytree(tmp_path, kept, symlinks=True)
    change_without_undo(site, Image())
    done = without_record(tmp_path)
    ends = []
    for at in range(200):
        shutil.rmtree(tmp_path)
        shutil.copytree(kept, tmp_path, symlinks=True)
        disk = Image(at, die if dies else full, moment=moment)
        if dies:
            is_over = in_a_child(partial(change_without_undo, site, disk)) == 0
        else:
            with suppress(OSError):
                change_without_undo(site, disk)
            is_over = disk.count <= at
        recover(site)
        ends.append(listing(tmp_path) == before)
        assert ends[-1] or without_record(tmp_path) == done, at
        if is_over:
            break
    assert 1 <= sum(ends) < len(ends) - 8
    assert ends == sorted(ends, reverse=True)


class Broken(Operations):
    """Works until it is broken, and always fails then."""

    broken = False

    def rename(self, source: str, destination: str) -> None:
        if self.broken:
            raise full()
        super().rename(source, destination)


def test_a_failed_undo_keeps_the_stash_and_the_next_call_completes_it(site: Site, tmp_path: Path) -> None:
    before = listing(tmp_path)
    disk = Broken()
    with (
        pytest.raises(NotRestored) as caught,
        locked(site) as state,
        journal(site, state, disk) as change,
    ):
        change.run()
        disk.broken = True
    assert caught.value.stash == str(stash_of(site))
    assert Path(caught.value.stash, "1").read_text() == "s"
    assert json.loads((site.state / "journal.json").read_text())["pid"] == os.getpid()
    assert recover(site)
    assert listing(tmp_path) == before
    assert not recover(site)


def test_an_existing_file_is_never_overwritten(site: Site, tmp_path: Path) -> None:
    write(Path(site.purelib, "made"), goes="mine")
    before = listing(tmp_path / "env" / "lib")
    with pytest.raises(FileExistsError), locked(site) as state, journal(site, state) as change:
        change.run()
    assert listing(tmp_path / "env" / "lib") == before


def test_recover_does_nothing_in_an_unchanged_site(site: Site) -> None:
    assert not recover(site)


@pytest.fixture
def other_process(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    folders = dict.fromkeys(("prefix", "purelib", "platlib", "scripts", "data"), site.data)
    script = (
        "import time\n"
        "from colablock.transaction.site_lock import locked\n"
        "from colablock.environment.site import Site\n"
        f"with locked(Site(python='', **{folders!r})):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with process:
        yield process
        process.kill()


def test_a_second_change_waits_and_then_names_the_first(
    site: Site, other_process: subprocess.Popen[bytes]
) -> None:
    started = time.monotonic()
    with pytest.raises(Refused, match=str(other_process.pid)), locked(site, wait=0.3):
        pass
    assert 0.3 <= time.monotonic() - started < PATIENCE  # the other one holds it for longer


def test_a_lock_ends_with_its_process(site: Site, other_process: subprocess.Popen[bytes]) -> None:
    other_process.kill()
    other_process.wait()
    with locked(site) as state:
        assert (state / "pid").read_text() == f"{os.getpid()}\n"
    assert not site.state.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"operations": [{"kind": "sideways"}]}', '{"operations": 1}'])
def test_a_damaged_journal_is_reported_with_the_stash(text: str, site: Site) -> None:
    stash_of(site).mkdir(parents=True)
    (stash_of(site) / "kept").touch()
    (site.state / "journal.json").write_text(text)
    with pytest.raises(NotRestored, match="its journal is damaged") as caught:
        recover(site)
    assert caught.value.stash == str(stash_of(site))
    assert (stash_of(site) / "kept").exists()


def test_another_process_deletes_large_leftovers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3000):
        write(site.state / "stage" / str(number), file="x")
    monkeypatch.setattr("colablock.transaction.recovery._PATIENCE", 0)
    recover(site)
    assert not (site.state / "stage").exists()
    until(lambda: not (site.state / "trash").exists())
