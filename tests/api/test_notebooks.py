"""The notebooks of docs/notebooks, run from top to bottom in real kernels, with stand-ins of the stack."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import world_fixture
from tests.support.notebooks import FOLDER, build_wheel, cells_of
from tests.support.paths import ROOT
from tests.support.recorded_index import RecordedIndex
from tests.support.training_stack import stand_in_contents, write_model
from tests.support.wheels import make_wheel
from tests.support.world import World, notebook_venv, run_cells, shown, stack_of

pytestmark = pytest.mark.slow  # whole notebooks, in stand-ins of whole runtimes

HOSTS = {"colab": "colab-2026.08-gpu", "kaggle": "colab-2025.09-gpu", "jupyter": None}  # the runtime of each
OFFLINE = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
CONTENTS = stand_in_contents()


world = world_fixture(source=lambda: RecordedIndex("qlora-2026", contents=CONTENTS), scope="module")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"))


def run_notebook(world: World, host: str, wheel: Path) -> dict[str, list[dict[str, Any]]]:
    """Run a notebook beside a wheel of colablock and its model, and return the outputs of each cell."""
    runtime = HOSTS[host]
    names = () if runtime is None else stack_of(runtime)
    venv = notebook_venv(world.folder / host, runtime, names, CONTENTS)
    folder = world.folder / f"{host}-files"
    write_model(folder / "Qwen" / "Qwen2.5-0.5B")  # a folder of the model's name is that model
    shutil.copy(wheel, folder)
    there = World(folder=world.folder, server=world.server, extra=OFFLINE)
    cells = cells_of(host)
    return dict(zip(cells, run_cells(there, venv, folder, *cells.values()), strict=True))


@pytest.mark.parametrize("host", HOSTS)
def test_a_notebook_runs_from_top_to_bottom(world: World, wheel: Path, host: str) -> None:
    outputs = run_notebook(world, host, wheel)
    said = {name: shown(output) for name, output in outputs.items()}
    assert not [
        name for name, output in outputs.items() if output and output[-1]["output_type"] == "error"
    ], said
    assert "into the kernel" in shown(outputs["plan"], "text/html")
    assert "in the kernel is proven" in shown(outputs["apply"], "text/html")
    assert "10 rows (completion)" in said["train"]
    assert "done, 10 steps" in said["train"]
    adapter = world.folder / f"{host}-files" / "outputs" / "Qwen2.5-0.5B-data" / "adapter"
    assert (adapter / "adapter_config.json").is_file()
    assert len(said["use"].strip()) > 0


WHERE = """\
import importlib.metadata

found = importlib.metadata.distribution("colablock")
print(found.read_text("direct_url.json"))
import colablock

colablock.show("qlora-2026")["name"]"""


@pytest.mark.parametrize("host", HOSTS)
def test_the_install_cell_finds_a_clone(world: World, tmp_path: Path, host: str) -> None:
    """The clone is built without a network, by the backend in the environment that runs the tests."""
    venv = notebook_venv(tmp_path / "venv", None)
    there = tmp_path / "files"
    there.mkdir()
    clone = there / "colablock"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "tests", "benchmarks", "docs", "dist"))
    variables = {**OFFLINE, "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1"}
    here = World(folder=world.folder, server=world.server, extra=variables)
    install, where = run_cells(here, venv, there, cells_of(host)["install"], WHERE)
    assert not any(output["output_type"] == "error" for output in (*install, *where)), shown(install)
    assert clone.as_uri() in shown(where)
    assert "qlora-2026" in shown(where)


@pytest.mark.parametrize("host", HOSTS)
def test_the_install_cell_stops_where_pip_has_failed(tmp_path: Path, host: str) -> None:
    """Else the folder of the clone is imported, and a kernel keeps that until it restarts."""
    cell = cells_of(host)["install"]
    (tmp_path / "colablock" / "matrices").mkdir(parents=True)
    (tmp_path / "colablock" / "matrices" / "qlora-2026.toml").touch()
    code = "".join(line for line in cell.splitlines(keepends=True) if not line.startswith("%pip "))
    without_site = [sys.executable, "-S", "-c", code]
    done = subprocess.run(without_site, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    last = "importlib.metadata.PackageNotFoundError: No package metadata was found for colablock"
    assert done.stderr.splitlines()[-1] == last


# What lies beside the notebook: a wheel with these requirements, or a clone that cannot be built.
BESIDE: dict[str, tuple[str, ...] | None] = {
    "another wheel of the same version": (),
    "a wheel that pip refuses": ("no-such-project",),
    "a clone that pip refuses": None,
}


@pytest.mark.parametrize("case", BESIDE)
def test_the_install_cell_notices_an_earlier_colablock(world: World, tmp_path: Path, case: str) -> None:
    requires = BESIDE[case]
    earlier = make_wheel(tmp_path / "earlier", "colablock", "1.0", modules={"stub.py": "earlier"})
    there = tmp_path / "files"
    if requires is None:
        (there / "colablock" / "matrices").mkdir(parents=True)
        (there / "colablock" / "matrices" / "qlora-2026.toml").touch()
    else:
        make_wheel(there, "colablock", "1.0", requires=requires, modules={"stub.py": "new"})
    here = World(folder=world.folder, server=world.server, extra=OFFLINE)
    install = cells_of("jupyter")["install"]
    before = f"%pip install -q --ignore-installed {earlier}"
    cells = (before, install, "%pip uninstall -q -y colablock", install)
    _, found, _, again = run_cells(here, notebook_venv(tmp_path / "venv", None), there, *cells)
    assert found[-1]["ename"] == "RuntimeError", shown(found)
    assert found[-1]["evalue"].endswith(": an earlier colablock is still here")
    assert "run `%pip uninstall -y colablock`, then this cell again" in shown(found)
    if requires == ():
        assert shown(again).endswith("'1.0'")


@pytest.mark.parametrize("host", HOSTS)
def test_badges_wait_for_the_address_of_the_repository(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    make_notebooks = importlib.import_module("make_notebooks")
    cells = json.loads(make_notebooks.notebook(host))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    if not make_notebooks.repository():
        assert "badge" not in "".join(texts)
    monkeypatch.setattr(make_notebooks, "repository", lambda: "somebody/colablock")
    cells = json.loads(make_notebooks.notebook(host))["cells"]
    assert texts[1:] == ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"][1:]
    opens = f"somebody/colablock/blob/main/docs/notebooks/{host}.ipynb)"
    assert (opens in "".join(cells[0]["source"])) == (host != "jupyter")


@pytest.mark.parametrize("host", HOSTS)
def test_a_notebook_has_no_outputs_and_is_valid(host: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{host}.ipynb", 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert [name for name, text in cells_of(host).items() if "colablock-*.whl" in text] == ["install"]
