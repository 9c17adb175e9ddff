from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from colablock._common.scratch import Scratch, scratch_folder, sweep
from colablock.errors import Unmet

KILLED = """\
import os, signal
from colablock._common.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_only_this_user_can_enter_a_scratch_folder_and_it_is_removed(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with scratch_folder() as folder:
            assert folder.parent == tmp_path / "tmp"
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "file").touch()
    finally:
        os.umask(before)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_folder_of_a_killed_process_is_swept_and_no_other(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    left = Path(done.stdout.strip())
    assert (left / "file").exists()
    others = [tmp_path / "tmp" / name for name in ("colablock-tmp-worktree", "colablock-src", "mine")]
    for other in others:
        other.mkdir(mode=0o755)
    (tmp_path / "tmp" / "colablock-tmp-aaaaaaaa").symlink_to(tmp_path)
    with scratch_folder() as used:
        sweep()
        assert used.is_dir()
    assert not left.exists()
    assert all(other.is_dir() for other in others)
    assert tmp_path.is_dir()


def test_a_scratch_object_can_be_closed_twice() -> None:
    scratch = Scratch()
    scratch.close()
    scratch.close()
    assert not scratch.path.exists()


def test_without_a_temporary_folder_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: str) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(Unmet, match="no temporary folder can be created: No usable") as caught:
        Scratch()
    assert caught.value.hint == "Set TMPDIR to a folder that you can write to"
