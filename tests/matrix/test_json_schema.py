"""The JSON schema: it takes what the reader takes, and refuses what a schema can tell is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from colablock._vendor import tomli_w
from colablock.cli.main import main
from colablock.errors import ExitCode, InvalidMatrix
from colablock.matrix.json_schema import SCHEMA_FILE, json_schema
from colablock.matrix.reader import load_matrix, parse_matrix, read_file
from colablock.matrix.schema import SCHEMA, Key
from colablock.matrix.values import STRUCTURED
from tests.support.paths import DATA, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MATRICES = DATA / "matrices"
SHIPPED = ROOT / "matrices"
GOOD = sorted((*SHIPPED.glob("[!p]*.toml"), *(MATRICES / "good").glob("*.toml")))
BAD = sorted((MATRICES / "bad").glob("*.toml"))
# What no schema can tell: it sees one file, and each value for itself.
BETWEEN_VALUES = {
    "extends-in-a-circle",
    "extends-in-a-circle-too",
    "extends-itself",
    "no-index-at-all",
    "two-defaults",
    "workarounds-and-mends",
}
NOT_TOML = {"key-twice", "not-toml", "not-toml-at-the-end", "not-utf-8"}

VALIDATOR = Draft7Validator(json_schema())


def as_json(value: Any) -> Any:
    """Return what an editor makes of a TOML value: dates are strings to it."""
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_json(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


def complaints(path: Path) -> Iterator[str]:
    """Yield where the schema finds something wrong, as the reader writes paths."""
    data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    for error in VALIDATOR.iter_errors(as_json(data)):
        where = ""
        for part in error.absolute_path:
            name = f'"{part}"' if " " in str(part) else part
            where += f"[{part}]" if isinstance(part, int) else f".{name}"
        yield where.removeprefix(".")


def test_the_schema_is_valid_draft_7_without_lookaround() -> None:
    Draft7Validator.check_schema(json_schema())
    around = {"(?=", "(?!", "(?<"}  # not every editor's engine looks around
    assert [one for one in around if one in json.dumps(json_schema())] == []


@pytest.mark.parametrize("path", GOOD, ids=[path.stem for path in GOOD])
def test_every_good_matrix_is_valid(path: Path) -> None:
    load_matrix(read_file(path))
    assert list(complaints(path)) == []


@pytest.mark.parametrize(
    "path", [path for path in BAD if path.stem not in NOT_TOML], ids=lambda path: path.stem
)
def test_the_schema_reports_the_faults_that_the_reader_reports(path: Path) -> None:
    found = list(complaints(path))
    assert bool(found) == (path.stem not in BETWEEN_VALUES)
    with pytest.raises(InvalidMatrix) as caught:
        load_matrix(read_file(path))
    faults = [fault.path for fault in caught.value.faults]
    unfounded = [
        where
        for where in found
        if not any(fault.startswith(where) or where.startswith(fault) for fault in faults)
    ]
    assert unfounded == []


VALUES: Mapping[str, tuple[str, ...]] = {
    "specifier": (">=1", "==1.*", "~=2.1", "===any", " >= 1 , < 2 ,", "!=1.0.post1", "==1!2.0+local.1", ""),
    "version": ("1", "v1.0", " 1.0a1 ", "1!2.0+cpu"),
    "date-time": ("2024-09-01T00:00:00Z", "2024-09-01 00:00:00.5+02:00", "2024-09-01T00:00:00-0130"),
    "URL": ("https://example.com/a", "http://localhost:8080/simple/", "file:///tmp/x", "file:x"),
    "relative path": (".", "src", "./src/", "a..b/c", "src/..x"),
    "requirements": (
        "a>1",
        " b [x] ; os_name == 'posix'",
        "c@https://example.com/c.zip",
        "D_e.f ~=1",
        "a(>1)",
    ),
    "import names": ("a", "a.b_c:D.e", "été:ß", "_"),
    "local version": ("cpu", "CU.118", "a_b-c"),
    "marker": ("os_name == 'nt'", "extra=='x'"),
    "SHA-256": ("0aF" * 21 + "1",),
}
TEXTS = st.text(alphabet=st.sampled_from(" .,-_:/<>=!~*+[];'@#aZ0129é"), max_size=8)
PLAIN = [key for key in SCHEMA if key.type not in {*STRUCTURED, "integer"}]
ARRAYS = {"names", "build names", "requirements", "import names", "choices"}


def document(key: Key, value: Any) -> dict[str, Any]:
    """Return a matrix with *value* at *key*, with what the reader wants beside it."""
    nested: Any = {key.name: value}
    beside = {"index[]": {"name": "i", "url": "https://example.com"}, "constraints.<name>": {"version": ">1"}}
    nested = {**beside.get(key.section, {}), **nested}
    if key.name in {"sha256", "source-root"}:
        nested["url"] = "https://example.com/x.zip"
    for part in reversed(key.section.split(".") if key.section else []):
        name = "x" if part == "<name>" else part.removesuffix("[]")
        nested = {name: [nested] if part.endswith("[]") else nested}
    return {"schema": 1, "name": "m", **nested}


@given(key=st.sampled_from(PLAIN), data=st.data())
def test_every_text_that_the_reader_accepts_is_valid(key: Key, data: st.DataObject) -> None:
    known = st.sampled_from(VALUES.get(key.type, key.choices or ("x",)))
    text = data.draw(known | TEXTS | st.tuples(known, TEXTS).map("".join))
    value: Any = [text] if key.type in ARRAYS else [[text]] if key.type == "commands" else text
    found = document(key, value)
    try:
        parse_matrix(tomli_w.dumps(found))
    except InvalidMatrix:
        return
    assert [error.message for error in VALIDATOR.iter_errors(found)] == []


@pytest.mark.parametrize("key", PLAIN, ids=lambda key: key.path)
def test_every_key_has_a_description(key: Key) -> None:
    """Every key has a value that is valid there, and one of another type is not."""
    assert key.description in json.dumps(json_schema(), ensure_ascii=False)
    assert not VALIDATOR.is_valid(document(key, 1.5))


def test_the_shipped_schema_file_is_up_to_date() -> None:
    assert json.loads((SHIPPED / SCHEMA_FILE).read_text(encoding="utf-8")) == json_schema()
    for path in SHIPPED.glob("[!p]*.toml"):
        assert path.read_text(encoding="utf-8").startswith(f"#:schema ./{SCHEMA_FILE}\n")


def test_the_schema_command_prints_the_schema(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "colablock", "schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json_schema()
    path = tmp_path / "new" / SCHEMA_FILE
    assert main(["schema", "--output", str(path)]) == ExitCode.DONE
    assert path.read_text(encoding="utf-8") == printed


def test_an_unwritable_output_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--output", str(tmp_path)]) == ExitCode.USAGE
    assert "cannot be written: Is a directory" in capsys.readouterr().err
