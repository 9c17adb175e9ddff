"""Candidates from a lock with the files of its target: where it fits, and why it does not fit elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.errors import NoSolution
from colablock.index.candidates import Reason
from colablock.lockfile.lock_source import LockSource

NAME = canonicalize_name("native")
LINUX = 'sys_platform == "linux" and platform_machine == "x86_64" and implementation_name == "cpython"'
GLIBC = "native-1.0-cp313-cp313-manylinux_2_34_x86_64.whl"


def lock_of(names: Sequence[str], *, platform: str = "manylinux_2_35_x86_64", **table: Any) -> Pylock:
    """Return a lock of one package; with *table* one that lists more than the files of its target."""
    wheels = [
        {"url": f"https://files.example/{name}", "hashes": {"sha256": "a" * 64}}
        for name in names
        if name.endswith(".whl")
    ]
    sdists = [
        {"url": f"https://files.example/{name}", "hashes": {"sha256": "b" * 64}}
        for name in names
        if not name.endswith(".whl")
    ]
    package = {"name": NAME, "version": "1.0", "wheels": wheels, **({"sdist": sdists[0]} if sdists else {})}
    about = {"python": "3.13.0", "platform": platform, "kind": "complete", **table}
    return Pylock.from_dict(
        {
            "lock-version": "1.0",
            "created-by": "colablock",
            "environments": [LINUX],
            "requires-python": "==3.13.*",
            "packages": [package],
            "tool": {"colablock": about},
        }
    )


def source_of(lock: Pylock, environment: Environment, **options: Any) -> LockSource:
    return LockSource(lock, Path(), environment, name="the lock `pylock.toml`", **options)


@pytest.mark.parametrize(
    "platform", ["manylinux_2_35_x86_64", "manylinux_2_39_x86_64", "manylinux_2_34_x86_64"]
)
def test_a_lock_fits_every_glibc_that_its_files_fit(platform: str) -> None:
    source = source_of(lock_of([GLIBC]), environment_for("3.13", platform))
    (candidate,) = source.judge(NAME).candidates
    assert candidate.files[0].filename == GLIBC


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("musllinux_1_2_x86_64", "manylinux_2_35_x86_64, and this is musllinux_1_2_x86_64"),
        (
            "manylinux_2_35_aarch64",
            'platform_machine == "x86_64".*and this is Python 3.13.0 on linux aarch64',
        ),
        ("macosx_14_0_arm64", 'sys_platform == "linux".*and this is Python 3.13.0 on darwin arm64'),
        ("win_amd64", 'sys_platform == "linux".*and this is Python 3.13.0 on win32 AMD64'),
    ],
)
def test_a_lock_for_another_platform_is_refused(platform: str, words: str) -> None:
    with pytest.raises(NoSolution, match=f"^the lock `pylock.toml` is for .*{words}"):
        source_of(lock_of([GLIBC]), environment_for("3.13", platform))


def test_a_lock_with_all_files_fits_another_libc() -> None:
    musl = "native-1.0-cp313-cp313-musllinux_1_2_x86_64.whl"
    source = source_of(lock_of([GLIBC, musl], files="all"), environment_for("3.13", "musllinux_1_2_x86_64"))
    assert source.judge(NAME).candidates[0].files[0].filename == musl


@pytest.mark.parametrize(
    ("python", "platform", "words"),
    [
        ("3.13", "manylinux_2_31_x86_64", "(manylinux_2_31_x86_64): manylinux_2_34_x86_64 only"),
        ("3.13t", "manylinux_2_35_x86_64", "Python 3.13 with ABI cp313t: cp313-cp313 only"),
    ],
)
def test_a_package_without_a_file_for_this_machine_says_what_the_lock_has(
    python: str, platform: str, words: str
) -> None:
    target = "; the lock has the files for Python 3.13.0 on manylinux_2_35_x86_64 only"
    environment = environment_for(python, platform)
    (rejection,) = source_of(lock_of([GLIBC]), environment).judge(NAME).rejections
    assert rejection.reason is Reason.TAGS
    assert words + target in rejection.detail
    (rejection,) = source_of(lock_of([GLIBC], files="all"), environment).judge(NAME).rejections
    assert rejection.detail.endswith(words)


def test_no_wheel_is_taken_where_the_matrix_forbids_it() -> None:
    lock = lock_of([GLIBC, "native-1.0.tar.gz"], files="all")
    environment = environment_for("3.13", "manylinux_2_35_x86_64")
    options = {"allow_build": frozenset({NAME}), "no_binary": frozenset({NAME})}
    (candidate,) = source_of(lock, environment, **options).judge(NAME).candidates
    assert [file.filename for file in candidate.files] == ["native-1.0.tar.gz"]
    (rejection,) = source_of(lock_of([GLIBC]), environment, **options).judge(NAME).rejections
    assert rejection.reason is Reason.NO_BINARY


def test_a_wheel_of_our_own_is_taken_where_the_matrix_forbids_those_of_the_index(tmp_path: Path) -> None:
    lock = lock_of([GLIBC])
    built = {"made-from": {"url": "https://files.example/native-1.0.tar.gz"}}
    text = lock.to_dict()
    text["packages"][0]["tool"] = {"colablock": built}
    text["packages"][0]["wheels"] = [{"path": GLIBC, "hashes": {"sha256": "a" * 64}}]
    (tmp_path / GLIBC).touch()
    environment = environment_for("3.13", "manylinux_2_35_x86_64")
    source = LockSource(Pylock.from_dict(text), tmp_path, environment, no_binary=frozenset({":all:"}))
    assert source.judge(NAME).candidates[0].files[0].url == (tmp_path / GLIBC).as_uri()
