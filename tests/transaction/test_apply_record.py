"""The record of the last apply."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import NotFound, Unmet
from colablock.matrix.model import Matrix
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import Remedy, Target
from colablock.transaction.apply_record import (
    ApplyRecord,
    forget,
    home_folder,
    key_of,
    load,
    load_all,
    note_undone,
    past_changes,
    put_back,
    require,
    save,
    versions_digest,
)
from colablock.transaction.up_to_date import request_key

pytestmark = pytest.mark.stdlib

RECORD = ApplyRecord(
    name="demo",
    key="k",
    target="env",
    python="/envs/1/bin/python",
    prefix="/envs/1",
    sites=("/envs/1/lib", "/envs/1/lib64"),
    state="s",
    matrix_digest="d",
    variant="cpu",
    pins={NormalizedName("torch"): "2.4.0+cu118"},
    unmet=(("ipython", "jedi>=0.16"),),
    report={"checks": [1, {"two": None}]},
    process=7,
    versions={NormalizedName("torch"): "2.4.0+cu118"},
)


def test_a_saved_record_is_loaded(tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet"
    assert load("demo", home) is None
    save(RECORD, home)
    assert load("demo", home) == RECORD
    assert require("demo", home, asked="demo") == RECORD
    assert load("other", home) is None


def test_a_new_record_replaces_the_old_one(tmp_path: Path) -> None:
    save(RECORD, tmp_path)
    save(replace(RECORD, key="new"), tmp_path)
    found = load("demo", tmp_path)
    assert found is not None
    assert found.key == "new"
    assert [path.name for path in (tmp_path / "applied").rglob("*.*")] == ["demo.json"] * 2


def test_a_failed_write_keeps_the_old_record(tmp_path: Path) -> None:
    save(RECORD, tmp_path)
    with pytest.raises(TypeError):
        save(replace(RECORD, report={"odd": object()}), tmp_path)
    assert load("demo", tmp_path) == RECORD
    assert [path.name for path in (tmp_path / "applied").rglob("*.*")] == ["demo.json"] * 2


def test_each_colablock_has_a_last_apply_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's apply in its own kernel does not lead a terminal away from what that has applied."""
    pythons = [tmp_path / f"{name}-python" for name in "ab"]
    for path in pythons:
        path.touch()
    here = sys.prefix
    mine = replace(RECORD, python=str(pythons[0]), caller=here)
    save(mine, tmp_path)
    monkeypatch.setattr(sys, "prefix", "/notebook")
    assert load("demo", tmp_path) == mine  # it has applied nothing itself
    other = replace(
        mine, prefix="/notebook", python=str(pythons[1]), caller="/notebook", target=Target.KERNEL.value
    )
    save(other, tmp_path)
    assert load("demo", tmp_path) == other
    monkeypatch.setattr(sys, "prefix", here)
    assert load("demo", tmp_path) == mine
    assert sorted(one.prefix for one in load_all(tmp_path)) == [mine.prefix, "/notebook"]
    newer = replace(other, prefix=mine.prefix, state="newer")  # of one environment the last one counts
    monkeypatch.setattr(sys, "prefix", "/notebook")
    save(newer, tmp_path)
    monkeypatch.setattr(sys, "prefix", here)
    assert load("demo", tmp_path) == newer
    save(mine, tmp_path)
    monkeypatch.setattr(sys, "prefix", "/notebook")
    save(other, tmp_path)
    monkeypatch.setattr(sys, "prefix", here)
    pythons[0].unlink()
    assert load("demo", tmp_path) == other  # what it has applied is gone
    pythons[0].touch()
    monkeypatch.setattr(sys, "prefix", "/third")
    save(gone := replace(other, prefix="/third", python="/third/bin/python"), tmp_path)
    assert load("demo", tmp_path) == other  # the last of those that are there
    pythons[0].unlink()
    pythons[1].unlink()
    assert load("demo", tmp_path) == gone
    pythons[1].touch()
    forget(tmp_path, python=gone.python)
    save(other, tmp_path)
    monkeypatch.setattr(sys, "prefix", here)
    put_back("demo", tmp_path, json.dumps(asdict(mine)), prefix="/notebook")
    assert sorted(one.prefix for one in load_all(tmp_path)) == [mine.prefix]
    forget(tmp_path, python=mine.python)
    assert list(load_all(tmp_path)) == []


def test_an_undo_by_another_colablock_leaves_the_own_last_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.touch()
    mine = replace(RECORD, python=str(python), prefix="/mine", caller=sys.prefix, target=Target.KERNEL.value)
    here = sys.prefix
    save(mine, tmp_path)
    monkeypatch.setattr(sys, "prefix", "/other")
    save(replace(mine, prefix="/other", caller="/other"), tmp_path)
    put_back("demo", tmp_path, None, prefix="/other")
    monkeypatch.setattr(sys, "prefix", here)
    assert load("demo", tmp_path) == mine


def test_of_one_environment_the_last_apply_by_anybody_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.touch()
    mine = replace(RECORD, python=str(python), prefix="/mine", caller=sys.prefix)
    here = sys.prefix
    by_another = replace(mine, caller="/c", state="by another")
    elsewhere = replace(mine, caller="/b", prefix="/elsewhere")
    for second, record in enumerate((mine, by_another, elsewhere)):
        monkeypatch.setattr(sys, "prefix", record.caller)
        save(record, tmp_path)
        for path in (tmp_path / "applied").rglob("demo.json"):
            if json.loads(path.read_text())["caller"] == record.caller:
                os.utime(path, (second, second))
    monkeypatch.setattr(sys, "prefix", here)
    assert load("demo", tmp_path) == by_another


WRITTEN: dict[str, Any] = json.loads(json.dumps(asdict(RECORD)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        json.dumps({**WRITTEN, "sites": None}).encode(),
        json.dumps({**WRITTEN, "unmet": [1]}).encode(),
        json.dumps({name: value for name, value in WRITTEN.items() if name != "python"}).encode(),
    ],
)
def test_an_invalid_record_counts_as_missing(content: bytes, tmp_path: Path) -> None:
    save(RECORD, tmp_path)
    paths = list((tmp_path / "applied").rglob("demo.json"))
    paths[0].write_bytes(content)
    assert load("demo", tmp_path) == RECORD  # the other one is valid
    paths[1].write_bytes(content)
    assert load("demo", tmp_path) is None


def test_keys_of_other_releases_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "applied").mkdir()
    path = tmp_path / "applied" / "demo.json"
    path.write_text(json.dumps({**WRITTEN, "new": {"key": [1]}}))
    assert load("demo", tmp_path) == RECORD
    path.write_text(json.dumps({key: value for key, value in WRITTEN.items() if key != "request"}))
    assert load("demo", tmp_path) == RECORD


def test_a_missing_record_is_reported_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="`demo` has not been applied here") as caught:
        require("demo", tmp_path, asked="demo")
    assert caught.value.hint == "Run `colablock apply demo` first"
    with pytest.raises(NotFound) as caught:
        require("demo", tmp_path, asked="my matrices/demo.toml")
    assert caught.value.hint == "Run `colablock apply 'my matrices/demo.toml'` first"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"COLABLOCK_HOME": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"COLABLOCK_HOME": "", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/colablock"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/c"}, "/c/.local/share/colablock"),
        ({"HOME": "/c"}, "/c/.local/share/colablock"),
    ],
)
def test_the_home_folder(environ: dict[str, str], expected: str) -> None:
    assert home_folder(environ) == Path(expected)


@pytest.mark.parametrize("environ", [{}, {"COLABLOCK_HOME": "here"}, {"COLABLOCK_HOME": "~/here"}])
def test_the_home_folder_is_absolute(environ: dict[str, str]) -> None:
    assert home_folder(environ).is_absolute()
    assert "~" not in str(home_folder(environ))


MATRIX = Matrix(name="demo", source="demo.toml", digest="0")
CHANGED: dict[str, Any] = {
    "name": "other",
    "variant": "cpu",
    "with_": ("wandb",),
    "into": Target.ENV,
    "broken": Remedy.LEAVE,
    "python": "/usr/bin/python3",
    "default_index": "https://a.example/simple/",
    "find_links": ("wheels",),
    "lock": Path(__file__),
    "protect": ("numpy",),
    "use_locks": False,
}


@pytest.mark.parametrize("field", CHANGED)
def test_the_key_changes_with_each_option(field: str) -> None:
    ask = ApplyOptions(name="demo")
    name = "other" if field == "name" else "demo"
    changed = request_key(replace(ask, **{field: CHANGED[field]}), replace(MATRIX, name=name))
    assert changed != request_key(ask, MATRIX)
    assert request_key(ask, MATRIX) == request_key(ApplyOptions(name="demo"), MATRIX)


def test_the_key_changes_with_the_content_of_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "pylock.toml"
    keys = set()
    for text in ("one", "two", "one"):
        lock.write_text(text, encoding="utf-8")
        keys.add(request_key(ApplyOptions(name="demo", lock=lock), MATRIX))
    assert len(keys) == 2


def test_the_key_ignores_options_that_do_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wheels").mkdir()
    near, far = (
        ApplyOptions(name="demo", find_links=(link,)) for link in ("wheels", str(tmp_path / "wheels"))
    )
    assert request_key(near, MATRIX) == request_key(far, MATRIX)
    same = replace(near, offline=True, keep=True, reinstall=("torch",))
    assert request_key(same, MATRIX) == request_key(near, MATRIX)
    # The matrix and the lock of a bundle count, wherever the archive lies.
    assert request_key(replace(near, bundle=tmp_path / "b"), MATRIX) == request_key(near, MATRIX)


def test_the_key_changes_with_the_matrix() -> None:
    assert request_key(ApplyOptions(name="demo"), MATRIX) != request_key(
        ApplyOptions(name="demo"), replace(MATRIX, digest="1")
    )


def test_these_tests_cover_every_option() -> None:
    rest = {"break_system_packages", "bundle", "keep", "offline", "reinstall", "runtime", "undo"}
    assert {field.name for field in fields(ApplyOptions)} <= CHANGED.keys() | rest


def test_digests_are_independent_of_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    a, b = NormalizedName("a"), NormalizedName("b")
    assert versions_digest({a: "1", b: "2"}) == versions_digest({b: "2", a: "1"})
    assert versions_digest({a: "1", b: "2"}) != versions_digest({a: "1", b: "2.0"})


def test_an_older_record_without_versions_is_loaded(tmp_path: Path) -> None:
    save(RECORD, tmp_path)
    path = tmp_path / "applied" / "demo.json"
    value = json.loads(path.read_text())
    del value["versions"]
    path.write_text(json.dumps(value))
    assert load("demo", tmp_path) == replace(RECORD, versions={})


# Changes that were undone


def note(home: Path, prefix: Path, steps: str) -> None:
    facts = {"matrix": "demo", "when": "2026-11-01T00:00:00+00:00", "why": "rolled back", "steps": steps}
    note_undone(home, str(prefix), str(prefix / "lib"), facts)


def steps_of(home: Path, prefix: Path) -> list[str]:
    return [past.steps for past in past_changes(home, str(prefix), str(prefix / "lib"))]


def test_undone_changes_of_several_writers_are_all_kept(tmp_path: Path) -> None:
    wanted = [f"install {number}" for number in range(60)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda steps: note(tmp_path / "home", tmp_path, steps), wanted))
    assert sorted(steps_of(tmp_path / "home", tmp_path)) == sorted(wanted)
    assert [path.suffix for path in (tmp_path / "home" / "undone").iterdir()] == [".json"]


def test_undone_changes_stay_over_a_mount_and_without_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(tmp_path / "home", tmp_path, "install 1")
    (tmp_path / "lib").mkdir()
    assert steps_of(tmp_path / "home", tmp_path) == ["install 1"]
    stat = os.stat

    def mounted(*args: Any, **options: Any) -> os.stat_result:
        found = list(stat(*args, **options))
        found[2] += 1  # st_dev
        return os.stat_result(found)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", mounted)
        assert steps_of(tmp_path / "home", tmp_path) == ["install 1"]


def test_an_environment_made_anew_has_no_undone_changes(tmp_path: Path) -> None:
    made = tmp_path / "pyvenv.cfg"
    made.write_text("home = /usr/bin\n", "utf-8")
    note(tmp_path / "home", tmp_path, "install 1")
    os.utime(made, (1, 1))  # the folder may get the inode of the one before
    assert steps_of(tmp_path / "home", tmp_path) == []


def test_an_environment_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unmet, match=r"`.*gone` cannot be used: No such file or directory"):
        steps_of(tmp_path / "home", tmp_path / "gone")


def test_a_file_of_undone_changes_that_is_not_understood_is_kept(tmp_path: Path) -> None:
    note(tmp_path / "home", tmp_path, "install 1")
    (file,) = (tmp_path / "home" / "undone").iterdir()
    file.write_text('[{"later": 1}]', "utf-8")
    assert steps_of(tmp_path / "home", tmp_path) == []
    note(tmp_path / "home", tmp_path, "install 2")
    assert steps_of(tmp_path / "home", tmp_path) == ["install 2"]
    assert file.with_suffix(".damaged").read_text("utf-8") == '[{"later": 1}]'
