"""Which files a lock lists: those of its target, or those of every platform."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.index.candidates import File
from colablock.index.evaluator import Policy, judge_files
from colablock.lockfile.package_files import with_all_files
from colablock.lockfile.pylock import make_lock, write_lock
from colablock.lockfile.tool_table import lists_target_files
from colablock.matrix.model import Matrix
from colablock.resolver.model import Pin, Request, Resolution
from tests.support.dict_source import PYTHON_312

NAME = canonicalize_name("native")
INDEX = "https://index.example/simple/"
OLD, NEW = datetime(2024, 5, 1, tzinfo=timezone.utc), datetime(2024, 7, 1, tzinfo=timezone.utc)
CUTOFF = datetime(2024, 6, 1, tzinfo=timezone.utc)
MATRIX = Matrix(name="m", source="m.toml", digest="0" * 64)
FREE_THREADED = environment_for("3.13t", "manylinux_2_35_x86_64")
MUSL = environment_for("3.12.11", "musllinux_1_2_x86_64")

LISTED = [
    "native-1.0-cp311-cp311-manylinux_2_17_x86_64.whl",
    "native-1.0-cp312-cp312-macosx_11_0_arm64.whl",
    "native-1.0-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "native-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    "native-1.0-cp312-cp312-manylinux_2_39_x86_64.whl",
    "native-1.0-cp312-cp312-manylinux_2_17_aarch64.whl",
    "native-1.0-cp312-cp312-musllinux_1_1_x86_64.whl",
    "native-1.0-cp312-cp312-win_amd64.whl",
    "native-1.0-cp313-cp313t-manylinux_2_28_x86_64.whl",
    "native-1.0-cp39-abi3-manylinux1_x86_64.whl",
    "native-1.0-py3-none-any.whl",
    "native-1.0.tar.gz",
]


def file(name: str, uploaded: datetime | None = OLD, version: str = "1.0") -> File:
    filename = name.replace("1.0", version)
    return File(
        filename=filename,
        url=f"https://files.example/{filename}",
        hashes={"sha256": hashlib.sha256(filename.encode()).hexdigest()},
        upload_time=uploaded,
        index=INDEX,
    )


def resolved(
    files: Sequence[File],
    *,
    environment: Environment = PYTHON_312,
    build: bool = False,
    binary: bool = True,
    exclude_newer: datetime | None = None,
) -> Resolution:
    """Return the resolution that pins the one version of *files*."""
    policy = Policy(
        environment=environment,
        exclude_newer=exclude_newer,
        allow_build=frozenset({NAME} if build else ()),
        no_binary=frozenset(() if binary else {NAME}),
    )
    (candidate,) = judge_files(NAME, files, policy).candidates
    pin = Pin(name=NAME, candidate=candidate)
    return Resolution(request=Request(environment=environment, roots=()), pins={NAME: pin}, released={})


def listed(lock: Pylock) -> list[str]:
    (package,) = lock.packages
    wheels = [wheel.filename for wheel in package.wheels or ()]
    return [*wheels, *([package.sdist.filename] if package.sdist else [])]


@pytest.mark.parametrize(
    ("environment", "fitting"),
    [
        (PYTHON_312, [2, 3, 9, 10]),
        (environment_for("3.12", "manylinux_2_17_x86_64"), [2, 9, 10]),
        (environment_for("3.11", "manylinux_2_35_x86_64"), [0, 9, 10]),
        (environment_for("3.12", "manylinux_2_35_aarch64"), [5, 10]),
        (environment_for("3.12", "macosx_14_0_arm64"), [1, 10]),
        (environment_for("3.12", "win_amd64"), [7, 10]),
        (MUSL, [6, 10]),
        (FREE_THREADED, [8, 10]),
    ],
)
def test_a_lock_lists_the_wheels_that_fit_its_target(environment: Environment, fitting: list[int]) -> None:
    lock = make_lock(resolved(list(map(file, LISTED)), environment=environment), MATRIX)
    assert listed(lock) == sorted(LISTED[place] for place in fitting)
    assert lists_target_files(lock)


def test_a_lock_with_all_files_says_so() -> None:
    lock = make_lock(resolved(list(map(file, LISTED))), MATRIX, all_files=True)
    assert listed(lock) == [*sorted(LISTED[:-1]), LISTED[-1]]
    assert (lock.tool or {})["colablock"]["files"] == "all"
    assert not lists_target_files(lock)


@pytest.mark.parametrize(
    ("names", "build", "binary", "expected"),
    [
        (["native-1.0-py3-none-any.whl", "native-1.0.tar.gz"], True, True, ["native-1.0-py3-none-any.whl"]),
        (["native-1.0-cp312-cp312-win_amd64.whl", "native-1.0.tar.gz"], True, True, ["native-1.0.tar.gz"]),
        (["native-1.0-py3-none-any.whl", "native-1.0.tar.gz"], True, False, ["native-1.0.tar.gz"]),
        (["native-1.0.zip", "native-1.0.tar.gz"], True, True, ["native-1.0.tar.gz"]),
    ],
    ids=["a wheel fits", "no wheel fits", "no-binary", "two sdists"],
)
def test_an_sdist_is_listed_only_if_it_is_built(
    names: list[str],
    build: bool,
    binary: bool,
    expected: list[str],
) -> None:
    assert listed(make_lock(resolved(list(map(file, names)), build=build, binary=binary), MATRIX)) == expected


def test_the_files_of_other_platforms_do_not_change_a_lock() -> None:
    """This includes a wheel that is uploaded later for another platform."""
    later = file("native-1.0-cp314-cp314-macosx_11_0_arm64.whl", NEW)
    files = list(map(file, LISTED))
    locks = [make_lock(resolved(found), MATRIX) for found in (files, [*files, later], files[::-1])]
    assert len({write_lock(lock) for lock in locks}) == 1


# -- completed for an export


@pytest.mark.parametrize("build", [False, True])
def test_a_completed_lock_equals_a_lock_with_all_files(*, build: bool) -> None:
    files = [*map(file, LISTED), file("native-1.0.zip")]
    others = [file(name, version="1.1") for name in LISTED]
    resolution = resolved(files, build=build, binary=not build)
    completed = with_all_files(make_lock(resolution, MATRIX), {NAME: [*others, *files]})
    assert completed.packages == make_lock(resolution, MATRIX, all_files=True).packages


def test_no_wheel_of_a_project_that_must_be_built_is_listed() -> None:
    files = list(map(file, LISTED))
    resolution = resolved(files, build=True, binary=False)
    for lock in (
        make_lock(resolution, MATRIX),
        make_lock(resolution, MATRIX, all_files=True),
        with_all_files(make_lock(resolution, MATRIX), {NAME: files}),
    ):
        assert listed(lock) == [LISTED[-1]]
    # No wheel of the target, so those of other platforms are listed.
    resolution = resolved([file(LISTED[1]), file(LISTED[-1])], build=True)
    assert listed(make_lock(resolution, MATRIX, all_files=True)) == [LISTED[1], LISTED[-1]]


def test_the_cutoff_of_the_lock_applies_to_the_files_of_other_platforms() -> None:
    files = [file(LISTED[2]), file(LISTED[7], NEW), file(LISTED[1], None), file(LISTED[0])]
    matrix = replace(MATRIX, exclude_newer=CUTOFF)
    resolution = resolved(files, exclude_newer=CUTOFF)
    completed = with_all_files(make_lock(resolution, matrix), {NAME: files})
    assert listed(completed) == [LISTED[0], LISTED[2]]
    assert completed.packages == make_lock(resolution, matrix, all_files=True).packages


@pytest.mark.parametrize("uploaded", [None, NEW], ids=["no time", "later"])
def test_the_cutoff_does_not_apply_to_an_index_that_is_exempt(uploaded: datetime | None) -> None:
    files = [file(LISTED[2], uploaded), file(LISTED[7], uploaded)]
    lock = make_lock(resolved(files), replace(MATRIX, exclude_newer=CUTOFF))
    assert listed(with_all_files(lock, {NAME: files})) == [LISTED[2], LISTED[7]]


def test_the_files_of_the_lock_stay_as_they_are() -> None:
    lock = make_lock(resolved([file(LISTED[2]), file(LISTED[3])]), MATRIX)
    other = file(LISTED[2]).replaced(hashes={"sha256": "f" * 64})
    hashless = file(LISTED[7]).replaced(hashes={"md5": "0" * 32})
    completed = with_all_files(lock, {NAME: [other, hashless, file(LISTED[0])]})
    assert listed(completed) == [LISTED[0], LISTED[2], LISTED[3]]
    assert (completed.packages[0].wheels or ())[1:] == lock.packages[0].wheels


def test_a_package_that_the_index_no_longer_lists_stays_as_it_is() -> None:
    lock = make_lock(resolved([file(LISTED[2])]), MATRIX)
    assert with_all_files(lock, {}) == lock
    assert with_all_files(lock, {NAME: [file(LISTED[2], version="2.0")]}) == lock


def test_a_package_without_files_of_an_index_stays_as_it_is() -> None:
    lock = make_lock(resolved([file(LISTED[2])]), MATRIX)
    (package,) = lock.packages
    direct = replace(lock, packages=[replace(package, wheels=None, version=Version("1.0"))])
    assert with_all_files(direct, {NAME: [file(LISTED[0])]}) == direct
