"""Use a trained adapter: find it, zip it, merge it, push it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.training.adapter import adapter_of, download, generate, merge, push
from colablock.transaction.apply_record import ApplyRecord, save
from tests.support.checkpoints import make_checkpoint, write_manifest
from tests.support.reporters import Notes
from tests.support.runs import end_run, make_run, process_facts
from tests.support.runtime import make_venv, site_of


def make_adapter(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "none"}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"not for others")


CONFIG = {
    "base_model": "org/base",
    "adapter": "lora",
    "hub_token": "hf_" + "a" * 30,
    "special_tokens": {"pad_token": "<pad>"},
    "note": f"with hf_{'b' * 30} in it",
    "wandb": {"WANDB_API_KEY": "k"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = make_run(tmp_path / "run", process=0, python=sys.executable, config=CONFIG, git_revision="c" * 40)
    make_adapter(made.adapter)
    return made.path


def test_an_unfinished_run_has_the_adapter_of_its_newest_checkpoint(tmp_path: Path) -> None:
    told = Notes()
    with pytest.raises(NotFound, match="has no adapter"):
        adapter_of(tmp_path, reporter=told)
    make_adapter(make_checkpoint(tmp_path, 20))
    write_manifest(tmp_path / "checkpoint-20")
    assert adapter_of(tmp_path, reporter=told) == tmp_path / "checkpoint-20"
    assert told.notes == ["the run is not done: using the adapter of checkpoint-20"]
    make_adapter(tmp_path / "adapter")
    assert adapter_of(tmp_path, reporter=told) == tmp_path / "adapter"


@pytest.mark.parametrize(
    ("state", "found"),
    [("stopped", "adapter"), ("done", "adapter"), ("failed", "checkpoint-30"), (None, "checkpoint-30")],
)
def test_the_adapter_of_an_earlier_stop_is_outdated(state: str | None, found: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, **process_facts())
    make_adapter(run.adapter)
    assert adapter_of(tmp_path, reporter=Notes()) == run.adapter  # there is no other yet
    make_adapter(make_checkpoint(tmp_path, 30))
    write_manifest(tmp_path / "checkpoint-30")
    assert adapter_of(tmp_path, reporter=Notes()) == tmp_path / "checkpoint-30"
    if state is not None:
        end_run(run, state)
    assert adapter_of(tmp_path, reporter=Notes()) == tmp_path / found


def test_a_zip_holds_the_adapter_and_the_record_without_tokens(run: Path, tmp_path: Path) -> None:
    handed: list[str] = []
    path = download(run, offer=handed.append)
    assert path == run / "run.zip"
    assert handed == [str(path)]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "run.json",
            "tokenizer.json",
        ]
        record = json.loads(archive.read("run.json"))
    assert record["config"] == {
        "base_model": "org/base",
        "adapter": "lora",
        "special_tokens": {"pad_token": "<pad>"},
        "note": "with *** in it",
        "wandb": {},
    }
    assert record["git_revision"] == "c" * 40
    merged = tmp_path / "merged"
    (merged / "below").mkdir(parents=True)
    (merged / "below" / "model.safetensors").write_bytes(b"w")
    with zipfile.ZipFile(download(run, tmp_path / "m.zip", merged=merged)) as archive:
        assert sorted(archive.namelist()) == ["below/model.safetensors", "run.json"]


COLAB = """\
import pathlib, sys
from google.colab import files
from colablock.training.adapter import download
path = download(pathlib.Path(sys.argv[1]))
assert files.asked == [str(path)], files.asked
"""


def test_colab_offers_the_file_to_the_browser(run: Path, tmp_path: Path) -> None:
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "files.py").write_text("asked = []\ndownload = asked.append\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, "-c", COLAB, str(run)], env={**os.environ, "PYTHONPATH": path}, check=True
    )


def test_invalid_arguments_are_refused_before_a_process_starts(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="must be a list of strings"):
        generate(run, "one")
    with pytest.raises(InvalidInput, match="already exists"):
        merge(run, run)
    with pytest.raises(NotFound, match=r"the folder `.*` does not exist"):
        merge(run, tmp_path / "not" / "there")
    with pytest.raises(InvalidInput, match="is not a repository"):
        push(run, "name")
    with pytest.raises(NotFound, match="not the folder of a run"):
        download(tmp_path)
    with pytest.raises(NotFound, match=r"the folder `.*` does not exist"):
        download(run, merged=tmp_path / "none")
    with pytest.raises(Unmet, match=r"cannot write `.*there.zip`: No such file"):
        download(run, tmp_path / "not" / "there.zip")
    assert not (run / "run.zip").exists()


def test_a_failing_process_is_reported_and_leaves_no_files(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    environ = {"PATH": os.defpath}
    python = make_venv(tmp_path / "env", sys.executable)
    make_run(run, process=0, python=str(python), config=CONFIG, source="/my matrices/own.toml")
    with pytest.raises(Unmet) as caught:
        merge(run, tmp_path / "merged", python=str(python), environ=environ, on_line=said.append)
    assert f"`{python}` could not merge the adapter: ModuleNotFoundError: No module named 'torch'" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert str(caught.value.hint).startswith("`colablock apply '/my matrices/own.toml'` ")
    assert said[0].startswith("Traceback")
    assert not (tmp_path / "merged").exists()
    (site_of(tmp_path / "env") / "torch.py").write_text("import os, signal; os.kill(os.getpid(), 9)")
    with pytest.raises(Unmet, match="could not generate text: the process was ended by SIGKILL"):
        generate(run, ["one"], python=str(python), environ=environ)
    with pytest.raises(Unmet, match="could not generate text: No such file"):
        generate(run, ["one"], python=str(tmp_path / "none"), environ=environ)


def test_a_relative_path_of_another_base_is_resolved(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    site = site_of(tmp_path / "env")
    (site / "safetensors").mkdir()
    (site / "torch.py").touch()
    (site / "safetensors" / "torch.py").write_text("load_file = dict.fromkeys\n")
    make_run(run, process=0, python=str(python), config=CONFIG)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unmet, match=f"cannot merge into `{tmp_path}/small`: its weights are quantised"):
        merge(run, tmp_path / "merged", base="small", python=str(python), environ={"PATH": os.defpath})


APPLIED = ApplyRecord(
    name="qlora-2026",
    key="k",
    target="kernel",
    python="",
    prefix="/env",
    sites=("/env/lib",),
    state="s",
    matrix_digest="d",
    variant=None,
)
HUB = """\
import json, os, pathlib
class Found:
    def __init__(self, private): self.private = private
class HfApi:
    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        return f"https://hub.invalid/{repo_id}"
    def repo_info(self, repo_id):
        if repo_id == "org/offline":
            raise ConnectionError("Name or service not known")
        return Found(repo_id != "org/public")
    def upload_folder(self, *, repo_id, folder_path, commit_message):
        folder = pathlib.Path(folder_path)
        files = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
        token = os.environ["HF_TOKEN"]
        pathlib.Path(os.environ["PUSHED"]).write_text(json.dumps([repo_id, token, files]))
"""


def test_a_push_is_private_and_has_no_token(run: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    (site_of(tmp_path / "env") / "huggingface_hub.py").write_text(HUB)
    save(replace(APPLIED, python=str(python)), tmp_path / "home")
    make_run(run, process=0, python=str(python), config=CONFIG)
    pushed = tmp_path / "pushed"
    environ: Mapping[str, str] = {
        "PUSHED": str(pushed),
        "HF_TOKEN": "another",
        "COLABLOCK_HOME": str(tmp_path / "home"),
    }
    with pytest.raises(Unmet, match="the repository `org/public` is public") as caught:
        push(run, "org/public", token="secret", environ=environ)
    assert caught.value.hint == "`private=False` pushes to it anyway"
    assert not pushed.exists()
    with pytest.raises(Unmet, match=r"the hub `huggingface\.co` cannot be reached: Name or") as caught:
        push(run, "org/offline", token="secret", environ=environ)
    assert caught.value.hint == "Try again with a network"
    assert push(run, "org/public", token="secret", private=False, environ=environ).endswith("org/public")
    assert push(run, "org/name", token="secret", environ=environ) == "https://hub.invalid/org/name"
    repo, token, files = json.loads(pushed.read_text())
    assert (repo, token) == ("org/name", "secret")
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors", "run.json", "tokenizer.json"]
    assert "secret" not in files["run.json"]
    assert "hf_" not in files["run.json"]
    assert push(run, "org/name", environ=environ)
    assert json.loads(pushed.read_text())[1] == "another"
