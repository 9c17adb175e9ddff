"""Small locks: an index of a few wheels, what is solved from it, and the lock of that."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uv

from colablock._common.child_environment import Purpose, child_environment
from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.requirements import Requirement
from colablock.environment.markers_and_tags import Environment
from colablock.index.finder import IndexSource
from colablock.index.prefetch import ReadOnce
from colablock.lockfile.pylock import make_lock, write_lock
from colablock.matrix.model import Matrix, entry_of
from colablock.network.fetcher import Fetcher
from colablock.resolver.model import Request, Resolution
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312
from tests.support.server import IndexServer
from tests.support.wheels import make_sdist, make_wheel

__all__ = ["fill_index", "lock_of", "run_uv", "solved", "written_to"]


def fill_index(folder: Path) -> None:
    """Write a few wheels, one of them for two Python versions only, and an sdist."""
    make_wheel(folder, "stack", "1.0", requires=["base>=1", "extra[fast]; python_version >= '3.10'"])
    make_wheel(folder, "base", "1.5", requires_python=">=3.9")
    make_sdist(folder, "base", "1.5", requires_python=">=3.9")
    for python in ("cp310-cp310", "cp312-cp312"):
        make_wheel(folder, "native", "2.0", tag=f"{python}-manylinux_2_17_x86_64")
    make_wheel(folder, "extra", "3.0", extras=["fast"], requires=["native; extra == 'fast'"])


def solved(
    server: IndexServer,
    *roots: str,
    environment: Environment = PYTHON_312,
    find_links: Sequence[str] = (),
    url: str | None = None,
    **facts: Any,
) -> tuple[Resolution, Matrix]:
    """Return the resolution of *roots* from the index of *server*, and the matrix that asks for them."""
    packages = tuple(entry_of(Requirement(root), path="requirements") for root in roots)
    matrix = Matrix(name="demo", source="demo.toml", digest="d" * 64, packages=packages, **facts)
    reads = ReadOnce()
    source = IndexSource.for_matrix(
        matrix,
        environment=environment,
        reads=reads,
        fetcher=Fetcher(os.environ),
        default_index=url or server.url,
        find_links=find_links,
    )
    try:
        return resolve(Request(environment=environment, roots=packages), source), matrix
    finally:
        reads.close()


def lock_of(server: IndexServer, *roots: str, **facts: Any) -> Pylock:
    """Return the lock of the resolution of *roots*."""
    return make_lock(*solved(server, *roots, **facts))


def written_to(lock: Pylock, folder: Path) -> Path:
    """Write *lock* as ``pylock.toml`` into *folder*, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pylock.toml"
    path.write_bytes(write_lock(lock))
    return path


def run_uv(arguments: Sequence[str], *, input_: str | None = None) -> str:
    """Run uv without configuration, and return its output.  Fails if uv does."""
    command = [uv.find_uv_bin(), *arguments, "--no-config", "--no-python-downloads"]
    done = subprocess.run(
        command,
        input=input_,
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(Purpose.DOWNLOAD, os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
