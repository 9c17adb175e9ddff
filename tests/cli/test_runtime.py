"""A user's own recorded runtimes: found as files, imported from a freeze, recorded from an interpreter."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.cli.main import main
from colablock.environment.notebook_host import Host
from colablock.environment.snapshot import snapshot_of
from colablock.errors import InvalidInput, NotFound
from colablock.runtimes.catalog import (
    list_runtimes,
    load_recording,
    load_runtime,
    recorded_distributions,
    runtime_names,
    runtime_of,
    runtimes,
    save_recording,
)
from colablock.runtimes.document import RecordedRuntime, Recording, read_document, write_document
from tests.support.fixtures import index_fixture
from tests.support.runtime import Stub, build_site, make_venv, site_of
from tests.support.server import IndexServer
from tests.support.wheels import make_sdist, make_wheel

NEW = "colab-2026.08-gpu"  # the newest shipped one

DOCUMENT = """\
{
  "schema": 1,
  "name": "mine-1",
  "host": "kaggle",
  "flavour": "gpu",
  "date": "2025-12-24",
  "python": "3.12.11",
  "platform": "manylinux_2_35_x86_64",
  "driver": "580.82.07",
  "source": "a freeze",
  "shared": [["one", "two"]],
  "distributions": [
    {"name": "one", "version": "1.0", "url": "git+https://x.example/one@abc", "requires": []},
    {"name": "One_Word", "version": "1.0", "requires": ["two>=1", "three"], "requires_python": ">=3"},
    {"name": "torch", "version": "2.9.0+cu128", "requires": ["two"], "requires_of": "2.9.0", "extras": ["x"]},
    {"name": "two", "version": "2.0"}
  ]
}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def place(folder: Path, *, name: str = "mine-1", **head: str) -> Path:
    """Write a document, some of its keys changed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**json.loads(DOCUMENT), "name": name, **head}))
    return path


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return the JSON answer of a command that succeeds."""
    code, out, err = ran(capsys, *arguments, "--json")
    assert code == 0, out + err
    return json.loads(out)


# The document


def test_a_document_survives_a_round_trip_byte_for_byte() -> None:
    recording = read_document(DOCUMENT, "mine-1.json")
    assert write_document(recording) == DOCUMENT
    about = recording.about
    assert (about.distributions, about.unknown, about.torch) == (4, 1, "2.9.0+cu128")
    assert (about.host, about.file, about.label) == (Host.KAGGLE, "mine-1.json", "")
    assert [item.line for item in recording.distributions] == [
        "one @ git+https://x.example/one@abc",
        "One_Word==1.0",
        "torch==2.9.0+cu128",
        "two==2.0",
    ]


@pytest.mark.parametrize("name", ["colab-2025.09-gpu", "colab-2026.08-cpu"])
def test_a_shipped_runtime_as_a_document_is_the_same_runtime(name: str) -> None:
    shipped = load_recording(name)
    text = write_document(shipped)
    assert read_document(text, None) == shipped
    lines = [line for line in text.splitlines() if line.startswith('    {"name"')]
    assert len(lines) == len(shipped.distributions)  # a line each, for the sake of diffs


FAULTS = [
    # what is changed, path and words of each fault
    ({"name": 1}, ["name: must be text"]),
    ({"name": "a/b"}, ["name: `a/b` is not a valid name for a runtime"]),
    ({"host": "moon", "flavour": "tpu"}, ["host: `moon` is none of", "flavour: `tpu` is none of cpu, gpu"]),
    ({"date": "24.12.2025"}, ["date: `24.12.2025` is not a date"]),
    ({"date": "20251224"}, ["date: `20251224` is not a date"]),
    ({"python": "3.13t"}, ["python: `3.13t` is not a Python version"]),
    ({"python": "2.7"}, ["python: `2.7` is not a supported Python version"]),
    ({"platform": "moon_x86_64"}, ["platform: `moon_x86_64` is not a supported platform"]),
    ({"colour": "blue"}, ["colour: is not a key"]),
    ({"shared": ["one"]}, ["shared: must be"]),
    ({"distributions": {}}, ["distributions: must be a list"]),
    (
        {"distributions": [1, {"name": "a"}, {"name": "b", "version": "1", "size": "9", "requires": [1]}]},
        [
            "distributions[0]: must be an object",
            "distributions[1].version: is missing",
            "distributions[2].size: must be a number",
            "distributions[2].requires: must be a list of texts",
        ],
    ),
    (
        {
            "distributions": [
                {"name": "A_b", "version": "1"},
                {"name": "a-b", "version": "1"},
                {"name": "?", "version": "1"},
            ]
        },
        [
            "distributions[1].name: `a-b` is distributions[0] already",
            "distributions[2].name: `?` is not a valid project",
        ],
    ),
]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: ",".join(case[0]))
def test_every_fault_of_a_document_is_told_at_once(case: tuple[dict[str, Any], list[str]]) -> None:
    changed, expected = case
    with pytest.raises(InvalidInput) as raised:
        read_document(json.dumps({**json.loads(DOCUMENT), **changed}), "x.json")
    head, *told = str(raised.value).splitlines()
    assert head.startswith(f"the recorded runtime `x.json` has {len(expected)} fault")
    assert len(told) == len(expected)
    for line, words in zip(told, expected, strict=True):
        assert line.strip().startswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[]", "is not a recorded runtime"), ('{"schema": 2}', "schema 1")],
)
def test_what_is_no_document_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_document(text, "x.json")


# Where they are found


def test_runtimes_are_found_nearest_first_and_listed_by_date(tmp_path: Path) -> None:
    place(tmp_path / "runtimes")
    place(tmp_path / "one", date="2030-01-01")
    place(tmp_path / "one", name="old", date="2020-01-01")
    place(tmp_path / "two", name="future-1.5", date="2031-01-01", python="3.14.1")
    environ = {"COLABLOCK_RUNTIMES": os.pathsep.join([str(tmp_path / "one"), "two", "nowhere"])}
    names = runtime_names(environ=environ)
    assert (names[0], names[-1], len(names)) == ("old", "future-1.5", len(runtime_names(environ={})) + 2)
    assert names.index("colab-2025.10-gpu") < names.index("mine-1") < names.index("colab-2026.01-cpu")
    assert [one.date for one in runtimes(environ=environ) if one.name == "mine-1"] == ["2025-12-24"]
    hidden = [one for one in list_runtimes(environ=environ) if one.shadowed_by]
    assert [(one.name, one.shadowed_by) for one in hidden] == [("mine-1", "runtimes/mine-1.json")]
    assert load_runtime("future-1.5", environ=environ).environment.short == "3.14"


def test_a_file_hides_the_shipped_runtime_of_its_name(tmp_path: Path) -> None:
    place(tmp_path / "runtimes", name=NEW)
    assert len(recorded_distributions(NEW)) == 4
    assert runtime_names().count(NEW) == 1
    assert len(recorded_distributions(NEW, cwd=tmp_path.parent)) > 600


def test_a_runtime_of_ones_own_is_a_snapshot_like_any_other(tmp_path: Path) -> None:
    place(tmp_path / "runtimes")
    snapshot = load_runtime("mine-1")
    assert (snapshot.host, snapshot.source, snapshot.date) == (Host.KAGGLE, "mine-1", "2025-12-24")
    assert (snapshot.accelerator.kind, snapshot.accelerator.driver) == ("cuda", "580.82.07")
    assert snapshot.accelerator.cuda == "13.0"
    two = snapshot.installed[canonicalize_name("two")]
    assert (two.is_known, two.version) == (False, "2.0")
    assert snapshot.shared == {"one": {"two"}, "two": {"one"}}
    assert snapshot.notes == (
        "recorded from a freeze",
        "requirements are known for 3 of 4 distributions: whether the others still fit is not checked",
    )
    assert runtime_of(snapshot) == "mine-1"
    assert runtime_of(snapshot, environ={}, cwd=tmp_path.parent) is None


def test_a_path_serves_as_a_name(tmp_path: Path) -> None:
    path = place(tmp_path / "elsewhere")
    assert load_runtime(str(path)).source == "mine-1"
    assert load_runtime("elsewhere/mine-1.json").source == "mine-1"
    with pytest.raises(NotFound, match="there is no recorded runtime at `elsewhere/other"):
        load_runtime("elsewhere/other.json")


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    place(tmp_path / "runtimes")
    assert load_runtime("mine-1").date == "2025-12-24"
    place(tmp_path / "runtimes", date="2026-01-01", source="another freeze")
    assert load_runtime("mine-1").date == "2026-01-01"


def test_a_file_that_is_none_is_listed_and_stops_only_who_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(tmp_path / "runtimes", name="bad", date="yesterday")
    shutil.copy(place(tmp_path / "elsewhere"), tmp_path / "runtimes" / "renamed.json")
    (tmp_path / "runtimes" / "package.json").write_text('{"version": 1}')
    assert [one.name for one in list_runtimes() if one.fault] == ["bad", "package", "renamed"]
    assert runtime_names() == runtime_names(cwd=tmp_path.parent)
    with pytest.raises(InvalidInput, match="date: `yesterday` is not a date"):
        load_runtime("bad")
    with pytest.raises(InvalidInput, match="contains the runtime `mine-1`, and its file name says `renamed`"):
        load_runtime("renamed")
    with pytest.raises(NotFound, match="no runtime is recorded as `bat`"):
        load_runtime("bat")
    code, out, _ = ran(capsys, "runtime", "list")
    assert code == 0
    assert "runtimes/package.json" in out


def test_a_document_beside_the_packed_ones_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "shipped", name="colab-2030.01-gpu", host="colab", date="2030-01-01")
    monkeypatch.setattr("colablock.runtimes.catalog.FOLDER", tmp_path / "shipped")
    (found,) = [one for one in runtimes() if one.name == "colab-2030.01-gpu"]
    assert (found.file, runtime_names()[-1]) == (None, "colab-2030.01-gpu")


# The commands


def test_the_list_tells_where_a_runtime_is_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path / "runtimes")
    found = answered(capsys, "runtime", "list")
    mine = next(one for one in found["runtimes"] if one["name"] == "mine-1")
    assert (mine["file"], mine["distributions"], mine["unknown"]) == ("runtimes/mine-1.json", 4, 1)
    code, out, _ = ran(capsys, "runtime", "list")
    assert code == 0
    assert "mine-1             3.12.11  2025-12-24  2.9.0+cu128   -     580.82.07  3/4" in out
    assert max(map(len, out.splitlines())) <= 80


def test_show_tells_what_matrices_say_what_is_protected_and_what_is_unmet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(tmp_path / "runtimes", host="plain")
    matrices = tmp_path / "matrices"
    matrices.mkdir()
    text = 'schema = 1\nname = "m"\n[packages]\ntwo = ">=3"\nfour = ">=1"\n[absent]\none = "<2"\n'
    (matrices / "m.toml").write_text(text)
    found = answered(capsys, "runtime", "show", "mine-1")
    named = {one["name"]: [by for by in one["by"] if by["matrix"] == "m"] for one in found["named"]}
    assert [(by["kind"], by["specifier"], by["met"]) for by in named["two"]] == [("packages", ">=3", False)]
    assert [(by["kind"], by["specifier"], by["met"]) for by in named["one"]] == [("absent", "<2", True)]
    assert "four" in [one["name"] for one in found["missing"]]
    assert found["unmet"] == [{"name": "one-word", "requirement": "three", "there": None}]
    assert found["all"][0]["freeze"] == "one @ git+https://x.example/one@abc"
    code, out, _ = ran(capsys, "runtime", "show", "mine-1")
    assert code == 0
    for words in ("not m (>=3)", "must be absent for m (<2)", "needs three: not installed"):
        assert words in " ".join(out.split())
    assert "Installed (4)" not in out
    assert "Installed (4)" in ran(capsys, "runtime", "show", "mine-1", "--all")[1]


def test_a_runtime_prints_its_freeze(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path / "runtimes")
    code, out, _ = ran(capsys, "runtime", "show", "mine-1", "--freeze")
    assert (code, out.splitlines()[1:3]) == (0, ["One_Word==1.0", "torch==2.9.0+cu128"])
    assert "google-colab @ file:///" in ran(capsys, "runtime", "show", NEW, "--freeze")[1]


def test_the_diff_of_two_images_reads_well_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "runtime", "diff", "colab-2026.07-gpu", NEW)
    counts = (len(found["moved"]), len(found["added"]), len(found["removed"]), found["same"])
    assert counts == (117, 5, 6, 581)  # counted by hand over the two freezes
    code, out, _ = ran(capsys, "runtime", "diff", "colab-2026.07-gpu", NEW)
    text = " ".join(out.split())
    assert code == 0
    assert "117 changed, 5 added, 6 removed, 581 unchanged" in text
    assert "transformers 5.13.1 -> 5.15.0 still within >=5.13,<6" in text
    assert "Python 3.12.13 -> 3.13.15 leaves >=3.10,<3.13" in text
    assert "and 93 more (-v)" in text
    assert max(map(len, out.splitlines())) <= 80
    whole = ran(capsys, "runtime", "diff", "colab-2026.07-gpu", NEW, "-v")[1]
    assert "more (-v)" not in whole
    assert all(
        f"{one['name']} {one['before']} -> {one['after']}" in " ".join(whole.split())
        for one in found["moved"]
    )


def test_an_unknown_runtime_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "runtime", "show", "colab-2026.8-gpu")
    assert (code, out) == (2, "")
    assert f"did you mean `{NEW}`" in " ".join(err.split())


# Import


def fill(folder: Path) -> None:
    make_wheel(
        folder,
        "known-here",
        "1.0",
        requires=["alpha>=1", "beta ; extra == 'b'"],
        extras=["b"],
        requires_python=">=3.9",
    )
    make_wheel(folder, "known-here", "2.0", requires=["never"])
    cuda = ["nvidia-cublas-cu12==1", "cuda-bindings", "triton==3", "filelock"]
    make_wheel(folder, "torch", "9.9.9", requires=cuda)
    make_wheel(folder, "torchvision", "8.0", requires=[*cuda, "triton-like"])
    make_wheel(folder, "patched", "1.0")
    make_sdist(folder, "says-so", "1.0", requires=["alpha"])
    make_sdist(folder, "must-build", "1.0", static=False)


index = index_fixture(fill)


FREEZE = """\
# pip freeze
accelerate==1.14.0
google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz
google-auth==9.1
ipykernel==9.2
ipyparallel==9.3
ipython==9.4
jupyter-server==9.5
pandas==9.6
portpicker==9.7
requests==9.8
tornado==9.9
Known_Here==1.0
torch==9.9.9+cu200
says-so==1.0
must-build==1.0
-e /src/mine
odd @ git+https://x.example/odd@1234
torchvision @ http://127.0.0.1:9/torchvision-8.0%2Bcpu-py3-none-any.whl
patched @ http://127.0.0.1:9/patched-1.0%2Bmine-py3-none-any.whl
"""


def imported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *more: str, text: str = FREEZE
) -> tuple[Any, Recording]:
    (tmp_path / "freeze.txt").write_text(text)
    command = ("runtime", "import", "freeze.txt", "--name", "kaggle-2030.01", "--python-version", "3.12.11")
    answer = answered(capsys, *command, "--date", "2030-01-02", *more)
    return answer, load_recording(str(answer["output"]))


def test_requirements_are_taken_over_and_the_rest_is_learnt_from_the_index(
    tmp_path: Path, server: IndexServer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, recording = imported(capsys, tmp_path, "--default-index", server.url, "--driver", "600.1")
    assert answer["output"] == "runtimes/kaggle-2030.01.json"
    assert (answer["taken"], answer["learnt"], answer["stand_ins"]) == (
        2,
        4,
        ["torch 9.9.9+cu200", "torchvision 8.0+cpu"],
    )
    assert "has to be built" in answer["unknown"]["must-build"]
    assert len(answer["left_out"]) == 2
    about = recording.about
    assert (about.host, about.flavour, about.driver, about.date) == (
        Host.KAGGLE,
        "gpu",
        "600.1",
        "2030-01-02",
    )
    found = {item.spelled: item for item in recording.distributions}
    known = found["Known_Here"].installed
    assert known.requires == ("alpha>=1", "beta ; extra == 'b'")
    assert (known.requires_python, known.extras) == (">=3.9", ("b",))
    torch = found["torch"]
    assert (torch.installed.requires, torch.requires_of) == (("triton==3", "filelock"), "9.9.9")
    vision = found["torchvision"]
    assert (vision.installed.requires, vision.requires_of) == (("filelock", "triton-like"), "8.0")
    assert "patched" in answer["unknown"]  # another project of the index may have its name
    assert found["says-so"].installed.requires == ("alpha",)
    shipped = load_runtime(NEW, cwd=tmp_path.parent).installed[canonicalize_name("accelerate")]
    assert found["accelerate"].installed == shipped
    assert not found["must-build"].is_known
    assert "odd" not in found
    assert "mine" not in found


def test_the_pins_of_a_project_that_follows_its_image_are_those_of_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, recording = imported(capsys, tmp_path, "--offline", "--host", "colab")
    (colab,) = [item.installed for item in recording.distributions if item.spelled == "google-colab"]
    assert {"google-auth==9.1", "tornado==9.9"} < set(colab.requires)
    snapshot = load_runtime("kaggle-2030.01")
    assert {"google-colab", "google-auth", "tornado", "ipykernel"} <= snapshot.protected
    assert "accelerate" not in snapshot.protected


CONDA = """\
# le modèle
anyio @ file:///croot/ci_py311/anyio_1676823771847/dist
numpy @ file:///croot/numpy_1668593735768/dist/numpy-1.23.5-cp311-cp311-linux_x86_64.whl
brotlipy==0.7.0
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_freeze_of_conda_is_read_in_any_encoding(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conda.txt").write_bytes(CONDA.replace("\n", "\r\n").encode(encoding))
    command = ("runtime", "import", "conda.txt", "--name", "mine", "--python-version", "3.11", "--offline")
    answer = answered(capsys, *command)
    found = {
        one.spelled: one.installed.version for one in load_recording(str(answer["output"])).distributions
    }
    assert found == {"brotlipy": "0.7.0", "numpy": "1.23.5"}
    assert answer["left_out"] == [
        "the URL of anyio does not tell its version: file:///croot/ci_py311/anyio_1676823771847/dist"
    ]


def test_offline_nothing_is_asked(
    tmp_path: Path, server: IndexServer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, recording = imported(capsys, tmp_path, "--offline", "--default-index", server.url)
    assert (answer["taken"], answer["learnt"], server.requests) == (2, 0, [])
    assert answer["unknown"]["known-here"] == "no index was asked"
    assert recording.about.unknown == len(answer["unknown"])


def test_an_index_that_does_not_answer_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "freeze.txt").write_text("a-thing==1\n")
    command = ("runtime", "import", "freeze.txt", "--name", "x", "--python-version", "3.12.1")
    code, _, err = ran(capsys, *command, "--default-index", "http://127.0.0.1:9/simple/")
    assert code == 1
    assert "[fetch-failed]" in err
    assert not (tmp_path / "runtimes").exists()


def test_a_freeze_from_standard_input_is_told_of_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.write(write, b"accelerate==1.14.0\nunheard-of==1\n")
    os.close(write)
    with os.fdopen(read) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        command = (
            "runtime",
            "import",
            "-",
            "--name",
            "mine",
            "--python-version",
            "3.12",
            "-o",
            "sub/mine.json",
        )
        code, out, err = ran(capsys, *command, "--offline")
    assert (code, out) == (0, "")
    text = " ".join(err.split())
    assert "wrote sub/mine.json: mine, 2 distributions" in text
    assert "known for 1 of 2 distributions: 1 from recorded runtimes" in text
    assert "the requirements of unheard-of are not known" in text
    assert load_recording("sub/mine.json").about.host is Host.PLAIN


@pytest.mark.parametrize(
    ("name", "words"), [("fifo", "it is a FIFO"), ("/dev/zero", "it is larger than 8 MiB")]
)
def test_a_freeze_that_never_ends_is_an_error(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    code, _, err = ran(
        capsys, "runtime", "import", name, "--name", "x", "--python-version", "3.12", "--offline"
    )
    assert code == 2
    assert f"`{name}` cannot be read: {words}" in " ".join(err.split())


def test_a_freeze_from_standard_input_is_bounded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/zero", encoding="utf-8") as stream:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stream)
        code, _, err = ran(capsys, "runtime", "import", "-", "--name", "x", "--python-version", "3.12")
    assert code == 2
    assert "the freeze on standard input is larger than 8 MiB" in " ".join(err.split())


USAGE = [
    (("--name", "a/b"), "is not a valid name"),
    (("--python-version", "2.7"), "not a supported Python version"),
    (("--date", "today"), "not a date"),
    (("--platform", "moon"), "not a supported platform"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[case[0][0] for case in USAGE])
def test_wrong_arguments_end_before_anything_is_read(
    arguments: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["runtime", "import", "missing.txt", "--name", "x", "--python-version", "3.12", *arguments]
    code, _, err = ran(capsys, *command)
    assert code == 2
    assert words in " ".join(err.split())
    assert list(tmp_path.glob("runtimes/*")) == []


def test_an_earlier_import_of_the_name_is_no_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(tmp_path / "runtimes", name="kaggle-2030.01")
    answer, _ = imported(capsys, tmp_path, "--offline", text="One-Word==1.0\n")
    assert answer["taken"] == 0
    place(tmp_path / "runtimes", name="other")
    answer, _ = imported(capsys, tmp_path, "--offline", text="One-Word==1.0\n")
    assert answer["taken"] == 1


# Record


def test_an_interpreter_is_recorded_without_what_came_with_colablock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = make_venv(tmp_path / "venv", sys.executable)
    build_site(
        site_of(tmp_path / "venv"),
        [
            Stub(name="colablock", version="1", requires=("rich", "resolvelib", "uv", "tomli; extra == 'x'")),
            Stub(name="rich", version="1", requires=("Pygments",)),
            Stub(name="pygments", version="1"),
            Stub(name="resolvelib", version="1"),
            Stub(name="uv", version="1", requested=True),
            Stub(
                name="theirs",
                version="2.0",
                requires=("rich>=1",),
                extras=("e",),
                import_names=("their_module",),
            ),
            Stub(
                name="linked", version="1", direct_url={"url": "file:///src", "dir_info": {"editable": True}}
            ),
            Stub(
                name="cloned",
                version="1",
                direct_url={
                    "url": "https://me:secret@x.example/c",
                    "vcs_info": {"vcs": "git", "commit_id": "ab"},
                },
            ),
        ],
    )
    command = ("runtime", "record", "--python", str(python), "--name", "here-1")
    answer = answered(capsys, *command)
    assert answer["output"] == "runtimes/here-1.json"
    assert answer["left_out"] == [
        "colablock came with colablock",
        "resolvelib came with colablock",
        "linked is installed in editable mode",
    ]
    recording = load_recording("here-1")
    assert [item.line for item in recording.distributions] == [
        "cloned @ git+https://x.example/c@ab",
        "pygments==1",
        "rich==1",
        "theirs==2.0",
        "uv==1",
    ]
    theirs = next(item.installed for item in recording.distributions if item.spelled == "theirs")
    assert (theirs.requires, theirs.extras) == (("rich>=1",), ("e",))
    assert theirs.import_names == ("their_module",)
    assert theirs.size
    live = snapshot_of(python, environ=os.environ)
    snapshot = load_runtime("here-1")
    assert snapshot.environment.tags == live.environment.tags
    assert snapshot.environment.python_version == live.environment.python_version
    kept = {name: one for name, one in live.installed.items() if name in snapshot.installed}
    assert runtime_of(replace(live, installed=kept)) == "here-1"


def test_a_recording_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    about = RecordedRuntime(
        name="x", flavour="cpu", python_version="3.12.1", date="2030-01-01", distributions=0, unknown=0
    )
    with pytest.raises(InvalidInput, match="cannot be written"):
        save_recording(Recording(about=about, distributions=()), tmp_path / "file" / "x.json")
