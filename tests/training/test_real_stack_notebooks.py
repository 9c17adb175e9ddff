"""The notebook for Jupyter, run from top to bottom in a real stack: `nox -s training` applies one."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from colablock.matrix.catalog import find_matrix
from colablock.planning.options import ApplyOptions
from colablock.transaction.apply_record import load, save
from colablock.transaction.up_to_date import request_key
from tests.support.notebooks import build_wheel, cells_of
from tests.support.recorded_index import RecordedIndex
from tests.support.runtime import Venv
from tests.support.stack import NAME, NEEDS_STACK, Stack
from tests.support.world import notebook_venv, open_world, run_cells, shown

pytestmark = NEEDS_STACK


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"))


def apply_by_default(stack: Stack, venv: Venv, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record at the home in *folder* that the apply of the notebook made the stack, in a kernel of *venv*."""
    record = load(NAME, stack.home)
    assert record is not None
    monkeypatch.setattr(sys, "prefix", str(venv.folder))
    key = request_key(ApplyOptions(name=NAME), find_matrix(NAME))
    monkeypatch.undo()
    save(replace(record, key=key), folder / "home")


def test_the_notebook_trains_a_real_model(
    stack: Stack, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is of a recorded index; the stack was applied before; the model is a folder of its name."""
    venv = notebook_venv(tmp_path / "venv", None)
    folder = tmp_path / "files"
    shutil.copytree(stack.model, folder / "Qwen" / "Qwen2.5-0.5B")
    shutil.copy(wheel, folder)
    apply_by_default(stack, venv, folder, monkeypatch)
    with open_world(tmp_path, RecordedIndex(NAME), PIP_NO_INDEX="1", HF_HUB_OFFLINE="1") as world:
        cells = cells_of("jupyter")
        outputs = dict(zip(cells, run_cells(world, venv, folder, *cells.values(), timeout=600), strict=True))
    said = {name: shown(output) for name, output in outputs.items()}
    assert "in its isolated environment" in said["apply"], said
    assert "done, 10 steps" in said["train"], said
    adapter = folder / "outputs" / "Qwen2.5-0.5B-data" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert said["use"].strip(), said
