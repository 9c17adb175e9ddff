"""Candidates from a lock: the pins that it gives, where it fits, and why it does not fit elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock._common.reporter import Reporter
from colablock._common.urls import Url
from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.environment.snapshot import Snapshot
from colablock.errors import InvalidInput, NoSolution
from colablock.index.candidates import CandidateOrigin, Reason
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.package_files import Wheel
from colablock.lockfile.pins import default_index_of
from colablock.lockfile.pylock import make_lock, read_lock, write_lock
from colablock.matrix.model import Matrix, Options, PackageEntry, entry_of
from colablock.network.settings import Settings
from colablock.planning.plan import Target
from colablock.planning.solver import Solver
from colablock.resolver.model import Resolution
from tests.support.dict_source import PYTHON_312, entries, installed, pins_of
from tests.support.fixtures import index_fixture
from tests.support.server import IndexServer
from tests.support.small_locks import fill_index, lock_of, run_uv, solved, written_to

pytestmark = [pytest.mark.stdlib, pytest.mark.requirements]

MUSL = environment_for("3.12.11", "musllinux_1_2_x86_64")
ARM = environment_for("3.12.11", "manylinux_2_35_aarch64")
WINDOWS = environment_for("3.12.11", "win_amd64")
FILES = "https://files.example/simple/"
PYTHON_310 = environment_for("3.10.4", "manylinux_2_35_x86_64")


index = index_fixture(fill_index)


def resolved_from(path: Path, *roots: str, environment: Environment = PYTHON_312, **facts: Any) -> Resolution:
    """Solve *roots* from the lock in *path*, as a plan does.

    The default index is the one at *index*.  With *rebuilt*, the matrix replaces the requirements.
    """
    replaced: dict[str, Any] = {"requires_dist": ()} if facts.pop("rebuilt", False) else {}
    index = facts.pop("index", None) or default_index_of(read_lock(path).packages) or FILES
    solver = Solver(
        matrix=Matrix(
            name="demo",
            source="demo.toml",
            digest="d" * 64,
            packages=tuple(
                replace(entry_of(Requirement(root), path="requirements"), **replaced) for root in roots
            ),
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
        settings=Settings(default_index=Url(index), offline=True),
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
    found = resolved_from(path, "stack")
    assert server.requests == []
    assert pins_of(found) == pins_of(resolution)
    for name, pin in found.pins.items():
        assert pin.candidate.origin is CandidateOrigin.LOCK
        assert pin.candidate.file == resolution.pins[name].candidate.files[0].replaced(core_metadata=False)
        assert pin.extras == resolution.pins[name].extras
        assert set(pin.requires) == set(resolution.pins[name].requires)
    assert write_lock(make_lock(found, matrix)) == path.read_bytes()


def test_an_archive_in_a_lock_stays_a_direct_reference(server: IndexServer, tmp_path: Path) -> None:
    root = f"base @ {server.file_url('base-1.5-py3-none-any.whl')}"
    resolution, matrix = solved(server, root)
    path = written_to(make_lock(resolution, matrix), tmp_path)
    found = resolved_from(path, root)
    assert found.pins[canonicalize_name("base")].candidate.origin is CandidateOrigin.DIRECT
    assert write_lock(make_lock(found, matrix)) == path.read_bytes()


def test_a_wheel_beside_the_lock_is_found_in_any_folder(server: IndexServer, tmp_path: Path) -> None:
    resolution, matrix = solved(server, "base")
    rebuilt = {
        canonicalize_name("base"): Wheel(path="own/base-1.5-py3-none-any.whl", sha256="a" * 64, size=7)
    }
    path = written_to(make_lock(resolution, matrix, wheels=rebuilt), tmp_path / "moved")
    wheel = tmp_path / "moved/own/base-1.5-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    file = (
        resolved_from(path, "base", index=server.url, rebuilt=True)
        .pins[canonicalize_name("base")]
        .candidate.file
    )
    assert file is not None
    assert file.url == wheel.as_uri()


def test_a_missing_rebuilt_wheel_is_made_again_from_its_source(server: IndexServer, tmp_path: Path) -> None:
    resolution, matrix = solved(server, "base")
    rebuilt = {
        canonicalize_name("base"): Wheel(path="own/base-1.5-py3-none-any.whl", sha256="a" * 64, size=7)
    }
    path = written_to(make_lock(resolution, matrix, wheels=rebuilt), tmp_path)
    candidate = (
        resolved_from(path, "base", index=server.url, rebuilt=True).pins[canonicalize_name("base")].candidate
    )
    assert candidate.file is not None
    assert candidate.origin is CandidateOrigin.DIRECT
    assert candidate.file.url == server.file_url("base-1.5-py3-none-any.whl")


def test_the_pins_of_a_lock_are_exact_whatever_is_installed(server: IndexServer, tmp_path: Path) -> None:
    path = written_to(lock_of(server, "stack"), tmp_path)
    image = installed({"base 1.2": [], "extra 3.0": [], "other 1": []})
    found = resolved_from(path, "stack", installed=image, in_kernel=True)
    assert pins_of(found)["base"] == "1.5"
    assert found.pins[canonicalize_name("extra")].is_installed


def test_a_protected_distribution_overrides_a_lock(server: IndexServer, tmp_path: Path) -> None:
    path = written_to(lock_of(server, "stack"), tmp_path)
    image = installed({"base 1.2": []})
    with pytest.raises(NoSolution) as caught:
        resolved_from(path, "stack", installed=image, protected=frozenset(image), in_kernel=True)
    assert "base 1.2 is installed and protected" in str(caught.value)
    assert "base is locked at 1.5" in str(caught.value)


def test_a_requirement_that_the_lock_does_not_meet_is_reported(server: IndexServer, tmp_path: Path) -> None:
    path = written_to(lock_of(server, "stack"), tmp_path)
    with pytest.raises(NoSolution, match="no candidate fits `base>=2`"):
        resolved_from(path, "stack", "base>=2")
    with pytest.raises(NoSolution, match="`wandb` is not in the lock"):
        resolved_from(path, "stack", "wandb")


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
        resolved_from(path, "stack", environment=environment)


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


def test_every_package_of_another_tools_lock_is_a_root(tmp_path: Path) -> None:
    path = foreign(tmp_path, listed("a") + listed("b") + listed("c"))
    assert pins_of(resolved_from(path, "b")) == {"a": "1.0", "b": "1.0", "c": "1.0"}


def test_the_dependencies_in_another_tools_lock_are_used(tmp_path: Path) -> None:
    needs = 'dependencies = [{ name = "b" }, { name = "not-here" }]'
    found = resolved_from(foreign(tmp_path, listed("a", more=needs) + listed("b", None)), "a")
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
    assert pins_of(resolved_from(path)) == {"a": "2.0", "c": "1.0"}
    assert pins_of(resolved_from(path, environment=PYTHON_310)) == {"a": "1.0", "c": "1.0"}


def test_a_lock_that_lists_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the lock `pylock.toml` lists a twice for Python 3.12.11"):
        resolved_from(foreign(tmp_path, listed("a") + listed("a", "2.0")))


SDIST = 'sdist = { url = "https://files.example/a-1.0.tar.gz", HASHES }'
ARCHIVE = 'archive = { url = "https://files.example/v1.0.tar.gz", HASHES }'
DIRECT = "a @ https://files.example/v1.0.tar.gz"
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
def test_the_report_names_files_that_cannot_be_used(
    tmp_path: Path, files: str, version: str | None, words: str
) -> None:
    with pytest.raises(NoSolution) as caught:
        resolved_from(
            foreign(tmp_path, listed("a", version, files=files)), DIRECT if files == ARCHIVE else "a"
        )
    assert words in str(caught.value)


@pytest.mark.parametrize("files", [SDIST, f"{NATIVE}\n{SDIST}", ARCHIVE])
def test_a_package_that_may_be_built_is_taken_from_its_source(tmp_path: Path, files: str) -> None:
    root = DIRECT if files == ARCHIVE else "a"
    found = resolved_from(foreign(tmp_path, listed("a", files=files)), root, allow_build=["a"])
    file = found.pins[canonicalize_name("a")].candidate.file
    assert file is not None
    assert file.filename.endswith(".tar.gz")


def test_a_package_for_another_python_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path, listed("a", more='requires-python = ">=3.13"'))
    with pytest.raises(NoSolution, match=r"a 1.0 needs Python >=3.13, and this is 3.12.11"):
        resolved_from(path, "a")


def test_a_path_is_preferred_to_a_url(tmp_path: Path) -> None:
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
    found = resolved_from(path, "stack", root, index=server.url)
    assert pins_of(found) == {"base": "1.5", "extra": "3.0", "native": "2.0", "stack": "1.0"}
    assert found.pins[canonicalize_name("base")].candidate.origin is (
        CandidateOrigin.DIRECT if direct else CandidateOrigin.LOCK
    )
    assert all(parent.path for pin in found.pins.values() for parent in pin.parents[:1])
    assert server.requests == []


def test_another_tools_lock_has_its_own_roots(tmp_path: Path) -> None:
    source = LockSource(read_lock(foreign(tmp_path, listed("a"))), tmp_path, PYTHON_312)
    assert source.versions == {NormalizedName("a"): Version("1.0")}
    assert source.entries() == (
        PackageEntry(name=NormalizedName("a"), path="the lock", specifier=SpecifierSet("==1.0")),
    )
    assert not source.is_ours


def test_an_environment_uses_the_python_of_the_lock(server: IndexServer, tmp_path: Path) -> None:
    """The lock does not fit the other Pythons that are tried."""
    path = written_to(lock_of(server, "base"), tmp_path)
    solver = Solver(
        matrix=Matrix(name="m", source="m.toml", digest="0" * 64, packages=entries("base")),
        kernel=Snapshot(environment=PYTHON_310, python="", prefix="/usr", site="/usr/lib", installed={}),
        settings=Settings(default_index=Url(server.url), offline=True),
        environ={**os.environ},
        reporter=Reporter(),
        lock=path,
    )
    plan = solver.in_env("asked for").plan
    assert plan.target is Target.ENV
    assert plan.python_version.startswith("3.12.")


# -- a lock with the files of its target

NAME = canonicalize_name("native")
LINUX = 'sys_platform == "linux" and platform_machine == "x86_64" and implementation_name == "cpython"'
GLIBC = "native-1.0-cp313-cp313-manylinux_2_34_x86_64.whl"


def target_lock(names: Sequence[str], *, platform: str = "manylinux_2_35_x86_64", **table: Any) -> Pylock:
    """Return a lock of one package for Python 3.13, with the keys of *table* in its table."""
    wheels = [
        {"url": f"https://files.example/{name}", "hashes": {"sha256": "a" * 64}}
        for name in names
        if name.endswith(".whl")
    ]
    sdists = [
        {"url": f"https://files.example/{name}", "hashes": {"sha256": "b" * 64}}
        for name in names
        if not name.endswith(".whl")
    ]
    package = {"name": NAME, "version": "1.0", "wheels": wheels, **({"sdist": sdists[0]} if sdists else {})}
    about = {"python": "3.13.0", "platform": platform, "kind": "complete", **table}
    return Pylock.from_dict(
        {
            "lock-version": "1.0",
            "created-by": "colablock",
            "environments": [LINUX],
            "requires-python": "==3.13.*",
            "packages": [package],
            "tool": {"colablock": about},
        }
    )


def source_of(lock: Pylock, environment: Environment, **options: Any) -> LockSource:
    return LockSource(lock, Path(), environment, name="the lock `pylock.toml`", **options)


@pytest.mark.parametrize(
    "platform", ["manylinux_2_35_x86_64", "manylinux_2_39_x86_64", "manylinux_2_34_x86_64"]
)
def test_a_lock_fits_every_glibc_that_its_files_fit(platform: str) -> None:
    source = source_of(target_lock([GLIBC]), environment_for("3.13", platform))
    (candidate,) = source.judge(NAME).candidates
    assert candidate.files[0].filename == GLIBC


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("musllinux_1_2_x86_64", "manylinux_2_35_x86_64, and this is musllinux_1_2_x86_64"),
        (
            "manylinux_2_35_aarch64",
            'platform_machine == "x86_64".*and this is Python 3.13.0 on linux aarch64',
        ),
        ("macosx_14_0_arm64", 'sys_platform == "linux".*and this is Python 3.13.0 on darwin arm64'),
        ("win_amd64", 'sys_platform == "linux".*and this is Python 3.13.0 on win32 AMD64'),
    ],
)
def test_a_lock_for_another_platform_is_refused(platform: str, words: str) -> None:
    with pytest.raises(NoSolution, match=f"^the lock `pylock.toml` is for .*{words}"):
        source_of(target_lock([GLIBC]), environment_for("3.13", platform))


def test_a_lock_with_all_files_fits_another_libc() -> None:
    musl = "native-1.0-cp313-cp313-musllinux_1_2_x86_64.whl"
    source = source_of(
        target_lock([GLIBC, musl], files="all"), environment_for("3.13", "musllinux_1_2_x86_64")
    )
    assert source.judge(NAME).candidates[0].files[0].filename == musl


@pytest.mark.parametrize(
    ("python", "platform", "words"),
    [
        ("3.13", "manylinux_2_31_x86_64", "(manylinux_2_31_x86_64): manylinux_2_34_x86_64 only"),
        ("3.13t", "manylinux_2_35_x86_64", "Python 3.13 with ABI cp313t: cp313-cp313 only"),
    ],
)
def test_the_report_says_which_target_the_lock_has_files_for(python: str, platform: str, words: str) -> None:
    target = "; the lock has the files for Python 3.13.0 on manylinux_2_35_x86_64 only"
    environment = environment_for(python, platform)
    (rejection,) = source_of(target_lock([GLIBC]), environment).judge(NAME).rejections
    assert rejection.reason is Reason.TAGS
    assert words + target in rejection.detail
    (rejection,) = source_of(target_lock([GLIBC], files="all"), environment).judge(NAME).rejections
    assert rejection.detail.endswith(words)


def test_no_wheel_is_used_if_the_matrix_forbids_wheels() -> None:
    lock = target_lock([GLIBC, "native-1.0.tar.gz"], files="all")
    environment = environment_for("3.13", "manylinux_2_35_x86_64")
    options = {"allow_build": frozenset({NAME}), "no_binary": frozenset({NAME})}
    (candidate,) = source_of(lock, environment, **options).judge(NAME).candidates
    assert [file.filename for file in candidate.files] == ["native-1.0.tar.gz"]
    (rejection,) = source_of(target_lock([GLIBC]), environment, **options).judge(NAME).rejections
    assert rejection.reason is Reason.NO_BINARY


def test_a_rebuilt_wheel_is_used_even_if_the_matrix_forbids_wheels(tmp_path: Path) -> None:
    lock = target_lock([GLIBC])
    built = {"made-from": {"url": "https://files.example/native-1.0.tar.gz"}}
    text = lock.to_dict()
    text["packages"][0]["tool"] = {"colablock": built}
    text["packages"][0]["wheels"] = [{"path": GLIBC, "hashes": {"sha256": "a" * 64}}]
    (tmp_path / GLIBC).touch()
    environment = environment_for("3.13", "manylinux_2_35_x86_64")
    source = LockSource(Pylock.from_dict(text), tmp_path, environment, no_binary=frozenset({":all:"}))
    assert source.judge(NAME).candidates[0].files[0].url == (tmp_path / GLIBC).as_uri()
