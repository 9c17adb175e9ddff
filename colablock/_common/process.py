"""Child processes: the environment variables they get, and running uv."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import uv

from colablock.errors import Unmet

__all__ = ["OPT_OUTS", "clean_environment", "environment_of", "last_lines", "run_uv"]

# What would steer uv, pip or an interpreter away from what we ask of it.  Notebooks preset some:
# ipykernel a MPLBACKEND that its own kernel alone has, hosted runtimes UV_SYSTEM_PYTHON and UV_CONSTRAINT.
_DROPPED_PREFIXES = ("UV_", "PIP_", "CONDA_")
_DROPPED = frozenset(
    {
        "MPLBACKEND",
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
        "PYTHONINSPECT",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "VIRTUAL_ENV_PROMPT",
        "_CONDA_EXE",
        "__PYVENV_LAUNCHER__",
    }
)
# Where uv keeps and finds things is the user's to say; it changes no answer.
_KEPT = frozenset(
    {"UV_CACHE_DIR", "UV_PYTHON_DOWNLOADS_JSON_URL", "UV_PYTHON_INSTALL_DIR", "UV_PYTHON_INSTALL_MIRROR"}
)

OPT_OUTS: Mapping[str, str] = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""What proofs and training set so that no library reports home."""


def clean_environment(environ: Mapping[str, str], **extra: str) -> dict[str, str]:
    """Return *environ* without what steers uv, pip or an interpreter, and with *extra*."""
    kept = {name: value for name, value in environ.items() if not _is_dropped(name)}
    return kept | extra


def environment_of(python: str | Path, environ: Mapping[str, str], **extra: str) -> dict[str, str]:
    """Return the cleaned variables for a child of *python*'s environment, its commands first on PATH."""
    folder = Path(python).absolute().parent
    path = os.pathsep.join([str(folder), *filter(None, [environ.get("PATH")])])
    cleaned = clean_environment(environ, PATH=path)
    if (folder.parent / "pyvenv.cfg").is_file():
        cleaned["VIRTUAL_ENV"] = str(folder.parent)
    return cleaned | extra


def run_uv(
    args: Sequence[str],
    *,
    environ: Mapping[str, str],
    doing: str = "do its part",
    timeout: float | None = None,
    downloads: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run uv without configuration files, and without fetching interpreters unless *downloads* is true.

    Raises Unmet with the last lines that uv said; *doing* completes "uv could not ...".
    """
    fetching = () if downloads else ("--no-python-downloads",)
    command = [_find_uv(environ), "--no-config", "--color=never", "--no-progress", *fetching, *args]
    try:
        done = subprocess.run(
            command,
            env=clean_environment(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unmet(f"uv could not {doing} within {timeout:g} seconds") from error
    except OSError as error:
        raise Unmet(f"uv could not {doing}: {error}") from error
    if done.returncode != 0:
        raise Unmet(f"uv could not {doing}\n{last_lines(done.stderr, indent='  ')}")
    return done


def last_lines(text: str, count: int = 12, *, indent: str = "") -> str:
    """Return the last *count* lines of *text* that are not blank."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(indent + line for line in lines[-count:])


def _is_dropped(name: str) -> bool:
    if name in _KEPT:
        return False
    return name in _DROPPED or name.upper().startswith(_DROPPED_PREFIXES)


def _find_uv(environ: Mapping[str, str]) -> str:
    try:
        return os.fsdecode(uv.find_uv_bin())
    except FileNotFoundError as error:
        found = shutil.which("uv", path=environ.get("PATH"))
        if found is None:
            raise Unmet("uv is not to be found", hint="Install it with `pip install uv`") from error
        return found
