"""Large wheels are unpacked by processes of their own, and the result is the same without them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from colablock._common.fs import file_digest
from colablock._common.process import own_command
from colablock.errors import BadDistribution
from colablock.network.cache import Cache
from colablock.unpacking.store import UnpackedStore
from colablock.unpacking.unpackers import Unpackers
from tests.support.wheels import make_wheel

LARGE = "x" * (40 << 20)

pytestmark = [
    pytest.mark.stdlib,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="with one core there are no processes"),
]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[str, int]]:
    folder = tmp_path_factory.mktemp("wheels")
    made = [make_wheel(folder, name, "1.0", modules={f"{name}.txt": LARGE}) for name in ("left", "right")]
    made.append(make_wheel(folder, "small", "1.0"))
    return {path: (file_digest(path), len(LARGE) if path != made[-1] else 1000) for path in made}


def children() -> set[int]:
    return {
        int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()
    }


def store_of(cache: Cache) -> UnpackedStore:
    return UnpackedStore(cache, target=cache.folder, scratch=cache.unfinished)


def missing(cache: Cache, wheels: Mapping[Path, tuple[str, int]]) -> set[str]:
    store = store_of(cache)
    return {path.name for path, (sha256, _) in wheels.items() if not store.has(sha256, path.name)}


def test_wheels_are_in_the_store_when_they_have_been_waited_for(
    cache: Cache, wheels: dict[Path, tuple[str, int]]
) -> None:
    before = children()
    with Unpackers(wheels, cache, os.environ) as unpackers:
        assert len(children() - before) == 2
        for path, (sha256, _) in wheels.items():
            unpackers.wait(path)
            assert store_of(cache).has(sha256, path.name)
    assert children() == before
    assert missing(cache, wheels) == set()
    for path, (sha256, _) in wheels.items():
        assert store_of(cache).get(path, sha256).wheel.filename == path.name
    assert [*cache.unfinished.iterdir()] == []


@pytest.mark.parametrize("few", [0, 1, 2])
def test_small_wheels_and_other_caches_need_no_process(
    cache: Cache, wheels: dict[Path, tuple[str, int]], few: int
) -> None:
    before = children()
    chosen = dict([*wheels.items()][-few:] if few else [])
    for there in (cache, None):
        with Unpackers(chosen if there else wheels, there, os.environ) as unpackers:
            assert children() == before
            for path in wheels:
                unpackers.wait(path)


def test_a_killed_process_leaves_its_wheels_to_the_caller(
    cache: Cache, wheels: dict[Path, tuple[str, int]]
) -> None:
    before = children()
    with Unpackers(wheels, cache, os.environ) as unpackers:
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        for path, (sha256, _) in wheels.items():
            unpackers.wait(path)
            assert store_of(cache).get(path, sha256).wheel.filename == path.name


@pytest.mark.parametrize("said", ["'welcome\\n'", "'no end of the line'", "'\\xff\\n' * 99999"])
def test_what_the_start_of_a_python_prints_is_passed_over(
    cache: Cache, wheels: dict[Path, tuple[str, int]], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """A `.pth` file runs at each start, also of an isolated interpreter."""
    program, *options, source, path, module = own_command("colablock.unpacking.unpackers")
    loud = f"import sys; sys.stdout.write({said}); sys.stdout.flush(); {source}"
    monkeypatch.setattr(
        "colablock.unpacking.unpackers.own_command", lambda _: [program, *options, loud, path, module]
    )
    with Unpackers(wheels, cache, os.environ) as unpackers:
        for wheel, (sha256, _) in wheels.items():
            unpackers.wait(wheel)
            assert store_of(cache).has(sha256, wheel.name)


def test_a_caller_that_fails_ends_the_processes(cache: Cache, wheels: dict[Path, tuple[str, int]]) -> None:
    before = children()
    with pytest.raises(KeyboardInterrupt), Unpackers(wheels, cache, os.environ):
        raise KeyboardInterrupt
    assert children() == before


def test_a_wheel_with_another_hash_is_refused_by_the_caller(
    cache: Cache, wheels: dict[Path, tuple[str, int]]
) -> None:
    wrong = {path: ("0" * 64, size) for path, (_, size) in wheels.items()}
    with Unpackers(wrong, cache, os.environ) as unpackers:
        for path, (sha256, _) in wrong.items():
            unpackers.wait(path)
            with pytest.raises(BadDistribution, match="has another SHA-256"):
                store_of(cache).get(path, sha256)
    assert missing(cache, wrong) == {path.name for path in wheels}
