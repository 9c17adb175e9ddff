from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from colablock._common.process import clean_environment, environment_of, last_lines, run_uv
from colablock.errors import Unmet
from tests.support.runtime import make_venv

NOTEBOOK = {
    "CONDA_PREFIX": "/opt/conda",
    "CUDA_VISIBLE_DEVICES": "0",
    "HF_TOKEN": "t",
    "HTTPS_PROXY": "http://proxy",
    "LD_LIBRARY_PATH": "/usr/lib64-nvidia",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "PATH": "/usr/bin",
    "PIP_INDEX_URL": "http://pip",
    "pip_no_deps": "1",
    "PYTHONHOME": "/nowhere",
    "PYTHONPATH": "/env/python",
    "PYTHONSTARTUP": "x.py",
    "SSL_CERT_FILE": "ca.pem",
    "UV_CACHE_DIR": "/cache",
    "UV_CONSTRAINT": "/nowhere",
    "UV_PYTHON_INSTALL_DIR": "/pythons",
    "UV_PYTHON_INSTALL_MIRROR": "http://mirror",
    "UV_SYSTEM_PYTHON": "1",
    "VIRTUAL_ENV": "/env",
}


def test_what_steers_uv_pip_and_interpreters_is_dropped_and_the_rest_stays() -> None:
    assert set(clean_environment(NOTEBOOK)) == {
        "CUDA_VISIBLE_DEVICES",
        "HF_TOKEN",
        "HTTPS_PROXY",
        "LD_LIBRARY_PATH",
        "NVIDIA_VISIBLE_DEVICES",
        "PATH",
        "SSL_CERT_FILE",
        "UV_CACHE_DIR",
        "UV_PYTHON_INSTALL_DIR",
        "UV_PYTHON_INSTALL_MIRROR",
    }


def test_additions_come_last() -> None:
    assert clean_environment({"A": "1", "MPLBACKEND": "x"}, A="2", MPLBACKEND="agg") == {
        "A": "2",
        "MPLBACKEND": "agg",
    }


def test_a_child_of_an_environment_finds_its_commands_first(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    found = environment_of(python, NOTEBOOK)
    assert found["PATH"] == f"{python.parent}{os.pathsep}/usr/bin"
    assert found["VIRTUAL_ENV"] == str(tmp_path / "env")


def test_a_plain_interpreter_is_no_virtual_environment() -> None:
    assert "VIRTUAL_ENV" not in environment_of(Path(sys.base_prefix) / "bin" / "python3", NOTEBOOK)


def test_uv_runs_without_what_the_environment_presets() -> None:
    environ = {**os.environ, "UV_CONFIG_FILE": "/nowhere/uv.toml", "UV_OFFLINE": "nonsense"}
    assert run_uv(["--version"], environ=environ).stdout.startswith("uv ")


def test_uv_is_quoted_when_it_fails() -> None:
    with pytest.raises(Unmet, match=r"uv could not list: it\n(.*\n)*.*unrecognized subcommand") as caught:
        run_uv(["no-such-thing"], environ=os.environ, doing="list: it")
    assert "Traceback" not in str(caught.value)


def test_uv_does_not_run_for_ever(tmp_path: Path) -> None:
    fifo = tmp_path / "requirements.txt"
    os.mkfifo(fifo)
    with pytest.raises(Unmet, match=r"within 0\.2 seconds"):
        run_uv(["pip", "compile", str(fifo)], environ=os.environ, timeout=0.2)


@pytest.mark.parametrize(("text", "last"), [("a\n\nb\n \nc\n", "b\nc"), ("", ""), ("a", "a")])
def test_the_last_lines_leave_blank_ones_out(text: str, last: str) -> None:
    assert last_lines(text, 2) == last
