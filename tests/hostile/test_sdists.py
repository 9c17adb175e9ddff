"""Source archives that must not be unpacked, nor read for their metadata."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from colablock._common.limits import ARCHIVE_RATIO_FROM
from colablock.errors import BadDistribution
from colablock.index.archive import open_archive
from tests.support.hostile import INTO, Target, refused
from tests.support.hostile_wheels import entry

ROOT = "evil-1.0"
INFO = "Metadata-Version: 2.2\nName: evil\nVersion: 1.0\n"
BOMB = ARCHIVE_RATIO_FROM + (1 << 20)
LEAVES = "which leaves the archive"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **facts: int) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    found.linkname = link
    for key, value in facts.items():
        setattr(found, key, value)
    return found


def tar(*members: tarfile.TarInfo, pack: Callable[[bytes], bytes] = gzip.compress) -> bytes:
    """Return an sdist with PKG-INFO and *members*, whose contents are zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member(f"{ROOT}/PKG-INFO", size=len(INFO)), io.BytesIO(INFO.encode()))
        for one in members:
            archive.addfile(one, io.BytesIO(bytes(one.size)))
    return pack(buffer.getvalue())


def zipped(files: Mapping[str, str], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in {f"{ROOT}/PKG-INFO": INFO, **files}.items():
            archive.writestr(entry(path), text)
        if link is not None:
            archive.writestr(entry(f"{ROOT}/link", 0o120777), link)
    return buffer.getvalue()


def header_of(size: int) -> bytes:
    """Return an sdist whose second member has an extended header of *size* bytes."""
    long = member("././@PaxHeader", tarfile.XHDTYPE, size=size).tobuf(tarfile.USTAR_FORMAT)
    with gzip.open(buffer := io.BytesIO(), "wb") as packed:
        packed.write(member(f"{ROOT}/x").tobuf(tarfile.USTAR_FORMAT) + long + bytes(32 << 20))
    return buffer.getvalue()


# Each archive is made when its test runs: the bombs take seconds.
TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent folders": (lambda: tar(member(f"{ROOT}/../../outside")), LEAVES),
    "an absolute path": (lambda: tar(member("/outside")), LEAVES),
    "backslashes": (lambda: tar(member("evil\\..\\..\\outside")), LEAVES),
    "a drive letter": (lambda: tar(member("C:/outside")), LEAVES),
    "a link outside": (lambda: tar(member(f"{ROOT}/a", tarfile.SYMTYPE, "../../outside")), LEAVES),
    "an absolute link": (lambda: tar(member(f"{ROOT}/a", tarfile.SYMTYPE, "/etc/passwd")), LEAVES),
    "a hard link outside": (lambda: tar(member(f"{ROOT}/a", tarfile.LNKTYPE, "../outside")), LEAVES),
    "a chain of links that leaves": (
        lambda: tar(
            member(f"{ROOT}/a", tarfile.SYMTYPE, "."),
            member(f"{ROOT}/a/b", tarfile.SYMTYPE, "../../../outside"),
        ),
        LEAVES,
    ),
    "a file below a link": (
        lambda: tar(
            member(f"{ROOT}/a", tarfile.SYMTYPE, "."), member(f"{ROOT}/a/b", tarfile.SYMTYPE, "../x")
        ),
        "`evil-1.0/a/b`, which is below a link",
    ),
    "a link through a link": (
        lambda: tar(
            member(f"{ROOT}/a", tarfile.SYMTYPE, "."), member(f"{ROOT}/b", tarfile.SYMTYPE, "a/../../x")
        ),
        LEAVES,
    ),
    "a device": (lambda: tar(member(f"{ROOT}/a", tarfile.CHRTYPE)), "`evil-1.0/a` is a device"),
    "a FIFO": (lambda: tar(member(f"{ROOT}/a", tarfile.FIFOTYPE)), "`evil-1.0/a` is a device"),
    "one path twice": (lambda: tar(member(f"{ROOT}/PKG-INFO")), "`evil-1.0/PKG-INFO` twice"),
    "names that differ in case": (
        lambda: tar(member(f"{ROOT}/pkg-info")),
        "case and Unicode forms do not count",
    ),
    "an escape sequence": (lambda: tar(member(f"{ROOT}/\x1b[31m")), r"`evil-1.0/\x1b[31m`"),
    "a device name": (lambda: tar(member(f"{ROOT}/nul.txt")), "not a valid file name on every system"),
    "a deep path": (lambda: tar(member("/".join([ROOT, *["d"] * 80]))), "81 folders"),
    "a huge extended header": (lambda: header_of(20 << 20), "parts of more than 16 MiB"),
    "a gzip bomb": (lambda: tar(member(f"{ROOT}/zeros", size=BOMB)), "200 times"),
    "an xz bomb": (
        lambda: tar(member(f"{ROOT}/zeros", size=BOMB), pack=partial(lzma.compress, preset=0)),
        "200 times",
    ),
    "a bzip2 bomb": (lambda: tar(member(f"{ROOT}/zeros", size=BOMB), pack=bz2.compress), "200 times"),
    "no archive": (lambda: b"no archive", "cannot be read as an archive"),
    "an empty file": (lambda: b"", "cannot be read as an archive"),
    "half an archive": (lambda: tar(member(f"{ROOT}/x", size=9999))[:-100], "cannot be read as an archive"),
}
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent folders in a zip": (lambda: zipped({f"{ROOT}/../../outside": ""}), LEAVES),
    "a link outside in a zip": (lambda: zipped({}, link="../../outside"), LEAVES),
    "a NUL in a zip": (lambda: zipped({f"{ROOT}/a\0b": ""}), "`evil-1.0/a"),
    "one path twice in a zip": (lambda: zipped({f"{ROOT}/A": "", f"{ROOT}/a": ""}), "case and Unicode forms"),
}
CASES = {**TARS, **ZIPS}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_sdist_is_refused(name: str, tmp_path: Path) -> None:
    make, says = CASES[name]
    path = tmp_path / ("evil-1.0.zip" if name in ZIPS else "evil-1.0.tar.gz")
    path.write_bytes(make())
    with pytest.raises(BadDistribution) as caught, open_archive(path):
        pass
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.slow  # whole commands
@pytest.mark.parametrize("into", INTO)
def test_a_hostile_sdist_leaves_the_environment_alone(into: str, target: Target) -> None:
    (target.wheels / "evil-1.0.tar.gz").write_bytes(TARS["parent folders"][0]())
    target.write_matrix("evil", more='[options]\nallow-build = ["evil"]\n')
    with target.unchanged():
        done = target.apply(into)
    refused(done, "evil-1.0.tar.gz", "contains the path `evil-1.0/../../outside`")
    assert not list(target.folder.rglob("outside*"))


def test_links_inside_an_archive_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "evil-1.0.tar.gz"
    links = [
        member(f"{ROOT}/evil", tarfile.DIRTYPE),
        member(f"{ROOT}/evil/copy", tarfile.SYMTYPE, "../PKG-INFO"),
        member(f"{ROOT}/again", tarfile.SYMTYPE, "evil/copy"),
        member(f"{ROOT}/hard", tarfile.LNKTYPE, f"{ROOT}/PKG-INFO"),
        member(f"{ROOT}/circle", tarfile.SYMTYPE, "circle"),
        member(f"{ROOT}/nowhere", tarfile.SYMTYPE, "evil/nothing"),
    ]
    path.write_bytes(tar(*links))
    with open_archive(path) as archive:
        texts = {name: one.read().decode() for name, one in archive.members.items()}
    assert texts == dict.fromkeys(("PKG-INFO", "evil/copy", "again", "hard"), INFO)
