"""No child of colablock writes bytecode into the environment of the user, whatever options it starts with."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from colablock._common.child_environment import Purpose, environment_of
from colablock._common.process import ISOLATED, run_python, source_command
from colablock.environment.accelerator import Accelerator
from colablock.environment.site import read_site
from colablock.environment.snapshot import snapshot_of
from colablock.environment.target_script import ask_target
from colablock.matrix.model import Verify
from colablock.planning.plan import Plan, Target
from colablock.transaction.isolated_envs import build_env
from colablock.verification.verify import prove
from tests.support.runtime import Stub, Venv

pytestmark = pytest.mark.interpreter

# Each start of an interpreter imports a module of the site, as `distutils-precedence.pth` does.
AT_START = Stub(
    name="early", version="1", files={"early.pth": "import early_module\n", "early_module.py": "x = 1\n"}
)
USED = Stub(
    name="used", version="1.5", files={"used/__init__.py": "from used import more\n", "used/more.py": ""}
)
# Of a training process and of a child of it.
RANKS = "import used, subprocess, sys; subprocess.run([sys.executable, '-c', 'import used'], check=True)"
SCRIPT = """\
import json, sys, used
open(sys.argv[2], "w").write(json.dumps({"answer": used.__name__}))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Venv:
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        monkeypatch.delenv(name, raising=False)
    return Venv.make(tmp_path / "env", AT_START, USED)


def bytecode(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.pyc"))


def proves(place: Venv) -> None:
    command = ("python", "-c", "import used")
    checks = prove(
        place.python, verify=Verify(imports=("used",), commands=(command,)), pins={}, environ=os.environ
    )
    assert [check.passed for check in checks] == [True, True]


def asks(place: Venv) -> None:
    script = place.folder.parent / "script.py"
    script.write_text(SCRIPT)
    assert ask_target(place.python, script, {}, doing="answer", environ=os.environ) == "used"


def trains(place: Venv) -> None:
    environ = environment_of(place.python, os.environ, Purpose.TRAINING)
    subprocess.run([place.python, "-c", RANKS], env=environ, check=True)


def makes_an_environment(place: Venv) -> None:
    plan = Plan(
        matrix="none",
        matrix_digest="",
        variant=None,
        target=Target.ENV,
        why_target="",
        python=place.python,
        python_version="3",
    )
    build_env(
        plan,
        {},
        lock_hash="0" * 64,
        home=place.folder.parent / "home",
        environ=os.environ,
        interpreter=place.python,
    )


CHILDREN: dict[str, Callable[[Venv], object]] = {
    "the probe of the site": lambda place: read_site(place.python, os.environ),
    "the snapshot": lambda place: snapshot_of(place.python, environ=os.environ, accelerator=Accelerator()),
    "-I": lambda place: run_python(place.python, ["-c", "import used"], environ=os.environ, timeout=60),
    "-E": lambda place: subprocess.run(
        source_command(place.python, "import used", options=("-E",)), env=os.environ, check=True
    ),
    "-I, started in a session": lambda place: subprocess.run(
        [place.python, *ISOLATED, "-c", "import used"], env=os.environ, check=True
    ),
    "proofs": proves,
    "a script": asks,
    "training": trains,
    "an isolated environment": makes_an_environment,
}


@pytest.mark.parametrize("child", CHILDREN)
def test_a_child_writes_no_bytecode(place: Venv, child: str) -> None:
    library = Path(os.__file__).parent
    before = bytecode(library)
    CHILDREN[child](place)
    assert bytecode(place.folder) == []
    assert bytecode(library) == before


def test_proofs_of_an_isolated_environment_write_no_bytecode_outside_of_it(
    place: Venv, tmp_path: Path
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "outside.py").write_text("")
    (place.site / "beside.pth").write_text(f"{tmp_path / 'beside'}\n")
    verify = Verify(imports=("used", "outside"))
    prove(place.python, verify=verify, pins={}, environ=os.environ, bytecode=(str(place.folder),))
    names = {path.name.partition(".")[0] for path in bytecode(place.folder)}
    assert names == {"__init__", "more"}
    assert bytecode(tmp_path / "beside") == []


@pytest.mark.parametrize("place_of_bytecode", ["beside its source", "PYTHONPYCACHEPREFIX"])
def test_foreign_bytecode_proves_nothing(
    place: Venv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place_of_bytecode: str
) -> None:
    """Bytecode that is not compared with its source (PEP 552) hides neither a fault nor a repair of it."""
    source = place.site / "used" / "more.py"
    if place_of_bytecode == "PYTHONPYCACHEPREFIX":
        monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "prefix"))
        monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "prefix"))
    py_compile.compile(
        str(source),
        cfile=importlib.util.cache_from_source(str(source)),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        doraise=True,
    )
    source.write_text("raise ImportError('broken')\n")
    (check,) = prove(place.python, verify=Verify(imports=("used",)), pins={}, environ=os.environ)
    assert not check.passed
    assert "broken" in check.detail
