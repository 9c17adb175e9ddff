"""Planted secrets: none is printed, written, or given to a child that has no need of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.runtime import Stub, Venv
from tests.support.server import IndexServer
from tests.support.wheels import make_wheel, tar_bytes

MARK = b"hunter2"  # part of every secret
ENCODED = (b"aHVudGVyM", b"h1bnRlcj", b"odW50ZXIy")  # that part in base64, at each offset

# Code of others that runs in a child: it writes down what it can see.
SPY = """
import json, os, pathlib, sys, tempfile
def _seen():
    seen = {"what": WHAT, "argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd(), "files": {}}
    names = (".netrc", ".pypirc", ".config/pip/pip.conf", ".cache/huggingface/token", ".aws/credentials")
    for name in names if WHAT == "build" else ():
        try:
            seen["files"][name] = pathlib.Path("~", name).expanduser().read_text()
        except OSError:
            pass
    pid = os.getppid()
    for kind in ("cmdline", "environ") if WHAT == "build" else ():
        try:
            seen["parent " + kind] = pathlib.Path(f"/proc/{pid}/{kind}").read_bytes().decode("latin1")
        except OSError:
            pass
    fd, path = tempfile.mkstemp(dir=RECORD, suffix=".json")
    with open(fd, "w") as file:
        json.dump(seen, file)
_seen()
"""
BACKEND = """
import base64, hashlib, pathlib, zipfile
def get_requires_for_build_wheel(config_settings=None):
    return []
def build_wheel(folder, config_settings=None, metadata_directory=None):
    import helper
    name, info = "canvas-1.0-py3-none-any.whl", "canvas-1.0.dist-info"
    files = {
        "canvas.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: canvas\\nVersion: 1.0\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    record = f"{info}/RECORD,,\\n"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as made:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text)}\\n"
            made.writestr(path, text)
        made.writestr(f"{info}/RECORD", record)
    return name
"""
PYPROJECT = """\
[build-system]
requires = ["helper"]
build-backend = "backend"
backend-path = ["."]
[project]
name = "canvas"
dynamic = ["version"]
"""
KEYRING = """\
#!{python}
import sys
if "get" in sys.argv and any("localhost" in word for word in sys.argv):
    print("user\\nhunter2ring")
else:
    sys.exit(1)
"""
TRAP = "import pathlib\npathlib.Path({!r}).write_text(__file__)\n"
TRAPS = (
    "json.py",
    "sitecustomize.py",
    "usercustomize.py",
    "colours.py",
    "encodings.py",
    "torch.py",
    "site.py",
)
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
PROGRAMS = ("uv", "git", "keyring", "python", "python3", "nvidia-smi", "paint")


def spy(what: str, record: Path) -> str:
    return f"WHAT, RECORD = {what!r}, {str(record)!r}\n{SPY}"


class LocalServer(IndexServer):
    """A server with another host name, for which netrc has no password."""

    @property
    def root(self) -> str:
        return super().root.replace("127.0.0.1", "localhost")


@dataclass
class Watcher:
    """Looks at the command lines of all descendants of a process as long as it runs."""

    root: int
    found: dict[int, bytes] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watcher:  # noqa: PYI034 - never of a subclass
        self._look()  # the process has just been started: however busy the machine is, it is seen
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            time.sleep(0.002)

    def _look(self) -> None:
        for pid in _below(self.root):
            with contextlib.suppress(OSError):
                self.found[pid] = _read(f"/proc/{pid}/cmdline") or self.found.get(pid, b"")


def _below(root: int) -> Iterator[int]:
    pending = [root]
    while pending:
        pid = pending.pop()
        yield pid
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/task") as tasks:
            for task in tasks:
                pending += map(int, _read(f"{task.path}/children").split())


def _read(path: str) -> bytes:
    """Return a file of /proc.  It is read hundreds of times a second, and a `Path` takes longer than that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def leaks_in(data: bytes) -> bool:
    """Return whether *data* has a secret, as it is or in base64."""
    return MARK in data or any(part in data for part in ENCODED)


@dataclass(frozen=True)
class Scene:
    """A user with secrets in every place, in a project folder full of traps."""

    folder: Path
    venv: Venv
    environ: Mapping[str, str]
    spawned: list[bytes] = field(default_factory=list)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def record(self) -> Path:
        return self.folder / "record"

    def run(self, *argv: str, code: int | None = 0) -> str:
        """Run one command, and check what it prints and starts."""
        command = [str(Path(sys.executable).with_name("colablock")), *argv]
        process = subprocess.Popen(
            command,
            cwd=self.project,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with Watcher(process.pid) as watcher:
            out, err = process.communicate()
        said = f"{argv}: {out.decode()}{err.decode()}"
        assert code is None or process.returncode == code, said
        assert process.returncode in {0, 1, 2, 5}, said
        assert not leaks_in(out + err), said
        lines = [line for line in watcher.found.values() if leaks_in(line)]
        assert lines == []
        self.spawned.extend(watcher.found.values())
        return out.decode()

    def written(self) -> list[str]:
        """Return the files with a secret, other than those that the user wrote."""
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file()
            and not path.is_symlink()
            and path.relative_to(self.folder).parts[0] not in {"user", "record", "bin"}
            and path.name != "painting.toml"
            and leaks_in(path.read_bytes())
        )

    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.record.iterdir())]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Serve three private indexes, whose passwords are in a URL, in netrc and in the keyring."""
    folders = {name: tmp_path / "served" / name for name in ("url", "netrc", "ring")}
    record = tmp_path / "record"
    for folder in (record, *folders.values()):
        folder.mkdir(parents=True)
    command = f"def main():\n    pass\n{spy('command', record)}"
    modules = {"colours.py": spy("import", record), "paint.py": command}
    make_wheel(folders["url"], "colours", "2.0", modules=modules, scripts={"paint": "paint:main"})
    brush = make_wheel(folders["url"], "brush", "1.0")
    make_wheel(folders["netrc"], "helper", "1.0")
    files = {"pyproject.toml": PYPROJECT, "backend.py": spy("build", record) + BACKEND}
    files["PKG-INFO"] = "Metadata-Version: 2.1\nName: canvas\nVersion: 1.0\n"
    packed = tar_bytes({f"canvas-1.0/{name}": text.encode() for name, text in files.items()})
    (folders["netrc"] / "canvas-1.0.tar.gz").write_bytes(packed)
    make_wheel(folders["ring"], "pigment", "1.0")
    with (
        IndexServer(folders["url"], auth=("user", "hunter2url")) as url,
        IndexServer(folders["netrc"], auth=("user", "hunter2netrc")) as netrc,
        LocalServer(folders["ring"], auth=("user", "hunter2ring")) as ring,
    ):
        project = tmp_path / "project"
        project.mkdir()
        (project / "painting.toml").write_text(_matrix(url, ring, brush))
        _set_traps(project, tmp_path / "trapped")
        yield Scene(
            folder=tmp_path,
            venv=Venv.make(tmp_path / "venv", Stub(name="colours", version="1.0")),
            environ=_environ(tmp_path, netrc),
        )


def _matrix(url: IndexServer, ring: IndexServer, brush: Path) -> str:
    private = url.url.replace("://", "://user:hunter2url@")
    direct = url.file_url(brush.name).replace("://", "://user:hunter2url@")
    digest = hashlib.sha256(brush.read_bytes()).hexdigest()
    return f"""\
schema = 1
name = "painting"
[[index]]
name = "private"
url = "{private}"
[[index]]
name = "ring"
url = "{ring.url}"
[packages]
colours = {{ version = "==2.0", index = "private" }}
brush = {{ url = "{direct}?token=hunter2query", sha256 = "{digest}" }}
canvas = "==1.0"
pigment = {{ version = "==1.0", index = "ring" }}
[options]
allow-build = ["canvas"]
[verify]
imports = ["colours", "canvas", "brush", "pigment"]
commands = [["paint"]]
"""


def _set_traps(project: Path, mark: Path) -> None:
    for name in TRAPS:
        (project / name).write_text(TRAP.format(str(mark)))
    for name in PROGRAMS:
        program = project / name
        program.write_text(f"#!/bin/sh\necho {name} >> '{mark}'\nexit 1\n")
        program.chmod(0o755)
    (project / "uv.toml").write_text("no such setting")
    subprocess.run(["git", "init", "-q", str(project)], check=True)  # noqa: S607
    subprocess.run(["git", "-C", str(project), "config", "core.fsmonitor", "./git"], check=True)  # noqa: S607


def _environ(folder: Path, netrc: IndexServer) -> dict[str, str]:
    home = folder / "user"
    program = folder / "bin" / "keyring"
    for path in (home, program.parent, folder / "tmp"):
        path.mkdir()
    program.write_text(KEYRING.format(python=sys.executable))
    program.chmod(0o755)
    (home / ".netrc").write_text("machine 127.0.0.1 login user password hunter2netrc\n")
    (home / ".pypirc").write_text("[pypi]\npassword = hunter2pypirc\n")
    for name in (".config/pip/pip.conf", ".cache/huggingface/token", ".aws/credentials"):
        path = home / name
        path.parent.mkdir(parents=True)
        path.write_text("[global]\nextra-index-url = https://user:hunter2pip@pip.example/simple/\n")
    named = (
        "HF_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN GITHUB_TOKEN "
        "GOOGLE_API_KEY AZURE_CLIENT_SECRET KAGGLE_KEY OPENAI_API_KEY DB_PASSWORD MY_SECRET"
    )
    proxy = "http://user:hunter2proxy@127.0.0.1:9"
    inherited = {name: os.environ[name] for name in ("LANG", "LC_ALL", "SSL_CERT_FILE") if name in os.environ}
    return {
        **inherited,
        **{name: f"hunter2{name.lower()}" for name in named.split()},
        "COLABLOCK_CACHE_DIR": str(folder / "cache"),
        "COLABLOCK_DEFAULT_INDEX": netrc.url,
        "COLABLOCK_HOME": str(folder / "home"),
        "COLABLOCK_KEYRING_PROVIDER": "subprocess",
        "COLABLOCK_MIRRORS": "https://far.example/=https://user:hunter2mirror@near.example/",
        "COLUMNS": "300",
        "DATABASE_URL": "postgres://user:hunter2db@db.example/x",
        "HOME": str(home),
        "HTTPS_PROXY": proxy,
        "NO_PROXY": "127.0.0.1,localhost",
        "PATH": os.pathsep.join([".", "", str(program.parent), os.environ["PATH"]]),
        "PIP_EXTRA_INDEX_URL": "https://user:hunter2extra@extra.example/simple/",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(folder / "tmp"),
        "UV_CACHE_DIR": str(folder / "uv-cache"),
        "UV_FIND_LINKS": "https://user:hunter2links@links.example/",
        "COLABLOCK_FIND_LINKS": str(folder / "served" / "url" / "none"),
        "http_proxy": proxy,
    }


def test_a_full_run_keeps_every_secret(scene: Scene) -> None:
    (scene.folder / "served" / "url" / "none").mkdir()
    kernel = ("--into", "kernel", "--python", scene.venv.python)
    scene.run("lock", "./painting.toml", "--python-version", PYTHON)
    for options in ((), ("--json",), ("--no-lock", "-v")):
        scene.run("plan", "./painting.toml", *options, *kernel, code=None)
    scene.run("why", "./painting.toml", "colours", *kernel, code=None)
    scene.run("apply", "./painting.toml", *kernel, "--yes")
    scene.run("apply", "./painting.toml", "--into", "env", "--python", scene.venv.python)
    scene.run("verify", code=None)
    for form in ("requirements", "constraints", "notebook"):
        scene.run("export", "./painting.toml", "--format", form, "-o", f"{form}.out", code=None)
    others: list[tuple[str, ...]] = [
        ("history", "--python", scene.venv.python),
        ("history", "--json", "--python", scene.venv.python),
        ("show", "./painting.toml"),
        ("show", "./painting.toml", "--json"),
        ("info",),
        ("info", "--json"),
        ("env", "list"),
        ("runs", "list"),
        ("cache", "info"),
        ("check", "./painting.toml"),
        ("runtime", "record", "--name", "mine", "--python", scene.venv.python),
        ("run", "--", "python", "-c", "pass"),
        ("rollback", "--python", scene.venv.python, "--yes"),
    ]
    for argv in others:
        scene.run(*argv, code=None)
    assert scene.written() == []
    seen = scene.seen()
    assert {one["what"] for one in seen} == {"build", "import", "command"}
    assert [one for one in seen if leaks_in(json.dumps(one).encode())] == []
    assert {one["environ"]["HOME"] == scene.environ["HOME"] for one in seen if one["what"] == "build"} == {
        False
    }
    assert not (scene.folder / "trapped").exists()
    assert list((scene.folder / "tmp").iterdir()) == []
    # The watcher saw each command, and each kind of process that they start: how many depends on the caches.
    watched = b"\n".join(scene.spawned)
    for argv in [("lock",), ("plan",), ("why",), ("apply",), ("verify",), ("export",), *others]:
        assert b"\0".join([b"/colablock", *map(str.encode, argv)]) + b"\0" in watched, argv
    for started in (b"/_probe.py\0", b"\0build\0", b"\0--check-hash-based-pycs\0", b"\0venv\0", b"keyring"):
        assert started in watched, started
