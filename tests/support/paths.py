"""Where the files of the repository are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CASES", "DATA", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
CASES = ROOT / "tests" / "cases"
