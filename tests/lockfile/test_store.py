"""The lock files beside a matrix: which complete lock fits an environment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.lockfile.pylock import make_lock, write_lock
from colablock.lockfile.store import LockStore, read_head
from colablock.lockfile.targets import environment_target, lock_file_name
from colablock.matrix.model import Matrix
from colablock.resolver.model import Request, Resolution

MATRIX = Matrix(name="demo", source="demo.toml", digest="d" * 64)
X86, ARM, MUSL, OLDER, NEWER = (
    environment_for("3.12", platform)
    for platform in (
        "manylinux_2_35_x86_64",
        "manylinux_2_35_aarch64",
        "musllinux_1_2_x86_64",
        "manylinux_2_28_x86_64",
        "manylinux_2_39_x86_64",
    )
)


@dataclass
class Notes(Reporter):
    """Keeps the notes."""

    texts: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.texts.append(text)


def lock_for(folder: Path, environment: Environment, *, all_files: bool = False) -> Path:
    """Write an empty complete lock for *environment*, and return its path."""
    resolution = Resolution(request=Request(environment=environment, roots=()), pins={}, released={})
    path = folder / lock_file_name(MATRIX.name, environment_target(environment))
    path.write_bytes(write_lock(make_lock(resolution, MATRIX, all_files=all_files)))
    return path


def test_each_platform_gets_its_own_lock(tmp_path: Path) -> None:
    paths = {environment.platform: lock_for(tmp_path, environment) for environment in (X86, ARM, MUSL)}
    notes = Notes()
    store = LockStore(paths=sorted(paths.values()), matrix=MATRIX, reporter=notes)
    for environment in (X86, ARM, MUSL):
        head = store.for_environment(environment)
        assert head is not None
        assert head.path == paths[environment.platform]
    assert notes.texts == []


@pytest.mark.parametrize("environment", [OLDER, NEWER], ids=["older", "newer"])
def test_a_lock_is_used_with_another_glibc(environment: Environment, tmp_path: Path) -> None:
    """Whether its files fit is decided file by file."""
    store = LockStore(paths=[lock_for(tmp_path, X86)], matrix=MATRIX)
    assert store.for_environment(environment) is not None


@pytest.mark.parametrize("environment", [ARM, MUSL], ids=["machine", "C library"])
def test_the_reason_is_noted_if_the_only_lock_is_for_another_platform(
    environment: Environment, tmp_path: Path
) -> None:
    path, notes = lock_for(tmp_path, X86), Notes()
    store = LockStore(paths=[path], matrix=MATRIX, reporter=notes)
    assert store.for_environment(environment) is None
    where = f"it is for manylinux_2_35_x86_64, and this is {environment.platform}"
    assert notes.texts == [f"not using the lock `{path.name}`: {where}"]


def test_a_lock_with_all_files_may_fit_another_platform(tmp_path: Path) -> None:
    store = LockStore(paths=[lock_for(tmp_path, X86, all_files=True)], matrix=MATRIX)
    head = store.for_environment(MUSL)
    assert head is not None
    assert head.all_files


def test_a_stale_lock_is_not_used(tmp_path: Path) -> None:
    notes = Notes()
    changed = replace(MATRIX, digest="e" * 64)
    store = LockStore(paths=[lock_for(tmp_path, X86)], matrix=changed, reporter=notes)
    assert store.for_environment(X86) is None
    assert "is stale: demo has changed since" in notes.texts[0]


@pytest.mark.parametrize("text", ["", "\n[tool.colablock]\n", "\n[tool.colablock]\nkind = \n", "\xff"])
def test_another_file_has_no_head(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pylock.toml"
    path.write_bytes(text.encode("latin-1"))
    assert read_head(path) is None
    assert read_head(tmp_path / "missing.toml") is None
