"""Locks with fields that are not what they are named: each is refused when it is read, with its field."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from colablock._vendor import tomli_w
from colablock.errors import InvalidInput
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import read_head
from colablock.matrix.lock_pack import LOCK_PACK
from colablock.matrix.packed_locks import packed_locks

WHEEL = {
    "name": "demo-1.0-py3-none-any.whl",
    "url": "https://h/demo-1.0-py3-none-any.whl",
    "hashes": {"sha256": "0" * 64},
}
TABLE = {
    "schema": 1,
    "kind": "complete",
    "matrix": "demo",
    "matrix-digest": "0" * 64,
    "python": "3.12.1",
    "platform": "x",
}
Fields: TypeAlias = "dict[str, Any] | None"
EVIL = "x\nRUN evil"


def lock(*, wheel: Fields = None, package: Fields = None, table: Fields = None, **more: str) -> str:
    """Return the text of a lock with these fields changed."""
    whole = {
        "lock-version": "1.0",
        "created-by": "colablock",
        "packages": [
            {"name": "demo", "version": "1.0", "wheels": [{**WHEEL, **(wheel or {})}], **(package or {})}
        ],
        "tool": {"colablock": {**TABLE, **(table or {}), **more}},
    }
    return tomli_w.dumps(whole)


OWN = "packages[0].tool.colablock"
CASES = {
    "a hash that is no hex": (lock(wheel={"hashes": {"sha256": "g" * 64}}), "wheels[0].hashes"),
    "a hash that is too short": (lock(wheel={"hashes": {"sha256": "00"}}), "wheels[0].hashes"),
    "a line in a hash": (lock(wheel={"hashes": {"sha256": f"{'0' * 60}\nx"}}), "wheels[0].hashes"),
    "a path as a file name": (lock(wheel={"name": "../demo-1.0-py3-none-any.whl"}), "wheels[0].name"),
    "a NUL in a file name": (lock(wheel={"name": "demo\0.whl"}), "wheels[0].name"),
    "a line in a URL": (lock(wheel={"url": f"https://h/{EVIL}"}), "wheels[0].url"),
    "a URL without a host": (lock(wheel={"url": "https://"}), "wheels[0].url"),
    "a URL with no port": (lock(wheel={"url": "https://h:99999999/x.whl"}), "wheels[0].url"),
    "half an IPv6 address": (lock(wheel={"url": "https://[::1/x.whl"}), "wheels[0].url"),
    "a negative size": (lock(wheel={"size": -1}), "wheels[0].size"),
    "a huge size": (lock(wheel={"size": 1 << 60}), "wheels[0].size"),
    "a line in a version": (lock(package={"version": f"1.0{EVIL}"}), "packages[0].version"),
    "a line in a marker": (lock(package={"marker": f"os_name == '{EVIL}'"}), "packages[0].marker"),
    "a marker of many parentheses": (
        lock(package={"marker": "(" * 900 + "os_name=='x'" + ")" * 900}),
        "marker",
    ),
    "a version of many digits": (lock(package={"version": "9" * 6000}), "packages[0].version"),
    "an index that is none": (lock(package={"index": "-r evil.txt"}), "packages[0].index"),
    "a dependency that is no name": (
        lock(package={"dependencies": [{"name": EVIL}]}),
        "packages[0].dependencies",
    ),
    "a dependency of another type": (
        lock(package={"dependencies": [{"name": 1}]}),
        "packages[0].dependencies",
    ),
    "a requirement that is none": (lock(package={"tool": {"colablock": {"requires-dist": ["--x"]}}}), OWN),
    "requirements of another type": (lock(package={"tool": {"colablock": {"requires-dist": "x"}}}), OWN),
    "an extra that is no name": (lock(package={"tool": {"colablock": {"extras": ["a]"]}}}), f"{OWN}.extras"),
    "a source without a URL": (
        lock(package={"tool": {"colablock": {"made-from": {"url": "x"}}}}),
        "made-from",
    ),
    "a line in the name of the matrix": (lock(matrix=EVIL), "tool.colablock.matrix"),
    "a path as the runtime": (lock(runtime="../x"), "tool.colablock.runtime"),
    "a digest that is none": (lock(table={"matrix-digest": "x"}), "tool.colablock.matrix-digest"),
    "a Python that is none": (lock(python="x"), "tool.colablock.python"),
    "a control character": (lock(table={"with": ["\x1b[2J"]}), "control character"),
    "a lock that is nested deeply": ("a = " + "[" * 2000 + "]" * 2000, "is not TOML"),
    "a number of many digits": ("a = " + "9" * 6000, "is not TOML"),
    "a table of another type": (
        tomli_w.dumps({"lock-version": "1.0", "tool": {"colablock": 1}}),
        "tool.colablock",
    ),
}


@pytest.mark.parametrize(("text", "field"), CASES.values(), ids=CASES)
def test_a_field_that_does_not_fit_is_refused(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        read_lock(path)
    assert str(path) in str(caught.value)
    assert field in str(caught.value)
    assert "evil" not in str(caught.value)


def test_the_lock_without_a_change_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(lock(), encoding="utf-8")
    assert read_lock(path).packages[0].name == "demo"
    head = read_head(path)
    assert head is not None
    assert head.matrix == "demo"


@pytest.mark.parametrize("change", [{"matrix": EVIL}, {"with": [1]}, {"assumes": {"a": 1}}, {"python": 3}])
def test_a_head_that_does_not_fit_is_no_head(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(lock(table=change), encoding="utf-8")
    assert read_head(path) is None


PACKS = {
    "no gzip": b"x",
    "half of it": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n""\n["x"]')[:-9],
    "no JSON": gzip.compress(b"x"),
    "another form": gzip.compress(b'["pylock.a.toml"]\n{}\n""\n[]'),
    "names that are none": gzip.compress(b'[["pylock.a.toml"]]\n[[0]]\n""\n["x"]'),
    "a line too few": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n""'),
    "a lock without blocks": gzip.compress(b'["pylock.a.toml"]\n[]\n""\n["x"]'),
    "blocks that are numbers": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n""\n[1]'),
    "a path as a name": gzip.compress(b'["../pylock.a.toml"]\n[[0]]\n""\n["x"]'),
    "a block that is not there": gzip.compress(b'["pylock.a.toml"]\n[[7]]\n""\n["x"]'),
    "a bomb": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n""\n["' + bytes(70 << 20)),
    "a block named too often": gzip.compress(
        b'["pylock.a.toml"]\n[[' + b",".join([b"0"] * 9) + b']]\n""\n["' + b"x" * (1 << 20) + b'"]'
    ),
    "nested deeply": gzip.compress(b"[" * 100_000),
    "a hash that is not there": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n"AAAA"\n["x\x7f"]'),
    "a hash without a place": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n"AAAA"\n["x"]'),
    "hashes that are a number": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n1\n["x"]'),
    "hashes in another form": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n"\xc3\xa4"\n["x"]'),
    "hashes beside numbers": gzip.compress(b'["pylock.a.toml"]\n[[0]]\n"AAAA"\n[1]'),
}


@pytest.mark.parametrize("content", PACKS.values(), ids=PACKS)
def test_a_damaged_pack_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_PACK).write_bytes(content)
    with pytest.raises(InvalidInput, match=r"locks\.json\.gz"):
        [packed.read_bytes() for packed in packed_locks(tmp_path)]
