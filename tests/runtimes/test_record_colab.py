"""The script that records the public Colab image: from a server of ours, into a folder of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from colablock.runtimes.catalog import load_recording, recorded_distributions
from colablock.runtimes.document import read_document
from tests.support.pages import PageServer
from tests.support.paths import ROOT
from tests.support.timing import PATIENCE

SCRIPT = ROOT / "tools" / "record_colab.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"cpu": ("pip-freeze.txt", "os-info.txt"), "gpu": ("pip-freeze.gpu.txt", "os-info-gpu.txt")}


def pages(date: str = "2026-09-20", python: str = "3.13.15", **changed: str) -> dict[str, bytes]:
    """Return what the two hosts serve: the newest recorded images, some lines of the GPU's changed."""
    head = {"sha": COMMIT, "commit": {"committer": {"date": f"{date}T01:02:03Z"}}}
    served = {"/repos/googlecolab/backend-info/commits/main": json.dumps(head).encode()}
    for flavour, (freeze, info) in FILES.items():
        lines = [item.line for item in recorded_distributions(f"colab-2026.08-{flavour}")]
        if flavour == "gpu":
            lines = [changed.get(line.partition("==")[0], line) for line in lines]
        base = f"/googlecolab/backend-info/{COMMIT}"
        served[f"{base}/{freeze}"] = "\n".join(["# a comment", *lines, ""]).encode()
        served[f"{base}/{info}"] = f"# a comment\nUbuntu 22.04.5 LTS\nPython {python}\nR 4\n".encode()
    return served


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def recorded(served: dict[str, bytes], into: Path) -> subprocess.CompletedProcess[str]:
    with PageServer(served) as server:
        command = [sys.executable, str(SCRIPT), "--api", server.root, "--raw", f"{server.root}/", "--offline"]
        return subprocess.run(
            [*command, "--into", str(into)], capture_output=True, text=True, check=False, timeout=PATIENCE
        )


def test_a_recorded_image_is_not_recorded_again(into: Path) -> None:
    done = recorded(pages(), into)
    assert (done.returncode, done.stdout, list(into.iterdir())) == (0, "", [])


def test_a_new_image_gives_a_document_and_a_pull_request_body(into: Path) -> None:
    done = recorded(pages(transformers="transformers==6.0.0", wandb="brand-new==1"), into)
    assert done.returncode == 0, done.stderr
    (path,) = into.iterdir()
    assert path.name == "colab-2026.09-gpu.json"
    about = read_document(path.read_text(), None).about
    assert (about.label, about.commit, about.date) == ("2026.09", COMMIT, "2026-09-20")
    assert (about.python_version, about.flavour, about.distributions) == ("3.13.15", "gpu", 703)
    assert about.unknown == load_recording("colab-2026.08-gpu").about.unknown + 2
    assert done.stdout.startswith("## colab-2026.09-gpu\n")
    for words in (
        "colab-2026.08-gpu -> colab-2026.09-gpu: 1 changed, 1 added, 1 removed",
        "transformers 5.15.0 -> 6.0.0  leaves >=5.13,<6",
        "brand-new 1",
    ):
        assert words in done.stdout


def test_another_python_is_a_second_image_of_the_month(into: Path) -> None:
    done = recorded(pages(date="2026-08-30", python="3.13.16"), into)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in into.iterdir())
    assert names == ["colab-2026.08.30-cpu.json", "colab-2026.08.30-gpu.json"]
    assert "3.13.15 -> 3.13.16" in done.stdout


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/repos/googlecolab/backend-info/commits/main", b"{}", "does not answer with a commit"),
        (f"/googlecolab/backend-info/{COMMIT}/os-info.txt", b"Ubuntu", "names no Python"),
        (f"/googlecolab/backend-info/{COMMIT}/pip-freeze.txt", b"<html>", "a freeze cannot contain"),
        (f"/googlecolab/backend-info/{COMMIT}/pip-freeze.txt", None, "404"),
    ],
)
def test_unreadable_data_stops_the_script(path: str, body: bytes | None, words: str, into: Path) -> None:
    served = pages()
    if body is None:
        del served[path]
    else:
        served[path] = body
    done = recorded(served, into)
    assert done.returncode in {1, 2}
    assert words in done.stderr
    assert list(into.iterdir()) == []
