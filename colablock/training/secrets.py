"""Look up Hugging Face and W&B tokens.  They are passed only to child processes, as variables.

The secret store of a hosted notebook is available only in the kernel, so the lookup happens there.
"""

from __future__ import annotations

import importlib
import importlib.util
import netrc
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from colablock._common.fs import expanded
from colablock._common.limits import SETTINGS_FILE
from colablock._common.toml import read_text_file
from colablock.environment.notebook_host import in_notebook
from colablock.training.preflight.hub_cache import expand_path, hub_home
from colablock.training.runs.checkpoints.stores import HUB
from colablock.training.runs.config import MetricsTarget, TrainConfig

__all__ = [
    "ColabSecrets",
    "KaggleSecrets",
    "Secret",
    "SecretStore",
    "SecretUnavailable",
    "find_token",
    "is_on_hub",
    "mirror_variables",
    "secret_stores",
    "secrets_environment",
]

#: The variables that the library of each secret reads.  Child processes get the first one.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "HF_TOKEN": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"),
    "WANDB_API_KEY": ("WANDB_API_KEY",),
}
# Trackers that axolotl can report to, by a part of its keys, and the start of their variables.
_TRACKERS = (("comet", "COMET_"), ("mlflow", "MLFLOW_"), ("swanlab", "SWANLAB_"), ("trackio", "TRACKIO_"))
_LOOKUP = threading.Lock()  # Colab answers one thread at a time, and two may deadlock


@dataclass(frozen=True, slots=True)
class Secret:
    """A token and its source.  The value is never shown."""

    value: str = field(repr=False)
    source: str

    def __str__(self) -> str:
        return f"the token of {self.source}"


class SecretUnavailable(Exception):
    """A secret store has a secret but does not release it; the message says why and what to do."""


class SecretStore(Protocol):
    """The secret store of a hosted notebook."""

    @property
    def name(self) -> str:
        """Its name for users."""

    def read(self, name: str) -> str | None:
        """Return a secret, or None if there is none with that name.  Raises SecretUnavailable."""


@dataclass(frozen=True, slots=True)
class ColabSecrets:
    """Colab's secrets.  *userdata* is ``google.colab.userdata``, which works only in the kernel."""

    userdata: Any
    name: str = "Colab's secrets"

    def read(self, name: str) -> str | None:
        """Return the result of ``userdata.get``.  Its errors are recognised by the names of their classes."""
        try:
            with _LOOKUP:
                value = self.userdata.get(name)
        except Exception as error:
            kind = type(error).__name__
            if kind == "SecretNotFoundError":
                return None
            why = {
                "NotebookAccessError": "this notebook has no access to it: switch on `Notebook access` "
                "for it (the key in the left sidebar), and run the cell again",
                "TimeoutException": "Colab did not answer: open its page, and run the cell again",
            }.get(kind, f"{kind}: set the environment variable {name} instead")
            message = f"could not read the secret {name} of Colab: {why}"
            raise SecretUnavailable(message) from error
        return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class KaggleSecrets:
    """Kaggle's secrets.  *client* is ``kaggle_secrets.UserSecretsClient``."""

    client: Callable[[], Any]
    name: str = "Kaggle's secrets"

    def read(self, name: str) -> str | None:
        """Return the result of ``get_secret``.  It does not tell missing secrets from unattached ones."""
        try:
            value = self.client().get_secret(name)
        except Exception as error:
            kind = type(error).__name__
            if kind == "NotFoundError" or "No user secrets exist" in str(error):
                return None
            why = f"{kind}: attach it to this notebook (Add-ons, Secrets), and switch on internet access"
            message = f"could not read the secret {name} of Kaggle: {why}"
            raise SecretUnavailable(message) from error
        return value if isinstance(value, str) else None


def secret_stores(environ: Mapping[str, str]) -> tuple[SecretStore, ...]:
    """Return the secret stores of this process: Colab's in its kernel, Kaggle's by its variables."""
    found: list[SecretStore] = []
    if in_notebook() and environ.get("VERTEX_PRODUCT") != "COLAB_ENTERPRISE" and _has("google.colab"):
        with suppress(ImportError):
            found.append(ColabSecrets(importlib.import_module("google.colab.userdata")))
    if environ.get("KAGGLE_KERNEL_RUN_TYPE") and _has("kaggle_secrets"):
        with suppress(ImportError):
            found.append(KaggleSecrets(importlib.import_module("kaggle_secrets").UserSecretsClient))
    return tuple(found)


def find_token(
    name: str, environ: Mapping[str, str], stores: Sequence[SecretStore] = ()
) -> tuple[Secret | None, tuple[str, ...]]:
    """Return the secret *name* (``HF_TOKEN``, ``WANDB_API_KEY``), and notes about stores that failed.

    The lookup order is: environment variables, the library's own file, *stores*.
    """
    for variable in _NAMES[name]:
        if value := _clean(environ.get(variable, "")):
            return Secret(value, f"the variable {variable}"), ()
    from_file = _in_token_file(environ) if name == "HF_TOKEN" else _in_netrc(environ)
    if from_file is not None:
        return from_file, ()
    notes = []
    for store in stores:
        try:
            value = _clean(store.read(name) or "")
        except SecretUnavailable as error:
            notes.append(str(error))
            continue
        if value:
            return Secret(value, store.name), ()
    return None, tuple(notes)


def secrets_environment(
    config: TrainConfig, environ: Mapping[str, str], stores: Sequence[SecretStore] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables with secrets for the processes of a run, and notes about missing ones.

    The hub's token is included only if the run needs the hub: its model or data are not on this
    machine, or a key for axolotl names the hub.  The API key of wandb is included only if `report_to`
    has wandb.  Without a key, wandb writes to disk (``WANDB_MODE=offline``) unless a mode is set.
    Variables of other trackers are included if a key for axolotl names the tracker.
    """
    keys = "\n".join(config.extra)
    trackers = tuple(prefix for tracker, prefix in _TRACKERS if tracker in keys)
    variables = {name: value for name, value in environ.items() if trackers and name.startswith(trackers)}
    secret, notes = find_token("HF_TOKEN", environ, stores) if _needs_hub(config) else (None, ())
    if secret is not None:
        variables["HF_TOKEN"] = secret.value
    if MetricsTarget.WANDB not in config.report_to:
        return variables, notes
    secret, more = find_token("WANDB_API_KEY", environ, stores)
    notes += more
    if secret is not None:
        variables["WANDB_API_KEY"] = secret.value
    elif not environ.get("WANDB_MODE"):
        variables["WANDB_MODE"] = "offline"
        notes += ("wandb has no API key and works offline: set WANDB_API_KEY, or run `wandb sync` later",)
    return variables, notes


def is_on_hub(name: object) -> bool:
    """Return whether the model or dataset *name* is one of the hub, and not a path of this machine."""
    return isinstance(name, str) and not expanded(name, "a model or dataset").exists()


def _needs_hub(config: TrainConfig) -> bool:
    names = (config.base_model, *(one.path for one in config.datasets))
    return any(map(is_on_hub, names)) or any("hub" in key or "dataset" in key for key in config.extra)


def _clean(text: str) -> str:
    """Return a token without line breaks, which come from pasting."""
    return text.replace("\r", "").replace("\n", "").strip()


def _in_token_file(environ: Mapping[str, str]) -> Secret | None:
    """Return the token that ``hf auth login`` saved."""
    named = environ.get("HF_TOKEN_PATH")
    path = Path(expand_path(named, environ)) if named else hub_home(environ) / "token"
    value = ""
    with suppress(OSError, ValueError):  # a path may have a null character, and the bytes may be no text
        value = _clean(read_text_file(path, SETTINGS_FILE).decode("utf-8"))
    return Secret(value, f"the file {path}") if value else None


def _in_netrc(environ: Mapping[str, str]) -> Secret | None:
    """Return the key that ``wandb login`` saved."""
    host = urlsplit(environ.get("WANDB_BASE_URL", "")).hostname or "api.wandb.ai"
    named = environ.get("NETRC")
    path = (
        Path(expand_path(named, environ)) if named else Path(environ.get("HOME") or "/nonexistent") / ".netrc"
    )
    known = None
    with suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        if path.is_file():  # opening a FIFO waits for a writer
            known = netrc.netrc(str(path)).hosts.get(host)  # not `default`: it has another password
    value = _clean(known[2] or "") if known is not None else ""
    return Secret(value, f"the file {path}") if value else None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # there is no `google`, or it is not a package
        return False


def mirror_variables(mirror: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return *environ*, with the token of the hub if the mirror is there."""
    if not mirror.startswith(HUB):
        return environ
    token, _ = find_token("HF_TOKEN", environ, secret_stores(environ))
    return environ if token is None else {**environ, "HF_TOKEN": token.value}
