"""Tokens, where their owners keep them: they go from there into a child's variables and nowhere else.

A hosted notebook's vault answers its own kernel alone, so all of this happens there.
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

from colablock.environment.notebook_host import in_notebook
from colablock.training.preflight.hub import expand_path, hub_home
from colablock.training.runs.config import MetricsTarget, TrainConfig

__all__ = [
    "ColabSecrets",
    "KaggleSecrets",
    "Secret",
    "SecretStore",
    "SecretUnavailable",
    "find_token",
    "secret_stores",
    "secrets_environment",
]

#: Each secret under the names that its own library knows it by; the first is the one that children get.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "HF_TOKEN": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"),
    "WANDB_API_KEY": ("WANDB_API_KEY",),
}
_ASKING = threading.Lock()  # Colab's vault answers one thread at a time, and two may wait for ever


@dataclass(frozen=True, slots=True)
class Secret:
    """A token, and where it was found; its value is never shown."""

    value: str = field(repr=False)
    source: str

    def __str__(self) -> str:
        return f"the token of {self.source}"


class SecretUnavailable(Exception):
    """A vault holds a secret that it does not give; says why and what to do."""


class SecretStore(Protocol):
    """Where a hosted notebook keeps secrets."""

    @property
    def name(self) -> str:
        """What people call it."""

    def read(self, name: str) -> str | None:
        """Return a secret, None where there is none of that name.  Raises VaultClosed."""


@dataclass(frozen=True, slots=True)
class ColabSecrets:
    """Colab's secrets.  *userdata* stands for ``google.colab.userdata``; it answers in the kernel only."""

    userdata: Any
    name: str = "Colab's secrets"

    def read(self, name: str) -> str | None:
        """Return what ``userdata.get`` does; its errors are told by their names, which did not change yet."""
        try:
            with _ASKING:
                value = self.userdata.get(name)
        except Exception as error:
            kind = type(error).__name__
            if kind == "SecretNotFoundError":
                return None
            why = {
                "NotebookAccessError": "it is not granted to this notebook: switch `Notebook access` on "
                "beside it (the key in the left margin), and run the cell again",
                "TimeoutException": "Colab did not answer: its page has to be open; run the cell again",
            }.get(kind, f"{kind}: set {name} in the environment instead")
            message = f"the secret {name} of Colab was not read: {why}"
            raise SecretUnavailable(message) from error
        return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class KaggleSecrets:
    """Kaggle's secrets.  *client* stands for ``kaggle_secrets.UserSecretsClient``."""

    client: Callable[[], Any]
    name: str = "Kaggle's secrets"

    def read(self, name: str) -> str | None:
        """Return what ``get_secret`` does; what does not exist and what is not attached look alike there."""
        try:
            value = self.client().get_secret(name)
        except Exception as error:
            kind = type(error).__name__
            if kind == "NotFoundError" or "No user secrets exist" in str(error):
                return None
            why = f"{kind}: attach it to this notebook (Add-ons, Secrets), with the internet switched on"
            message = f"the secret {name} of Kaggle was not read: {why}"
            raise SecretUnavailable(message) from error
        return value if isinstance(value, str) else None


def secret_stores(environ: Mapping[str, str]) -> tuple[SecretStore, ...]:
    """Return the vaults that this process can ask: Colab's in its kernel, Kaggle's by its variables."""
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
    """Return the secret *name* (``HF_TOKEN``, ``WANDB_API_KEY``), and what to know where a vault kept it.

    The environment comes first, then the library's own file, then the *stores*.
    """
    for variable in _NAMES[name]:
        if value := _clean(environ.get(variable, "")):
            return Secret(value, f"the variable {variable}"), ()
    kept = _in_token_file(environ) if name == "HF_TOKEN" else _in_netrc(environ)
    if kept is not None:
        return kept, ()
    notes = []
    for vault in stores:
        try:
            value = _clean(vault.read(name) or "")
        except SecretUnavailable as error:
            notes.append(str(error))
            continue
        if value:
            return Secret(value, vault.name), ()
    return None, tuple(notes)


def secrets_environment(
    config: TrainConfig, environ: Mapping[str, str], stores: Sequence[SecretStore] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables with secrets that a run's processes get, and notes about what is missing.

    The hub's token, where there is one.  The key of wandb only where the metrics go
    there; without a key wandb writes to disk (``WANDB_MODE=offline``), unless its
    mode is set already.
    """
    variables: dict[str, str] = {}
    secret, notes = find_token("HF_TOKEN", environ, stores)
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
        notes += ("wandb has no key and works offline: set WANDB_API_KEY, or upload later with `wandb sync`",)
    return variables, notes


def _clean(text: str) -> str:
    """Return a token without the line ends that come with pasting."""
    return text.replace("\r", "").replace("\n", "").strip()


def _in_token_file(environ: Mapping[str, str]) -> Secret | None:
    """Return what ``hf auth login`` left."""
    named = environ.get("HF_TOKEN_PATH")
    path = Path(expand_path(named, environ)) if named else hub_home(environ) / "token"
    value = ""
    with suppress(OSError, UnicodeDecodeError):
        value = _clean(path.read_text(encoding="utf-8"))
    return Secret(value, f"the file {path}") if value else None


def _in_netrc(environ: Mapping[str, str]) -> Secret | None:
    """Return what ``wandb login`` left."""
    host = urlsplit(environ.get("WANDB_BASE_URL", "")).hostname or "api.wandb.ai"
    named = environ.get("NETRC")
    path = (
        Path(expand_path(named, environ)) if named else Path(environ.get("HOME") or "/nonexistent") / ".netrc"
    )
    known = None
    with suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        known = netrc.netrc(str(path)).hosts.get(host)  # not `default`: that is somebody else's password
    value = _clean(known[2] or "") if known is not None else ""
    return Secret(value, f"the file {path}") if value else None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # no `google`, or one that is no package
        return False
