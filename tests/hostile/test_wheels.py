"""Wheels that must not be installed, into the kernel or into an environment of their own.

Each case is the project ``evil`` 1.0 with one thing wrong.  The refusal comes before anything is unpacked.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from colablock._common import limits
from colablock.environment.record import Row, row_differs
from colablock.errors import BadDistribution, ExitCode
from colablock.index.wheel_check import check_wheel
from colablock.unpacking.unpack import unpack
from tests.support.hostile import INTO, Target, refused
from tests.support.hostile_wheels import HostileWheel, entry
from tests.support.wheels import make_wheel, metadata_text

WHEEL = "Wheel-Version: {version}\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
INFO = "evil-1.0.dist-info"
DATA = "evil-1.0.data"
LINK = stat.S_IFLNK | 0o777
LEAVES = "which leaves the archive"
NO_PATH = "which is not a valid path"
ON_EVERY = "is not a valid file name on every system"
OWN = "which is part of the environment itself"
SAME = "are the same where case and Unicode forms do not count"
ROW = "{path},sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,{size}\n"


def patched(at: int, layout: str, *values: int, central: bool = True) -> Callable[[bytes], bytes]:
    """Return a damage: *values* written at *at* in the (central or local) header of ``evil/data.bin``."""

    def damage(data: bytes) -> bytes:
        name = b"evil/data.bin"
        start = data.rindex(name) - 46 if central else data.index(name) - 30
        changed = bytearray(data)
        struct.pack_into(layout, changed, start + at, *values)
        return bytes(changed)

    return damage


def listed(path: str, size: int | str = 0) -> Callable[[str], str]:
    """Return a RECORD with one more row."""
    return lambda text: text + ROW.format(path=path, size=size)


def points(line: str, group: str = "console_scripts") -> HostileWheel:
    return HostileWheel(info={"entry_points.txt": f"[{group}]\n{line}\n"})


def described(version: str = "1.0", tag: str = "py3-none-any") -> HostileWheel:
    return HostileWheel(info={"WHEEL": WHEEL.format(version=version, tag=tag)})


def holding(*paths: str) -> HostileWheel:
    return HostileWheel(files=dict.fromkeys(paths, "x = 1\n"))


def bent(damage: Callable[[bytes], bytes]) -> HostileWheel:
    return HostileWheel(files={"evil/data.bin": b"abc" * 100}, damage=damage)


PATHS = {
    "parent folders": (holding("../../../../outside.py"), LEAVES),
    "a parent folder inside": (holding("evil/../../outside.py"), LEAVES),
    "an absolute path": (holding("/tmp/outside.py"), LEAVES),  # noqa: S108
    "two slashes first": (holding("//server/outside.py"), LEAVES),
    "backslashes": (holding("..\\..\\outside.py"), LEAVES),
    "a drive letter": (holding("C:/outside.py"), LEAVES),
    "an empty part": (holding("evil//twice.py"), NO_PATH),
    "a dot part": (holding("evil/./here.py"), NO_PATH),
    "a NUL": (HostileWheel(members=[(entry("evil/x.py\0.txt"), b"")]), "NUL"),
    "a line feed": (holding("evil/a\nb.py"), r"`evil/a\nb.py`"),
    "an escape sequence": (holding("evil/\x1b[31mred.py"), r"`evil/\x1b[31mred.py`"),
    "a bidirectional control": (holding("evil/\u202eyp.txt"), r"`evil/\u202eyp.txt`"),
    "a zero-width character": (holding("evil/a\u200bb.py"), r"`evil/a\u200bb.py`"),
    "a line separator": (holding("evil/a\u2028b.py"), r"`evil/a\u2028b.py`"),
    "a device name": (holding("evil/nul"), ON_EVERY),
    "a device name with a suffix": (holding("evil/Con.py"), ON_EVERY),
    "a final dot": (holding("evil/name."), ON_EVERY),
    "a final space": (holding("evil/name "), ON_EVERY),
    "a name of 300 bytes": (holding(f"evil/{'n' * 300}"), ON_EVERY),
    "a long path": (holding("/".join(["evil", *["folder" * 10] * 30, "x.py"])), "characters"),
    "a deep path": (holding("/".join(["evil", *["d"] * 100, "x.py"])), "102 folders"),
    "a symbolic link": (
        HostileWheel(members=[(entry("evil/link", LINK), b"/etc/passwd")]),
        "`evil/link` is a link or a device",
    ),
    "a link to a folder, and a file through it": (
        HostileWheel(members=[(entry("evil/link", LINK), b"/tmp"), (entry("evil/link/x.py"), b"")]),
        "`evil/link` is a link or a device",
    ),
    "a device": (HostileWheel(members=[(entry("evil/dev", stat.S_IFCHR | 0o666), b"")]), "a device"),
    "a FIFO": (HostileWheel(members=[(entry("evil/fifo", stat.S_IFIFO | 0o666), b"")]), "a device"),
    "one path twice": (
        HostileWheel(members=[(entry("evil/__init__.py"), b"import os")]),
        "the path `evil/__init__.py` twice",
    ),
    "names that differ in case": (holding("evil/Setup.py", "evil/setup.py"), SAME),
    "folders that differ in case": (holding("evil/Sub/a.py", "evil/sub/b.py"), SAME),
    "metadata in another case": (holding(f"{INFO}/metadata"), SAME),
    "two Unicode forms of one name": (holding("evil/\u00e9.py", "evil/e\u0301.py"), SAME),
    "a file that is a folder, too": (holding("evil/a", "evil/a/b.py"), "twice"),
}
SCHEMES = {
    "an unknown scheme": (holding(f"{DATA}/stdlib/os.py"), "no scheme of the wheel format"),
    "a file that is the scheme": (holding(f"{DATA}/scripts"), "no scheme of the wheel format"),
    "the data of another project": (holding("other-1.0.data/scripts/other"), "no scheme of the wheel format"),
    "one destination by two schemes": (
        holding(f"{DATA}/purelib/evil/x.py", f"{DATA}/platlib/evil/x.py"),
        "the path `site/evil/x.py` twice",
    ),
    "metadata by a scheme": (holding(f"{DATA}/purelib/standing-1.0.dist-info/RECORD"), "hides metadata"),
    "modules by the data scheme": (
        holding("evil/x.py", f"{DATA}/data/lib/python3.13/site-packages/evil/x.py"),
        "the path `site/evil/x.py` twice",
    ),
    "the standard library by the data scheme": (holding(f"{DATA}/data/lib/python3.13/os.py"), OWN),
    "the interpreter": (holding(f"{DATA}/scripts/python3"), OWN),
    "the interpreter by the data scheme": (holding(f"{DATA}/data/bin/python"), OWN),
    "the activation": (holding(f"{DATA}/scripts/activate"), OWN),
    "the configuration of the environment": (holding(f"{DATA}/data/pyvenv.cfg"), OWN),
    "our own state": (holding(f"{DATA}/data/.colablock/1/record.json"), OWN),
    "our own state as a package": (holding(".colablock/1/record.json"), OWN),
}
METADATA = {
    "no WHEEL": (HostileWheel(info={"WHEEL": None}), "it has no WHEEL"),
    "no METADATA": (HostileWheel(info={"METADATA": None}), "it has no METADATA"),
    "no RECORD": (HostileWheel(record=lambda _: None), "it has no RECORD"),
    "Wheel-Version 2": (described(version="2.0"), "its Wheel-Version is 2.0"),
    "two Wheel-Versions": (described(version="1.0\nWheel-Version: 2.0"), "its Wheel-Version is 1.0, 2.0"),
    "tags of another system": (described(tag="cp313-cp313-win_amd64"), "contradicts the file name"),
    "tags of another Python": (described(tag="cp27-cp27m-linux_x86_64"), "contradicts the file name"),
    "METADATA of another project": (
        HostileWheel(info={"METADATA": metadata_text("standing", "1.0")}),
        "its METADATA is that of standing 1.0",
    ),
    "METADATA of another version": (
        HostileWheel(info={"METADATA": metadata_text("evil", "9.0")}),
        "its METADATA is that of evil 9.0",
    ),
    "two dist-info folders": (holding("standing-1.0.dist-info/METADATA"), "2 .dist-info folders"),
    "dist-info in another case": (holding("Standing-1.0.DIST-INFO/x"), "2 .dist-info folders"),
}
RECORDS = {
    "a row outside": (HostileWheel(record=listed("../../outside.py")), LEAVES),
    "an absolute row": (HostileWheel(record=listed("/etc/passwd")), LEAVES),
    "a row of a missing file": (
        HostileWheel(record=listed("evil/gone.py")),
        "`evil/gone.py`, which is not in it",
    ),
    "another size": (
        HostileWheel(files={"evil/x.py": "x"}, record=lambda text: text.replace(",1\n", ",2\n")),
        "`evil/x.py` 2 bytes, but it has 1",
    ),
    "a size that is no number": (
        HostileWheel(files={"evil/x.py": "x"}, record=lambda text: text.replace(",1\n", ",x\n")),
        "`evil/x.py` x bytes, but it has 1",
    ),
    "another hash": (
        HostileWheel(record=lambda text: text.replace("sha256=", "sha256=A")),
        "differ from their RECORD",
    ),
    "two hashes": (HostileWheel(record=listed("evil/__init__.py", 7)), "twice, with different hashes"),
    "a weak hash": (
        HostileWheel(record=lambda text: text.replace("sha256=", "md5=")),
        "no strong hash of `evil/__init__.py`",
    ),
    "no hash": (
        HostileWheel(files={"evil/x.py": "x"}, record=lambda text: text + "evil/x.py,,\n"),
        "twice, with different hashes",
    ),
    "an unlisted file of others": (
        HostileWheel(unlisted={"standing/planted.py": "x = 1\n"}),
        "its RECORD does not list `standing/planted.py`",
    ),
}
ENTRY_POINTS = {
    "a name with a path": (points("../../x = evil:main"), "`../../x` is not a valid name of a script"),
    "an absolute name": (points("/bin/x = evil:main"), "is not a valid name of a script"),
    "a name of an option": (points("-x = evil:main"), "is not a valid name of a script"),
    "a name that is `..`": (points(".. = evil:main"), "is not a valid name of a script"),
    "a name with a bracket": (points("x[y = evil:main"), "is not a valid name of a script"),
    "the name of the interpreter": (points("python = evil:main"), "is not a valid name of a script"),
    "code as the module": (points("x = os;import evil:main"), "is not a `module:object`"),
    "code as the object": (points("x = evil:main());print(1"), "is not a `module:object`"),
    "no object": (points("x = evil"), "is not a `module:object`"),
    "no target": (points("x"), "is not a `module:object`"),
    "a carriage return": (points("x = evil:main\ry = os:system"), "control character"),
    "a vertical tab in another group": (points("x = evil:main\x0by = z", "plugins"), "control character"),
    "a graphical script": (points("a/b = evil:main", "gui_scripts"), "is not a valid name of a script"),
}
ZIPS = {
    "no archive": (HostileWheel(damage=lambda _: b"no archive"), "cannot be"),
    "an empty file": (HostileWheel(damage=lambda _: b""), "cannot be"),
    "half an archive": (HostileWheel(damage=lambda data: data[: len(data) // 2]), "cannot be"),
    "an encrypted member": (bent(patched(8, "<H", 1)), "is encrypted"),
    "an unknown compression": (bent(patched(10, "<H", 99)), "is compressed by the unknown method 99"),
    "LZMA": (bent(patched(10, "<H", 14)), "is compressed by the unknown method 14"),
    "another local name": (
        bent(lambda data: data.replace(b"evil/data.bin", b"evil/dat4.bin", 1)),
        "differs from the directory",
    ),
    "another local size": (bent(patched(22, "<L", 5, central=False)), "differs from the directory"),
    "another local compression": (bent(patched(8, "<H", 0, central=False)), "differs from the directory"),
    "members that overlap": (bent(patched(42, "<L", 0)), "does not follow the member before it"),
    "data before the archive": (HostileWheel(damage=lambda data: b"#!/bin/sh\n" + data), "does not follow"),
    "a huge announced size": (bent(patched(24, "<L", 0xFFFFFFF0)), "times their size"),
    "a huge directory": (
        HostileWheel(damage=lambda data: data[:-10] + struct.pack("<LLH", 0xF0000000, 0, 0)),
        "its directory has 4026531840 bytes",
    ),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "path": PATHS,
        "scheme": SCHEMES,
        "metadata": METADATA,
        "RECORD": RECORDS,
        "entry point": ENTRY_POINTS,
        "zip": ZIPS,
    }.items()
    for name, case in cases.items()
}
LATER = ("RECORD: another hash",)  # found after unpacking
# One of each kind: all others come out of the same function.
WHOLE = (
    *LATER,
    "RECORD: an unlisted file of others",
    "path: parent folders",
    "path: an escape sequence",
    "scheme: the interpreter",
    "metadata: tags of another system",
    "RECORD: another size",
    "entry point: a name with a path",
    "zip: half an archive",
)


@pytest.mark.slow  # whole commands
@pytest.mark.parametrize("into", INTO)
@pytest.mark.parametrize("name", WHOLE)
def test_a_hostile_wheel_is_refused(name: str, into: str, target: Target) -> None:
    wheel, says = CASES[name]
    wheel.write(target.wheels)
    target.write_matrix("evil")
    with target.unchanged():
        done = target.apply(into)
    refused(done, "evil", says)
    assert not list(target.folder.rglob("outside*"))


@pytest.mark.parametrize("name", [name for name in CASES if name not in LATER])
def test_a_hostile_wheel_is_refused_before_it_is_unpacked(name: str, tmp_path: Path) -> None:
    wheel, says = CASES[name]
    with pytest.raises(BadDistribution) as caught:
        check_wheel(wheel.write(tmp_path))
    message = str(caught.value)
    if not says.startswith("cannot be"):
        assert says in message
    assert message.isprintable()
    assert caught.value.exit_code == ExitCode.UNMET


GOOD = {
    "a plain wheel": HostileWheel(),
    "every scheme": HostileWheel(
        files={
            f"{DATA}/{path}": "x"
            for path in ("purelib/a.py", "platlib/b.py", "scripts/evil", "data/share/x", "headers/x.h")
        }
    ),
    "scripts": points("evil.x-1_2 = evil.sub:main.run [extra, other]"),
    "free targets in other groups": points("x = anything, really", "plugins"),
    "accents, Chinese and emoji": holding("evil/\u00e9.txt", "evil/\u6f22.txt", "evil/\u2764\ufe0f.txt"),
    "headers that differ in case, as those of Linux": holding("evil/xt_MARK.h", "evil/xt_mark.h"),
    "an unlisted file of its own": HostileWheel(unlisted={"evil/more.py": ""}),
    "a platform that was renamed": HostileWheel(
        filename="evil-1.0-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        info={"WHEEL": WHEEL.format(version="1.0", tag="cp310-abi3-linux_x86_64")},
    ),
    "tags in one line, as build backends of Rust write them": HostileWheel(
        filename="evil-1.0-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        info={
            "WHEEL": WHEEL.format(version="1.0", tag="cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64")
        },
    ),
    "a sparse file": HostileWheel(files={"evil/zeros.bin": bytes(30 << 20)}),
    "folders": HostileWheel(members=[(entry("evil/", stat.S_IFDIR | 0o755), b"")]),
    "an empty folder that ends in a dot": HostileWheel(
        members=[(entry("evil./", stat.S_IFDIR | 0o755), b"")]
    ),
}


@pytest.mark.parametrize("wheel", GOOD.values(), ids=GOOD)
def test_unusual_but_valid_wheels_pass(wheel: HostileWheel, tmp_path: Path) -> None:
    assert check_wheel(wheel.write(tmp_path)) == ()


ROWS_OF_BYTECODE = ("shake_128=abc", "shake_256=", "md5=abc", "sha1=abc", "blake9=x", "=", "")


@pytest.mark.parametrize("row", ["sha256", "sha256=", "sha256=abc"])
def test_an_empty_hash_differs(row: str, tmp_path: Path) -> None:
    wheel = HostileWheel(unlisted={"evil/x.py": "abc"}, record=lambda text: f"{text}evil/x.py,{row},3\n")
    with pytest.raises(BadDistribution, match=r"`evil/x.py` differs from its RECORD"):
        unpack(wheel.write(tmp_path), tmp_path / "tree")


@pytest.mark.parametrize("row", ROWS_OF_BYTECODE)
def test_a_weak_hash_of_bytecode_is_not_compared(row: str, tmp_path: Path) -> None:
    """RECORD need not have a hash of bytecode, and each file has one after unpacking."""
    wheel = HostileWheel(unlisted={"evil/x.pyc": "abc"}, record=lambda text: f"{text}evil/x.pyc,{row},3\n")
    files = {file.path: file.hash for file in unpack(wheel.write(tmp_path), tmp_path / "tree").files}
    assert files["evil/x.pyc"] == "sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0"
    assert all(found.startswith("sha256=") for found in files.values())
    path = tmp_path / "tree" / "evil" / "x.pyc"
    assert not row_differs(path, Row("evil/x.pyc", row, "3"))


NOTES = {
    "a .pth file": (holding("evil.pth"), "`evil` 1.0 has code that runs whenever Python starts: evil.pth"),
    "sitecustomize": (
        holding("sitecustomize.py"),
        "`evil` 1.0 has code that runs whenever Python starts: sitecustomize.py",
    ),
    "usercustomize": (
        holding("usercustomize/__init__.py"),
        "`evil` 1.0 has code that runs whenever Python starts: usercustomize/__init__.py",
    ),
    "a module of the standard library": (
        holding("json/__init__.py", "typing.py"),
        "`evil` 1.0 has modules with names of the standard library: json, typing",
    ),
}


@pytest.mark.parametrize("case", NOTES.values(), ids=NOTES)
def test_code_that_runs_unasked_is_noted(case: tuple[HostileWheel, str], tmp_path: Path) -> None:
    wheel, says = case
    assert check_wheel(wheel.write(tmp_path)) == (says,)


SHIM = (
    "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local';"
    " enabled and __import__('_distutils_hack').add_shim(); \n"
)


@pytest.mark.parametrize(
    ("project", "more", "is_noted"),
    [("setuptools", "", False), ("setuptools", "import evil\n", True), ("evil", "", True)],
)
def test_the_file_of_every_setuptools_is_no_news(
    project: str, more: str, is_noted: bool, tmp_path: Path
) -> None:
    modules = {"distutils-precedence.pth": SHIM + more, f"{project}/__init__.py": ""}
    notes = check_wheel(make_wheel(tmp_path, project, "83.0.0", modules=modules))
    assert [one.rpartition(" ")[2] for one in notes] == ["distutils-precedence.pth"] * is_noted


@pytest.mark.slow  # whole commands
@pytest.mark.parametrize("into", INTO)
def test_an_apply_says_the_notes(into: str, target: Target) -> None:
    wheel, says = NOTES["a .pth file"]
    wheel.write(target.wheels)
    target.write_matrix("evil")
    done = target.apply(into)
    assert f"note: {says}" in " ".join(done.err.split())


LIMITS = {
    "MEMBERS": (4, "it has more than 4 members"),
    "ARCHIVE_MEMBER": (5000, "its member `evil/data.bin` has 6.0 kB"),
    "ARCHIVE_UNPACKED": (5000, "it has more than 5.0 kB unpacked"),
    "ARCHIVE_RATIO_FROM": (100, "unpack to more than 2 times their size"),
    "METADATA": (10, "its WHEEL has 76 bytes"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_refuses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value, says = LIMITS[name]
    ratio = 2 if name == "ARCHIVE_RATIO_FROM" else 10**6
    for module in ("colablock._common.archive_contents", "colablock.index.wheel_check"):
        monkeypatch.setattr(f"{module}.{name}", value, raising=False)
        monkeypatch.setattr(f"{module}.ARCHIVE_RATIO", ratio, raising=False)
    wheel = HostileWheel(files={"evil/data.bin": bytes(6000)}).write(tmp_path)
    with pytest.raises(BadDistribution, match=says):
        check_wheel(wheel)
    assert getattr(limits, name) > value * 100
