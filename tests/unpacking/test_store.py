"""Wheels are unpacked once, and each environment gets links to the same files."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from colablock._common.fs import file_digest
from colablock._common.process import safe_umask
from colablock.environment.record import Row, read_record, row_differs, write_record
from colablock.errors import BadDistribution
from colablock.network.cache import Cache
from colablock.network.cache_prune import clean, contents, prune
from colablock.unpacking.layout import Layout, lay_out
from colablock.unpacking.store import UnpackedStore
from tests.support.faults import in_a_child
from tests.support.hostile_wheels import HostileWheel
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.stdlib

DAY = 86_400.0
SAYS = "import sys\ndef main():\n    print('said', sys.argv[1:])\n"


@dataclass
class Ground:
    """A cache with a store, a wheel, and folders to lay it out in."""

    folder: Path
    cache: Cache = field(init=False)
    wheel: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cache = Cache(self.folder / "cache")
        self.wheel = make_wheel(
            self.folder,
            "told",
            "1.0",
            modules={"told.py": SAYS, "told_more/__init__.py": "x = 1\n"},
            scripts={"say": "told:main"},
            data_files={
                "scripts/say-more": "#!python\nimport told\ntold.main()\n",
                "scripts/shell": "#!/bin/sh\necho shell\n",
                "data/share/told/x.txt": "x",
                "headers/told.h": "int x;",
                "platlib/plat.py": "",
            },
        )

    def layout(self, name: str, python: str = sys.executable, *, copies: bool = False) -> Layout:
        prefix = self.folder / name
        site = f"{prefix}/lib/python3/site-packages"
        folders = {"purelib": site, "platlib": site, "scripts": f"{prefix}/bin", "data": str(prefix)}
        folders["headers"] = f"{prefix}/include"
        return Layout(folders=folders, final=folders, python=python, copies=copies)

    def install(self, name: str, *, own: dict[str, str] | None = None, copies: bool = False) -> Path:
        """Install the wheel below the folder *name*, and return its site-packages."""
        store = UnpackedStore(self.cache, target=self.folder, scratch=self.folder / "scratch")
        stored = store.get(self.wheel, file_digest(self.wheel))
        info, _ = lay_out(stored, self.layout(name, copies=copies), own or {})
        store.close()
        return info.parent

    @property
    def entry(self) -> Path:
        (manifest,) = self.cache.folder.glob("unpacked/*/*/manifest.json")
        return manifest.parent

    def run(self, name: str, site: Path) -> str:
        program = site.parents[2] / "bin" / name
        environ = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run([program, "word"], capture_output=True, text=True, check=True, env=environ)
        return done.stdout.strip()


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def test_two_environments_share_the_files_of_a_wheel(ground: Ground) -> None:
    one, other = (ground.install(name, own={"INSTALLER": "colablock\n"}) for name in ("one", "other"))
    assert (one / "told.py").samefile(other / "told.py")
    assert (one / "told.py").stat().st_nlink == 3
    for written in ("told-1.0.dist-info/RECORD", "told-1.0.dist-info/INSTALLER"):
        assert not (one / written).samefile(other / written)
    assert not (one.parents[2] / "bin" / "shell").samefile(other.parents[2] / "bin" / "shell")


def test_each_file_is_recorded_as_it_is(ground: Ground) -> None:
    site = ground.install("one", own={"INSTALLER": "colablock\n", "REQUESTED": ""})
    rows = {row.path: row for row in read_record(site / "told-1.0.dist-info") or ()}
    found = {os.path.relpath(path, site) for path in site.parents[2].rglob("*") if path.is_file()}
    assert set(rows) == found
    assert rows.pop("told-1.0.dist-info/RECORD") == Row("told-1.0.dist-info/RECORD")
    assert {"../../../include/told/told.h", "../../../share/told/x.txt", "plat.py"} <= set(rows)
    assert not [path for path, row in rows.items() if not row.hash or row_differs(site / path, row)]


@pytest.mark.parametrize("folder", ["plain", "with a space and 'quotes'", "l" * 150])
def test_scripts_start_with_the_interpreter(ground: Ground, folder: str) -> None:
    python = ground.folder / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    store = UnpackedStore(ground.cache, target=ground.folder, scratch=ground.folder / "scratch")
    stored = store.get(ground.wheel, file_digest(ground.wheel))
    info, _ = lay_out(stored, ground.layout("one", str(python)), {})
    assert [ground.run(name, info.parent) for name in ("say", "say-more")] == ["said ['word']"] * 2
    assert ground.run("shell", info.parent) == "shell"


def test_a_disk_that_is_full_is_no_fault_of_the_wheel(ground: Ground) -> None:
    store = UnpackedStore(ground.cache, target=ground.folder, scratch=ground.folder / "scratch")

    def unpack_until_full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
        with pytest.raises(OSError, match=r"File too large: .*RECORD"):
            store.get(ground.wheel, file_digest(ground.wheel))

    assert in_a_child(unpack_until_full) == 0
    assert not [*ground.cache.unfinished.iterdir()]


def edit(path: Path) -> None:
    path.write_text("changed in place, which a link shows everywhere\n")


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("#")


def forge(path: Path) -> None:
    """Change the content, and nothing that `stat` shows."""
    status = path.stat()
    path.write_text("x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def reboot(ground: Ground) -> None:
    manifest = ground.entry / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "boot": "another start"}))


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def crash_of_the_machine(ground: Ground, site: Path) -> None:
    forge(site / "told.py")
    reboot(ground)


DAMAGE: dict[str, Callable[[Ground, Path], object]] = {
    "edited in place": lambda _, site: edit(site / "told.py"),
    "appended to": lambda _, site: append(site / "told.py"),
    "other permissions": lambda _, site: (site / "told.py").chmod(0o600),
    "a file removed": lambda ground, _: os.unlink(ground.entry / "tree" / "told.py"),  # noqa: PTH108 - a value
    "a file that is a link": lambda ground, _: replace_by_link(ground.entry / "tree" / "told.py"),
    "no manifest": lambda ground, _: os.unlink(ground.entry / "manifest.json"),  # noqa: PTH108 - a value
    "half a manifest": lambda ground, _: (ground.entry / "manifest.json").write_bytes(b'{"files": ['),
    "zeros after a crash of the machine": crash_of_the_machine,
    "another umask": lambda _, __: os.umask(0o077),
}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_changed_entry_is_unpacked_again(ground: Ground, damage: Callable[[Ground, Path], object]) -> None:
    site = ground.install("one")
    (ground.folder / "hidden.whl").hardlink_to(ground.wheel)
    damage(ground, site)
    again = ground.install("again")
    assert not (again / "told.py").samefile(site / "told.py")
    assert (again / "told.py").read_text() == SAYS
    assert (ground.install("third") / "told.py").samefile(again / "told.py")


@pytest.mark.usefixtures("umask")
def test_no_folder_can_be_written_by_others(ground: Ground) -> None:
    os.umask(0)
    ground.wheel = make_wheel(ground.folder, "deep", "1.0", modules={"one/two/three/a.py": ""})
    site = ground.install("one")
    (tree,) = ground.cache.folder.glob("unpacked/*/*/tree")
    for root in (site, tree):
        assert not {path for path in root.rglob("*") if path.stat().st_mode & 0o022}


IN_USE: dict[str, Callable[[Ground], object]] = {
    "another umask": lambda _: os.umask(0o077),
    "a damaged entry": lambda ground: edit(ground.entry / "tree" / "told_more" / "__init__.py"),
    "no manifest": lambda ground: (ground.entry / "manifest.json").unlink(),
    "another file name": lambda ground: setattr(
        ground, "wheel", ground.wheel.rename(ground.folder / "told-1.0-py2.py3-none-any.whl")
    ),
}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("damage", IN_USE.values(), ids=IN_USE)
def test_an_entry_in_use_stays(ground: Ground, damage: Callable[[Ground], object]) -> None:
    user = UnpackedStore(ground.cache, target=ground.folder, scratch=ground.folder / "scratch")
    stored = user.get(ground.wheel, file_digest(ground.wheel))
    damage(ground)
    other = ground.install("other")
    assert (other / "told_more" / "__init__.py").read_text() == "x = 1\n"
    info, _ = lay_out(stored, ground.layout("one"), {})
    assert (info.parent / "told.py").samefile(stored.folder / "told.py")
    del stored
    assert (ground.install("after") / "told_more" / "__init__.py").read_text() == "x = 1\n"
    assert not list((ground.cache.folder / "unfinished").glob("*"))


def test_files_of_another_user_are_copied(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    ground.install("zero")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)  # as root, who uses the cache of the caller of sudo
    store = UnpackedStore(ground.cache, target=ground.folder, scratch=ground.folder / "scratch")
    stored = store.get(ground.wheel, file_digest(ground.wheel))
    info, _ = lay_out(stored, ground.layout("one"), {})
    assert {path.stat().st_nlink for path in info.parent.rglob("*") if path.is_file()} == {1}
    assert (info.parent / "told.py").stat().st_mode & 0o777 == 0o666 & ~safe_umask()


@pytest.mark.parametrize("path", ["told.pyc", "told-1.0.dist-info/RECORD"])
@pytest.mark.parametrize("boot", ["another start", ""])
def test_every_file_is_hashed_after_a_restart(
    ground: Ground, path: str, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.wheel = make_wheel(ground.folder, "told", "1.0", modules={"told.py": SAYS, "told.pyc": "abc"})
    if not boot:
        monkeypatch.setattr("colablock.unpacking.store._boot", lambda: "")  # a sandbox has none
    site = ground.install("one")
    if boot:
        reboot(ground)
    forge(ground.entry / "tree" / path)
    assert not (ground.install("two") / "told.py").samefile(site / "told.py")


def test_a_full_disk_is_no_entry_of_others(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        ground.install("one")


def test_after_a_restart_an_entry_is_read_once(ground: Ground) -> None:
    site = ground.install("one")
    reboot(ground)
    assert (ground.install("two") / "told.py").samefile(site / "told.py")
    forge(site / "told.py")
    assert (ground.install("three") / "told.py").samefile(site / "told.py")  # as documented: it is not read


def test_a_copy_if_uv_is_told_to_copy(ground: Ground) -> None:
    site = ground.install("one", copies=True)
    assert {path.stat().st_nlink for path in site.rglob("*.py")} == {1}


def test_another_distribution_replaces_a_file_and_not_the_store(ground: Ground) -> None:
    site = ground.install("one")
    ground.wheel = make_wheel(ground.folder, "other", "1.0", modules={"told.py": "other\n"})
    ground.install("one")
    assert (site / "told.py").read_text() == "other\n"
    assert sorted(path.read_text() for path in ground.cache.folder.rglob("told.py")) == [SAYS, "other\n"]


def test_a_file_where_another_wheel_has_a_folder(ground: Ground) -> None:
    ground.install("one")
    ground.wheel = make_wheel(ground.folder, "other", "1.0", modules={"told_more.py": "", "other.py": ""})
    site = ground.install("one")
    ground.wheel = make_wheel(ground.folder, "last", "1.0", modules={"other.py/__init__.py": ""})
    with pytest.raises(BadDistribution, match=r"`last-1.0.*` has a file where another wheel has a folder"):
        ground.install("one")
    assert (site / "other.py").is_file()


def test_nothing_is_left_of_a_refused_wheel(ground: Ground) -> None:
    record = HostileWheel(record=lambda text: text.replace("sha256=", "sha256=A"))
    ground.wheel = record.write(ground.folder)
    with pytest.raises(BadDistribution, match="differ from their RECORD"):
        ground.install("one")
    assert not [path for path in ground.cache.folder.rglob("*") if path.is_file()]


def test_a_wheel_with_another_hash_is_refused(ground: Ground) -> None:
    store = UnpackedStore(ground.cache, target=ground.folder, scratch=ground.folder / "scratch")
    with pytest.raises(BadDistribution, match="another SHA-256"):
        store.get(ground.wheel, "0" * 64)


def test_without_a_cache_nothing_stays(ground: Ground) -> None:
    store = UnpackedStore(None, target=ground.folder, scratch=ground.folder / "scratch")
    stored = store.get(ground.wheel, file_digest(ground.wheel))
    info, _ = lay_out(stored, ground.layout("one"), {})
    store.close()
    assert {path.stat().st_nlink for path in info.parent.rglob("*") if path.is_file()} == {1}
    assert not list((ground.folder / "scratch").rglob("*.py"))


def test_several_at_the_same_time_get_one_entry(ground: Ground) -> None:
    with ThreadPoolExecutor(4) as pool:
        sites = list(pool.map(ground.install, [f"env{number}" for number in range(8)]))
    assert {(site / "told.py").read_text() for site in sites} == {SAYS}
    assert ground.entry.is_dir()
    assert not list((ground.cache.folder / "unfinished").glob("*"))


def test_pruning_leaves_the_files_of_a_wheel(ground: Ground) -> None:
    ground.wheel = make_wheel(ground.folder, "told", "1.0", modules={"told/.new-a": "x", "told.py": SAYS})
    ground.install("one")
    now = ground.entry.stat().st_mtime
    del ground.cache
    assert prune(ground.folder / "cache", now=now + 20 * DAY).entries == 0
    assert (next(ground.folder.glob("cache/unpacked/*/*/tree/told")) / ".new-a").is_file()


def test_pruning_knows_unpacked_wheels(ground: Ground) -> None:
    site = ground.install("one")
    (kind,) = (kind for kind in contents(ground.cache.folder) if kind.name == "unpacked")
    assert kind.entries == 1
    now = ground.entry.stat().st_mtime
    folder = ground.cache.folder
    assert prune(folder, now=now + 40 * DAY).left == 1  # a process uses the cache
    del ground.cache
    assert prune(folder, now=now + 20 * DAY).entries == 0
    assert prune(folder, now=now + 20 * DAY, days=10).entries == 1
    assert (site / "told.py").read_text() == SAYS
    ground.cache = Cache(folder)
    unused = ground.install("unused")
    del ground.cache
    shutil.rmtree(unused.parents[2])
    assert prune(folder, now=now).entries == 0  # an environment may have copies
    assert prune(folder, now=now + 2 * DAY).entries == 1
    ground.cache = Cache(folder)
    ground.install("two")
    del ground.cache
    assert clean(folder, ["other"]).entries == 0
    assert clean(folder, ["told"]).entries == 1


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """A write beyond *size* bytes of a file writes what fits, and the next one fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_never_cut_short_in_silence(ground: Ground, tmp_path: Path) -> None:
    ground.install("warm")
    with disk_with_room_for(50_000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        ground.install("full", own={"direct_url.json": "x" * 80_000})
    rows = [Row(f"{number:040}.py", "", "0") for number in range(2_000)]
    with disk_with_room_for(50_000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        write_record(tmp_path, rows)
