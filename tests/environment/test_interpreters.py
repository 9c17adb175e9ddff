from __future__ import annotations

import hashlib
import http.server
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from colablock.environment import _probe
from colablock.environment.interpreters import fetch_interpreter, find_interpreters, look_for_interpreters
from colablock.errors import Unmet
from tests.support.runtime import make_venv
from tests.support.serving import Serving

pytestmark = pytest.mark.interpreter

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Return variables with which only the running interpreter is found."""
    folders = {name: str(tmp_path / name) for name in ("HOME", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR")}
    return {**os.environ, **folders, "PATH": ""}


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_base_of_the_running_interpreter_is_found(bare: dict[str, str]) -> None:
    (found,) = find_interpreters(bare)
    assert found.source == "running"
    assert found.implementation == "cpython"
    assert found.version == platform.python_version()
    asked = subprocess.run(
        [found.path, "-c", "import sys; print(sys.prefix == sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == "True\n"


def test_an_interpreter_with_several_names_is_found_once(bare: dict[str, str], tmp_path: Path) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    copies = tmp_path / "copies"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--copies", str(copies)], check=True)
    links = tmp_path / "links"
    links.mkdir()
    for name in ("python", "python3", f"python{MINOR}"):
        (links / name).symlink_to(python)
    path = os.pathsep.join([str(python.parent), str(copies / "bin"), str(links), "/no/such/folder"])
    assert len(find_interpreters({**bare, "PATH": path})) == 1


def test_shims_are_skipped_and_broken_interpreters_noted(bare: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path / "shims" / "python3", "echo 'pyenv: python3: command not found' >&2; exit 127")
    script(tmp_path / "broken" / "python3.12", "echo 'error while loading shared libraries' >&2; exit 1")
    script(tmp_path / "other" / "python-config", "exit 1")
    (tmp_path / "other" / "python3").write_text("not executable")
    script(tmp_path / "PYENV_ROOT" / "versions" / "3.9.1" / "bin" / "python", "echo no json")
    path = os.pathsep.join(str(tmp_path / name) for name in ("shims", "broken", "other"))
    found = look_for_interpreters({**bare, "PATH": path})
    assert [item.source for item in found.interpreters] == ["running"]
    assert len(found.broken) == 3
    assert any("shared libraries" in line and "python3.12" in line for line in found.broken)


def test_shims_of_pyenv_are_not_started(bare: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path / "PYENV_ROOT" / "shims" / "python3", f"touch {tmp_path / 'asked'}")
    found = look_for_interpreters({**bare, "PATH": str(tmp_path / "PYENV_ROOT" / "shims")})
    assert [item.source for item in found.interpreters] == ["running"]
    assert not (tmp_path / "asked").exists()


def test_other_implementations_are_ignored(bare: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path / "bin" / "python3", f"echo '{answer_of('pypy')}'")
    assert len(find_interpreters({**bare, "PATH": str(tmp_path / "bin")})) == 1


def answer_of(implementation: str, missing: Sequence[str] = ()) -> str:
    """Return what the probe prints in an interpreter called ``/other``."""
    known = _probe.interpreter_facts()
    markers = {**known["markers"], "python_full_version": "3.11.1", "implementation_name": implementation}
    facts = {**known, "base_executable": "/other", "has_headers": True, "markers": markers}
    return _probe.MARK + json.dumps({"facts": facts, "missing": missing})


def test_an_interpreter_without_ssl_counts_as_broken(bare: dict[str, str], tmp_path: Path) -> None:
    answer = answer_of("cpython", ["No module named _ssl"])
    script(tmp_path / "bin" / "python3", f"echo '{answer}'")
    found = look_for_interpreters({**bare, "PATH": str(tmp_path / "bin")})
    assert [item.source for item in found.interpreters] == ["running"]
    (line,) = found.broken
    assert line.endswith("needs: No module named _ssl")


@pytest.mark.parametrize(
    "said", ["Unknown option: -I", "SyntaxError: future feature annotations is not defined"]
)
def test_an_interpreter_too_old_for_the_probe_is_skipped(
    bare: dict[str, str], tmp_path: Path, said: str
) -> None:
    script(tmp_path / "bin" / "python", f"echo '{said}' >&2; exit 2")
    found = look_for_interpreters({**bare, "PATH": str(tmp_path / "bin")})
    assert [item.source for item in found.interpreters] == ["running"]
    assert found.broken == ()


def test_the_newest_comes_first() -> None:
    found = find_interpreters(os.environ)
    versions = [tuple(map(int, item.version.split(".")[:2])) for item in found]
    assert versions == sorted(versions, reverse=True)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Serve a folder; return its address, the folder, and the requested paths."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    asked: list[str] = []

    class Handler(_Quiet):
        def __init__(self, *args: object, **options: object) -> None:
            self.asked = asked
            super().__init__(*args, directory=str(folder), **options)  # type: ignore[arg-type]

    with Serving(Handler) as server:
        yield server.root, folder, asked


def archive_of_this_python(into: Path) -> None:
    """Pack enough of the running base interpreter to run elsewhere, as a standalone build is laid out."""
    base = Path(os.path.realpath(sys.base_prefix))
    left_out = {"test", "idlelib", "ensurepip", "site-packages", "tkinter", "lib2to3", "__pycache__"}

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = set(Path(member.name).parts)
        return None if parts & left_out or any(part.startswith("config-") for part in parts) else member

    with tarfile.open(into, "w:gz", compresslevel=1) as archive:
        archive.add(base / "bin" / f"python{MINOR}", f"python/bin/python{MINOR}")
        archive.add(base / "lib" / f"python{MINOR}", f"python/lib/python{MINOR}", filter=keep)
        for library in base.glob("lib/libpython*.so*"):
            archive.add(library, f"python/lib/{library.name}")
        for name in ("python", "python3"):
            link = tarfile.TarInfo(f"python/bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, f"python{MINOR}"
            archive.addfile(link)


STANDALONE = Path(os.path.realpath(sys.base_prefix), "lib", f"python{MINOR}", "os.py").is_file()


@pytest.mark.skipif(not STANDALONE, reason="this interpreter's library is not in its prefix")
def test_an_interpreter_is_downloaded_from_a_mirror(
    bare: dict[str, str], mirror: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    url, folder, asked = mirror
    major, minor, patch = sys.version_info[:3]
    machine, system = platform.machine(), "unknown-linux-gnu"
    name = f"cpython-{major}.{minor}.{patch}+20260101-{machine}-{system}-install_only_stripped.tar.gz"
    (folder / "20260101").mkdir()
    archive_of_this_python(folder / "20260101" / name)
    releases = "https://github.com/astral-sh/python-build-standalone/releases/download"
    listing = {
        f"cpython-{major}.{minor}.{patch}-linux-{machine}-gnu": {
            "name": "cpython",
            "arch": {"family": machine, "variant": None},
            "os": "linux",
            "libc": "gnu",
            "major": major,
            "minor": minor,
            "patch": patch,
            "prerelease": "",
            "url": f"{releases}/20260101/{name.replace('+', '%2B')}",
            "sha256": hashlib.sha256((folder / "20260101" / name).read_bytes()).hexdigest(),
            "variant": None,
            "build": "20260101",
        }
    }
    (tmp_path / "downloads.json").write_text(json.dumps(listing))
    environ = {
        **bare,
        "UV_PYTHON_INSTALL_MIRROR": url,
        "UV_PYTHON_DOWNLOADS_JSON_URL": (tmp_path / "downloads.json").as_uri(),
    }
    fetched = fetch_interpreter(MINOR, environ)
    assert fetched.source == "fetched"
    assert fetched.version == platform.python_version()
    assert Path(fetched.path).is_relative_to(tmp_path / "UV_PYTHON_INSTALL_DIR")
    assert len(asked) == 1
    found = find_interpreters(environ)
    assert sorted(item.source for item in found) == ["running", "uv"]


def test_a_mirror_without_the_build_of_this_platform_is_named_in_the_error(
    bare: dict[str, str], mirror: tuple[str, Path, list[str]]
) -> None:
    url, _, asked = mirror
    with pytest.raises(Unmet, match=r"uv could not fetch Python 3\.12\n(.*\n)*.*404") as caught:
        fetch_interpreter("3.12", {**bare, "UV_PYTHON_INSTALL_MIRROR": url})
    assert asked
    assert f"-{platform.machine()}-" in asked[0]
    assert "cpython-3.12." in asked[0]
    assert caught.value.hint is not None
    assert "UV_PYTHON_INSTALL_MIRROR" in caught.value.hint
