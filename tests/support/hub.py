"""A model hub on 127.0.0.1 that answers our requests like the real one.

::

    with HubServer({"owner/model": Repo(files={"config.json": b"{}"})}) as hub:
        ...                                  # use hub.environ
        assert [f"{request.method} {request.path}" for request in hub.requests] == [...]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.serving import Serving

__all__ = ["TOKEN", "HubServer", "Repo", "Seen", "fill_cache"]

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_goodtoken"


@dataclass(frozen=True, kw_only=True)
class Repo:
    """One model, or a dataset below ``datasets/``.

    *sizes* are those of files that no test downloads; *renamed* redirects to another name.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    renamed: str | None = None
    revisions: tuple[str, ...] = ("main", COMMIT)
    elsewhere: str | None = None  # the URL of another host that its files come from
    has_api: bool = True


@dataclass(frozen=True, kw_only=True)
class Seen:
    method: str
    path: str
    token: str | None


def digest(name: str) -> str:
    """Return the name of a file's content in the cache."""
    return hashlib.sha256(name.encode()).hexdigest()


class HubServer(Serving):
    """Answer HEAD and GET of files, and the list of files.  *statuses* replace the answers of paths."""

    def __init__(self, repos: Mapping[str, Repo]) -> None:
        super().__init__(_handler(self))
        self.repos = dict(repos)
        self.statuses: dict[str, int] = {}
        self.requests: list[Seen] = []

    @property
    def asked(self) -> list[str]:
        return [f"{seen.method} {seen.path}" for seen in self.requests]

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        for spoilt, status in self.statuses.items():
            if path.startswith(spoilt):
                return status, {}, b"no"
        if token not in {None, TOKEN}:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        is_page = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_page else parts
        at = parts.index("revision" if is_page else "resolve")
        named, revision, rest = "/".join(parts[:at]), parts[at + 1], parts[at + 2 :]
        repo = self.repos.get(named)
        if repo is not None and repo.renamed:
            return 307, {"Location": path.replace(named, repo.renamed)}, b""
        if repo is None or (repo.private and token is None):
            return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in repo.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if is_page:
            return (200, {}, self._page(repo)) if repo.has_api else (404, {}, b"")
        if repo.gated and token is None:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if repo.elsewhere:
            return 302, {"Location": f"{repo.elsewhere}{path}"}, b""
        body = repo.files.get("/".join(rest))
        if body is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {}, body

    def _page(self, repo: Repo) -> bytes:
        sizes = {name: len(data) for name, data in repo.files.items()} | dict(repo.sizes)
        siblings = [
            {"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": {"sha256": digest(name)}}
            if name.endswith((".safetensors", ".bin"))
            else {"rfilename": name, "size": size, "blobId": digest(name)}
            for name, size in sizes.items()
        ]
        return json.dumps({"sha": COMMIT, "siblings": siblings}).encode()


def fill_cache(folder: Path, repo: str, files: Mapping[str, bytes | None], *, commit: str = COMMIT) -> None:
    """Write *files* as huggingface_hub caches them.  None is an interrupted download."""
    model = folder / f"models--{repo.replace('/', '--')}"
    snapshot = model / "snapshots" / commit
    for path in (model / "refs", model / "blobs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (model / "refs" / "main").write_text(commit)
    for name, data in files.items():
        blob = model / "blobs" / digest(name)
        (snapshot / name).symlink_to(blob)
        if data is None:
            blob.with_name(f"{blob.name}.incomplete").write_bytes(b"half")
        else:
            blob.write_bytes(data)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond(with_body=True)

        def do_HEAD(self) -> None:
            self._respond(with_body=False)

        def _respond(self, *, with_body: bool) -> None:
            sent = self.headers.get("Authorization")
            token = sent.removeprefix("Bearer ") if sent else None
            hub.requests.append(Seen(method=self.command, path=self.path, token=token))
            status, headers, body = hub.answer(self.path, token)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
            pass

    return Handler
