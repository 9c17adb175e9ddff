"""What each of several ranks sees of the others; the training of a shared model is tested in a real stack."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colablock.training.runs.folder import RunFolder
from colablock.training.scripts import FOLDER, ranks


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
    ],
)
def test_a_rank_that_was_killed_leaves_its_file(tmp_path: Path, text: str, killed: bool) -> None:
    facts = {"own": os.getpid(), "began": ranks.started_of(os.getpid()), "host": socket.gethostname()}
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "0").write_text("{own} {began} {host}".format(**facts))
    (tmp_path / "ranks" / "3").write_text(text.format(**facts, dead=dead()))
    expected = ["3"] if killed else []
    assert ranks.killed_ranks(tmp_path) == ranks.killed_before(tmp_path, ValueError()) == expected
    if killed:
        assert RunFolder(tmp_path).lost_ranks() == [3]


SCRIPT = """
import runpy, sys, time
from pathlib import Path
shim, ranks = (runpy.run_path(f"{sys.argv[1]}/{name}.py") for name in ("shim", "ranks"))
folder = Path(sys.argv[2])
ranks["note_rank"](folder, 0, shim["RunEnd"](folder))
time.sleep(30)  # in an exchange with a rank that does not answer
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
    assert (done.returncode, time.monotonic() - began < 15) == (1, True)
    error = json.loads((tmp_path / "end.json").read_text())["error"]
    assert error == (
        "RankKilled: the process of rank 1 was killed" if how == "killed" else "ValueError: of rank 1"
    )
    assert not (tmp_path / "ranks" / "0").exists()  # it was not killed


class Module:
    """A module of torch, as far as its names go."""

    def __init__(self, **children: Any) -> None:
        self.children = children

    def named_modules(self, prefix: str = "") -> Any:
        yield prefix, self
        for name, child in self.children.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)


def test_wrappers_of_recomputed_layers_are_left_out_of_names() -> None:
    layer = Module(_checkpoint_wrapped_module=Module(q_proj=Module()))
    model = Module(layers=Module(**{"0": layer, "1": Module(q_proj=Module())}))
    plain = ["", "layers", "layers.0", "layers.0.q_proj", "layers.1", "layers.1.q_proj"]
    before = [name for name, _ in model.named_modules()]
    with ranks.plain_names(model):
        assert [name for name, _ in model.named_modules()] == plain
    assert [name for name, _ in model.named_modules()] == before
    assert before != plain


def test_only_blocks_that_the_model_has_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "restored later")
    monkeypatch.delenv("FSDP_TRANSFORMER_CLS_TO_WRAP")
    model = SimpleNamespace(modules=lambda: [Module(), 1], _no_split_modules={"Module", "ImageBlock"})
    ranks.name_layers(model)
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "Module"
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Chosen")
    ranks.name_layers(model)
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "Chosen"


def test_paths_of_a_host_are_no_settings_of_the_run() -> None:
    config = {
        "base_model": "me/model",
        "output_dir": "out",
        "learning_rate": 0.1,
        "deepspeed": "/a/zero.json",
    }
    job = {"config": config, "entry": "/a/scripts/run_trl.py", "precision": "bf16", "data": "d1"}
    found = ranks.settings_of(job)
    assert {name: value for name, value in found.items() if value is not None} == {
        "base_model": "me/model",
        "learning_rate": 0.1,
        "precision": "bf16",
        "data": "d1",
        "runner": "run_trl.py",
    }


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


def test_a_part_of_a_checkpoint_that_is_elsewhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {name: SimpleNamespace(relative_path=name) for name in ("__0_0.distcp", "__1_0.distcp")}
    saved = SimpleNamespace(state_dict_metadata={"a": 1}, storage_data=parts)
    reader = SimpleNamespace(FileSystemReader=lambda _: SimpleNamespace(read_metadata=lambda: saved))
    for name in ("torch", "torch.distributed", "torch.distributed.checkpoint"):
        monkeypatch.setitem(sys.modules, name, reader)
    folder = tmp_path / "checkpoint-4"
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / part).mkdir(parents=True)
        (folder / part / "__0_0.distcp").touch()
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(requires_grad=True)])
    with pytest.raises(
        SystemExit, match=r"has no `__1_0\.distcp`, which another host has saved: .* job of Slurm"
    ):
        ranks.check_shards(folder, model)
