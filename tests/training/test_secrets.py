from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import colablock.training
from colablock.training.runs.config import DataSource, MetricsTarget, TrainConfig
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.secrets import (
    ColabSecrets,
    KaggleSecrets,
    Secret,
    SecretStore,
    SecretUnavailable,
    find_token,
    secret_stores,
    secrets_environment,
)

NETRC = """\
machine api.wandb.ai login user password wandb-of-netrc
machine wandb.example login user password wandb-of-ours
default login anybody password of-nobody
"""


class FakeStore:
    """A secret store with given secrets, which raises a given error."""

    name = "the fake store"

    def __init__(self, **held: str | Exception) -> None:
        self.held = held
        self.asked: list[str] = []

    def read(self, name: str) -> str | None:
        self.asked.append(name)
        value = self.held.get(name)
        if isinstance(value, Exception):
            raise value
        return value


def home(folder: Path) -> dict[str, str]:
    """Return the variables of a user who has logged in to both services."""
    (folder / ".netrc").write_text(NETRC)
    (folder / ".netrc").chmod(0o600)
    path = folder / ".cache" / "huggingface" / "token"
    path.parent.mkdir(parents=True)
    path.write_text("hf_of_file\r\n")
    return {"HOME": str(folder)}


def config(*reports: MetricsTarget) -> TrainConfig:
    return TrainConfig(base_model="m", datasets=(DataSource(path="d"),), report_to=reports)


def test_a_secret_shows_its_source_and_not_its_value() -> None:
    secret = Secret("hf_hidden", "the fake store")
    assert "hf_hidden" not in f"{secret} {secret!r} {[secret]}"
    assert str(secret) == "the token of the fake store"


ENVIRONMENTS: list[tuple[str, dict[str, str], str, str]] = [
    ("HF_TOKEN", {"HF_TOKEN": "a", "HUGGING_FACE_HUB_TOKEN": "b"}, "a", "the variable HF_TOKEN"),
    ("HF_TOKEN", {"HF_TOKEN": " \n", "HUGGING_FACE_HUB_TOKEN": "b\n"}, "b", "HUGGING_FACE_HUB_TOKEN"),
    ("HF_TOKEN", {"HUGGINGFACE_TOKEN": "c"}, "c", "the variable HUGGINGFACE_TOKEN"),
    ("HF_TOKEN", {}, "hf_of_file", ".cache/huggingface/token"),
    ("HF_TOKEN", {"HF_TOKEN_PATH": "{folder}/other"}, "hf_of_other", "{folder}/other"),
    ("HF_TOKEN", {"HF_TOKEN_PATH": "~/other"}, "hf_of_other", "{folder}/other"),
    ("HF_TOKEN", {"HF_TOKEN_PATH": "$DISK/other", "DISK": "{folder}"}, "hf_of_other", "{folder}/other"),
    ("WANDB_API_KEY", {"WANDB_API_KEY": "w", "HF_TOKEN": "a"}, "w", "the variable WANDB_API_KEY"),
    ("WANDB_API_KEY", {}, "wandb-of-netrc", ".netrc"),
    ("WANDB_API_KEY", {"WANDB_BASE_URL": "https://wandb.example/"}, "wandb-of-ours", ".netrc"),
    ("WANDB_API_KEY", {"NETRC": "{folder}/none"}, "of-the-store", "the fake store"),
    ("WANDB_API_KEY", {"NETRC": "~/own"}, "wandb-of-own", "{folder}/own"),
    ("WANDB_API_KEY", {"WANDB_BASE_URL": "https://other.example/"}, "of-the-store", "the fake store"),
    ("HF_TOKEN", {"HF_HOME": "{folder}/none"}, "of-the-store", "the fake store"),
]


@pytest.mark.parametrize(("name", "variables", "value", "source"), ENVIRONMENTS)
def test_tokens_are_looked_up_in_variables_then_files_then_stores(
    name: str, variables: dict[str, str], value: str, source: str, tmp_path: Path
) -> None:
    environ = home(tmp_path)
    (tmp_path / "other").write_text("hf_of_other")
    (tmp_path / "own").write_text("machine api.wandb.ai login user password wandb-of-own")
    environ |= {key: text.replace("{folder}", str(tmp_path)) for key, text in variables.items()}
    store = FakeStore(HF_TOKEN="of-the-store", WANDB_API_KEY="of-the-store")
    secret, notes = find_token(name, environ, [FakeStore(), store])
    assert secret is not None
    assert (secret.value, notes) == (value, ())
    assert source.replace("{folder}", str(tmp_path)) in secret.source
    assert store.asked == ([name] if value == "of-the-store" else [])


@pytest.mark.parametrize("spoilt", ["netrc", "folder", "token"])
def test_an_unreadable_file_has_no_token(spoilt: str, tmp_path: Path) -> None:
    environ = home(tmp_path)
    token = tmp_path / ".cache" / "huggingface" / "token"
    for path in (tmp_path / ".netrc", token):
        path.unlink()
        if spoilt == "folder":
            path.mkdir()
        else:
            path.write_bytes(b"machine" if spoilt == "netrc" and path != token else b"\xff\xfe\x00")
    assert find_token("HF_TOKEN", environ) == (None, ())
    assert find_token("WANDB_API_KEY", environ) == (None, ())


def test_an_unavailable_store_is_skipped_with_a_note(tmp_path: Path) -> None:
    closed = FakeStore(HF_TOKEN=SecretUnavailable("it is locked: open it"))
    environ = {"HOME": str(tmp_path)}
    assert find_token("HF_TOKEN", environ, [closed, FakeStore()]) == (None, ("it is locked: open it",))
    secret, notes = find_token("HF_TOKEN", environ, [closed, FakeStore(HF_TOKEN="found\n")])
    assert (secret, notes) == (Secret("found", "the fake store"), ())


PASSED: list[tuple[str, tuple[MetricsTarget, ...], dict[str, str], dict[str, str], dict[str, str], int]] = [
    ("nothing", (), {}, {}, {}, 0),
    ("a token", (), {"HF_TOKEN": "t"}, {}, {"HF_TOKEN": "t"}, 0),
    ("an old name", (), {"HUGGINGFACE_TOKEN": "t"}, {}, {"HF_TOKEN": "t"}, 0),
    ("of a store", (), {}, {"HF_TOKEN": "t", "WANDB_API_KEY": "w"}, {"HF_TOKEN": "t"}, 0),
    ("no wandb", (MetricsTarget.TENSORBOARD,), {"WANDB_API_KEY": "w"}, {}, {}, 0),
    ("wandb", (MetricsTarget.WANDB,), {}, {"WANDB_API_KEY": "w"}, {"WANDB_API_KEY": "w"}, 0),
    ("no key", (MetricsTarget.WANDB,), {}, {}, {"WANDB_MODE": "offline"}, 1),
    ("a mode", (MetricsTarget.WANDB,), {"WANDB_MODE": "disabled"}, {}, {}, 0),
]


@pytest.mark.parametrize("case", PASSED, ids=[case[0] for case in PASSED])
def test_a_run_gets_only_the_secrets_that_it_needs(
    case: tuple[str, tuple[MetricsTarget, ...], Mapping[str, str], Mapping[str, str], Mapping[str, str], int],
    tmp_path: Path,
) -> None:
    _, reports, variables, held, passed, count = case
    store = FakeStore(**held)
    environ = {"HOME": str(tmp_path), **variables}
    mapping, notes = secrets_environment(config(*reports), environ, [store])
    assert (mapping, len(notes)) == (passed, count)
    assert ("WANDB_API_KEY" in store.asked) == (MetricsTarget.WANDB in reports)
    assert list(tmp_path.iterdir()) == []


def raising(name: str, base: type[Exception] = Exception) -> Callable[[str], Any]:
    """Return a function that raises an error with that class name, like google.colab and Kaggle."""

    def get(key: str) -> Any:
        raise type(name, (base,), {})(f"about {key}")

    return get


def colab(get: Callable[[str], Any]) -> SecretStore:
    return ColabSecrets(SimpleNamespace(get=get))


def kaggle(get: Callable[[str], Any]) -> SecretStore:
    return KaggleSecrets(lambda: SimpleNamespace(get_secret=get))


@pytest.mark.parametrize("store", [colab, kaggle])
def test_a_store_returns_its_secrets(store: Callable[[Callable[[str], Any]], SecretStore]) -> None:
    assert store(lambda name: f"of {name}").read("HF_TOKEN") == "of HF_TOKEN"
    assert store(lambda _: None).read("HF_TOKEN") is None


@pytest.mark.parametrize(
    "store",
    [
        colab(raising("SecretNotFoundError")),
        kaggle(raising("NotFoundError")),
    ],
)
def test_a_missing_secret_is_none(store: SecretStore) -> None:
    assert store.read("HF_TOKEN") is None


def test_a_kaggle_kernel_without_secrets_has_none() -> None:
    def get(name: str) -> str:
        raise RuntimeError(f"No user secrets exist for kernel id 1 and label {name}.")

    assert kaggle(get).read("HF_TOKEN") is None


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (colab(raising("NotebookAccessError")), "switch on `Notebook access`"),
        (colab(raising("TimeoutException")), "open its page"),
        (colab(raising("MessageError")), "MessageError: set the environment variable HF_TOKEN"),
        (kaggle(raising("BackendError")), "BackendError: attach it to this notebook"),
    ],
)
def test_an_unavailable_secret_says_what_to_do(store: SecretStore, words: str) -> None:
    with pytest.raises(SecretUnavailable, match=words):
        store.read("HF_TOKEN")
    secret, notes = find_token("HF_TOKEN", {}, [store])
    assert secret is None
    assert words in notes[0]


def test_a_plain_interpreter_has_no_stores() -> None:
    assert secret_stores({}) == ()
    assert secret_stores({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}) == ()


KAGGLE = "class UserSecretsClient:\n    def get_secret(self, name):\n        return f'kaggle {name}'\n"
COLAB = "def get(name):\n    return f'colab {name}'\n"
ASK = """
import sys, types, os
if sys.argv[1] == "kernel":
    shell = types.SimpleNamespace(kernel=object())
    sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.secrets import secret_stores
print([(store.name, store.read("X")) for store in secret_stores(os.environ)])
"""
HOSTS = [
    ("script", {}, "[]"),
    ("kernel", {}, """[("Colab's secrets", 'colab X')]"""),
    ("kernel", {"VERTEX_PRODUCT": "COLAB_ENTERPRISE"}, "[]"),
    ("script", {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, """[("Kaggle's secrets", 'kaggle X')]"""),
]


@pytest.mark.parametrize(("place", "variables", "expected"), HOSTS)
def test_stores_are_found_in_their_own_kernels(
    place: str, variables: dict[str, str], expected: str, tmp_path: Path
) -> None:
    for path, text in {
        "kaggle_secrets.py": KAGGLE,
        "google/__init__.py": "",
        "google/colab/__init__.py": "",
        "google/colab/userdata.py": COLAB,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    root = Path(colablock.training.__file__).parents[2]
    environ = {"PYTHONPATH": f"{tmp_path}:{root}", **variables}
    command = [sys.executable, "-c", ASK, place]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_no_module_hides_one_of_the_standard_library() -> None:
    # Scripts of it are run as files by other interpreters: the folder is then the first that is searched.
    folder = SCRIPTS
    assert {path.stem for path in folder.glob("*.py")} & sys.stdlib_module_names == set()


@pytest.mark.parametrize("place", ["/dev/zero", "{folder}/fifo"])
def test_a_token_file_without_an_end_is_not_read(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    named = place.format(folder=tmp_path)
    environ = {"HOME": str(tmp_path), "HF_TOKEN_PATH": named, "NETRC": named}
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        assert find_token(name, environ) == (None, ())
