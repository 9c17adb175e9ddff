"""The recordings stand for the index they were made from: uv solves and installs the stacks against them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uv

from tests.support.paths import ROOT
from tests.support.recorded_index import RecordedIndex, axolotl_archive
from tests.support.server import IndexServer
from tests.support.wheels import make_wheel

LLAMA = [
    "torch==2.4.0",
    "transformers==4.41.0",
    "datasets==2.20.0",
    "numpy==1.26.4",
    "mlflow",
    "gradio==3.50.2",
]
COLAB = [
    "torch==2.11.0",
    "numpy==2.1.3",
    "transformers==5.15.0",
    "datasets==4.0.0",
    "pyarrow==18.1.0",
    "bitsandbytes",
    "trl>=0.29,<2",
]


def test_the_recorder_reads_wheels_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an index without metadata files, the ends of a wheel and its metadata are read, not all of it."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    recorder = importlib.import_module("record_index")
    ballast = {"shapes/__init__.py": "", "shapes/data.py": f"# {os.urandom(1 << 20).hex()}"}
    scripts = {"draw": "shapes:draw"}
    wheel = make_wheel(tmp_path, "shapes", "1.0", requires=["colours"], modules=ballast, scripts=scripts)
    make_wheel(tmp_path, "colours", "2.0")
    spec = {
        "about": "small",
        "solves": [["shapes"]],
        "pythons": ["3.12"],
        "commands": [],
        "keep": [],
        "builds": [],
    }
    with IndexServer(tmp_path, metadata=False) as server:
        made = recorder.record("small", spec, recorder.Registry(server.url, tmp_path / "cache"))
        ranges = [request.headers["range"] for request in server.requests if "range" in request.headers]
    assert made["projects"]["shapes"]["versions"]["1.0"]["needs"] == ["colours"]
    assert made["projects"]["shapes"]["imports"] == ["shapes"]
    assert made["projects"]["shapes"]["scripts"] == scripts
    assert made["projects"]["colours"]["versions"].keys() == {"2.0"}
    edges = [one.removeprefix("bytes=").split("-") for one in ranges]
    assert 0 < sum(int(last) + 1 - int(first) for first, last in edges) < wheel.stat().st_size


@pytest.fixture(scope="module")
def dated() -> Iterator[IndexServer]:
    with IndexServer(RecordedIndex("qlora-2024")) as server:
        yield server


@pytest.fixture(scope="module")
def newest() -> Iterator[IndexServer]:
    with IndexServer(RecordedIndex("qlora-2026")) as server:
        yield server


def compile_pins(server: IndexServer, requirements: list[str], python: str, cache: Path) -> dict[str, str]:
    command = [uv.find_uv_bin(), "pip", "compile", "-", "--no-config", "--no-header", "--no-annotate"]
    command += ["--cache-dir", str(cache), "--python", sys.executable, "--python-version", python]
    command += ["--python-platform", "x86_64-manylinux_2_35", "--index-url", server.url, "--no-build"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    process = subprocess.run(
        command, input="\n".join(requirements), capture_output=True, text=True, check=False, env=environ
    )
    assert process.returncode == 0, process.stderr
    pairs = (line.partition("==")[::2] for line in process.stdout.split())
    return dict(pairs)


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_uv_resolves_the_2024_stack_to_its_recorded_pins(
    dated: IndexServer, python: str, tmp_path: Path
) -> None:
    pins = compile_pins(dated, LLAMA, python, tmp_path)
    expected = {"pyarrow": "17.0.0", "huggingface-hub": "0.24.6", "pandas": "2.2.2", "tokenizers": "0.19.1"}
    assert {name: pins[name] for name in expected} == expected


@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_uv_picks_an_older_trl_beside_the_image(newest: IndexServer, python: str, tmp_path: Path) -> None:
    pins = compile_pins(newest, COLAB, python, tmp_path)
    assert pins["trl"] == "0.29.1"


def test_uv_picks_the_newest_trl_in_an_empty_environment(newest: IndexServer, tmp_path: Path) -> None:
    pins = compile_pins(newest, ["torch", "bitsandbytes", "trl>=0.29,<2"], "3.13", tmp_path)
    assert pins["trl"].startswith("1.")


@pytest.mark.parametrize("name", ["torch", "numpy", "tokenizers"])
def test_the_2024_stack_has_no_wheels_for_python_3_13(name: str) -> None:
    files = RecordedIndex("qlora-2024", everywhere=True).files(name)
    assert files
    assert any("-cp312-cp312-" in filename for filename in files)
    assert not any("-cp313-" in filename for filename in files)


def test_recorded_wheels_import_and_their_scripts_run(dated: IndexServer, tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    target = tmp_path / "site"
    command = [
        uv.find_uv_bin(),
        "pip",
        "install",
        "--no-config",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
    ]
    command += ["--cache-dir", str(tmp_path / "cache"), "--index-url", dated.url, "--python", sys.executable]
    command += ["transformers==4.41.0", "accelerate==0.33.0", "pyyaml", "fire==0.6.0", "pillow"]
    subprocess.run(command, check=True, env=environ)
    code = "import yaml, fire, PIL; from transformers import AutoModelForCausalLM as m; print(m.__name__)"
    environ["PYTHONPATH"] = str(target)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environ
    )
    assert done.stdout == "AutoModelForCausalLM\n"
    script = [sys.executable, str(target / "bin" / "accelerate"), "launch", "--help"]
    assert subprocess.run(script, check=True, capture_output=True, text=True, env=environ).stdout


def test_the_axolotl_archive_is_reproducible(tmp_path: Path) -> None:
    first, second = axolotl_archive(tmp_path / "a"), axolotl_archive(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
