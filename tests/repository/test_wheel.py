"""The wheel holds what it should, and installing it into a recorded runtime changes and breaks nothing."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import uv
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from colablock._version import __version__
from colablock.errors import ExitCode
from colablock.matrix.lock_pack import LOCK_PACK
from colablock.matrix.packed_locks import packed_locks
from colablock.runtimes.catalog import load_runtime, recorded_distributions, runtime_names, runtimes
from colablock.runtimes.document import RecordedDistribution
from tests.support.paths import ROOT
from tests.support.runtime import find_python, make_venv, site_of
from tests.support.wheels import make_wheel, metadata_text

REPOSITORY = ROOT
PYTHON_OF = {runtime.name: ".".join(runtime.python_version.split(".")[:2]) for runtime in runtimes()}
TEMPTING = {"rich": "99.0", "urllib3": "2.99"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel as a release has it: built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Metadata:
    with zipfile.ZipFile(wheel) as archive:
        return Metadata.from_email(archive.read(f"colablock-{__version__}.dist-info/METADATA"), validate=True)


def tracked(folder: str, pattern: str) -> Iterator[str]:
    """Yield the files of the repository below *folder*, relative to it; not what is made in it."""
    for path in (REPOSITORY / folder).rglob(pattern):
        is_made = "__pycache__" in path.parts or path.parent.suffix == ".wheels"
        if path.is_file() and not is_made:
            yield path.relative_to(REPOSITORY / folder).as_posix()


def test_the_wheel_holds_the_whole_package(names: set[str]) -> None:
    package = {f"colablock/{name}" for name in tracked("colablock", "*")}
    # The licences of vendored projects are in the .dist-info, and nobody reads the other two there.
    left_out = {
        name for name in package if name.startswith("colablock/_vendor/") and not name.endswith(".py")
    } | {"colablock/runtimes/data/README.md"}
    assert package - names == left_out
    assert "colablock/py.typed" in names


def test_the_wheel_holds_the_matrices(names: set[str]) -> None:
    shipped = {f"colablock/matrices/{name}" for name in tracked("matrices", "*")}
    locks = {name for name in shipped if "/pylock." in name}
    sources = {name for name in shipped if name.endswith(".sources.json")}  # of a tool of this repository
    assert locks
    assert shipped - locks - sources <= names
    assert names.isdisjoint(locks | sources)


def test_the_wheel_holds_the_locks_as_one_file(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (tmp_path / LOCK_PACK).write_bytes(archive.read(f"colablock/matrices/{LOCK_PACK}"))
    packed = {lock.name: lock.read_bytes() for lock in packed_locks(tmp_path)}
    assert packed == {path.name: path.read_bytes() for path in (ROOT / "matrices").glob("pylock.*.toml")}


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 1_600_000  # the locks of eight matrices are 150 kB of it


def test_the_wheel_holds_the_licences_of_what_is_vendored(names: set[str]) -> None:
    licences = {name for name in names if ".dist-info/licenses/" in name}
    vendored = ("packaging/LICENSE", "packaging/LICENSE.APACHE", "packaging/LICENSE.BSD", "tomli_w/LICENSE")
    base = f"colablock-{__version__}.dist-info/licenses"
    assert licences == {f"{base}/LICENSE", *(f"{base}/colablock/_vendor/{name}" for name in vendored)}


def test_the_wheel_holds_a_bill_of_the_vendored_projects(wheel: Path) -> None:
    """PEP 770.  The schema is that of CycloneDX, and the pins are those of vendor.txt."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if ".dist-info/sboms/" in name]
        text = archive.read(name).decode()
    assert name.endswith("/colablock.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["purl"] == f"pkg:pypi/colablock@{__version__}"
    pins = (ROOT / "colablock" / "_vendor" / "vendor.txt").read_text(encoding="utf-8")
    listed = {one["name"]: one for one in bill["components"]}
    folders = {
        path.name for path in (ROOT / "colablock" / "_vendor").iterdir() if (path / "LICENSE").is_file()
    }
    assert {name.replace("-", "_") for name in listed} == folders
    for component in listed.values():
        assert f"{component['name'].replace('-', '_')}=={component['version']} " in pins
        assert component["hashes"][0]["content"] in pins
        assert component["licenses"]


def test_a_second_build_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(command, capture_output=True, check=True)
    first, second = (
        {path.name: path.read_bytes() for path in out.iterdir()} for out in (wheel.parent, tmp_path)
    )
    assert {Path(name).suffix for name in first} == {".whl", ".gz"}
    assert first == second


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {"colablock", f"colablock-{__version__}.dist-info"}


def test_the_metadata_is_valid_and_short(metadata: Metadata) -> None:
    assert metadata.name == "colablock"
    assert str(metadata.version) == __version__
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"
    required = {requirement.name for requirement in metadata.requires_dist or ()}
    assert required == {"msgspec", "pyyaml", "resolvelib", "rich", "tomli", "urllib3", "uv"}


def closure(requirements: list[Requirement]) -> dict[str, importlib.metadata.Distribution]:
    """Return what *requirements* stand for here, with all that it requires in turn."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        # Python 3.10's backports are needed there only: no runtime is that old.
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.distribution(name)
        waiting += [Requirement(line) for line in found[name].requires or ()]
    return found


@pytest.fixture(scope="module")
def folder(metadata: Metadata, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index in a folder: empty wheels with the versions and requirements of what runs this test.

    What the runtimes have too is there in a far newer version as well, for an installer to be tempted by.
    """
    links = tmp_path_factory.mktemp("links")
    for name, found in closure(metadata.requires_dist or []).items():
        for version in {found.version, TEMPTING.get(name, found.version)}:
            make_wheel(links, name, version, requires=tuple(found.requires or ()))
    return links


class Fake:
    """Recorded runtimes of one Python, one after the other in a folder: a virtual environment, or without
    that Python only the site.  What one has in common with the next stays, since writing it takes long.
    """

    def __init__(self, python: str, where: Path) -> None:
        interpreter = find_python(python)
        self.python = python
        self.real = interpreter is not None
        self.where = where
        self.site = where
        if interpreter is not None:
            make_venv(where, interpreter)
            self.site = site_of(where)
        self._texts: dict[str, str] = {}

    def become(self, name: str) -> None:
        """Have *site* hold what an installer reads of the distributions of *name*, and nothing else."""
        self.name = name
        texts = dict(map(read_by_installers, recorded_distributions(name)))
        for path in list(self.site.iterdir()) if self.site.is_dir() else []:
            if path.name not in texts:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for info, text in texts.items():
            if self._texts.get(info) != text or not (self.site / info).is_dir():
                (self.site / info).mkdir(parents=True, exist_ok=True)
                (self.site / info / "METADATA").write_text(text)
                (self.site / info / "RECORD").write_text(f"{info}/METADATA,,\n{info}/RECORD,,\n")
        self._texts = texts

    def install(self, wheel: Path, links: Path) -> subprocess.CompletedProcess[str]:
        place = ["--target", str(self.site), "--python-version", self.python]
        if self.real:
            place = ["--python", str(self.where / "bin" / "python")]
        command = [uv.find_uv_bin(), "pip", "install", "--offline", "--no-index", "--find-links", str(links)]
        return subprocess.run([*command, *place, str(wheel)], capture_output=True, text=True, check=False)

    def installed(self) -> tuple[dict[str, str], set[tuple[str, str]]]:
        """Return each version by name, and each requirement that does not hold, with who has it."""
        found: dict[str, importlib.metadata.Distribution] = {
            canonicalize_name(item.metadata["Name"]): item
            for item in importlib.metadata.distributions(path=[str(self.site)])
        }
        versions = {name: item.version for name, item in found.items()}
        markers = {**load_runtime(self.name).environment.markers, "extra": ""}
        return versions, {
            (name, line)
            for name, item in found.items()
            for line in item.requires or ()
            if not holds(parsed(line), versions, markers)
        }


def read_by_installers(item: RecordedDistribution) -> tuple[str, str]:
    """Return what the folder of a distribution's metadata is called, and its METADATA."""
    known = item.installed
    text = metadata_text(item.spelled, known.version, requires=known.requires)
    return f"{item.spelled.replace('-', '_')}-{known.version}.dist-info", text


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Fake]:
    """Return what makes a stand-in of a recorded runtime."""
    of_python = functools.cache(lambda python: Fake(python, tmp_path_factory.mktemp("fake") / python))

    def fake(name: str) -> Fake:
        found = of_python(PYTHON_OF[name])
        found.become(name)
        return found

    return fake


parsed = functools.cache(Requirement)


def holds(requirement: Requirement, installed: Mapping[str, str], markers: dict[str, str]) -> bool:
    if requirement.marker and not requirement.marker.evaluate(markers):
        return True
    version = installed.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", runtime_names())
def test_installing_the_wheel_changes_and_breaks_nothing(
    name: str, wheel: Path, folder: Path, fakes: Callable[[str], Fake]
) -> None:
    fake = fakes(name)
    before, unmet = fake.installed()
    assert len(before) > 500
    done = fake.install(wheel, folder)
    assert done.returncode == 0, done.stderr
    after, unmet_after = fake.installed()
    assert {key: after.get(key) for key in before} == before
    assert after.keys() - before.keys() == {"colablock", "msgspec", "resolvelib", "uv"}
    assert unmet_after == unmet


def test_the_wheel_starts_with_its_requirements_only(wheel: Path, folder: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    command = [uv.find_uv_bin(), "pip", "install", "--offline", "--no-index", "--find-links", str(folder)]
    subprocess.run([*command, "--python", str(python), str(wheel)], check=True, capture_output=True)
    shown = subprocess.run(
        [str(python), "-I", "-m", "colablock", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"colablock {__version__}\n"


# --- packages of matrices, installed beside it -------------------------------------------------

HOW_TO = REPOSITORY / "docs" / "how-to" / "share-matrices.md"


@dataclass(frozen=True)
class Team:
    """A virtual environment with colablock and packages of matrices."""

    folder: Path

    def run(self, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / "colablock"), *argv, "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)

    def listed(self, cwd: Path) -> dict[str, dict[str, str]]:
        done = self.run("list", cwd=cwd)
        assert done.returncode == ExitCode.DONE, done.stderr
        return {one["name"]: one for one in json.loads(done.stdout)["matrices"]}

    def packages(self, name: str, cwd: Path) -> dict[str, str]:
        """Return what a matrix asks for, with the reasons."""
        done = self.run("show", name, cwd=cwd)
        assert done.returncode == ExitCode.DONE, done.stderr
        return {entry["requirement"]: entry["why"] for entry in json.loads(done.stdout)["packages"]}


def examples() -> list[str]:
    """Return the TOML files that the guide shows, in its order."""
    return re.findall(r"^```toml\n(.*?)^```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def make_package(folder: Path, files: Mapping[str, str]) -> Path:
    """Build a project with its own backend, as the guide says, and return its wheel."""
    for name, text in files.items():
        path = folder / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(folder / "project")], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_team(folder: Path, metadata: Metadata, *wheels: Path) -> Team:
    """Install *wheels* into an environment; what colablock needs is what the tests have."""
    python = make_venv(folder, sys.executable)
    command = [uv.find_uv_bin(), "pip", "install", "--offline", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*command, "--python", str(python), *map(str, wheels)], check=True)
    needed = closure(metadata.requires_dist or []).values()
    places = dict.fromkeys(str(found.locate_file("")) for found in needed)
    (site_of(folder) / "needed.pth").write_text("".join(f"{place}\n" for place in places))
    return Team(folder)


@pytest.fixture(scope="module")
def team(wheel: Path, metadata: Metadata, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """Return an environment in which the guide was followed to the letter."""
    folder = tmp_path_factory.mktemp("team")
    pyproject, matrix, _ = examples()
    files = {"pyproject.toml": pyproject, "team_matrices/__init__.py": ""}
    made = make_package(folder, {**files, "team_matrices/team-qlora.toml": matrix})
    return make_team(folder / "env", metadata, wheel, made)


def test_the_installed_tool_uses_the_locks_in_its_pack(team: Team, tmp_path: Path) -> None:
    plan = ("plan", "qlora-2026", "--runtime", "colab-2026.08-gpu", "--into", "kernel", "--offline")
    done = team.run(*plan, cwd=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    lock = "pylock.qlora-2026--colab-2026_08-gpu.toml"
    assert f"the versions are those of the lock `{lock}`" in json.loads(done.stdout)["notes"]
    target = ("--python-version", "3.12", "--platform", "manylinux_2_35_x86_64", "--variant", "cuda")
    done = team.run("export", "qlora-2026", *target, "--offline", cwd=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "\ntorch==" in json.loads(done.stdout)["text"]


def test_a_matrix_package_is_listed_with_its_path(team: Team, tmp_path: Path) -> None:
    found = team.listed(tmp_path)
    assert found["team-qlora"] == {
        "name": "team-qlora",
        "summary": "What we train with: qlora-2026 and our tracking",
        "source": str(site_of(team.folder) / "team_matrices" / "team-qlora.toml"),
        "training": "not proven on any card",
        "evidence": {**dict.fromkeys(("resolved", "applied", "imported")), "planned": {}, "trained": []},
    }
    assert not any("fault" in one for one in found.values())
    assert {"trl<2,>=0.29", "wandb>=0.17"} <= set(team.packages("team-qlora", tmp_path))


def test_a_matrix_extends_one_of_a_package(team: Team, tmp_path: Path) -> None:
    (tmp_path / "matrices").mkdir()
    (tmp_path / "matrices" / "mine.toml").write_text(examples()[2])
    found = team.packages("mine", tmp_path)
    assert found["trl<1,>=0.29"] == "our callbacks are written for 0.x"
    assert found["wandb>=0.17"] == "every run of ours is tracked"
    assert "trl<2,>=0.29" not in found


def test_faults_of_a_matrix_package_are_reported(wheel: Path, metadata: Metadata, tmp_path: Path) -> None:
    """One matrix has a fault, another extends it, and a second entry point leads nowhere."""
    pyproject = examples()[0].replace("team_matrices", "faulty").replace("team-matrices", "faulty")
    files = {
        "pyproject.toml": f'{pyproject}gone = "no_such_module"\n',
        "faulty/__init__.py": "",
        "faulty/broken.toml": 'schema = 1\nname = "broken"\ncolour = "red"\n',
        "faulty/above.toml": 'schema = 1\nname = "above"\nextends = "broken"\n',
        "faulty/fine.toml": 'schema = 1\nname = "fine"\nextends = "qlora-2026"\n',
    }
    team = make_team(tmp_path / "env", metadata, wheel, make_package(tmp_path, files))
    faults = {name: one["fault"] for name, one in team.listed(tmp_path).items() if "fault" in one}
    assert faults.pop("no_such_module").endswith("cannot be imported: No module named 'no_such_module'")
    broken = site_of(team.folder) / "faulty" / "broken.toml"
    assert {name: fault.partition(" (")[0] for name, fault in faults.items()} == {
        "broken": "colour: unknown key",
        "above": f"{broken}: colour: unknown key",
    }
    done = team.run("show", "above", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert f"{broken}: colour: unknown key" in json.loads(done.stdout)["error"]["message"]
    assert team.packages("fine", tmp_path)
