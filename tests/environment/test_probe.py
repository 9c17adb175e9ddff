"""Kept answers of the probe: what was asked is not asked again, and whatever changes is noticed."""

from __future__ import annotations

import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from colablock.environment import probe
from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import Snapshot, snapshot_of
from colablock.network.cache import Cache
from tests.support.runtime import Stub, Venv, build_site

pytestmark = pytest.mark.interpreter

STUBS = [Stub(name="one", version="1.0", requires=("two>=1",)), Stub(name="two", version="1.0")]


class Asked(NamedTuple):
    """An environment, the store of its answers, and its variables."""

    venv: Venv
    cache: Cache
    environ: dict[str, str]

    @property
    def info(self) -> Path:
        return self.venv.site / "one-1.0.dist-info"

    def snapshot(self, *, is_kept: bool = True) -> Snapshot:
        store = self.cache if is_kept else None
        return snapshot_of(self.venv.python, environ=self.environ, accelerator=Accelerator(), store=store)

    def settle(self) -> None:
        """Let every file be older than the clocks of file systems are coarse."""
        then = time.time() - 100
        for folder, folders, files in os.walk(self.venv.folder):
            for name in (*folders, *files, "."):
                os.utime(Path(folder, name), (then, then), follow_symlinks=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    return Venv.make(tmp_path_factory.mktemp("probe") / "venv", *STUBS)


@pytest.fixture
def asked(built: Venv, tmp_path: Path) -> Asked:
    (tmp_path / "home").mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    found = Asked(built.copy(tmp_path / "venv"), Cache(tmp_path / "cache"), environ)
    found.settle()
    return found


def test_an_environment_that_stays_is_asked_once(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asked.snapshot()
    monkeypatch.setattr(probe, "run_python", None)
    assert asked.snapshot() == first
    assert set(first.installed) == {"one", "two"}


def _edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def _edit_and_set_back(path: Path, old: str, new: str) -> None:
    """Edit a file in place and give it the mtime that it had."""
    before = path.stat()
    _edit(path, old, new)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _more(asked: Asked) -> Path:
    return build_site(asked.venv.folder / "more", [Stub(name="three", version="1")])


_FALSE, _TRUE = (f"include-system-site-packages = {word}" for word in ("false", "true"))


def _user_site(asked: Asked) -> None:
    short = "python{}.{}".format(*sys.version_info)
    _edit(asked.venv.folder / "pyvenv.cfg", _FALSE, "")
    build_site(Path(asked.environ["HOME"], ".local", "lib", short, "site-packages"), [STUBS[1]])


CHANGES: dict[str, Callable[[Asked], object]] = {
    "a distribution is installed": lambda a: build_site(a.venv.site, [Stub(name="three", version="1")]),
    "a distribution is removed": lambda a: shutil.rmtree(a.info),
    "METADATA is edited": lambda a: _edit(a.info / "METADATA", "two>=1", "two>=9"),
    "METADATA is edited to the same size": lambda a: _edit(a.info / "METADATA", "two>=1", "two>=2"),
    "METADATA is edited and has its old time": lambda a: _edit_and_set_back(
        a.info / "METADATA", "two>=1", "two>=3"
    ),
    "METADATA is removed": lambda a: (a.info / "METADATA").unlink(),
    "RECORD is edited": lambda a: _edit(a.info / "RECORD", "one/", "uno/"),
    "it is marked as requested": lambda a: (a.info / "REQUESTED").touch(),
    "it has a direct reference": lambda a: (a.info / "direct_url.json").write_text(
        '{"url": "file:///x", "dir_info": {"editable": true}}'
    ),
    "another installer": lambda a: (a.info / "INSTALLER").write_text("conda"),
    "a leftover of pip": lambda a: (a.venv.site / "~ne-1.0.dist-info").mkdir(),
    "a path file": lambda a: (a.venv.site / "x.pth").write_text(f"{_more(a)}\n"),
    "it sees the base": lambda a: _edit(a.venv.folder / "pyvenv.cfg", _FALSE, _TRUE),
    "a user site": _user_site,
    "a module that runs at the start": lambda a: (a.venv.site / "sitecustomize.py").write_text(
        f"import sys; sys.path.append({str(_more(a))!r})"
    ),
    "another home": lambda a: a.environ.update(HOME=str(a.venv.folder)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str, asked: Asked) -> None:
    asked.snapshot()
    CHANGES[name](asked)
    assert asked.snapshot() == asked.snapshot(is_kept=False)
    asked.settle()
    assert asked.snapshot() == asked.snapshot() == asked.snapshot(is_kept=False)


def test_a_path_file_that_is_edited_is_noticed(asked: Asked) -> None:
    line = asked.venv.site / "x.pth"
    for number in (1, 2):
        more = build_site(asked.venv.folder / f"more{number}", [Stub(name="three", version=str(number))])
        line.write_text(f"{more}\n")
        asked.settle()
        assert asked.snapshot().installed == asked.snapshot(is_kept=False).installed


DAMAGED = [b"", b"{}", b'{"answer": "", "stamps": {}}', b'{"answer": "{}", "stamps": []}']


@pytest.mark.parametrize("entry", DAMAGED)
def test_a_damaged_answer_is_asked_again(entry: bytes, asked: Asked) -> None:
    first = asked.snapshot()
    (kept,) = (path for path in (asked.cache.folder / "probes").rglob("*") if path.is_file())
    kept.write_bytes(f"{zlib.crc32(entry):08x} {len(entry)}\n".encode() + entry)
    assert asked.snapshot() == first


def test_what_has_just_changed_is_not_kept(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked.info / "REQUESTED").touch()
    soon = (asked.info / "REQUESTED").stat().st_mtime_ns + 1
    monkeypatch.setattr(probe, "time", SimpleNamespace(time_ns=lambda: soon))
    asked.snapshot()
    assert not (asked.cache.folder / "probes").exists()


def test_a_shim_that_starts_another_interpreter_is_not_kept(asked: Asked, tmp_path: Path) -> None:
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nexec "{asked.venv.python}" "$@"\n')
    shim.chmod(0o755)
    os.utime(shim, (1, 1))
    snapshot_of(shim, environ=asked.environ, accelerator=Accelerator(), store=asked.cache)
    assert not (asked.cache.folder / "probes").exists()
