"""The likeliest mistakes of a call of `train` are told at once, by name, before anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import colablock
from colablock.cli.main import main
from colablock.errors import ColablockError, ExitCode, InvalidInput, NotFound
from colablock.training.given_inputs import check_on_hub
from colablock.training.runs.config import DataSource
from tests.support.hub import TOKEN, HubServer, Repo

MODEL = "Qwen/Qwen2.5-1.5B"
#: Each call and what its error says.  No matrix was applied here: what passes fails with that.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"model": MODEL, "dataset": "dta.jsonl"}, "the dataset `dta.jsonl` does not exist in `[FOLDER]`"),
    ({"model": MODEL, "dataset": "far/data.csv"}, "does not exist: there is no folder `far`"),
    ({"model": MODEL, "dataset": ["data.jsonl", "./more"]}, "the dataset `./more` does not exist in"),
    ({"model": MODEL, "dataset": "/content/drive/MyDrive/x.parquet"}, "there is no folder `/content"),
    ({"model": MODEL, "dataset": "rows.xlsx"}, "has an unknown format: supported suffixes are .jsonl"),
    ({"model": MODEL, "dataset": "empty.jsonl"}, "the dataset `empty.jsonl` is an empty file"),
    ({"model": MODEL, "dataset": "nothing"}, "the dataset `nothing` is an empty folder"),
    ({"model": "./mdel", "dataset": "data.jsonl"}, "the model `./mdel` does not exist in"),
    ({"config": "nowhere.yaml"}, "cannot read the config `nowhere.yaml`: No such file"),
    ({"config": "axolotl.yaml"}, "the dataset `lost.jsonl` does not exist in"),
    ({"config": {"base_model": MODEL, "datasets": [{"path": "lost.json"}]}}, "`lost.json` does not exist"),
    ({}, "no model and no dataset to train with"),
    ({"model": MODEL}, "no dataset to train with"),
    ({"dataset": "data.jsonl"}, "no model to train with"),
]
FINE: list[dict[str, Any]] = [
    {"model": MODEL, "dataset": "data.jsonl"},
    {"model": MODEL, "dataset": "owner/name"},
    {"model": MODEL, "dataset": "imdb"},
    {"model": "model", "dataset": ["data.jsonl", "folder"]},
    {"model": MODEL, "dataset": "dta.jsonl", "resume_anyway": True},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLABLOCK_HOME", str(tmp_path / "home"))
    for name in ("data.jsonl", "rows.xlsx", "folder/train.jsonl", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "axolotl.yaml").write_text(
        f"base_model: {MODEL}\ndatasets:\n  - path: lost.jsonl\n    type: alpaca\n"
    )
    return tmp_path


@pytest.mark.parametrize(("call", "words"), MISTAKES)
def test_a_mistake_is_told_before_anything_else(call: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(ColablockError) as found:
        colablock.train("qlora-2026", **call)
    assert words.replace("[FOLDER]", str(folder)) in str(found.value)
    assert len(str(found.value).splitlines()) == 1
    assert found.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("call", FINE)
def test_what_may_be_right_is_left_to_what_follows(call: dict[str, Any]) -> None:
    with pytest.raises(NotFound, match="has not been applied"):
        colablock.train("qlora-2026", **call)


def test_the_nearest_file_is_named() -> None:
    with pytest.raises(NotFound) as found:
        colablock.train("qlora-2026", model=MODEL, dataset="folder/trin.jsonl")
    assert found.value.hint == "did you mean `folder/train.jsonl`?"


def test_the_example_is_in_the_language_of_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput) as found:
        colablock.train("qlora-2026")
    assert found.value.hint is not None
    assert found.value.hint.startswith('Pass them: `colablock.train("qlora-2026", model="')
    assert main(["train", "qlora-2026"]) == ExitCode.USAGE
    err = " ".join(capsys.readouterr().err.split())
    assert "error: no model and no dataset to train with" in err
    assert "colablock train qlora-2026 --model Qwen/Qwen2.5-1.5B --dataset data.jsonl" in " ".join(
        err.split()
    )
    assert main(["train", "qlora-2026", "--model", MODEL, "--dataset", "dta.jsonl"]) == ExitCode.USAGE
    assert "did you mean `data.jsonl`?" in capsys.readouterr().err


# Names on the hub


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    repos = {
        "datasets/me/open": Repo(),
        "datasets/imdb": Repo(renamed="datasets/me/open"),
        "datasets/me/gated": Repo(gated=True),
        "datasets/me/private": Repo(private=True),
        "me/model": Repo(),
    }
    with HubServer(repos) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("me/open", None, ""),
        ("imdb", None, ""),
        ("me/gated", None, "the dataset `me/gated` is gated"),
        ("me/gated", TOKEN, ""),
        ("me/private", None, "the hub has no dataset `me/private`, or it is private"),
        ("me/private", TOKEN, ""),
        ("me/model", TOKEN, "the hub has no dataset `me/model`"),
        ("data", None, "the hub has no dataset `data`"),
        ("me/open", "hf_old", "the hub rejects the token"),
        ("me/cached", None, ""),
        ("json", None, ""),
        ("data.jsonl", None, ""),
        ("s3://bucket/data", None, ""),
    ],
)
def test_a_dataset_on_the_hub_is_found_by_its_name(
    hub: HubServer, folder: Path, name: str, token: str | None, words: str
) -> None:
    (folder / "home/datasets/me___cached").mkdir(parents=True)
    environ = {"HF_ENDPOINT": hub.root, "HF_HOME": str(folder / "home"), "COLABLOCK_RETRIES": "0"}
    sources, secrets = [DataSource(path=name)], {"HF_TOKEN": token} if token else {}
    if not words:
        check_on_hub(sources, secrets, environ)
        return
    with pytest.raises(ColablockError) as found:
        check_on_hub(sources, secrets, environ)
    assert words in str(found.value)
    if name == "data":
        assert found.value.hint == "did you mean `data.jsonl`?"
    check_on_hub(sources, secrets, {**environ, "HF_HUB_OFFLINE": "1"})
    check_on_hub(sources, secrets, {**environ, "HF_ENDPOINT": "http://127.0.0.1:9"})
