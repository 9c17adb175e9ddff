"""The output folder of a run: which one it is, its id, its lock."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import InvalidInput, Refused
from colablock.training.runs.config import DataSource
from colablock.training.runs.folder import register
from colablock.training.runs.output_folder import (
    default_folder,
    folder_of,
    lock_run_folder,
    mirrored_id,
    set_aside,
    unused_run_id,
    with_own_folder,
)
from tests.support.reporters import Notes
from tests.support.training import a_config


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        ({}, "outputs/model-data"),
        ({"base_model": "/models/tiny-llama/"}, "outputs/tiny-llama-data"),
        ({"datasets": (DataSource(path="someone/set.v2"),)}, "outputs/model-set"),
        ({"datasets": (DataSource(path="a/rows/"), DataSource(path="b"))}, "outputs/model-rows"),
        ({"output_dir": "out"}, "out"),
        ({"output_dir": "/absolute"}, "/absolute"),
        ({"output_dir": "~/out"}, "{home}/out"),
    ],
)
def test_the_default_folder_is_named_after_model_and_data(changes: dict[str, Any], folder: str) -> None:
    expected = Path.cwd() / folder.replace("{home}", os.environ["HOME"])
    assert default_folder(a_config(**changes)) == expected


def test_an_id_that_is_in_use_gets_a_number(tmp_path: Path) -> None:
    home, folders = tmp_path / "home", [tmp_path / name / "run" for name in "abcd"]
    for folder in folders[:3]:
        folder.mkdir(parents=True)
    assert unused_run_id(home, folders[0]) == "run"
    register(home, "run", folders[0])
    register(home, "run-2", folders[1])
    assert unused_run_id(home, folders[0]) == "run"
    assert unused_run_id(home, folders[1]) == "run-2"
    assert unused_run_id(home, folders[2]) == "run-3"
    folders[0].rmdir()  # the name of one that is gone is free again
    assert unused_run_id(home, folders[3]) == "run"


def test_a_folder_without_a_name_of_its_own_is_called_as_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, config, reporter = tmp_path / "home", a_config(), Notes()
    found = []
    for place in "ab":
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        folder = default_folder(with_own_folder(config, (), home, reporter))
        folder.mkdir(parents=True)
        run_id = unused_run_id(home, folder)
        register(home, run_id, folder)
        found.append((folder.relative_to(tmp_path), run_id))
        again = with_own_folder(config, (), home)
        assert default_folder(again) == folder  # the same call finds the run again
        assert (
            with_own_folder(config, ("--num_machines=2", "--machine_rank=0", "--main_process_ip=h"), home)
            == config
        )
    assert found == [
        (Path("a/outputs/model-data"), "model-data"),
        (Path("b/outputs/model-data-2"), "model-data-2"),
    ]
    first = tmp_path / "a/outputs/model-data"
    assert reporter.notes == [f"the run is called `model-data-2`: `model-data` is the run in `{first}`"]


def test_a_run_that_is_not_called_as_its_folder_is_noted(tmp_path: Path) -> None:
    home, reporter = tmp_path / "home", Notes()
    for place in "ab":
        (tmp_path / place / "first").mkdir(parents=True)
    register(home, "first", tmp_path / "a/first")
    assert unused_run_id(home, tmp_path / "b/first", reporter) == "first-2"
    assert reporter.notes == [
        f"the run in `{tmp_path}/b/first` is called `first-2`: `first` is the run in `{tmp_path}/a/first`"
    ]


def test_hosts_that_share_a_home_know_the_run_of_the_first(tmp_path: Path) -> None:
    home, notes = tmp_path / "home", Notes()
    config = a_config(output_dir=str(tmp_path / "scratch/first"))
    own = folder_of(config, ("--num_machines=2", "--machine_rank=1", "--main_process_ip=h"))
    assert unused_run_id(home, own, notes, host=1) == "first-host-1"
    assert mirrored_id(home, config, "first-host-1", 1) == "first"
    register(home, "first-host-1", own)  # before the first host has registered its own
    assert unused_run_id(home, default_folder(config), notes) == "first"
    register(home, "first-2", default_folder(config))  # another run is called `first`
    assert mirrored_id(home, config, "first-host-1", 1) == "first-2"
    assert mirrored_id(home, config, "first-2", 0) == "first-2"
    assert unused_run_id(home, own, notes, host=1) == "first-host-1"
    assert notes.notes == []


def test_a_run_folder_is_locked_once(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    for _ in range(2):  # it is given back
        with lock_run_folder(folder):
            assert folder.is_dir()
            with (
                pytest.raises(Refused, match=r"another call is starting a run in `.*run`"),
                lock_run_folder(folder),
            ):
                pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InvalidInput, match="cannot use the output folder"),
        lock_run_folder(tmp_path / "file"),
    ):
        pass


def test_a_file_system_without_locks_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_descriptor: int, _how: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_run_folder(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_the_contents_of_a_folder_are_moved_aside(tmp_path: Path) -> None:
    folder, reporter = tmp_path / "run", Notes()
    for _ in range(2):  # there is nothing to move
        with set_aside(folder, tmp_path / "home", reporter):
            assert not (tmp_path / "run.1").exists()
        folder.mkdir(exist_ok=True)
    for number in (1, 2):
        (folder / "log.txt").write_text(str(number))
        with set_aside(folder, tmp_path / "home", reporter):
            assert list(folder.iterdir()) == []
            (folder / "run.json").write_text("{}")  # the new run begins
    assert [(tmp_path / f"run.{number}/log.txt").read_text() for number in (1, 2)] == ["1", "2"]
    assert len(reporter.notes) == 2


def test_a_call_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for name in ("outputs/run", "kept"):
        with pytest.raises(Refused), lock_run_folder(tmp_path / name):
            raise Refused("preflight")
    with lock_run_folder(tmp_path / "new/run"):
        (tmp_path / "new/run/run.json").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "new", "run", "run.json"]
