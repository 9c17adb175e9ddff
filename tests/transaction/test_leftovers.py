"""What appears in the folders of a change goes with them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from colablock.environment.site import read_site
from colablock.errors import Interrupted, RolledBack, Unmet
from colablock.transaction.recovery import clean_up, recover
from colablock.transaction.rollback import UndoneChange, roll_back
from tests.support.faults import FaultyAndStuck, Moment, die, full, in_a_child
from tests.support.reporters import Notes
from tests.support.runtime import Stub, build_site
from tests.support.small_ground import SmallGround
from tests.support.trees import listing
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.stdlib

FINDS = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]))"


def undo(place: SmallGround) -> UndoneChange:
    site = read_site(place.python, os.environ)
    (undone,) = roll_back(site, look=place.snapshot, aside=place.folder / "aside")
    return undone


def spec_of(place: SmallGround, name: str) -> str:
    command = [place.python, "-B", "-c", FINDS, name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def copies(place: SmallGround) -> dict[str, str]:
    below = place.folder / "aside"
    return {path.name: path.read_text() for path in below.rglob("*") if path.is_file()}


def test_a_package_that_writes_beside_itself_leaves_no_namespace(place: SmallGround) -> None:
    before = listing(place.venv)
    writes = (
        "import pathlib\nfolder = pathlib.Path(__file__).parent\n(folder / 'seen.json').write_text('{}')\n"
    )
    wheel = make_wheel(place.folder, "writer", "1.0", modules={"writer/__init__.py": writes})
    place.apply(place.put(wheel))
    subprocess.run([place.python, "-c", "import writer"], check=True)
    undone = undo(place)
    assert listing(place.venv) == before
    assert spec_of(place, "writer") == "None"
    assert undone.set_aside == (str(place.site / "writer" / "seen.json"),)
    assert copies(place) == {"seen.json": "{}"}
    assert Path(undone.aside, "lib") == next(Path(undone.aside).iterdir())


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


# What others do in the site, and the names that are set aside.
APPEARED: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "bytecode": (lambda site: write(site / "new/__pycache__/extra.cpython-312.pyc"), set()),
    "old bytecode": (lambda site: write(site / "new/extra.pyc"), set()),
    "a cache of numba": (lambda site: write(site / "new/__pycache__/f-1.py312.nbi"), set()),
    "an empty folder": (lambda site: (site / "new/cache/deep").mkdir(parents=True), set()),
    "a module": (lambda site: write(site / "new/generated.py"), {"generated.py"}),
    "a deep file": (lambda site: write(site / "new/a/b/c.bin"), {"c.bin"}),
    "a file of a data folder": (lambda site: write(site.parents[2] / "share/new/y.txt"), {"y.txt"}),
    "a link to a folder": (lambda site: link(site / "new/models", site / "stays"), {"models"}),
    "a dangling link": (lambda site: link(site / "new/gone", "/nowhere"), {"gone"}),
    "a pipe": (lambda site: os.mkfifo(site / "new/pipe"), {"pipe"}),
    "a folder of a new version": (lambda site: write(site / "moved/cache2/z"), {"z"}),
    "bytecode of a module at the top": (lambda site: write(site / "__pycache__/top.cpython-312.pyc"), set()),
}


@pytest.mark.parametrize("case", APPEARED)
def test_what_appears_in_new_folders_goes(place: SmallGround, case: str) -> None:
    before = listing(place.venv)
    appear, kept = APPEARED[case]
    top = make_wheel(place.folder, "top", "1.0", modules={"top.py": ""})
    place.apply(*place.steps(), place.put(top))
    appear(place.site)
    undone = undo(place)
    assert listing(place.venv) == before
    assert {Path(path).name for path in undone.set_aside} == kept
    assert undone.left == ()
    assert bool(undone.aside) is bool(kept)


def test_other_distributions_in_new_folders_stay(place: SmallGround) -> None:
    place.apply(*place.steps())
    build_site(place.site, [Stub(name="since", version="1.0", files={"new/since.py": "s"})])
    write(place.site / "new" / "__pycache__" / "since.cpython-312.pyc")
    write(place.site / "new" / "mine.txt")
    undone = undo(place)
    found = {path for path in listing(place.site) if path.startswith("new/")}
    assert found == {"new/since.py", "new/__pycache__", "new/__pycache__/since.cpython-312.pyc"}
    assert set(copies(place)) == {"mine.txt"}
    assert undone.left == ()


def test_files_beside_restored_ones_stay_and_are_named(place: SmallGround) -> None:
    place.apply(*place.steps())
    write(place.site / "moved" / "mine.txt")
    write(place.site / "moved" / "__pycache__" / "mine.cpython-312.pyc")
    undone = undo(place)
    assert (place.site / "moved" / "mine.txt").exists()
    assert undone.left == (str(place.site / "moved" / "mine.txt"),)
    assert undone.set_aside == ()


def test_another_file_system_gets_copies(place: SmallGround, monkeypatch: pytest.MonkeyPatch) -> None:
    place.apply(*place.steps())
    write(place.site / "new" / "mine.txt", "mine")
    link(place.site / "new" / "link", "/nowhere")
    os.mkfifo(place.site / "new" / "pipe")

    def no_link(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", no_link)
    undo(place)
    assert copies(place) == {"mine.txt": "mine"}
    # Before Python 3.12, a glob for an exact name leaves out links that lead nowhere.
    assert any(path.is_symlink() for path in (place.folder / "aside").rglob("*") if path.name == "link")


def test_without_room_for_the_files_nothing_is_undone(
    place: SmallGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.apply(*place.steps())
    write(place.site / "new" / "mine.txt", "mine")
    before = listing(place.venv)

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_room)
    monkeypatch.setattr("shutil.copy2", no_room)
    with pytest.raises(Unmet, match="No space left on device"):
        undo(place)
    assert listing(place.venv) == before
    assert copies(place) == {}


def test_files_stay_if_the_folder_for_them_cannot_be_written(place: SmallGround) -> None:
    place.apply(*place.steps())
    write(place.site / "new" / "mine.txt", "mine")
    (place.folder / "aside").write_text("in the way")
    notes = Notes()
    (undone,) = roll_back(
        read_site(place.python, os.environ), look=place.snapshot, aside=place.folder / "aside", reporter=notes
    )
    assert undone.left == (str(place.site / "new" / "mine.txt"),)
    assert (undone.set_aside, undone.aside) == ((), "")
    assert listing(place.site / "new").keys() == {"mine.txt"}
    why = f"`{place.folder / 'aside'}` cannot be written: Not a directory"
    assert notes.notes == [f"left 1 file of no distribution in folders of the change: {why}"]


def appeared(place: SmallGround) -> None:
    place.apply(*place.steps())
    for name in ("new/seen.json", "new/sub/more.bin", "moved/mine.txt", "new/__pycache__/x.cpython-312.pyc"):
        write(place.site / name)


@pytest.mark.slow  # at each operation
@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER])
@pytest.mark.parametrize("what", ["nothing", "folders"])
def test_an_undo_that_fails_moves_nothing_aside(place: SmallGround, what: str, moment: Moment) -> None:
    appeared(place)
    before = listing(place.venv)
    site, snapshot = read_site(place.python, os.environ), place.snapshot()  # restored each time
    aside = place.folder / "aside"
    for at in range(500):
        disk = FaultyAndStuck(what, at, full, moment=moment)
        try:
            roll_back(site, look=lambda: snapshot, aside=aside, disk=disk)
        except RolledBack:
            assert listing(place.venv) == before, at
            assert not list(aside.glob("*")), at
        else:
            break
    assert at >= 10
    assert set(copies(place)) == {"seen.json", "more.bin"}


@pytest.mark.slow  # at each operation
def test_an_undo_that_dies_is_undone_with_its_files(place: SmallGround) -> None:
    first = listing(place.venv)
    appeared(place)
    before = listing(place.venv)
    site, snapshot = read_site(place.python, os.environ), place.snapshot()  # restored each time

    def dies(at: int) -> None:
        roll_back(
            site, look=lambda: snapshot, aside=place.folder / "aside", disk=FaultyAndStuck("folders", at, die)
        )

    for at in range(500):
        if in_a_child(partial(dies, at)) == 0:
            break
        recover(site)
        assert listing(place.venv) == before, at
    assert at >= 10
    (place.site / "moved" / "mine.txt").unlink()
    assert listing(place.venv) == first


def test_a_failed_change_leaves_nothing_of_its_proof(place: SmallGround) -> None:
    before = listing(place.venv)

    def prove(_: object) -> tuple[()]:
        write(place.site / "new" / "seen.json")
        write(place.site / "shared2" / "deep" / "seen.json")
        raise RolledBack("it fails")

    wheel = make_wheel(place.folder, "deep", "1.0", modules={"shared2/deep/__init__.py": ""})
    with pytest.raises(RolledBack):
        place.apply(*place.steps(), place.put(wheel), prove=prove)
    assert listing(place.venv) == before


def stops() -> None:
    raise KeyboardInterrupt


def fails() -> None:
    raise full()


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("error", [stops, fails])
def test_an_end_after_the_commit_loses_no_file(
    place: SmallGround, monkeypatch: pytest.MonkeyPatch, error: Callable[[], None], *, is_done: bool
) -> None:
    """The cleanup comes after the commit: an interrupt or an error before it or after it undoes nothing."""
    place.apply(*place.steps())
    write(place.site / "new" / "mine.txt", "mine")

    def cleans_up(state: Path, **_: object) -> None:
        if is_done:
            clean_up(state)
        error()

    monkeypatch.setattr("colablock.transaction.journal.clean_up", cleans_up)
    if error is fails:
        assert undo(place).set_aside == (str(place.site / "new" / "mine.txt"),)
    else:
        with pytest.raises(Interrupted, match=r"as it was before change 1\. Files .* moved to `.*-change-1`"):
            undo(place)
    assert copies(place) == {"mine.txt": "mine"}
    assert not (place.site / "new").exists()
    monkeypatch.undo()
    assert recover(read_site(place.python, os.environ)) is None
    assert not (place.venv / ".colablock").exists()


def test_a_cleanup_that_the_disk_refuses_is_left_to_the_next_call(
    place: SmallGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = listing(place.venv)

    def refused(_: Path, **__: object) -> None:
        raise full()

    monkeypatch.setattr("colablock.transaction.recovery._remove_finished", refused)
    place.apply(*place.steps())
    undo(place)
    monkeypatch.undo()
    assert recover(read_site(place.python, os.environ)) is None
    assert listing(place.venv) == first
