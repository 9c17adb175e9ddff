"""Fixtures whose content differs between modules.  A module assigns the result to the fixture's name.

::

    world = world_fixture(fill, scope="module")
    venv = venv_fixture(Stub(name="colours", version="1.0"))

Fixtures that are the same everywhere are in ``tests/conftest.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.runtime import Stub, Venv
from tests.support.server import IndexServer, Source
from tests.support.wheels import make_wheel
from tests.support.world import World, open_world

__all__ = ["PAINTING", "Fill", "index_fixture", "painting", "server_fixture", "venv_fixture", "world_fixture"]

Fill = Callable[[Path], object]

PAINTING = """\
schema = 1
name = "painting"
[packages]
colours = "==2.0"
[verify]
imports = ["colours"]
"""


def painting(folder: Path) -> None:
    """Write the matrix ``painting.toml`` and a wheel of the one project that it asks for."""
    make_wheel(folder / "index", "colours", "2.0")
    (folder / "painting.toml").write_text(PAINTING)


def index_fixture(fill: Fill | None = None) -> Any:
    """Return a fixture: the folder of wheels that the fixture `server` serves, filled by *fill*."""

    @pytest.fixture
    def index(tmp_path: Path) -> Path:
        folder = tmp_path / "index"
        folder.mkdir()
        if fill is not None:
            fill(folder)
        return folder

    return index


def server_fixture(**switches: Any) -> Any:
    """Return a fixture: an `IndexServer` with *switches* over the folder of the fixture `index`."""

    @pytest.fixture
    def server(index: Path) -> Iterator[IndexServer]:
        with IndexServer(index, **switches) as running:
            yield running

    return server


def venv_fixture(*stubs: Stub) -> Any:
    """Return a fixture: a virtual environment with *stubs* installed, made for each test."""

    @pytest.fixture
    def venv(tmp_path: Path) -> Venv:
        return Venv.make(tmp_path / "venv", *stubs)

    return venv


def world_fixture(
    fill: Fill | None = None,
    *,
    scope: Literal["function", "module"] = "function",
    source: Callable[[], Source] | None = None,
) -> Any:
    """Return a fixture: a world in which *fill* has written files and, below ``index``, wheels.

    It is made for each test or once for a module.  *source* takes the place of the folder ``index``.
    """

    @pytest.fixture(scope=scope)
    def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
        folder = tmp_path_factory.mktemp("world")
        if fill is not None:
            fill(folder)
        with open_world(folder, folder / "index" if source is None else source()) as found:
            yield found

    return world
