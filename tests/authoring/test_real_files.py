"""Requirement files of real life: ``tests/data/requirement_files.toml`` has each with what a matrix takes."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor import tomli_w
from colablock._vendor.packaging.pylock import Pylock
from colablock.authoring.from_requirements import MatrixParts, matrix_parts
from colablock.authoring.local_labels import LabelBinding
from colablock.authoring.new import NewMatrixOptions, write_new
from colablock.authoring.requirements_reader import read_requirements
from colablock.cli.main import main
from colablock.errors import ExitCode, InvalidInput
from colablock.lockfile.export import Format, export_text
from colablock.lockfile.pylock import read_lock
from colablock.matrix.model import PackageEntry
from colablock.matrix.reader import load_matrix, read_file
from colablock.operations.lock import lock_matrix
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from tests.support.paths import DATA, ROOT
from tests.support.server import IndexServer
from tests.support.wheels import make_wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CASES: dict[str, dict[str, Any]] = tomllib.loads(
    (DATA / "requirement_files.toml").read_text(encoding="utf-8")
)
READ = {name: case for name, case in CASES.items() if "refused" not in case}
REFUSED = {name: case for name, case in CASES.items() if "refused" in case}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(case: dict[str, Any]) -> str:
    """Write the files of a case, and return the argument that names them."""
    name = case.get("file", "requirements.txt")
    Path(name).write_bytes(case["text"].encode(case.get("encoding", "utf-8")))
    for other, text in case.get("others", {}).items():
        Path(other).write_text(text, encoding="utf-8")
    return str(case.get("read", name))


def told(entry: PackageEntry) -> str:
    index = f" | {entry.index}" if entry.index else ""
    return f"{entry.requirement}{index}" + (f" ; {entry.marker}" if entry.marker else "")


@pytest.mark.parametrize("case", READ.values(), ids=READ)
def test_a_matrix_has_what_the_file_asks_for(case: dict[str, Any], tmp_path: Path) -> None:
    parts = matrix_parts(read_requirements(written(case)))
    assert [told(entry).replace(tmp_path.as_uri(), "{folder}") for entry in parts.packages] == case[
        "packages"
    ]
    assert [f"{one.name}{one.specifier}" for one in parts.constraints] == case.get("constraints", [])
    check_facts(parts, case)
    check_notes(parts.notes, case.get("notes", []))
    # What is written says the same.
    options = NewMatrixOptions(name="mine", requirements=written(case), output=Path("mine.toml"))
    matrix = load_matrix(read_file(write_new(options, {}).output))
    assert [told(entry) for entry in matrix.packages] == [told(entry) for entry in parts.packages]
    assert str(matrix.requires_python) == case.get("requires-python", "")
    assert matrix.prerelease == case.get("prerelease", "if-necessary-or-explicit")
    assert matrix.exclude_newer == case.get("exclude-newer")
    assert matrix.options.no_binary == set(case.get("no-binary", []))


def check_facts(parts: MatrixParts, case: dict[str, Any]) -> None:
    indexes = [f"{one.name} {one.url}{' default' if one.default else ''}" for one in parts.indexes]
    if "indexes" in case:
        assert indexes == case["indexes"]
    used = {entry.index for entry in parts.packages} - {None}
    assert used <= {one.name for one in parts.indexes}


def check_notes(notes: tuple[str, ...], expected: list[str]) -> None:
    """Check that each note is expected, and that each expected one is there."""
    for words in expected:
        assert any(words in note for note in notes), (words, notes)
    for note in notes:
        assert any(words in note for words in expected), note


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_read_is_one_useful_line(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_requirements(written(case))
    text = f"{caught.value} {caught.value.hint or ''}"
    for words in case["refused"]:
        assert words in text
    assert len(text.splitlines()) <= 2


def test_a_binding_that_is_declined_is_not_made() -> None:
    file = read_requirements(written(CASES["two-further-indexes"]))
    asked: list[LabelBinding] = []

    def agrees(binding: LabelBinding) -> bool:
        asked.append(binding)
        return "corp" in binding.index

    parts = matrix_parts(file, agrees)
    assert [binding.names for binding in asked] == [("torch",), ("ours",)]
    assert [told(entry) for entry in parts.packages] == [
        "torch==2.4.0+cu118",
        "ours==1.0+corp | pypi-corp-example",
        "other==1.0+zzz",
    ]


def test_new_asks_once_for_each_index_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colablock.cli.common.can_ask", lambda _call: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\ny\n"))
    file = written(CASES["two-further-indexes"])
    assert main(["new", "mine", "--from-requirements", file], environ={}) == ExitCode.DONE
    said = " ".join(capsys.readouterr().err.split())
    asked = "Take {} from {} only, which serves their local label? [y/N]"
    assert said.count("[y/N]") == 2
    assert asked.format("torch", "https://download.pytorch.org/whl/cu118") in said
    assert asked.format("ours", "https://pypi.corp.example/simple") in said
    matrix = load_matrix(read_file(Path("matrices/mine.toml")))
    assert {entry.name: entry.index for entry in matrix.packages} == {
        "torch": None,
        "ours": "pypi-corp-example",
        "other": None,
    }


def test_a_bound_package_comes_from_its_index_and_no_other_does(tmp_path: Path) -> None:
    """The further index offers a higher version of every name, as whoever can upload to it may."""
    for name, version in {"torch": "2.4.0+cu118", "numpy": "99.0", "plain": "99.0"}.items():
        make_wheel(tmp_path / "further", name, version, requires=["filelock"] if name == "torch" else [])
    make_wheel(tmp_path / "further", "filelock", "1.0")
    for name, version in {"torch": "2.5.0", "numpy": "1.0", "plain": "1.0", "filelock": "99.0"}.items():
        make_wheel(tmp_path / "public", name, version)
    with IndexServer(tmp_path / "public") as public, IndexServer(tmp_path / "further") as further:
        Path("requirements.txt").write_text(
            f"--extra-index-url {further.url}\ntorch==2.4.0+cu118\nnumpy\nplain>=1\n", encoding="utf-8"
        )
        options = NewMatrixOptions(name="mine", requirements="requirements.txt", output=Path("mine.toml"))
        write_new(options, {})
        environ = {"COLABLOCK_DEFAULT_INDEX": public.url, "COLABLOCK_CACHE_DIR": str(tmp_path / "cache")}
        made = lock_matrix(Session(environ=environ), ApplyOptions(name="mine.toml"), LockOptions(dry=True))
    locked = {one["name"]: one["version"] for one in tomllib.loads(made.text.decode())["packages"]}
    assert locked == {"torch": "2.4.0+cu118", "filelock": "1.0", "numpy": "1.0", "plain": "1.0"}


# -- our own exports

PYPI, TORCH = "https://pypi.org/simple/", "https://download.pytorch.org/whl/cu118"


def package(name: str, version: str, index: str | None = PYPI, **keys: Any) -> dict[str, Any]:
    """Return a package of a lock, by default with a wheel on an index."""
    hashes = {"sha256": "ab" * 32}
    if "archive" not in keys:
        stem = f"{name.replace('-', '_')}-{version.replace('+', '%2B')}"
        place = {"url": f"https://files.example/{stem}-py3-none-any.whl"}
        if index is None:
            place = {"path": f"own.wheels/{name}-{version}-py3-none-any.whl"}
        keys["wheels"] = [{**place, "hashes": hashes}]
    return {"name": name, "version": version, **({"index": index} if index else {}), **keys}


ARCHIVE = {"url": "https://h.example/v1.tar.gz", "hashes": {"sha256": "cd" * 32}}
LOCKS = {
    "one index": [package("a", "1.0"), package("b-c", "2.0rc1")],
    "a local label": [package("torch", "2.4.0+cu118", TORCH), package("numpy", "1.26.4")],
    "an index without a label": [package("torch", "2.6.0", TORCH), package("numpy", "1.26.4")],
    "mostly another index": [
        package("torch", "2.4.0+cu118", TORCH),
        package("triton", "3.0.0", TORCH),
        package("numpy", "1.26.4"),
    ],
    "no PyPI": [
        package("torch", "2.4.0+cu118", TORCH),
        package("a", "1.0", "https://mirror.example/simple"),
        package("b", "1.0", "https://mirror.example/simple"),
    ],
    "two labels": [
        package("torch", "2.4.0+cpu", "https://download.pytorch.org/whl/cpu"),
        package("ours", "1.0+corp", "https://pypi.corp.example/simple"),
        package("numpy", "1.26.4"),
    ],
    "a marker": [package("a", "1.0", marker="sys_platform == 'linux'"), package("b", "1.0")],
    "an archive": [package("a", "1.0", None, archive=ARCHIVE), package("b", "1.0")],
    "a rebuilt wheel": [
        package("axolotl", "0.4.0+colablock.f6d3559c", None),
        package("torch", "2.4.0+cu118", TORCH),
    ],
}


def pins(file: str) -> list[tuple[str, str | None]]:
    """Return what the matrix of a file asks for: each requirement and the URL of its index."""
    parts = matrix_parts(read_requirements(file))
    urls = {one.name: str(one.url) for one in parts.indexes}
    default = next((str(one.url) for one in parts.indexes if one.default), None)
    return sorted(
        (told(replace(entry, index=None)), urls[entry.index] if entry.index else default)
        for entry in parts.packages
    )


@pytest.mark.parametrize("form", [Format.REQUIREMENTS, Format.NOTEBOOK], ids=lambda form: form.value)
@pytest.mark.parametrize("packages", LOCKS.values(), ids=LOCKS)
def test_an_export_reads_back_as_the_pins_of_its_lock(packages: list[dict[str, Any]], form: Format) -> None:
    data = {"lock-version": "1.0", "created-by": "colablock", "packages": packages}
    Path("pylock.toml").write_text(tomli_w.dumps(data), encoding="utf-8")
    lock = Pylock.from_dict(data)
    links = ["own.wheels"] if any(one.get("wheels", [{}])[0].get("path") for one in packages) else []
    file = "script.py" if form is Format.NOTEBOOK else "requirements.txt"
    Path(file).write_text(export_text(lock, form, source="it", find_links=links), encoding="utf-8")
    found, expected = pins(file), pins("pylock.toml")
    assert [(line, index and index.rstrip("/")) for line, index in found] == [
        (line, index and index.rstrip("/")) for line, index in expected
    ]
    indexes = {str(index) for _, index in expected} - {"None"}
    assert indexes <= {one["index"] for one in packages if "index" in one}


SHIPPED = sorted(path.name for path in (ROOT / "matrices").glob("pylock.*--py312*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_export_of_a_shipped_lock_reads_back(name: str) -> None:
    path = ROOT / "matrices" / name
    text = export_text(read_lock(path), Format.REQUIREMENTS, source=name, find_links=["own.wheels"])
    Path("requirements.txt").write_text(text, encoding="utf-8")
    assert pins("requirements.txt") == pins(str(path))
