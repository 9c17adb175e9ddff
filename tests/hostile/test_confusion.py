"""A project of the same name in another index is another project."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor import tomli_w
from colablock.api import stack
from colablock.cli.main import main
from colablock.errors import ExitCode
from colablock.planning.plan import Plan, Remedy
from tests.support.hostile import Target, make_target
from tests.support.runtime import Stub
from tests.support.server import IndexServer
from tests.support.wheels import make_wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEAD = 'schema = 1\nname = "tiny"\n[[index]]\nname = "corp"\nurl = "{corp}"\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The default index *public*, and the index *corp* that a matrix names."""

    public: IndexServer
    corp: IndexServer


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    for name in ("public", "corp"):
        (tmp_path / name).mkdir()
    make_wheel(tmp_path / "corp", "corp-app", "1.0", requires=["Corp.Core[more]", "shared"])
    make_wheel(
        tmp_path / "corp", "corp-core", "1.0", requires=["corp_util; extra == 'more'"], extras=["more"]
    )
    for name in ("corp-util", "shared"):
        make_wheel(tmp_path / "corp", name, "1.0")
    for name in ("corp-app", "corp-core", "corp-util", "shared"):
        make_wheel(tmp_path / "public", name, "99.0", requires=["planted"] if name == "corp-util" else [])
    make_wheel(tmp_path / "public", "app", "1.0", requires=["shared"])
    make_wheel(tmp_path / "public", "planted", "1.0")
    make_wheel(tmp_path / "public", "asks", "1.0", requires=["corp-app"])
    monkeypatch.setenv("COLABLOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLABLOCK_HOME", str(tmp_path / "home"))
    with IndexServer(tmp_path / "public") as public, IndexServer(tmp_path / "corp") as corp:
        monkeypatch.setenv("COLABLOCK_DEFAULT_INDEX", public.url)
        yield Servers(public=public, corp=corp)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    (tmp_path / "target").mkdir()
    return make_target(tmp_path / "target")


def plan_of(target: Target, servers: Servers, packages: str, **options: Any) -> Plan:
    """Return the plan of a matrix with *packages* for the kernel of *target*."""
    path = target.folder / "tiny.toml"
    path.write_text(HEAD.format(corp=servers.corp.url) + packages, encoding="utf-8")
    return stack.plan(str(path), into="kernel", python=target.venv.python, **options)


def origins(plan: Plan, servers: Servers) -> dict[str, str]:
    """Return the version and the index of each distribution that *plan* installs."""
    titles = {servers.public.url: "public", servers.corp.url: "corp"}
    artifacts = (step.artifact for step in plan.steps if step.artifact is not None)
    return {one.name: f"{one.version} {titles.get(one.index or '', one.index)}" for one in artifacts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The packages of a matrix, and where each distribution comes from."""

    packages: str
    found: Mapping[str, str] = field(default_factory=dict)


CORP = {"corp-app": "1.0 corp", "corp-core": "1.0 corp", "corp-util": "1.0 corp"}
CASES = {
    "all that comes in through it": Case(
        packages='[packages]\n"Corp_App" = { index = "corp" }\n', found={**CORP, "shared": "1.0 corp"}
    ),
    "what another package requires too": Case(
        packages='[packages]\ncorp-app = { index = "corp" }\napp = ""\n',
        found={**CORP, "app": "1.0 public", "shared": "99.0 public"},
    ),
    "what the matrix declares": Case(
        packages='[packages]\ncorp-app = { index = "corp" }\nshared = ">=2"\n',
        found={**CORP, "shared": "99.0 public"},
    ),
    "an entry whose marker does not hold": Case(
        packages="[packages]\nasks = ''\ncorp-app = { index = 'corp', marker = \"python_version < '3'\" }\n",
        found={**CORP, "asks": "1.0 public", "shared": "1.0 corp"},
    ),
    "an entry of another variant": Case(
        packages="[packages]\nasks = ''\n[variants.one]\n[variants.two.packages]\n"
        "corp-app = { index = 'corp' }\n",
        found={**CORP, "asks": "1.0 public", "shared": "1.0 corp"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_name_stays_with_the_index_it_comes_in_through(
    case: Case, target: Target, servers: Servers
) -> None:
    assert origins(plan_of(target, servers, case.packages), servers) == case.found


def test_a_name_that_the_index_does_not_have_is_not_found_elsewhere(
    target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    (target.folder.parent / "corp" / "corp_util-1.0-py3-none-any.whl").unlink()
    path = target.folder / "tiny.toml"
    text = HEAD.format(corp=servers.corp.url) + '[packages]\ncorp-app = { index = "corp" }\n'
    path.write_text(text, encoding="utf-8")
    with target.unchanged():
        code = main(["apply", str(path), "--into", "kernel", "--python", target.venv.python, "--yes"])
    said = capsys.readouterr().err
    assert code == ExitCode.UNMET, said
    assert "no index has `corp-util`" in " ".join(said.split())


def test_a_direct_reference_whose_marker_does_not_hold_is_not_found_elsewhere(
    target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    path = target.folder / "tiny.toml"
    url = servers.corp.file_url("corp_app-1.0-py3-none-any.whl")
    entry = f"corp-app = {{ url = '{url}', marker = \"python_version < '3'\" }}"
    path.write_text(f"{HEAD.format(corp=servers.corp.url)}[packages]\nasks = ''\n{entry}\n", encoding="utf-8")
    assert main(["plan", str(path), "--into", "kernel", "--python", target.venv.python]) == ExitCode.UNMET
    assert "no index is asked in its place" in " ".join(capsys.readouterr().err.split())


def test_a_delta_lock_takes_no_name_from_another_index(
    target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    path, lock = target.folder / "tiny.toml", target.folder / "pylock.toml"
    text = HEAD.format(corp=servers.corp.url) + '[packages]\ncorp-app = { index = "corp" }\n'
    path.write_text(text, encoding="utf-8")
    assert main(["lock", str(path), "--output", str(lock)]) == ExitCode.DONE
    data = tomllib.loads(lock.read_text(encoding="utf-8"))
    data["tool"]["colablock"]["kind"] = "delta"
    (shared,) = (one for one in data["packages"] if one["name"] == "shared")
    wheel = target.folder.parent / "public" / "shared-99.0-py3-none-any.whl"
    hashes = {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    files = [{"url": servers.public.file_url(wheel.name), "hashes": hashes}]
    shared.update(version="99.0", index=servers.public.url, wheels=files)
    lock.write_text(tomli_w.dumps(data), encoding="utf-8")
    with target.unchanged():
        argv = ["apply", str(path), "--lock", str(lock), "--into", "kernel", "--python", target.venv.python]
        assert main([*argv, "--yes"]) == ExitCode.USAGE
    assert "`shared` (index `corp`)" in " ".join(capsys.readouterr().err.split())


# -- repairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """How `tool 1.0`, which the stack breaks, was installed, and what the plan does about it."""

    version: str = "1.0"
    listed: tuple[str, ...] = ("99.0",)
    direct_url: str | None = None
    remedy: Remedy = Remedy.LEAVE


REPAIRS = {
    "from a local wheel": Installed(
        listed=("1.0", "99.0"),
        direct_url='{"url": "file:///srv/tool-1.0-py3-none-any.whl", "archive_info": {}}',
    ),
    "from a repository": Installed(
        listed=("1.0", "99.0"),
        direct_url='{"url": "https://git.example/tool", "vcs_info": {"vcs": "git", "commit_id": "0"}}',
    ),
    "in an editable form": Installed(
        listed=("1.0", "99.0"), direct_url='{"url": "file:///srv/tool", "dir_info": {"editable": true}}'
    ),
    "a version that the index does not list": Installed(),
    "a local version": Installed(version="1.0+corp.3", listed=("1.0", "99.0")),
    "a version that the index lists": Installed(listed=("1.0", "99.0"), remedy=Remedy.REPAIR),
    "a build for CUDA, by the URL of its wheel": Installed(
        version="1.0+cu128",
        listed=("1.0", "99.0"),
        direct_url='{"url": "https://wheels.example/tool-1.0%2Bcu128-py3-none-any.whl", "archive_info": {}}',
        remedy=Remedy.REPAIR,
    ),
    "a build for CUDA that the index does not list": Installed(
        version="1.0+cu128",
        direct_url='{"url": "https://wheels.example/tool-1.0%2Bcu128-py3-none-any.whl", "archive_info": {}}',
    ),
    "a build for CUDA from a local wheel": Installed(
        version="1.0+cu128",
        listed=("1.0", "99.0"),
        direct_url='{"url": "file:///srv/tool-1.0%2Bcu128-py3-none-any.whl", "archive_info": {}}',
    ),
    "a build for CUDA from a repository": Installed(
        version="1.0+cu128",
        listed=("1.0", "99.0"),
        direct_url='{"url": "https://git.example/tool", "vcs_info": {"vcs": "git", "commit_id": "0"}}',
    ),
    "a build for CUDA": Installed(version="1.0+cu128", listed=("1.0", "99.0"), remedy=Remedy.REPAIR),
}


@pytest.mark.parametrize("case", REPAIRS.values(), ids=REPAIRS)
def test_a_repair_takes_nothing_from_another_place(case: Installed, tmp_path: Path, servers: Servers) -> None:
    (tmp_path / "repairs").mkdir()
    tool = Stub(name="tool", version=case.version, requires=("base<2",))
    target = make_target(tmp_path / "repairs", [tool, Stub(name="base", version="1.0")])
    if case.direct_url is not None:
        (info,) = target.venv.site.glob("tool-*.dist-info")
        (info / "direct_url.json").write_text(case.direct_url, encoding="utf-8")
    public = tmp_path / "public"
    make_wheel(public, "base", "2.0")
    for version in case.listed:
        make_wheel(public, "tool", version, requires=["base<2" if version == "1.0" else "base"])
    plan = plan_of(target, servers, '[packages]\nbase = ">=2"\n')
    (broken,) = plan.breakages
    assert (broken.name, broken.remedy) == ("tool", case.remedy)
    assert {step.name for step in plan.steps} == {"base"} | (
        {"tool"} if case.remedy is Remedy.REPAIR else set()
    )
    if case.remedy is Remedy.LEAVE:
        assert "tool" in broken.because[-1]
