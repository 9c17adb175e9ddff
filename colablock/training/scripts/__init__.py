"""Scripts that run in the target environment.  They import nothing from colablock.

In: a JSON file or arguments.  Out: files in the run folder, or JSON lines on standard output.
"""

from pathlib import Path

__all__ = ["FOLDER"]

FOLDER = Path(__file__).parent
