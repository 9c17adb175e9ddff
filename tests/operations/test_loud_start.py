"""Software that prints, redirects or fails when an interpreter starts (`sitecustomize`, `.pth` files)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from colablock._common.process import run_python
from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import snapshot_of
from colablock.index.build import build_wheel
from colablock.operations.apply import carry_out
from colablock.operations.plan import plan_change
from colablock.planning.plan import Target
from tests.support.runtime import Venv, build_site, make_system_python
from tests.support.standing import DEMO, Standing, make_standing
from tests.support.timing import PATIENCE
from tests.support.wheels import make_sdist

SITE = "sitecustomize.py"
WRAPPED = """\
import io, sys
class Logged(io.TextIOBase):
    def write(self, text):
        return sys.__stdout__.write("[log] " + text)
sys.stdout = Logged()
"""
THREAD = """\
import threading, time
def talk():
    while True:
        print("still here", flush=True)
        time.sleep(0.001)
threading.Thread(target=talk, daemon=True).start()
"""
#: Name and content of the file that runs at each start.
LOUD: Mapping[str, tuple[str, str]] = {
    "a line": (SITE, "print('welcome')\n"),
    "no end of the line": (SITE, "import sys; sys.stdout.write('welcome')\n"),
    "an object of JSON": (SITE, 'print(\'{"result": "success"}\')\n'),
    "both streams": (SITE, "import sys; print('out', flush=True); print('error', file=sys.stderr)\n"),
    "megabytes": (SITE, "import sys; sys.stdout.write('x\\n' * 2000000); sys.stderr.write('y' * 300000)\n"),
    "no text": (SITE, "import os; os.write(1, bytes(range(128, 256)))\n"),
    "at the end": (SITE, "import atexit; atexit.register(print, 'goodbye')\n"),
    "another standard output": (SITE, WRAPPED),
    "a closed standard output": (SITE, "import sys; print('x', flush=True); sys.stdout = None\n"),
    "a thread": (SITE, THREAD),
    "an error": (SITE, "print('welcome')\nraise ValueError('no licence')\n"),
    "a .pth file": ("loud.pth", "import sys; print('welcome')\n"),
    "a .pth file that fails": ("loud.pth", "import sys; print('welcome'); raise ValueError('no licence')\n"),
}


@pytest.fixture
def standing(tmp_path: Path) -> Standing:
    return make_standing(tmp_path)


@pytest.mark.parametrize(("name", "text"), LOUD.values(), ids=LOUD)
def test_what_is_printed_at_the_start_does_not_disturb_a_change(
    name: str, text: str, standing: Standing
) -> None:
    (standing.site / name).write_text(text)
    assert standing.apply().passed
    versions = {line for line in standing.place.venv.versions().items() if line[0] == "demo"}
    assert versions == {("demo", "2.0")}


def test_an_isolated_environment_can_be_made_with_a_loud_interpreter(standing: Standing) -> None:
    (standing.site / SITE).write_text("print('welcome')\n")
    report = standing.apply(Target.ENV)
    assert (report.passed, report.target) == (True, "env")
    asked = ["-c", "import demo; print(demo.__version__)"]
    assert run_python(report.python, asked, environ=os.environ, timeout=PATIENCE).text == "2.0\n"


def test_an_isolated_environment_can_be_made_from_a_base_that_is_loud(standing: Standing) -> None:
    folder = standing.place.folder / "usr"
    python = make_system_python(folder, "[externally-managed]\nError=no\n")
    (library,) = folder.glob("lib/python*")
    (library / SITE).unlink(missing_ok=True)
    (library / SITE).write_text("print('welcome')\n")
    session = standing.session()
    options = replace(standing.options(Target.ENV), python=str(python))
    report = carry_out(session, options, plan_change(session, options))
    assert (report.passed, report.target) == (True, "env")
    asked = ["-c", "import demo; print(demo.__version__)"]
    assert run_python(report.python, asked, environ=os.environ, timeout=PATIENCE).text == "welcome\n2.0\n"


def test_a_wheel_can_be_built_with_a_loud_interpreter(tmp_path: Path) -> None:
    venv = Venv.make(tmp_path / "venv")
    (venv.site / SITE).write_text("print('welcome')\n")
    sdist = make_sdist(tmp_path, "demo", "1.0")
    (tmp_path / "made").mkdir()
    wheel = build_wheel(sdist, venv.python, tmp_path / "made", environ=os.environ, offline=True)
    assert wheel.name == "demo-1.0-py3-none-any.whl"


def test_what_ends_the_start_is_an_error_that_says_so(standing: Standing) -> None:
    (standing.site / SITE).write_text("import sys; sys.exit('no licence')\n")
    done = standing.place.run("plan", "tiny.toml", "--python", standing.place.venv.python)
    assert done.code == 2
    assert "does not run as Python" in " ".join(done.err.split())


def test_a_loud_interpreter_is_read_whole(tmp_path: Path) -> None:
    venv = Venv.make(tmp_path / "venv")
    build_site(venv.site, [DEMO])
    (venv.site / SITE).write_text("import sys; print('welcome', flush=True); sys.stdout = sys.stderr\n")
    snapshot = snapshot_of(venv.folder, environ=os.environ, accelerator=Accelerator())
    assert (list(snapshot.installed), snapshot.environment.short) == (
        ["demo"],
        "{}.{}".format(*sys.version_info),
    )
