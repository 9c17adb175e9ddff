"""Exports to other machines: a Dockerfile, a SkyPilot task, a batch script of Slurm.

Their own tools judge them in `test_by_their_tools.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import colablock
from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._version import __version__
from colablock.cli.export import FORMATS as OFFERED
from colablock.deployment.dockerfile import dockerfile_text
from colablock.deployment.target import target_of
from colablock.errors import InvalidInput
from colablock.lockfile.pylock import read_lock
from colablock.operations.export import FORMATS
from tests.support.dockerfiles import instructions, shell_of, write_documents
from tests.support.fixtures import world_fixture
from tests.support.paths import ROOT
from tests.support.runtime import site_of
from tests.support.wheels import make_sdist, make_wheel, tar_bytes
from tests.support.world import World, succeeds

DATA = ROOT / "tests" / "data"
TINY = DATA / "locks" / "pylock.tiny--py312.toml"
UPDATE = "UPDATE_SNAPSHOTS"
TARGET = ("--python-version", "3.12", "--platform", "manylinux_2_35_x86_64")
OWN = """\
schema = 1
name = "owned"
[options]
allow-build = ["lines"]
[packages]
shapes = ">=1"
lines = ">=1"
[packages.own]
url = "{archive}"
version = "1.0"
source-root = "src"
requires-dist = ["colours"]
"""
DIRECT = """\
schema = 1
name = "direct"
requirements = ["shapes>=1"]
[packages.colours]
url = "{wheel}"
"""
BOTH = """\
schema = 1
name = "both"
[options]
allow-build = ["lines"]
[packages]
colours = ">=1"
[variants.cuda]
system-requirements = { accelerator = "cuda" }
[variants.cpu]
system-requirements = { accelerator = "none" }
"""
PLAIN = """\
schema = 1
name = "plain"
requirements = ["shapes>=1"]
"""
NAMES = {"dockerfile": "Dockerfile", "skypilot": "task.yaml", "slurm": "job.sh"}


def fill(folder: Path) -> None:
    """Write an index, an archive without metadata, and matrices."""
    for name, requires in (("colours", []), ("shapes", ["colours"])):
        make_wheel(folder / "index", name, "1.0", requires=requires)
    make_sdist(folder / "index", "lines", "1.0", modules={"lines/__init__.py": ""})
    linked = make_wheel(folder / "links", "colours", "1.1")
    archive = folder / "own.tar.gz"
    archive.write_bytes(tar_bytes({"own-main/src/own/__init__.py": b"ready = True\n"}))
    (matrices := folder / "matrices").mkdir()
    (matrices / "owned.toml").write_text(OWN.format(archive=archive.as_uri()))
    (matrices / "direct.toml").write_text(DIRECT.format(wheel=linked.as_uri()))
    (matrices / "plain.toml").write_text(PLAIN)
    (matrices / "tiny.toml").write_text(PLAIN.replace("plain", "tiny"))
    (matrices / "more.toml").write_text('schema = 1\nname = "more"\nextends = "plain"\n')


world = world_fixture(fill, scope="module")


@pytest.mark.parametrize("form", NAMES)
def test_the_file_is_the_expected_one(world: World, form: str) -> None:
    """The same lock gives the same bytes, and they are those of ``tests/data/deployment``."""
    here, expected = world.folder / f"deploy-{form}", DATA / "deployment" / NAMES[form]
    command = ("export", "tiny", "--lock", str(TINY), "--format", form, "-o", str(here / expected.name))
    index: Any = {"COLABLOCK_DEFAULT_INDEX": "http://index.example/simple/"}  # of the lock
    done = succeeds(world.run(*command, "--json", **index))
    text = (here / expected.name).read_text().replace(f"=={__version__}", "==VERSION")
    if UPDATE in os.environ:
        expected.parent.mkdir(exist_ok=True)
        expected.write_text(text)
    assert text == expected.read_text(), f"run it with {UPDATE}=1 to accept the new text"
    beside = [] if form == "dockerfile" else [str(here / "pylock.tiny.toml"), str(here / "tiny.toml")]
    key = "wheels" if form == "dockerfile" else "files"
    assert done.json == {"format": form, "output": str(here / expected.name), key: beside}


def test_the_dockerfile_has_no_root_no_secret_and_a_cache() -> None:
    lock = read_lock(TINY)
    found = instructions(dockerfile_text(lock, source="pylock.toml"))
    words = [one.word for one in found]
    assert words.index("ARG") < words.index("FROM")
    arguments = [one.value for one in found if one.word == "ARG"]
    assert arguments[:2] == ["BASE_IMAGE=python:3.12-bookworm", "BASE_DIGEST"]
    (base,) = (one.value for one in found if one.word == "FROM")
    assert base == "${BASE_IMAGE}${BASE_DIGEST:+@${BASE_DIGEST}}"
    last_user = [one.value for one in found if one.word == "USER"][-1]
    assert last_user == "${USER_ID}"
    assert words.index("USER") > max(at for at, word in enumerate(words) if word == "RUN")
    (install,) = (one.value for one in found if one.word == "RUN" and "pip" in one.value)
    assert "PIP_CACHE_DIR=/var/cache/pip" in arguments
    assert "--mount=type=cache,target=/var/cache/pip" in install
    assert "NETRC=/run/secrets/netrc" in arguments  # the lock has a private index
    assert "--mount=type=secret,id=netrc " in install
    assert "--require-hashes" in install
    (document,) = (one.document for one in found if one.document)
    assert document.count("--hash=sha256:") == len(lock.packages)


@pytest.mark.parametrize(
    ("platform", "release"),
    [
        ("manylinux_2_17_x86_64", "bookworm"),
        ("manylinux_2_36_aarch64", "bookworm"),
        ("manylinux_2_39_x86_64", "trixie"),
    ],
)
def test_the_base_image_has_the_glibc_of_the_lock(platform: str, release: str) -> None:
    text = dockerfile_text(_tiny(platform=platform), source="pylock.toml")
    assert f"ARG BASE_IMAGE=python:3.12-{release}\n" in text
    assert f'"{platform.split("_", 3)[3]}"' in text


def _tiny(packages: Any = None, **facts: Any) -> Pylock:
    """Return the small lock with other *packages*, and with *facts* in its table."""
    lock = read_lock(TINY).to_dict()
    table = {**lock["tool"]["colablock"], **facts}
    listed = lock["packages"] if packages is None else packages
    return Pylock.from_dict({**lock, "packages": listed, "tool": {"colablock": table}})


def _package(**keys: Any) -> Mapping[str, Any]:
    return {"name": "shapes", "version": "1.0", **keys}


SDIST = {"url": "https://files.example/shapes-1.0.tar.gz", "hashes": {"sha256": "a" * 64}}
WHEEL: dict[str, Any] = {
    "url": "https://files.example/shapes-1.0-py3-none-any.whl",
    "hashes": {"sha256": "b" * 64},
}


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        (_tiny(kind="delta", assumes={"torch": "2.0"}), "the lock assumes 1 installed distribution of"),
        (_tiny(kind="delta"), "the lock assumes 0 installed distributions"),
        (_tiny(platform="win_amd64"), "the lock is for `win_amd64`, and these machines run Linux"),
        (_tiny(platform="musllinux_1_2_x86_64"), "the lock is for `musllinux_1_2_x86_64`"),
        (_tiny(platform="macosx_14_0_arm64"), "the lock is for `macosx_14_0_arm64`"),
        (_tiny(matrix="a\nRUN evil"), "does not say for which matrix"),
        (_tiny(python=""), "does not say for which matrix, Python and platform"),
        (_tiny(python="3.12\nRUN evil"), "is not a supported Python version"),
        (_tiny(variant="cpu\nRUN evil"), "would change the meaning of a line"),
        (_tiny([_package(archive=SDIST)]), "neither a wheel nor an sdist of `shapes`"),
        (_tiny([_package(directory={"path": "."})]), "neither a wheel nor an sdist of `shapes`"),
        (_tiny([_package(index="https://a.example/\nRUN evil", wheels=[WHEEL])]), "is not a plain URL"),
    ],
)  # fmt: skip
def test_what_an_image_cannot_have_is_refused(lock: Pylock, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        dockerfile_text(lock, source="pylock.toml")
    assert words in caught.value.message


def test_a_wheel_that_no_index_lists_is_a_direct_reference() -> None:
    """pip would need the page of links, which a lock does not have."""
    other = {**WHEEL, "url": WHEEL["url"].replace("py3-none-any", "cp312-cp312-manylinux_2_17_x86_64")}
    text = dockerfile_text(_tiny([_package(wheels=[WHEEL, other])]), source="pylock.toml")
    assert f"shapes @ {other['url']} \\\n    --hash=sha256:{'b' * 64}\n" in text
    assert "WHEEL" not in text
    assert "netrc" not in text


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [("torch", "2.0+cu128", True), ("torch", "2.0+cpu", False), ("nvidia-nvtx", "1.0", True)],
)
def test_builds_for_cuda_ask_for_a_card(name: str, version: str, expected: bool) -> None:
    url = f"https://files.example/{name.replace('-', '_')}-{version}-py3-none-any.whl"
    wheels = [{**WHEEL, "url": url}]
    lock = _tiny([{"name": name, "version": version, "wheels": wheels}])
    assert target_of(lock).needs_card is expected


# -- the command


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plain", "--runtime", "colab-2025.07-gpu", "--format", "dockerfile"], "of one runtime"),
        (["plain", *TARGET, "--format", "skypilot"], "the file needs `pylock.plain.toml`"),
        (["plain", "--platform", "win_amd64", "--format", "slurm"], "run Linux with glibc"),
        (["plain", *TARGET, "--format", "slurm", "--wheelhouse", "w"], "`--wheelhouse` cannot be used with"),
        (["owned", *TARGET, "--format", "dockerfile"], "Pass `--wheelhouse DIR`"),
        (["owned", *TARGET, "--format", "dockerfile", "--wheelhouse", "../w"], "are outside of its folder"),
        (["--lock", str(ROOT / "pyproject.toml"), "--format", "dockerfile"], "pyproject.toml"),
    ],
)  # fmt: skip
def test_the_reason_is_reported_and_nothing_is_written(
    world: World, tmp_path: Path, argv: list[str], words: str
) -> None:
    (here := tmp_path / "here").mkdir()
    (here / "matrices").symlink_to(world.folder / "matrices")
    done = world.run("export", *argv, cwd=here, COLUMNS="400")
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("here", "matrices")] == []


def test_what_a_task_needs_is_written_beside_it(world: World, tmp_path: Path) -> None:
    """The lock with its wheels and a matrix that is not shipped; nothing that is there already."""
    task = tmp_path / "deploy" / "task.yaml"
    succeeds(world.run("export", "owned", *TARGET, "--format", "skypilot", "-o", str(task)))
    listed = {one.name: one for one in read_lock(task.parent / "pylock.owned.toml").packages}
    (wheel,) = listed[canonicalize_name("own")].wheels or ()
    assert (task.parent / str(wheel.path)).is_file()
    assert "apply ./owned.toml --lock pylock.owned.toml " in task.read_text()
    succeeds(world.run("export", "more", *TARGET, "--format", "skypilot", "-o", str(task)))
    assert (task.parent / "plain.base.toml").read_text() == PLAIN
    text = (task.parent / "more.toml").read_text()
    (task.parent / "more.toml").write_text("# mine\n")
    refused = world.run("export", "more", *TARGET, "--format", "skypilot", "-o", str(task), COLUMNS="400")
    assert refused.code == 2
    assert "error: the export would replace `more.toml` in the folder of" in refused.err
    assert (task.parent / "more.toml").read_text() == "# mine\n"
    (task.parent / "more.toml").write_text(text)
    succeeds(world.run("export", "more", *TARGET, "--format", "skypilot", "-o", str(task)))
    assert 'extends = "plain.base.toml"' in (task.parent / "more.toml").read_text()
    lock = tmp_path / "own" / "locks" / "pylock.plain.toml"
    succeeds(world.run("lock", "plain", *TARGET, "-o", str(lock)))
    (own := lock.parents[1] / "plain.toml").write_text(PLAIN)
    script = own.with_name("job.sh")
    command = ("export", str(own), "--lock", str(lock), "--format", "slurm", "-o", str(script), "--json")
    assert succeeds(world.run(*command)).json["files"] == []
    assert (
        "colablock apply ./plain.toml --lock locks/pylock.plain.toml --into env --yes\n" in script.read_text()
    )


@pytest.mark.parametrize("matrix", ["plain", "direct"])
def test_files_of_this_machine_are_copied_into_an_image_and_refused_elsewhere(
    world: World, tmp_path: Path, matrix: str
) -> None:
    """They are in a folder of `--find-links`, or the matrix has the URL of one."""
    lock = tmp_path / "pylock.toml"
    links = ("--find-links", str(world.folder / "links")) if matrix == "plain" else ()
    succeeds(world.run("lock", matrix, *TARGET, *links, "-o", str(lock)))
    output, house = tmp_path / "image" / "Dockerfile", tmp_path / "image" / 'my "wheels" $HOME'
    command = ("export", "--lock", str(lock), "--format", "dockerfile", "-o", str(output))
    outside = world.run(*command, COLUMNS="400")
    assert outside.code == 2
    assert "Pass `--wheelhouse DIR` with a folder beside the Dockerfile" in outside.err
    succeeds(world.run(*command, "--wheelhouse", str(house)))
    assert [path.name for path in house.iterdir()] == ["colours-1.1-py3-none-any.whl"]
    (copied,) = (one for one in instructions(output.read_text()) if one.value.startswith("["))
    assert json.loads(copied.value) == [r"my \"wheels\" [\\\$]HOME", "wheels/"]  # expanded, then a pattern
    assert "--find-links wheels\n" in output.read_text()
    assert "colours==1.1 \\\n" in output.read_text()
    task = world.run(
        "export", "--lock", str(lock), "--format", "skypilot", "-o", str(tmp_path / "t"), COLUMNS="400"
    )
    assert task.code == 2
    assert "the lock has files of this machine" in task.err
    assert "colours-1.1-py3-none-any.whl" in task.err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("form", ["skypilot", "slurm"])
def test_files_in_a_folder_above_are_copied(world: World, tmp_path: Path, form: str) -> None:
    """The paths begin with `..`, and the file is written to the working folder."""
    (tmp_path / "plain.toml").write_text(PLAIN)
    (here := tmp_path / "deploy").mkdir()
    named = ("../plain.toml", "--lock", "../pylock.toml")
    succeeds(world.run("lock", "../plain.toml", *TARGET, "-o", "../pylock.toml", cwd=here))
    done = succeeds(world.run("export", *named, "--format", form, "-o", "job", "--json", cwd=here))
    assert done.json["files"] == ["pylock.plain.toml", "plain.toml"]
    assert "apply ./plain.toml --lock pylock.plain.toml --into" in (here / "job").read_text()


def test_what_a_matrix_extends_goes_with_it(world: World, tmp_path: Path) -> None:
    """One beside the file that extends one in a folder above is copied, or nothing is written."""
    (tmp_path / "plain.toml").write_text(PLAIN)
    (matrix := tmp_path / "deploy" / "m" / "more.toml").parent.mkdir(parents=True)
    matrix.write_text('schema = 1\nname = "more"\nextends = "../../plain.toml"\n')
    task = tmp_path / "deploy" / "task.yaml"
    command = ("export", str(matrix), *TARGET, "--format", "skypilot", "-o")
    succeeds(world.run(*command, str(task)))
    assert "apply ./more.toml " in task.read_text()
    assert {path.name for path in task.parent.glob("*.toml")} == {
        "more.toml",
        "plain.base.toml",
        "pylock.more.toml",
    }
    refused = world.run(*command, str(matrix.with_name("task.yaml")), COLUMNS="400")
    assert "the export would replace `more.toml`" in refused.err
    matrix.write_text('schema = 1\nname = "more"\nextends = "base.toml"\n')
    matrix.with_name("base.toml").write_text(PLAIN.replace("plain", "base"))
    task.with_name("pylock.more.toml").unlink()
    done = succeeds(world.run(*command, str(tmp_path / "deploy" / "other.yaml"), "--json"))
    assert "apply ./m/more.toml " in (tmp_path / "deploy" / "other.yaml").read_text()
    assert [Path(file).name for file in done.json["files"]] == ["pylock.more.toml"]


@pytest.mark.parametrize("form", NAMES)
def test_no_path_of_this_machine_is_in_a_file(world: World, tmp_path: Path, form: str) -> None:
    """The same bytes on another machine, whatever folder the matrix and the file are in."""
    texts = []
    for name in ("first", "second"):
        (matrix := tmp_path / name / "plain.toml").parent.mkdir()
        matrix.write_text(PLAIN)
        file = matrix.parent / "out" / NAMES[form]
        succeeds(world.run("export", str(matrix), *TARGET, "--format", form, "-o", str(file)))
        texts.append(file.read_bytes())
    at_home = ("export", "~/second/plain.toml", *TARGET, "--format", form, "-o", str(file))
    succeeds(world.run(*at_home, HOME=str(tmp_path)))
    assert texts[0] == texts[1] == file.read_bytes()
    assert b"colablock export ../plain.toml " in texts[0]


@pytest.mark.parametrize("form", ["skypilot", "slurm"])
def test_the_apply_chooses_what_the_lock_was_made_for(world: World, tmp_path: Path, form: str) -> None:
    """On a machine without a card, another variant would be taken, and no additions."""
    (matrix := tmp_path / "both.toml").write_text(BOTH)
    script = tmp_path / "job"
    chosen = ("--variant", "cuda", "--with", "lines>=1", "--with", "shapes")
    succeeds(world.run("export", str(matrix), *TARGET, *chosen, "--format", form, "-o", str(script)))
    text = script.read_text()
    (line,) = (line for line in text.splitlines() if "colablock apply ./both.toml" in line)
    assert line.endswith(f"pylock.both.toml {shlex.join(chosen)} --into env --yes")
    assert f"# Made by `colablock export both.toml {shlex.join(chosen)} --python-version" in text


def test_a_named_lock_of_an_older_matrix_is_noted(world: World, tmp_path: Path) -> None:
    """The matrix goes beside the script with it, and an apply there may refuse both."""
    (matrix := tmp_path / "plain.toml").write_text(PLAIN)
    lock, script = tmp_path / "pylock.toml", tmp_path / "job.sh"
    succeeds(world.run("lock", str(matrix), *TARGET, "-o", str(lock)))
    command = ("export", str(matrix), "--lock", str(lock), "--format", "slurm", "-o", str(script))
    assert "is stale" not in succeeds(world.run(*command)).err
    matrix.write_text(PLAIN.replace("shapes>=1", "shapes>=1,<2"))
    note = "note: the lock `pylock.toml` is stale: plain has changed since\n"
    assert note in succeeds(world.run(*command)).err


def test_the_python_function_writes_the_same(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)
    options: dict[str, Any] = {"default_index": "http://index.example/simple/", "quiet": True}
    text = colablock.export("tiny", lock=TINY, format="slurm", output=tmp_path / "job.sh", **options)
    assert text == (DATA / "deployment" / "job.sh").read_text()
    assert (tmp_path / "tiny.toml").is_file()


def test_the_task_is_yaml_with_one_command_to_train() -> None:
    task = yaml.safe_load((DATA / "deployment" / "task.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert (
        task["run"]
        .strip()
        .splitlines()[-1]
        .endswith('train ./tiny.toml --config "$CONFIG" --mirror "$MIRROR"')
    )
    assert "apply ./tiny.toml --lock pylock.tiny.toml --into env --yes" in task["setup"]


# -- run


def test_the_commands_of_a_dockerfile_install_the_lock(world: World, tmp_path: Path) -> None:
    """In a clean folder; the build is stopped if the interpreter or a hash is another one."""
    pytest.importorskip("pip")
    output = tmp_path / "Dockerfile"
    here = ("--python-version", f"{sys.version_info[0]}.{sys.version_info[1]}")
    command = ("export", "owned", *here, "--format", "dockerfile", "-o", str(output))
    succeeds(world.run(*command, "--wheelhouse", str(tmp_path / "wheels")))
    text = output.read_text()
    assert "--only-binary :all: --no-binary lines --require-hashes" in text
    assert build(text, tmp_path) == ["colours==1.0", "lines==1.0", "own==1.0", "shapes==1.0"]
    assert (tmp_path / "users").read_text() == "--create-home --non-unique --uid 1000 --user-group trainer\n"
    minor = sys.version_info[1]
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "wheels", other / "wheels")
    with pytest.raises(AssertionError, match=r"the lock is for Python 3\.\d+ on"):
        build(text.replace(f"(3, {minor})", f"(3, {minor + 1})"), other)
    with pytest.raises(AssertionError, match="DO NOT MATCH THE HASHES"):
        build(re.sub(r"--hash=sha256:.{8}", "--hash=sha256:00000000", text, count=1), other)


def build(text: str, folder: Path) -> list[str]:
    """Run the commands of a Dockerfile in *folder* and return what its environment has."""
    stand_ins = folder / "bin"
    stand_ins.mkdir(exist_ok=True)
    (stand_ins / "useradd").write_text(f'#!/bin/sh\necho "$@" >{folder}/users\n')
    (stand_ins / "useradd").chmod(0o755)
    venv = folder / "venv"
    environ = {
        "PATH": f"{stand_ins}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "VENV": str(venv),
        "USER_ID": "1000",
        "NO_PROXY": "127.0.0.1",
    }
    write_documents(text, folder)
    for one in instructions(text):
        if one.word != "RUN":
            continue
        done = subprocess.run(
            ["/bin/sh", "-c", shell_of(one.value)],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    names = (path.name.removesuffix(".dist-info").split("-") for path in site_of(venv).glob("*.dist-info"))
    return sorted(f"{name}=={version.partition('+')[0]}" for name, version in names)


def test_the_command_line_offers_every_format() -> None:
    assert sorted(OFFERED) == sorted(FORMATS)
