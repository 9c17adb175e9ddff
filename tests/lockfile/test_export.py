"""Exports: their content, that it is reproducible, and that other installers accept it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uv

import colablock
from colablock._vendor.packaging.pylock import Pylock
from colablock.authoring.requirements_reader import read_requirements
from colablock.errors import InvalidInput, InvalidRequirements
from colablock.lockfile.export import Format, export_text, files_beside
from tests.support.fixtures import world_fixture
from tests.support.runtime import make_venv, site_of
from tests.support.server import Fault, IndexServer
from tests.support.wheels import make_sdist, make_wheel, tar_bytes
from tests.support.world import World, succeeds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPI = "https://pypi.org/simple"
A, B, C = "a" * 64, "b" * 64, "c" * 64

# -- the text


def package(name: str, version: str | None = "1.0", **keys: Any) -> dict[str, Any]:
    """Return a package of a lock, by default with a wheel and an sdist."""
    if not keys.keys() & {"wheels", "archive", "vcs", "directory"}:
        url = f"https://files.example/{name.replace('-', '_')}-{version}"
        keys["wheels"] = [{"url": f"{url}-py3-none-any.whl", "hashes": {"md5": "1", "sha256": B}}]
        keys["sdist"] = {"url": f"{url}.tar.gz", "hashes": {"sha256": A}}
    needs = keys.pop("needs", None)
    if needs is not None:
        keys["tool"] = {"colablock": {"requires-dist": needs}}
    return {"name": name, **({"version": version} if version else {}), **keys}


def lock_of(
    *packages: Mapping[str, Any], ours: Mapping[str, Any] | None = None, python: str | None = None
) -> Pylock:
    """Return a lock of another tool; with the table *ours*, a lock of colablock."""
    about: dict[str, Any] = {"created-by": "another tool"}
    if ours is not None:
        facts = {
            "matrix": "demo",
            "python": "3.12.4",
            "platform": "manylinux_2_35_x86_64",
            "requirements": [],
        }
        about = {"created-by": "colablock", "tool": {"colablock": {**facts, **ours}}}
    if python is not None:
        about["requires-python"] = python
    return Pylock.from_dict({"lock-version": "1.0", **about, "packages": list(packages)})


def _moment(text: str) -> Any:
    return tomllib.loads(f"at = {text}")["at"]


def exported(lock: Pylock, form: Format = Format.REQUIREMENTS, **options: Any) -> str:
    return export_text(lock, form, source="pylock.toml", **options)


def body(text: str) -> list[str]:
    """Return the lines below the comments at the top."""
    return text.partition("\n\n")[2].splitlines()


def test_a_requirements_file_whole() -> None:
    lock = lock_of(
        package("colours", index=PYPI, needs=[]),
        package("colours-extra", index=PYPI, needs=["colours>=1", "colours-extra[fast]; extra == 'fast'"]),
        package("shapes", index=PYPI, needs=["colours", "colours-extra[fast]"]),
        ours={
            "variant": "cpu",
            "exclude-newer": _moment("2026-08-01T00:00:00Z"),
            "requirements": ["shapes[round]>=1", "Colours"],
        },
    )
    assert (
        exported(lock)
        == f"""\
# Made by `colablock export demo --variant cpu --python-version 3.12.4 --platform manylinux_2_35_x86_64`
# matrix demo (cpu), Python 3.12.4, manylinux_2_35_x86_64
# without files uploaded after 2026-08-01T00:00:00Z

colours==1.0 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via
    #   colours-extra
    #   demo
    #   shapes
colours-extra==1.0 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via shapes
shapes==1.0 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via demo
"""
    )


def test_the_order_of_the_packages_in_a_lock_does_not_matter() -> None:
    one, two = package("a", index="https://y.example/simple"), package("a-b")
    three = package("b", index="https://x.example/simple")
    for form in Format:
        texts = {exported(lock_of(*order), form) for order in ((one, two, three), (three, two, one))}
        assert len(texts) == 1


def test_a_lock_of_another_tool_is_exported_without_its_target() -> None:
    lock = lock_of(
        package("a", dependencies=[{"name": "b"}]),
        package("b", marker="sys_platform == 'linux'"),
        package("dev", marker="'dev' in dependency_groups"),
    )
    assert exported(lock).splitlines() == [
        "# The pins of a lock file (PEP 751) made by another tool",
        "",
        "a==1.0 \\",
        f"    --hash=sha256:{A} \\",
        f"    --hash=sha256:{B}",
        'b==1.0 ; sys_platform == "linux" \\',
        f"    --hash=sha256:{A} \\",
        f"    --hash=sha256:{B}",
        "    # via a",
    ]


def test_a_direct_reference_is_exported_as_a_direct_reference() -> None:
    url = "https://me:secret@files.example/v1.tar.gz"
    lock = lock_of(package("a", archive={"url": url, "hashes": {"sha384": "d" * 96, "sha512": C * 2}}))
    line = "a @ https://files.example/v1.tar.gz"
    assert body(exported(lock)) == [
        f"{line} \\",
        f"    --hash=sha384:{'d' * 96} \\",
        f"    --hash=sha512:{C * 2}",
    ]
    assert body(exported(lock, Format.CONSTRAINTS)) == ["a==1.0"]
    assert f'"{line}"' in exported(lock, Format.NOTEBOOK)


MIRROR = "https://me:secret@mirror.example/simple/"
OTHER = "https://other.example/whl/cu128"


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        ([None], []),
        ([PYPI, f"{PYPI}/"], []),
        ([PYPI, OTHER, OTHER], [f"--extra-index-url {OTHER}"]),
        ([MIRROR], ["--index-url https://mirror.example/simple/"]),
        (
            [MIRROR, OTHER, MIRROR],
            ["--index-url https://mirror.example/simple/", f"--extra-index-url {OTHER}"],
        ),
    ],
)
def test_indexes_are_named_unless_they_are_the_default(
    indexes: list[str | None], expected: list[str]
) -> None:
    named = [{"index": index} if index else {} for index in indexes]
    lock = lock_of(*(package(f"p{number}", **keys) for number, keys in enumerate(named)))
    text = exported(lock)
    assert "secret" not in text
    assert [line for line in body(text) if line.startswith("--")] == expected
    assert not [line for line in exported(lock, Format.CONSTRAINTS).splitlines() if line.startswith("--")]


def test_local_files_are_found_by_their_folder(tmp_path: Path) -> None:
    local = tmp_path / "my wheels" / "a-1.0-py3-none-any.whl"
    lock = lock_of(
        package("a", wheels=[{"url": local.as_uri(), "hashes": {"sha256": A}}]),
        package("b", wheels=[{"path": "pylock.wheels/b-1.0-py3-none-any.whl", "hashes": {"sha256": B}}]),
    )
    assert files_beside(lock) == {"pylock.wheels/b-1.0-py3-none-any.whl": [f"sha256:{B}"]}
    options = [line for line in body(exported(lock, find_links=["house"])) if line.startswith("--")]
    assert options == ["--find-links house", f"--find-links '{local.parent}'"]


@pytest.mark.parametrize("form", [form for form in Format if form is not Format.CYCLONEDX])
def test_a_package_that_is_not_a_release_is_refused(form: Format) -> None:
    lock = lock_of(package("a", None, directory={"path": "."}), package("b", None, directory={"path": "."}))
    with pytest.raises(InvalidRequirements) as caught:
        exported(lock, form)
    assert len(caught.value.faults) == 2


def test_requirements_with_hashes_need_a_hash_of_every_package() -> None:
    weak = [{"url": "https://files.example/a-1.0-py3-none-any.whl", "hashes": {"md5": "1"}}]
    lock = lock_of(package("a", wheels=weak))
    with pytest.raises(InvalidRequirements, match=r"pylock.toml:packages\[0\]: a has no sha256"):
        exported(lock)
    assert body(exported(lock, Format.CONSTRAINTS)) == ["a==1.0"]


def test_the_header_names_packages_from_a_page_of_links() -> None:
    """A lock does not record the page of links."""
    head, _, _ = exported(lock_of(package("a"), package("b", index=PYPI), ours={})).partition("\n\n")
    note = "# a is on no index: name the page of its files with `--find-links`"
    assert head.splitlines()[2:] == [note]


# -- a delta

DELTA = {
    "kind": "delta",
    "runtime": "colab-2026.08-gpu",
    "assumes": {"torch": "2.11.0+cu128", "numpy": "2.0.2"},
}


def test_the_export_of_a_delta_lists_its_assumptions() -> None:
    lock = lock_of(package("shapes", index=PYPI, needs=["torch"]), ours=DELTA)
    head, _, rest = exported(lock).partition("\n\n")
    assert head.splitlines() == [
        "# Made by `colablock export demo --runtime colab-2026.08-gpu`",
        "# matrix demo, Python 3.12.4, manylinux_2_35_x86_64",
        "# assumes numpy==2.0.2, already installed in colab-2026.08-gpu",
        "# assumes torch==2.11.0+cu128, already installed in colab-2026.08-gpu",
    ]
    assert [line for line in rest.splitlines() if "==" in line] == ["shapes==1.0 \\"]
    text = exported(lock, Format.CONSTRAINTS)
    assert body(text) == ["numpy==2.0.2", "shapes==1.0", "torch==2.11.0+cu128"]


def test_a_delta_cannot_be_exported_as_a_script() -> None:
    with pytest.raises(InvalidInput, match="the lock assumes 2 installed distributions"):
        exported(lock_of(package("shapes"), ours=DELTA), Format.NOTEBOOK)


# -- a script

BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # PEP 723


def metadata_of(text: str) -> dict[str, Any]:
    """Return the metadata of a script, parsed as in the reference implementation of PEP 723."""
    (match,) = BLOCK.finditer(text)
    assert match["type"] == "script"
    assert text.endswith("# ///\n")
    lines = match["content"].splitlines()
    return tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))


def script(lock: Pylock, **options: Any) -> dict[str, Any]:
    return metadata_of(exported(lock, Format.NOTEBOOK, **options))


def dated(name: str, **keys: Any) -> dict[str, Any]:
    url = f"https://files.example/{name}-1.0-py3-none-any.whl"
    moment = "2026-07-01T00:00:00Z"
    return package(
        name, wheels=[{"url": url, "upload-time": _moment(moment), "hashes": {"sha256": A}}], **keys
    )


def test_a_script_has_every_pin() -> None:
    lock = lock_of(package("b"), package("a"), python="==3.12.*")
    assert script(lock) == {"requires-python": "==3.12.*", "dependencies": ["a==1.0", "b==1.0"]}


def test_a_script_has_the_cutoff_if_every_file_has_an_upload_time() -> None:
    """uv treats a file without an upload time as too new, so one such file is enough to omit the cutoff."""
    ours = {"exclude-newer": _moment("2026-08-01T02:00:00+02:00")}
    kept = script(lock_of(dated("a"), ours=ours))
    assert kept["tool"]["uv"] == {"exclude-newer": "2026-08-01T00:00:00Z"}
    assert "tool" not in script(lock_of(dated("a"), package("b"), ours=ours))


def test_a_script_has_the_indexes_and_folders_for_uv() -> None:
    lock = lock_of(package("a", index=MIRROR), package("b", index=MIRROR), package("torch", index=OTHER))
    assert script(lock, find_links=["house"])["tool"]["uv"] == {
        "find-links": ["house"],
        "index": [
            {"url": "https://mirror.example/simple/", "default": True},
            {"name": "other-example-whl-cu128", "url": OTHER, "explicit": True},
        ],
        "sources": {"torch": {"index": "other-example-whl-cu128"}},
    }
    lock = lock_of(package("a", index=PYPI), package("torch", index=OTHER))
    assert [one["url"] for one in script(lock)["tool"]["uv"]["index"]] == [OTHER]


# -- the command

STACK = """\
schema = 1
name = "stack"

[packages]
shapes = ">=1"
sauce = {{ version = ">=1", index = "kitchen" }}

[[index]]
name = "kitchen"
url = "{kitchen}"
"""
OWN = """\
schema = 1
name = "owned"

[packages]
shapes = ">=1"

[packages.own]
url = "{archive}"
version = "1.0"
source-root = "src"
requires-dist = ["colours"]
"""
BARE = """\
schema = 1
name = "bare"
requirements = ["colours"]
"""
PLAIN = """\
schema = 1
name = "plain"
requirements = ["shapes>=1"]
"""
SHOW = """
from importlib import metadata

print(*sorted(f"{one.name}=={one.version}" for one in metadata.distributions()))
"""
SETTINGS = ("UV_NO_CONFIG", "UV_CACHE_DIR", "PIP_CONFIG_FILE", "HOME", "PATH", "NO_PROXY", "no_proxy")


def fill(folder: Path) -> None:
    """Write two indexes, an archive without metadata, and matrices in the folder of the commands."""
    wheels, other, matrices = folder / "index", folder / "other", folder / "matrices"
    make_wheel(wheels, "colours", "1.0")
    make_wheel(wheels, "colours", "2.0")
    make_sdist(wheels, "colours", "2.0")
    make_wheel(wheels, "shapes", "1.0", requires=["colours>=2", "line-art[fine]"])
    make_wheel(wheels, "line-art", "3.0", extras=["fine"], requires=["native; extra == 'fine'"])
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for tag in (f"{own}-{own}-linux_x86_64", f"{own}-{own}-linux_aarch64", "cp39-cp39-win_amd64"):
        make_wheel(wheels, "native", "1.0", tag=tag)
    make_wheel(wheels, "sauce", "9.0")  # not the one that the matrix `stack` asks for
    make_wheel(other, "sauce", "1.5", requires=["colours"])
    make_wheel(other, "colours", "0.1")
    archive = folder / "own.tar.gz"
    archive.write_bytes(tar_bytes({"own-main/src/own/__init__.py": b"ready = True\n"}))
    matrices.mkdir()
    for name, text in {"owned": OWN.format(archive=archive.as_uri()), "bare": BARE, "plain": PLAIN}.items():
        (matrices / f"{name}.toml").write_text(text)


world = world_fixture(fill, scope="module")


@pytest.fixture(scope="module")
def stack(world: World) -> Iterator[None]:
    """Write the matrix ``stack``, and serve the second index, from which one of its projects comes."""
    with IndexServer(world.folder / "other") as kitchen:
        (world.folder / "matrices" / "stack.toml").write_text(STACK.format(kitchen=kitchen.url))
        yield


PINS = ["colours==2.0", "line-art==3.0", "native==1.0", "shapes==1.0"]


@pytest.fixture(scope="module")
def plain_lock(world: World) -> Path:
    path = world.folder / "pylock.plain.toml"
    succeeds(world.run("lock", "plain", "--output", str(path)))
    return path


def pins(text: str) -> list[str]:
    return [line.removesuffix(" \\") for line in text.splitlines() if re.match(r"[a-z]", line)]


def test_an_export_of_a_lock_equals_an_export_that_resolves(
    world: World, tmp_path: Path, plain_lock: Path
) -> None:
    solved = succeeds(world.run("export", "plain"))
    output = tmp_path / "new" / "requirements.txt"
    done = succeeds(world.run("export", "plain", "--lock", str(plain_lock), "-o", str(output)))
    assert output.read_text() == solved.out
    assert done.out == ""
    assert done.err.splitlines()[-1].startswith(f"wrote {output}: plain, Python 3.")
    assert pins(solved.out) == PINS
    assert f"--index-url {world.server.url}\n" in solved.out
    assert hashes(solved.out, "native==1.0") == 3  # the wheels of other platforms too
    assert hashes(solved.out, "colours==2.0") == 2  # and the sdist


def hashes(text: str, pin: str) -> int:
    """Return how many hashes a requirements file has for *pin*."""
    return text.partition(pin)[2].partition("# via")[0].count("--hash=sha256:")


def test_an_offline_export_has_only_the_hashes_that_the_lock_lists(world: World, plain_lock: Path) -> None:
    done = succeeds(world.run("export", "--lock", str(plain_lock), "--offline"))
    assert pins(done.out) == PINS
    assert (hashes(done.out, "native==1.0"), hashes(done.out, "colours==2.0")) == (1, 1)
    table = tomllib.loads(plain_lock.read_text())["tool"]["colablock"]
    said = f"the hashes are only those that the lock lists: those for Python {table['python']} on"
    assert said in " ".join(done.err.split())


def test_a_lock_with_all_files_is_exported_without_an_index(
    world: World, tmp_path: Path, plain_lock: Path
) -> None:
    lock = tmp_path / "pylock.toml"
    succeeds(world.run("lock", "plain", "--all-files", "--output", str(lock)))
    world.server.forget_requests()
    whole = succeeds(world.run("export", "--lock", str(lock)))
    assert world.server.requests == []
    assert whole.err == ""
    assert whole.out == succeeds(world.run("export", "--lock", str(plain_lock))).out


def test_other_formats_need_no_hashes_and_no_index(world: World, plain_lock: Path) -> None:
    world.server.forget_requests()
    for form in ("constraints", "notebook"):
        succeeds(world.run("export", "--lock", str(plain_lock), "--format", form))
    assert world.server.requests == []


def test_an_export_fails_if_the_index_cannot_list_the_files(
    world: World, tmp_path: Path, plain_lock: Path
) -> None:
    environ: Any = {"COLABLOCK_CACHE_DIR": str(tmp_path / "cache"), "COLABLOCK_RETRIES": "0"}
    world.server.fault("/simple/native/", Fault(status=503))
    try:
        done = world.run("export", "--lock", str(plain_lock), **environ)
    finally:
        world.server.fault("/simple/native/", Fault(times=0))
    assert done.code == 1
    said = " ".join(done.err.split())
    assert "the files of native for other platforms cannot be listed:" in said
    assert "`--offline` exports only the hashes that the lock lists" in said


def test_an_export_names_the_packages_that_no_index_lists(world: World, tmp_path: Path) -> None:
    make_wheel(tmp_path / "links", "line-art", "3.0")
    lock = tmp_path / "pylock.toml"
    links = ("--find-links", str(tmp_path / "links"))
    succeeds(world.run("lock", "plain", *links, "--output", str(lock)))
    done = succeeds(world.run("export", "--lock", str(lock)))
    said = " ".join(done.err.split())
    assert "only the hashes that the lock lists, since no index has them: line-art" in said
    assert hashes(done.out, "colours==2.0") == 2


@pytest.mark.usefixtures("stack")
def test_reading_an_export_gives_the_same_as_reading_its_lock(world: World, tmp_path: Path) -> None:
    lock, output = tmp_path / "pylock.toml", tmp_path / "requirements.txt"
    succeeds(world.run("lock", "stack", "--all-files", "--output", str(lock)))
    succeeds(world.run("export", "--lock", str(lock), "-o", str(output)))
    from_lock, from_text = read_requirements(str(lock)), read_requirements(str(output))
    assert [(str(one.requirement), one.hashes) for one in from_text.requirements] == [
        (str(one.requirement), one.hashes) for one in from_lock.requirements
    ]
    assert from_text.default_index == from_lock.default_index == world.server.url
    assert from_text.indexes == from_lock.indexes
    assert len(from_text.indexes) == 1


def test_json_has_the_text_or_the_path_of_the_output(world: World, tmp_path: Path, plain_lock: Path) -> None:
    command = ("export", "--lock", str(plain_lock), "--format", "constraints", "--json")
    answer = succeeds(world.run(*command)).json
    assert answer["format"] == "constraints"
    assert body(answer["text"]) == PINS
    output = tmp_path / "constraints.txt"
    done = succeeds(world.run(*command, "-o", str(output)))
    assert done.json == {"format": "constraints", "output": str(output), "wheels": []}
    assert output.read_text() == answer["text"]


def test_a_recorded_runtime_gives_the_python_and_the_platform(world: World) -> None:
    done = succeeds(world.run("export", "bare", "--runtime", "colab-2025.07-gpu"))
    assert done.out.splitlines()[1] == "# matrix bare, Python 3.11.13, manylinux_2_35_x86_64"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "there is nothing to export"),
        (["--lock", "nowhere.toml"], "`nowhere.toml` cannot be read"),
        (["owned", "--lock", "pylock.toml"], "is a lock of plain, not of owned"),
        (
            ["--lock", "pylock.toml", "--variant", "cpu", "--with", "x"],
            "`--variant`, `--with` cannot be used with `--lock`",
        ),
        (["plain", "-o", "."], "`.` cannot be written: Is a directory"),
        (["owned"], "no index has `own-1.0"),
    ],
)
def test_the_reason_is_reported_if_an_export_is_impossible(
    world: World, tmp_path: Path, plain_lock: Path, argv: list[str], words: str
) -> None:
    (tmp_path / "pylock.toml").symlink_to(plain_lock)
    (tmp_path / "matrices").symlink_to(world.folder / "matrices")
    done = world.run("export", *argv, cwd=tmp_path, COLUMNS="300")
    assert done.code == 2
    assert words in done.err
    assert done.out == ""


def test_the_api_exports(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    options: dict[str, Any] = {"default_index": world.server.url, "quiet": True}
    text = colablock.export("plain", format="constraints", output=tmp_path / "c.txt", **options)
    assert (tmp_path / "c.txt").read_text() == text
    assert body(text) == PINS
    with pytest.raises(InvalidInput, match="one of `requirements`, `constraints`, `notebook`"):
        colablock.export("plain", format="poetry")


# -- a rebuilt wheel


def test_the_wheelhouse_has_the_wheels_that_no_index_has(world: World, tmp_path: Path) -> None:
    output, house = tmp_path / "deploy" / "requirements.txt", tmp_path / "house"
    done = succeeds(world.run("export", "owned", "-o", str(output), "--wheelhouse", str(house), "--json"))
    (wheel,) = house.iterdir()
    assert done.json["wheels"] == [str(wheel)]
    assert "--find-links ../house\n" in output.read_text()
    line = next(line for line in pins(output.read_text()) if line.startswith("own"))
    assert re.fullmatch(r"own==1\.0\+colablock\.[0-9a-f]+", line)


def test_an_export_uses_the_wheels_beside_the_lock(world: World, tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "pylock.owned.toml"
    succeeds(world.run("lock", "owned", "--output", str(lock)))
    text = succeeds(world.run("export", "--lock", str(lock), cwd=tmp_path)).out
    assert "--find-links locks/pylock.owned.wheels\n" in text
    (wheel,) = lock.with_name("pylock.owned.wheels").iterdir()
    output, house = tmp_path / "r.txt", tmp_path / "house"
    command = ("export", "--lock", str(lock), "-o", str(output), "--wheelhouse", str(house))
    content = wheel.read_bytes()
    wheel.write_bytes(content + b"\0")
    assert "is not the wheel that the lock names" in (changed := world.run(*command)).err.replace(
        "\n       ", " "
    )
    assert changed.code == 1
    assert not output.exists()
    assert not house.exists()
    wheel.unlink()
    succeeds(world.run(*command))  # it is made again from what the lock names
    for made in house.iterdir():
        made.unlink()
    matrix = world.folder / "matrices" / "owned.toml"
    succeeds(world.run(command[0], str(matrix), *command[1:], cwd=tmp_path))  # where its name is of no matrix
    assert [made.name for made in house.iterdir()] == [wheel.name]
    assert (house / wheel.name).read_bytes() == content


# -- installed from


def installed_by(tool: str, world: World, file: Path, *more: str) -> list[str]:
    """Return the distributions that *tool* installs from *file* alone into an empty environment."""
    if tool == "pip":
        pytest.importorskip("pip")
    venv = file.parent / f"venv-{tool}"
    python = str(make_venv(venv, sys.executable))
    environ = {name: value for name, value in world.environ().items() if name in SETTINGS}
    command = (
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
        if tool == "pip"
        else [uv.find_uv_bin(), "pip", "install", "--python", python]
    )
    done = subprocess.run(
        [*command, "--require-hashes", "-r", str(file), *more],
        env=environ,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = (path.name.removesuffix(".dist-info").split("-") for path in site_of(venv).glob("*.dist-info"))
    return sorted(f"{name.replace('_', '-')}=={version}" for name, version in names)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_an_export_is_installed(world: World, tmp_path: Path, tool: str) -> None:
    output = tmp_path / "requirements.txt"
    succeeds(world.run("export", "owned", "-o", str(output), "--wheelhouse", str(tmp_path / "house")))
    assert installed_by(tool, world, output) == pins(output.read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(("tool", "more"), [("pip", ()), ("uv", ("--index-strategy", "unsafe-best-match"))])
def test_an_export_of_two_indexes_is_installed(
    world: World, tmp_path: Path, tool: str, more: tuple[str, ...]
) -> None:
    """By default, uv takes every version of a name from the first index that has the name."""
    output = tmp_path / "requirements.txt"
    succeeds(world.run("export", "stack", "-o", str(output)))
    assert "sauce==1.5" in pins(output.read_text())
    assert installed_by(tool, world, output, *more) == pins(output.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_installers_refuse_a_file_with_another_hash(
    world: World, tmp_path: Path, plain_lock: Path, tool: str
) -> None:
    output = tmp_path / "requirements.txt"
    text = succeeds(world.run("export", "--lock", str(plain_lock))).out
    output.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", text))
    with pytest.raises(AssertionError, match=r"(?i)hash"):
        installed_by(tool, world, output)


@pytest.mark.slow
@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("name", ["owned", "stack"])
def test_uv_runs_a_script_with_the_block(world: World, tmp_path: Path, name: str) -> None:
    output = tmp_path / "script.py"
    options = ["--format", "notebook", "--wheelhouse", str(tmp_path / "house")]
    succeeds(world.run("export", name, "-o", str(output), *options))
    text = output.read_text()
    output.write_text(text + SHOW)
    environ = {key: value for key, value in world.environ().items() if key in SETTINGS}
    del environ["UV_NO_CONFIG"]  # with it uv leaves the block's settings out as well
    command = [uv.find_uv_bin(), "run", "--python", sys.executable, str(output)]
    done = subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == metadata_of(text)["dependencies"]


@pytest.mark.slow
def test_pip_compile_changes_nothing_in_an_export(world: World, tmp_path: Path, plain_lock: Path) -> None:
    """It gives the same from the export itself, and from the roots with the pins as constraints."""
    pytest.importorskip("piptools")
    export = ("export", "--lock", str(plain_lock))
    succeeds(world.run(*export, "-o", str(tmp_path / "export.txt")))
    succeeds(world.run(*export, "-o", str(tmp_path / "constraints.txt"), "--format", "constraints"))
    (tmp_path / "roots.in").write_text(f"--index-url {world.server.url}\n-c constraints.txt\nshapes>=1\n")
    for source in ("export.txt", "roots.in"):
        output = tmp_path / f"compiled-{source}.txt"
        command = [
            sys.executable,
            "-m",
            "piptools",
            "compile",
            "--quiet",
            "--generate-hashes",
            "--strip-extras",
        ]
        done = subprocess.run(
            [*command, "--output-file", str(output), source],
            cwd=tmp_path,
            env=world.environ(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert _pinned(output) == _pinned(tmp_path / "export.txt")


def _pinned(file: Path) -> list[tuple[str, tuple[str, ...]]]:
    found = read_requirements(str(file)).requirements
    return [(str(one.requirement), one.hashes) for one in found]
