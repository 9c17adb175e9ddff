"""The locks of the shipped matrices name files of their own indexes only."""

from __future__ import annotations

from pathlib import Path

import pytest

from colablock._common.urls import Mirrors, Url
from colablock.environment.accelerator import Accelerator
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import InvalidInput
from colablock.lockfile.origins import LockOrigins
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import read_head
from colablock.matrix.catalog import find_matrix
from colablock.matrix.model import select_variant
from colablock.matrix.package_sources import PackageSources
from colablock.network.settings import DEFAULT_INDEX, Settings
from tests.support.paths import ROOT

SHIPPED = sorted((ROOT / "matrices").glob("pylock.*.toml"))


def check(path: Path, index: str) -> None:
    """Check the lock at *path* with the default index *index*."""
    head = read_head(path)
    assert head is not None
    matrix = select_variant(find_matrix(head.matrix, environ={}, cwd=ROOT), Accelerator(), head.variant)
    sources = PackageSources.of(matrix, environment_for(head.python, head.platform))
    origins = LockOrigins(sources=sources, settings=Settings(default_index=Url(index)), mirrors=Mirrors())
    origins.check(read_lock(path), path.parent, path.name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_lock_passes_with_its_own_index_only(path: Path) -> None:
    check(path, DEFAULT_INDEX)
    with pytest.raises(InvalidInput, match=r"^pylock\..* names files that do not belong to the sources"):
        check(path, "https://pypi.example/simple/")
