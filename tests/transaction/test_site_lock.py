"""The locks of an environment: ours and that of uv."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from uv import find_uv_bin

from colablock._common.reporter import Reporter
from colablock.environment.site import read_site
from colablock.errors import Refused
from colablock.transaction.site_lock import locked
from tests.support.faults import die, in_a_child
from tests.support.runtime import Venv
from tests.support.trees import listing
from tests.support.wheels import make_wheel


def test_uv_and_a_change_wait_for_each_other(venv: Venv, tmp_path: Path) -> None:
    python = venv.python
    before = listing(venv.folder)
    wheel = make_wheel(tmp_path, "colours", "1.0")
    command = [str(find_uv_bin()), "pip", "install", "--offline", "--python", python, str(wheel)]
    site = read_site(python, os.environ)
    with locked(site), subprocess.Popen(command, stderr=subprocess.DEVNULL) as uv:
        time.sleep(1.5)
        assert uv.poll() is None  # it waits
        assert not venv.site.joinpath("colours").exists()
        uv.kill()
    assert listing(venv.folder) == before  # the lock file of uv did not exist before

    script = (
        "import fcntl, sys, time\n"
        "lock = open(sys.argv[1], 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    holding = [sys.executable, "-c", script, str(venv.folder / ".lock")]
    with subprocess.Popen(holding, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match="is changing"), locked(site, wait=0.2):
            pass
        other.kill()
    assert (venv.folder / ".lock").is_file()  # this one did


def test_a_created_uv_lock_is_removed_after_a_kill(venv: Venv) -> None:
    site = read_site(venv.python, os.environ)
    before = listing(venv.folder)

    def dies() -> None:
        with locked(site):
            die()

    assert in_a_child(dies) != 0
    assert (venv.folder / ".lock").exists()
    with locked(site):
        pass
    assert listing(venv.folder) == before


def test_a_waiting_call_names_the_other_process(venv: Venv) -> None:
    site = read_site(venv.python, os.environ)
    notes: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    def waits() -> None:
        with locked(site, wait=0.2, reporter=Notes()):
            pass

    with locked(site), pytest.raises(Refused, match=rf"another process \({os.getpid()}\) is changing"):
        waits()
    assert notes == [f"waiting: another process ({os.getpid()}) is changing {venv.folder}"]
