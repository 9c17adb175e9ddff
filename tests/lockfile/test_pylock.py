"""The lock file: its content, that it is reproducible, and that other tools install from it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.snapshot import take_snapshot
from colablock.errors import BadDistribution, InvalidInput
from colablock.index.candidates import Candidate, CandidateOrigin, File
from colablock.lockfile.package_files import Wheel
from colablock.lockfile.pylock import check_lock_name, lock_digest, make_lock, read_lock, write_lock
from colablock.matrix.model import Matrix
from colablock.resolver.model import Pin, Request, Resolution
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312, DictSource
from tests.support.fixtures import index_fixture
from tests.support.server import IndexServer
from tests.support.small_locks import fill_index, lock_of, run_uv, solved, written_to
from tests.support.wheels import make_wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = [pytest.mark.stdlib, pytest.mark.requirements]

index = index_fixture(fill_index)


def as_table(lock: Pylock) -> dict[str, Any]:
    """Return the lock file, parsed as plain TOML."""
    return tomllib.loads(write_lock(lock).decode())


def packages(lock: Pylock) -> dict[str, dict[str, Any]]:
    return {package["name"]: package for package in as_table(lock)["packages"]}


# -- content


def test_a_lock_is_valid_and_names_its_target(server: IndexServer) -> None:
    lock = lock_of(server, "stack", variant="cpu")
    text = as_table(lock)
    assert Pylock.from_dict(text) == lock
    assert text["lock-version"] == "1.0"
    assert text["created-by"] == "colablock"
    assert text["requires-python"] == "==3.12.*"
    assert text["environments"] == [
        'sys_platform == "linux" and platform_machine == "x86_64" and implementation_name == "cpython"'
    ]
    assert text["tool"]["colablock"] == {
        "schema": 1,
        "kind": "complete",
        "matrix": "demo",
        "matrix-digest": "d" * 64,
        "python": "3.12.11",
        "platform": "manylinux_2_35_x86_64",
        "requirements": ["stack"],
        "variant": "cpu",
    }


def test_a_package_has_its_files_its_requirements_and_its_index(server: IndexServer) -> None:
    found = packages(lock_of(server, "stack"))
    assert list(found) == ["base", "extra", "native", "stack"]
    base = found["base"]
    assert base["version"] == "1.5"
    assert base["index"] == server.url
    assert base["requires-python"] == ">=3.9"
    assert "sdist" not in base
    (wheel,) = base["wheels"]
    path = server.source.folder / "base-1.5-py3-none-any.whl"  # type: ignore[attr-defined]
    assert wheel["url"] == server.file_url(path.name)
    assert wheel["size"] == path.stat().st_size
    assert list(wheel["hashes"]) == ["sha256"]
    assert wheel["upload-time"] == datetime(2024, 1, 1, tzinfo=timezone.utc)
    assert [wheel["name"] for wheel in found["native"]["wheels"]] == [
        "native-2.0-cp312-cp312-manylinux_2_17_x86_64.whl"
    ]
    assert found["stack"]["dependencies"] == [{"name": "base"}, {"name": "extra"}]
    assert found["stack"]["tool"]["colablock"] == {"requires-dist": ["base>=1", "extra", "extra[fast]"]}
    assert found["extra"]["tool"]["colablock"] == {"requires-dist": ["native"], "extras": ["fast"]}


def test_the_requirements_are_listed_once_and_without_passwords(server: IndexServer) -> None:
    server.auth = ("me", "s3cret")
    url = server.file_url("base-1.5-py3-none-any.whl").replace("//", "//me:s3cret@")
    private = server.url.replace("//", "//me:s3cret@")
    roots = ("stack", "stack<2", "extra[fast]>1", "gone; python_version < '3'", f"base @ {url}")
    lock = lock_of(server, *roots, url=private)
    asked = as_table(lock)["tool"]["colablock"]["requirements"]
    plain = server.file_url("base-1.5-py3-none-any.whl")
    assert asked == [f"base @ {plain}", "extra[fast]>1", "stack", "stack<2"]
    assert b"s3cret" not in write_lock(lock)


def test_a_direct_reference_is_an_archive(server: IndexServer) -> None:
    url = server.file_url("base-1.5-py3-none-any.whl")
    base = packages(lock_of(server, f"base @ {url}"))["base"]
    assert base["archive"]["url"] == url
    assert list(base["archive"]["hashes"]) == ["sha256"]
    assert "wheels" not in base


def test_a_lock_without_packages_has_an_empty_list() -> None:
    resolution = resolve(Request(environment=PYTHON_312, roots=()), DictSource({}))
    lock = make_lock(resolution, Matrix(name="none", source="none.toml", digest="0" * 64))
    assert b"packages = []\n" in write_lock(lock)
    assert Pylock.from_dict(as_table(lock)).packages == []


def test_a_rebuilt_wheel_is_listed_by_its_path_beside_the_lock(server: IndexServer) -> None:
    resolution, matrix = solved(server, "base")
    rebuilt = Wheel(path="pylock.wheels/base-1.5-py3-none-any.whl", sha256="a" * 64, size=7)
    base = packages(make_lock(resolution, matrix, wheels={canonicalize_name("base"): rebuilt}))["base"]
    assert base["wheels"] == [{"path": rebuilt.path, "size": 7, "hashes": {"sha256": "a" * 64}}]
    assert base["tool"]["colablock"]["made-from"]["url"] == server.file_url("base-1.5-py3-none-any.whl")
    assert "index" not in base
    assert "sdist" not in base


def test_files_of_a_folder_have_hashes(server: IndexServer, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "links", "base", "1.6")
    base = packages(lock_of(server, "base", find_links=[str(wheel.parent)]))["base"]
    assert base["wheels"][0]["url"] == wheel.as_uri()
    assert len(base["wheels"][0]["hashes"]["sha256"]) == 64
    assert "index" not in base


def pinned(
    *files: File, name: str = "a", version: str = "1.0", origin: CandidateOrigin = CandidateOrigin.INDEX
) -> Resolution:
    """Return a resolution of one pin with *files*."""
    candidate = Candidate(
        name=canonicalize_name(name), version=Version(version), origin=origin, files=files, all_files=files
    )
    pin = Pin(name=candidate.name, candidate=candidate)
    return Resolution(request=Request(environment=PYTHON_312, roots=()), pins={pin.name: pin}, released={})


def wheel_file(name: str = "a-1.0-py3-none-any.whl", **facts: Any) -> File:
    facts = {"hashes": {"sha256": "a" * 64}, "index": "https://index.example/simple/", **facts}
    return File(filename=name, url=f"https://files.example/{name}", **facts)


PLAIN = Matrix(name="m", source="m.toml", digest="0" * 64)


@pytest.mark.parametrize("hashes", [{}, {"md5": "0" * 32}, {"sha1": "0" * 40}], ids=["none", "md5", "sha1"])
@pytest.mark.parametrize("origin", [CandidateOrigin.INDEX, CandidateOrigin.DIRECT])
def test_a_file_without_a_hash_is_refused(hashes: Mapping[str, str], origin: CandidateOrigin) -> None:
    with pytest.raises(BadDistribution, match=r"`a-1.0-py3-none-any.whl` is listed without a hash by https"):
        make_lock(pinned(wheel_file(hashes=hashes), origin=origin), PLAIN)


def test_an_unused_file_without_a_hash_is_not_listed() -> None:
    other = wheel_file("a-1.0-cp39-cp39-win_amd64.whl", hashes={})
    assert len(packages(make_lock(pinned(wheel_file(), other), PLAIN))["a"]["wheels"]) == 1


def test_a_file_name_that_a_lock_cannot_hold_is_omitted_or_refused() -> None:
    odd = wheel_file("a-1.0-1x-py3-none-any.zip")
    lock = make_lock(pinned(wheel_file(), odd), PLAIN, all_files=True)
    assert "sdist" not in packages(lock)["a"]
    with pytest.raises(BadDistribution, match="is not named as a lock needs it"):
        make_lock(pinned(odd), PLAIN)


def test_of_two_sdists_the_tar_gz_is_listed() -> None:
    both = [wheel_file("a-1.0.zip"), wheel_file("a-1.0.tar.gz")]
    for all_files in (False, True):
        lock = make_lock(pinned(*both), PLAIN, all_files=all_files)
        assert packages(lock)["a"]["sdist"]["name"] == "a-1.0.tar.gz"


def test_times_are_in_utc() -> None:
    east = datetime(2024, 5, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    matrix = replace(PLAIN, exclude_newer=datetime(2024, 9, 1))  # noqa: DTZ001
    lock = make_lock(pinned(wheel_file(upload_time=east)), matrix)
    text = write_lock(lock).decode()
    assert "upload-time = 2024-04-30 23:30:00+00:00\n" in text
    assert as_table(lock)["tool"]["colablock"]["exclude-newer"] == datetime(2024, 9, 1, tzinfo=timezone.utc)


# -- reproducible


def test_the_order_of_the_requirements_does_not_change_the_bytes(server: IndexServer) -> None:
    texts = {
        write_lock(lock_of(server, *roots)) for roots in permutations(["stack", "base<2", "extra", "base>1"])
    }
    assert len(texts) == 1
    assert lock_digest(lock_of(server, "stack")) == lock_digest(lock_of(server, "stack"))
    assert lock_digest(lock_of(server, "stack")) != lock_digest(lock_of(server, "base"))


def test_the_text_has_no_backslashes(server: IndexServer) -> None:
    text = write_lock(lock_of(server, "stack")).decode()
    assert "\\" not in text
    assert 'sys_platform == "linux" and' in text


@pytest.mark.parametrize("odd", ['a"b', "a'b\"c", "a\\b", 'a\\"b', 'tab\t"', 'ü"', '"', "'"])
def test_strings_without_escapes_mean_the_same(odd: str) -> None:
    lock = make_lock(pinned(wheel_file()), replace(PLAIN, name=odd))
    assert as_table(lock)["tool"]["colablock"]["matrix"] == odd


# -- reading


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lock-version = ", "is not TOML"),
        ("", "is not a lock file"),
        ('lock-version = "2.0"\ncreated-by = "x"\npackages = []', "is not a lock file"),
        ('lock-version = "1.0"\ncreated-by = "x"\npackages = {}', "is not a lock file"),
        ('lock-version = "1.0"\ncreated-by = "x"\n[[packages]]\nname = "a"', "is not a lock file"),
    ],
)
def test_a_file_that_is_not_a_lock_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=words):
        read_lock(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        read_lock(tmp_path / "pylock.toml")
    (tmp_path / "pylock.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="is not TOML"):
        read_lock(tmp_path / "pylock.toml")


@pytest.mark.parametrize("name", ["pylock.toml", "pylock.qlora-2024--colab-2026_07-gpu.toml"])
def test_file_names_that_installers_accept(name: str) -> None:
    check_lock_name(Path("some.where") / name)


@pytest.mark.parametrize("name", ["lock.toml", "pylock.a.b.toml", "pylock.txt", "pylock..toml"])
def test_file_names_that_installers_do_not_accept(name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a name for a lock file") as caught:
        check_lock_name(Path(name))
    assert caught.value.hint is not None


# -- installing


def test_uv_installs_from_a_lock(server: IndexServer, tmp_path: Path) -> None:
    here = take_snapshot(environ=os.environ).environment
    own = f"cp{here.short.replace('.', '')}"
    links = tmp_path / "links"
    make_wheel(links, "native", "2.1", tag=f"{own}-{own}-{here.tags[0].platform}")
    url = server.file_url("base-1.5-py3-none-any.whl")
    resolution, matrix = solved(server, "stack", f"base @ {url}", environment=here, find_links=[str(links)])
    rebuilt = make_wheel(tmp_path / "own", "extra", "3.0")
    content = rebuilt.read_bytes()
    wheel = Wheel(path=f"own/{rebuilt.name}", sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    lock = make_lock(resolution, matrix, wheels={canonicalize_name("extra"): wheel})
    path = written_to(lock, tmp_path)
    run_uv(["venv", "--python", sys.executable, str(tmp_path / "venv")])
    target = ["--python", str(tmp_path / "venv")]
    said = run_uv(["pip", "install", *target, "--dry-run", "-r", str(path), "--preview"])
    assert "Would install 4 packages" in said
    run_uv(["pip", "sync", *target, str(path), "--require-hashes", "--preview"])
    listed_ = run_uv(["pip", "freeze", *target])
    assert f"base @ {url}" in listed_
    for name in ("extra", "native", "stack==1.0"):
        assert name in listed_
    assert "All installed packages are compatible" in run_uv(["pip", "check", *target])


def test_uv_installs_an_empty_lock(tmp_path: Path) -> None:
    resolution = resolve(
        Request(environment=take_snapshot(environ=os.environ).environment, roots=()), DictSource({})
    )
    path = written_to(make_lock(resolution, PLAIN), tmp_path)
    run_uv(["venv", "--python", sys.executable, str(tmp_path / "venv")])
    run_uv(["pip", "install", "--python", str(tmp_path / "venv"), "--dry-run", "-r", str(path), "--preview"])
