"""What files say of themselves, and how little of them is fetched to learn it."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.errors import BadDistribution
from colablock.index.archive import open_archive
from colablock.index.candidates import File
from colablock.index.core_metadata import (
    CoreMetadata,
    RemoteFile,
    archive_facts,
    parse_core_metadata,
    read_wheel_metadata,
    static_metadata,
)
from colablock.index.metadata_fetcher import MetadataSource
from colablock.network.fetcher import Fetcher
from tests.support.fetching import DEMO_WHEEL, received
from tests.support.fixtures import index_fixture
from tests.support.server import Fault, IndexServer
from tests.support.wheels import make_sdist, make_wheel

pytestmark = pytest.mark.stdlib

DEMO = NormalizedName("demo")

METADATA = b"""Metadata-Version: 2.1\r
Name: Demo.Pack\r
Version: 1.0\r
Summary: Two\r
        lines\r
Requires-Python: >=3.9\r
Provides-Extra: More_Things\r
Requires-Dist: numpy<3,>=1.26\r
Requires-Dist: torch (>=2.0) ; extra == 'more-things'\r
\r
Requires-Dist: not-a-field\r
"""


# -- text


def test_core_metadata_is_read_up_to_its_body() -> None:
    fields = parse_core_metadata(METADATA)
    assert (fields.name, fields.version, fields.requires_python) == ("Demo.Pack", "1.0", ">=3.9")
    assert (fields.summary or "").split() == ["Two", "lines"]
    parsed = fields.parsed("demo")
    assert [str(line) for line in parsed.requires] == ["numpy<3,>=1.26", 'torch>=2.0; extra == "more-things"']
    assert parsed.extras == {"more-things"}
    fields.check("demo-pack", Version("1.0.0"), "demo")


@pytest.mark.parametrize("line", ["foo (>=1.0.*)", "foo >= ", "=broken", "foo>=1; python_version ? '3'"])
def test_an_invalid_requirement_is_named(line: str) -> None:
    fields = CoreMetadata(name="demo", version="1", requires=("good", line))
    with pytest.raises(BadDistribution) as caught:
        fields.parsed("demo-1-py3-none-any.whl")
    assert f"`{line}`" in str(caught.value)
    assert "demo-1-py3-none-any.whl" in str(caught.value)


@pytest.mark.parametrize("line", ["foo>=1,", "foo (<2)", "foo [bar]>=1", "foo>=1;python_version>='3'"])
def test_legacy_requirement_syntax_is_accepted(line: str) -> None:
    assert CoreMetadata(name="demo", version="1", requires=(line,)).parsed("demo").requires


def test_only_the_lines_under_an_extra_are_read_where_all_are_known_to_be_valid() -> None:
    fields = parse_core_metadata(METADATA)
    parsed, known = fields.parsed("demo"), fields.judged().parsed("demo")
    assert [*map(str, known.requires)] == [*map(str, parsed.requires)]
    assert [one.name for one in known.requires_under()] == ["numpy"]
    assert [one.name for one in known.requires_under("more-things")] == ["numpy", "torch"]
    assert (known.extras, known.requires_python) == (parsed.extras, parsed.requires_python)


def test_an_invalid_requirement_is_named_each_time_it_is_read_from_the_cache(tmp_path: Path) -> None:
    lines = ["good", "foo (>=1.0.*) ; extra == 'of-nobody'"]
    wheel = make_wheel(tmp_path, "demo", "1.0", requires=lines)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    file = File(filename=wheel.name, url=wheel.as_uri(), hashes={"sha256": sha256})
    for _ in range(2):
        read = MetadataSource(Fetcher(os.environ)).read(DEMO, Version("1.0"), file)
        with pytest.raises(BadDistribution, match="is not a valid requirement"):
            read.parsed("demo")


def test_an_invalid_requires_python_is_ignored() -> None:
    fields = CoreMetadata(name="demo", version="1", requires_python=">=3.x")
    assert fields.parsed("demo").requires_python is None


@pytest.mark.parametrize(
    ("name", "version"), [("other", "1"), ("demo", "2"), ("demo", "no version"), ("", "")]
)
def test_metadata_of_another_project_is_refused(name: str, version: str) -> None:
    with pytest.raises(BadDistribution, match="belongs to"):
        CoreMetadata(name=name, version=version).check("demo", Version("1"), "demo-1.whl")


# -- wheels


def test_a_wheel_without_its_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("demo.py", "")
    with path.open("rb") as stream, pytest.raises(BadDistribution, match="no METADATA"):
        read_wheel_metadata(stream, path.name)
    with pytest.raises(BadDistribution, match="cannot be read as a wheel"):
        read_wheel_metadata(BytesIO(b"not a zip archive"), path.name)


@pytest.mark.parametrize("tail", [22, 300, 4000, 10**7])
def test_a_remote_file_fetches_only_what_is_read(tmp_path: Path, tail: int) -> None:
    modules = {f"demo/m{i}.py": "x" * 3000 for i in range(60)}
    content = make_wheel(tmp_path, "demo", "1.0", requires=["dep"], modules=modules).read_bytes()
    asked: list[tuple[int, int]] = []

    def fetch(start: int, end: int) -> bytes:
        asked.append((start, end))
        return content[start:end]

    remote = RemoteFile(fetch, len(content), content[-tail:])
    assert read_wheel_metadata(remote, "demo").requires == ("dep",)
    assert sum(end - start for start, end in asked) < len(content) // 5
    assert len(asked) <= 3


def test_a_remote_file_reads_like_a_file() -> None:
    data = bytes(range(100))
    remote = RemoteFile(lambda start, end: data[start:end], 100, data[90:])
    assert (remote.readable(), remote.seekable()) == (True, True)
    assert remote.seek(-10, 2) == 90
    assert remote.read(5) == data[90:95]
    assert remote.tell() == 95
    assert remote.read() == data[95:]
    assert remote.read(1) == b""
    assert remote.seek(5) == 5
    assert remote.seek(5, 1) == 10
    assert remote.read(85) == data[10:95]
    with pytest.raises(OSError, match="before the start"):
        remote.seek(-1)


# -- by which way


def fill(folder: Path) -> None:
    big = {f"demo/m{i}.py": "x" * 30_000 for i in range(20)}
    make_wheel(folder, "demo", "1.0", requires=["dep>=1"], modules=big)


index = index_fixture(fill)


@pytest.fixture
def wheel(index: Path) -> Path:
    return index / DEMO_WHEEL


def remote_file(server: IndexServer, wheel: Path, *, announced: bool = False, size: bool = True) -> File:
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("demo-1.0.dist-info/METADATA")
    return File(
        filename=wheel.name,
        url=server.file_url(wheel.name),
        hashes={"sha256": hashlib.sha256(content).hexdigest()},
        size=len(content) if size else None,
        core_metadata={"sha256": hashlib.sha256(text).hexdigest()} if announced else False,
    )


def read(fetcher: Fetcher, file: File) -> CoreMetadata:
    return MetadataSource(fetcher).read(DEMO, Version("1.0"), file)


def test_the_announced_metadata_file_is_enough(server: IndexServer, wheel: Path, fetcher: Fetcher) -> None:
    file = remote_file(server, wheel, announced=True)
    assert read(fetcher, file).requires == ("dep>=1",)
    assert server.paths == [f"/files/{wheel.name}.metadata"]
    # For ever: another process asks nobody.
    assert read(fetcher, file).requires == ("dep>=1",)
    assert len(server.requests) == 1


def test_an_announced_file_with_another_hash_is_refused(
    server: IndexServer, wheel: Path, fetcher: Fetcher
) -> None:
    file = remote_file(server, wheel, announced=True)
    server.fault(f"/files/{wheel.name}.metadata", Fault(body=b"Name: demo\nVersion: 1.0\n"))
    with pytest.raises(BadDistribution, match=r"hash .*, expected"):
        read(fetcher, file)


def test_a_missing_announced_metadata_file_is_tolerated(wheel: Path, fetcher: Fetcher) -> None:
    with IndexServer(wheel.parent, metadata=False) as server:
        assert read(fetcher, remote_file(server, wheel, announced=True)).requires == ("dep>=1",)


@pytest.mark.parametrize("size", [True, False])
def test_the_tail_of_a_wheel_is_enough(
    server: IndexServer, wheel: Path, fetcher: Fetcher, *, size: bool
) -> None:
    assert read(fetcher, remote_file(server, wheel, size=size)).requires == ("dep>=1",)
    assert [request.status for request in server.requests] == [206]
    assert received(fetcher) <= 1 << 16


def test_without_ranges_the_whole_wheel_is_fetched_once(
    wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    with IndexServer(wheel.parent, ranges=False) as server:
        file = remote_file(server, wheel)
        assert read(fetcher, file).requires == ("dep>=1",)
        assert fetcher.download([file], tmp_path / "into")
        assert [request.status for request in server.requests] == [200, 200]


def test_a_wheel_of_another_project_is_refused(server: IndexServer, wheel: Path, fetcher: Fetcher) -> None:
    with pytest.raises(BadDistribution, match=r"belongs to demo 1\.0"):
        MetadataSource(fetcher).read(NormalizedName("other"), Version("1.0"), remote_file(server, wheel))


def test_damaged_metadata_in_the_cache_is_fetched_again(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    file = remote_file(server, wheel)
    read(fetcher, file)
    for text in (b"{", b"[]", b'{"name": "demo"}'):
        for path in (tmp_path / "cache" / "metadata").rglob("*"):
            if path.is_file():
                path.write_bytes(text)
        assert read(fetcher, file).requires == ("dep>=1",)


def test_a_local_wheel_needs_no_network(
    server: IndexServer, wheel: Path, fetcher: Fetcher, tmp_path: Path
) -> None:
    file = remote_file(server, wheel, announced=True)
    fetcher.fetch(file)
    offline = Fetcher(os.environ, cache=tmp_path / "cache", offline=True)
    assert read(offline, file).requires == ("dep>=1",)
    assert server.paths == [f"/files/{wheel.name}"]


# -- sdists


def test_static_metadata_of_an_sdist_is_read(tmp_path: Path) -> None:
    facts = static_metadata(make_sdist(tmp_path, "demo", "1.0", requires=["dep"], extras=["x"]))
    assert facts is not None
    assert (facts.name, facts.version, facts.requires, facts.extras) == ("demo", "1.0", ("dep",), ("x",))


def test_metadata_of_an_sdist_before_2_2_is_not_trusted(tmp_path: Path, fetcher: Fetcher) -> None:
    sdist = make_sdist(tmp_path, "demo", "1.0", requires=["dep"], static=False)
    assert static_metadata(sdist) is None
    file = File(filename=sdist.name, url=sdist.as_uri())
    with pytest.raises(BadDistribution, match="has to be built") as caught:
        read(fetcher, file)
    assert caught.value.hint == "Add it to options.allow-build"
    wheel = make_wheel(tmp_path / "built", "demo", "1.0", requires=["dep"])
    assert MetadataSource(fetcher, lambda _: wheel).read(DEMO, Version("1.0"), file).requires == ("dep",)


def tarball(path: Path, **files: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"demo-1.0/{name.replace('__', '.')}")
            info.size = len(text.encode())
            archive.addfile(info, BytesIO(text.encode()))
    return path


STATIC = """
[project]
name = "demo"
version = "1.0"
description = "short"
requires-python = ">=3.9"
dependencies = ["dep>=1"]
[project.optional-dependencies]
More_Things = ["a", "b; python_version < '4' or os_name == 'nt'"]
"""


def test_a_static_project_table_is_trusted(tmp_path: Path) -> None:
    facts = static_metadata(tarball(tmp_path / "demo-1.0.tar.gz", pyproject__toml=STATIC))
    assert facts is not None
    assert facts.requires == (
        "dep>=1",
        'a; extra == "more-things"',
        'b; (python_version < "4" or os_name == "nt") and extra == "more-things"',
    )
    assert (facts.requires_python, facts.summary, facts.extras) == (">=3.9", "short", ("More_Things",))


def test_a_dynamic_version_comes_from_pkg_info(tmp_path: Path) -> None:
    text = STATIC.replace('version = "1.0"', 'dynamic = ["version"]')
    info = "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n"
    facts = static_metadata(tarball(tmp_path / "d.tar.gz", pyproject__toml=text, **{"PKG-INFO": info}))
    assert facts is not None
    assert (facts.version, facts.requires[0]) == ("1.0", "dep>=1")
    assert static_metadata(tarball(tmp_path / "e.tar.gz", pyproject__toml=text)) is None


@pytest.mark.parametrize(
    "text",
    [
        STATIC.replace("dependencies = [", 'dynamic = ["dependencies"]\nold = ['),
        STATIC.replace("[project]", "[tool.poetry]"),
        "not TOML",
        'project = "text"',
        '[project]\nname = "demo"\nversion = "1.0"\n[project.optional-dependencies]\nx = ["not ? valid"]',
    ],
)
def test_dynamic_metadata_needs_a_build(tmp_path: Path, text: str) -> None:
    assert static_metadata(tarball(tmp_path / "demo-1.0.tar.gz", pyproject__toml=text)) is None


def test_old_pkg_info_gives_version_and_requires_python(tmp_path: Path) -> None:
    info = "Metadata-Version: 1.2\nName: demo\nVersion: 1.0\nRequires-Python: >=3.8\nSummary: old\n"
    with open_archive(tarball(tmp_path / "d.tar.gz", **{"PKG-INFO": info})) as archive:
        facts = archive_facts(archive)
    assert (facts.version, facts.requires_python, facts.summary) == ("1.0", ">=3.8", "old")
    assert "requires-dist" in facts.dynamic


def test_an_unreadable_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.0.tar.gz"
    for content in (b"", b"not an archive", tarball(tmp_path / "x.tar.gz", a="b" * 9999).read_bytes()[:60]):
        path.write_bytes(content)
        with pytest.raises(BadDistribution):
            static_metadata(path)
