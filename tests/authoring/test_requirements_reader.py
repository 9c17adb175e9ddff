"""What other tools' files ask for: every form that is taken, and every fault with its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from colablock.authoring.requirements_reader import RequirementFile, read_requirements
from colablock.authoring.requirements_txt import FoundRequirement
from colablock.errors import InvalidInput, InvalidRequirements, NotFound

A, B = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_files(files: Mapping[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def read(text: str, **others: str) -> RequirementFile:
    """Return what requirements.txt with *text* asks for; *others* are files by their stem."""
    write_files({"requirements.txt": text, **{f"{stem}.txt": other for stem, other in others.items()}})
    return read_requirements("requirements.txt")


def lines(found: tuple[FoundRequirement, ...]) -> list[str]:
    return [str(one.requirement) for one in found]


def faults(text: str, **others: str) -> list[str]:
    with pytest.raises(InvalidRequirements) as caught:
        read(text, **others)
    return [str(fault) for fault in caught.value.faults]


# -- lines

WHEEL = "https://h.example/foo_bar-1.0-py3-none-any.whl"
SDIST = "https://h.example/foo-1.0.tar.gz"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("numpy", ["numpy"]),
        ("numpy  # the array", ["numpy"]),
        ("\n  \n# nothing\n", []),
        ("Foo.Bar [ x , y ] >= 1 , < 2 ; python_version < '4'", ['Foo.Bar[x,y]<2,>=1; python_version < "4"']),
        ("foo (>=1)", ["foo>=1"]),
        ("foo===odd", ["foo===odd"]),
        ("foo \\\n  >=1 \\\n", ["foo>=1"]),
        ("# a comment \\\nfoo\n", ["foo"]),
        ("foo>=1 \\", ["foo>=1"]),
        (f"foo @ {SDIST}", [f"foo @ {SDIST}"]),
        (f"foo@https://h.example/v1.zip#sha256={A}", [f"foo @ https://h.example/v1.zip#sha256={A}"]),
        (f"foo @ {SDIST} ; os_name == 'x'", [f'foo @ {SDIST} ; os_name == "x"']),
        ("foo[x]@https://h.example/v1.zip", ["foo[x] @ https://h.example/v1.zip"]),
        (WHEEL, [f"foo-bar @ {WHEEL}"]),
        (f"{WHEEL}[x]", [f"foo-bar[x] @ {WHEEL}"]),
        (f"{SDIST} ; os_name == 'x'", [f'foo @ {SDIST} ; os_name == "x"']),
        ("https://h.example/v1.tar.gz#egg=foo", ["foo @ https://h.example/v1.tar.gz"]),
    ],
)
def test_lines_are_read_as_pip_reads_them(text: str, expected: list[str]) -> None:
    assert lines(read(text).requirements) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("numpy#1", "1: `numpy#1` is not a valid requirement (PEP 508)"),
        ("foo \\\n# a comment ends a line\n>=1\n", "3: `>=1` is not a valid requirement"),
        ("\nnumpy=1.2", "(write `numpy==1.2`)"),
        ("numpy=1.2=py312_0", "(write `numpy==1.2`)"),
        ("foo; python_version", "1: `foo; python_version` is not a valid requirement"),
        ("./folder", "`./folder` is a folder, not an archive (build a wheel from it, and name the wheel)"),
        (".[dev]", "`.` is a folder"),
        ("file:///somewhere", "`file:///somewhere` is a folder"),
        (f"--hash=sha256:{A}", "belongs to no requirement (end the line before it with a backslash)"),
        ("foo @ https://h.example/foo", "`https://h.example/foo` is not an archive"),
        (
            "https://h.example/v1.tar.gz",
            "does not name a project (write `NAME @ https://h.example/v1.tar.gz`)",
        ),
        (
            "-e .",
            "1: `.` is installed in editable mode and cannot be pinned (name an archive or a wheel instead)",
        ),
        (
            "-e git+https://github.com/o/r.git@abc#egg=foo",
            "(write `foo @ https://github.com/o/r/archive/abc.tar.gz`)",
        ),
        (
            "foo @ git+ssh://git@github.com/o/r@v1",
            "is a repository, not an archive (write `foo @ https://github.com/o/r/archive/v1.tar.gz`)",
        ),
        (
            "foo @ git+https://h.example/r",
            "is a repository, not an archive (name an archive or a wheel instead)",
        ),
        ("foo==1 --hash=md5:12", "`md5:12` is not a valid hash"),
        ("foo==1 --hash=sha256:12", "`sha256:12` is not a valid hash"),
        ("foo==1 --hash", "`--hash` needs a value"),
        ("--idex-url x", "`--idex-url` is not an option of requirements files (did you mean `--index-url`?)"),
        ("-z", "`-z` is not an option"),
        ("foo --hash='sha256:1", "cannot be split into words"),
        ("foo==${VERSION}", "the variable `${VERSION}` is not expanded (write its value)"),
        ("-r nowhere.txt", "the file `nowhere.txt` does not exist"),
        (
            "-r https://h.example/r.txt",
            "is remote and is not downloaded (save it beside this file, and name the copy)",
        ),
        ("-r requirements.txt", "includes itself"),
    ],
)
def test_unsupported_lines_are_reported_with_their_number(text: str, expected: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith("requirements.txt:")
    assert expected in fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("foo==1" + "0" * 20_000, "0000...` is longer than 10,000 characters"),
        (f"foo==1 {'--hash=sha256:' + A + ' '}" * 4000, "...` is longer than 262,144 characters"),
        ("foo\n" * 20_000, "there are too many lines"),
    ],
)
def test_a_file_of_absurd_length_is_an_error(text: str, words: str) -> None:
    (fault,) = faults(text)
    assert words in fault
    assert len(fault) < 500


def test_a_chain_of_thousands_of_files_is_an_error() -> None:
    chain = {f"r{number}.txt": f"-r r{number + 1}.txt\n" for number in range(2000)}
    write_files(chain)
    (fault,) = faults("-r r0.txt\n")
    assert fault == "r18.txt:1: the files that `requirements.txt` includes are nested too deeply"


def test_files_that_multiply_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colablock.authoring.requirements_reader.REQUIREMENT_LINES", 1000)  # for speed
    write_files({f"r{number}.txt": f"-r r{number + 1}.txt\n" * 2 for number in range(15)})
    write_files({"r15.txt": "foo\n"})
    assert "there are too many lines" in faults("-r r0.txt\n-r r0.txt\n")[0]


def test_a_fifo_is_an_error() -> None:
    os.mkfifo("fifo")
    assert faults("-r fifo\n") == ["requirements.txt:1: cannot read `fifo`: it is a FIFO"]


def test_faults_of_all_files_are_reported_together() -> None:
    found = faults("a=1\nb\n-r other.txt\n-c narrow.txt\nc=1\n", other="\nd=1\n", narrow="e[x]<1\n")
    assert [fault.partition(": ")[0] for fault in found] == [
        "requirements.txt:1",
        "other.txt:2",
        "narrow.txt:1",
        "requirements.txt:5",
    ]


# -- whole files


def test_a_file_with_every_kind_of_line() -> None:
    write_files(
        {"sub/base.in": "numpy\n-r more.in\n-f ../wheels\n", "sub/more.in": "pandas\n", "sub/c.txt": "z<2\n"}
    )
    Path("wheels").mkdir()
    found = read(
        f"""\
--index-url https://first.example/simple
-i https://me:secret@index.example/simple
--extra-index-url=https://${{USER}}:${{TOKEN}}@other.example/simple
--find-links https://h.example/links.html
--pre --require-hashes
-rsub/base.in
--constraint sub/c.txt
torch==2.4.0 ; python_version < "3.13" \\
    --hash=sha256:{B} \\
    --hash sha256:{A}
    # via x
./wheels/own-1.0-py3-none-any.whl
"""
    )
    own = Path("wheels/own-1.0-py3-none-any.whl").absolute().as_uri()
    assert [(str(one.requirement), one.where) for one in found.requirements] == [
        ("numpy", "sub/base.in:1"),
        ("pandas", "sub/more.in:1"),
        ('torch==2.4.0; python_version < "3.13"', "requirements.txt:8"),
        (f"own @ {own}", "requirements.txt:12"),
    ]
    assert found.requirements[2].hashes == (f"sha256:{A}", f"sha256:{B}")
    assert [(str(one.requirement), one.where) for one in found.constraints] == [("z<2", "sub/c.txt:1")]
    assert found.default_index == "https://index.example/simple"
    assert found.indexes == ("https://other.example/simple",)
    assert found.find_links == ("https://h.example/links.html", "sub/../wheels")
    assert "secret" not in repr(found)
    assert [note.partition(": ")[::2] for note in found.notes] == [
        ("requirements.txt:2", NETRC.format("index")),
        ("requirements.txt:3", NETRC.format("other")),
        ("requirements.txt:5", 'omitted `--pre`: use `prerelease = "allow"` in the matrix'),
    ]


NETRC = "omitted user and password of `https://{}.example/simple`: put them into a netrc file"


def test_a_requirements_file_within_constraints_adds_requirements() -> None:
    """As in pip: `-r` means requirements wherever it stands."""
    found = read("-c narrow.txt\n", narrow="a<1\n-r more.txt\n", more="b\n")
    assert (lines(found.requirements), lines(found.constraints)) == (["b"], ["a<1"])


def test_a_password_in_a_direct_reference_is_left_out() -> None:
    (one,) = read("foo @ https://me:secret@h.example/foo-1.0.tar.gz").requirements
    assert one.requirement.url == SDIST


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_freeze_in_any_shell_encoding_is_read(encoding: str) -> None:
    text = (
        "# Editable install with no version control (ours==1.0)\n"
        "colours==1.0\ngoogle-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz\n"
    )
    Path("frozen.txt").write_bytes(text.encode(encoding))
    google = "google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz"
    assert lines(read_requirements("frozen.txt").requirements) == ["colours==1.0", google]


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    Path("binary.txt").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(InvalidRequirements, match=r"binary.txt: is not text"):
        read_requirements("binary.txt")
    with pytest.raises(NotFound) as caught:
        read_requirements("binry.txt")
    assert caught.value.hint == "did you mean `binary.txt`?"
    with pytest.raises(InvalidInput, match=r"cannot read `.*`: Is a directory"):
        read_requirements(os.fspath(tmp_path))


# -- pyproject.toml

PYPROJECT = """\
[project]
name = "demo"
dependencies = ["a>1", "b ; python_version < '4'"]

[dependency-groups]
dev = ["x", { include-group = "Test" }]
test = ["y>1"]
"""


def chain(length: int, times: int) -> str:
    """Return groups that include the next one, each of them *times*."""
    item = '{include-group="g%d"}'
    lines = [f"g{at}=[{', '.join([item % (at + 1)] * times)}]" for at in range(length)]
    return "\n".join(["[dependency-groups]", *lines, f"g{length}=[]"])


def test_dependencies_and_groups_of_pyproject_are_read() -> None:
    write_files({"pyproject.toml": PYPROJECT})
    found = read_requirements("pyproject.toml").requirements
    assert [(str(one.requirement), one.where) for one in found] == [
        ("a>1", "pyproject.toml:project.dependencies[0]"),
        ('b; python_version < "4"', "pyproject.toml:project.dependencies[1]"),
    ]
    found = read_requirements("pyproject.toml:dev").requirements
    assert [(str(one.requirement), one.where) for one in found] == [
        ("x", "pyproject.toml:dependency-groups.dev[0]"),
        ("y>1", "pyproject.toml:dependency-groups.Test[0]"),
    ]


@pytest.mark.parametrize(
    ("text", "group", "expected"),
    [
        (PYPROJECT, "tset", ["not found (did you mean `test`?)"]),
        (PYPROJECT, "zzz", ["not found (the groups are: `dev`, `test`)"]),
        ("[tool.x]\n", "", ["project.dependencies: is missing"]),
        (
            "[dependency-groups]\ndev = []\n",
            "",
            ["is missing (name a dependency group with `pyproject.toml:dev`)"],
        ),
        ('[project]\ndynamic = ["dependencies"]\n', "", ["the build sets them (`dynamic`)"]),
        ('[project]\ndependencies = "a"\n', "", ["must be an array of strings"]),
        ('[project]\ndependencies = ["a=1", "b", "c=1"]\n', "", ["dependencies[0]: `a=1`", "[2]: `c=1`"]),
        (
            '[dependency-groups]\na = ["x=1", 3]\n',
            "a",
            ["`x=1` is not a valid requirement", "Invalid dependency group"],
        ),
        ('[dependency-groups]\na = [{include-group = "a"}]\n', "a", ["includes itself"]),
        ("dependency-groups = 1\n", "", ["project.dependencies: is missing"]),
        ("[project]\ndynamic = 1\n", "", ["project.dependencies: is missing"]),
        (chain(5000, 1), "g0", ["its groups are nested too deeply"]),
        (chain(40, 2), "g0", ["its groups include too many requirements"]),
        (
            chain(40, 2).replace("g40=[]", 'g40=[{include-group="g0"}]'),
            "g0",
            ["its groups include too many requirements"],
        ),
        (f'[dependency-groups]\na = ["{"a" * 20_000}"]\n', "a", ["aaa...` is longer than 10,000 characters"]),
        (f'[dependency-groups]\na = ["a==1{"0" * 5_000}"]\n', "a", [""]),
        (f'[dependency-groups]\na = ["a; {"(" * 5_000}"]\n', "a", [""]),
        ("dependency-groups = 1\n", "a", ["must be a table of arrays (PEP 735)"]),
        (
            "[project]\ndependencies = []\n[tool.uv]\nindex-url = 'https://['\n",
            "",
            ["tool.uv.index: `https://[` is not a valid URL: Invalid IPv6 URL"],
        ),
        ("[tool.poetry.group]\ndev = 3\n", "dev", ["pyproject.toml:tool.poetry.group.dev: must be a table"]),
        ("[tool.poetry.group.dev]\ndependencies = 3\n", "dev", ["group.dev.dependencies: must be a table"]),
        ("[tool.poetry]\ngroup = 3\n", "dev", ["tool.poetry.group: must be a table"]),
        ("[tool.poetry]\ndependencies = 3\n", "", ["tool.poetry.dependencies: must be a table"]),
        ("[tool.poetry]\ndev-dependencies = 3\n", "dev", ["tool.poetry.dev-dependencies: must be a table"]),
        (
            '[project]\ndependencies = ["a"]\n[tool.poetry]\ndependencies = 3\n',
            "",
            ["tool.poetry.dependencies: must be a table"],
        ),
        ("[tool.poetry.group.dev]\n", "devs", ["tool.poetry.group.devs: not found (did you mean `dev`?)"]),
        (
            "[tool.poetry]\ndependencies = {}\nsource = 3\n",
            "",
            ["tool.poetry.source: must be an array of tables"],
        ),
        (
            '[tool.poetry]\ndependencies = {}\nsource = [{name = "a"}]\n',
            "",
            ["tool.poetry.source[0]: needs a `name` and a `url`"],
        ),
        ("[project]\ndependencies = []\n[tool.pdm]\nsource = 3\n", "", ["must be an array of tables"]),
        (
            '[project]\ndependencies=[]\n[[tool.pdm.source]]\nname="a"\nurl="https://a"\ninclude_packages=3\n',
            "",
            ["tool.pdm.source[0].include_packages: must be an array of strings"],
        ),
    ],
)
def test_faults_of_pyproject_are_reported(text: str, group: str, expected: list[str]) -> None:
    write_files({"pyproject.toml": text})
    with pytest.raises(InvalidRequirements) as caught:
        read_requirements(f"pyproject.toml:{group}" if group else "pyproject.toml")
    for words in expected:
        assert words in str(caught.value)


def test_invalid_toml_is_reported() -> None:
    write_files({"pyproject.toml": "[["})
    with pytest.raises(InvalidInput, match=r"`pyproject\.toml` is not valid TOML"):
        read_requirements("pyproject.toml")


# -- locks

LOCK = """\
lock-version = "1.0"
created-by = "another tool"
default-groups = ["default"]
dependency-groups = ["default", "dev"]
"""
FILE = '{{ url = "https://h.example/{0}-1.0-py3-none-any.whl", hashes = {{ md5 = "1", sha256 = "{1}" }} }}'


def locked(name: str, more: str = "", files: str = "") -> str:
    files = files or f"wheels = [{FILE.format(name, A)}]"
    return f'[[packages]]\nname = "{name}"\nversion = "1.0"\n{more}\n{files}\n'


def read_lock(*packages: str) -> RequirementFile:
    write_files({"pylock.toml": LOCK + "".join(packages)})
    return read_requirements("pylock.toml")


def test_a_lock_gives_its_pins() -> None:
    index = 'index = "https://{}/simple"'
    archive = f'archive = {{ url = "https://me:secret@h.example/v1.tar.gz", hashes = {{ sha256 = "{B}" }} }}'
    beside = f'wheels = [{{ path = "own/e-1.0-py3-none-any.whl", hashes = {{ sha256 = "{A}" }} }}]'
    found = read_lock(
        locked("a", index.format("one.example")),
        locked("b", index.format("me:secret@two.example")),
        locked("c", index.format("one.example")),
        locked("d", files=archive),
        locked("e", files=beside),
    )
    assert [(str(one.requirement), one.index) for one in found.requirements] == [
        ("a==1.0", None),
        ("b==1.0", "https://two.example/simple"),
        ("c==1.0", None),
        ("d @ https://h.example/v1.tar.gz", None),
        ("e==1.0", None),
    ]
    assert {one.hashes for one in found.requirements} == {(f"sha256:{A}",), (f"sha256:{B}",)}
    assert found.requirements[1].where == "pylock.toml:packages[1]"
    assert (found.default_index, found.indexes) == (
        "https://one.example/simple",
        ("https://two.example/simple",),
    )
    assert found.find_links == ("own",)


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("sys_platform == 'win32'", 'a==1.0; sys_platform == "win32"'),
        ("'default' in dependency_groups", "a==1.0"),
        ("'dev' in dependency_groups", None),
        ("'x' in extras", None),
        ("'x' not in extras", "a==1.0"),
        ("'dev' in dependency_groups or 'default' in dependency_groups", "a==1.0"),
        (
            "sys_platform == 'x' and ('dev' in dependency_groups or os_name == 'y')",
            'sys_platform == "x" and os_name == "y"',
        ),
        (
            "sys_platform == 'x' or 'dev' in dependency_groups and os_name == 'y'",
            'a==1.0; sys_platform == "x"',
        ),
        ("('x' in extras or os_name == 'y') and 'default' in dependency_groups", 'a==1.0; os_name == "y"'),
    ],
)
def test_markers_of_a_lock_become_those_of_requirements(marker: str, expected: str | None) -> None:
    """Extras and groups are those asked for by default, which PEP 508 has no words for."""
    found = lines(read_lock(locked("a", f'marker = "{marker}"')).requirements)
    if expected is None:
        assert found == []
    else:
        (line,) = found
        assert line.replace("(", "").replace(")", "").endswith(expected)


def test_unpinned_packages_of_a_lock_are_reported_together() -> None:
    vcs = 'vcs = { type = "git", url = "https://h.example/r", commit-id = "0" }'
    with pytest.raises(InvalidRequirements) as caught:
        read_lock(locked("a"), locked("b", files='directory = { path = "." }'), locked("c", files=vcs))
    assert [str(fault) for fault in caught.value.faults] == [
        "pylock.toml:packages[1]: b is locked to a folder, not to an archive",
        "pylock.toml:packages[2]: c is locked to a repository, not to an archive",
    ]


def test_a_message_has_the_first_hundred_faults_cut_to_a_sane_length() -> None:
    with pytest.raises(InvalidRequirements) as caught:
        read("foo==a" + "a" * 9_000 + "\n" + "-z\n" * 200)
    text = str(caught.value)
    assert "`requirements.txt` has 201 faults" in text
    assert text.splitlines()[-1] == "  and 101 more"
    assert len(text) < 20_000
