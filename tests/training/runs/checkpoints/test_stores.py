"""A repository on the hub as the store of a mirror."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from colablock.errors import Unmet
from colablock.training.runs.checkpoints.finder import verify_checkpoint
from colablock.training.runs.checkpoints.mirror import Mirror
from colablock.training.runs.checkpoints.restore import restore_checkpoint
from colablock.training.runs.checkpoints.stores import (
    HubStore,
    list_archives,
    open_store,
)
from colablock.training.runs.folder import RunFolder
from tests.support.checkpoints import make_checkpoint
from tests.support.mirrors import flip_bit
from tests.support.reporters import Notes
from tests.support.runs import make_run, process_facts
from tests.support.runtime import make_venv, site_of

MANIFEST = "colablock.json"


HUB = '''\
"""A stand-in for huggingface_hub: repositories are folders below HUB."""
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
    """Return an interpreter with a stand-in for huggingface_hub."""
    python = make_venv(tmp_path / "env", sys.executable)
    package = site_of(tmp_path / "env") / "huggingface_hub"
    package.mkdir()
    (package / "__init__.py").write_text(HUB)
    (package / "utils.py").write_text(HUB_UTILS)
    (tmp_path / "hub").mkdir()
    return str(python)


def hub_store(tmp_path: Path, python: str, **more: str) -> HubStore:
    environ = {**os.environ, "HUB": str(tmp_path / "hub"), "HF_TOKEN": "secret", **more}
    store = open_store("hf://org/name", python=python, environ=environ)
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
        assert mirror.mirror_newest()
    assert said == [f"checkpoint-{step} is mirrored" for step in (20, 40, 60)]
    assert [archive.step for archive in list_archives(store, "run-1")] == [60, 40]
    assert (tmp_path / "hub" / "org" / "name" / ".private").read_text() == "True"
    assert (tmp_path / "hub" / "commits").read_text().splitlines() == [
        "Add run-1-checkpoint-20.tar",
        "Add run-1-checkpoint-40.tar",
        "Add run-1-checkpoint-60.tar",
        "Delete older checkpoints",
    ]
    flip_bit(tmp_path / "hub" / "org" / "name" / "run-1-checkpoint-60.tar", 3000)
    told = Notes()
    found = restore_checkpoint(store, "run-1", tmp_path / "new", reporter=told)
    assert found.name == "checkpoint-40"
    assert verify_checkpoint(found) == ()
    assert len(told.notes) == 1
    assert not list(run.path.glob(".mirror-*"))


def test_the_newest_run_on_the_hub_is_restored(stub: str, tmp_path: Path) -> None:
    store, said = hub_store(tmp_path, stub), list[str]()
    for mark, step in (("0000000a", 80), ("0000000b", 20)):
        run = make_run(tmp_path / mark, id="run-1", mark=mark, **process_facts())
        make_checkpoint(run.path, step)
        for _ in range(2):  # the second says nothing more
            assert Mirror(run, store, said.append).mirror_newest()
    assert said == ["checkpoint-80 is mirrored", "checkpoint-20 is mirrored"]
    assert (tmp_path / "hub" / "commits").read_text().splitlines() == [
        "Add run-1-newest.txt",
        "Add run-1-checkpoint-80-0000000a.tar",
        "Add run-1-newest.txt",
        "Add run-1-checkpoint-20-0000000b.tar",
    ]
    found = restore_checkpoint(store, "run-1", tmp_path / "new", reporter=Notes())
    assert found.name == "checkpoint-20"
    refused = Mirror(run, hub_store(tmp_path / "other", stub, HF_TOKEN="other"), said.append)
    make_run(run.path, id="run-1", mark="0000000b", started=1.0, **process_facts())
    assert not refused.mirror_newest()
    assert "the start of `run-1` could not be mirrored and will be retried" in said[-1]


def test_a_different_hash_on_the_hub_is_not_confirmed(run: RunFolder, stub: str, tmp_path: Path) -> None:
    said: list[str] = []
    Mirror(run, hub_store(tmp_path, stub, LIES="0" * 64), said.append).mirror_newest()
    assert said == ["checkpoint-20 is mirrored, not confirmed"]


def test_a_refusal_of_the_hub_is_a_note_of_one_line(run: RunFolder, stub: str, tmp_path: Path) -> None:
    said: list[str] = []
    assert not Mirror(run, hub_store(tmp_path, stub, HF_TOKEN="other"), said.append).mirror_newest()
    reason = f"`{stub}` could not reach `hf://org/name`: HfHubHTTPError: 401 Client Error: Unauthorized"
    assert said == [f"checkpoint-20 could not be mirrored and will be retried: {reason}"]
    with pytest.raises(Unmet, match="could not reach"):
        list_archives(hub_store(tmp_path, stub, HF_TOKEN="other"))
