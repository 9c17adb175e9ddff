"""Scripts in the interpreter of the target: which modules they import, and how they end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from colablock.environment.target_script import ask_target
from colablock.errors import Unmet
from colablock.training.scripts import FOLDER as SCRIPTS
from tests.support.runtime import make_venv, site_of
from tests.support.timing import PATIENCE, state_of, until

ENVIRON = {"PATH": os.defpath}
SLOW = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an interpreter whose torch starts a process, prints its pid, and takes ten minutes."""
    folder = tmp_path_factory.mktemp("target") / "env"
    made = make_venv(folder, sys.executable)
    (site_of(folder) / "torch.py").write_text(SLOW)
    return made


def test_modules_of_the_working_directory_are_not_imported(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise RuntimeError('not the one')")
    monkeypatch.chdir(tmp_path)
    job = {"do": "names", "repo": "a/b"}
    with pytest.raises(Unmet, match="could not ask: ModuleNotFoundError: No module named 'huggingface_hub'"):
        ask_target(python, SCRIPTS / "hub.py", job, doing="ask", environ={})


def test_a_relative_interpreter_is_found(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(python.parent)
    with pytest.raises(Unmet, match=r"`python` could not ask: ModuleNotFoundError"):
        ask_target(
            Path("python"), SCRIPTS / "hub.py", {"do": "names", "repo": "a/b"}, doing="ask", environ={}
        )


def test_a_timeout_ends_the_script_and_its_child_processes(python: Path) -> None:
    started = time.monotonic()
    said: list[str] = []
    with pytest.raises(Unmet, match=r"could not tell: it did not finish within 2 seconds\n  \d+$"):
        ask_target(
            python,
            SCRIPTS / "describe_stack.py",
            {},
            doing="tell",
            environ=ENVIRON,
            said=said.append,
            timeout=2,
        )
    assert time.monotonic() - started < PATIENCE
    until(lambda: state_of(int(said[0])) == "Z")


def test_an_error_in_this_process_ends_the_script(python: Path) -> None:
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        raise ValueError("enough")

    started = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        ask_target(python, SCRIPTS / "describe_stack.py", {}, doing="tell", environ=ENVIRON, said=hear)
    assert time.monotonic() - started < PATIENCE
    until(lambda: state_of(int(said[0])) == "Z")


def test_modules_beside_and_below_a_script_come_with_it(python: Path, tmp_path: Path) -> None:
    beside = tmp_path / "extra"
    beside.mkdir()
    (beside / "main.py").write_text(
        "from colablock.extra.first import VALUE\n"
        "import json, sys\n"
        "import colablock\n"
        "json.dump({'answer': [VALUE, colablock.__file__]}, open(sys.argv[2], 'w'))\n"
    )
    (beside / "first.py").write_text("from colablock.extra.second import VALUE\n")
    (beside / "second.py").write_text("from colablock.extra.below.third import VALUE\n")
    (beside / "below").mkdir()
    (beside / "below" / "third.py").write_text(
        "from colablock.extra.first import __name__ as name\nfrom colablock.extra.below.fourth import VALUE\n"
    )
    (beside / "below" / "fourth.py").write_text("VALUE = 3\n")
    (beside / "other.py").write_text("raise RuntimeError('nobody imports it')")
    installed = site_of(python.parent.parent) / "colablock"
    installed.mkdir()
    (installed / "__init__.py").write_text("raise RuntimeError('not that of the target')")
    value, file = ask_target(python, beside / "main.py", {}, doing="ask", environ=ENVIRON)
    assert value == 3
    assert not file.startswith(str(python.parent.parent))
