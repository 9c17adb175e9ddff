"""The notebooks of docs/notebooks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

__all__ = ["FOLDER", "build_wheel", "cells_of"]

FOLDER = ROOT / "docs" / "notebooks"


def cells_of(host: str) -> dict[str, str]:
    """Return the source of each code cell by its id."""
    cells = json.loads((FOLDER / f"{host}.ipynb").read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}


def build_wheel(out: Path) -> Path:
    """Build the wheel of colablock into *out*, and return it."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found
