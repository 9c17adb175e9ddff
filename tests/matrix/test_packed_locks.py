"""The pack of locks in a wheel: it holds each lock as it was, and the locks are found in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import read_head
from colablock.matrix.catalog import find_matrix, lock_files
from colablock.matrix.lock_pack import LOCK_PACK, pack_locks
from colablock.matrix.packed_locks import packed_locks
from tests.support.paths import ROOT

SHIPPED = {path.name: path for path in (ROOT / "matrices").glob("pylock.*.toml")}


def pack(folder: Path, locks: dict[str, str]) -> Path:
    path = folder / LOCK_PACK
    path.write_bytes(pack_locks(locks))
    return path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the pack of the shipped locks."""
    folder = tmp_path_factory.mktemp("shipped")
    pack(folder, {name: path.read_bytes().decode() for name, path in SHIPPED.items()})
    return folder


def test_a_pack_holds_the_shipped_locks_as_they_are(shipped: Path) -> None:
    found = {lock.name: lock.read_bytes() for lock in packed_locks(shipped)}
    assert found == {name: path.read_bytes() for name, path in SHIPPED.items()}
    assert list(found) == sorted(found)
    assert (shipped / LOCK_PACK).stat().st_size * 40 < sum(map(len, found.values()))


def test_a_packed_lock_is_read_like_a_file(shipped: Path) -> None:
    lock = packed_locks(shipped)[-1]
    head = read_head(lock)
    assert head is not None
    assert head.path is lock
    assert read_lock(lock) == read_lock(SHIPPED[lock.name])
    assert lock.is_file()
    assert lock.stat() == (shipped / LOCK_PACK).stat()
    assert str(lock) == str(lock.parent / lock.name) == str(shipped / lock.name)


def test_the_locks_of_a_matrix_are_found_in_the_pack_of_its_folder(shipped: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "qlora-2026.toml"
    matrix.write_bytes((ROOT / "matrices" / matrix.name).read_bytes())
    (tmp_path / LOCK_PACK).write_bytes((shipped / LOCK_PACK).read_bytes())
    names = sorted(name for name in SHIPPED if name.startswith("pylock.qlora-2026--"))
    own = tmp_path / names[1]
    own.write_bytes(SHIPPED[own.name].read_bytes())
    found = lock_files(find_matrix(str(matrix)), environ={}, cwd=tmp_path)
    assert sorted(lock.name for lock in found) == names
    assert found[0] == own  # a file comes before the pack


SHA, BLAKE = "0123456789abcdef" * 4, "f0" * 30
FILE = 'name = "a\\1.whl"\nsize = 1\nurl = "https://a/b/'


@pytest.mark.parametrize(
    "locks",
    [
        {},
        {"a": "", "b": "\n[[packages]]\n"},
        {"a": "x\r\nü\n[[packages]]\n\n"},
        {"a": f"{SHA}\n\n{SHA}{SHA}", "b": f"/ab/cd/{BLAKE}/x {SHA}\n\n{SHA[1:]} {SHA.upper()}\n\nz{SHA}"},
        {"a": f"\x7f {SHA}", "b": f"\x1f{BLAKE}"},
        {"a": f'{FILE}a\\1.whl"\n{SHA}', "b": f'{FILE}b.whl"', "c": f'{FILE}{SHA}/a\\1.whl#x"'},
        {"a": f'{FILE}a\\1.whl"'},
        {"a": f'{FILE}\x0e" {SHA}'},
    ],
)
def test_any_text_round_trips_through_a_pack(locks: dict[str, str], tmp_path: Path) -> None:
    pack(tmp_path, locks)
    assert {lock.name: lock.read_bytes().decode() for lock in packed_locks(tmp_path)} == locks


def test_a_pack_has_the_same_bytes_in_any_order() -> None:
    locks = {"a": "x\n[[packages]]\ny", "b": "x\n[[packages]]\nz"}
    assert pack_locks(locks) == pack_locks(dict(reversed(locks.items())))


def test_a_new_pack_is_read_anew(tmp_path: Path) -> None:
    path = pack(tmp_path, {"a": "old"})
    (lock,) = packed_locks(tmp_path)
    assert lock.read_bytes() == b"old"
    pack(tmp_path, {"a": "new"})
    os.utime(path, ns=(1, 1))
    assert lock.read_bytes() == b"new"


def test_a_folder_may_have_no_pack(tmp_path: Path) -> None:
    assert packed_locks(tmp_path) == ()
