"""Write a bundle and read it again: the same bytes, and a refusal that names what is wrong."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colablock._common.fs import flock
from colablock._common.limits import BUNDLE_MANIFEST, TEXT_FILE
from colablock.bundles.manifest import FORMAT, NAME, BundleManifest, BundleMember
from colablock.bundles.reader import Bundle
from colablock.bundles.writer import Source, write_bundle
from colablock.errors import BadDistribution, InvalidInput

WHEEL = "files/demo-1.0-py3-none-any.whl"
CONTENT = {
    "tiny.toml": b"schema = 1\n",
    "pylock.tiny.toml": b"lock\n",
    "pylock.tiny.wheels/own-1.0-py3-none-any.whl": b"built",
    WHEEL: b"w" * 5000,
    "files/other-1.0-py3-none-any.whl": b"o" * 100,
}
EMPTY = BundleManifest(
    format=FORMAT,
    matrix="tiny",
    kind="complete",
    python="3.12.11",
    platform="manylinux_2_35_x86_64",
    matrix_file="tiny.toml",
    lock_file="pylock.tiny.toml",
)


def write(folder: Path, name: str = "tiny.bundle", content: dict[str, bytes] | None = None) -> Path:
    path = folder / name
    sources = {inner: Source.of(data) for inner, data in (content or CONTENT).items()}
    write_bundle(path, EMPTY, sources)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bundle = Bundle.open(write(tmp_path))
    assert {member.path: member.size for member in bundle.manifest.members} == {
        path: len(data) for path, data in CONTENT.items()
    }
    digest = hashlib.sha256(CONTENT[WHEEL]).hexdigest()
    member = bundle.file("demo-1.0-py3-none-any.whl", {"sha256": digest.upper()})
    assert member is not None
    assert bundle.file("demo-1.0-py3-none-any.whl", {"sha256": "0" * 64}) is None
    assert bundle.file("tiny.toml", {}) is None
    bundle.copy(member, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT[WHEEL]
    with bundle.opened(member) as stream:
        stream.seek(-10, io.SEEK_END)
        assert stream.read() == b"w" * 10
        assert stream.seek(0) == 0
        assert len(stream.read()) == 5000


def test_only_small_files_are_unpacked(tmp_path: Path) -> None:
    bundle = Bundle.open(write(tmp_path))
    into = tmp_path / "into"
    into.mkdir()
    bundle.unpack(into)
    bundle.unpack_wheels(into, CONTENT)
    found = sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file())
    assert found == sorted(path for path in CONTENT if not path.startswith("files/"))
    (into / "tiny.toml").write_bytes(b"changed")
    bundle.unpack(into)
    assert (into / "tiny.toml").read_bytes() == CONTENT["tiny.toml"]


def test_a_wheel_that_the_lock_does_not_name_is_not_unpacked(tmp_path: Path) -> None:
    bundle = Bundle.open(write(tmp_path))
    with pytest.raises(InvalidInput, match=r"its lock does not name `pylock\.tiny\.wheels/own-1\.0"):
        bundle.unpack_wheels(tmp_path / "into", {WHEEL})
    assert not (tmp_path / "into").exists()


def test_nothing_is_unpacked_through_a_linked_folder(tmp_path: Path) -> None:
    bundle = Bundle.open(write(tmp_path))
    into, outside = tmp_path / "into", tmp_path / "outside"
    for folder in (into, outside):
        folder.mkdir()
    (into / "pylock.tiny.wheels").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        bundle.unpack_wheels(into, CONTENT)
    assert not list(outside.iterdir())


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    backwards = dict(reversed(CONTENT.items()))
    first, second = write(tmp_path), write(tmp_path, "again.bundle", backwards)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist()[0] == NAME
        assert archive.testzip() is None


def test_a_file_that_changes_meanwhile_leaves_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "wheel").write_bytes(b"new")
    changed = Source(sha256=hashlib.sha256(b"old").hexdigest(), size=3, path=tmp_path / "wheel")
    with pytest.raises(BadDistribution, match="has changed while it was copied"):
        write_bundle(tmp_path / "x.bundle", EMPTY, {"files/wheel": changed})
    assert [path.name for path in tmp_path.iterdir()] == ["wheel"]


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    """But not what another process is writing or has just created, and nothing of another archive."""
    left = tmp_path / ".tiny.bundle.unfinished-0123"
    busy = tmp_path / ".tiny.bundle.unfinished-4567"
    other = tmp_path / ".other.bundle.unfinished-89ab"
    new = tmp_path / ".tiny.bundle.unfinished-cdef"
    for path in (left, busy, other, new):
        path.write_bytes(b"PK")
        if path != new:
            os.utime(path, (time.time() - 100,) * 2)
    with busy.open("rb") as stream:
        flock(stream)
        write(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {busy.name, other.name, new.name, "tiny.bundle"}


# Truncated and altered archives


def test_a_file_that_was_copied_in_part_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    """The message names the member in which it ends."""
    whole = write(tmp_path).read_bytes()
    part = tmp_path / "part.bundle"
    ends = {0, 1, 29, 30, 40, 500, len(whole) - 1, *range(1000, len(whole), 700)}
    said = set()
    for end in sorted(ends):
        part.write_bytes(whole[:end])
        with pytest.raises(InvalidInput, match="is not a usable bundle") as caught:
            Bundle.open(part)
        said.add(str(caught.value).partition("bundle: ")[2].partition(" (")[0])
        assert caught.value.hint is not None
    assert f"it ends in the middle of `{WHEEL}`" in said
    assert "its end is missing, after `tiny.toml`" in said or "it ends in the middle of `tiny.toml`" in said


def test_an_altered_member_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"w" * 100) + 7] = ord("x")
    path.write_bytes(data)
    bundle = Bundle.open(path)
    member = bundle.file("demo-1.0-py3-none-any.whl", {})
    assert member is not None
    with pytest.raises(BadDistribution, match=WHEEL):
        bundle.copy(member, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# Hostile archives


@dataclass(kw_only=True)
class Hostile:
    """An archive that is written by hand: members with their content, and a manifest."""

    members: list[tuple[zipfile.ZipInfo, bytes]]
    manifest: dict[str, Any]

    def add(self, path: str, content: bytes = b"x", *, mode: int = stat.S_IFREG | 0o644) -> None:
        entry = zipfile.ZipInfo(path)
        entry.external_attr = mode << 16
        self.members.append((entry, content))

    def list(self, path: str, content: bytes = b"x", **facts: Any) -> None:
        row = {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        self.manifest["members"].append({**row, **facts})

    def write(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in self.members:
                archive.NameToInfo.pop(entry.filename, None)  # it warns of a second member of that name
                text = (
                    msgspec.json.encode(self.manifest) if entry.filename == NAME and not content else content
                )
                archive.writestr(entry, text)


def honest() -> Hostile:
    manifest = msgspec.to_builtins(EMPTY)
    hostile = Hostile(members=[], manifest={**manifest, "members": []})
    hostile.add(NAME, b"")
    for path, content in CONTENT.items():
        hostile.add(path, content)
        hostile.list(path, content)
    return hostile


def both(path: str, content: bytes = b"x") -> Callable[[Hostile], None]:
    def change(one: Hostile) -> None:
        one.add(path, content)
        one.list(path, content)

    return change


def compressed(one: Hostile) -> None:
    one.add("files/big.whl", b"0" * 100_000)
    one.members[-1][0].compress_type = zipfile.ZIP_DEFLATED
    one.list("files/big.whl", b"0" * 100_000)


def first_of_all(one: Hostile) -> None:
    one.add("before", b"x")
    one.members.insert(0, one.members.pop())


def large_text(one: Hostile) -> None:
    one.add("large.base.toml", b"#" * (TEXT_FILE + 1))
    one.list("large.base.toml", b"#" * (TEXT_FILE + 1))


HOSTILE: dict[str, tuple[Callable[[Hostile], object], str]] = {
    "a path that leaves the archive": (both("../evil.toml"), "leaves the archive"),
    "an absolute path": (both("/etc/evil"), "leaves the archive"),
    "a path with a backslash": (both("a\\b"), "leaves the archive"),
    "a path that is too deep": (both("a/b/c.whl"), "lists the path"),
    "a hidden path in the list alone": (lambda one: one.list("../evil.toml"), "lists the path"),
    "a link": (lambda one: one.add("files/l", b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "link"),
    "a device": (lambda one: one.add("files/d", b"", mode=stat.S_IFCHR | 0o666), "link or a device"),
    "a member twice": (lambda one: one.add(WHEEL, b"other"), "twice"),
    "a member twice but for its case": (both(WHEEL.upper().replace("FILES", "files")), "case"),
    "a listed path twice": (lambda one: one.list(WHEEL), "lists a member twice"),
    "a member that is not listed": (lambda one: one.add("files/more.whl"), "does not list `files/more.whl`"),
    "a listed member that is missing": (lambda one: one.list("files/more.whl"), "`files/more.whl`"),
    "another size": (lambda one: one.manifest["members"][3].update(size=4999), "5000 bytes"),
    "a size that is huge": (lambda one: one.manifest["members"][3].update(size=1 << 60), "size"),
    "a negative size": (lambda one: one.manifest["members"][3].update(size=-1), "size"),
    "a hash that is none": (lambda one: one.manifest["members"][3].update(sha256="x"), "hash"),
    "a compressed member": (compressed, "is compressed"),
    "a manifest that is not first": (first_of_all, f"its first member is not `{NAME}`"),
    "a manifest of a later format": (lambda one: one.manifest.update(format=2), "format 2"),
    "a manifest without a format": (lambda one: one.manifest.pop("format"), "format"),
    "a manifest of another form": (lambda one: one.manifest.update(members={}), "array"),
    "a matrix that is missing": (lambda one: one.manifest.update({"matrix-file": "x.toml"}), "not a member"),
    "a lock in a folder": (lambda one: one.manifest.update({"lock-file": WHEEL}), "not a member"),
    "a built wheel that is missing": (
        lambda one: one.manifest.update(built={WHEEL: "files/n"}),
        "`'files/n'`",
    ),
    "a built wheel of no sdist": (lambda one: one.manifest.update(built={"files/n": WHEEL}), "`'files/n'`"),
    "a built wheel elsewhere": (lambda one: one.manifest.update(built={WHEEL: "tiny.toml"}), "`'tiny.toml'`"),
    "terminal escapes": (lambda one: one.manifest.update(matrix="a\x1b[2Jb"), "control characters"),
    "a large text": (large_text, "`large.base.toml` has"),
    "a receipt": (both("tiny.receipts/h200.json"), "lists `tiny.receipts/h200.json`"),
    "another file at the top": (both("sitecustomize.py"), "lists `sitecustomize.py`"),
    "another lock": (both("pylock.other.toml"), "lists `pylock.other.toml`"),
    "a hidden file": (both(".base.toml"), "lists `.base.toml`"),
    "a hidden folder": (both(".git/x.whl"), "lists `.git/x.whl`"),
    "a file like an option": (both("-rf.base.toml"), "lists `-rf.base.toml`"),
    "a file like a home": (both("~.base.toml"), "lists `~.base.toml`"),
    "a file below the lock": (both("pylock.tiny.wheels/x.pth"), "lists `pylock.tiny.wheels/x.pth`"),
    "a file of another matrix": (lambda one: one.manifest.update(matrix="other"), "the matrix `other`"),
    "a line break": (lambda one: one.manifest.update(kind="\n"), "control characters"),
}


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused(
    change: Callable[[Hostile], object], words: str, tmp_path: Path
) -> None:
    hostile = honest()
    change(hostile)
    path = tmp_path / "hostile.bundle"
    hostile.write(path)
    with pytest.raises(InvalidInput) as caught:
        Bundle.open(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_the_honest_archive_that_they_are_made_from_is_read(tmp_path: Path) -> None:
    honest().write(tmp_path / "honest.bundle")
    assert Bundle.open(tmp_path / "honest.bundle").manifest.matrix == "tiny"


RAW: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",  # noqa: ARG005
    "another file": lambda data: b"#!/bin/sh\n" * 100,  # noqa: ARG005
    "data before the archive": lambda data: b"x" * 100 + data,
    "a comment": lambda data: data[:-2] + struct.pack("<H", 4) + b"evil",
    "a manifest that announces to be huge": lambda data: (
        data[:18] + struct.pack("<LL", BUNDLE_MANIFEST + 1, BUNDLE_MANIFEST + 1) + data[26:]
    ),
    "a local header that differs": lambda data: data.replace(b"demo-1.0", b"evil-1.0", 1),
    "a manifest that is no JSON": lambda data: data.replace(b'"format"', b'"farmot"', 1),
}


@pytest.mark.parametrize("change", RAW.values(), ids=RAW)
def test_bytes_that_are_no_bundle_are_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InvalidInput, match="is not a usable bundle"):
        Bundle.open(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no bundle"):
        Bundle.open(tmp_path / "none.bundle")
    with pytest.raises(InvalidInput, match="is not a usable bundle"):
        Bundle.open(tmp_path)


def test_a_manifest_is_read_as_it_was_written() -> None:
    whole = msgspec.structs.replace(
        EMPTY,
        runtime="colab-2026.08-gpu",
        variant="cuda",
        with_=("einops",),
        members=(
            BundleMember(path="tiny.toml", sha256="0" * 64, size=1),
            BundleMember(path="pylock.tiny.toml", sha256="1" * 64, size=2),
        ),
    )
    assert BundleManifest.decoded(whole.encoded()) == whole
    assert b'"with"' in whole.encoded()
    assert b'"matrix-file"' in whole.encoded()
