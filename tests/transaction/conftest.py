"""Fixtures of the tests that change an environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_ground import SmallGround


@pytest.fixture
def place(tmp_path: Path) -> SmallGround:
    """Give a small environment, and a change of it."""
    return SmallGround(tmp_path)
