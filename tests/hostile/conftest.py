"""Fixtures of the hostile tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hostile import Target, make_target


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Give an installed environment, an empty home and a folder of wheels."""
    return make_target(tmp_path)
