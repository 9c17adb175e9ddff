"""Make the locks of a matrix while an index that it names cannot be reached, from a file of public facts.

::

    python tools/lock_from_sources.py qlora-2024 --all
    python tools/lock_from_sources.py qlora-2024 --runtime colab-2025.09-gpu --check

``matrices/NAME.sources.json`` has what is publicly known about files of that index: their hashes and the
requirements of their projects, each with its source.  They are served on 127.0.0.1 the way that pytorch's
index serves them: HTML pages with ``#sha256=`` fragments, without upload times and metadata files.  A file
itself is a stand-in that holds nothing but metadata, so it can be locked and never installed: its bytes do
not have the hash that the page states.  Everything after NAME goes to ``colablock lock``.
"""

from __future__ import annotations

import html
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).parents[1]


def read_sources(path: Path) -> dict[str, Any]:
    """Return the facts of a ``NAME.sources.json``."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def stand_in(filename: str, requires: list[str], requires_python: str | None) -> bytes:
    """Return a wheel that has the metadata of *filename* and no modules."""
    name, version = filename.split("-")[:2]
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Python: {requires_python}"] if requires_python else []
    lines += [f"Requires-Dist: {line}" for line in requires]
    tag = "-".join(filename.removesuffix(".whl").split("-")[-3:])
    info = f"{name}-{version}.dist-info"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join([*lines, "", ""]))
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return content.getvalue()


def write_pages(sources: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write a simple index for each index of *sources* to *folder*; return their paths by URL.

    A page has one link per file, with its hash and nothing else, and a folder has one page per project.
    """
    requires = {(one["name"], one["version"]): one["requires-dist"] for one in sources.get("requires", ())}
    places: dict[str, str] = {}
    for one in (*sources["files"], *sources.get("files-without-a-hash", ())):
        place = places.setdefault(one["index"].rstrip("/"), f"index-{len(places)}")
        project, version = one["name"].split("-")[:2]
        page = folder / place / project.lower().replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        link = f"../{quote(one['name'])}" + (f"#sha256={one['sha256']}" if "sha256" in one else "")
        python = one.get("requires-python")
        said = f' data-requires-python="{html.escape(python)}"' if python else ""
        with page.open("a", encoding="utf-8") as file:
            file.write(f'<a href="{link}"{said}>{html.escape(one["name"])}</a><br/>\n')
        needs = requires.get((project, version), [])
        (folder / place / one["name"]).write_bytes(stand_in(one["name"], needs, python))
    return places


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and parts of its files: the metadata of a wheel is read from its end."""

    extensions_map = {".html": "text/html"}  # noqa: RUF012 - as in the base class

    def do_GET(self) -> None:
        """Answer a request for a page, a file, or a part of a file."""
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        size = len(content)
        start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        end = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(arguments: list[str]) -> int:
    """Serve the facts about the matrix that *arguments* begin with, and run ``colablock lock`` on it."""
    name, *rest = arguments
    sources = read_sources(ROOT / "matrices" / f"{name}.sources.json")
    with tempfile.TemporaryDirectory() as folder:
        places = write_pages(sources, Path(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}"
        mirrors = [f"{url}/={root}/{place}/" for url, place in places.items()]
        environ = {
            **os.environ,
            "COLABLOCK_MIRRORS": " ".join([*mirrors, os.environ.get("COLABLOCK_MIRRORS", "")]).strip(),
            "COLABLOCK_CACHE_DIR": str(Path(folder) / "cache"),  # stand-ins must not stay in a cache
            "PIP_CONFIG_FILE": os.devnull,
        }
        command = [sys.executable, "-m", "colablock", "lock", f"matrices/{name}.toml", *rest]
        try:
            return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        finally:
            server.shutdown()
            server.server_close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
