"""The lock file: what it holds, that it is the same each time, and that others can install from it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import uv

from colablock._common.process import clean_environment
from colablock._common.reporter import Reporter
from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.environment.snapshot import Snapshot, take_snapshot
from colablock.errors import BadDistribution, InvalidInput, NoSolution
from colablock.index.candidates import Candidate, CandidateOrigin, File
from colablock.index.finder import IndexSource
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.package_files import Wheel
from colablock.lockfile.pylock import check_lock_name, lock_digest, make_lock, read_lock, write_lock
from colablock.matrix.model import Matrix, Options, PackageEntry, entry_of
from colablock.network.fetcher import Fetcher
from colablock.network.settings import Settings
from colablock.planning.plan import Target
from colablock.planning.solver import Solver
from colablock.resolver.model import Pin, Request, Resolution
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312, DictSource, entries, installed, pins_of
from tests.support.fixtures import index_fixture
from tests.support.server import IndexServer
from tests.support.wheels import make_sdist, make_wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = [pytest.mark.stdlib, pytest.mark.requirements]

MUSL = environment_for("3.12.11", "musllinux_1_2_x86_64")
ARM = environment_for("3.12.11", "manylinux_2_35_aarch64")
WINDOWS = environment_for("3.12.11", "win_amd64")
PYTHON_310 = environment_for("3.10.4", "manylinux_2_35_x86_64")


def fill(folder: Path) -> None:
    """Make a few wheels, one of them for some Pythons only, and an sdist."""
    make_wheel(folder, "stack", "1.0", requires=["base>=1", "extra[fast]; python_version >= '3.10'"])
    make_wheel(folder, "base", "1.5", requires_python=">=3.9")
    make_sdist(folder, "base", "1.5", requires_python=">=3.9")
    for python in ("cp310-cp310", "cp312-cp312"):
        make_wheel(folder, "native", "2.0", tag=f"{python}-manylinux_2_17_x86_64")
    make_wheel(folder, "extra", "3.0", extras=["fast"], requires=["native; extra == 'fast'"])


index = index_fixture(fill)


def solved(
    server: IndexServer,
    *roots: str,
    environment: Environment = PYTHON_312,
    find_links: Sequence[str] = (),
    url: str | None = None,
    **facts: Any,
) -> tuple[Resolution, Matrix]:
    """Return a solve of *roots* from what *server* has, and the matrix that asks for them."""
    packages = tuple(entry_of(Requirement(root), path="requirements") for root in roots)
    matrix = Matrix(name="demo", source="demo.toml", digest="d" * 64, packages=packages, **facts)
    source = IndexSource.for_matrix(
        matrix,
        environment=environment,
        fetcher=Fetcher(os.environ),
        default_index=url or server.url,
        find_links=find_links,
    )
    try:
        return resolve(Request(environment=environment, roots=packages), source), matrix
    finally:
        source.close()


def lock_of(server: IndexServer, *roots: str, **facts: Any) -> Pylock:
    return make_lock(*solved(server, *roots, **facts))


def as_table(lock: Pylock) -> dict[str, Any]:
    """Return the lock as another tool reads it."""
    return tomllib.loads(write_lock(lock).decode())


def packages(lock: Pylock) -> dict[str, dict[str, Any]]:
    return {package["name"]: package for package in as_table(lock)["packages"]}


# -- what is in it


def test_a_lock_is_valid_and_says_what_it_is_for(server: IndexServer) -> None:
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


def test_a_package_has_its_files_its_needs_and_its_index(server: IndexServer) -> None:
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


def test_what_was_asked_for_is_listed_once_and_without_passwords(server: IndexServer) -> None:
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


def test_a_lock_of_nothing_says_so() -> None:
    resolution = resolve(Request(environment=PYTHON_312, roots=()), DictSource({}))
    lock = make_lock(resolution, Matrix(name="none", source="none.toml", digest="0"))
    assert b"packages = []\n" in write_lock(lock)
    assert Pylock.from_dict(as_table(lock)).packages == []


def test_a_rebuilt_wheel_lies_beside_the_lock(server: IndexServer) -> None:
    resolution, matrix = solved(server, "base")
    rebuilt = Wheel(path="pylock.wheels/base-1.5-py3-none-any.whl", sha256="a" * 64, size=7)
    base = packages(make_lock(resolution, matrix, wheels={canonicalize_name("base"): rebuilt}))["base"]
    assert base["wheels"] == [{"path": rebuilt.path, "size": 7, "hashes": {"sha256": "a" * 64}}]
    assert base["tool"]["colablock"]["made-from"]["url"] == server.file_url("base-1.5-py3-none-any.whl")
    assert "index" not in base
    assert "sdist" not in base


def test_files_of_a_folder_have_hashes_too(server: IndexServer, tmp_path: Path) -> None:
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


PLAIN = Matrix(name="m", source="m.toml", digest="0")


@pytest.mark.parametrize("hashes", [{}, {"md5": "0" * 32}, {"sha1": "0" * 40}], ids=["none", "md5", "sha1"])
@pytest.mark.parametrize("origin", [CandidateOrigin.INDEX, CandidateOrigin.DIRECT])
def test_a_file_without_a_hash_is_refused(hashes: Mapping[str, str], origin: CandidateOrigin) -> None:
    with pytest.raises(BadDistribution, match=r"`a-1.0-py3-none-any.whl` is listed without a hash by https"):
        make_lock(pinned(wheel_file(hashes=hashes), origin=origin), PLAIN)


def test_a_hashless_file_that_is_not_used_is_left_out() -> None:
    other = wheel_file("a-1.0-cp39-cp39-win_amd64.whl", hashes={})
    assert len(packages(make_lock(pinned(wheel_file(), other), PLAIN))["a"]["wheels"]) == 1


def test_a_file_with_a_name_that_no_lock_takes_is_left_out_or_refused() -> None:
    odd = wheel_file("a-1.0-1x-py3-none-any.zip")
    lock = make_lock(pinned(wheel_file(), odd), PLAIN, all_files=True)
    assert "sdist" not in packages(lock)["a"]
    with pytest.raises(BadDistribution, match="is not named as a lock needs it"):
        make_lock(pinned(odd), PLAIN)


def test_of_two_sdists_the_one_of_today_is_taken() -> None:
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


# -- the same bytes


def test_the_same_solve_gives_the_same_bytes_in_whatever_order_it_was_asked(server: IndexServer) -> None:
    texts = {
        write_lock(lock_of(server, *roots)) for roots in permutations(["stack", "base<2", "extra", "base>1"])
    }
    assert len(texts) == 1
    assert lock_digest(lock_of(server, "stack")) == lock_digest(lock_of(server, "stack"))
    assert lock_digest(lock_of(server, "stack")) != lock_digest(lock_of(server, "base"))


def test_the_text_needs_no_backslashes(server: IndexServer) -> None:
    text = write_lock(lock_of(server, "stack")).decode()
    assert "\\" not in text
    assert 'sys_platform == "linux" and' in text


@pytest.mark.parametrize("odd", ['a"b', "a'b\"c", "a\\b", 'a\\"b', 'tab\t"', 'ü"', '"', "'"])
def test_plainer_strings_mean_the_same(odd: str) -> None:
    lock = make_lock(pinned(wheel_file()), replace(PLAIN, name=odd))
    assert as_table(lock)["tool"]["colablock"]["matrix"] == odd


# -- read again


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
def test_what_is_no_lock_is_refused(text: str, words: str, tmp_path: Path) -> None:
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
def test_names_that_installers_know(name: str) -> None:
    check_lock_name(Path("some.where") / name)


@pytest.mark.parametrize("name", ["lock.toml", "pylock.a.b.toml", "pylock.txt", "pylock..toml"])
def test_names_that_they_do_not(name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a name for a lock file") as caught:
        check_lock_name(Path(name))
    assert caught.value.hint is not None


# -- solved from


def written_to(lock: Pylock, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pylock.toml"
    path.write_bytes(write_lock(lock))
    return path


def again(path: Path, *roots: str, environment: Environment = PYTHON_312, **facts: Any) -> Resolution:
    """Solve *roots* from the lock in *path*, as a plan does."""
    solver = Solver(
        matrix=Matrix(
            name="demo",
            source="demo.toml",
            digest="d" * 64,
            packages=tuple(entry_of(Requirement(root), path="requirements") for root in roots),
            options=Options(allow_build=frozenset(facts.pop("allow_build", ()))),
        ),
        kernel=Snapshot(
            environment=environment,
            python="/usr/bin/python3",
            prefix="/usr",
            site="/usr/lib",
            installed=facts.pop("installed", {}),
            protected=facts.pop("protected", frozenset()),
        ),
        settings=Settings(default_index="http://127.0.0.1:9/simple/", offline=True),
        environ={**os.environ},
        reporter=Reporter(),
        lock=path,
    )
    if facts.pop("in_kernel", False):
        return solver.in_kernel("asked for").resolution
    return solver.from_nothing(environment, "")[0]


def test_a_lock_gives_the_same_pins_without_a_network(server: IndexServer, tmp_path: Path) -> None:
    resolution, matrix = solved(server, "stack")
    path = written_to(make_lock(resolution, matrix), tmp_path)
    server.forget_requests()
    found = again(path, "stack")
    assert server.requests == []
    assert pins_of(found) == pins_of(resolution)
    for name, pin in found.pins.items():
        assert pin.candidate.origin is CandidateOrigin.LOCK
        assert pin.candidate.file == replace(resolution.pins[name].candidate.files[0], core_metadata=False)
        assert pin.extras == resolution.pins[name].extras
        assert set(pin.requires) == set(resolution.pins[name].requires)
    assert write_lock(make_lock(found, matrix)) == path.read_bytes()


def test_an_archive_in_a_lock_is_a_direct_reference_still(server: IndexServer, tmp_path: Path) -> None:
    root = f"base @ {server.file_url('base-1.5-py3-none-any.whl')}"
    resolution, matrix = solved(server, root)
    path = written_to(make_lock(resolution, matrix), tmp_path)
    found = again(path, root)
    assert found.pins[canonicalize_name("base")].candidate.origin is CandidateOrigin.DIRECT
    assert write_lock(make_lock(found, matrix)) == path.read_bytes()


def test_a_wheel_beside_the_lock_is_found_wherever_both_are(server: IndexServer, tmp_path: Path) -> None:
    resolution, matrix = solved(server, "base")
    rebuilt = {
        canonicalize_name("base"): Wheel(path="own/base-1.5-py3-none-any.whl", sha256="a" * 64, size=7)
    }
    path = written_to(make_lock(resolution, matrix, wheels=rebuilt), tmp_path / "moved")
    wheel = tmp_path / "moved/own/base-1.5-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    file = again(path, "base").pins[canonicalize_name("base")].candidate.file
    assert file is not None
    assert file.url == wheel.as_uri()


def test_a_wheel_that_is_not_beside_the_lock_is_made_again_from_what_the_lock_names(
    server: IndexServer, tmp_path: Path
) -> None:
    resolution, matrix = solved(server, "base")
    rebuilt = {
        canonicalize_name("base"): Wheel(path="own/base-1.5-py3-none-any.whl", sha256="a" * 64, size=7)
    }
    path = written_to(make_lock(resolution, matrix, wheels=rebuilt), tmp_path)
    candidate = again(path, "base").pins[canonicalize_name("base")].candidate
    assert candidate.file is not None
    assert candidate.origin is CandidateOrigin.DIRECT
    assert candidate.file.url == server.file_url("base-1.5-py3-none-any.whl")


def test_the_pins_of_a_lock_are_exact_whatever_is_installed(server: IndexServer, tmp_path: Path) -> None:
    path = written_to(lock_of(server, "stack"), tmp_path)
    image = installed({"base 1.2": [], "extra 3.0": [], "other 1": []})
    found = again(path, "stack", installed=image, in_kernel=True)
    assert pins_of(found)["base"] == "1.5"
    assert found.pins[canonicalize_name("extra")].is_installed


def test_a_protected_one_stands_against_a_lock(server: IndexServer, tmp_path: Path) -> None:
    path = written_to(lock_of(server, "stack"), tmp_path)
    image = installed({"base 1.2": []})
    with pytest.raises(NoSolution) as caught:
        again(path, "stack", installed=image, protected=frozenset(image), in_kernel=True)
    assert "base 1.2 is installed and protected" in str(caught.value)
    assert "base is locked at 1.5" in str(caught.value)


def test_a_requirement_that_the_lock_does_not_meet_is_said(server: IndexServer, tmp_path: Path) -> None:
    path = written_to(lock_of(server, "stack"), tmp_path)
    with pytest.raises(NoSolution, match="`base>=2` fits no candidate"):
        again(path, "stack", "base>=2")
    with pytest.raises(NoSolution, match="`wandb` is not in the lock"):
        again(path, "stack", "wandb")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (PYTHON_310, r"the lock `pylock.toml` is for Python ==3.12.\*, and this is Python 3.10.4"),
        (MUSL, "is for manylinux_2_35_x86_64, and this is musllinux_1_2_x86_64"),
        (ARM, 'is for `sys_platform == "linux".*and this is Python 3.12.11 on linux aarch64'),
        (WINDOWS, 'is for `sys_platform == "linux".*and this is Python 3.12.11 on win32 AMD64'),
    ],
    ids=["Python", "C library", "machine", "system"],
)
def test_a_lock_for_another_environment_is_refused(
    server: IndexServer, tmp_path: Path, environment: Environment, words: str
) -> None:
    path = written_to(lock_of(server, "stack"), tmp_path)
    with pytest.raises(NoSolution, match=words):
        again(path, "stack", environment=environment)


# -- of another tool


def foreign(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "pylock.toml"
    path.write_text(f'lock-version = "1.0"\ncreated-by = "other"\n{body}', encoding="utf-8")
    return path


def listed(name: str, version: str | None = "1.0", more: str = "", files: str | None = None) -> str:
    hashes = 'hashes = { sha256 = "' + "a" * 64 + '" }'
    url = f"https://files.example/{name}-{version or '1.0'}-py3-none-any.whl"
    files = files or f'wheels = [{{ url = "{url}", HASHES }}]'
    stated = f'version = "{version}"\n' if version else ""
    return f'[[packages]]\nname = "{name}"\n{stated}{more}\n{files.replace("HASHES", hashes)}\n'


def test_all_of_another_tools_lock_is_wanted(tmp_path: Path) -> None:
    path = foreign(tmp_path, listed("a") + listed("b") + listed("c"))
    assert pins_of(again(path, "b")) == {"a": "1.0", "b": "1.0", "c": "1.0"}


def test_what_another_tool_says_of_needs_is_kept(tmp_path: Path) -> None:
    needs = 'dependencies = [{ name = "b" }, { name = "not-here" }]'
    found = again(foreign(tmp_path, listed("a", more=needs) + listed("b", None)), "a")
    assert found.pins[canonicalize_name("a")].requires == ("b",)
    assert pins_of(found) == {"a": "1.0", "b": "1.0"}


def test_markers_choose_among_the_packages_of_a_lock(tmp_path: Path) -> None:
    body = (
        'dependency-groups = ["dev"]\ndefault-groups = ["dev"]\n'
        + listed("a", "1.0", "marker = \"python_version < '3.12'\"")
        + listed("a", "2.0", "marker = \"python_version >= '3.12'\"")
        + listed("b", "1.0", "marker = \"sys_platform == 'win32'\"")
        + listed("c", "1.0", "marker = \"'dev' in dependency_groups\"")
        + listed("d", "1.0", "marker = \"'more' in extras\"")
    )
    path = foreign(tmp_path, body)
    assert pins_of(again(path)) == {"a": "2.0", "c": "1.0"}
    assert pins_of(again(path, environment=PYTHON_310)) == {"a": "1.0", "c": "1.0"}


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the lock `pylock.toml` lists a twice for Python 3.12.11"):
        again(foreign(tmp_path, listed("a") + listed("a", "2.0")))


SDIST = 'sdist = { url = "https://files.example/a-1.0.tar.gz", HASHES }'
ARCHIVE = 'archive = { url = "https://files.example/v1.0.tar.gz", HASHES }'
NATIVE = 'wheels = [{ url = "https://files.example/a-1.0-cp39-cp39-win_amd64.whl", HASHES }]'


@pytest.mark.parametrize(
    ("files", "version", "words"),
    [
        (NATIVE, "1.0", "a 1.0 has no wheel for Python 3.12: cp39 only"),
        (f"{NATIVE}\n{SDIST}", "1.0", "building its source distribution is not allowed"),
        (SDIST, "1.0", "has only a source distribution, and building is not allowed"),
        (ARCHIVE, "1.0", "a is a source archive, and building is not allowed"),
        (ARCHIVE, None, "the lock does not say which version of a `v1.0.tar.gz` is"),
        ('directory = { path = "." }', None, "a is locked to a folder"),
        ('vcs = { type = "git", url = "https://x.example/a", commit-id = "0" }', None, "to a repository"),
    ],
)
def test_files_that_cannot_be_used_are_quoted(
    tmp_path: Path, files: str, version: str | None, words: str
) -> None:
    with pytest.raises(NoSolution) as caught:
        again(foreign(tmp_path, listed("a", version, files=files)), "a")
    assert words in str(caught.value)


@pytest.mark.parametrize("files", [SDIST, f"{NATIVE}\n{SDIST}", ARCHIVE])
def test_what_may_be_built_is_taken_from_its_source(tmp_path: Path, files: str) -> None:
    found = again(foreign(tmp_path, listed("a", files=files)), "a", allow_build=["a"])
    file = found.pins[canonicalize_name("a")].candidate.file
    assert file is not None
    assert file.filename.endswith(".tar.gz")


def test_a_package_that_is_for_another_python_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path, listed("a", more='requires-python = ">=3.13"'))
    with pytest.raises(NoSolution, match=r"a 1.0 needs Python >=3.13, and this is 3.12.11"):
        again(path, "a")


def test_a_path_is_nearer_than_a_url(tmp_path: Path) -> None:
    both = (
        'wheels = [{ path = "own/a-1.0-py3-none-any.whl", '
        'url = "https://files.example/a-1.0-py3-none-any.whl", HASHES }]'
    )
    source = LockSource(read_lock(foreign(tmp_path, listed("a", files=both))), tmp_path, PYTHON_312)
    (candidate,) = source.judge(canonicalize_name("a")).candidates
    assert candidate.files[0].url == (tmp_path / "own/a-1.0-py3-none-any.whl").as_uri()


@pytest.mark.parametrize("direct", [False, True], ids=["index", "direct"])
def test_the_lock_that_uv_writes_can_be_used(server: IndexServer, tmp_path: Path, *, direct: bool) -> None:
    root = f"base @ {server.file_url('base-1.5-py3-none-any.whl')}" if direct else "base"
    path = tmp_path / "pylock.toml"
    command = ["pip", "compile", "-", "--output-file", str(path), "--python-version", "3.12", "--universal"]
    run_uv([*command, "--index-url", server.url, "--only-binary", ":all:"], input_=f"stack\n{root}\n")
    server.forget_requests()
    found = again(path, "stack")
    assert pins_of(found) == {"base": "1.5", "extra": "3.0", "native": "2.0", "stack": "1.0"}
    assert found.pins[canonicalize_name("base")].candidate.origin is (
        CandidateOrigin.DIRECT if direct else CandidateOrigin.LOCK
    )
    assert all(parent.path for pin in found.pins.values() for parent in pin.parents[:1])
    assert server.requests == []


# -- installed from


def run_uv(arguments: Sequence[str], *, input_: str | None = None) -> str:
    command = [uv.find_uv_bin(), *arguments, "--no-config", "--no-python-downloads"]
    done = subprocess.run(
        command, input=input_, capture_output=True, text=True, check=False, env=clean_environment(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


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


# -- solving with one


def test_another_tools_lock_brings_its_own_roots(tmp_path: Path) -> None:
    source = LockSource(read_lock(foreign(tmp_path, listed("a"))), tmp_path, PYTHON_312)
    assert source.versions == {NormalizedName("a"): Version("1.0")}
    assert source.entries() == (
        PackageEntry(name=NormalizedName("a"), path="the lock", specifier=SpecifierSet("==1.0")),
    )
    assert not source.is_ours


def test_the_environment_takes_the_python_that_the_lock_is_for(server: IndexServer, tmp_path: Path) -> None:
    """The Pythons at hand are tried; the refusals of the others are no end."""
    path = written_to(lock_of(server, "base"), tmp_path)
    solver = Solver(
        matrix=replace(PLAIN, packages=entries("base")),
        kernel=Snapshot(environment=PYTHON_310, python="", prefix="/usr", site="/usr/lib", installed={}),
        settings=Settings(default_index=server.url, offline=True),
        environ={**os.environ},
        reporter=Reporter(),
        lock=path,
    )
    plan = solver.in_env("asked for").plan
    assert plan.target is Target.ENV
    assert plan.python_version.startswith("3.12.")
