"""A package index on 127.0.0.1 that can be told to misbehave.

::

    with IndexServer(folder) as server:
        server.set("demo-1.0-py3-none-any.whl", yanked="broken on Sundays")
        server.fault("/simple/demo/", Fault(status=503, times=1, retry_after="0"))
        ...                                  # use server.url
        assert [request.path for request in server.requests] == [...]
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import socket
import ssl
import struct
import tarfile
import threading
import time
import zipfile
from base64 import b64encode
from dataclasses import dataclass, field, replace
from email.parser import HeaderParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from tests.support.paths import DATA
from tests.support.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "CERTIFICATE",
    "Facts",
    "Fault",
    "FolderSource",
    "IndexServer",
    "Request",
    "Source",
    "normalized",
    "project_of",
]

JSON = "application/vnd.pypi.simple.v1+json"
HTML = "application/vnd.pypi.simple.v1+html"
UPLOAD_TIME = "2024-01-01T00:00:00Z"
CERTIFICATE = DATA / "tls" / "certificate.pem"
FROM_FILE = "from the file"  # Facts.requires_python: what the file's own metadata says


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the index says about a file besides its name, hash and size."""

    upload_time: str | None = UPLOAD_TIME  # None: this file has none
    requires_python: str | None = FROM_FILE
    yanked: str | bool = False
    sha256: str | None = None  # instead of the true one
    listed: bool = True


@dataclass(slots=True, kw_only=True)
class Fault:
    """A failure of a path, *times* times (None: always)."""

    status: int | None = None
    times: int | None = None
    retry_after: str | None = None
    truncate: int | None = None  # bytes sent before the connection drops, less than was promised
    delay: float = 0.0  # seconds before the answer
    body: bytes | None = None  # instead of the true one
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # beside the true ones
    reset: bool = False  # the connection, in place of an answer
    pause: float = 0.0  # seconds in the middle of the body
    method: str | None = None  # only for this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    query: str = ""
    port: int = 0  # of the client: each connection has another


class Source(Protocol):
    """The files of the server.  Asked at each request, from several threads."""

    def projects(self) -> Iterable[str]:
        """Return the normalized names of what there is."""

    def files(self, project: str) -> Mapping[str, Facts] | None:
        """Return file names and facts of a project; None when there is no such project."""

    def content(self, filename: str) -> bytes | None:
        """Return the bytes of a file, the same each time; None when there is none."""


class FolderSource:
    """The wheels and sdists in a folder at the time of the request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def projects(self) -> set[str]:
        return {project_of(name) for name in self._names()}

    def files(self, project: str) -> Mapping[str, Facts] | None:
        found = {name: Facts() for name in self._names() if project_of(name) == project}
        return found or None

    def content(self, filename: str) -> bytes | None:
        path = self.folder / filename
        return path.read_bytes() if path.is_file() else None

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())


@dataclass(slots=True)
class _Cached:
    content: bytes
    sha256: str
    metadata: bytes | None
    requires_python: str | None


@dataclass(slots=True, kw_only=True)
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class IndexServer(Serving):
    """A simple index (PEP 503, 691, 700, 658) over a folder or a `Source`.

    The switches may be changed while it runs.  *formats*: the page formats that it speaks, in order
    of its own preference.  *ranges*, *etags*, *sizes*, *upload_times* and *metadata* turn those parts
    off; *auth* asks for a user and password.  *prefix* is the path of the index, *files* that of its
    files; with *tls* it speaks HTTPS, with `CERTIFICATE`, which is for 127.0.0.1 and signed by itself.
    """

    def __init__(
        self,
        source: Path | Source,
        *,
        formats: Sequence[str] = ("json", "html"),
        metadata: bool = True,
        announce_metadata: bool = True,
        ranges: bool = True,
        sizes: bool = True,
        upload_times: bool = True,
        etags: bool = True,
        auth: tuple[str, str] | None = None,
        prefix: str = "/simple/",
        files: str = "/files/",
        tls: bool = False,
    ) -> None:
        super().__init__(type("_HandlerOfThis", (_Handler,), {"index": self}), server=_Server)
        self.source: Source = FolderSource(source) if isinstance(source, Path) else source
        self.formats = tuple(formats)
        self.metadata = metadata
        self.announce_metadata = announce_metadata
        self.ranges = ranges
        self.sizes = sizes
        self.upload_times = upload_times
        self.etags = etags
        self.auth = auth
        self.prefix = prefix
        self.files = files
        self.requests: list[Request] = []
        self._facts: dict[str, Facts] = {}
        self._faults: dict[str, Fault] = {}
        self._redirects: dict[str, str] = {}
        self._statuses: dict[str, tuple[str, str]] = {}
        self._releases: dict[str, Any] = {}
        self._cache: dict[tuple[str, object], _Cached] = {}
        self._lock = threading.Lock()
        if tls:
            self.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
            self._http.socket = context.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def url(self) -> str:
        """The URL of the simple index."""
        return self.root + self.prefix

    @property
    def paths(self) -> list[str]:
        """The paths asked for so far, in order."""
        return [request.path for request in self.requests]

    def file_url(self, filename: str) -> str:
        """Return the URL of a file."""
        return f"{self.root}{self.files}{quote(filename)}"

    def set(self, filename: str, **facts: Any) -> None:
        """Change what the index says about a file (fields of `Facts`)."""
        with self._lock:
            self._facts[filename] = replace(self._facts.get(filename, Facts()), **facts)

    def fault(self, path: str, fault: Fault) -> None:
        """Let *fault* happen to a path (``/simple/demo/``, ``/files/demo-1.0.tar.gz``)."""
        self._faults[path] = fault

    def redirect(self, path: str, to: str) -> None:
        """Answer *path* with a redirect to a URL or path."""
        self._redirects[path] = to

    def status(self, project: str, status: str, reason: str) -> None:
        """Set the status of a project (PEP 792)."""
        self._statuses[project] = (status, reason)

    def release(self, name: str, version: str, *advisories: Mapping[str, Any], **info: Any) -> None:
        """Have a JSON page about a release, as PyPI has, with *advisories* and facts of it."""
        path = self.prefix.replace("simple", "pypi") + f"{name}/{version}/json"
        self._releases[path] = {
            "info": {"name": name, "version": version, "yanked": False, "yanked_reason": None, **info},
            "urls": [],
            "vulnerabilities": list(advisories),
        }

    def forget_requests(self) -> None:
        """Clear the log."""
        self.requests.clear()

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the fault for a request, and count it."""
        with self._lock:
            fault = self._faults.get(path)
            if fault is None or (fault.method is not None and fault.method != method):
                return None
            if fault.times is not None:
                if fault.times == 0:
                    return None
                fault.times -= 1
            return fault

    def answer(self, path: str, accept: str) -> _Answer:
        """Return the answer to a GET of *path* without faults."""
        if path in self._redirects:
            return _Answer(status=302, headers={"Location": self._redirects[path]})
        if path.startswith(self.files):
            return self._file(unquote(path.removeprefix(self.files)))
        if path in self._releases:
            body = json.dumps(self._releases[path]).encode()
            return _Answer(body=body, headers={"Content-Type": "application/json"})
        if path == self.prefix:
            return self._page(self._root_page, accept)
        if path.startswith(self.prefix):
            return self._project(path.removeprefix(self.prefix), accept)
        return _Answer(status=404, body=b"no such path")

    def _project(self, tail: str, accept: str) -> _Answer:
        name = unquote(tail.rstrip("/"))
        if not tail.endswith("/") or name != normalized(name):
            return _Answer(status=301, headers={"Location": f"{self.prefix}{normalized(name)}/"})
        files = self.source.files(name)
        if files is None:
            return _Answer(status=404, body=b"no such project")
        entries = [self._entry(filename, facts) for filename, facts in files.items()]
        listed = [entry for entry in entries if entry is not None]
        status = self._statuses.get(name)
        return self._page(lambda kind: _project_page(kind, name, listed, status), accept)

    def _root_page(self, kind: str) -> str:
        names = sorted(self.source.projects())
        if kind == "json":
            meta = {"api-version": "1.1"}
            return json.dumps({"meta": meta, "projects": [{"name": name} for name in names]})
        return "".join(f'<a href="{self.prefix}{name}/">{name}</a>\n' for name in names)

    def _page(self, render: Any, accept: str) -> _Answer:
        kind = _negotiate(accept, self.formats)
        if kind is None:
            return _Answer(status=406, body=b"not acceptable")
        types = {"json": JSON, "html": HTML if HTML in accept else "text/html; charset=utf-8"}
        return _Answer(body=render(kind).encode(), headers={"Content-Type": types[kind]})

    def _entry(self, filename: str, facts: Facts) -> dict[str, Any] | None:
        facts = self._facts.get(filename, facts)
        cached = self._load(filename)
        if not facts.listed or cached is None:
            return None
        entry: dict[str, Any] = {
            "filename": filename,
            "url": self.file_url(filename),
            "hashes": {"sha256": facts.sha256 or cached.sha256},
            "yanked": facts.yanked,
        }
        requires_python = facts.requires_python
        if requires_python == FROM_FILE:
            requires_python = cached.requires_python
        if requires_python is not None:
            entry["requires-python"] = requires_python
        if self.sizes:
            entry["size"] = len(cached.content)
        if self.upload_times and facts.upload_time is not None:
            entry["upload-time"] = facts.upload_time
        if self.metadata and self.announce_metadata and cached.metadata is not None:
            entry["core-metadata"] = {"sha256": hashlib.sha256(cached.metadata).hexdigest()}
        return entry

    def _file(self, filename: str) -> _Answer:
        wants_metadata = filename.endswith(".metadata")
        cached = self._load(filename.removesuffix(".metadata"))
        body = None if cached is None else cached.content
        if wants_metadata:
            body = cached.metadata if cached is not None and self.metadata else None
        if body is None:
            return _Answer(status=404, body=b"no such file")
        return _Answer(body=body, headers={"Content-Type": "application/octet-stream"})

    def _load(self, filename: str) -> _Cached | None:
        stamp: object = None
        if isinstance(self.source, FolderSource):
            path = self.source.folder / filename
            stamp = path.stat().st_mtime_ns if path.is_file() else None
        cached = self._cache.get((filename, stamp))
        if cached is None:
            content = self.source.content(filename)
            if content is None:
                return None
            metadata = _metadata(filename, content)
            python = HeaderParser().parsestr((metadata or b"").decode("utf-8", "replace"))["Requires-Python"]
            served = metadata if filename.endswith(".whl") else None
            cached = _Cached(content, hashlib.sha256(content).hexdigest(), served, python)
            self._cache[filename, stamp] = cached
        return cached


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay quiet: clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    index: IndexServer

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def log_message(self, *_: object) -> None:
        """Keep the log in `IndexServer.requests` only."""

    def _serve(self, *, body: bool) -> None:
        index = self.index
        path, query = urlsplit(self.path)[2:4]
        fault = index.take_fault(self.command, path)
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        if fault is not None and fault.reset:
            # Closed with what was sent to it unread, a connection is reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            index.requests.append(Request(method=self.command, path=path, headers={}, status=0))
            return
        answer = self._answer(path, fault)
        headers = {name.lower(): value for name, value in self.headers.items()}
        index.requests.append(
            Request(
                method=self.command,
                path=path,
                headers=headers,
                status=answer.status,
                query=query,
                port=self.client_address[1],
            )
        )
        self._send(answer, fault or Fault(), body=body)

    def _answer(self, path: str, fault: Fault | None) -> _Answer:
        index = self.index
        if fault is not None and fault.status is not None:
            headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            return _Answer(
                status=fault.status, body=fault.body or b"fault", headers={**headers, **fault.headers}
            )
        if index.auth is not None and not self._authorised(index.auth):
            return _Answer(status=401, headers={"WWW-Authenticate": 'Basic realm="index"'})
        answer = index.answer(path, self.headers.get("Accept") or "*/*")
        if fault is not None and fault.body is not None:
            answer.body = fault.body
        if fault is not None and fault.content_type is not None:
            answer.headers["Content-Type"] = fault.content_type
        if fault is not None:
            answer.headers.update(fault.headers)
        if answer.status != 200:
            return answer
        return self._ranged(self._validated(answer), path)

    def _authorised(self, auth: tuple[str, str]) -> bool:
        expected = b64encode(":".join(auth).encode()).decode()
        return self.headers.get("Authorization") == f"Basic {expected}"

    def _validated(self, answer: _Answer) -> _Answer:
        if not self.index.etags:
            return answer
        etag = '"' + hashlib.sha256(answer.body).hexdigest()[:32] + '"'
        answer.headers["ETag"] = etag
        if self.headers.get("If-None-Match") == etag:
            return _Answer(status=304, headers={"ETag": etag})
        return answer

    def _ranged(self, answer: _Answer, path: str) -> _Answer:
        if not self.index.ranges or not path.startswith(self.index.files) or answer.status == 304:
            return answer
        answer.headers["Accept-Ranges"] = "bytes"
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        condition = self.headers.get("If-Range")
        if match is None or condition not in {None, answer.headers.get("ETag")}:
            return answer
        size = len(answer.body)
        start = int(match[1]) if match[1] else max(0, size - int(match[2]))
        stop = min(size, int(match[2]) + 1) if match[1] and match[2] else size
        if start >= size:
            return _Answer(status=416, headers={"Content-Range": f"bytes */{size}"})
        headers = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return _Answer(status=206, body=answer.body[start:stop], headers=headers)

    def _send(self, answer: _Answer, fault: Fault, *, body: bool) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 304:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        sent = answer.body if fault.truncate is None else answer.body[: fault.truncate]
        if body and fault.pause:
            self.wfile.write(sent[: len(sent) // 2])
            self.wfile.flush()
            time.sleep(fault.pause)
            sent = sent[len(sent) // 2 :]
        if body:
            self.wfile.write(sent)
        if fault.truncate is not None:
            self.close_connection = True
        self.wfile.flush()


def normalized(name: str) -> str:
    """Return the normal form of a project's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def project_of(filename: str) -> str:
    """Return the normalized project of a file by its name."""
    if filename.endswith((".tar.gz", ".zip")):
        return normalized(re.sub(r"(\.tar\.gz|\.zip)$", "", filename).rpartition("-")[0])
    return normalized(filename.split("-", maxsplit=1)[0])


def _project_page(
    kind: str, name: str, entries: Sequence[Mapping[str, Any]], status: tuple[str, str] | None
) -> str:
    if kind == "json":
        said = {"project-status": {"status": status[0], "reason": status[1]}} if status else {}
        return json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": list(entries), **said})
    anchors = "".join(_anchor(entry) for entry in entries)
    head = '<meta name="pypi:repository-version" content="1.0">'
    if status:
        head += f'<meta name="pypi:project-status" content="{status[0]}">'
        head += f'<meta name="pypi:project-status-reason" content="{html.escape(status[1])}">'
    return f"<!DOCTYPE html><html><head>{head}</head><body>\n{anchors}</body></html>"


def _anchor(entry: Mapping[str, Any]) -> str:
    attributes = {"href": f"{entry['url']}#sha256={entry['hashes']['sha256']}"}
    if "requires-python" in entry:
        attributes["data-requires-python"] = entry["requires-python"]
    if entry["yanked"] is not False:
        attributes["data-yanked"] = "" if entry["yanked"] is True else entry["yanked"]
    if "core-metadata" in entry:
        attributes["data-core-metadata"] = f"sha256={entry['core-metadata']['sha256']}"
    text = " ".join(f'{key}="{html.escape(value)}"' for key, value in attributes.items())
    return f"<a {text}>{html.escape(entry['filename'])}</a><br>\n"


def _negotiate(accept: str, formats: Sequence[str]) -> str | None:
    weights = {"json": 0.0, "html": 0.0}
    for part in accept.split(","):
        kind, _, parameters = part.strip().partition(";")
        match = re.search(r"q=([0-9.]+)", parameters)
        weight = float(match[1]) if match else 1.0
        meant = {JSON: ("json",), HTML: ("html",), "text/html": ("html",), "*/*": ("json", "html")}
        weights.update({name: max(weights[name], weight) for name in meant.get(kind, ())})
    best = max(formats, key=lambda name: weights[name])
    return best if weights[best] > 0 else None


def _metadata(filename: str, content: bytes) -> bytes | None:
    """Return the METADATA or PKG-INFO of a file; None where it cannot be read."""
    try:
        if filename.endswith(".tar.gz"):
            with tarfile.open(fileobj=BytesIO(content), mode="r:gz") as archive:
                member = next(
                    name for name in archive.getnames() if name.count("/") == 1 and "PKG-INFO" in name
                )
                stream = archive.extractfile(member)
                return stream.read() if stream is not None else None
        wanted = ".dist-info/METADATA" if filename.endswith(".whl") else "/PKG-INFO"
        with zipfile.ZipFile(BytesIO(content)) as archived:
            return archived.read(next(name for name in archived.namelist() if name.endswith(wanted)))
    except (StopIteration, OSError, tarfile.TarError, zipfile.BadZipFile, KeyError):
        return None
