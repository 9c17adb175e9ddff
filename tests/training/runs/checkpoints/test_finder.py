"""The newest valid checkpoint is used, and changes are refused unless allowed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import NotFound, Refused
from colablock.training.runs.checkpoints.finder import (
    accepted_changes,
    data_digest,
    list_checkpoints,
    newest_valid,
    verify_checkpoint,
)
from colablock.training.runs.config import DataSource, config_from, config_to
from colablock.training.runs.folder import RunRecord
from tests.support.checkpoints import CHECKPOINT, make_checkpoint
from tests.support.reporters import Notes

MANIFEST = "colablock.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (20, 40):
        make_checkpoint(tmp_path, step)
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:12])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_link(path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    path.symlink_to(path.with_suffix(".aside"))


def test_checkpoints_are_listed_latest_first(run: Path) -> None:
    make_checkpoint(run, 100, is_valid=False)
    (run / "checkpoint-best").mkdir()
    (run / "checkpoint-7").write_text("no folder")
    names = [path.name for path in list_checkpoints(run)]
    assert names == ["checkpoint-100", "checkpoint-40", "checkpoint-20"]
    assert list_checkpoints(run / "none") == ()


def test_the_newest_valid_checkpoint_is_used_without_a_note(run: Path) -> None:
    told = Notes()
    assert newest_valid(run, told) == run / "checkpoint-40"
    assert told.notes == []


DAMAGES = [Path.unlink, truncate, zero, replace_by_a_folder, replace_by_a_link]


@pytest.mark.parametrize(
    ("name", "damage"), [*itertools.product(CHECKPOINT, DAMAGES), *((MANIFEST, one) for one in DAMAGES[:-1])]
)
def test_with_any_damaged_file_the_checkpoint_before_is_used(
    run: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(run / "checkpoint-40" / name)
    told = Notes()
    assert newest_valid(run, told) == run / "checkpoint-20"
    (note,) = told.notes
    assert note.startswith("checkpoint-40 is damaged: ")
    assert "manifest" in note if name == MANIFEST else f"`{name}`" in note
    assert note.endswith("; using checkpoint-20 instead")


def test_the_note_has_the_sizes_of_a_damaged_file(run: Path) -> None:
    truncate(run / "checkpoint-40" / "optimizer.pt")
    told = Notes()
    newest_valid(run, told)
    assert told.notes == [
        "checkpoint-40 is damaged: `optimizer.pt` has 12 bytes instead of 3,400; using checkpoint-20 instead"
    ]


def test_without_a_valid_checkpoint_none_is_used(run: Path) -> None:
    (run / "checkpoint-40" / MANIFEST).unlink()
    for path in (run / "checkpoint-20").glob("*.*"):
        path.unlink() if path.name != MANIFEST else None
    told = Notes()
    assert newest_valid(run, told) is None
    missing = ", ".join(f"`{name}` is missing" for name in sorted(CHECKPOINT)[:1] + sorted(CHECKPOINT)[2:4])
    then = "there is no valid checkpoint before it"
    assert told.notes == [
        f"checkpoint-40 is damaged: it has no manifest, so the save was interrupted; {then}",
        f"checkpoint-20 is damaged: {missing} and 2 more; {then}",
    ]
    assert newest_valid(run / "none", told) is None


def test_files_that_the_manifest_does_not_list_are_ignored(run: Path) -> None:
    (run / "checkpoint-40" / "README.md").write_text("more")
    assert verify_checkpoint(run / "checkpoint-40") == ()


ROW = {"size": 1, "sha256": ""}
MANIFESTS = {
    "[]": "cannot be read",
    '{"schema": 1}': "cannot be read",
    '{"schema": 1, "files": []}': "cannot be read",
    '{"schema": 1, "files": {"a": 3}}': "cannot be read",
    '{"schema": 1, "files": {}}': "lists no files",
    json.dumps({"schema": 2, "files": {"a": ROW}}): "has schema 2, and this version reads schema 1",
    json.dumps({"schema": 1, "files": {"../a": ROW}}): "lists `../a`, which is outside the checkpoint",
    json.dumps({"schema": 1, "files": {"/etc/hostname": ROW}}): "which is outside the checkpoint",
}


@pytest.mark.parametrize(("text", "said"), MANIFESTS.items())
def test_an_invalid_manifest_is_a_fault(run: Path, text: str, said: str) -> None:
    (run / "checkpoint-40" / MANIFEST).write_text(text)
    (fault,) = verify_checkpoint(run / "checkpoint-40")
    assert said in fault


def test_a_manifest_lists_sizes_and_hashes(run: Path) -> None:
    manifest = json.loads((run / "checkpoint-40" / MANIFEST).read_text())
    assert manifest == {
        "schema": 1,
        "step": 40,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in CHECKPOINT.items()
        },
    }


# Whether the same run goes on


CONFIG = config_to(config_from({"base_model": "a/b", "datasets": ["x.jsonl"]}))


def digest(config: dict[str, Any]) -> str:
    return config_from(config, passes_through=True).digest()


RECORD = RunRecord(
    id="run-1",
    matrix="tiny",
    runner="trl",
    python="python",
    lock="l",
    config=CONFIG,
    config_digest=digest(CONFIG),
    data_digest="d",
    model="a/b",
)


def test_a_run_without_changes_is_resumed() -> None:
    assert accepted_changes(RECORD, digest(CONFIG), "d", "l", config=CONFIG) == ()


def test_a_done_run_is_shown_in_an_environment_with_the_same_versions() -> None:
    had = {"torch": "2.9", "numpy": "2.4", "trl": "1.0"}
    done = replace(RECORD, versions=had)
    ask: Any = {"config": CONFIG, "is_done": True}
    assert accepted_changes(done, digest(CONFIG), "d", "another", versions=had, **ask) == ()
    words = r"the lock of the environment \(numpy: 2.4 → 2.3, peft: none → 1, trl: 1.0 → none\) changed since"
    with pytest.raises(Refused, match=words):
        now = {"torch": "2.9", "numpy": "2.3", "peft": "1"}
        accepted_changes(done, digest(CONFIG), "d", "another", versions=now, **ask)
    with pytest.raises(Refused, match="the lock of the environment changed since"):  # it goes on as it began
        accepted_changes(done, digest(CONFIG), "d", "another", versions=had, config=CONFIG)


CHANGED = {
    "config": (
        {"learning_rate": 1e-4, "lora_r": 8},
        {},
        ["the config (learning_rate: 0.0002 → 0.0001; lora_r: 16 → 8) changed since"],
    ),
    "data": ({}, {"data_digest": "other"}, ["the data changed since"]),
    "lock": ({}, {"lock": "other"}, ["the lock of the environment changed since"]),
    "all": (
        {"max_steps": 10, "save_steps": 5, "output_dir": "other"},
        {"data_digest": "other", "lock": "other"},
        [
            "the config (max_steps: unset → 10)",
            "the data and the lock of the environment changed since",
        ],
    ),
    "runner's own": ({"lora_fan": True}, {}, ["the config (lora_fan: unset → true) changed since"]),
}


@pytest.mark.parametrize(("keys", "record", "said"), CHANGED.values(), ids=CHANGED)
def test_changes_are_listed_and_refused(
    keys: dict[str, Any], record: dict[str, Any], said: list[str]
) -> None:
    config = {**CONFIG, **keys}
    old = replace(RECORD, **record)
    with pytest.raises(Refused) as caught:
        accepted_changes(old, digest(config), "d", "l", config=config)
    for words in said:
        assert words in str(caught.value)
    for name in ("config", "data", "lock"):
        assert (f"the {name}" in str(caught.value)) == (f"the {name}" in " ".join(said))
    assert "save_steps" not in str(caught.value)
    assert "`--resume-anyway`" in (caught.value.hint or "")
    accepted = accepted_changes(old, digest(config), "d", "l", config=config, anyway=True)
    assert len(accepted) == len(set(keys) & {"learning_rate", "max_steps", "lora_fan"}) + len(record)


def test_changes_to_a_config_of_another_version_are_listed() -> None:
    old = {"base_model": "a/b", "datasets": [], "sequence_len": 7, "adapter": "x" * 100}
    with pytest.raises(Refused, match=r"base_model: .a/b. → .c/d.") as caught:
        accepted_changes(replace(RECORD, config=old), "c", "d", "l", config={**CONFIG, "base_model": "c/d"})
    assert f'adapter: "{"x" * 58}… → "qlora"' in str(caught.value)
    assert "sequence_len: 7 → 1024" in str(caught.value)
    with pytest.raises(Refused, match="the config changed since"):
        accepted_changes(RECORD, "c", "d", "l")


# The data


def test_the_digest_of_local_data_covers_its_contents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("1")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "b.jsonl").write_text("2")
    first = [DataSource(path="a.jsonl"), DataSource(path="folder")]
    found = data_digest(first, folder=tmp_path)
    assert len(found) == 64
    assert data_digest([DataSource(path=str(tmp_path / one.path)) for one in first]) == found
    assert data_digest(first[::-1], folder=tmp_path) != found
    (tmp_path / "a.jsonl").rename(tmp_path / "moved.jsonl")
    assert data_digest([DataSource(path="moved.jsonl"), first[1]], folder=tmp_path) == found
    (tmp_path / "folder" / "below" / "b.jsonl").write_text("3")
    assert data_digest([DataSource(path="moved.jsonl"), first[1]], folder=tmp_path) != found


def test_data_in_the_home_folder_and_behind_links_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    blob = tmp_path / "blob"
    blob.write_text("1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").symlink_to(blob)  # as in the cache of the hub
    sources = [DataSource(path="~/blob"), DataSource(path="~/folder")]
    before = [data_digest([one]) for one in sources]
    assert before == [data_digest([DataSource(path=str(tmp_path / one.path[2:]))]) for one in sources]
    blob.write_text("2")
    assert not set(before) & {data_digest([one]) for one in sources}


def test_the_digest_of_data_on_the_hub_covers_its_names() -> None:
    one = DataSource(path="org/data")
    variants = [
        data_digest([one]),
        data_digest([replace(one, split="test")]),
        data_digest([replace(one, name="main")]),
        data_digest([one], revisions={"org/data": "abc"}),
    ]
    assert len(set(variants)) == len(variants)
    assert data_digest([one], revisions={"other": "abc"}) == variants[0]


def test_unreadable_data_is_an_error(tmp_path: Path) -> None:
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    with pytest.raises(NotFound, match=r"cannot read the data in `.*/socket`: No such device"):
        data_digest([DataSource(path="socket")], folder=tmp_path)
