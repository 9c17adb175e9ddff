"""Run folders, checkpoints and receipts that somebody else wrote."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import colablock
from colablock.cli.main import main
from colablock.errors import InvalidInput, Refused, Unmet
from colablock.training.adapter import download, generate, merge, push
from colablock.training.receipts import read_receipts, receipt_to
from colablock.training.runs.checkpoints.archives import CheckpointArchive, unpack
from colablock.training.runs.checkpoints.finder import list_checkpoints, verify_checkpoint
from colablock.training.runs.checkpoints.restore import restore_checkpoint
from colablock.training.runs.checkpoints.stores import FolderStore
from colablock.training.runs.folder import RunFolder, State, find_run, list_runs, register, stop_run
from colablock.training.runs.loss_curve import curve_png
from colablock.training.runs.summary import summary_of
from colablock.training.scripts import FOLDER as SCRIPTS
from tests.support.checkpoints import make_checkpoint
from tests.support.reporters import Notes
from tests.support.runs import events_of, make_run, process_facts
from tests.support.timing import PATIENCE
from tests.support.training import T4_RECEIPT as T4
from tests.support.trees import tree_digest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLABLOCK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Give a program that leaves a file beside itself when it is started."""
    program = tmp_path / "strange" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\ntouch "$(dirname "$0")/started"\n')
    program.chmod(0o755)
    return program


def strangers_run(folder: Path, program: Path) -> RunFolder:
    """Write a run that names *program* wherever a record can name one."""
    command = [str(program), "-m", "accelerate.commands.launch"]
    run = make_run(folder, python=str(program), command=command, events=events_of([3.0, 2.0]))
    (run.path / "adapter").mkdir()
    (run.path / "adapter" / "adapter_config.json").write_text("{}")
    (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"w")
    return run


USES: Mapping[str, Callable[[Path], object]] = {
    "generate": lambda run: generate(run, ["one"]),
    "merge": lambda run: merge(run, run.with_name("merged")),
    "push": lambda run: push(run, "org/name", token="secret"),
    "attach and generate": lambda run: colablock.attach(run).generate("one"),
    "attach and merge": lambda run: colablock.attach(run).merge(run.with_name("merged")),
    "attach and push": lambda run: colablock.attach(run).push("org/name"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.usefixtures("home")
def test_a_run_folder_names_no_program_to_start(
    use: Callable[[Path], object], planted: Path, tmp_path: Path
) -> None:
    run = strangers_run(tmp_path / "run", planted)
    with pytest.raises(Refused, match="not an environment that colablock has applied here") as caught:
        use(run.path)
    assert str(planted) in str(caught.value)
    assert caught.value.hint == "Pass `python=` with the name of an applied matrix, or with an interpreter"
    assert not (planted.parent / "started").exists()


@pytest.mark.usefixtures("home")
def test_no_other_command_starts_it_either(planted: Path, tmp_path: Path) -> None:
    """`runs plot` draws with this interpreter, or not at all."""
    run = strangers_run(tmp_path / "run", planted)
    for argv in (["show"], ["follow"], ["stop"], ["plot", "-o", str(tmp_path / "a.png")]):
        assert main(["runs", argv[0], str(run.path), *argv[1:]]) in range(6)
    with pytest.raises(Unmet, match="cannot draw the loss curve as PNG"):
        curve_png(run, [str(tmp_path / "none")])
    assert not (planted.parent / "started").exists()


PLACES: Mapping[str, Callable[[Path, Path], str]] = {
    "a link in the environments": lambda home, program: _linked(home / "envs" / "abc", program.parents[1]),
    "beside the environments": lambda home, _: str(home / "envs" / ".." / "strange" / "bin" / "python"),
    "an environment without a manifest": lambda home, program: _copied(home / "envs" / "abc", program),
    "a relative path": lambda _home, program: os.path.relpath(program),
    "no path": lambda _home, _program: "",
    "a null character": lambda _home, program: f"{program}\0",
}


def _linked(folder: Path, to: Path) -> str:
    folder.parent.mkdir(parents=True)
    folder.symlink_to(to)
    (to / "colablock.json").write_text("{}")
    return str(folder / "bin" / "python")


def _copied(folder: Path, program: Path) -> str:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_bytes(program.read_bytes())
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_program_does_not_become_ours_by_its_path(
    place: Callable[[Path, Path], str], planted: Path, tmp_path: Path, home: Path
) -> None:
    run = make_run(tmp_path / "run", python=place(home, planted))
    with pytest.raises(Refused, match="not an environment that colablock has applied here"):
        generate(run.path, ["one"])
    assert not (planted.parent / "started").exists()


def test_an_environment_in_the_home_is_ours(home: Path, tmp_path: Path) -> None:
    python = home / "envs" / "abc" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (home / "envs" / "abc" / "colablock.json").write_text("{}")
    run = strangers_run(tmp_path / "run", python)
    with pytest.raises(Unmet, match="could not generate text"):  # it has no torch
        generate(run.path, ["one"])


def test_an_adapter_that_is_a_pickle_is_not_loaded(planted: Path, tmp_path: Path) -> None:
    run = strangers_run(tmp_path / "run", planted)
    (run.adapter / "adapter_model.safetensors").unlink()
    (run.adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))
    run.end_file.write_text('{"state": "done"}')
    with pytest.raises(Refused, match="is a pickle, which can run code"):
        generate(run.path, ["one"], python=str(planted))
    assert not (planted.parent / "started").exists()


# Records

BAD_RECORDS: Mapping[str, Mapping[str, Any]] = {
    "an id with dots": {"id": "../../x"},
    "an id with a path": {"id": "/etc/x"},
    "no id": {"id": ""},
    "an id with a line": {"id": "a\nb"},
    "an id that is a number": {"id": 3},
    "a checkpoint with dots": {"resumed_from": "../x"},
    "a mark with a path": {"mark": "/../../x"},
    "a mark with a line": {"mark": "0123abcd\n"},
    "a time that is none": {"started": 1e300},
    "a time before all": {"started": -1},
    "a time without an end": {"started": float("nan")},
    "a process with a path": {"process": "self"},
    "a negative process": {"process": -1},
    "a very large process": {"process": 2**70},
    "a config that is a list": {"config": []},
    "a model that is a number": {"model": 7},
    "cards that are a text": {"cards": "T4"},
    "versions of numbers": {"versions": {"torch": 2}},
}


@pytest.mark.parametrize("changes", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_damaged_record_is_said_and_hides_no_other_run(
    changes: Mapping[str, Any], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "fine", home=home, end={"state": "done"})
    run = make_run(tmp_path / "bad", home=home)
    value = json.loads(run.record_file.read_text())
    run.record_file.write_text(json.dumps({**value, **changes}))
    assert run.record() is None
    assert run.fault() is not None
    assert main(["runs", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "done" in rows["fine"]
    assert "damaged" in rows["bad"]
    assert main(["runs", "list", "--json"]) == 0
    found = {one["id"]: one for one in json.loads(capsys.readouterr().out)["runs"]}
    assert found["bad"]["state"] == "damaged"
    assert str(run.record_file) in found["bad"]["fault"]
    with pytest.raises(InvalidInput, match=r"run\.json` cannot be read"):
        find_run(home, str(run.path))
    with pytest.raises(InvalidInput, match=r"run\.json` cannot be read"):
        download(run.path)
    assert not (tmp_path / "x.zip").exists()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def half(path: Path) -> None:
    path.write_bytes(b'{"id": "a", \xff\xfe')


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD_FILES: Mapping[str, Callable[[Path], None]] = {
    "a FIFO": fifo,
    "a folder": Path.mkdir,
    "a link to itself": link_to_itself,
    "a device": endless,
    "deep JSON": deep,
    "half a file": half,
}
FILES = ("run.json", "metrics.jsonl", "end.json", "log.txt", "mirror.txt", "mirror.json", "adapter", "stop")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", ODD_FILES.values(), ids=ODD_FILES)
def test_something_else_in_place_of_a_file_of_a_run_breaks_no_command(
    make: Callable[[Path], None], name: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "fine", home=home, end={"state": "done"})
    run = make_run(tmp_path / "odd", home=home, events=events_of([3.0, 2.0]), end={"state": "failed"})
    if (run.path / name).exists():
        (run.path / name).unlink()
    make(run.path / name)
    began = time.monotonic()
    for argv in (["list"], ["list", "--json"], ["show", "odd"], ["follow", "odd"], ["stop", "odd"]):
        assert main(["runs", *argv]) in range(6)
    assert main(["runs", "plot", "odd", "-o", str(tmp_path / "a.svg")]) in range(6)
    assert time.monotonic() - began < PATIENCE
    assert "Traceback" not in capsys.readouterr().err
    assert main(["runs", "show", "fine"]) == 0


BAD_LINES = (
    "[1]",
    "not json",
    '{"event": "log", "step": ' + "9" * 400 + ', "loss": 1' + "0" * 400 + "}",
    '{"event": "log", "step": 1e308, "loss": 1e308, "seconds": 1e308, "tokens": 1e308, "time": 1e308}',
    '{"event": "log", "step": -1e308, "loss": -1e308}',
    '{"event": "start", "step": 3, "total_steps": 1e-300, "world_size": 1e300}',
    '{"event": "save", "path": "' + "x" * 5000 + '"}',
    '{"event": "save", "path": "a\\u0000b"}',
    '{"event": "log", "step": "3", "loss": [[]]}',
    '{"event": ["log"], "time": {}}',
    '{"event": "log", "loss": NaN, "step": 2, "grad_norm": Infinity}',
    '{"event": ' + "[" * 5000,
    '{"event": "log", "more": "' + "x" * 100_000 + '"}',
    '{"event": "log", "name": "\\udc80"}',
)


@pytest.mark.parametrize("state", ["done", "failed", None])
@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_one_bad_line_of_metrics_breaks_nothing(
    line: str, state: str | None, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = {"state": state} if state else None
    run = make_run(tmp_path / "run", home=home, events=events_of([3.0, 2.0]), end=end)
    with run.metrics_file.open("a") as file:
        file.write(f'{line}\n{{"event": "log", "step": 3, "loss": 1.5}}\n')
    for argv in (["list"], ["show"], ["follow"], ["plot", "-o", str(tmp_path / "a.svg")]):
        assert main(["runs", *argv]) in range(6), argv
    assert main(["runs", "show", "--json"]) == 0
    assert run.metrics()[-1] == {"event": "log", "step": 3, "loss": 1.5}
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ['{"folder": "relative"}', '{"folder": "/a\\u0000b"}', '{"folder": 3}', "[]", "[" * 100_000],
    ids=range(5),
)
def test_a_hostile_registration_is_left_out(content: str, tmp_path: Path) -> None:
    register(tmp_path, "fine", tmp_path / "fine")
    (tmp_path / "runs" / "bad.json").write_text(content)
    os.mkfifo(tmp_path / "runs" / "fifo.json")
    (tmp_path / "runs" / "dangling.json").symlink_to("nowhere")
    assert [name for name, _ in list_runs(tmp_path)] == ["fine"]


def test_a_run_in_a_folder_whose_name_is_not_text_is_read(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xe9")
    run = make_run(odd, id="odd", home=tmp_path / "home", python=str(odd / "python"))
    assert dict(list_runs(tmp_path / "home")) == {"odd": run}
    record = run.record()
    assert record is not None
    assert record.python == str(odd / "python")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "utf-8:surrogateescape"])
def test_text_that_the_terminal_cannot_show_is_escaped(encoding: str, tmp_path: Path, home: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xe9")
    make_run(odd, id="odd", home=home, model="\N{SNOWMAN}", end={"state": "failed"})
    for argv in (["show", "odd"], ["list"], ["show", "odd", "--json"], ["follow", "none"]):
        done = subprocess.run(
            [sys.executable, "-m", "colablock", "runs", *argv],
            env={**os.environ, "COLABLOCK_HOME": str(home), "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode in (0, 1, 2), done.stderr


def test_a_request_to_stop_follows_no_link(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **process_facts())
    run.stop_file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((Refused, OSError)):
        stop_run("run", run)
    assert not (tmp_path / "elsewhere").exists()


def test_writing_a_record_follows_no_link(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record = run.record()
    assert record is not None
    run.record_file.rename(tmp_path / "precious")
    run.record_file.symlink_to(tmp_path / "precious")
    before = (tmp_path / "precious").read_bytes()
    run.write_record(record)
    assert (tmp_path / "precious").read_bytes() == before
    assert not run.record_file.is_symlink()


# Writes signs of life, the end of a run and the file of a rank, where links with their names lead elsewhere.
RANK = """
import os, pathlib, runpy, socket, sys, threading, time
run, process = pathlib.Path(sys.argv[1]), os.getpid()
shim, ranks = (runpy.run_path(f"{sys.argv[2]}/{name}.py") for name in ("shim", "ranks"))
sign = run / f".alive-{socket.gethostname()}-{process}"
for name in ("alive", sign.name, f".end-{process}", "ranks/0", f"ranks/.0-{process}"):
    file = run / name
    file.symlink_to("/nowhere" if file == sign else run / "precious")
threading.Thread(target=shim["give_signs"], args=(run / "alive",), daemon=True).start()
while (run / "alive").is_symlink():
    time.sleep(0.01)
end = shim["RunEnd"](run)
end.ended("done", 1)
ranks["note_rank"](run, 0, end)
(run / "link").symlink_to(run / "precious")
os.link(run / "precious", run / "hard")
for name in ("link", "hard"):
    try:
        shim["overwrite"](run / name, "0")
    except OSError:
        pass
shim["overwrite"](run / "alive", "1234567890")
print(sign.exists())
"""


def test_what_a_rank_writes_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "precious").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-c", RANK, tmp_path, SCRIPTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout == "False\n"
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "alive").read_text() == "1234567890\n"
    assert (tmp_path / "ranks" / "0").read_text().endswith(socket.gethostname())
    assert RunFolder(tmp_path).end()["state"] == "done"


def test_a_record_that_names_another_process_is_not_running(tmp_path: Path) -> None:
    facts = process_facts()
    for process, started in ((0, 1), (facts["process"], facts["process_started"] + 1), (2**30, 1)):
        run = make_run(tmp_path / f"run-{process}-{started}", process=process, process_started=started)
        assert run.state() is not State.RUNNING


# Checkpoints

BAD_MANIFESTS: Mapping[str, object] = {
    "a file elsewhere": {"schema": 1, "files": {"../../precious": {"size": 4, "sha256": "0"}}},
    "an absolute file": {"schema": 1, "files": {"/etc/passwd": {"size": 4, "sha256": "0"}}},
    "a file through a link": {"schema": 1, "files": {"link/precious": {"size": 4, "sha256": "0"}}},
    "a null character": {"schema": 1, "files": {"a\0b": {"size": 4, "sha256": "0"}}},
    "an empty name": {"schema": 1, "files": {"": {"size": 4, "sha256": "0"}}},
    "a size that is a text": {"schema": 1, "files": {"model": {"size": "4", "sha256": "0"}}},
    "files that are a list": {"schema": 1, "files": []},
    "no object": [],
    "another schema": {"schema": "x"},
}


@pytest.mark.parametrize("manifest", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_manifest_lists_only_files_of_its_checkpoint(manifest: object, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    folder = make_checkpoint(tmp_path / "run", 5)
    (folder / "link").symlink_to(tmp_path)
    (folder / "colablock.json").write_text(json.dumps(manifest))
    (fault,) = verify_checkpoint(folder)
    assert "outside the checkpoint" in fault or "cannot be read" in fault


@pytest.mark.parametrize("make", ODD_FILES.values(), ids=ODD_FILES)
def test_what_is_no_manifest_is_a_fault(make: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    make(folder / "colablock.json")
    assert len(verify_checkpoint(folder)) == 1


def test_only_plain_folders_are_checkpoints(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    (tmp_path / f"checkpoint-{'9' * 200}").mkdir()
    (tmp_path / "checkpoint-7").symlink_to(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-٣").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5"]


def _link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    return member


def _long_header(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.pax_headers = {"comment": "x" * (8 << 20)}
    return member


BAD_MEMBERS: Mapping[str, tarfile.TarInfo] = {
    "two dots": tarfile.TarInfo("checkpoint-5/../../precious"),
    "an absolute path": tarfile.TarInfo("/precious"),
    "another checkpoint": tarfile.TarInfo("checkpoint-6/model"),
    "the checkpoint itself": tarfile.TarInfo("checkpoint-5"),
    "another file": tarfile.TarInfo("stop"),
    "a link": _link("checkpoint-5/model"),
    "an empty part": tarfile.TarInfo("checkpoint-5//x"),
    "a line in a name": tarfile.TarInfo("checkpoint-5/a\nb"),
    "a long header": _long_header("checkpoint-5/model"),
}


@pytest.mark.parametrize("member", BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_an_archive_of_a_checkpoint_writes_nothing_else(member: tarfile.TarInfo, tmp_path: Path) -> None:
    packed, into = tmp_path / "packed" / "a.tar", tmp_path / "into" / "run"
    packed.parent.mkdir()
    into.mkdir(parents=True)
    with tarfile.open(packed, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(b""))
    before = tree_digest(tmp_path)
    with pytest.raises((Unmet, tarfile.TarError)):
        unpack(packed, into, "checkpoint-5")
    assert tree_digest(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "../x-checkpoint-1.tar",
        "a/b-checkpoint-1.tar",
        f"a-checkpoint-{'9' * 5000}.tar",
        ".a-checkpoint-1.tar",
    ],
)
def test_the_name_of_an_archive_is_plain(name: str) -> None:
    assert CheckpointArchive.of(name) is None


def test_a_mirror_with_a_hostile_archive_changes_nothing(tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    (drive / "run-checkpoint-5.tar").write_bytes(b"\0" * 2048)
    os.mkfifo(drive / "other-checkpoint-5.tar.sha256")
    (drive / "run-checkpoint-5.tar.sha256").write_text("0" * 64)
    with pytest.raises(Unmet, match="no mirrored checkpoint can be used"):
        restore_checkpoint(FolderStore(drive), "run", tmp_path / "run", reporter=Notes())
    assert list((tmp_path / "run").iterdir()) == []


# Receipts


@pytest.mark.parametrize("make", ODD_FILES.values(), ids=ODD_FILES)
def test_what_is_no_receipt_is_left_out(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "m.receipts").mkdir()
    make(tmp_path / "m.receipts" / "T4.json")
    assert read_receipts(str(tmp_path / "m.toml")) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"after": 10**400},
        {"held": [1.0]},
        {"held": "12"},
        {"losses": [None]},
        {"matrix": 3},
        {"versions": []},
    ],
    ids=str,
)
def test_a_hostile_receipt_is_left_out(changes: Mapping[str, Any], tmp_path: Path) -> None:
    (tmp_path / "m.receipts").mkdir()
    file = tmp_path / "m.receipts" / "T4.json"
    file.write_text(json.dumps(receipt_to(T4)))
    assert read_receipts(str(tmp_path / "m.toml")) == (T4,)
    file.write_text(json.dumps({**receipt_to(T4), **changes}))
    assert read_receipts(str(tmp_path / "m.toml")) == ()


def test_a_null_character_is_in_no_path(tmp_path: Path) -> None:
    assert summary_of("none", RunFolder(tmp_path / "a\0b")).state is State.PREPARED
    with pytest.raises(InvalidInput, match="cannot be read: embedded null"):
        find_run(tmp_path, "a\0b")
