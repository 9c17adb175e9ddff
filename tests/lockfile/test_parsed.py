"""Locks that the cache has parsed: the same content, and the text again where an entry is no use."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from colablock.errors import InvalidInput
from colablock.lockfile import parsed as module
from colablock.lockfile import pylock, store
from colablock.lockfile.pylock import read_lock, write_lock
from colablock.lockfile.store import read_head
from colablock.network.cache import Cache

SHIPPED = sorted((Path(__file__).parents[2] / "matrices").glob("pylock.*--py312*.toml"))[:4]
LOCK = """lock-version = "1.0"
created-by = "x"

[[packages]]
name = "a"
version = "1"
wheels = [{ name = "a-1-py3-none-any.whl", url = "https://h/a.whl", hashes = { sha256 = "%s" } }]
""" % ("0" * 64)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def entries(cache: Cache) -> list[Path]:
    return [path for path in (cache.folder / module.KIND).rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_lock_and_its_head_are_the_same_from_the_cache(
    path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_lock(path, cache), read_head(path, cache)
    monkeypatch.setattr(pylock, "load_toml", None)  # nothing is parsed any more
    monkeypatch.setattr(store, "load_toml", None)
    again = read_lock(path, cache), read_head(path, cache)
    monkeypatch.undo()
    assert first == again == (read_lock(path), read_head(path))
    assert write_lock(again[0]) == path.read_bytes()


def test_a_changed_lock_is_parsed_again(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "pylock.toml"
    for host in ("h", "other"):
        path.write_text(LOCK.replace("https://h/", f"https://{host}/"))
        (package,) = read_lock(path, cache).packages
        assert [wheel.url for wheel in package.wheels or ()] == [f"https://{host}/a.whl"]


def test_a_head_alone_is_no_lock_also_from_the_cache(tmp_path: Path, cache: Cache) -> None:
    """The head is the end of a lock, and here the whole text."""
    path = tmp_path / "pylock.toml"
    lines = {"kind": "complete", "matrix": "m", "matrix-digest": "0" * 64, "python": "3.11", "platform": "x"}
    lines |= {"lock-version": "1.0", "created-by": "x"}
    table = "".join(f'{key} = "{value}"\n' for key, value in lines.items())
    path.write_text(f"\n[tool.colablock]\n{table}packages = []\n")
    for _ in range(2):
        assert read_head(path, cache) is not None
        with pytest.raises(InvalidInput):
            read_lock(path, cache)


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("entry", [b"", b"\xc1", b"\x80", b"\x01", b"\x81\xa8packages\x01", b"\x91" * 5000])
def test_a_damaged_entry_is_made_again(entry: bytes, is_checked: bool, tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(LOCK)
    whole = read_lock(path, cache)
    (place,) = entries(cache)
    good = place.read_bytes()
    place.write_bytes(f"{zlib.crc32(entry):08x} {len(entry)}\n".encode() * is_checked + entry)
    assert read_lock(path, cache) == whole
    assert place.read_bytes() == good


@pytest.mark.parametrize(
    "value", ["2026-08-01", "2026-08-01T10:00:00+02:00", "10:00:00", "inf", "nan", "9" * 30]
)
def test_what_would_not_come_back_the_same_is_not_kept(value: str, tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(f"{LOCK}[tool.x]\nvalue = {value}\n")
    first, again = read_lock(path, cache), read_lock(path, cache)
    assert repr(first) == repr(again)


def test_an_invalid_lock_is_refused_each_time(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(LOCK.replace('"a"', '"a\\u0007"'))
    for _ in range(2):
        with pytest.raises(InvalidInput, match="not valid"):
            read_lock(path, cache)
    assert entries(cache) == []
