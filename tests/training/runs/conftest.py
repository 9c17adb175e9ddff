"""Fixtures for tests of mirrored checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from colablock.training.runs.folder import RunFolder
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import make_run, process_facts


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Return the folder of a run with one checkpoint, at step 20."""
    made = make_run(tmp_path / "run", id="run-1", **process_facts())
    made.metrics_file.write_text('{"event": "start"}\n')
    make_checkpoint(made.path, 20)
    return made


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Return an empty folder to mirror to."""
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"
