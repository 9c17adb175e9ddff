"""Bundles that somebody else made: each is refused by the command line, and nothing is changed."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from colablock.bundles.manifest import NAME
from colablock.bundles.reader import Bundle
from colablock.bundles.writer import Source, write_bundle
from colablock.errors import ColablockError
from colablock.operations.bundle import make_bundle
from colablock.operations.session import Session, from_bundle
from colablock.planning.options import ApplyOptions
from tests.support.hostile import Target, make_target, refused
from tests.support.wheels import make_wheel, wheel_filename

WHEEL = wheel_filename("evil", "1.0")
INNER = f"files/{WHEEL}"
LOCK = "pylock.tiny--complete.toml"

Parts = dict[str, bytes]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Parts]:
    """Make an honest bundle; return it with the content of its members."""
    folder = tmp_path_factory.mktemp("bundle")
    make_wheel(folder / "wheels", "evil", "1.0")
    (folder / "tiny.toml").write_text('schema = 1\nname = "tiny"\nrequirements = ["evil"]\n')
    environ = {**os.environ, "HOME": str(folder), "COLABLOCK_CACHE_DIR": str(folder / "cache")}
    options = ApplyOptions(name=str(folder / "tiny.toml"), find_links=(str(folder / "wheels"),), offline=True)
    path = make_bundle(Session(environ=environ), options, folder / "tiny.bundle").path
    bundle = Bundle.open(path)
    found = {}
    for member in bundle.manifest.members:
        with bundle.opened(member) as stream:
            found[member.path] = stream.read()
    assert sorted(found) == [INNER, LOCK, "tiny.toml"]
    return bundle, found


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return make_target(tmp_path)


def packed(path: Path, bundle: Bundle, content: Parts) -> None:
    write_bundle(path, bundle.manifest, {inner: Source.of(data) for inner, data in content.items()})


def another_wheel(content: Parts, folder: Path) -> Parts:
    """The manifest has the hash of the other wheel, and the lock has not."""
    wheel = make_wheel(folder / "other", "evil", "1.0", modules={"evil/__init__.py": "EVIL = True"})
    return {**content, INNER: wheel.read_bytes()}


def another_lock(content: Parts, folder: Path) -> Parts:
    """The lock says that the other wheel is meant, and that a package comes from another place."""
    del folder
    text = content[LOCK].decode()
    old = hashlib.sha256(content[INNER]).hexdigest()
    return {**content, LOCK: text.replace(old, "0" * 64).encode()}


def lock_of_another_host(content: Parts, folder: Path) -> Parts:
    del folder
    lines = content[LOCK].decode().splitlines()
    at = next(number for number, line in enumerate(lines) if "url = " in line)
    head, _, tail = lines[at].partition("url = ")
    place = tail.split('"')[1]
    lines[at] = f"{head}url = {tail.replace(place, f'https://evil.example/{WHEEL}')}"
    other = "\n".join(lines)
    return {**content, LOCK: other.encode()}


def no_lock(content: Parts, folder: Path) -> Parts:
    del folder
    return {**content, LOCK: b"\x00\xff not a lock"}


def no_matrix(content: Parts, folder: Path) -> Parts:
    del folder
    return {**content, "tiny.toml": b"schema = 1\nname = '../../evil'\nrequirements = ['evil']\n"}


def hostile_wheel(content: Parts, folder: Path) -> Parts:
    """The wheel and the lock agree, and the wheel leaves its folder."""
    path = folder / WHEEL
    with (
        zipfile.ZipFile(make_wheel(folder / "made", "evil", "1.0")) as good,
        zipfile.ZipFile(path, "w") as bad,
    ):
        for entry in good.infolist():
            bad.writestr(entry, good.read(entry))
        bad.writestr("../../outside.py", "EVIL = True")
    old, new = (hashlib.sha256(data).hexdigest() for data in (content[INNER], path.read_bytes()))
    sizes = (len(content[INNER]), path.stat().st_size)
    text = content[LOCK].decode().replace(old, new).replace(f"size = {sizes[0]}", f"size = {sizes[1]}")
    return {**content, INNER: path.read_bytes(), LOCK: text.encode()}


CONTENTS: dict[str, tuple[Callable[[Parts, Path], Parts], str]] = {
    "another wheel": (another_wheel, "the bundle has no file of that name and sha256"),
    "a lock with another hash": (another_lock, "the bundle has no file of that name and sha256"),
    "a lock of another host": (lock_of_another_host, "evil.example"),
    "a wheel that leaves its folder": (hostile_wheel, "which leaves the archive"),
}
#: These need no environment to be refused.
UNREADABLE: dict[str, tuple[Callable[[Parts, Path], Parts], str]] = {
    "a lock that is none": (no_lock, "pylock.tiny--complete.toml"),
    "a matrix that is none": (no_matrix, "tiny.toml"),
}


def refusal(path: Path) -> str:
    """Return why the bundle at *path* is refused before an environment is looked at."""
    environ = {"HOME": str(path.parent), "COLABLOCK_HOME": str(path.parent / "home")}
    with pytest.raises(ColablockError) as caught:
        from_bundle(ApplyOptions(name="", bundle=path), environ)
    assert not list(path.parent.glob("home/bundles/*"))
    return str(caught.value)


@pytest.mark.parametrize(("change", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_bundle_whose_matrix_or_lock_is_none_is_refused(
    change: Callable[[Parts, Path], Parts], words: str, parts: tuple[Bundle, Parts], tmp_path: Path
) -> None:
    packed(tmp_path / "evil.bundle", parts[0], change(parts[1], tmp_path))
    assert words in refusal(tmp_path / "evil.bundle")


@pytest.mark.parametrize(
    ("case", "into"), [*((case, "env") for case in CONTENTS), (next(iter(CONTENTS)), "kernel")]
)
def test_a_bundle_with_hostile_content_changes_nothing(
    case: str,
    into: str,
    target: Target,
    parts: tuple[Bundle, Parts],
    tmp_path: Path,
) -> None:
    (change, words), (bundle, content) = CONTENTS[case], parts
    packed(tmp_path / "evil.bundle", bundle, change(content, tmp_path))
    with target.unchanged():
        done = target.run("apply", "--bundle", "evil.bundle", "--into", into, "--python", target.venv.python)
    refused(done, words)
    assert not list(tmp_path.rglob("outside.py"))


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def altered(data: bytes) -> bytes:
    at = data.index(b"evil/__init__.py") - 40
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_bundle_that_is_cut_off_is_refused_with_the_name_of_its_member(
    parts: tuple[Bundle, Parts], tmp_path: Path
) -> None:
    bad, whole = tmp_path / "bad.bundle", parts[0].path.read_bytes()
    for content, words in ((truncated(whole), f"in the middle of `{INNER}`"), (b"", "not a usable bundle")):
        bad.write_bytes(content)
        assert words in refusal(bad)


def test_an_altered_bundle_is_refused_with_the_name_of_its_member(
    target: Target, parts: tuple[Bundle, Parts], tmp_path: Path
) -> None:
    (tmp_path / "bad.bundle").write_bytes(altered(parts[0].path.read_bytes()))
    with target.unchanged():
        refused(target.run("apply", "--bundle", "bad.bundle", "--into", "env"), INNER)


@pytest.mark.parametrize("index", ["http://[bad", "https://u:p@h/simple/", "ftp://h/", "../..", "x" * 9000])
def test_an_index_that_is_none_is_no_bug(
    index: str, target: Target, parts: tuple[Bundle, Parts], tmp_path: Path
) -> None:
    """The index of a manifest is only compared with those of the lock."""
    bundle, content = parts
    manifest = msgspec.structs.replace(bundle.manifest, index=index)
    write_bundle(tmp_path / "evil.bundle", manifest, {i: Source.of(data) for i, data in content.items()})
    with target.unchanged():
        done = target.run("plan", "--bundle", "evil.bundle", "--into", "env", "--python", target.venv.python)
    assert done.code in {0, 1, 2}, done.err
    assert "Traceback" not in done.err
    assert "u:p@" not in done.err + done.out


def test_a_member_is_not_written_through_a_link(
    target: Target, parts: tuple[Bundle, Parts], tmp_path: Path
) -> None:
    """What stands in the home where the matrix goes is replaced, not followed."""
    bundle, content = parts
    packed(tmp_path / "good.bundle", bundle, content)
    argv = ("plan", "--bundle", "good.bundle", "--into", "env", "--python", target.venv.python)
    assert target.run(*argv).code == 0
    (matrix,) = target.home.glob("bundles/*/tiny.toml")
    assert stat.S_IMODE(matrix.stat().st_mode) == 0o600
    victim = tmp_path / "victim"
    victim.write_text("precious")
    matrix.unlink()
    matrix.symlink_to(victim)
    assert target.run(*argv).code == 0
    assert victim.read_text() == "precious"
    assert not matrix.is_symlink()


def test_names_with_terminal_escapes_are_shown_as_escapes(target: Target, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.bundle", "w") as archive:
        archive.writestr(NAME, b'{"format": 1}')
        archive.writestr("files/\x1b[2J.whl", b"x")
    done = target.run("apply", "--bundle", "evil.bundle")
    refused(done, "is not a usable bundle")
    assert "\x1b" not in done.err
