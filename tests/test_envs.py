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

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.envs import build_env, discard_env, env_folder, find_env, read_env, select_env
from colablock.errors import BadDistribution, Unmet
from colablock.plan import Action, Artifact, Plan, Step, Target
from tests.support.runtime import site_of
from tests.support.trees import listing
from tests.support.wheels import make_wheel

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


def test_an_environment_stands_at_its_final_path_and_runs(shop: Shop) -> None:
    python = shop.build()
    folder = env_folder(shop.home, "abc")
    assert python == folder / "bin" / "python"
    done = subprocess.run([folder / "bin" / "tool"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder)
    info = site_of(folder) / "tool-1.0.dist-info"
    assert (info / "INSTALLER").read_text() == "colablock\n"
    assert (info / "REQUESTED").exists()
    assert not (info / "direct_url.json").exists()


def test_its_manifest_says_what_it_is(shop: Shop) -> None:
    shop.build()
    manifest = read_env(shop.home, "abc")
    assert manifest is not None
    assert manifest.installed == {"other": "2.0+cpu", "tool": "1.0"}
    assert (manifest.matrix, manifest.matrix_digest, manifest.variant) == ("tiny", "d", "cpu")
    assert (manifest.lock, manifest.python_version) == ("abc", "3.99.1")
    assert manifest.created == "2026-01-02T03:04:05+00:00"


def test_one_that_is_whole_is_used_again(shop: Shop) -> None:
    shop.build()
    before = listing(env_folder(shop.home, "abc"))
    shop.files.clear()  # nothing could be built from
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
def test_one_that_is_not_whole_is_built_anew(shop: Shop, damage: Callable[[Path], None]) -> None:
    shop.build()
    damage(env_folder(shop.home, "abc"))
    assert read_env(shop.home, "abc") is None
    shop.build()
    assert read_env(shop.home, "abc") is not None


def test_a_failure_leaves_no_half_environment(shop: Shop) -> None:
    path = shop.files[canonicalize_name("tool")]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Unmet):
        shop.build()
    assert not env_folder(shop.home, "abc").exists()
    assert [path.name for path in (shop.home / "envs").iterdir() if not path.name.endswith(".lock")] == []


def test_a_wheel_that_is_not_there_leaves_none_either(shop: Shop) -> None:
    name = canonicalize_name("tool")
    shop.files[name] = shop.files[name].rename(shop.home.parent / "wrongly named.whl")
    with pytest.raises(BadDistribution, match="wrongly named"):
        shop.build()
    assert not env_folder(shop.home, "abc").exists()


def test_an_interpreter_that_does_not_run_is_named(shop: Shop) -> None:
    with pytest.raises(Unmet, match="/no/such/python"):
        shop.build(plan=replace(shop.plan, python="/no/such/python"))
    assert not env_folder(shop.home, "abc").exists()


def test_an_environment_may_be_empty(shop: Shop) -> None:
    python = shop.build(plan=replace(shop.plan, steps=()))
    assert python.exists()


def test_the_current_one_is_switched(shop: Shop) -> None:
    assert find_env(shop.home, "tiny") is None
    for lock_hash in ("abc", "def"):
        shop.build(lock_hash)
        select_env(shop.home, "tiny", lock_hash)
        found = find_env(shop.home, "tiny")
        assert found is not None
        assert found.lock == lock_hash
    discard_env(shop.home, "def")
    assert find_env(shop.home, "tiny") is None
    assert read_env(shop.home, "abc") is not None


def test_two_builders_build_it_once(shop: Shop) -> None:
    answers: list[Path] = []
    threads = [threading.Thread(target=lambda: answers.append(shop.build())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2
    assert read_env(shop.home, "abc") is not None
