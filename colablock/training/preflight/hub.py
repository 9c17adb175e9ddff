"""Query a model before its weights are downloaded: its config, the size of the weights, access to it.

A folder is read directly.  For a name on the hub, the cache of huggingface_hub is read
(``HF_HOME``, ``HF_HUB_CACHE``) and the hub is asked (``HF_ENDPOINT``), unless
``HF_HUB_OFFLINE`` forbids it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from colablock._common.decoding import Malformed, decode, read_bounded
from colablock._common.limits import RUN_FILE
from colablock._common.urls import Mirrors, redacted
from colablock.errors import FetchFailed, InvalidInput, NotFound, Refused, Unmet
from colablock.network.auth import Credentials
from colablock.network.http import HttpClient, HttpResponse
from colablock.training.preflight.facts import Access
from colablock.training.preflight.hub_cache import CONFIG, HubCache, is_offline, local_bytes, weight_files

__all__ = [
    "HubClient",
    "ModelFacts",
    "Transport",
    "check_reachable",
    "hub_endpoint",
    "query_dataset",
    "query_model",
    "read_model_config",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")
_MAX_PAGE = 32 << 20  # bytes: the largest repositories list some thousand files
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Transport(Protocol):
    """Sends one request.  Raises FetchFailed if there is no response."""

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> HttpResponse:
        """Return the response, whatever its status, without following redirects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _HubFile:
    """A file of a repository.  *digest* is the name of its blob in the cache of huggingface_hub."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The result of `query_model`.  *problem* is the reason if *config* is None."""

    access: Access
    config: Mapping[str, Any] | None = None
    problem: str = ""


class HubClient:
    """Queries a hub about one model at one revision.

    *failure* is set once the hub has not responded.  It is not queried again then.
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
        """Return ``open``, ``gated`` or ``missing``, with one HEAD request.

        Raises FetchFailed if the hub does not respond, InvalidInput if it rejects the token.
        """
        return self._status_of(self._request("HEAD", self._url_of(CONFIG)))

    def config(self) -> Mapping[str, Any]:
        """Return the model's config.  Raises FetchFailed, InvalidInput, NotFound, Refused."""
        if self.failure is not None:
            raise self.failure
        url = self._url_of(CONFIG)
        response = self._request("GET", url)
        status = self._status_of(response)
        if status == "gated":
            hint = f"Request access at {self.page}, then set HF_TOKEN"
            raise Refused(f"cannot read the config of `{self.repo}`: the model is gated", hint=hint)
        if status == "missing":
            raise _missing(self.repo, self.revision, self.page)
        if response.status != HTTPStatus.OK:
            raise NotFound(
                f"`{self.repo}` has no `{CONFIG}`, so transformers cannot load it",
                hint=f"Look at {self.page}: files quantised for other programs are often in a repository "
                "of their own, beside that of the model",
            )
        return _mapping(response.read(_MAX_PAGE), url)

    def files(self) -> tuple[_HubFile, ...]:
        """Return every file with its size; empty if the hub does not list them."""
        revision = quote(self.revision, safe="")
        url = f"{self._endpoint}/api/models/{self.repo}/revision/{revision}?blobs=true"
        response = self._request("GET", url)
        if response.status != HTTPStatus.OK:
            return ()
        return tuple(_files(_mapping(response.read(_MAX_PAGE), url).get("siblings")))

    def _url_of(self, name: str) -> str:
        return f"{self._endpoint}/{self.repo}/resolve/{quote(self.revision, safe='')}/{name}"

    def _request(self, method: str, url: str) -> HttpResponse:
        """Return the response after redirects, since a model may have been renamed.

        The token is not sent to another host.  A HEAD request does not follow a redirect to another
        host: the hub sends it only to clients that may read the file.
        """
        headers = dict(self._headers)
        for _ in range(_MAX_REDIRECTS):
            response = self._transport.ask(method, url, headers)
            location = urljoin(url, response.headers.get("location", ""))
            is_other_host = urlsplit(location)[:2] != urlsplit(url)[:2]
            if response.status not in _REDIRECTS or location == url or (is_other_host and method == "HEAD"):
                return response
            if is_other_host:
                headers.pop("Authorization", None)
            url = location
        raise FetchFailed(f"`{url}` redirects more than {_MAX_REDIRECTS} times", url=url)

    def _status_of(self, response: HttpResponse) -> str:
        code, message = response.headers.get("x-error-code"), response.headers.get("x-error-message", "")
        if response.status < HTTPStatus.BAD_REQUEST or code == "EntryNotFound":
            return "open"
        if code == "GatedRepo":
            return "gated"
        is_unauthorized = response.status == HTTPStatus.UNAUTHORIZED
        if is_unauthorized and self._has_token and "credentials" in message.lower():
            raise InvalidInput(
                "the hub rejects the token: it was revoked, or is incomplete",
                hint=f"Create a new one at {self._endpoint}/settings/tokens, and set HF_TOKEN to it",
            )
        # Without a token, the hub answers 401 for models that do not exist: it does not reveal private ones.
        if is_unauthorized or response.status == HTTPStatus.NOT_FOUND:
            return "missing"
        if response.status == HTTPStatus.FORBIDDEN:
            return "gated"
        message = f"`{response.url}` answered {response.status}{f': {message}' if message else ''}"
        raise FetchFailed(message, url=response.url, status=response.status, hint="try again later")


def query_model(
    base_model: str,
    revision: str | None,
    token: str | None,
    environ: Mapping[str, str],
    *,
    transport: Transport | None = None,
) -> ModelFacts:
    """Return the access to a model, the size of the download, and its config.

    The access takes one HEAD request, the size one page of the hub.  Cached weights are not
    counted, and the size is 0 if the hub does not list the files.  The status ``local`` means a
    folder, or a cached model that the hub does not provide.  If the hub does not respond, it is
    not queried again, and the cache is read.  Raises InvalidInput for a token that the hub
    rejects, NotFound if *base_model* is neither a folder nor a valid name.
    """
    has_token = bool(token)
    if Path(base_model).is_dir():
        client = None
        size = local_bytes(Path(base_model))
        access = Access(status="local", size=size, repo=base_model, url="", has_token=has_token)
    else:
        client = _client(base_model, revision, token, environ, transport)
        access = _access(client, environ, has_token=has_token)
    try:
        config = _config_in(Path(base_model)) if client is None else _config_of(client, environ)
    except (Unmet, InvalidInput) as error:
        return ModelFacts(access=access, problem=error.message)
    return ModelFacts(access=access, config=config)


def query_dataset(
    name: str, token: str | None, environ: Mapping[str, str], *, transport: Transport | None = None
) -> str:
    """Return ``open``, ``gated`` or ``missing`` for a dataset, with one HEAD request.

    Nothing is asked for what is no name of a dataset, which is ``open``.  Raises FetchFailed if the hub
    does not respond or must not be asked, InvalidInput for a token that the hub rejects.
    """
    if not _NAME.fullmatch(name):
        return "open"
    client = _client(name, None, token, environ, transport or _impatient(environ), kind="datasets/")
    if is_offline(environ):
        raise _not_cached(client)
    return client.status()


def check_reachable(
    base_model: str,
    revision: str | None,
    token: str | None,
    environ: Mapping[str, str],
    *,
    transport: Transport | None = None,
) -> None:
    """Raise FetchFailed if a model is not on this machine and the hub does not respond or must not be asked.

    It takes one HEAD request, or none for a folder and for a model that is cached, also in part: its
    files are looked at later.
    """
    if Path(base_model).is_dir() or not _NAME.fullmatch(base_model):
        return
    client = _client(base_model, revision, token, environ, transport or _impatient(environ))
    if HubCache.from_environ(environ).snapshot(client.repo, client.revision) is not None:
        return
    if is_offline(environ):
        raise _not_cached(client)
    client.status()


def read_model_config(
    base_model: str,
    revision: str | None,
    token: str | None,
    environ: Mapping[str, str],
    *,
    transport: Transport | None = None,
) -> Mapping[str, Any]:
    """Return the ``config.json`` of a model from a folder, the cache of the hub, or the hub.

    A revision that is not a commit may have changed, so the hub is queried.  The cache is used if
    the hub does not respond.  Raises NotFound if there is no such model, Refused if it is gated,
    FetchFailed if the hub does not respond and the config is not cached, InvalidInput if the file
    or the token is invalid.
    """
    if Path(base_model).is_dir():
        return _config_in(Path(base_model))
    return _config_of(_client(base_model, revision, token, environ, transport), environ)


def _access(client: HubClient, environ: Mapping[str, str], *, has_token: bool) -> Access:
    cache = HubCache.from_environ(environ)
    status, weights, size = "unreachable", 0, 0
    if not is_offline(environ):
        try:
            status = client.status()
            if status == "open":
                weights, size = _weight_bytes(client, cache)
        except FetchFailed as error:
            client.failure = error
    if status != "open" and cache.has_model(client.repo, client.revision):
        status = "local"
    return Access(
        status=status, weights=weights, size=size, repo=client.repo, url=client.page, has_token=has_token
    )


def _config_in(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise NotFound(f"the folder `{folder}` is not a model: it has no `{CONFIG}`")
    return _local_mapping(path)


def _config_of(client: HubClient, environ: Mapping[str, str]) -> Mapping[str, Any]:
    snapshot = HubCache.from_environ(environ).snapshot(client.repo, client.revision)
    cached = snapshot / CONFIG if snapshot is not None and (snapshot / CONFIG).is_file() else None
    if cached is not None and (is_offline(environ) or cached.parent.name == client.revision):
        return _local_mapping(cached)
    try:
        if is_offline(environ):
            raise _not_cached(client)
        return client.config()
    except (Unmet, NotFound):  # transformers falls back to the cache as well
        if cached is None:
            raise
        return _local_mapping(cached)


def _client(
    base_model: str,
    revision: str | None,
    token: str | None,
    environ: Mapping[str, str],
    transport: Transport | None,
    *,
    kind: str = "",
) -> HubClient:
    if not _NAME.fullmatch(base_model):
        message = f"`{base_model}` is neither a folder nor a valid name of a model on the hub"
        raise NotFound(message, hint="Give the path of a model, or a name such as `owner/model`")
    endpoint = hub_endpoint(environ)
    # Preflight waits less than a download would: it reports what it could not query.
    transport = transport or _waiting(15, 1, environ)
    return HubClient(
        f"{kind}{base_model}", revision or "main", endpoint=endpoint, token=token, transport=transport
    )


def _impatient(environ: Mapping[str, str]) -> Transport:
    """Return what asks whether the hub is there at all.  A run that cannot start must end soon."""
    return _waiting(5, 0, environ)


def _waiting(seconds: int, retries: int, environ: Mapping[str, str]) -> Transport:
    settings = {"COLABLOCK_TIMEOUT": f"{seconds}", "COLABLOCK_RETRIES": f"{retries}", **environ}
    return HttpClient(settings, Mirrors(()), Credentials({}), connections=1)


def hub_endpoint(environ: Mapping[str, str]) -> str:
    """Return the URL of the hub, without credentials: the token is all that is sent."""
    endpoint = redacted(environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        parts = urlsplit(endpoint)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        message = f"`{endpoint}` in HF_ENDPOINT is not the URL of a hub"
        raise InvalidInput(message, hint="Write for example `https://huggingface.co`, or unset it")
    return endpoint


def _missing(repo: str, revision: str, page: str) -> NotFound:
    at = f" at revision `{revision}`" if revision != "main" else ""
    hint = f"Check {page}; for a private model, set HF_TOKEN to a token that may read it"
    return NotFound(f"the hub has no model `{repo}`{at}, or it is private", hint=hint)


def _not_cached(client: HubClient) -> FetchFailed:
    message = f"`{client.repo}` is not cached, and HF_HUB_OFFLINE forbids a download"
    return FetchFailed(message, url=client.page, hint="unset HF_HUB_OFFLINE, or give the path of the model")


def _weight_bytes(client: HubClient, cache: HubCache) -> tuple[int, int]:
    """Return the bytes of the weights that are not cached, and of all."""
    files = {file.name: file for file in client.files()}
    weights = [files[name] for name in weight_files(files)]
    missing = sum(file.size for file in weights if not cache.has_blob(client.repo, file.digest))
    return missing, sum(file.size for file in weights)


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


def _local_mapping(path: Path) -> dict[str, Any]:
    try:
        return _mapping(read_bounded(path, RUN_FILE), str(path))
    except (OSError, Malformed) as error:
        raise InvalidInput(f"`{path}` cannot be read: {error}") from error


def _mapping(data: bytes, source: str) -> dict[str, Any]:
    try:
        value = decode(data, Any, by_python=True)
    except Malformed as error:
        raise InvalidInput(f"`{source}` is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"`{source}` is not a JSON object")
    return value
