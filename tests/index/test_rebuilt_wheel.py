"""Our own wheels: replaced metadata, modules from a source root, the same bytes each time."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import uv

from colablock._common.child_environment import Purpose, child_environment
from colablock._common.urls import Url
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, parse_wheel_filename
from colablock._vendor.packaging.version import Version
from colablock.errors import BadDistribution
from colablock.index.archive import open_archive
from colablock.index.rebuilt_wheel import archive_version, rebuild, rebuilt_version
from colablock.matrix.model import PackageEntry
from colablock.network.cache import Cache
from tests.support.wheels import make_sdist, make_wheel

pytestmark = pytest.mark.stdlib

ENTRY = PackageEntry(
    name=NormalizedName("axolotl"),
    path="packages.axolotl",
    version="0.4.0",
    source_root="src",
    requires_dist=(Requirement("fire"), Requirement('art; extra == "pretty"')),
)
TREE = {
    "setup.py": "raise SystemExit('never run')",
    "README.md": "# read me",
    "src/axolotl/__init__.py": "",
    "src/axolotl/cli/train.py": "answer = 42\n",
    "src/axolotl/data/prompts.yml": "a: b\n",
    "src/axolotl/__pycache__/x.pyc": "old",
    "src/single.py": "alone = True\n",
    "src/axolotl.egg-info/PKG-INFO": "Name: axolotl",
    "tests/__init__.py": "",
    "tests/test_x.py": "",
}


def tarball(path: Path, files: Mapping[str, str], *, top: str = "axolotl-0.4.0") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}/{name}" if top else name)
            info.size = len(text.encode())
            archive.addfile(info, BytesIO(text.encode()))
    return path


def zipball(path: Path, files: Mapping[str, str], *, top: str = "axolotl-0.4.0") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{top}/{name}", text)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def assert_record_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert names[-1].endswith(".dist-info/RECORD")
        rows = list(csv.reader(archive.read(names[-1]).decode().splitlines()))
        assert [row[0] for row in rows] == names
        for path, digest, size in rows[:-1]:
            data = archive.read(path)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={expected}", str(len(data)))


def test_an_archive_is_identified_by_its_content_or_its_pinned_hash(tmp_path: Path, cache: Cache) -> None:
    entry = replace(ENTRY, url=Url("https://host.example/archive/v0.4.0.tar.gz"))
    first, second = tarball(tmp_path / "a.tar.gz", TREE), zipball(tmp_path / "b.zip", TREE)
    assert first.read_bytes() != second.read_bytes()
    wheels = [rebuild(entry, archive, cache=cache)[0] for archive in (first, second)]
    assert wheels[0].name == wheels[1].name
    pinned = replace(entry, sha256=hashlib.sha256(first.read_bytes()).hexdigest())
    assert rebuild(pinned, first, cache=cache)[0].name != wheels[0].name
    other = tarball(tmp_path / "c.tar.gz", {**TREE, "README.md": "another text"})
    assert rebuild(entry, other, cache=cache)[0].name != wheels[0].name


@pytest.mark.parametrize("make", [tarball, zipball])
def test_an_archive_becomes_a_wheel_of_its_modules(tmp_path: Path, cache: Cache, make: object) -> None:
    archive = make(tmp_path / "v0.4.0.archive", TREE)  # type: ignore[operator]
    wheel, metadata = rebuild(ENTRY, archive, cache=cache)
    version = rebuilt_version(ENTRY, Version("0.4.0"), hashlib.sha256(archive.read_bytes()).hexdigest())
    assert wheel.name == f"axolotl-{version}-py3-none-any.whl"
    assert parse_wheel_filename(wheel.name)[:2] == ("axolotl", version)
    info = f"axolotl-{version}.dist-info"
    assert names_in(wheel) == [
        "axolotl/__init__.py",
        "axolotl/cli/train.py",
        "axolotl/data/prompts.yml",
        "single.py",
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "top_level.txt", "RECORD")),
    ]
    assert_record_holds(wheel)
    assert [str(line) for line in metadata.requires] == ["fire", 'art; extra == "pretty"']
    assert metadata.extras == {"pretty"}
    with zipfile.ZipFile(wheel) as opened:
        text = opened.read(f"{info}/METADATA").decode()
        assert opened.read(f"{info}/top_level.txt") == b"axolotl\nsingle\n"
    assert text == (
        f"Metadata-Version: 2.1\nName: axolotl\nVersion: {version}\nProvides-Extra: pretty\n"
        'Requires-Dist: fire\nRequires-Dist: art; extra == "pretty"\n'
    )


def test_the_wheel_installs_and_imports(tmp_path: Path, cache: Cache) -> None:
    wheel, _ = rebuild(ENTRY, tarball(tmp_path / "a.tar.gz", TREE), cache=cache)
    site = tmp_path / "site"
    install = [uv.find_uv_bin(), "pip", "install", "--no-config", "--offline", "--no-deps", "--quiet"]
    command = [*install, "--python", sys.executable, "--target", str(site), str(wheel)]
    environ = {**child_environment(Purpose.DOWNLOAD, os.environ), "UV_CACHE_DIR": str(tmp_path / "uv")}
    subprocess.run(command, check=True, env=environ)
    code = (
        "from axolotl.cli.train import answer; import single; from importlib.metadata import version as v; "
    )
    code += "print(answer, v('axolotl'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("42 0.4.0+colablock.")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    archive = tarball(tmp_path / "a.tar.gz", TREE)
    moved = tmp_path / "elsewhere" / "other-name.tgz"
    moved.parent.mkdir()
    moved.write_bytes(archive.read_bytes())
    first, _ = rebuild(ENTRY, archive, cache=Cache(tmp_path / "one"))
    second, _ = rebuild(ENTRY, moved, cache=Cache(tmp_path / "two"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_the_local_label_depends_on_every_input() -> None:
    one = Version("0.4.0")
    changes = [
        ENTRY,
        replace(ENTRY, source_root="lib"),
        replace(ENTRY, requires_dist=(Requirement("fire"),)),
        replace(ENTRY, requires_dist=None),
        replace(ENTRY, source_root=None),
    ]
    labels = {str(rebuilt_version(entry, one, digest)) for entry in changes for digest in ("aa", "bb")}
    assert len(labels) == 10
    assert rebuilt_version(ENTRY, one, "aa") == rebuilt_version(replace(ENTRY, why="a reason"), one, "aa")
    assert str(rebuilt_version(ENTRY, Version("1+cu118"), "aa")).startswith("1+cu118.colablock.")


def test_a_wrong_hash_is_refused(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(BadDistribution, match="is expected"):
        rebuild(ENTRY, tarball(tmp_path / "a.tar.gz", TREE), cache=cache, sha256="0" * 64)


def test_a_missing_source_root_is_hinted_at(tmp_path: Path, cache: Cache) -> None:
    archive = tarball(tmp_path / "v0.4.0.tar.gz", TREE)
    with pytest.raises(BadDistribution, match="no importable module") as caught:
        rebuild(replace(ENTRY, source_root=None), archive, cache=cache)
    assert "source-root" in (caught.value.hint or "")
    assert "`src`" in (caught.value.hint or "")


def test_a_flat_layout_needs_no_source_root(tmp_path: Path, cache: Cache) -> None:
    flat = {
        "setup.py": "",
        "docs/conf.py": "",
        "docs/__init__.py": "",
        "axolotl/__init__.py": "",
        "extra/x.py": "",
    }
    wheel, _ = rebuild(replace(ENTRY, source_root=None), tarball(tmp_path / "a.tar.gz", flat), cache=cache)
    assert names_in(wheel)[0] == "axolotl/__init__.py"
    assert not any(name.startswith(("docs", "extra", "setup")) for name in names_in(wheel))


def test_an_archive_with_a_builder_is_built_and_repacked(tmp_path: Path, cache: Cache) -> None:
    sdist = make_sdist(tmp_path, "axolotl", "0.4.0", requires=["old"])
    built = make_wheel(tmp_path / "built", "axolotl", "0.4.0", requires=["old"])
    entry = replace(ENTRY, source_root=None)
    wheel, metadata = rebuild(entry, sdist, cache=cache, build=lambda _: built)
    assert [line.name for line in metadata.requires] == ["fire", "art"]
    label = rebuilt_version(entry, Version("0.4.0"), hashlib.sha256(sdist.read_bytes()).hexdigest())
    assert wheel.name == f"axolotl-{label}-py3-none-any.whl"


def test_extension_modules_are_refused(tmp_path: Path, cache: Cache) -> None:
    archive = tarball(tmp_path / "a.tar.gz", {**TREE, "src/axolotl/fast.pyx": "cdef int x"})
    with pytest.raises(BadDistribution, match=r"fast\.pyx"):
        rebuild(ENTRY, archive, cache=cache)


def test_facts_of_a_static_project_are_kept(tmp_path: Path, cache: Cache) -> None:
    project = (
        '[project]\nname = "Axolotl"\nversion = "0.9"\ndescription = "Train models"\n'
        'requires-python = ">=3.9"\n'
        'dependencies = ["kept"]\n[project.scripts]\naxolotl = "axolotl.cli:main"\n'
        '[project.entry-points."some.group"]\nname = "a:b"\n'
    )
    archive = tarball(tmp_path / "a.tar.gz", {**TREE, "pyproject.toml": project})
    entry = replace(ENTRY, version=None, requires_dist=None)
    assert archive_version(archive, entry) == Version("0.9")
    wheel, metadata = rebuild(entry, archive, cache=cache)
    assert [str(line) for line in metadata.requires] == ["kept"]
    assert metadata.requires_python == ">=3.9"
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith("entry_points.txt"))
        points = opened.read(name).decode()
        text = opened.read(name.replace("entry_points.txt", "METADATA")).decode()
    assert points == "[console_scripts]\naxolotl = axolotl.cli:main\n\n[some.group]\nname = a:b\n"
    assert "Name: Axolotl\n" in text


def test_entry_points_of_an_old_sdist_are_kept(tmp_path: Path, cache: Cache) -> None:
    points = "[console_scripts]\nx = axolotl:main\n"
    files = {**TREE, "src/axolotl.egg-info/entry_points.txt": points}
    wheel, _ = rebuild(ENTRY, tarball(tmp_path / "a.tar.gz", files), cache=cache)
    assert any(name.endswith("entry_points.txt") for name in names_in(wheel))


@pytest.mark.parametrize("changes", [{"version": None}, {"requires_dist": None}])
def test_facts_missing_in_the_archive_have_to_be_given(
    tmp_path: Path, cache: Cache, changes: dict[str, None]
) -> None:
    archive = tarball(tmp_path / "a.tar.gz", TREE)
    with pytest.raises(BadDistribution, match="has no static") as caught:
        rebuild(replace(ENTRY, **changes), archive, cache=cache)  # type: ignore[arg-type]
    assert "packages.axolotl" in (caught.value.hint or "")


# -- wheels


def test_a_wheel_keeps_all_but_its_requirements(tmp_path: Path, cache: Cache) -> None:
    original = make_wheel(
        tmp_path,
        "axolotl",
        "0.4.0",
        requires=["old", 'other; extra == "gone"'],
        extras=["gone"],
        requires_python=">=3.8",
        tag="cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64",
        build="3",
        scripts={"axolotl": "axolotl:main"},
        data_files={"data/share/x.txt": "data", "scripts/run": "#!python\n"},
    )
    entry = replace(ENTRY, source_root=None)
    wheel, metadata = rebuild(entry, original, cache=cache)
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    version = rebuilt_version(entry, Version("0.4.0"), digest)
    assert wheel.name == f"axolotl-{version}-3-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    assert_record_holds(wheel)
    renamed = {name.replace("axolotl-0.4.0.d", f"axolotl-{version}.d") for name in names_in(original)}
    assert set(names_in(wheel)) == renamed
    assert [str(line) for line in metadata.requires] == ["fire", 'art; extra == "pretty"']
    assert metadata.extras == {"pretty"}
    assert metadata.requires_python == ">=3.8"
    with zipfile.ZipFile(wheel) as opened:
        script = opened.getinfo(f"axolotl-{version}.data/scripts/run")
        assert script.external_attr >> 16 & stat.S_IXUSR
        assert b"Build: 3" in opened.read(f"axolotl-{version}.dist-info/WHEEL")
    again, _ = rebuild(entry, original, cache=Cache(tmp_path / "other"))
    assert again.read_bytes() == wheel.read_bytes()


def test_a_description_in_the_body_is_kept(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "axolotl-0.4.0-py3-none-any.whl"
    text = "Metadata-Version: 2.1\nName: axolotl\nVersion: 0.4.0\nRequires-Dist: old\n  continued\n"
    text += "\nRequires-Dist: body\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("axolotl.py", "")
        archive.writestr("axolotl-0.4.0.dist-info/METADATA", text)
        archive.writestr("axolotl-0.4.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("axolotl-0.4.0.dist-info/RECORD", "")
    wheel, _ = rebuild(replace(ENTRY, source_root=None), path, cache=cache)
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith("METADATA"))
        head, _, body = opened.read(name).decode().partition("\n\n")
    assert body == "Requires-Dist: body\n"
    assert "old" not in head
    assert "continued" not in head


def test_a_wheel_without_modules_is_refused(tmp_path: Path, cache: Cache) -> None:
    empty = make_wheel(tmp_path, "axolotl", "0.4.0", modules={}, data_files={"data/x": "y"})
    with pytest.raises(BadDistribution, match="no importable module"):
        rebuild(replace(ENTRY, source_root=None), empty, cache=cache)


def test_a_wheel_of_another_project_is_refused(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(BadDistribution, match="belongs to other"):
        rebuild(replace(ENTRY, source_root=None), make_wheel(tmp_path, "other", "1.0"), cache=cache)


def test_a_wheel_that_cannot_be_read_is_refused(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "axolotl-0.4.0-py3-none-any.whl"
    path.write_bytes(b"no zip archive")
    with pytest.raises(BadDistribution):
        rebuild(replace(ENTRY, source_root=None), path, cache=cache)


# -- archives that mean harm


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "a\\..\\..\\evil.py", "C:\\x.py"]
)
@pytest.mark.parametrize("make", [tarball, zipball])
def test_a_path_that_leads_outside_is_refused(tmp_path: Path, name: str, make: object) -> None:
    path = tmp_path / "a.archive"
    if make is tarball:
        tarball(path, {name: "x"}, top="")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(BadDistribution, match="leaves the"), open_archive(path):
        pass


@pytest.mark.parametrize(
    ("kind", "target", "fine"),
    [
        (tarfile.SYMTYPE, "../../outside", False),
        (tarfile.SYMTYPE, "/etc/passwd", False),
        (tarfile.LNKTYPE, "../outside", False),
        (tarfile.CHRTYPE, "", False),
        (tarfile.SYMTYPE, "real.py", True),
        (tarfile.SYMTYPE, "../top/real.py", True),
        (tarfile.LNKTYPE, "top/real.py", True),
        (tarfile.SYMTYPE, "missing.py", True),
    ],
)
def test_links_and_devices_in_an_archive(tmp_path: Path, kind: bytes, target: str, *, fine: bool) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        real = tarfile.TarInfo("top/real.py")
        real.size = 4
        archive.addfile(real, BytesIO(b"real"))
        link = tarfile.TarInfo("top/link.py")
        link.type, link.linkname = kind, target
        archive.addfile(link)
    if not fine:
        with pytest.raises(BadDistribution), open_archive(path):
            pass
        return
    with open_archive(path) as opened:
        assert opened.read_text("real.py") == "real"
        assert opened.read_text("link.py") == (None if target == "missing.py" else "real")


def test_links_in_a_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    for target, fine in (("real.py", True), ("../../outside", False)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("top/real.py", "real")
            link = zipfile.ZipInfo("top/link.py")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, target)
        if fine:
            with open_archive(path) as opened:
                assert list(opened.members) == ["real.py"]
        else:
            with pytest.raises(BadDistribution, match="leaves the"), open_archive(path):
                pass


def test_a_source_root_cannot_lead_outside(tmp_path: Path, cache: Cache) -> None:
    entry = replace(ENTRY, source_root="src/../..")
    with pytest.raises(BadDistribution, match="leaves the"):
        rebuild(entry, tarball(tmp_path / "a.tar.gz", TREE), cache=cache)
