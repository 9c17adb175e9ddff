from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment import _probe
from colablock.environment.accelerator import Accelerator
from colablock.environment.direct_url import from_freeze
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.notebook_host import Host, detect_host, versions_when_loaded
from colablock.environment.snapshot import (
    Installed,
    Snapshot,
    find_executable,
    fingerprint,
    installed_versions,
    protected_names,
    snapshot_of,
    take_snapshot,
)
from colablock.errors import InvalidInput, NotFound
from tests.support.runtime import Stub, Venv, build_site, find_python, make_venv, site_of

pytestmark = pytest.mark.interpreter

NONE = Accelerator()
PLAIN = {"PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def empty_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment that tests must not change."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    make_venv(folder, sys.executable)
    return folder


def read(*folders: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the distributions that the probe finds on a search path, by name, and its notes."""
    notes: list[str] = []
    found = _probe.distributions(map(str, folders), notes)
    return {item["name"]: item for item in found}, notes


ARCHIVE = b'{"url": "https://x.example/a.whl", "archive_info": {"hashes": {"sha256": "%s"}}}'


def only(folder: Path) -> dict[str, Any]:
    (found,) = read(folder)[0].values()
    return found


def dist_info(site: Path, files: Mapping[str, str | bytes], name: str = "some_dist-1.0.dist-info") -> Path:
    info = site / name
    info.mkdir(parents=True)
    for file, content in files.items():
        (info / file).write_bytes(content.encode() if isinstance(content, str) else content)
    return info


def test_all_facts_of_a_distribution_are_read(tmp_path: Path) -> None:
    origin = {"url": "https://files.example/a.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}}
    stub = Stub(
        name="Some.Dist",
        version="1.0+cpu",
        requires=("numpy>=1", 'rich; extra == "cli"'),
        requires_python=">=3.8",
        extras=("cli",),
        import_names=("some", "other"),
        direct_url=origin,
        requested=True,
    )
    found = only(build_site(tmp_path, [stub]))
    size = found.pop("size")
    assert size == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) - (
        (tmp_path / "Some_Dist-1.0+cpu.dist-info" / "RECORD").stat().st_size
    )
    assert found == {
        "name": "some-dist",
        "version": "1.0+cpu",
        "requires": ["numpy>=1", 'rich; extra == "cli"'],
        "requires_python": ">=3.8",
        "extras": ["cli"],
        "import_names": ["other", "some"],
        "direct_url": json.dumps(origin),
        "provenance_url": None,
        "installer": "pip",
        "requested": True,
        "path": str(tmp_path / "Some_Dist-1.0+cpu.dist-info"),
    }


HEAD = "Metadata-Version: 2.5\nName: some-dist\nVersion: 1.0\n"
IMPORT_NAMES: list[tuple[str, dict[str, str], list[str]]] = [
    (
        "declared (PEP 794)",
        {
            "METADATA": HEAD + "Import-Name: spam\nImport-Name: eggs.ham ; private\nImport-Namespace: ns\n",
            "top_level.txt": "no\n",
        },
        ["eggs", "ns", "spam"],
    ),
    ("declared as none", {"METADATA": HEAD + "Import-Name:\n", "RECORD": "spam.py,sha256=x,1\n"}, []),
    (
        "listed by setuptools",
        {"METADATA": HEAD, "top_level.txt": "spam\r\n_spam\nns/part\n\n"},
        ["_spam", "ns", "spam"],
    ),
    (
        "seen in the record",
        {
            "METADATA": HEAD,
            "RECORD": "spam/__init__.py,sha256=x,1\n"
            "spam/data.txt,sha256=x,1\n"
            "single.py,sha256=x,1\n"
            "native.cpython-312-x86_64-linux-gnu.so,sha256=x,1\n"
            "ns/part/mod.py,sha256=x,1\r\n"
            '"odd/a,b.txt",sha256=x,1\n'
            "some.libs/lib.so,sha256=x,1\n"
            "__pycache__/single.cpython-312.pyc,,\n"
            "../../../bin/tool.py,sha256=x,1\n"
            "share/doc/readme.txt,sha256=x,1\n"
            "some_dist-1.0.dist-info/METADATA,sha256=x,1\n",
        },
        ["native", "ns", "single", "spam"],
    ),
    ("not to be told", {"METADATA": HEAD}, []),
]


@pytest.mark.parametrize(
    ("files", "expected"), [case[1:] for case in IMPORT_NAMES], ids=[case[0] for case in IMPORT_NAMES]
)
def test_import_names(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    dist_info(tmp_path, files)
    assert only(tmp_path)["import_names"] == expected


METADATA: list[tuple[str, bytes, list[str]]] = [
    ("the body is not read", HEAD.encode() + b"Requires-Dist: a\n\nRequires-Dist: not-this\n", ["a"]),
    (
        "lines of Windows",
        HEAD.replace("\n", "\r\n").encode() + b"Requires-Dist: a\r\n\r\nRequires-Dist: no",
        ["a"],
    ),
    (
        "a folded line",
        HEAD.encode() + b"Requires-Dist: a\n  >=1\nLicense: MIT\n  Requires-Dist: no\n",
        ["a >=1"],
    ),
    ("any case", HEAD.encode() + b"requires-dist: a\nREQUIRES-DIST: b\n", ["a", "b"]),
    ("not UTF-8", HEAD.encode() + b"Author: J\xf6rg\nRequires-Dist: a\n", ["a"]),
    ("a byte-order mark", b"\xef\xbb\xbf" + HEAD.encode() + b"Requires-Dist: a\n", ["a"]),
    ("a line that is no header", HEAD.encode() + b"MIT License without a fold\nRequires-Dist: a\n", ["a"]),
    ("long headers", HEAD.encode() + b"License: " + b" \n  x" * 9000 + b"\nRequires-Dist: a\n\nbody", ["a"]),
    ("no end", HEAD.encode() + b"Requires-Dist: a", ["a"]),
]


@pytest.mark.parametrize(
    ("data", "expected"), [case[1:] for case in METADATA], ids=[case[0] for case in METADATA]
)
def test_metadata_headers_in_every_form(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    dist_info(tmp_path, {"METADATA": data})
    assert only(tmp_path)["requires"] == expected


def test_the_folder_gives_the_name_and_version_that_the_metadata_lacks(tmp_path: Path) -> None:
    dist_info(tmp_path, {"METADATA": "Metadata-Version: 2.1\n"}, "some_dist-1.5.dist-info")
    found = only(tmp_path)
    assert (found["name"], found["version"]) == ("some-dist", "1.5")


NO_DISTRIBUTION: list[tuple[str, dict[str, str | bytes]]] = [
    ("~umpy-1.0.dist-info", {"METADATA": "Metadata-Version: 2.1\n"}),  # what a broken removal leaves
    ("numpy-1.0.dist-info", {}),
    ("numpy-1.0.dist-info", {"RECORD": ""}),
    ("numpy.dist-info", {"METADATA": "Metadata-Version: 2.1\n"}),
    ("numpy-1.0.dist-info", {"METADATA": "Name: ../../etc\nVersion: 1\n"}),
]


@pytest.mark.parametrize(("name", "files"), NO_DISTRIBUTION)
def test_an_invalid_distribution_is_ignored_with_a_note(
    tmp_path: Path, name: str, files: dict[str, str | bytes]
) -> None:
    dist_info(tmp_path, files, name)
    found, notes = read(tmp_path)
    assert found == {}
    assert name in notes[0]


def test_unreadable_metadata_is_noted(tmp_path: Path) -> None:
    info = dist_info(tmp_path, {})
    (info / "METADATA").mkdir()  # even for root
    found, notes = read(tmp_path)
    assert found == {}
    assert "cannot be read" in notes[0]


ORIGINS: dict[str, tuple[dict[str, bytes], str | None, str | None]] = {
    "none": ({}, None, None),
    "not valid": ({"direct_url.json": b"\xff", "provenance_url.json": b"{"}, None, None),
    "a direct reference": ({"direct_url.json": ARCHIVE % b"00ff"}, "https://x.example/a.whl", "00ff"),
    # An index, and so no direct reference (PEP 710).
    "a provenance": ({"provenance_url.json": ARCHIVE % b"00ff"}, None, "00ff"),
    "both": (
        {"direct_url.json": ARCHIVE % b"11", "provenance_url.json": ARCHIVE % b"00ff"},
        "https://x.example/a.whl",
        "00ff",
    ),
}


@pytest.mark.parametrize(("files", "url", "sha256"), ORIGINS.values(), ids=ORIGINS.keys())
def test_the_direct_url_and_the_hash_are_read(
    empty_venv: Path, tmp_path: Path, files: dict[str, bytes], url: str | None, sha256: str | None
) -> None:
    venv = tmp_path / "venv"
    shutil.copytree(empty_venv, venv, symlinks=True)
    dist_info(site_of(venv), {"METADATA": HEAD, **files})
    installed = snapshot_of(venv, environ=PLAIN, accelerator=NONE).installed[canonicalize_name("some-dist")]
    assert (installed.direct_url.url if installed.direct_url else None) == url
    assert installed.sha256 == sha256


def test_the_first_folder_counts_and_the_hidden_one_is_noted(tmp_path: Path) -> None:
    first = build_site(tmp_path / "first", [Stub(name="numpy", version="2.0")])
    second = build_site(
        tmp_path / "second", [Stub(name="NumPy", version="1.0"), Stub(name="rich", version="13")]
    )
    found, notes = read(tmp_path / "missing", first, second)
    assert {name: item["version"] for name, item in found.items()} == {"numpy": "2.0", "rich": "13"}
    (note,) = notes
    assert "numpy 1.0" in note
    assert "hidden by 2.0" in note


def test_of_two_versions_in_a_folder_the_one_counts_that_importlib_finds(tmp_path: Path) -> None:
    build_site(tmp_path, [Stub(name="numpy", version=version) for version in ("1.0", "2.0", "3.0")])
    found, notes = read(tmp_path)
    expected = next(iter(metadata.distributions(path=[str(tmp_path)]))).version
    assert found["numpy"]["version"] == expected
    assert len(notes) == 2


def test_a_folder_listed_twice_counts_once(tmp_path: Path) -> None:
    site = build_site(tmp_path / "lib", [Stub(name="numpy", version="2.0")])
    (tmp_path / "lib64").symlink_to("lib")
    found, notes = read(site, tmp_path / "lib64", site)
    assert found["numpy"]["path"].startswith(str(site))
    assert notes == []


def test_a_linked_site_keeps_its_path(tmp_path: Path) -> None:
    build_site(tmp_path / "real", [Stub(name="numpy", version="2.0")])
    (tmp_path / "link").symlink_to("real")
    assert only(tmp_path / "link")["path"] == str(tmp_path / "link" / "numpy-2.0.dist-info")


def test_a_deleted_working_directory_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = build_site(tmp_path / "site", [Stub(name="numpy", version="2.0")])
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    notes: list[str] = []
    strange: Any = ["", None, b"x", str(site)]
    assert [item["name"] for item in _probe.distributions(strange, notes)] == ["numpy"]
    monkeypatch.chdir(tmp_path)


def test_files_on_the_search_path_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "python312.zip").write_bytes(b"PK")
    assert read(tmp_path / "python312.zip") == ({}, [])


def test_an_egg_info_folder_of_setuptools_is_read(tmp_path: Path) -> None:
    files = {
        "PKG-INFO": "Metadata-Version: 1.1\nName: some-dist\nVersion: 1.0\n",
        "requires.txt": "numpy>=1\n\n[cli]\nrich\n\n[cli:python_version < '3.11']\ntomli\n"
        "\n[:sys_platform == 'win32']\ncolorama\n",
        "top_level.txt": "some\n",
    }
    dist_info(tmp_path, files, "some_dist-1.0-py3.12.egg-info")
    found = only(tmp_path)
    assert found["requires"] == [
        "numpy>=1",
        'rich ; extra == "cli"',
        "tomli ; (python_version < '3.11') and extra == \"cli\"",
        "colorama ; (sys_platform == 'win32')",
    ]
    assert found["extras"] == ["cli"]
    assert found["import_names"] == ["some"]
    assert found["size"] is None


def test_an_egg_info_file_of_distutils_is_read(tmp_path: Path) -> None:
    (tmp_path / "some_dist-1.0.egg-info").write_text("Metadata-Version: 1.1\nName: some-dist\nVersion: 1.0\n")
    found = only(tmp_path)
    assert (found["name"], found["version"], found["size"]) == ("some-dist", "1.0", None)


def test_an_egg_on_the_search_path_is_read(tmp_path: Path) -> None:
    egg = tmp_path / "some_dist-1.0-py3.12.egg"
    dist_info(egg, {"PKG-INFO": "Name: some-dist\nVersion: 1.0\n"}, "EGG-INFO")
    assert only(egg)["version"] == "1.0"


def test_a_development_link_leads_to_the_project(venv: Venv, tmp_path: Path) -> None:
    project = tmp_path / "project"
    dist_info(project, {"PKG-INFO": "Name: some-dist\nVersion: 1.0\n"}, "some_dist.egg-info")
    (venv.site / "some-dist.egg-link").write_text(f"{project}\n.")
    (venv.site / "easy-install.pth").write_text(f"{project}\n")
    snapshot = snapshot_of(venv.folder, environ=PLAIN, accelerator=NONE)
    assert snapshot.installed[canonicalize_name("some-dist")].path == str(project / "some_dist.egg-info")


def test_an_editable_installation_has_the_import_names_of_its_project(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "spam").mkdir(parents=True)
    (source / "spam" / "__init__.py").touch()
    (source / "notes").mkdir()
    site = tmp_path / "site"
    dist_info(site, {"METADATA": HEAD, "RECORD": "_some_dist.pth,sha256=x,1\n"})
    (site / "_some_dist.pth").write_text(f"# where it is\nimport os\n{source}\n/nowhere\n")
    assert only(site)["import_names"] == ["spam"]


def test_the_snapshot_agrees_with_importlib() -> None:
    snapshot = take_snapshot(environ=PLAIN, accelerator=NONE)
    seen = {canonicalize_name(item.metadata["Name"]) for item in metadata.distributions()}
    assert set(snapshot.installed) == seen
    for name, installed in snapshot.installed.items():
        assert installed.version == metadata.version(name)
        assert list(installed.requires) == (metadata.requires(name) or [])
    assert (snapshot.python, snapshot.prefix) == (sys.executable, sys.prefix)
    assert snapshot.source == "live"
    assert snapshot.accelerator is NONE


def test_an_interpreter_is_found_by_path_folder_or_name(venv: Venv) -> None:
    build_site(venv.site, [Stub(name="numpy", version="2.0")])
    spellings = [
        (Path(venv.python), PLAIN),
        (venv.folder, PLAIN),
        (Path("python"), {"PATH": str(venv.folder / "bin")}),
    ]
    for path, environ in spellings:
        snapshot = snapshot_of(path, environ=environ, accelerator=NONE)
        assert snapshot.installed.keys() == {"numpy"}
        assert snapshot.prefix == str(venv.folder)
        assert Path(snapshot.python).parent == venv.folder / "bin"
        assert snapshot.site == str(venv.site)
        assert snapshot.externally_managed is None


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"])
def test_the_probe_runs_in_every_supported_interpreter(version: str) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    assert snapshot_of(Path(python), environ=PLAIN, accelerator=NONE).environment.short == version


def test_variables_of_the_host_do_not_reach_the_probe(venv: Venv, tmp_path: Path) -> None:
    other = build_site(tmp_path / "other", [Stub(name="rich", version="13")])
    environ = {**PLAIN, "PYTHONPATH": str(other), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "/nowhere"}
    assert snapshot_of(venv.folder, environ=environ, accelerator=NONE).installed == {}


def test_output_of_a_pth_file_does_not_disturb_the_probe(venv: Venv) -> None:
    (venv.site / "loud.pth").write_text("import sys; sys.stdout.write('hello'); print('{}')\n")
    assert snapshot_of(venv.folder, environ=PLAIN, accelerator=NONE).installed == {}


@pytest.mark.parametrize("path", ["missing", "no/such/python", "/no/such/python"])
def test_a_missing_interpreter_is_an_error(path: str) -> None:
    with pytest.raises(NotFound) as raised:
        snapshot_of(Path(path), environ={"PATH": ""}, accelerator=NONE)
    assert path in str(raised.value)


def test_a_folder_without_an_environment_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        snapshot_of(tmp_path, environ=PLAIN, accelerator=NONE)


IMPOSTORS = [
    ('#!/bin/sh\necho \'colablock-probe {"format": 1, "fac\'\n', 0o755, "said nothing"),
    ("#!/bin/sh\necho nothing to see\n", 0o755, "said nothing"),
    ("#!/bin/sh\necho 'no such option' >&2; exit 2\n", 0o755, "no such option"),
    ("#!/bin/sh\n", 0o644, "cannot be run"),
    ("\x00\x01", 0o755, "cannot be run"),
]


@pytest.mark.parametrize(("content", "mode", "why"), IMPOSTORS)
def test_a_program_other_than_python_is_an_error(tmp_path: Path, content: str, mode: int, why: str) -> None:
    program = tmp_path / "python"
    program.write_text(content)
    program.chmod(mode)
    with pytest.raises(InvalidInput) as raised:
        snapshot_of(program, environ=PLAIN, accelerator=NONE)
    assert str(program) in str(raised.value)
    assert why in str(raised.value)


def test_an_externally_managed_environment_has_its_message(tmp_path: Path) -> None:
    marker = tmp_path / "EXTERNALLY-MANAGED"
    marker.write_text("[externally-managed]\nError=To install 100% of it,\n use apt.\n")
    outside = sys.prefix == sys.base_prefix
    assert _probe._externally_managed(str(tmp_path)) == (
        "To install 100% of it,\nuse apt." if outside else None
    )


def test_a_virtual_environment_of_a_managed_python_is_not_managed(empty_venv: Path) -> None:
    answer = subprocess.run(
        [empty_venv / "bin" / "python", "-I", _probe.__file__], capture_output=True, text=True, check=True
    )
    told = json.loads(answer.stdout.split(_probe.MARK)[1])
    assert told["format"] == _probe.FORMAT
    assert told["facts"]["externally_managed"] is None
    assert told["facts"]["base_prefix"] == sys.base_prefix


def test_invalid_versions_are_noted(venv: Venv) -> None:
    build_site(venv.site, [Stub(name="pytz", version="2004d")])
    snapshot = snapshot_of(venv.folder, protect=["torch"], environ=PLAIN, accelerator=NONE)
    assert any("pytz" in note and "2004d" in note for note in snapshot.notes)
    assert any("torch" in note and "not installed" in note for note in snapshot.notes)


def test_installed_versions_agree_with_the_snapshot(venv: Venv) -> None:
    stubs = [Stub(name="Some.Dist", version="1.0+cpu"), Stub(name="numpy", version="2.0.2")]
    site = build_site(venv.site, stubs)
    (site / "~umpy-1.0.dist-info").mkdir()
    (site / "broken.dist-info").mkdir()
    snapshot = snapshot_of(venv.folder, environ=PLAIN, accelerator=NONE)
    expected = {name: installed.version for name, installed in snapshot.installed.items()}
    assert installed_versions([site.parent / "missing", site]) == expected


def test_installed_versions_take_the_first_of_two(tmp_path: Path) -> None:
    for folder, version in (("first", "2.0"), ("second", "1.0")):
        build_site(tmp_path / folder, [Stub(name="numpy", version=version)])
    assert installed_versions([tmp_path / "first", tmp_path / "second"]) == {"numpy": "2.0"}


HOSTS: list[tuple[dict[str, str], set[str], Host]] = [
    ({}, set(), Host.PLAIN),
    ({"COLAB_RELEASE_TAG": "release-colab_20260819"}, set(), Host.COLAB),
    ({}, {"google.colab", "ipykernel"}, Host.COLAB),
    ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, {"ipykernel"}, Host.KAGGLE),
    ({}, {"ipykernel"}, Host.JUPYTER),
    ({"JPY_PARENT_PID": "17"}, set(), Host.JUPYTER),
]


@pytest.mark.parametrize(("environ", "modules", "host"), HOSTS)
def test_the_host_of_a_process(environ: dict[str, str], modules: set[str], host: Host) -> None:
    assert detect_host(environ, modules) is host


def installed_of(**versions: str) -> dict[NormalizedName, Installed]:
    names = {canonicalize_name(name): version for name, version in versions.items()}
    return {name: Installed(name=name, version=version) for name, version in names.items()}


def test_a_plain_interpreter_protects_the_names_of_the_user() -> None:
    installed = installed_of(ipykernel="6", numpy="2", rich="13")
    environment = environment_for("3.12", "manylinux_2_35_x86_64")
    assert protected_names(installed, environment, Host.PLAIN) == frozenset()
    assert protected_names(installed, environment, Host.PLAIN, ["NumPy", "absent"]) == {"numpy"}


def test_a_notebook_protects_the_distributions_of_its_kernel() -> None:
    installed = installed_of(ipykernel="6", jupyter_client="8", matplotlib_inline="0.1", pip="24", numpy="2")
    environment = environment_for("3.12", "manylinux_2_35_x86_64")
    for host in (Host.COLAB, Host.KAGGLE, Host.JUPYTER):
        names = protected_names(installed, environment, host)
        assert names == {"ipykernel", "jupyter-client", "matplotlib-inline"}


def test_an_installed_google_colab_protects_its_requirements() -> None:
    installed = installed_of(google_colab="1.0.0", pandas="2.2", requests="2.32", numpy="2", colablock="0.1")
    lines = ("pandas==2.2", "Requests==2.32", "numpy; extra == 'x'", "rich; sys_platform == 'win32'", "???")
    name = canonicalize_name("google-colab")
    installed[name] = replace(installed[name], requires=lines)
    environment = environment_for("3.12", "manylinux_2_35_x86_64")
    expected = {"google-colab", "pandas", "requests", "colablock"}
    assert protected_names(installed, environment, Host.PLAIN) == expected


def test_an_invalid_name_cannot_be_protected() -> None:
    with pytest.raises(InvalidInput, match="`torch>=2`"):
        protected_names({}, environment_for("3.12", "win_amd64"), Host.PLAIN, ["torch>=2"])


def module(name: str, file: Path | str | None) -> types.ModuleType:
    made = types.ModuleType(name)
    if file is not None:
        made.__file__ = str(file)
    return made


class Lazy(types.ModuleType):
    """A lazy module.  Reading any attribute would import it, and is an error here."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def loaded_in(site: Path, monkeypatch: pytest.MonkeyPatch, **modules: object) -> dict[str, tuple[str, ...]]:
    monkeypatch.syspath_prepend(str(site))
    given: Any = {name.replace("__", "."): value for name, value in modules.items()}
    snapshot = take_snapshot(environ=PLAIN, loaded_modules=given, accelerator=NONE)
    return {str(name): names for name, names in snapshot.loaded.items()}


def test_what_every_python_loads_at_its_start_is_not_loaded_by_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else no change of setuptools would do without a restart."""
    names = ("setuptools", "_distutils_hack")
    site = build_site(tmp_path / "site", [Stub(name="setuptools", version="65", import_names=names)])
    both = {name: module(name, site / name / "__init__.py") for name in names}
    assert loaded_in(site, monkeypatch, _distutils_hack=both["_distutils_hack"]) == {}
    assert loaded_in(site, monkeypatch, **both) == {"setuptools": ("setuptools",)}


def test_a_module_belongs_to_the_owner_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs = [
        Stub(name="pillow", version="11", import_names=("PIL",), files={"PIL/Image.py": ""}),
        Stub(name="ns-one", version="1", import_names=("ns",), files={"ns/one.py": ""}),
        Stub(name="ns-two", version="1", import_names=("ns",), files={"ns/two.py": "", "undeclared.py": ""}),
        Stub(name="numpy", version="2"),
    ]
    site = build_site(tmp_path / "site", stubs)
    mine = tmp_path / "work" / "PIL.py"
    loaded = loaded_in(
        site,
        monkeypatch,
        PIL=module("PIL", site / "PIL" / "__init__.py"),
        PIL__Image=module("PIL.Image", site / "PIL" / "Image.py"),
        ns__two=module("ns.two", site / "ns" / "two.py"),
        undeclared=module("undeclared", site / "undeclared.py"),
        numpy=module("numpy", mine),  # the user's own file of that name
        sys=sys,
        json=json,
        namespace=module("namespace", None),
        lazy=Lazy("lazy"),
        nothing=None,
        odd=object(),
    )
    assert loaded == {"pillow": ("PIL", "PIL.Image"), "ns-two": ("ns.two", "undeclared")}


def test_links_in_a_path_do_not_hide_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_site(tmp_path / "real", [Stub(name="numpy", version="2")])
    (tmp_path / "link").symlink_to("real")
    numpy = module("numpy", tmp_path / "real" / "numpy" / "__init__.py")
    assert loaded_in(tmp_path / "link", monkeypatch, numpy=numpy) == {"numpy": ("numpy",)}


def test_an_editable_project_owns_files_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "my project"
    origin = {"url": project.as_uri(), "dir_info": {"editable": True}}
    site = build_site(tmp_path / "site", [Stub(name="spam", version="1", import_names=(), direct_url=origin)])
    spam = module("spam", project / "src" / "spam.py")
    assert loaded_in(site, monkeypatch, spam=spam) == {"spam": ("spam",)}


def test_without_a_record_the_import_names_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "dist-packages"
    dist_info(site, {"METADATA": HEAD, "top_level.txt": "spam\n_native\n"})
    loaded = loaded_in(
        site,
        monkeypatch,
        spam__core=module("spam.core", site / "spam" / "core.py"),
        _native=module("_native", site / "_native.cpython-312-x86_64-linux-gnu.so"),
        spamalot=module("spamalot", site / "spamalot.py"),
    )
    assert loaded == {"some-dist": ("_native", "spam.core")}


def shared_in(site: Path, monkeypatch: pytest.MonkeyPatch, *stubs: Stub) -> Mapping[str, frozenset[str]]:
    monkeypatch.syspath_prepend(str(build_site(site, stubs)))
    return {
        str(name): frozenset(map(str, others))
        for name, others in take_snapshot(environ=PLAIN, accelerator=NONE).shared.items()
    }


def test_builds_of_one_project_share_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = [
        Stub(
            name=name,
            version="4",
            import_names=("cv2",),
            files={"cv2/cv2.abi3.so": name, "cv2/LICENSE": "MIT"},
        )
        for name in ("opencv-a", "opencv-b")
    ]
    same = Stub(name="opencv-c", version="4", import_names=("cv2",), files={"cv2/LICENSE": "MIT"})
    shared = shared_in(tmp_path, monkeypatch, *builds, same)
    assert shared == {"opencv-a": {"opencv-b"}, "opencv-b": {"opencv-a"}}


def test_portions_of_a_namespace_do_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    portions = [
        Stub(
            name=f"google-{part}", version=version, import_names=("google",), files={f"google/{part}.py": ""}
        )
        for part, version in (("auth", "1"), ("api", "2"))
    ]
    assert shared_in(tmp_path, monkeypatch, *portions) == {}


def snapshot_with(installed: dict[NormalizedName, Installed]) -> Snapshot:
    environment = environment_for("3.12", "manylinux_2_35_x86_64")
    return Snapshot(environment=environment, python="", prefix="/p", site="/p/s", installed=installed)


def test_the_fingerprint_depends_on_versions_and_direct_urls_only() -> None:
    installed = installed_of(numpy="2", torch="2.8")
    first = fingerprint(snapshot_with(installed))
    assert fingerprint(snapshot_with(dict(reversed(installed.items())))) == first
    torch = installed[canonicalize_name("torch")]
    same = {**installed, torch.name: replace(torch, path="/elsewhere", installer="uv", requested=True)}
    assert fingerprint(snapshot_with(same)) == first
    others = [
        {**installed, torch.name: replace(torch, version="2.9")},
        {**installed, torch.name: replace(torch, direct_url=from_freeze("https://files.example/torch.whl"))},
        installed_of(numpy="2"),
    ]
    assert len({first, *(fingerprint(snapshot_with(other)) for other in others)}) == 4


def test_a_command_is_not_taken_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("work", "bin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python9").write_text("#!/bin/sh\n")
        (tmp_path / folder / "python9").chmod(0o755)
    monkeypatch.chdir(tmp_path / "work")
    environ = {"PATH": f".::{tmp_path / 'bin'}"}
    assert find_executable("python9", environ) == tmp_path / "bin" / "python9"
    assert find_executable("./python9", environ) == tmp_path / "work" / "python9"


@pytest.mark.parametrize(
    ("stated", "is_known"),
    [("1.10", True), ("1.10.0", True), ("1.10+cu126", True), (None, True), ("unknown", True), ("1.1", False)],
)
def test_a_version_installed_after_the_import_is_not_that_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str | None, is_known: bool
) -> None:
    site = build_site(tmp_path / "site", [Stub(name="shade", version="1.10")])
    monkeypatch.syspath_prepend(str(site))
    module = types.ModuleType("shade")
    module.__file__ = str(site / "shade" / "__init__.py")
    if stated is not None:
        module.__dict__["__version__"] = stated
    snapshot = take_snapshot(environ=PLAIN, loaded_modules={"shade": module}, accelerator=NONE)
    name = canonicalize_name("shade")
    assert snapshot.loaded_otherwise(name, "1.10") == (() if is_known else ("shade",))
    assert snapshot.loaded_otherwise(name, "2") == ("shade",)


@pytest.mark.parametrize(
    "kind", [types.ModuleType, lambda _: type("Module", (), {"__slots__": ("__dict__",)})()]
)
def test_a_module_that_is_loaded_anew_is_judged_anew(kind: Callable[[str], Any]) -> None:
    """It may be where the last one was in memory, and have its id."""
    name, module = canonicalize_name("shade"), None
    for stated, expected in [("1.10", "1.10"), ("1.1", "")] * 20:
        del module
        module = kind("shade")
        module.__version__ = stated
        for installed in ("1.10", "2"):
            found = versions_when_loaded({name: ("shade",)}, {"shade": module}, {name: installed})
            assert found == {name: expected}  # what was installed when it was met first
