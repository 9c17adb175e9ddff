from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from colablock._common.fs import locked_file
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.errors import BadDistribution, InvalidInput, NotFound, Refused, Unmet
from colablock.planning.plan import Action, Artifact, Plan, Step, Target
from colablock.transaction.apply_record import ApplyRecord, load, save
from colablock.transaction.isolated_envs import (
    build_env,
    discard_env,
    env_folder,
    list_envs,
    read_env,
    remove_env,
    select_env,
    sweep_home,
)
from tests.support.runtime import site_of
from tests.support.trees import listing
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.stdlib

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


class Shop:
    """A home folder, and a plan for two small wheels."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        wheels = folder / "wheels"
        wheels.mkdir()
        tool = {"tool.py": "import sys\ndef main():\n    print(sys.prefix)\n"}
        paths = [
            make_wheel(wheels, "tool", "1.0", modules=tool, scripts={"tool": "tool:main"}),
            make_wheel(wheels, "other", "2.0+cpu"),
        ]
        self.files: dict[NormalizedName, Path] = {
            canonicalize_name(path.name.split("-")[0]): path for path in paths
        }
        self.plan = Plan(
            matrix="tiny",
            matrix_digest="d",
            variant="cpu",
            target=Target.ENV,
            why_target="asked for",
            python=sys.executable,
            python_version="3.99.1",
            steps=tuple(_step(name, path) for name, path in self.files.items()),
        )

    def build(self, lock_hash: str = "abc", plan: Plan | None = None) -> Path:
        return build_env(
            plan or self.plan, self.files, lock_hash=lock_hash, home=self.home, environ=os.environ, now=NOW
        )


def _step(name: NormalizedName, path: Path) -> Step:
    version = path.name.split("-")[1]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    artifact = Artifact(name=name, version=version, filename=path.name, url="", hashes={"sha256": sha256})
    return Step(
        action=Action.INSTALL, name=name, reason="", version=version, artifact=artifact, requested=True
    )


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_an_environment_is_built_at_its_final_path_and_works(shop: Shop) -> None:
    python = shop.build()
    folder = env_folder(shop.home, "abc")
    assert python == folder / "bin" / "python"
    done = subprocess.run([folder / "bin" / "tool"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder)
    info = site_of(folder) / "tool-1.0.dist-info"
    assert (info / "INSTALLER").read_text() == "colablock\n"
    assert (info / "REQUESTED").exists()
    assert not (info / "direct_url.json").exists()


def test_the_manifest_describes_the_environment(shop: Shop) -> None:
    shop.build()
    manifest = read_env(shop.home, "abc")
    assert manifest is not None
    assert manifest.installed == {"other": "2.0+cpu", "tool": "1.0"}
    assert (manifest.matrix, manifest.matrix_digest, manifest.variant) == ("tiny", "d", "cpu")
    assert (manifest.lock, manifest.python_version) == ("abc", "3.99.1")
    assert manifest.created == "2026-01-02T03:04:05+00:00"


def test_a_complete_environment_is_reused(shop: Shop) -> None:
    shop.build()
    before = listing(env_folder(shop.home, "abc"))
    shop.files.clear()  # so nothing can be built
    shop.build()
    assert listing(env_folder(shop.home, "abc")) == before


def _no_manifest(folder: Path) -> None:
    (folder / "colablock.json").unlink()


def _torn_manifest(folder: Path) -> None:
    (folder / "colablock.json").write_text('{"lock": "ab')


def _of_the_future(folder: Path) -> None:
    manifest = json.loads((folder / "colablock.json").read_text())
    (folder / "colablock.json").write_text(json.dumps({**manifest, "schema": 2}))


def _one_missing(folder: Path) -> None:
    (site_of(folder) / "tool-1.0.dist-info").rename(folder / "elsewhere")


def _interpreter_gone(folder: Path) -> None:
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/no/such/python")


@pytest.mark.parametrize(
    "damage", [_no_manifest, _torn_manifest, _of_the_future, _one_missing, _interpreter_gone]
)
def test_an_incomplete_environment_is_built_again(shop: Shop, damage: Callable[[Path], None]) -> None:
    shop.build()
    damage(env_folder(shop.home, "abc"))
    assert read_env(shop.home, "abc") is None
    shop.build()
    assert read_env(shop.home, "abc") is not None


def test_a_failed_build_leaves_no_environment(shop: Shop) -> None:
    path = shop.files[canonicalize_name("tool")]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Unmet):
        shop.build()
    assert not env_folder(shop.home, "abc").exists()
    assert [path.name for path in (shop.home / "envs").iterdir() if not path.name.endswith(".lock")] == []


def test_a_missing_wheel_leaves_no_environment(shop: Shop) -> None:
    name = canonicalize_name("tool")
    shop.files[name] = shop.files[name].rename(shop.home.parent / "wrongly named.whl")
    with pytest.raises(BadDistribution, match="wrongly named"):
        shop.build()
    assert not env_folder(shop.home, "abc").exists()


def test_a_missing_interpreter_is_named(shop: Shop) -> None:
    with pytest.raises(Unmet, match="/no/such/python"):
        shop.build(plan=replace(shop.plan, python="/no/such/python"))
    assert not env_folder(shop.home, "abc").exists()


def test_an_environment_can_be_empty(shop: Shop) -> None:
    python = shop.build(plan=replace(shop.plan, steps=()))
    assert python.exists()


def current(home: Path) -> dict[str, tuple[str, ...]]:
    return {one.lock: one.current_of for one in list_envs(home)}


def test_the_current_environment_is_switched(shop: Shop) -> None:
    assert list_envs(shop.home) == ()
    for lock_hash in ("abc", "def"):
        shop.build(lock_hash)
        select_env(shop.home, "tiny", lock_hash)
    assert current(shop.home) == {"abc": (), "def": ("tiny",)}
    select_env(shop.home, "tiny", "abc")
    assert current(shop.home) == {"abc": ("tiny",), "def": ()}


def test_a_kill_during_the_switch_leaves_the_old_or_the_new_link(shop: Shop) -> None:
    for lock_hash in ("abc", "def"):
        shop.build(lock_hash)
    ends = []
    for at in range(100):
        select_env(shop.home, "tiny", "abc")
        is_over = _stopped_at(at, lambda: select_env(shop.home, "tiny", "def"))
        ends.append([one.lock for one in list_envs(shop.home) if one.current_of])
        if is_over:
            break
    assert ends[0] == ["abc"]
    assert ends[-1] == ["def"]
    assert all(end in (["abc"], ["def"]) for end in ends)
    assert len(ends) > 3


@pytest.mark.slow  # at each operation
@pytest.mark.slow  # one process per operation
def test_a_kill_during_a_removal_leaves_it_complete_or_removable(shop: Shop) -> None:
    for at in range(100):
        shop.build()
        select_env(shop.home, "tiny", "abc")
        is_over = _stopped_at(at, lambda: discard_env(shop.home, "abc"))
        for one in list_envs(shop.home):
            # A link to it is never dangling, and an incomplete one never counts as complete.
            assert one.is_whole == (read_env(shop.home, "abc") is not None)
            assert one.is_whole <= (one.current_of == ("tiny",))
            remove_env(shop.home, "abc")
        assert list_envs(shop.home) == ()
        assert not list((shop.home / "current").iterdir())
        if is_over:
            break
    assert at > 3


def _stopped_at(at: int, call: Callable[[], object]) -> bool:
    """Run *call* in a child that dies before file operation number *at*; return whether it completed."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def count(event: str, _arguments: object) -> None:
            nonlocal seen
            if event in _CHANGES:
                if seen == at:
                    os._exit(9)
                seen += 1

        sys.addaudithook(count)
        try:
            call()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "shutil.rmtree"}


def test_environments_are_listed(shop: Shop) -> None:
    for lock_hash in ("abc", "def", "123"):
        shop.build(lock_hash)
    select_env(shop.home, "tiny", "def")
    _no_manifest(env_folder(shop.home, "abc"))
    (shop.home / "current" / "tidy").symlink_to("../envs/gone")
    found = list_envs(shop.home)
    assert [(one.lock, one.is_whole, one.matrix, one.current_of) for one in found] == [
        ("123", True, "tiny", ()),
        ("def", True, "tiny", ("tiny",)),
        ("abc", False, None, ()),
    ]
    assert found[0].size >= (env_folder(shop.home, "123") / "colablock.json").stat().st_size


@pytest.mark.parametrize(("name", "goes"), [("tiny", "abf"), ("ab1", "ab1"), ("abf", "abf"), ("f", "f00")])
def test_an_environment_is_removed_by_matrix_or_hash(shop: Shop, name: str, goes: str) -> None:
    for lock_hash in ("ab1", "abf", "f00"):
        python = shop.build(lock_hash)
        save(_applied(f"m-{lock_hash}", python), shop.home)
    select_env(shop.home, "tiny", "abf")
    assert remove_env(shop.home, name).lock == goes
    left = {"ab1", "abf", "f00"} - {goes}
    assert {one.lock for one in list_envs(shop.home)} == left
    assert {lock for lock in ("ab1", "abf", "f00") if load(f"m-{lock}", shop.home) is not None} == left
    assert (shop.home / "current" / "tiny").is_symlink() == (goes != "abf")


def _applied(name: str, python: Path) -> ApplyRecord:
    return ApplyRecord(
        name=name,
        key="k",
        target="env",
        python=str(python),
        prefix="/env",
        sites=("/env/lib",),
        state="s",
        matrix_digest="d",
        variant=None,
    )


def test_an_incomplete_environment_is_removed(shop: Shop) -> None:
    shop.build()
    select_env(shop.home, "tiny", "abc")
    _no_manifest(env_folder(shop.home, "abc"))
    assert not remove_env(shop.home, "tiny").is_whole
    assert list_envs(shop.home) == ()


@pytest.mark.parametrize(
    ("name", "error"), [("nothing", NotFound), ("", NotFound), ("../envs", NotFound), ("ab", InvalidInput)]
)
def test_an_unknown_or_ambiguous_name_removes_nothing(shop: Shop, name: str, error: type[Exception]) -> None:
    for lock_hash in ("ab1", "abf"):
        env_folder(shop.home, lock_hash).mkdir(parents=True)
    with pytest.raises(error):
        remove_env(shop.home, name)
    assert len(list_envs(shop.home)) == 2


def test_a_failed_removal_is_reported(shop: Shop) -> None:
    shop.build()
    (shop.home / "current").mkdir()
    (shop.home / "applied").mkdir()
    folder = env_folder(shop.home, "abc")
    (folder / "colablock.json").unlink()
    (folder / "colablock.json").mkdir()
    with pytest.raises(Refused, match=r"colablock\.json"):
        remove_env(shop.home, "abc")


def test_two_concurrent_builds_build_it_once(shop: Shop) -> None:
    answers: list[Path] = []
    threads = [threading.Thread(target=lambda: answers.append(shop.build())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2
    assert read_env(shop.home, "abc") is not None


def test_what_killed_processes_left_in_the_home_is_swept(tmp_path: Path) -> None:
    envs = tmp_path / "envs"
    for name in ("half", "whole", "built-now"):
        (envs / name / "lib").mkdir(parents=True)
    (envs / "whole" / "colablock.json").write_text("{}")
    (envs / ".half.lock").touch()
    (envs / ".gone.lock").touch()
    (tmp_path / "applied").mkdir()
    (tmp_path / "applied" / ".new-0123456789abcdef").touch()
    with locked_file(envs / ".built-now.lock"):
        sweep_home(tmp_path)
        assert sorted(path.name for path in envs.iterdir()) == [".built-now.lock", "built-now", "whole"]
    assert list((tmp_path / "applied").iterdir()) == []
    sweep_home(tmp_path / "missing")
