"""What a model's repository says before its weights are fetched: the config, their size, who may read it.

A folder is read as it is.  Of a name on the hub the local cache is asked, where
huggingface_hub keeps it (``HF_HOME``, ``HF_HUB_CACHE``), and then the hub
(``HF_ENDPOINT``), unless ``HF_HUB_OFFLINE`` forbids it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from colablock._common.urls import Mirrors
from colablock.errors import FetchFailed, InvalidInput, NotFound, Refused, Unmet
from colablock.network.auth import Credentials
from colablock.network.http import HttpClient, HttpResponse
from colablock.training.preflight.facts import Access

__all__ = [
    "HubCache",
    "HubClient",
    "ModelFacts",
    "Transport",
    "expand_path",
    "hub_home",
    "is_offline",
    "query_model",
    "read_model_config",
]

_CONFIG = "config.json"
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as huggingface_hub reads them
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")
_LARGEST = 32 << 20  # bytes of a page: the largest repositories have some thousand files
_REDIRECTS = 5
_MOVED = frozenset({301, 302, 303, 307, 308})
# What transformers looks for, in its order; the shards of one file are told by its index.
_SHARDS = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_WEIGHTS = (
    ("model.safetensors", "model", "safetensors"),
    ("pytorch_model.bin", "pytorch_model", "bin"),
)


class Transport(Protocol):
    """Sends one request.  Raises FetchFailed where nothing answers."""

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> HttpResponse:
        """Return the answer to one request, whatever its status is, without following redirects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _HubFile:
    """A file of a repository.  *digest* is what huggingface_hub calls its blob in the cache."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class HubCache:
    """The cache of huggingface_hub; nothing is written there, and nothing is remembered here."""

    folder: Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> HubCache:
        """Return the one that huggingface_hub uses in a process with these variables."""
        named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        return cls(Path(expand_path(named, environ)) if named else hub_home(environ) / "hub")

    def snapshot(self, repo: str, revision: str) -> Path | None:
        """Return the folder of the revision's files; None where none of them is kept."""
        model = self._model(repo)
        commit = revision
        with suppress(OSError, UnicodeDecodeError):
            commit = (model / "refs" / revision).read_text(encoding="utf-8").strip()
        found = model / "snapshots" / commit
        return found if commit and found.is_dir() else None

    def is_whole(self, repo: str, revision: str) -> bool:
        """Whether a model can be loaded from what is kept: its config and all of its weights."""
        found = self.snapshot(repo, revision)
        return found is not None and (found / _CONFIG).is_file() and _has_weights(found)

    def has(self, repo: str, digest: str) -> bool:
        """Whether a file's content is kept, whatever revision it came with."""
        return bool(digest) and (self._model(repo) / "blobs" / digest).is_file()

    def _model(self, repo: str) -> Path:
        return self.folder / f"models--{repo.replace('/', '--')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What `query_model` heard; *problem* says why there is no *config*."""

    access: Access
    config: Mapping[str, Any] | None = None
    problem: str = ""


class HubClient:
    """Asks a hub about one model at one revision.

    *failure* is set once the hub did not answer: it is not waited for again.
    """

    failure: FetchFailed | None = None

    def __init__(
        self, repo: str, revision: str, *, endpoint: str, token: str | None, transport: Transport
    ) -> None:
        self.repo = repo
        self.revision = revision
        self.page = f"{endpoint}/{repo}"
        self._endpoint = endpoint
        self._headers = {"User-Agent": "colablock", **({"Authorization": f"Bearer {token}"} if token else {})}
        self._has_token = bool(token)
        self._transport = transport

    def status(self) -> str:
        """Return ``open``, ``gated`` or ``missing``, by one HEAD request.

        Raises FetchFailed where the hub does not answer, InvalidInput where it
        does not know the token.
        """
        return self._judged(self._ask("HEAD", self._url_of(_CONFIG)))

    def config(self) -> Mapping[str, Any]:
        """Return the model's config.  Raises FetchFailed, InvalidInput, NotFound, Refused."""
        if self.failure is not None:
            raise self.failure
        url = self._url_of(_CONFIG)
        answer = self._ask("GET", url)
        status = self._judged(answer)
        if status == "gated":
            hint = f"Ask for access at {self.page}, then give a token in HF_TOKEN"
            raise Refused(f"the model `{self.repo}` is gated: its config cannot be read yet", hint=hint)
        if status == "missing":
            raise _missing(self.repo, self.revision, self.page)
        if answer.status != HTTPStatus.OK:
            raise NotFound(
                f"`{self.repo}` has no `{_CONFIG}`: it holds no model that transformers loads",
                hint=f"look at {self.page}: quantised files for other programs often lie beside a model, "
                "under another name",
            )
        return _mapping(answer.read(_LARGEST), url)

    def files(self) -> tuple[_HubFile, ...]:
        """Return every file with its size; none where the hub does not tell."""
        revision = quote(self.revision, safe="")
        url = f"{self._endpoint}/api/models/{self.repo}/revision/{revision}?blobs=true"
        answer = self._ask("GET", url)
        if answer.status != HTTPStatus.OK:
            return ()
        return tuple(_files(_mapping(answer.read(_LARGEST), url).get("siblings")))

    def _url_of(self, name: str) -> str:
        return f"{self._endpoint}/{self.repo}/resolve/{quote(self.revision, safe='')}/{name}"

    def _ask(self, method: str, url: str) -> HttpResponse:
        """Return the answer after redirects: a model may have another name by now.

        Another host gets no token.  That there is one to go to is the answer to a
        HEAD: who may not read a file is not sent there.
        """
        headers = dict(self._headers)
        for _ in range(_REDIRECTS):
            answer = self._transport.ask(method, url, headers)
            further = urljoin(url, answer.headers.get("location", ""))
            is_elsewhere = urlsplit(further)[:2] != urlsplit(url)[:2]
            if answer.status not in _MOVED or further == url or (is_elsewhere and method == "HEAD"):
                return answer
            if is_elsewhere:
                headers.pop("Authorization", None)
            url = further
        raise FetchFailed(f"`{url}` redirects more than {_REDIRECTS} times", url=url)

    def _judged(self, answer: HttpResponse) -> str:
        code, message = answer.headers.get("x-error-code"), answer.headers.get("x-error-message", "")
        if answer.status < HTTPStatus.BAD_REQUEST or code == "EntryNotFound":
            return "open"
        if code == "GatedRepo":
            return "gated"
        is_stranger = answer.status == HTTPStatus.UNAUTHORIZED
        if is_stranger and self._has_token and "credentials" in message.lower():
            raise InvalidInput(
                "the hub does not know the token: it was withdrawn, or is not whole",
                hint=f"Make a new one at {self._endpoint}/settings/tokens, and give it in HF_TOKEN",
            )
        # Who is not known is told 401 of what does not exist: the hub keeps quiet about private models.
        if is_stranger or answer.status == HTTPStatus.NOT_FOUND:
            return "missing"
        if answer.status == HTTPStatus.FORBIDDEN:
            return "gated"
        message = f"`{answer.url}` answered {answer.status}{f': {message}' if message else ''}"
        raise FetchFailed(message, url=answer.url, status=answer.status, hint="try again later")


def query_model(
    base_model: str,
    revision: str | None,
    token: str | None,
    environ: Mapping[str, str],
    *,
    transport: Transport | None = None,
) -> ModelFacts:
    """Return whether the model can be had, how many bytes of weights are still to be fetched, and its config.

    One HEAD request tells the first, one page of the hub the second: what is kept
    in the cache is not counted.  ``local`` is a folder, or a model that is kept
    whole where the hub does not give it.  *weights* is 0, too, where the hub
    does not tell.  A hub that does not answer is asked no more: the cache is read.
    Raises InvalidInput for a token that the hub does not know, NotFound for what
    is neither a folder nor a name.
    """
    has_token = bool(token)
    if Path(base_model).is_dir():
        client = None
        access = Access(status="local", weights=0, repo=base_model, url="", has_token=has_token)
    else:
        client = _client(base_model, revision, token, environ, transport)
        access = _access(client, environ, has_token=has_token)
    try:
        config = _config_in(Path(base_model)) if client is None else _config_of(client, environ)
    except (Unmet, InvalidInput) as error:
        return ModelFacts(access=access, problem=error.message)
    return ModelFacts(access=access, config=config)


def read_model_config(
    base_model: str,
    revision: str | None,
    token: str | None,
    environ: Mapping[str, str],
    *,
    transport: Transport | None = None,
) -> Mapping[str, Any]:
    """Return the ``config.json`` of a model: of a folder, from the cache of the hub, or from the hub.

    A revision that is no commit may have moved on, and is asked for again; the
    cache answers where the hub does not.  Raises NotFound where there is no such
    model, Refused where it is gated, FetchFailed where the hub cannot be reached
    and nothing is kept, InvalidInput where the file or the token is no use.
    """
    if Path(base_model).is_dir():
        return _config_in(Path(base_model))
    return _config_of(_client(base_model, revision, token, environ, transport), environ)


def _access(client: HubClient, environ: Mapping[str, str], *, has_token: bool) -> Access:
    cache = HubCache.of(environ)
    status, weights = "unreachable", 0
    if not is_offline(environ):
        try:
            status = client.status()
            if status == "open":
                weights = _missing_bytes(client, cache)
        except FetchFailed as error:
            client.failure = error
    if status != "open" and cache.is_whole(client.repo, client.revision):
        status = "local"
    return Access(status=status, weights=weights, repo=client.repo, url=client.page, has_token=has_token)


def _config_in(folder: Path) -> Mapping[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise NotFound(f"the folder `{folder}` is no model: there is no `{_CONFIG}` in it")
    return _mapping(path.read_bytes(), str(path))


def _config_of(client: HubClient, environ: Mapping[str, str]) -> Mapping[str, Any]:
    kept = HubCache.of(environ).snapshot(client.repo, client.revision)
    known = kept / _CONFIG if kept is not None and (kept / _CONFIG).is_file() else None
    if known is not None and (is_offline(environ) or known.parent.name == client.revision):
        return _mapping(known.read_bytes(), str(known))
    try:
        if is_offline(environ):
            raise _not_kept(client)
        return client.config()
    except (Unmet, NotFound):  # transformers takes what is kept then, too
        if known is None:
            raise
        return _mapping(known.read_bytes(), str(known))


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether huggingface_hub, and so we, may not ask the network."""
    return (environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE", "")).upper() in _TRUE


def hub_home(environ: Mapping[str, str]) -> Path:
    """Return the folder that huggingface_hub keeps its things in: ``HF_HOME``."""
    named = environ.get("HF_HOME")
    if named:
        return Path(expand_path(named, environ))
    caches = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME", "/nonexistent"), ".cache")  # noqa: PTH118
    return Path(expand_path(caches, environ)) / "huggingface"


def expand_path(path: str, environ: Mapping[str, str]) -> str:
    """Return a path as huggingface_hub takes it from a variable: with ``~`` and ``$NAME`` filled in."""
    if path == "~" or path.startswith("~/"):
        path = environ.get("HOME", "~") + path[1:]
    return re.sub(
        r"\$(\w+|\{\w+\})", lambda found: environ.get(found[1].strip("{}"), found[0]), path, flags=re.ASCII
    )


def _client(
    base_model: str,
    revision: str | None,
    token: str | None,
    environ: Mapping[str, str],
    transport: Transport | None,
) -> HubClient:
    if not _NAME.fullmatch(base_model):
        message = f"there is no folder `{base_model}`, and no model on the hub is called so"
        raise NotFound(message, hint="Give a folder with a model in it, or a name such as `owner/model`")
    endpoint = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if transport is None:
        # A preflight does not wait as long as a download: what it cannot ask, it says.
        patience = {"COLABLOCK_TIMEOUT": "15", "COLABLOCK_RETRIES": "1", **environ}
        transport = HttpClient(patience, Mirrors(()), Credentials({}), connections=1)
    return HubClient(base_model, revision or "main", endpoint=endpoint, token=token, transport=transport)


def _missing(repo: str, revision: str, page: str) -> NotFound:
    at = f" at revision `{revision}`" if revision != "main" else ""
    hint = f"Look at {page}; a private model needs a token that may read it, in HF_TOKEN"
    return NotFound(f"the hub has no model `{repo}`{at}, or does not show it", hint=hint)


def _not_kept(client: HubClient) -> FetchFailed:
    message = f"`{client.repo}` is not in the cache of the hub, and HF_HUB_OFFLINE forbids to ask for it"
    return FetchFailed(message, url=client.page, hint="unset HF_HUB_OFFLINE, or name a folder with the model")


def _missing_bytes(client: HubClient, cache: HubCache) -> int:
    files = {file.name: file for file in client.files()}
    names = _chosen(files)
    return sum(file.size for name in names if not cache.has(client.repo, (file := files[name]).digest))


def _chosen(names: Collection[str]) -> list[str]:
    """Return the files of weights that transformers would load, of all those of a repository.

    What lies in folders (for other programs) is left out; so is a second form of the same weights.
    """
    for single, stem, ending in _WEIGHTS:
        if single in names:
            return [single]
        shards = [name for name in names if (found := _SHARDS.fullmatch(name)) and found[1] == stem]
        if shards:
            return shards
        others = [name for name in names if name.endswith(f".{ending}") and "/" not in name]
        if others:
            return others
    return []


def _has_weights(folder: Path) -> bool:
    """Whether all weights are in a snapshot: a link to what is not there counts as none."""
    for single, _, _ in _WEIGHTS:
        if (folder / single).is_file():
            return True
        with suppress(OSError, ValueError, AttributeError):
            index = json.loads((folder / f"{single}.index.json").read_text(encoding="utf-8"))
            shards = set(index["weight_map"].values()) if "weight_map" in index else set()
            if shards and all((folder / str(shard)).is_file() for shard in shards):
                return True
    return False


def _files(siblings: object) -> Iterator[_HubFile]:
    for one in siblings if isinstance(siblings, list) else []:
        lfs = one.get("lfs") if isinstance(one, dict) else None
        if isinstance(one, dict) and isinstance(one.get("rfilename"), str):
            digest = (lfs or {}).get("sha256") if isinstance(lfs, dict) else one.get("blobId")
            size = one.get("size")
            yield _HubFile(
                name=one["rfilename"],
                size=size if isinstance(size, int) else 0,
                digest=digest if isinstance(digest, str) and "/" not in digest else "",
            )


def _mapping(data: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise InvalidInput(f"`{source}` is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"`{source}` holds no object")
    return value
