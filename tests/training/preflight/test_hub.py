from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from colablock._common.urls import Mirrors
from colablock.errors import FetchFailed, InvalidInput, NotFound, Refused
from colablock.network.auth import Credentials
from colablock.network.http import HttpClient
from colablock.training.preflight.facts import Access
from colablock.training.preflight.hub import ModelFacts, query_model, read_model_config
from colablock.training.preflight.hub_cache import HubCache, hub_home
from tests.support.hub import COMMIT, TOKEN, HubServer, Repo, fill_cache
from tests.support.serving import refusing

CONFIG = b'{"model_type": "llama", "hidden_size": 64}'
TOLD = {"model_type": "llama", "hidden_size": 64}
SHARDED = {
    "model-00001-of-00002.safetensors": 4_000,
    "model-00002-of-00002.safetensors": 3_000,
    "model.safetensors.index.json": 50,
    "original/consolidated.00.pth": 9_000,
    "onnx/model.safetensors": 8_000,
    "consolidated.safetensors": 7_000,
    "pytorch_model-00001-of-00001.bin": 7_000,
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    repos = {
        "open/model": Repo(files={"config.json": CONFIG}, sizes=SHARDED),
        "gated/model": Repo(files={"config.json": CONFIG}, sizes={"model.safetensors": 5_000}, gated=True),
        "private/model": Repo(files={"config.json": CONFIG}, sizes={"model.safetensors": 5}, private=True),
        "old/name": Repo(renamed="open/model"),
        "gguf/model": Repo(sizes={"model.Q4_K_M.gguf": 5_000}),
    }
    with HubServer(repos) as server:
        yield server


@pytest.fixture
def environ(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": f"{hub.root}/", "HF_HOME": str(tmp_path / "home"), "COLABLOCK_RETRIES": "0"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub"


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Give variables with a hub that does not respond."""
    with refusing() as url:
        yield {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "COLABLOCK_RETRIES": "0"}


def access(
    hub: HubServer, repo: str, status: str, weights: int = 0, *, token: bool = False, size: int | None = None
) -> Access:
    return Access(
        status=status,
        weights=weights,
        size=weights if size is None else size,
        repo=repo,
        url=f"{hub.root}/{repo}",
        has_token=token,
    )


def test_a_folder_is_read_without_the_hub(hub: HubServer, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(CONFIG)
    model = str(tmp_path / "model")
    assert read_model_config(model, None, None, environ) == TOLD
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(9))
    access = Access(status="local", size=9, repo=model, url="", has_token=True)
    assert query_model(model, None, TOKEN, environ) == ModelFacts(access=access, config=TOLD)
    assert hub.requests == []


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe"])
def test_a_config_that_is_not_an_object_is_refused(
    data: bytes, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(InvalidInput, match=r"config\.json"):
        read_model_config(str(tmp_path), None, None, environ)


def test_a_folder_without_a_config_is_not_a_model(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a model") as raised:
        read_model_config(str(tmp_path), None, None, environ)
    facts = query_model(str(tmp_path), None, None, environ)
    assert (facts.access.status, facts.config, facts.problem) == ("local", None, raised.value.message)


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "a/b/c", "two words"])
def test_an_invalid_model_name_is_refused(name: str, hub: HubServer, environ: dict[str, str]) -> None:
    for ask in (query_model, read_model_config):
        with pytest.raises(NotFound, match=f"`{name}` is neither a folder nor a valid name") as raised:
            ask(name, None, None, environ)
        assert raised.value.hint == "Give the path of a model, or a name such as `owner/model`"
    assert hub.requests == []


def test_an_open_model_takes_three_requests(hub: HubServer, environ: dict[str, str]) -> None:
    facts = query_model("open/model", None, None, environ)
    assert facts == ModelFacts(access=access(hub, "open/model", "open", 7_000), config=TOLD)
    assert hub.asked == [
        "HEAD /open/model/resolve/main/config.json",
        "GET /api/models/open/model/revision/main?blobs=true",
        "GET /open/model/resolve/main/config.json",
    ]
    assert {seen.token for seen in hub.requests} == {None}


WEIGHTS: list[tuple[str, dict[str, int], int]] = [
    ("one file", {"model.safetensors": 5, "model-00001-of-00001.safetensors": 5}, 5),
    ("shards, and another form of them", SHARDED, 7_000),
    ("another name", {"weights.safetensors": 6, "pytorch_model.bin": 7}, 6),
    ("the old form", {"pytorch_model.bin": 7, "training_args.bin": 1}, 7),
    ("shards of the old form", {"pytorch_model-00001-of-00001.bin": 8, "training_args.bin": 1}, 8),
    ("only in a folder", {"onnx/model.safetensors": 9}, 0),
    ("none", {"model.gguf": 9}, 0),
]


@pytest.mark.parametrize(("sizes", "weights"), [case[1:] for case in WEIGHTS], ids=[c[0] for c in WEIGHTS])
def test_only_weights_that_transformers_loads_are_counted(
    sizes: dict[str, int], weights: int, hub: HubServer, environ: dict[str, str]
) -> None:
    hub.repos["some/model"] = Repo(files={"config.json": CONFIG}, sizes=sizes)
    assert query_model("some/model", None, None, environ).access.weights == weights


STATUSES = [
    ("open/model", None, None, "open", 7_000),
    ("old/name", None, None, "open", 7_000),
    ("open/model", COMMIT, None, "open", 7_000),
    ("open/model", "v9", None, "missing", 0),
    ("gated/model", None, None, "gated", 0),
    ("gated/model", None, TOKEN, "open", 5_000),
    ("private/model", None, None, "missing", 0),
    ("private/model", None, TOKEN, "open", 5),
    ("nobody/nothing", None, None, "missing", 0),
    ("nobody/nothing", None, TOKEN, "missing", 0),
    ("gguf/model", None, None, "open", 0),
]


@pytest.mark.parametrize("case", STATUSES)
def test_the_access_status_follows_from_the_response(
    case: tuple[str, str | None, str | None, str, int], hub: HubServer, environ: dict[str, str]
) -> None:
    repo, revision, token, status, weights = case
    expected = access(hub, repo, status, weights, token=token is not None)
    assert query_model(repo, revision, token, environ).access == expected
    assert {seen.token for seen in hub.requests} == {token}
    assert sum(seen.method == "HEAD" for seen in hub.requests) == (2 if repo == "old/name" else 1)


def test_a_rejected_token_is_an_error(environ: dict[str, str]) -> None:
    for ask in (query_model, read_model_config):
        with pytest.raises(InvalidInput, match="rejects the token") as raised:
            ask("open/model", None, "hf_withdrawn", environ)
        assert "hf_withdrawn" not in f"{raised.value} {raised.value.hint}"


def test_forbidden_access_counts_as_gated(hub: HubServer, environ: dict[str, str]) -> None:
    hub.statuses["/open/model"] = 403
    assert query_model("open/model", None, TOKEN, environ).access == access(
        hub, "open/model", "gated", token=True
    )


@pytest.mark.parametrize("status", [500, 503, 429, 418])
def test_a_failing_hub_is_unreachable_and_not_queried_again(
    status: int, hub: HubServer, environ: dict[str, str], cache: Path
) -> None:
    hub.statuses["/"] = status
    facts = query_model("open/model", None, None, environ)
    assert facts.access == access(hub, "open/model", "unreachable")
    assert len(hub.requests) == 1  # who was waited for once
    with pytest.raises(FetchFailed) as raised:
        read_model_config("open/model", None, None, environ)
    assert raised.value.status == status
    assert facts.problem == raised.value.message
    fill_cache(cache, "open/model", {"config.json": b'{"kept": 1}'})
    facts = query_model("open/model", None, None, environ)
    assert (facts.access.status, facts.config) == ("unreachable", {"kept": 1})


def test_a_hub_without_file_sizes_is_open(hub: HubServer, environ: dict[str, str]) -> None:
    hub.repos["open/model"] = Repo(files={"config.json": CONFIG}, sizes=SHARDED, has_api=False)
    assert query_model("open/model", None, None, environ).access == access(hub, "open/model", "open")


def test_a_temporary_failure_is_retried(hub: HubServer, environ: dict[str, str]) -> None:
    hub.statuses["/open"] = 503

    ended = []

    def sleep(seconds: float) -> None:
        ended.append(seconds)
        hub.statuses.clear()

    wire = HttpClient({"COLABLOCK_RETRIES": "1"}, Mirrors(()), Credentials({}), sleep=sleep)
    assert query_model("open/model", None, None, environ, transport=wire).access.status == "open"
    assert len(ended) == 1


def test_without_a_network_the_hub_is_unreachable(nowhere: dict[str, str]) -> None:
    assert query_model("open/model", None, None, nowhere).access.status == "unreachable"
    with pytest.raises(FetchFailed, match=r"no connection to `127\.0\.0\.1`"):
        read_model_config("open/model", None, None, nowhere)


@pytest.mark.parametrize("repo", ["open/model", "old/name"])
def test_the_config_is_read_from_the_hub(repo: str, hub: HubServer, environ: dict[str, str]) -> None:
    assert read_model_config(repo, None, None, environ) == TOLD
    assert {seen.method for seen in hub.requests} == {"GET"}


def test_a_redirect_to_another_host_drops_the_token(hub: HubServer, environ: dict[str, str]) -> None:
    files = Repo(files={"config.json": CONFIG})
    with HubServer({"far/model": files}) as other:
        hub.repos["far/model"] = Repo(sizes={"model.safetensors": 5}, elsewhere=other.root)
        assert read_model_config("far/model", None, TOKEN, environ) == TOLD
        assert [seen.token for seen in other.requests] == [None]
        assert query_model("far/model", None, TOKEN, environ).access.status == "open"
        assert [(seen.method, seen.token) for seen in other.requests] == [("GET", None)] * 2


def test_circular_redirects_end(hub: HubServer, environ: dict[str, str]) -> None:
    hub.repos |= {"a/one": Repo(renamed="a/two"), "a/two": Repo(renamed="a/one")}
    with pytest.raises(FetchFailed, match="redirects more than"):
        read_model_config("a/one", None, None, environ)


def test_a_gated_config_is_refused_with_the_page_to_request_access(
    hub: HubServer, environ: dict[str, str]
) -> None:
    with pytest.raises(Refused, match="is gated") as raised:
        read_model_config("gated/model", None, None, environ)
    assert f"{hub.root}/gated/model" in (raised.value.hint or "")
    assert read_model_config("gated/model", None, TOKEN, environ) == TOLD


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        ("nobody/nothing", None, "has no model `nobody/nothing`, or it is private"),
        ("open/model", "v9", "at revision `v9`"),
        ("gguf/model", None, r"has no `config\.json`"),
    ],
)
def test_a_missing_model_revision_or_config_is_an_error(
    repo: str, revision: str | None, words: str, environ: dict[str, str]
) -> None:
    with pytest.raises(NotFound, match=words):
        read_model_config(repo, revision, None, environ)


WHOLE: Mapping[str, bytes | None] = {"config.json": b'{"kept": 1}', "model.safetensors": b"12345"}
INDEX = json.dumps(
    {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
)
SHARDS: Mapping[str, bytes | None] = {
    "config.json": CONFIG,
    "model.safetensors.index.json": INDEX.encode(),
    "model-00001-of-00002.safetensors": b"1",
    "model-00002-of-00002.safetensors": b"2",
}
KEPT: list[tuple[str, Mapping[str, bytes | None], bool]] = [
    ("whole", WHOLE, True),
    ("whole, the old form", {"config.json": CONFIG, "pytorch_model.bin": b"1"}, True),
    ("whole, in shards", SHARDS, True),
    ("no weights", {"config.json": CONFIG}, False),
    ("no config", {"model.safetensors": b"1"}, False),
    ("cut off", {"config.json": CONFIG, "model.safetensors": None}, False),
    ("a shard is missing", {**SHARDS, "model-00002-of-00002.safetensors": None}, False),
    ("a spoilt index", {"config.json": CONFIG, "model.safetensors.index.json": b"[]"}, False),
    ("an empty index", {"config.json": CONFIG, "model.safetensors.index.json": b"{}"}, False),
]


@pytest.mark.parametrize(("files", "is_whole"), [case[1:] for case in KEPT], ids=[case[0] for case in KEPT])
@pytest.mark.parametrize("way", ["offline", "unreachable"])
def test_a_completely_cached_model_needs_no_hub(
    files: Mapping[str, bytes | None], is_whole: bool, way: str, nowhere: dict[str, str], cache: Path
) -> None:
    environ = {**nowhere, "HF_HUB_OFFLINE": "1" if way == "offline" else ""}
    fill_cache(cache, "open/model", files)
    found = query_model("open/model", None, None, environ).access
    assert (found.status, found.weights) == ("local" if is_whole else "unreachable", 0)
    if "config.json" in files:
        assert read_model_config("open/model", None, None, environ) == json.loads(files["config.json"] or b"")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_the_hub_is_not_queried(variable: str, hub: HubServer, environ: dict[str, str]) -> None:
    environ[variable] = "true"
    assert query_model("open/model", None, None, environ).access.status == "unreachable"
    with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE forbids"):
        read_model_config("open/model", None, None, environ)
    assert hub.requests == []


def test_cached_weights_are_not_counted(hub: HubServer, environ: dict[str, str], cache: Path) -> None:
    fill_cache(cache, "open/model", {**SHARDS, "model-00002-of-00002.safetensors": None})
    assert query_model("open/model", None, None, environ).access == access(
        hub, "open/model", "open", 3_000, size=7_000
    )


def test_a_branch_is_queried_again_and_a_commit_is_not(
    hub: HubServer, environ: dict[str, str], cache: Path
) -> None:
    fill_cache(cache, "open/model", WHOLE)
    assert read_model_config("open/model", COMMIT, None, environ) == {"kept": 1}
    assert hub.requests == []
    assert read_model_config("open/model", None, None, environ) == TOLD


@pytest.mark.parametrize("repo", ["gated/model", "gone/model"])
def test_a_model_that_the_hub_removed_is_read_from_the_cache(
    repo: str, environ: dict[str, str], cache: Path
) -> None:
    fill_cache(cache, repo, WHOLE)
    assert query_model(repo, None, None, environ).access.status == "local"
    assert read_model_config(repo, None, None, environ) == {"kept": 1}


PLACES = [
    ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
    ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "HF_HOME": "~/hf"}, "/h/hf/hub"),
    ({"HOME": "/h", "HF_HOME": "$DISK/hf", "DISK": "/d"}, "/d/hf/hub"),
    ({"HOME": "/h", "HF_HOME": "/a", "HUGGINGFACE_HUB_CACHE": "/b"}, "/b"),
    ({"HOME": "/h", "HF_HUB_CACHE": "${DISK}/c", "HUGGINGFACE_HUB_CACHE": "/b", "DISK": "/d"}, "/d/c"),
    ({}, "/nonexistent/.cache/huggingface/hub"),
]


@pytest.mark.parametrize(("environ", "folder"), PLACES)
def test_the_cache_folder_is_that_of_huggingface_hub(environ: dict[str, str], folder: str) -> None:
    assert HubCache.from_environ(environ).folder == Path(folder)
    if "CACHE" not in " ".join(environ).replace("XDG_CACHE_HOME", ""):
        assert hub_home(environ) == Path(folder).parent
