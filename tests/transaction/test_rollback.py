from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.site import Site, read_site
from colablock.errors import Interrupted, NotFound, Refused, RolledBack
from colablock.operations.rollback import undo_changes
from colablock.operations.session import Session
from colablock.planning.options import UndoOptions
from colablock.transaction.apply import apply_plan
from colablock.transaction.apply_record import ApplyRecord, load, save
from colablock.transaction.history import Change, drop, read_history
from colablock.transaction.recovery import recover
from colablock.transaction.rollback import UndoneChange, roll_back
from colablock.transaction.undo.moves import files_to_remove
from tests.support.faults import FaultyAndStuck, Moment, die, full, in_a_child
from tests.support.runtime import Stub, build_site
from tests.support.small_ground import SmallGround, remove
from tests.support.trees import installed_listing, listing
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.stdlib


def undo(place: SmallGround, **options: object) -> tuple[UndoneChange, ...]:
    return roll_back(site_of_ground(place), look=place.snapshot, **options)  # type: ignore[arg-type]


def site_of_ground(place: SmallGround) -> Site:
    return read_site(place.python, os.environ)


def state(place: SmallGround) -> Path:
    return place.venv / ".colablock"


def test_a_rollback_restores_everything(place: SmallGround) -> None:
    before = listing(place.venv)
    place.apply(*place.steps())
    (change,) = read_history(site_of_ground(place))
    assert (change.number, change.matrix, change.runtime) == (1, "tiny", None)
    assert [(done.name, done.previous, done.version) for done in change.steps] == [
        ("gone", "1.0", None),
        ("moved", "1.0", "2.0+cpu"),
        ("new", None, "2.0"),
    ]
    assert change.size > 0
    (undone,) = undo(place)
    assert undone.change.number == 1
    assert undone.differences == ()
    assert listing(place.venv) == before


def test_a_rollback_without_a_change_is_an_error(place: SmallGround) -> None:
    before = listing(place.venv)
    with pytest.raises(NotFound, match="there is nothing to undo"):
        undo(place)
    place.apply(*place.steps())
    undo(place)
    with pytest.raises(NotFound, match="there is nothing to undo"):
        undo(place)
    assert listing(place.venv) == before


def two_changes(place: SmallGround) -> list[dict[str, tuple[str, int, str | bytes]]]:
    states = [installed_listing(place.venv)]
    place.apply(*place.steps())
    states.append(installed_listing(place.venv))
    newer = make_wheel(place.folder, "new", "3.0", modules={"new/other.py": "", "gone_single.py": "n"})
    place.apply(remove("stays"), place.put(newer, previous="2.0"))
    return [*states, installed_listing(place.venv)]


def test_changes_are_undone_one_by_one_newest_first(place: SmallGround) -> None:
    states = two_changes(place)
    assert [change.number for change in read_history(site_of_ground(place))] == [1, 2]
    for number in (1, 0):
        undo(place)
        assert installed_listing(place.venv) == states[number]
    assert not state(place).exists()


def test_to_first_undoes_all_changes(place: SmallGround) -> None:
    states = two_changes(place)
    assert [undone.change.number for undone in undo(place, to_first=True)] == [2, 1]
    assert listing(place.venv) == states[0]


@pytest.mark.slow  # at each operation
def test_to_first_says_what_is_undone_if_a_later_undo_fails(place: SmallGround) -> None:
    states = two_changes(place)
    put_back: list[int] = []
    for at in range(500):
        with pytest.raises(RolledBack) as failed:
            undo(
                place,
                to_first=True,
                when_undone=lambda change: put_back.append(change.number),
                disk=FaultyAndStuck("nothing", at, full),
            )
        if failed.value.undone:
            break
        assert str(failed.value).startswith("change 2 could not be undone, and is in place as before: ")
        assert (put_back, installed_listing(place.venv)) == ([], states[2]), at
    assert at >= 5
    assert str(failed.value).startswith("change 1 could not be undone, and is in place as before: ")
    assert str(failed.value).endswith(
        "\n  change 2 was undone before that. The environment is as it was before change 2."
    )
    assert [one.change.number for one in failed.value.undone if isinstance(one, UndoneChange)] == [2]
    assert (put_back, installed_listing(place.venv)) == ([2], states[1])
    assert [one.change.number for one in undo(place)] == [1]
    assert installed_listing(place.venv) == states[0]


@pytest.mark.parametrize("error", [full(), KeyboardInterrupt(), Refused("no")])
def test_a_record_is_put_back_for_each_change_that_is_undone(
    place: SmallGround, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    two_changes(place)
    session = Session(environ={**os.environ, "COLABLOCK_HOME": str(place.folder / "home")})
    site = site_of_ground(place)
    applied = ApplyRecord(
        name="tiny",
        key="k",
        target="kernel",
        python=place.python,
        prefix=site.prefix,
        sites=(site.purelib,),
        state="s",
        matrix_digest="d",
        variant=None,
    )
    save(applied, session.home)

    def fails(change: Change, *more: object) -> object:
        if change.number == 1:
            raise error
        return files_to_remove(change, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("colablock.transaction.rollback.files_to_remove", fails)
    expected = Interrupted if isinstance(error, KeyboardInterrupt) else RolledBack
    with pytest.raises(expected, match="The environment is as it was before change 2"):
        undo_changes(session, place.python, UndoOptions(to_first=True))
    assert [change.number for change in read_history(site)] == [1]
    assert load("tiny", session.home) is None


def test_later_installations_are_kept_and_listed(place: SmallGround) -> None:
    place.apply(*place.steps())
    build_site(place.site, [Stub(name="since", version="1.0", files={"shared/since.py": "s"})])
    (undone,) = undo(place)
    assert undone.differences == ("`since` 1.0 is new",)
    assert (place.site / "shared" / "since.py").read_text() == "s"
    assert (place.site / "shared" / "gone.py").exists()


def test_a_later_version_of_a_changed_distribution_is_removed(place: SmallGround) -> None:
    before = listing(place.venv)
    place.apply(*place.steps())
    build_site(
        place.site, [Stub(name="gone", version="9.0", files={"gone/other.py": "", "gone_single.py": "9"})]
    )
    undo(place)
    assert listing(place.venv) == before


def test_files_without_a_distribution_stay(place: SmallGround) -> None:
    place.apply(*place.steps())
    (place.site / "moved" / "mine.txt").write_text("mine")
    (place.site / "gone").write_text("in the way")
    undo(place)
    assert (place.site / "moved" / "mine.txt").read_text() == "mine"
    assert (place.site / "moved" / "old.py").read_text() == "old"
    assert not (place.site / "moved" / "fresh.py").exists()
    assert (place.site / "gone" / "data.txt").read_text() == "d"


def test_later_bytecode_is_removed_with_its_source(place: SmallGround) -> None:
    before = listing(place.venv)
    place.apply(*place.steps())
    for folder in ("moved", "new", "shared"):
        (place.site / folder / "__pycache__").mkdir(exist_ok=True)
    for name in ("moved/__pycache__/fresh", "new/__pycache__/__init__", "shared/__pycache__/new"):
        (place.site / f"{name}.cpython-311.pyc").write_bytes(b"x")
    undo(place)
    assert listing(place.venv) == before


def test_older_bytecode_without_a_source_stays(place: SmallGround) -> None:
    (place.site / "stays" / "__pycache__").mkdir()
    for module in ("long_gone", "new"):
        (place.site / "stays" / "__pycache__" / f"{module}.cpython-311.pyc").write_bytes(b"x")
    before = listing(place.venv)
    place.apply(place.put(make_wheel(place.folder, "new", "2.0", modules={"stays/new.py": ""})))
    undo(place)
    assert listing(place.venv) == before


def test_an_older_empty_folder_stays(place: SmallGround) -> None:
    (place.site / "new" / "empty").mkdir(parents=True)
    before = listing(place.venv)
    place.apply(*place.steps())
    undo(place)
    assert listing(place.venv) == before


def test_a_replaced_file_of_another_distribution_is_restored(place: SmallGround) -> None:
    before = listing(place.venv)
    wheel = make_wheel(place.folder, "new", "2.0", modules={"shared/both.py": "new", "shared/stays.py": "n"})
    place.apply(place.put(wheel))
    assert (place.site / "shared" / "both.py").read_text() == "new"
    undo(place)
    assert listing(place.venv) == before


def test_a_protected_file_that_was_not_replaced_stays(place: SmallGround) -> None:
    before = listing(place.venv)
    snapshot = replace(place.snapshot(), protected=frozenset({canonicalize_name("stays")}))
    modules = {"shared/__init__.py": "", "shared/more.py": ""}
    step = place.put(make_wheel(place.folder, "new", "2.0", modules=modules))
    apply_plan(place.plan(step), snapshot, place.files, prove=lambda _: (), environ=os.environ)
    undo(place)
    assert listing(place.venv) == before


def test_a_dropped_stash_cannot_be_undone(place: SmallGround) -> None:
    two_changes(place)
    before = installed_listing(place.venv)
    assert [change.number for change in drop(site_of_ground(place), 1)] == [1]
    assert [(change.is_dropped, change.size > 0) for change in read_history(site_of_ground(place))] == [
        (True, False),
        (False, True),
    ]
    with pytest.raises(Refused, match=r"change 1 .* its stash was dropped"):
        undo(place, to_first=True)
    assert installed_listing(place.venv) == before
    undo(place)
    with pytest.raises(Refused, match="dropped"):
        undo(place)
    with pytest.raises(NotFound, match="no change 7"):
        drop(site_of_ground(place), 7)


@pytest.mark.slow  # at each operation
@pytest.mark.parametrize("what", ["nothing", "folders", pytest.param("everything", marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER])
def test_a_rollback_that_fails_changes_nothing(place: SmallGround, what: str, moment: Moment) -> None:
    place.apply(*place.steps())
    before = listing(place.venv)
    site, snapshot = read_site(place.python, os.environ), place.snapshot()  # restored each time
    for at in range(500):
        try:
            roll_back(site, look=lambda: snapshot, disk=FaultyAndStuck(what, at, full, moment=moment))
        except RolledBack:
            assert listing(place.venv) == before, at
        else:
            break
    assert at >= 10


@pytest.mark.slow  # at each operation
@pytest.mark.parametrize("what", ["nothing", "folders"])
def test_the_next_call_undoes_a_rollback_that_died(place: SmallGround, what: str) -> None:
    first = listing(place.venv)
    place.apply(*place.steps())
    before = listing(place.venv)
    site, snapshot = read_site(place.python, os.environ), place.snapshot()  # restored each time

    def dies(at: int) -> None:
        roll_back(site, look=lambda: snapshot, disk=FaultyAndStuck(what, at, die))

    for at in range(500):
        if in_a_child(partial(dies, at)) == 0:
            break
        recover(site)
        assert listing(place.venv) == before, at
    assert at >= 10
    assert listing(place.venv) == first


def test_an_invalid_record_is_named(place: SmallGround) -> None:
    place.apply(*place.steps())
    record = state(place) / "changes" / "0001" / "record.json"
    record.write_text("{}")
    with pytest.raises(Exception, match=str(record)):
        undo(place)
    assert (place.site / "new-2.0.dist-info").is_dir()
