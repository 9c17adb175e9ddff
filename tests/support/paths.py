"""Where the files of the repository are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CASES", "DATA", "ROOT", "SHIPPED"]

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
CASES = ROOT / "tests" / "cases"

#: The names of the matrices that are shipped.
SHIPPED = {
    "qlora-2024",
    "qlora-2025",
    "qlora-2025-kernel",
    "qlora-2026",
    "qlora-2026-12",
    "qlora-2026-12-axolotl",
    "qlora-2026-axolotl",
    "qlora-2026-unsloth",
}
