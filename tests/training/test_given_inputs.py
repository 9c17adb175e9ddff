"""The likeliest mistakes of a call of `train` are told at once, by name, before anything else."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import colablock
from colablock.cli.main import main
from colablock.errors import ColablockError, ExitCode, FetchFailed, InvalidCall, InvalidInput, NotFound
from colablock.training.given_inputs import check_on_hub
from colablock.training.runs.config import DataSource, TrainConfig
from tests.support.hub import TOKEN, HubServer, Repo
from tests.support.timing import PATIENCE

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


def test_the_nearest_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").touch()
    for slip in ("trainn.yaml", "train.yml", "train"):
        with pytest.raises(NotFound, match="cannot read the config") as found:
            colablock.train("qlora-2026", config=tmp_path / slip)
        assert found.value.hint == f"did you mean `{tmp_path / 'train.yaml'}`?"


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("dattset", "dataset"), ("modelx", "model"), ("ouput_dir", "output_dir")],
)
def test_the_nearest_argument_is_named(slip: str, meant: str) -> None:
    with pytest.raises(InvalidCall, match=f"has no argument `{slip}`") as found:
        colablock.train("qlora-2026", **dict[str, Any]([(slip, "given")]))
    assert found.value.hint == f"did you mean `{meant}`?"


@pytest.mark.parametrize("rows", [[{"text": "a"}], {"text": "a"}, 7])
def test_rows_in_memory_are_no_dataset(rows: Any) -> None:
    with pytest.raises(
        InvalidInput, match="a dataset is a file, a folder or a name on the hub, not a value of"
    ):
        colablock.train("qlora-2026", model=MODEL, dataset=rows)


def test_the_keys_of_a_config_are_no_argument() -> None:
    with pytest.raises(InvalidCall) as found:
        colablock.train(model=MODEL, dataset="data.jsonl")  # type: ignore[call-arg]
    assert (found.value.hint or "").endswith("quiet")


def test_one_missing_argument_is_asked_for() -> None:
    with pytest.raises(InvalidInput, match="no dataset to train with") as found:
        colablock.train("qlora-2026", model=MODEL)
    hint = f'Pass it: `colablock.train("qlora-2026", model="{MODEL}", dataset="data.jsonl")`'
    assert found.value.hint == hint
    with pytest.raises(InvalidInput, match="no model to train with") as found:
        colablock.train("qlora-2026", dataset="folder")
    assert 'dataset="folder")`' in (found.value.hint or "")


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
    secrets = {"HF_TOKEN": token} if token else {}
    config = TrainConfig(base_model=str(folder), datasets=(DataSource(path=name),))
    if not words:
        check_on_hub(config, secrets, environ)
        return
    with pytest.raises(ColablockError) as found:
        check_on_hub(config, secrets, environ)
    assert words in str(found.value)
    if name == "data":
        assert found.value.hint == "did you mean `data.jsonl`?"
    check_on_hub(config, secrets, environ, reads=False)


class Silent:
    """A port that accepts connections and never answers."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.root = f"http://127.0.0.1:{self.socket.getsockname()[1]}"


AWAY = {
    "no route": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be asked: no connection to `127.0.0.1`"),
    "no answer": ({"HF_ENDPOINT": "", "COLABLOCK_TIMEOUT": "0.2"}, "sent nothing for 0.2 seconds"),
    "no end": ({"HF_ENDPOINT": "", "COLABLOCK_TIMEOUT": "60"}, "did not answer within 1 seconds"),
    "offline": ({"HF_HUB_OFFLINE": "1"}, "and HF_HUB_OFFLINE forbids to ask the hub"),
}


@pytest.mark.parametrize(("variables", "words"), AWAY.values(), ids=AWAY)
def test_a_hub_that_cannot_be_asked_is_said_soon_and_by_name(
    variables: dict[str, str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = 1 if "within 1 seconds" in words else PATIENCE
    monkeypatch.setattr("colablock.training.given_inputs._PATIENCE", patience)
    silent = Silent()
    environ = {"HF_ENDPOINT": silent.root, "HF_HOME": str(folder / "home"), **variables}
    environ["HF_ENDPOINT"] = environ["HF_ENDPOINT"] or silent.root
    local = TrainConfig(base_model=str(folder), datasets=(DataSource(path="data.jsonl"),))
    check_on_hub(local, {}, environ)
    for what, config in (
        ("the model `me/model`", replace(local, base_model="me/model")),
        ("the model `models`", replace(local, base_model="models")),
        ("the dataset `me/open`", replace(local, datasets=(DataSource(path="me/open"),))),
    ):
        began = time.monotonic()
        with pytest.raises(FetchFailed) as found:
            check_on_hub(config, {}, environ)
        assert time.monotonic() - began < 60  # the timeout of "no end"
        assert str(found.value).startswith(f"{what} is not on this machine, and ")
        assert words in str(found.value)
        assert "the path of a local copy" in str(found.value.hint)
        assert ("did you mean `model`? Else " in str(found.value.hint)) == ("models" in what)
    silent.socket.close()


def test_what_is_cached_needs_no_hub(folder: Path) -> None:
    (folder / "home/datasets/me___open").mkdir(parents=True)
    (folder / "home/hub/models--me--model/snapshots/main").mkdir(parents=True)
    environ = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "home")}
    config = TrainConfig(base_model="me/model", datasets=(DataSource(path="me/open"),))
    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        check_on_hub(config, {}, {**environ, **variables})


def test_a_status_that_tells_nothing_does_not_stop_a_run(hub: HubServer, folder: Path) -> None:
    environ = {"HF_ENDPOINT": hub.root, "HF_HOME": str(folder / "home"), "COLABLOCK_RETRIES": "0"}
    hub.statuses["/"] = 503
    try:
        check_on_hub(TrainConfig(base_model="me/model", datasets=(DataSource(path="me/open"),)), {}, environ)
    finally:
        hub.statuses.clear()
