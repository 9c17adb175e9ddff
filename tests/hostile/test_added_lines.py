"""Values of locks, matrices and archives that would add a line to a file that colablock writes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.pylock import Pylock
from colablock.environment.markers_and_tags import Environment
from colablock.errors import BadDistribution, ColablockError, InvalidMatrix
from colablock.lockfile.export import Format, export_text
from colablock.matrix.catalog import find_matrix
from tests.support.dict_source import PYTHON_312
from tests.support.small_matrices import entry, matrix_of, prepared
from tests.support.wheels import tar_bytes

SHA = "a" * 64
INDEX = "https://index.example/simple/"
ABOUT = {"matrix": "demo", "python": "3.12", "platform": "linux", "matrix-sha256": "d" * 64}
BREAKS = {
    "a line feed": "\n",
    "a carriage return": "\r",
    "a vertical tab": "\x0b",
    "a form feed": "\x0c",
    "a file separator": "\x1c",
    "a next line": "\x85",
    "a line separator": "\u2028",
    "a paragraph separator": "\u2029",
}
FORMATS = (Format.REQUIREMENTS, Format.CONSTRAINTS, Format.NOTEBOOK)


def _lock(about: dict[str, Any] | None = None, **facts: Any) -> Pylock:
    wheel = {"name": "demo-1.0-py3-none-any.whl", "url": f"{INDEX}demo-1.0-py3-none-any.whl"}
    package = {
        "name": "demo",
        "version": "1.0",
        "index": INDEX,
        "wheels": [{**wheel, "hashes": {"sha256": SHA}}],
    }
    tables = {"created-by": "colablock", "tool": {"colablock": {**ABOUT, **(about or {})}}}
    return Pylock.from_dict({"lock-version": "1.0", **tables, "packages": [{**package, **facts}]})


def _with_break(place: str, between: str) -> Pylock:
    evil = f"demo{between}--index-url=https://evil.example/"
    if place == "index":
        return _lock(index=f"{INDEX}{between}--extra-index-url=https://evil.example/")
    if place == "assumes":
        return _lock({"assumes": {"other": f"1.0{between}--index-url=https://evil.example/"}})
    return _lock({place: evil})


@pytest.mark.parametrize("between", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("place", ["matrix", "variant", "python", "platform", "runtime", "assumes", "index"])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.value)
def test_no_value_of_a_lock_adds_a_line_to_an_export(form: Format, place: str, between: str) -> None:
    text = ""  # of a refusal; else this format does not write the value, or quotes it
    with contextlib.suppress(ColablockError):
        text = export_text(_with_break(place, between), form, source="pylock.toml")
    assert not any(line.startswith("--index-url=https://evil") for line in text.splitlines())
    assert between == "\n" or between not in text


OPTIONS = {
    "a comment that hides the hashes": {"marker": "os_name == 'x #y'"},
    "a variable that pip replaces": {"index": "https://index.example/${HF_TOKEN}/simple/"},
    "a second option": {"index": "https://index.example/ --extra-index-url https://evil.example/"},
    "a quote": {"index": "https://index.example/'--pre'/"},
    "a backslash at the end": {"index": "https://index.example/simple\\"},
}


@pytest.mark.parametrize("facts", OPTIONS.values(), ids=OPTIONS)
def test_no_value_of_a_lock_adds_an_option_to_a_requirements_file(facts: dict[str, Any]) -> None:
    with pytest.raises(ColablockError):
        export_text(_lock(**facts), Format.REQUIREMENTS, source="pylock.toml")


def test_a_constraint_is_a_name_and_a_version() -> None:
    lock = _lock({"assumes": {"other": "1.0 ; python_version > '3'"}})
    with pytest.raises(ColablockError, match="not a name and version"):
        export_text(lock, Format.CONSTRAINTS, source="pylock.toml")


MATRIX = """\
schema = 1
name = "demo"
summary = {summary}
[[index]]
name = "mine"
url = {url}
[packages.demo]
version = ">=1"
marker = {marker}
why = {why}
[verify]
commands = [["demo", {word}]]
"""
GOOD = {
    "summary": '"s"',
    "url": '"https://index.example/"',
    "marker": "\"os_name != 'x'\"",
    "why": '"w"',
    "word": '"-h"',
}
ODD = {
    "an escape": r"\u001b[31m",
    "an override": r"\u202e",
    "a zero-width space": r"\u200b",
    "a next line": r"\u0085",
}


def _write(folder: Path, **changed: str) -> Path:
    path = folder / "demo.toml"
    path.write_text(MATRIX.format(**{**GOOD, **changed}), encoding="utf-8")
    return path


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("key", GOOD)
def test_a_matrix_with_a_hidden_character_is_refused(key: str, odd: str, tmp_path: Path) -> None:
    value = f"{GOOD[key][:-2]}{odd}{GOOD[key][-2:]}"
    with pytest.raises(InvalidMatrix, match="has a control character or one that is not shown") as caught:
        find_matrix(str(_write(tmp_path, **{key: value})))
    assert all(line.isprintable() for line in str(caught.value).splitlines())


@pytest.mark.parametrize("key", [key for key in GOOD if key not in ("summary", "why")])
def test_only_reasons_have_several_lines(key: str, tmp_path: Path) -> None:
    find_matrix(str(_write(tmp_path, why='"""one\ntwo\n"""')))
    with pytest.raises(InvalidMatrix):
        find_matrix(str(_write(tmp_path, **{key: f"{GOOD[key][:-2]}\\n{GOOD[key][-2:]}"})))


def test_a_key_of_a_matrix_adds_no_line_to_a_message(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(
        'schema = 1\nname = "demo"\n[packages."a\\nhint: run this"]\nversion = ">=1"\n', encoding="utf-8"
    )
    with pytest.raises(InvalidMatrix) as caught:
        find_matrix(str(path))
    assert not any(line.startswith("hint") for line in str(caught.value).splitlines())
    assert r"a\nhint: run this" in str(caught.value)


PROJECT = '[project]\nname = "demo"\nversion = "1.0"\n{more}\n'
PROJECTS = {
    "a Python that adds a requirement": 'requires-python = ">=3\\nRequires-Dist: evil"',
    "an extra that adds a requirement": '[project.optional-dependencies]\n"x\\nRequires-Dist: evil" = []',
    "a script that adds another": '[project.scripts]\n"x\\nevil" = "demo:main"',
    "a target that adds a script": '[project.scripts]\nx = "demo:main\\nevil = os:abort"',
    "a group that adds a script": '[project.entry-points."x]\\n[console_scripts]\\n[y"]\na = "b"',
}


@pytest.mark.parametrize("more", PROJECTS.values(), ids=PROJECTS)
def test_no_field_of_an_archive_adds_a_line_to_a_rebuilt_wheel(more: str, tmp_path: Path) -> None:
    files = {"demo-1.0/pyproject.toml": PROJECT.format(more=more).encode(), "demo-1.0/demo.py": b""}
    archive = tmp_path / "demo-1.0.tar.gz"
    archive.write_bytes(tar_bytes(files))
    environment: Environment = PYTHON_312
    one = entry("demo", url=archive.as_uri(), source_root=".")
    with pytest.raises(BadDistribution, match="has a control character"):
        preparer, resolution = prepared(matrix_of(one), environment)
        preparer.wheel_of(resolution.pins[one.name])
