"""Record the part of a package index that the tests solve against.

::

    python tools/record_index.py index-qlora-2024 [--index-url URL] [--cache DIR]

What a table of ``recordings.toml`` asks for is solved with uv against a proxy of the real index.  Every
version whose metadata was asked for on the way is kept: its file names, upload times, Requires-Python,
yanked marks and core metadata, and of each project its import names and console scripts.  The outcome
is ``tests/data/NAME.json.gz``, which ``tests/support/recorded_index.py`` serves.

The index is the one that pip is configured for, or ``--index-url``.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.parser import HeaderParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import urllib3
import uv

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from colablock._common.archives import SeekableReader  # noqa: E402 - run as a script
from colablock._vendor.packaging.requirements import Requirement  # noqa: E402
from colablock._vendor.packaging.utils import (  # noqa: E402
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from colablock._vendor.packaging.version import Version  # noqa: E402
from tests.support.recorded_index import axolotl_archive  # noqa: E402

AXOLOTL = "https://github.com/axolotl-ai-cloud/axolotl/archive/refs/tags/="
JSON = "application/vnd.pypi.simple.v1+json"
NO_MODULES = re.compile(r"(tests?|docs?|examples?|benchmarks?|scripts|_distutils_hack)$|__")
File = dict[str, Any]


class Registry:
    """The real index, each answer of which is kept on disk."""

    def __init__(self, url: str, cache: Path) -> None:
        self.url = url.rstrip("/") + "/"
        self._cache = cache
        self._http = urllib3.PoolManager(maxsize=16, retries=urllib3.Retry(4, backoff_factor=0.5))
        cache.mkdir(parents=True, exist_ok=True)

    def page(self, name: str) -> dict[str, Any] | None:
        """Return a project's page; None when there is none."""
        body = self._kept(f"page {name}", lambda: self._get(f"{self.url}{name}/", {"Accept": JSON}))
        page: dict[str, Any] | None = json.loads(body) if body else None
        return page

    def metadata(self, file: File) -> bytes | None:
        """Return a wheel's METADATA: from its metadata file, else out of the wheel."""
        return self._kept(f"metadata {file['url']}", lambda: self._metadata(file))

    def names(self, file: File) -> list[str]:
        """Return the names of the files inside a wheel, and after them its entry points."""
        body = self._kept(f"contents {file['url']}", lambda: self._names(file))
        return (body or b"").decode().splitlines()

    def whole(self, file: File) -> bytes:
        """Return the file."""
        return self._kept(f"whole {file['url']}", lambda: self._get(file["url"], {})) or b""

    def _kept(self, key: str, make: Any) -> bytes | None:
        path = self._cache / hashlib.sha256(key.encode()).hexdigest()
        if not path.exists():
            made = make()
            partial = path.with_suffix(f".{threading.get_ident()}")
            partial.write_bytes(made or b"")
            partial.rename(path)
        return path.read_bytes() or None

    def _get(self, url: str, headers: Mapping[str, str]) -> bytes | None:
        response = self._http.request("GET", url, headers=dict(headers))
        if response.status == 404:  # noqa: PLR2004 - HTTP's own number
            return None
        if response.status >= 300:  # noqa: PLR2004
            raise SystemExit(f"{url} answers {response.status}")
        return response.data

    def _metadata(self, file: File) -> bytes | None:
        announced = self._get(file["url"] + ".metadata", {})
        if announced is not None:
            return announced
        with zipfile.ZipFile(_Remote(self._http, file)) as wheel:
            return wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")))

    def _names(self, file: File) -> bytes:
        with zipfile.ZipFile(_Remote(self._http, file)) as wheel:
            names = wheel.namelist()
            points = [n for n in names if re.fullmatch(r"[^/]+\.dist-info/entry_points\.txt", n)]
            texts = [wheel.read(n).decode() for n in points]
        return "\n".join([*names, "", *texts]).encode()


class _Remote(SeekableReader):
    """A file behind a URL, read by ranges of at least 64 KiB."""

    def __init__(self, http: urllib3.PoolManager, file: File) -> None:
        super().__init__(int(file["size"]))
        self._http, self._url = http, file["url"]
        self._blocks: dict[int, bytes] = {}

    def readinto(self, buffer: Any) -> int:
        data = self._read(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        for first, block in self._blocks.items():
            if first <= start < first + len(block):
                return block[start - first : stop - first]
        last = min(max(stop, start + (1 << 16)), self._size)
        headers = {"Range": f"bytes={start}-{last - 1}"}
        response = self._http.request("GET", self._url, headers=headers)
        if response.status != 206:  # noqa: PLR2004
            raise SystemExit(f"{self._url} does not honour ranges")
        self._blocks[start] = response.data
        return response.data[: stop - start]


class Proxy(ThreadingHTTPServer):
    """Serves the registry's pages with its own URLs, and notes whose metadata is asked for."""

    daemon_threads = True

    def __init__(self, registry: Registry, buildable: Iterable[str]) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.registry = registry
        self.buildable = frozenset(map(canonicalize_name, buildable))
        self.asked: dict[str, set[str]] = defaultdict(set)  # project: file names

    @property
    def url(self) -> str:
        """The proxy's URL without a path."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str) -> bytes | None:
        """Return the body for *path*; None when there is no such thing."""
        kind, *parts = [unquote(part) for part in path.strip("/").split("/")]
        if kind == "simple":
            return self._page(canonicalize_name(parts[0]))
        name, filename = parts
        self.asked[name].add(filename.removesuffix(".metadata"))
        page = self.registry.page(name) or {"files": []}
        file = next(f for f in page["files"] if f["filename"] == filename.removesuffix(".metadata"))
        return self.registry.metadata(file) if filename.endswith(".metadata") else self.registry.whole(file)

    def _page(self, name: str) -> bytes | None:
        page = self.registry.page(name)
        if page is None:
            return None
        self.asked[name] |= set()
        files = [
            {**file, "url": f"{self.url}/files/{name}/{quote(file['filename'])}", "core-metadata": True}
            for file in page["files"]
            if file["filename"].endswith(".whl") or name in self.buildable
        ]
        for file in files:
            if not file["filename"].endswith(".whl"):
                del file["core-metadata"]
        return json.dumps({**page, "files": files}).encode()


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def do_GET(self) -> None:
        body = self.server.answer(self.path)
        self.send_response(200 if body is not None else 404)
        self.send_header(
            "Content-Type", JSON if self.path.startswith("/simple/") else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def solve(proxy: Proxy, requirements: list[str], python: str, cutoff: str | None) -> None:
    """Let uv solve *requirements* from nothing against the proxy."""
    command = [
        uv.find_uv_bin(),
        "pip",
        "compile",
        "-",
        "--no-config",
        "--no-header",
        "--no-annotate",
        "--no-cache",
    ]
    command += ["--quiet", "--no-python-downloads", "--python", sys.executable, "--python-version", python]
    command += ["--python-platform", "x86_64-manylinux_2_35", "--index-url", f"{proxy.url}/simple/"]
    if cutoff:
        command += ["--exclude-newer", cutoff]
    process = subprocess.run(
        command, input="\n".join(requirements), capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    outcome = f"{len(process.stdout.split())} pins" if process.returncode == 0 else process.stderr.strip()
    print(f"  {python}, {len(requirements)} requirements: {outcome}")


def ask(proxy: Proxy, line: str, work: Path) -> None:
    """Run a command of colablock against the proxy, as if nothing was known before."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(work),
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONPATH": str(ROOT),
        "COLABLOCK_CACHE_DIR": str(work / "cache"),
        "COLABLOCK_HOME": str(work / "home"),
        "COLABLOCK_DEFAULT_INDEX": f"{proxy.url}/simple/",
        "COLABLOCK_MIRRORS": AXOLOTL + axolotl_archive(work).parent.as_uri() + "/",
    }
    command = [sys.executable, "-m", "colablock", *line.split()]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environ)
    outcome = (
        f"{len(process.stdout.splitlines())} lines" if process.returncode == 0 else process.stderr.strip()
    )
    print(f"  {line}: {outcome}")


class Recorder:
    """Turns what was asked for into the recording."""

    def __init__(self, registry: Registry, spec: Mapping[str, Any], allowed: Iterable[str]) -> None:
        self._registry = registry
        self._cutoff: str | None = spec.get("exclude-newer")
        self._allowed = frozenset(map(canonicalize_name, allowed))

    def kept(self, line: str) -> tuple[str, set[Version]]:
        """Return the versions of a ``keep`` line, those of the cutoff's time."""
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        versions = {version for version, _ in self._versions(name)}
        found = set(requirement.specifier.filter(versions, prereleases=False))
        return name, found if requirement.specifier else {max(found)}

    def newest(self, name: str) -> set[Version]:
        """Return the newest version, in a set of its own; the empty set where there is none."""
        versions = [version for version, _ in self._versions(name) if not version.is_prerelease]
        return {max(versions)} if versions else set()

    def project(self, name: str, versions: set[Version]) -> dict[str, Any] | None:
        """Return what is recorded of a project."""
        files: dict[Version, list[File]] = defaultdict(list)
        for version, file in self._versions(name):
            if version in versions:
                files[version].append(file)
        if not files:
            return None
        recorded = {str(v): self._release(name, files[v]) for v in sorted(files)}
        newest = next((f for v in sorted(files, reverse=True) if (f := _telling(files[v]))), None)
        listing = self._registry.names(newest) if newest and newest["filename"].endswith(".whl") else []
        return {"versions": recorded, "imports": import_names(listing), "scripts": console_scripts(listing)}

    def _versions(self, name: str) -> Iterator[tuple[Version, File]]:
        page = self._registry.page(name) or {"files": []}
        for file in page["files"]:
            version = version_of(file["filename"])
            if version is not None and (not self._cutoff or file["upload-time"] < self._cutoff):
                yield version, file

    def _release(self, name: str, files: list[File]) -> dict[str, Any]:
        uploaded = min(file["upload-time"] for file in files)[:19] + "Z"
        told = _telling(files)
        metadata = self._metadata(name, told) if told else None
        release: dict[str, Any] = {"uploaded": uploaded, "files": {}}
        for file in sorted(files, key=lambda file: str(file["filename"])):
            release["files"][file["filename"]] = _differences(file, uploaded, files[0].get("requires-python"))
        if files[0].get("requires-python"):
            release["requires-python"] = files[0]["requires-python"]
        if metadata is not None:
            parsed = HeaderParser().parsestr(metadata.decode("utf-8", "replace"))
            release["name"] = parsed["Name"]
            release["needs"] = parsed.get_all("Requires-Dist", [])
            release["extras"] = parsed.get_all("Provides-Extra", [])
        return release

    def _metadata(self, name: str, file: File) -> bytes | None:
        if file["filename"].endswith(".whl"):
            return self._registry.metadata(file)
        return built_metadata(self._registry.whole(file), file["filename"]) if name in self._allowed else None


def _telling(files: list[File]) -> File | None:
    """Return the file whose metadata stands for all of a release: the wheel of Linux before others."""

    def rank(file: File) -> tuple[bool, bool, str]:
        filename = file["filename"]
        linux = filename.endswith("any.whl") or ("manylinux" in filename and "x86_64" in filename)
        return filename.endswith(".whl"), linux, filename

    usable = [file for file in files if version_of(file["filename"]) is not None]
    return max(usable, key=rank) if usable else None


def _differences(file: File, uploaded: str, requires_python: str | None) -> dict[str, Any]:
    """Return what one file does not share with its release."""
    own: dict[str, Any] = {}
    if file["upload-time"][:10] != uploaded[:10]:
        own["uploaded"] = file["upload-time"][:19] + "Z"
    if file.get("yanked"):
        own["yanked"] = file["yanked"]
    if file.get("requires-python") != requires_python:
        own["requires-python"] = file.get("requires-python")
    return own


def built_metadata(sdist: bytes, filename: str) -> bytes:
    """Return the METADATA of the wheel that *sdist* builds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, filename)
        path.write_bytes(sdist)
        command = [uv.find_uv_bin(), "build", "--quiet", "--wheel", str(path), "--out-dir", folder]
        subprocess.run(command, check=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA")))


def version_of(filename: str) -> Version | None:
    """Return the version of a wheel or sdist; None of any other file."""
    try:
        if filename.endswith(".whl"):
            return parse_wheel_filename(filename)[1]
        return parse_sdist_filename(filename)[1]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


def import_names(listing: list[str]) -> list[str]:
    """Return the import names of a wheel by its file names; of a namespace its portions (``google/auth``)."""
    paths = listing[: listing.index("")] if "" in listing else listing
    paths = [re.sub(r"^[^/]+\.data/(pure|plat)lib/", "", path) for path in paths]
    modules = [path for path in paths if re.search(r"\.(py|so|pyd)$", path) and ".data/" not in path]
    packages = {path.removesuffix("/__init__.py") for path in modules if path.endswith("/__init__.py")}
    tops: set[str] = set()
    for path in modules:
        parts = re.sub(r"\.[^/]*$", "", path).split("/")
        depth = next((n for n in range(1, len(parts)) if "/".join(parts[:n]) in packages), len(parts))
        tops.add("/".join(parts[: min(depth, 4)]))
    return sorted(
        top for top in tops if all(p.isidentifier() and not NO_MODULES.match(p) for p in top.split("/"))
    )


def console_scripts(listing: list[str]) -> dict[str, str]:
    """Return the console scripts of a wheel by its entry points."""
    text = "\n".join(listing[listing.index("") :]) if "" in listing else ""
    section = re.search(r"^\[console_scripts\]\s*\n(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)
    lines = section[1].splitlines() if section else []
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name.strip(): target.split("[")[0].strip() for name, target in pairs}


def record(name: str, spec: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Return the recording that *spec* asks for."""
    buildable = spec.get("allow-build", ())
    proxy = Proxy(registry, buildable)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    print(name)
    for requirements in spec["solves"]:
        for python in spec["pythons"]:
            solve(proxy, requirements, python, spec.get("exclude-newer"))
    with tempfile.TemporaryDirectory() as work:
        for line in spec["commands"]:
            ask(proxy, line, Path(work))
    proxy.shutdown()
    proxy.server_close()
    recorder = Recorder(registry, spec, buildable)
    wanted: dict[str, set[Version]] = defaultdict(set)
    for project, filenames in proxy.asked.items():
        wanted[project] |= {version for f in filenames if (version := version_of(f)) is not None}
        if not filenames:  # somebody looked, and took nothing: the newest stands for what was there
            wanted[project] |= recorder.newest(project)
    for line in spec["keep"]:
        project, versions = recorder.kept(line)
        wanted[project] |= versions
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda project: recorder.project(project, wanted[project]), sorted(wanted))
        projects = {name: found for name, found in zip(sorted(wanted), made, strict=True) if found}
    return {"format": 1, "about": spec["about"], "cutoff": spec.get("exclude-newer"), "projects": projects}


def write(recording: Mapping[str, Any], path: Path) -> None:
    """Write *recording*, the same bytes for the same contents."""
    text = json.dumps(recording, sort_keys=True, separators=(",", ":"))
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as packed:
        packed.write(text.encode())
    path.write_bytes(buffer.getvalue())
    projects = recording["projects"].values()
    versions = sum(len(project["versions"]) for project in projects)
    print(f"  {len(projects)} projects, {versions} versions, {path.stat().st_size / 1000:.0f} kB")


def configured_index() -> str | None:
    """Return the index that pip is configured for; None for its own default."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return process.stdout.strip() or None


def main() -> None:
    """Record what the command line names; everything without a name."""
    specs = tomllib.loads((ROOT / "tools" / "recordings.toml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*specs, []], help="tables of recordings.toml")
    parser.add_argument("--index-url", default=configured_index(), help="a simple index that speaks JSON")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "colablock-recordings"))
    arguments = parser.parse_args()
    if arguments.index_url is None:
        parser.error("pip is configured for no index: give --index-url")
    registry = Registry(arguments.index_url, arguments.cache)
    for name in arguments.names or specs:
        write(record(name, specs[name], registry), ROOT / "tests" / "data" / f"{name}.json.gz")


if __name__ == "__main__":
    main()
