"""What each of several ranks sees of the others; the training of a shared model is tested in a real stack."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from colablock.training.scripts import FOLDER, ranks
from tests.support.timing import PATIENCE


def dead() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("text", "killed"),
    [
        ("{own} {began} {host}", False),
        ("{dead} 5 {host}", True),
        ("{own} 1 {host}", True),  # the number is another process now
        ("{dead} 5 another-host", False),  # which says nothing about a process there
        ("{dead} 5", False),  # being written
        ("", False),
        ("{dead} 5 {host}" + " " * 600, False),  # not by a rank
        ("{dead} five {host}", False),
    ],
)
def test_a_rank_that_was_killed_leaves_its_file(tmp_path: Path, text: str, killed: bool) -> None:
    facts = {"own": os.getpid(), "began": ranks.start_time_of(os.getpid()), "host": socket.gethostname()}
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "0").write_text("{own} {began} {host}".format(**facts))
    (tmp_path / "ranks" / "3").write_text(text.format(**facts, dead=dead()))
    expected = [3] if killed else []
    assert ranks.killed_ranks(tmp_path) == ranks.killed_before(tmp_path, ValueError()) == expected


SCRIPT = """
import runpy, sys, time
from pathlib import Path
shim, ranks = (runpy.run_path(f"{sys.argv[1]}/{name}.py") for name in ("shim", "ranks"))
folder = Path(sys.argv[2])
ranks["note_rank"](folder, 0, shim["RunEnd"](folder))
time.sleep(600)  # in an exchange with a rank that does not answer
"""


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_rank_does_not_wait_for_another_that_has_ended(tmp_path: Path, how: str) -> None:
    (tmp_path / "ranks").mkdir()
    if how == "killed":
        (tmp_path / "ranks" / "1").write_text(f"{dead()} 5 {socket.gethostname()}")
    else:
        (tmp_path / "end.json").write_text('{"state": "failed", "error": "ValueError: of rank 1"}')
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SCRIPT, FOLDER, tmp_path], check=False)
    assert (done.returncode, time.monotonic() - began < PATIENCE) == (1, True)
    error = json.loads((tmp_path / "end.json").read_text())["error"]
    assert error == (
        "RankKilled: the process of rank 1 was killed" if how == "killed" else "ValueError: of rank 1"
    )
    assert not (tmp_path / "ranks" / "0").exists()  # it was not killed


def settings_on(host: Path, files: Mapping[str, str], **config: Any) -> dict[str, Any]:
    """Return the settings of a job on a *host* with *files*; `{host}` in *config* is its folder."""
    for name, text in files.items():
        (file := host / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    filled = json.loads(json.dumps(config).replace("{host}", str(host)))
    usual = {
        "base_model": "me/model",
        "output_dir": str(host / "out"),
        "datasets": [{"path": str(host / "d")}],
    }
    job = {"config": {**usual, **filled}, "entry": f"{host}/scripts/run_trl.py", "precision": "bf16"}
    return ranks.settings_of(job, host / "out")


WEIGHTS = "w" * 100


@pytest.mark.parametrize(
    ("config", "files", "changed", "differs"),
    [
        ({"base_model": "{host}/model"}, {"model/a.safetensors": WEIGHTS}, {}, None),
        ({"base_model": "{host}/model"}, {"model/a.safetensors": WEIGHTS}, {"model/README.md": "new"}, None),
        ({"base_model": "{host}/model"}, {"model/a.bin": WEIGHTS}, {"model/.cache/x": "new"}, None),
        ({"base_model": "{host}/model"}, {"model/a.json": "{}"}, {"model/a.json": "[]"}, "base_model"),
        ({"base_model": "{host}/model"}, {"model/a.bin": WEIGHTS}, {"model/a.bin": "v" * 100}, "base_model"),
        ({"base_model": "{host}/model"}, {"model/a.bin": WEIGHTS}, {"model/b.bin": ""}, "base_model"),
        ({"deepspeed": "{host}/zero.json"}, {"zero.json": "1"}, {}, None),
        ({"deepspeed": "{host}/zero.json"}, {"zero.json": "1"}, {"zero.json": "2"}, "deepspeed"),
        ({"axolotl_data": {"datasets": [{"path": "{host}/x"}]}}, {"x": "1"}, {}, None),
        ({"axolotl_data": {"datasets": [{"path": "{host}/x"}]}}, {"x": "1"}, {"x": "2"}, "axolotl_data"),
        ({"plugins": ["{host}/absent"]}, {}, {}, "plugins"),  # nothing there says that both mean the same
        ({}, {"out/data/train.parquet": "1"}, {}, None),
        ({}, {"out/data/train.parquet": "1"}, {"out/data/train.parquet": "2"}, "tokens in train.parquet"),
        ({"lora_out_dir": "{host}/adapter"}, {}, {"adapter/a": ""}, None),
        ({"logging_dir": "{host}/absent"}, {}, {}, None),
        # Another rank writes below the model meanwhile.
        ({"base_model": "{host}"}, {"a.bin": WEIGHTS}, {"out/log.txt": "", "checkpoint-1/a.bin": ""}, None),
        ({"base_model": "{host}"}, {"a.bin": WEIGHTS}, {"outer/a": ""}, "base_model"),
        ({"base_model": "{host}/out/a"}, {"out/a/a.bin": ""}, {"out/a/a.bin": "x"}, "base_model"),
    ],
)  # fmt: skip
def test_paths_may_differ_between_hosts_and_what_is_there_may_not(
    tmp_path: Path,
    config: dict[str, Any],
    files: dict[str, str],
    changed: dict[str, str],
    differs: str | None,
) -> None:
    first = settings_on(tmp_path / "first", files, **config)
    other = settings_on(tmp_path / "other", {**files, **changed}, **config)
    assert ranks.differing(first, other) == ([differs] if differs else [])
    assert first["runner"] == "run_trl.py"


@pytest.mark.parametrize("text", ["/no/place", "/{{ a }} text", "/" + "a" * 5000, "/a\0b", "no.json", "/"])
def test_a_value_that_only_looks_like_a_path_is_compared_itself(text: str) -> None:
    assert ranks.with_digests({"a": [text, 1, None]}) == {"a": [text, 1, None]}


def test_of_large_folders_only_sizes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank would read all of it before the first step."""
    monkeypatch.setattr(ranks, "_READ", 10)
    monkeypatch.setattr(ranks, "_MOST", 3)
    found: list[object] = []
    for files in (
        {"a": "1" * 11},
        {"a": "2" * 11},
        {"a": "1" * 12},
        dict.fromkeys("abcd", ""),
        dict.fromkeys("bcde", ""),
    ):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        found.append(ranks.with_digests(str(folder)))
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4] == "more than 3 files"


def test_large_files_are_compared_by_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_WHOLE", 10)
    monkeypatch.setattr(ranks, "_PART", 3)
    found = []
    same = ("aaa......bbb", "aaa......bbb", "aaa-.....bbb")
    for text in (*same, "aab......bbb", "aaa......bba", "aaa.......bbb"):
        (tmp_path / "weights").write_text(text)
        found.append(ranks.digest_of(tmp_path / "weights"))
    assert len({*found[:3]}) == 1
    assert len({*found[2:]}) == 4


def test_hosts_have_the_same_version_of_colablock(tmp_path: Path) -> None:
    copy, job = tmp_path / "scripts", {"config": {}, "entry": "run_trl.py"}
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    same = runpy.run_path(str(copy / "ranks.py"))["settings_of"](job)
    assert ranks.differing(ranks.settings_of(job), same) == []
    with (copy / "shards.py").open("a") as changed:
        changed.write("# later\n")
    other = runpy.run_path(str(copy / "ranks.py"))["settings_of"](job)
    assert ranks.differing(ranks.settings_of(job), other) == ["colablock"]


def test_hosts_with_other_numbers_of_cards_are_told_what_to_do() -> None:
    job = {"config": {}, "entry": "run_trl.py", "rows": 9}
    found = [ranks.settings_of({**job, "processes": count}) for count in (4, 8)]
    assert ranks.differing(*found) == ["processes"]
    names = ranks.differing({"processes": 4, "rows": 9}, {"processes": 8, "rows": 9})
    assert ranks.in_words(names, {"processes": 4}, {"processes": 8}) == (
        "processes is 8 instead of 4 (hosts with other numbers of cards need the same `--num_processes`)"
    )


def test_without_the_hub_hosts_have_the_same_commit_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (refs := tmp_path / "hub" / "models--me--model" / "refs").mkdir(parents=True)
    (refs / "main").write_text("c1\n")
    job = {"config": {"base_model": "me/model"}}
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert ranks.commit_of(job) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert ranks.commit_of(job) == "c1"
    key = ranks.COMMIT
    assert ranks.differing({key: "c1"}, {key: "c2"}) == [key]
    assert ranks.differing({key: "c1"}, {key: None}) == []
    assert ranks.commit_of({"config": {"base_model": "me/model", "revision": "v2"}}) is None
    assert ranks.commit_of({"config": {"base_model": "/a/model"}}) is None


def test_a_checkpoint_is_the_same_if_its_manifest_is(tmp_path: Path) -> None:
    found = []
    for name, text in (("a", "1"), ("b", "2"), ("c", "1")):
        checkpoint = tmp_path / name / "checkpoint-4"
        checkpoint.mkdir(parents=True)
        (checkpoint / "colablock.json").write_text(text)
        found.append(ranks.checkpoint_of({"resume": str(checkpoint)}))
    assert found[0] == found[2] != found[1]
    assert all(one.startswith("checkpoint-4 (") for one in found)
    assert ranks.checkpoint_of({"resume": None}) == "none"
