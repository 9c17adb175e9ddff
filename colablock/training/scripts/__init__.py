"""Scripts that run in the target environment.  Of colablock they import only modules of this package.

In: a JSON file or arguments.  Out: files in the run folder, or JSON lines on standard output.
"""

from pathlib import Path

__all__ = ["FOLDER"]

FOLDER = Path(__file__).parent
