"""How the caller has called colablock, so that messages name a command that can be typed again."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from colablock._common.text import PROGRAM

__all__ = ["called_as"]


def called_as(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the words that call colablock again, from the command line *argv* of this process.

    They are ``colablock`` where the search path leads to this installation, else the path of the
    command as it was typed, or ``PYTHON -m colablock``.
    """
    script, folder = Path(argv[0] if argv else ""), Path(sys.executable).parent
    found = shutil.which(PROGRAM, path=environ.get("PATH"))
    if found is not None and _is_same(Path(found), script, folder):
        return PROGRAM
    if script.stem == PROGRAM and script.is_file():
        return _typed(script)
    if script.name == "__main__.py" and script.parent.name == PROGRAM:
        return f"{_typed(Path(sys.orig_argv[0]))} -m {PROGRAM}"
    return PROGRAM


def _is_same(found: Path, script: Path, folder: Path) -> bool:
    """Whether the command *found* is *script*, or belongs to the interpreter in *folder*."""
    return found.parent == folder or (script.exists() and found.samefile(script))


def _typed(path: Path) -> str:
    """Return *path* for a shell, relative where it is below the current folder."""
    try:
        near = path.absolute().relative_to(Path.cwd())
    except (OSError, ValueError):
        return shlex.quote(str(path))
    return shlex.quote(str(near if len(near.parts) > 1 else Path(".", near)))
