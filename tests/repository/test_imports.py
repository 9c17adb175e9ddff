"""Importing colablock costs next to nothing.  Which module may import which: see `tool.importlinter`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import colablock
from colablock import _dependencies
from colablock._common.toml import load_toml

pytestmark = pytest.mark.interpreter

ROOT = Path(colablock.__file__).parent

# What the front door, or the line that only prints help, has no use for.
HEAVY = frozenset(
    {"IPython", "asyncio", "msgspec", "resolvelib", "rich", "torch", "transformers", "urllib3", "uv", "yaml"}
)


#: Modules that a plan of a lock loads of colablock, vendored ones too: each takes 0.5 ms of processor time.
MODULES = 160


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after *statement*."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(ended.stdout.split())


def test_importing_colablock_loads_only_the_version() -> None:
    code = "import sys, colablock; print(*(name for name in sys.modules if name.startswith('colablock')))"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert set(ended.stdout.split()) == {"colablock", "colablock._version"}


@pytest.mark.parametrize("statement", ["import colablock", "import colablock.cli.main"])
def test_importing_loads_no_heavy_dependency(statement: str) -> None:
    assert loaded_after(statement) & HEAVY == set()


def test_the_list_command_loads_only_rich_and_uv() -> None:
    command = "import contextlib, io; from colablock.cli.main import main"
    listing = "with contextlib.redirect_stdout(io.StringIO()): main(['list'])"
    assert loaded_after(f"{command}\n{listing}") & HEAVY == {"rich", "uv"}


def test_a_plan_of_a_lock_loads_no_search_and_no_http_client() -> None:
    command = "import contextlib, io, sys; from colablock.cli.main import main"
    arguments = ["plan", "qlora-2026", "--runtime", "colab-2026.08-gpu", "--offline", "--json"]
    planning = f"with contextlib.redirect_stdout(io.StringIO()): assert main({arguments!r}) == 0"
    names = "*(name for name in sys.modules if name.startswith('colablock.'))"
    code = f"{command}\n{planning}\nprint({names}, *{{name.split('.')[0] for name in sys.modules}})"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    loaded = set(ended.stdout.split())
    assert loaded & {"resolvelib", "urllib3", "ssl", "http", "html", "asyncio"} == set()
    unneeded = {
        *("display.html", "index.finder", "index.rebuilt_wheel", "network.http", "resolver.bounded_search"),
        *("resolver.complete_search", "resolver.conflict_report", "resolver.proof", "transaction.history"),
        *("transaction.recovery", "transaction.staging"),
    }
    assert loaded & {f"colablock.{name}" for name in unneeded} == set()
    assert sum(name.startswith("colablock.") for name in loaded) <= MODULES


def test_importing_in_ipython_registers_the_magics_and_loads_no_more() -> None:
    pytest.importorskip("IPython")
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance(); import colablock\n"
        "print(*(name for name in sys.modules if name.startswith('colablock')))\n"
        "print(*(kind for kind in ('line', 'cell') if 'colablock' in shell.magics_manager.magics[kind]))\n"
        "shell.run_line_magic('colablock', '--version'); shell.run_line_magic('load_ext', 'colablock')"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    modules, kinds, version = ended.stdout.splitlines()[:3]
    assert (set(modules.split()), kinds) == ({"colablock", "colablock._version"}, "line cell")
    assert version == f"colablock {colablock.__version__}", ended.stdout


IPYTHON = "from IPython.core.interactiveshell import InteractiveShell as S; s = S.instance(); import sys\n"
NOT_INSTALLED = (
    "error: colablock is imported from its source folder, and is not installed in this Python\n"
    "hint: Run `%pip install -q .` in the folder of the clone (in a terminal `pip install .`)\n"
)
INCOMPLETE = (
    "error: colablock needs packages that are not installed in this Python: uv pyyaml\n"
    "hint: Run `%pip install -q uv pyyaml` (in a terminal `pip install uv pyyaml`)\n"
)
CATCHING = "import colablock\ntry: colablock.plan\nexcept colablock.ColablockError as error: print(error)"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-S", "-m", "colablock", "list"], 1, NOT_INSTALLED),
        (["-S", "-c", "import colablock; colablock.verif"], 1, "did you mean `verify`?\n"),
        (
            [
                "-S",
                "-c",
                "import colablock\ntry: colablock.plan\nexcept colablock.ColablockError as e: print(e)",
            ],
            0,
            "colablock is imported from its source folder, and is not installed in this Python\n",
        ),
        *(
            (
                ["-c", f"{IPYTHON}sys.modules.update(uv=None, yaml=None)\ns.run_cell({cell!r})"],
                0,
                INCOMPLETE,
            )
            for cell in (
                "import colablock; colablock.apply('qlora-2026')",
                "import colablock; colablock.check('qlora-2026')",
                "import colablock\n%colablock list",
            )
        ),
    ],
)
def test_source_that_is_not_installed_says_so_in_a_line(arguments: list[str], code: int, said: str) -> None:
    if "IPython" in arguments[-1]:
        pytest.importorskip("IPython")
    ended = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert (ended.returncode, (ended.stdout + ended.stderr).endswith(said)) == (code, True), ended
    assert "No module named" not in ended.stdout + ended.stderr


def test_the_dependencies_that_are_asked_for_are_those_of_the_project() -> None:
    project = load_toml((ROOT.parent / "pyproject.toml").read_bytes())["project"]
    declared = {re.split(r"[<>=; ]", one)[0] for one in project["dependencies"]}
    asked = {package or module for module, package in {**_dependencies.MODULES, "tomli": ""}.items()}
    assert asked == declared
