"""Files of state that somebody else wrote: journals, records of changes, wheels that bring such files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from colablock.cli.main import main
from colablock.environment.site import Site, read_site
from colablock.errors import BadDistribution, InvalidInput, NotRestored, Refused
from colablock.transaction.apply_record import ApplyRecord, load, put_back, save
from colablock.transaction.history import damaged_changes, drop, read_history
from colablock.transaction.isolated_envs import list_envs
from colablock.transaction.recovery import clean_up, recover
from colablock.transaction.rollback import roll_back
from colablock.unpacking.unpack import unpack
from tests.support.hostile_wheels import HostileWheel
from tests.support.small_ground import SmallGround
from tests.support.trees import listing, tree_digest


@pytest.fixture
def place(tmp_path: Path) -> SmallGround:
    """Give an environment with three distributions, beside a folder that is not part of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    return SmallGround(tmp_path)


def site_of_ground(place: SmallGround) -> Site:
    return read_site(place.python, os.environ)


def journal_of(place: SmallGround, **changes: Any) -> dict[str, Any]:
    """Return a valid journal that moves one file out, with *changes*."""
    stash = place.venv / ".colablock" / "changes" / "0001" / "stash" / "0"
    row = {"kind": "out", "source": str(place.site / "gone_single.py"), "destination": str(stash)}
    usual = {"schema": 1, "pid": 1, "forward": False, "becomes": "changes/0001/record.json"}
    return {**usual, "operations": [{**row, **changes.pop("row", {})}], **changes}


def filled(place: SmallGround, text: str) -> str:
    """Return *text* with the folders of *place* in it."""
    return text.format(env=place.venv, site=place.site, outside=place.folder / "outside")


Change = Callable[[SmallGround], Mapping[str, Any]]
OUTSIDE = {
    "another folder": "{outside}/precious",
    "the system": "/etc/passwd",
    "two dots": "{site}/../../../../outside/precious",
    "a prefix of the name": "{env}-other/x",
    "a relative path": "outside/precious",
    "no path": "",
    "a slash at the end": "{site}/gone/",
    "a null character": "{site}/x\0y",
    "two slashes": "/{site}/x",
    "the environment": "{env}",
    "the state folder": "{env}/.colablock/pid",
    "the state folder in capitals": "{env}/.COLABLOCK/pid",
    "through a link": "{site}/link/precious",
}


@pytest.mark.parametrize("kind", ["out", "in", "mkdir", "rmdir"])
@pytest.mark.parametrize("path", OUTSIDE.values(), ids=OUTSIDE)
def test_a_journal_moves_nothing_outside_of_its_environment(path: str, kind: str, place: SmallGround) -> None:
    """The stash and the stage hold what the hostile journal would bring to the path."""
    (place.site / "link").symlink_to(place.folder / "outside")
    state = place.venv / ".colablock"
    private = state / "changes" / "0001" / "stash" / "0"
    private.parent.mkdir(parents=True)
    private.write_text("planted")
    public = filled(place, path)
    source, destination = (public, str(private)) if kind in {"out", "rmdir"} else (str(private), public)
    row = {"kind": kind, "source": source, "destination": destination}
    _refuse_journal(place, journal_of(place, row=row, forward=kind in {"in", "rmdir"}))


HOSTILE_JOURNALS: Mapping[str, Change] = {
    "a stash elsewhere": lambda place: {"row": {"destination": str(place.folder / "outside" / "x")}},
    "a stash in the site": lambda place: {"row": {"destination": str(place.site / "x")}},
    "a stash above": lambda place: {"row": {"destination": f"{place.venv}/.colablock/changes/../x"}},
    "a record elsewhere": lambda _: {"becomes": "../outside/record.json", "forward": True},
    "an absolute record": lambda place: {"becomes": str(place.folder / "outside" / "record.json")},
    "a record of no change": lambda _: {"becomes": "changes/0001/stash/record.json"},
    "another schema": lambda _: {"schema": 2},
    "a mode that is none": lambda _: {"row": {"mode": 2**40}},
    "a kind that is none": lambda _: {"row": {"kind": "exec"}},
    "a number for a path": lambda _: {"row": {"source": 3}},
    "no operations": lambda _: {"operations": None},
}


@pytest.mark.parametrize("changes", HOSTILE_JOURNALS.values(), ids=HOSTILE_JOURNALS)
def test_a_hostile_journal_is_refused(changes: Change, place: SmallGround) -> None:
    _refuse_journal(place, journal_of(place, **changes(place)))


def _refuse_journal(place: SmallGround, journal: Mapping[str, Any]) -> None:
    file = place.venv / ".colablock" / "journal.json"
    file.parent.mkdir(exist_ok=True)
    file.parent.chmod(0o700)
    file.write_text(json.dumps(journal))
    before = tree_digest(place.venv), tree_digest(place.folder / "outside")
    with pytest.raises(NotRestored, match=r"its journal is damaged") as caught:
        recover(site_of_ground(place))
    assert str(file) in str(caught.value)
    assert (tree_digest(place.venv), tree_digest(place.folder / "outside")) == before


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)


NO_FILES: Mapping[str, Callable[[Path], None]] = {
    "a FIFO": fifo,
    "a folder": Path.mkdir,
    "a link to itself": link_to_itself,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a file that is too large": too_large,
    "deep JSON": lambda path: path.write_text("[" * 100_000),  # type: ignore[dict-item]
    "half a file": lambda path: path.write_text('{"schema": 1, "oper'),  # type: ignore[dict-item]
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_something_else_in_place_of_a_journal_is_refused(
    make: Callable[[Path], None], place: SmallGround
) -> None:
    file = place.venv / ".colablock" / "journal.json"
    file.parent.mkdir()
    make(file)
    with pytest.raises(
        (NotRestored, Refused), match=r"its journal is damaged|journal\.json` is a symbolic link"
    ):
        recover(site_of_ground(place))


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_one_damaged_record_does_not_hide_the_other_changes(
    make: Callable[[Path], None], place: SmallGround
) -> None:
    place.apply(*place.steps())
    site = site_of_ground(place)
    damaged = site.state / "changes" / "0000" / "record.json"
    damaged.parent.mkdir()
    make(damaged)
    assert [change.number for change in read_history(site)] == [1]
    (found,) = damaged_changes(site)
    assert (found.number, found.file) == (0, damaged)
    assert found.fault
    with pytest.raises(InvalidInput, match=r"0000/record\.json"):
        drop(site, 0)
    with pytest.raises(InvalidInput, match=r"0000/record\.json"):
        roll_back(site, look=place.snapshot, to_first=True)
    (undone,) = roll_back(site, look=place.snapshot)  # the newest one is not concerned
    assert undone.change.number == 1
    with pytest.raises(InvalidInput, match=r"0000/record\.json"):
        roll_back(site, look=place.snapshot)


HOSTILE_RECORDS: Mapping[str, Change] = {
    "a stash with a path": lambda place: {"stashed": {"../../../../outside/precious": str(place.site / "x")}},
    "a stash with dots": lambda place: {"stashed": {"..": str(place.site / "x")}},
    "a folder that others created": lambda place: {"created": [str(place.folder / "outside")]},
    "a file that others placed": lambda place: {
        "operations": [
            {"kind": "in", "source": "", "destination": str(place.folder / "outside" / "precious"), "mode": 0}
        ]
    },
    "a step that is none": lambda _: {"steps": [{"action": "exec"}]},
    "another schema": lambda _: {"schema": 7},
} | {
    f"moves {name} back": lambda place, path=path: {"stashed": {"0": filled(place, path)}}  # type: ignore[misc]
    for name, path in OUTSIDE.items()
}


@pytest.mark.parametrize("changes", HOSTILE_RECORDS.values(), ids=HOSTILE_RECORDS)
def test_a_rollback_moves_no_foreign_files(changes: Change, place: SmallGround) -> None:
    place.apply(*place.steps())
    (place.site / "link").symlink_to(place.folder / "outside")
    site = site_of_ground(place)
    file = site.state / "changes" / "0001" / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes(place)}))
    before = tree_digest(place.venv), tree_digest(place.folder / "outside")
    with pytest.raises(InvalidInput, match=r"0001/record\.json` is not a valid record of a change"):
        roll_back(site, look=place.snapshot)
    assert (tree_digest(place.venv), tree_digest(place.folder / "outside")) == before


def test_a_state_folder_that_is_a_link_is_refused(place: SmallGround) -> None:
    place.apply(*place.steps())
    site = site_of_ground(place)
    moved = place.folder / "outside" / "state"
    site.state.rename(moved)
    site.state.symlink_to(moved)
    before = tree_digest(place.site), tree_digest(moved)
    with pytest.raises(Refused, match="is a symbolic link"):
        roll_back(site, look=place.snapshot)
    assert read_history(site) == ()
    assert "outside of the environment" in damaged_changes(site)[0].fault
    assert (tree_digest(place.site), tree_digest(moved)) == before


def test_cleaning_up_follows_no_link(place: SmallGround) -> None:
    site = site_of_ground(place)
    site.state.mkdir()
    outside = place.folder / "outside"
    for name in ("undone.json", "record.json", ".new-1"):
        (outside / name).write_text("{}")
    (site.state / "changes").mkdir()
    (site.state / "changes" / "0001").symlink_to(outside)
    before = tree_digest(outside)
    with pytest.raises(Refused, match="is a symbolic link"):
        recover(site)
    clean_up(site.state)
    assert tree_digest(outside) == before
    assert not (site.state / "changes").exists()


def test_a_change_is_undone_in_an_environment_that_is_reached_by_a_link(place: SmallGround) -> None:
    linked = place.folder / "linked"
    linked.symlink_to(place.venv)
    place.python = str(linked / "bin" / "python")
    before = tree_digest(place.venv)
    place.apply(*place.steps())
    roll_back(site_of_ground(place), look=place.snapshot)
    assert tree_digest(place.venv) == before


# Wheels

STATE_PATHS = {
    "in data": "evil-1.0.data/data/.colablock/changes/0001/record.json",
    "in purelib": "evil-1.0.data/purelib/.colablock/journal.json",
    "in scripts": "evil-1.0.data/scripts/.colablock/journal.json",
    "beside the modules": ".colablock/journal.json",
    "deeper": "evil/.colablock/x",
    "in capitals": "evil-1.0.data/data/.ColaBlock/x",
    "with a long s": "evil-1.0.data/data/.colabloc\N{KELVIN SIGN}/x",
    "in full width": "evil-1.0.data/data/\N{FULLWIDTH FULL STOP}colablock/x",
    "with what is not shown": "evil-1.0.data/data/.cola\N{ZERO WIDTH NON-JOINER}block/x",
    "with a dot at the end": "evil-1.0.data/data/.colablock./x",
    "with a backslash": "evil-1.0.data\\data\\.colablock\\x",
}


@pytest.mark.parametrize("path", STATE_PATHS.values(), ids=STATE_PATHS)
def test_a_wheel_brings_no_state(path: str, tmp_path: Path) -> None:
    wheel = HostileWheel(files={path: "{}"}).write(tmp_path)
    with pytest.raises(BadDistribution, match="the folder of colablock's own state"):
        unpack(wheel, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


# Files in the home


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"sites": []},
        {"sites": ["relative"]},
        {"prefix": "/a\0b"},
        {"python": "python"},
        {"unmet": [["a"]]},
        {"report": []},
        {"process": "1"},
        {"pins": {"a": 1}},
    ],
    ids=str,
)
def test_a_hostile_record_of_an_apply_counts_as_missing(changes: Mapping[str, Any], tmp_path: Path) -> None:
    usual = {
        "name": "demo",
        "key": "k",
        "target": "env",
        "python": "/env/bin/python",
        "prefix": "/env",
        "sites": ["/env/lib"],
        "state": "s",
        "matrix_digest": "d",
        "variant": None,
    }
    file = tmp_path / "applied" / "demo.json"
    file.parent.mkdir()
    file.write_text(json.dumps(usual))
    assert load("demo", tmp_path) is not None
    file.write_text(json.dumps({**usual, **changes}))
    assert load("demo", tmp_path) is None


APPLIED = ApplyRecord(
    name="demo",
    key="k",
    target="kernel",
    python="/env/bin/python",
    prefix="/env",
    sites=("/env/lib",),
    state="s",
    matrix_digest="d",
    variant=None,
)


@pytest.mark.parametrize(
    ("python", "is_restored"),
    [
        ("/env/bin/python", True),
        ("/env/bin/python3", True),
        ("{home}/envs/abc/bin/python", True),
        ("/strange/bin/python", False),
        ("{home}/envs/abc/strange/bin/python", False),
        ("{home}/envs/../../strange/bin/python", False),
        ("python", False),
    ],
)
def test_a_rollback_restores_no_record_with_a_foreign_interpreter(
    python: str, is_restored: bool, tmp_path: Path
) -> None:
    save(APPLIED, tmp_path)
    before = replace(APPLIED, python=python.format(home=tmp_path), key="before")
    put_back("demo", tmp_path, json.dumps(asdict(before)), prefix="/env")
    assert load("demo", tmp_path) == (before if is_restored else None)


def test_history_names_a_damaged_record_and_shows_the_others(
    place: SmallGround, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    place.apply(*place.steps())
    damaged = place.venv / ".colablock" / "changes" / "0000" / "record.json"
    damaged.parent.mkdir()
    damaged.write_text('{"schema": 1, "matrix": "\\u001b[2Jx"}')
    assert main(["history", "--python", place.python]) == 0
    shown = capsys.readouterr().out
    assert f"change 0, damaged\n  `{damaged}` cannot be read: " in shown
    assert "change 1, " in shown
    assert main(["history", "--python", place.python, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["number"] for one in found["changes"]] == [1]
    assert [(one["number"], one["file"]) for one in found["damaged"]] == [(0, str(damaged))]
    assert main(["rollback", "--python", place.python, "--yes"]) == 0


@pytest.mark.parametrize("name", ["../applied/demo", "", ".", "a/b", "a\0b", "x" * 300])
def test_the_name_of_a_matrix_is_no_path(name: str, tmp_path: Path) -> None:
    assert load(name, tmp_path) is None


def test_an_environment_that_names_another_interpreter_is_incomplete(tmp_path: Path) -> None:
    folder = tmp_path / "envs" / "abc"
    site = folder / "lib" / "python3" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").touch()
    manifest = {
        "lock": "abc",
        "matrix": "demo",
        "matrix_digest": "d",
        "variant": None,
        "python": str(folder / "bin" / "python"),
        "python_version": "3.12",
        "interpreter": "/usr/bin/python3",
        "site": str(site),
        "created": "2026-01-01T00:00:00+00:00",
    }
    for changes, is_whole in (
        ({}, True),
        ({"python": "/usr/bin/env"}, False),
        ({"python": "a\0b"}, False),
        ({"site": str(tmp_path)}, False),
        ({"schema": 2}, False),
        ({"matrix": 3}, False),
    ):
        (folder / "colablock.json").write_text(json.dumps({**manifest, **changes}))
        assert [one.is_whole for one in list_envs(tmp_path)] == [is_whole], changes


# What earlier versions wrote


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A record and a journal of version 0.1, in which `{env}` stands for the environment."""

    folder: Path = Path(__file__).parents[1] / "data" / "state"

    def write(self, name: str, to: Path, **values: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", value)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")


def test_a_record_and_a_journal_of_an_earlier_version_are_read(place: SmallGround) -> None:
    site = site_of_ground(place)
    odd = place.site / os.fsdecode(b"odd\xe9.py")  # a name that is not UTF-8
    odd.write_text("old")
    before = listing(place.venv)
    stash = site.state / "changes" / "0001" / "stash"
    stash.mkdir(parents=True)
    values = {"site": str(place.site), "env": str(place.venv)}
    _Recorded().write("journal.json", site.state / "journal.json", **values)
    odd.rename(stash / "0")
    assert recover(site) is not None
    assert listing(place.venv) == before
    stash.mkdir(parents=True)
    shutil.copy2(odd, stash / "0")
    odd.unlink()
    _Recorded().write("record.json", stash.with_name("record.json"), **values)
    (change,) = read_history(site)
    assert change.stashed == {"0": str(odd)}
    roll_back(site, look=place.snapshot)
    assert listing(place.venv) == before
