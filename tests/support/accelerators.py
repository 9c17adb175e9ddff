"""NVIDIA GPUs: a declared one, and a driver library that is compiled for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from colablock.environment.accelerator import Accelerator, Device

__all__ = ["card", "compile_nvml"]


def card(capability: str = "7.5", *, driver: str | None = "580.82.07") -> Accelerator:
    """Return an accelerator with one GPU of 16 GiB."""
    device = Device(name="T4", compute_capability=capability, memory=16 << 30)
    return Accelerator(kind="cuda", driver=driver, devices=(device,))


def compile_nvml(folder: Path, source: str, **macros: object) -> dict[str, str]:
    """Compile *source* as NVIDIA's management library into *folder*; return an environment that finds it.

    Skips the test where there is no C compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    file = folder / "nvml.c"
    file.write_text(source)
    defines = [f"-D{name}={value}" for name, value in {"OWN": os.getpid(), **macros}.items()]
    output = str(folder / "libnvidia-ml.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", *defines, str(file), "-o", output], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "PATH": str(folder)}
