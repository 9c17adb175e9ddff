"""A new matrix: the file that is written, what it takes over from other tools, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.authoring.from_requirements import matrix_parts
from colablock.authoring.new import write_file
from colablock.authoring.requirements_reader import read_requirements
from colablock.authoring.template import Start, matrix_text
from colablock.cli.main import main
from colablock.errors import ExitCode, Unmet
from colablock.matrix.catalog import find_matrix
from colablock.matrix.model import Constraint, PackageEntry
from colablock.matrix.reader import load_matrix, parse_matrix, read_file
from colablock.matrix.schema import keys_of
from tests.support.paths import DATA

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEMPLATES = DATA / "new"
UPDATE = "UPDATE_SNAPSHOTS"
SHA = "00ff" * 16


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new(*argv: str) -> int:
    return main(["new", *argv], environ={})


def text_of(name: str) -> str:
    return Path("matrices", f"{name}.toml").read_text(encoding="utf-8")


# --- the file ----------------------------------------------------------------------------------


def test_a_new_matrix_is_valid_and_empty() -> None:
    assert new("my-stack") == ExitCode.DONE
    matrix = find_matrix("my-stack", environ={})
    assert (matrix.name, matrix.packages, matrix.variants) == ("my-stack", (), {})


def test_sections_are_explained_as_in_the_reference() -> None:
    new("my-stack")
    said = " ".join(text_of("my-stack").replace("\n# ", " ").split())
    assert [key.name for key in keys_of("").values() if " ".join(key.description.split()) not in said] == []


def test_uncommented_examples_are_a_valid_matrix() -> None:
    new("my-stack")
    text = re.sub(r"^#(?=[\[a-z])", "", text_of("my-stack"), flags=re.MULTILINE)
    data = tomllib.loads(text)
    assert set(data) == set(keys_of(""))
    del data["extends"]
    matrix = parse_matrix(text.replace('extends = "qlora-2026"\n', ""))
    assert {entry.name for entry in matrix.packages} > {"torch", "from-an-archive"}
    assert set(matrix.variants) == {"cuda", "cpu"}
    assert matrix.variants["cuda"].system.driver is not None
    assert (matrix.absent[0].name, matrix.constraints[0].name) == ("torchao", "setuptools")
    assert matrix.options.allow_build == {"from-an-archive"}
    assert matrix.train.runner == "trl"


def test_options_are_written_to_the_file() -> None:
    assert new("mine", "--summary", 'Say "hello"', "--python", ">=3.11", "-o", "some/where.toml") == 0
    matrix = load_matrix(read_file(Path("some/where.toml")))
    assert (matrix.summary, str(matrix.requires_python)) == ('Say "hello"', ">=3.11")


def test_extends_is_written_as_a_name_or_a_relative_path() -> None:
    new("mine", "--extends", "qlora-2026")
    assert "trl" in {entry.name for entry in find_matrix("mine", environ={}).packages}
    new("further", "--extends", "matrices/mine.toml", "--output", "deep/down/further.toml")
    further = Path("deep/down/further.toml")
    assert 'extends = "../../matrices/mine.toml"' in further.read_text(encoding="utf-8")
    assert "trl" in {entry.name for entry in find_matrix(str(further), environ={}).packages}
    Path("base").write_text('schema = 1\nname = "base"\n')
    new("last", "--extends", "./base", "--output", "last.toml")
    assert 'extends = "./base"' in Path("last.toml").read_text(encoding="utf-8")


def test_a_schema_file_beside_the_matrix_is_referenced() -> None:
    new("one")
    assert "#:schema" not in text_of("one")
    new("two", "--schema-file")
    assert text_of("two").startswith("#:schema ./matrix-1.schema.json\n")
    assert json.loads(Path("matrices/matrix-1.schema.json").read_text(encoding="utf-8"))["title"]
    Path("matrices/matrix-1.schema.json").write_text("{}")
    new("three", "--schema-file")  # one that is there stays
    assert text_of("three").startswith("#:schema")
    assert Path("matrices/matrix-1.schema.json").read_text(encoding="utf-8") == "{}"


# --- what is printed ---------------------------------------------------------------------------


def test_new_prints_the_file_and_the_next_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    Path("requirements.txt").write_text("a\nb>1\n-c constraints.txt\n")
    Path("constraints.txt").write_text("c<2\n")
    assert new("my-stack", "--from-requirements", "requirements.txt") == ExitCode.DONE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "wrote matrices/my-stack.toml with 2 packages, 1 constraint\n"
        "\n"
        "Next, after you have filled in every `why`:\n"
        "  colablock lock my-stack --all\n"
        "  colablock check my-stack --update\n"
        "  colablock plan my-stack --runtime colab-2026.08-gpu\n"
    )


def test_new_prints_json_in_a_subprocess(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "colablock", "new", "mine", "--output", "a b/mine.toml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["output"], found["packages"], found["notes"]) == ("a b/mine.toml", 0, [])
    assert found["next"][0] == "colablock lock 'a b/mine.toml' --all"


def test_shadowing_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    new("qlora-2026", "--json")
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith("the name `qlora-2026` no longer refers to `")
    argv = ["new", "qlora-2026", "--output", "more/qlora-2026.toml", "--json"]
    assert main(argv, environ={"COLABLOCK_MATRICES": "more"}) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == [
        "the name `qlora-2026` refers to `matrices/qlora-2026.toml`, which is found first"
    ]
    assert found["next"][1] == "colablock check more/qlora-2026.toml --update"


def test_a_file_name_other_than_the_matrix_name_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    new("mine", "--output", "matrices/yours.toml", "--json")
    assert json.loads(capsys.readouterr().out)["next"][1] == "colablock check matrices/yours.toml --update"


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["My Stack"], "`My Stack` is not a valid matrix name"),
        (["matrices/mine.toml"], "`matrices/mine.toml` is a path, not a name"),
        (["mine", "--python", "3.11"], "requires-python: `3.11` is not a valid version specifier"),
        (["mine", "--summary", " "], "summary: must not be empty"),
        (["mine", "--extends", "qlora-2025x"], "there is no matrix `qlora-2025x`"),
        (["mine", "--extends", "mine"], "a matrix named `mine` cannot extend `mine`"),
        (["mine", "--from-requirements", "nothing.txt"], "the file `nothing.txt` does not exist"),
        (["mine", "--from-requirements", "bad.txt"], "bad.txt:2"),
        (["mine", "--output", "bad.txt/mine.toml"], "cannot be written"),
        (["mine", "--output", ".", "--force"], "cannot be written: Is a directory"),
    ],
)
def test_invalid_options_write_nothing(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    Path("bad.txt").write_text("fine\nnot fine\n")
    assert new(*argv) == ExitCode.USAGE
    assert message in capsys.readouterr().err
    assert [path.name for path in Path().rglob("*.toml")] == []


def test_an_existing_file_is_kept_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("matrices").mkdir()
    path = Path("matrices/mine.toml")
    path.write_text("somebody's work")
    assert new("mine") == ExitCode.USAGE
    assert path.read_text(encoding="utf-8") == "somebody's work"
    assert "hint: `--force` replaces it" in capsys.readouterr().err
    assert new("mine", "--force") == ExitCode.DONE
    assert find_matrix("mine", environ={}).name == "mine"


# --- from other tools --------------------------------------------------------------------------


def test_a_requirements_file_becomes_entries_and_notes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``expected.toml`` is the whole file, a comment for each thing to decide included."""
    shutil.copytree(TEMPLATES, tmp_path, dirs_exist_ok=True)
    assert new("team", "--from-requirements", "requirements.txt", "--json") == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    said = "".join(f"{note}\n" for note in found["notes"])
    if UPDATE in os.environ:
        (TEMPLATES / "expected.toml").write_text(text_of("team"), encoding="utf-8")
        (TEMPLATES / "expected.notes").write_text(said, encoding="utf-8")
    assert text_of("team") == (TEMPLATES / "expected.toml").read_text(encoding="utf-8")
    assert said == (TEMPLATES / "expected.notes").read_text(encoding="utf-8")
    assert (found["packages"], found["constraints"], found["indexes"]) == (5, 2, 2)
    matrix = find_matrix("team", environ={})
    assert [(index.name, index.default) for index in matrix.indexes] == [
        ("mirror-example", True),
        ("download-pytorch-org-cu118", False),
    ]
    assert "secret" not in text_of("team")


def test_a_lock_becomes_pins_with_their_index() -> None:
    pytorch, pypi = "https://download.pytorch.org/whl/cpu", "https://pypi.org/simple"
    packages = [("torch", "2.7.1", pytorch), ("numpy", "2.3.2", pypi), ("pip", "25.2", pypi)]
    entries = [
        f'[[packages]]\nname = "{name}"\nversion = "{version}"\nindex = "{index}"\n'
        f'[[packages.wheels]]\nname = "{name}-{version}-py3-none-any.whl"\n'
        f'url = "{index}/{name}-{version}-py3-none-any.whl"\nhashes = {{ sha256 = "{SHA}" }}\n'
        for name, version, index in packages
    ]
    head = 'lock-version = "1.0"\ncreated-by = "somebody"\n'
    Path("pylock.toml").write_text(head + "".join(entries))
    assert new("locked", "--from-requirements", "pylock.toml") == ExitCode.DONE
    matrix = find_matrix("locked", environ={})
    assert [(index.name, index.url) for index in matrix.indexes] == [("download-pytorch-org-cpu", pytorch)]
    assert {entry.requirement: entry.index for entry in matrix.packages} == {
        "torch==2.7.1": "download-pytorch-org-cpu",
        "numpy==2.3.2": None,
        "pip==25.2": None,
    }
    assert "No package names this index" not in text_of("locked")


def test_a_dependency_group_becomes_entries() -> None:
    Path("pyproject.toml").write_text('[dependency-groups]\nnotebook = ["a>=1", "b[x]"]\n')
    assert new("grouped", "--from-requirements", "pyproject.toml:notebook") == ExitCode.DONE
    assert [entry.requirement for entry in find_matrix("grouped", environ={}).packages] == ["a>=1", "b[x]"]


def test_pip_freeze_output_becomes_pins(capsys: pytest.CaptureFixture[str]) -> None:
    freeze = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude-editable"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in freeze.splitlines() if "==" in line]
    Path("frozen.txt").write_text("\n".join(lines))
    assert new("frozen", "--from-requirements", "frozen.txt") == ExitCode.DONE
    capsys.readouterr()
    pinned = {str(canonicalize_name(line.partition("==")[0])) for line in lines}
    packages = find_matrix("frozen", environ={}).packages
    assert pinned == {entry.name for entry in packages}
    assert all(str(entry.specifier).startswith("==") for entry in packages)


def test_archives_keep_their_hash_and_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        f"a @ https://example.org/a-1-py3-none-any.whl --hash=sha256:{SHA}",
        f"b @ https://example.org/b-1.tar.gz#sha256={SHA}&subdirectory=src",
        f"c @ https://example.org/c-1-py3-none-any.whl#sha512={SHA * 2}",
        "./d-1-py3-none-any.whl",
    ]
    Path("r.txt").write_text("\n".join(lines))
    assert new("archives", "--from-requirements", "r.txt", "--json") == ExitCode.DONE
    notes = json.loads(capsys.readouterr().out)["notes"]
    b = "https://example.org/b-1.tar.gz"
    assert notes == [
        f"r.txt:2: omitted the `subdirectory` of `{b}`: `source-root` may replace it",
        "r.txt:2: `b` has to be built: add it to `options.allow-build`",
        "r.txt:3: omitted the hashes of `https://example.org/c-1-py3-none-any.whl` other than SHA-256",
        f"r.txt:4: `{Path('d-1-py3-none-any.whl').absolute().as_uri()}` is a file on this machine",
    ]
    packages = find_matrix("archives", environ={}).packages
    assert [entry.sha256 for entry in packages] == [SHA, SHA, None, None]
    assert packages[1].url == b


ENVIRONMENTS = [
    {"python_version": python, "os_name": os_name}
    for python in ("3.10", "3.13")
    for os_name in ("posix", "nt")
]
NAMES = st.sampled_from(["a", "Foo_Bar", "foo-bar", "FOO.bar", "b"])
CLAUSES = st.sampled_from(
    ["==1.0", ">=1", "<2", "!=1.5", "~=1.1", "==1.*", ">1.0a1", "===odd", "==1+local.1"]
)
MARKERS = st.sampled_from(
    ["", "python_version < '3.11'", "os_name == 'nt' or python_version >= '3.11'", "python_version >= '3'"]
)
EXTRAS = st.lists(st.sampled_from(["x", "Y_z"]), max_size=2, unique=True)
URLS = st.sampled_from(
    ["https://example.org/one-1.0.zip", f"https://example.org/t-1-py3-none-any.whl#sha256={SHA}"]
)


@st.composite
def lines(draw: st.DrawFn, *, narrow_only: bool) -> str:
    """Draw a line of a requirements file; of one of constraints where it can only narrow."""
    name, marker = draw(NAMES), draw(MARKERS)
    extras = "" if narrow_only else ",".join(draw(EXTRAS))
    is_archive = not narrow_only and draw(st.integers(0, 4)) == 0
    what = f" @ {draw(URLS)}" if is_archive else ",".join(draw(st.lists(CLAUSES, max_size=3, unique=True)))
    return f"{name}[{extras}]{what} ; {marker}" if marker else f"{name}[{extras}]{what}"


def meaning(
    asked: Iterable[tuple[str, frozenset[str], SpecifierSet, Marker | None, str | None]],
) -> Mapping[str, object]:
    """Return what is asked for of each name in each environment, whatever it is written like."""
    found: dict[str, tuple[set[str], set[str], set[str]]] = {}
    for place, environment in enumerate(ENVIRONMENTS):
        for name, extras, specifier, marker, url in asked:
            if marker is None or marker.evaluate(environment):
                clauses, wanted, urls = found.setdefault(f"{name} in {place}", (set(), set(), set()))
                clauses |= {str(clause) for clause in specifier}
                wanted |= {canonicalize_name(extra) for extra in extras}
                urls |= {url} if url else set()
    return found


def of_lines(text: Iterable[str]) -> Mapping[str, object]:
    read = [Requirement(line) for line in text]
    return meaning(
        [(canonicalize_name(r.name), frozenset(r.extras), r.specifier, r.marker, r.url) for r in read]
    )


def of_entries(entries: Iterable[PackageEntry | Constraint]) -> Mapping[str, object]:
    asked = []
    for entry in entries:
        origin = entry if isinstance(entry, PackageEntry) else None
        url: str | None = origin.url if origin else None
        url = f"{url}#sha256={origin.sha256}" if origin and origin.sha256 else url
        extras = origin.extras if origin else frozenset[str]()
        asked.append((str(entry.name), extras, entry.specifier, entry.marker, url))
    return meaning(asked)


@given(
    requirements=st.lists(lines(narrow_only=False), max_size=6),
    constraints=st.lists(lines(narrow_only=True), max_size=4),
)
def test_the_matrix_asks_for_the_same_as_the_requirements(
    requirements: list[str], constraints: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("same", numbered=True)
    (folder / "r.txt").write_text("\n".join(["-c c.txt", *requirements]))
    (folder / "c.txt").write_text("\n".join(constraints))
    parts = matrix_parts(read_requirements(str(folder / "r.txt")))
    matrix = parse_matrix(matrix_text(Start(name="same", parts=parts)))
    assert of_entries(matrix.packages) == of_lines(requirements)
    narrowing = [line for line in constraints if Requirement(line).specifier]
    assert of_entries(matrix.constraints) == of_lines(narrowing)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "matrix.toml"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(Unmet, match="No space left"):
        write_file(path, "new", force=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
