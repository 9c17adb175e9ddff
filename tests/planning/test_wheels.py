"""From the files of a plan to wheels on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import canonicalize_name, parse_wheel_filename
from colablock.environment.markers_and_tags import Environment
from colablock.environment.snapshot import Snapshot, take_snapshot
from colablock.errors import BadDistribution, FetchFailed
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.pylock import make_lock, read_lock, write_lock
from colablock.matrix.model import Matrix, Options, PackageEntry
from colablock.network.fetcher import Fetcher
from colablock.planning.plan import Plan, Target
from colablock.planning.planner import make_plan
from colablock.resolver.model import Resolution
from colablock.unpacking.store import UnpackedStore
from tests.support.small_matrices import entry, matrix_of, prepared
from tests.support.wheels import make_sdist, make_wheel, tar_bytes

OWN = canonicalize_name("own")


@pytest.fixture(scope="module")
def here() -> Environment:
    return take_snapshot(environ=os.environ).environment


def plan_of(matrix: Matrix, resolution: Resolution, target: Target = Target.ENV) -> Plan:
    empty = Snapshot(environment=resolution.request.environment, python="", prefix="", site="", installed={})
    return make_plan(matrix=matrix, resolution=resolution, snapshot=empty, target=target)


def archive(folder: Path) -> Path:
    """Write a source archive whose modules lie where a plain build does not look."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "v1.0.tar.gz"
    files = {"setup.py": b"raise SystemExit('never run')", "src/own/__init__.py": b"answer = 42\n"}
    path.write_bytes(tar_bytes({f"own-1.0/{name}": data for name, data in files.items()}))
    return path


def rebuilt_entry(folder: Path) -> PackageEntry:
    url = archive(folder).as_uri()
    return entry("own", url=url, version="1.0", source_root="src", requires_dist=(Requirement("a"),))


def test_wheels_are_used_and_sdists_are_built(tmp_path: Path, here: Environment) -> None:
    links = tmp_path / "links"
    make_wheel(links, "a", "1.0")
    make_sdist(links, "b", "1.0")
    matrix = matrix_of(entry("a"), entry("b"), options=Options(allow_build=frozenset({"b"})))
    preparer, resolution = prepared(matrix, here, links=links)
    into = tmp_path / "files"
    into.mkdir()
    wheels = preparer.gather(plan_of(matrix, resolution), into, Reporter())
    assert {name: parse_wheel_filename(path.name)[0] for name, path in wheels.items()} == {"a": "a", "b": "b"}
    assert all(path.is_file() for path in wheels.values())


def test_replaced_requirements_give_a_rebuilt_wheel(tmp_path: Path, here: Environment) -> None:
    links = tmp_path / "links"
    make_wheel(links, "a", "1.0")
    matrix = matrix_of(rebuilt_entry(tmp_path / "archive"))
    preparer, resolution = prepared(matrix, here, links=links)
    into = tmp_path / "files"
    into.mkdir()
    wheels = preparer.gather(plan_of(matrix, resolution), into, Reporter())
    assert sorted(wheels) == ["a", "own"]
    assert parse_wheel_filename(wheels[OWN].name)[1] == resolution.pins[OWN].version
    assert "colablock" in str(resolution.pins[OWN].version.local)


def test_a_file_with_another_hash_is_refused(tmp_path: Path, here: Environment) -> None:
    links = tmp_path / "links"
    wheel = make_wheel(links, "a", "1.0")
    matrix = matrix_of(entry("a"))
    preparer, resolution = prepared(matrix, here, links=links)
    wheel.write_bytes(wheel.read_bytes() + b"more")
    (tmp_path / "files").mkdir()
    with pytest.raises((BadDistribution, FetchFailed), match=r"a-1\.0-py3-none-any\.whl"):
        preparer.gather(plan_of(matrix, resolution), tmp_path / "files", Reporter())


@pytest.mark.parametrize(
    ("is_cached", "target"),
    [(True, Target.KERNEL), (True, Target.ENV), (False, Target.KERNEL), (False, Target.ENV)],
    ids=["of the cache", "of the cache, into an environment", "of find-links", "of find-links, into one"],
)
def test_a_wheel_that_is_unpacked_already_is_hashed_only_if_others_may_write_it_and_it_is_read(
    tmp_path: Path, here: Environment, *, is_cached: bool, target: Target
) -> None:
    """Of find-links nothing is read without its hash.  A new environment needs no list of the files."""
    wheel = make_wheel(tmp_path / "links", "a", "1.0", modules={"a/__init__.py": "true = 1\n"})
    sha256, status = hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat()
    matrix = matrix_of(entry("a"))
    preparer, resolution = prepared(matrix, here, links=wheel.parent)
    fetcher = Fetcher(os.environ, offline=True, folders=[str(wheel.parent)])
    preparer, cache = replace(preparer, fetcher=fetcher), fetcher.cache
    if is_cached:
        kept = cache.keep_file(sha256, Path(shutil.copy(wheel, tmp_path / "fetched")))

    def gathered(into: Path) -> Path:
        into.mkdir(exist_ok=True)
        (path,) = preparer.gather(plan_of(matrix, resolution, target), into, Reporter()).values()
        return path

    def installed(path: Path) -> bytes:
        stored = UnpackedStore(cache, target=cache.folder, scratch=path.parent).get(path, sha256)
        return (stored.folder / "a" / "__init__.py").read_bytes()

    assert installed(gathered(tmp_path / "first")) == b"true = 1\n"
    wheel.write_bytes(bytes(len(wheel.read_bytes())))
    os.utime(wheel, ns=(status.st_atime_ns, status.st_mtime_ns))
    if not is_cached:
        if target is Target.ENV:
            assert installed(gathered(tmp_path / "second")) == b"true = 1\n"
            next(cache.folder.rglob("tree/a/__init__.py")).unlink()
            with pytest.raises(BadDistribution, match="has another SHA-256"):
                installed(gathered(tmp_path / "third"))
            return
        with pytest.raises(BadDistribution, match="sha256"):
            gathered(tmp_path / "second")
        return
    with scratch_elsewhere(tmp_path) as folder:  # temporary files are often on another disk than the cache
        again = gathered(folder)
        assert again.samefile(kept)
        next(cache.folder.rglob("tree/a/__init__.py")).unlink()
        assert installed(again) == b"true = 1\n"


@contextmanager
def scratch_elsewhere(near: Path) -> Iterator[Path]:
    """Give a folder for temporary files, on another disk than *near* if this machine has one."""
    shared = Path("/dev/shm")  # noqa: S108 - on Linux
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else near) as folder:
        yield Path(folder)


def test_rebuilt_wheels_are_kept_beside_the_lock(tmp_path: Path, here: Environment) -> None:
    links = tmp_path / "links"
    make_wheel(links, "a", "1.0")
    matrix = matrix_of(rebuilt_entry(tmp_path / "archive"))
    preparer, resolution = prepared(matrix, here, links=links)
    path = tmp_path / "locks" / "pylock.demo.toml"
    wheels = preparer.wheels_beside(resolution, path)
    assert list(wheels) == [OWN]
    wheel = path.parent / wheels[OWN].path
    assert wheel.parent.name == "pylock.demo.wheels"
    assert wheels[OWN].sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert wheels[OWN].size == wheel.stat().st_size
    text = write_lock(make_lock(resolution, matrix, wheels=wheels))
    path.write_bytes(text)

    # The archive may go: what was made from it is locked.
    (tmp_path / "archive" / "v1.0.tar.gz").unlink()
    source = LockSource(read_lock(path), path.parent, here)
    again, found = prepared(matrix, here, links=links, source=source)
    assert {name: pin.version for name, pin in found.pins.items()} == {
        name: pin.version for name, pin in resolution.pins.items()
    }
    (tmp_path / "files").mkdir()
    gathered = again.gather(plan_of(matrix, found), tmp_path / "files", Reporter())
    assert gathered[OWN].read_bytes() == wheel.read_bytes()
    assert again.wheels_beside(found, None)[OWN].sha256 == wheels[OWN].sha256


def test_writing_a_lock_twice_gives_the_same_bytes(tmp_path: Path, here: Environment) -> None:
    links = tmp_path / "links"
    make_wheel(links, "a", "1.0")
    matrix = matrix_of(rebuilt_entry(tmp_path / "archive"))
    texts = []
    for folder in ("one", "two"):
        preparer, resolution = prepared(matrix, here, links=links)
        wheels = preparer.wheels_beside(resolution, tmp_path / folder / "pylock.toml")
        texts.append(write_lock(make_lock(resolution, matrix, wheels=wheels)))
    assert texts[0] == texts[1]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["pylock.wheels"]


def test_no_wheel_is_kept_without_a_lock_file(
    tmp_path: Path, here: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, nowhere = tmp_path / "links", tmp_path / "empty"
    make_wheel(links, "a", "1.0")
    nowhere.mkdir()
    monkeypatch.chdir(nowhere)
    preparer, resolution = prepared(matrix_of(rebuilt_entry(tmp_path / "archive")), here, links=links)
    assert list(preparer.wheels_beside(resolution, None)) == [OWN]
    assert list(nowhere.iterdir()) == []


def test_an_unwritable_folder_is_an_error(tmp_path: Path, here: Environment) -> None:
    links = tmp_path / "links"
    make_wheel(links, "a", "1.0")
    preparer, resolution = prepared(matrix_of(rebuilt_entry(tmp_path / "archive")), here, links=links)
    (tmp_path / "pylock.wheels").write_text("a file", encoding="utf-8")
    with pytest.raises(BadDistribution, match="cannot be written"):
        preparer.wheels_beside(resolution, tmp_path / "pylock.toml")
