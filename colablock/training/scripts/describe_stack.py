"""Tell what a training stack holds: run in the target's interpreter, by its text (see `target_child`).

The standard library and what the target has are all that may be used here.  No
model is imported and no card is asked: the driver may be in the hands of a
kernel, and torch tells nothing of its kernels through `get_arch_list` without one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def stack() -> dict[str, Any]:
    """Return the versions, and what torch and transformers know; ``error`` where one does not import."""
    projects = {
        "trl": "trl",
        "bitsandbytes": "bitsandbytes",
        "axolotl": "axolotl",
        "flash_attn": "flash-attn",
    }
    told: dict[str, Any] = {name: _version(project) for name, project in projects.items()}
    reporters = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}
    told["reporters"] = [name for name, any_of in reporters.items() if any(map(_version, any_of))]
    name = "torch"
    try:
        told.update(_torch())
        name = "transformers"
        told.update(_transformers())
    except Exception as error:  # noqa: BLE001 - whatever a library's import may raise
        told["error"] = f"{name} cannot be imported: {type(error).__name__}: {error}"
    return told


def _torch() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    try:
        flags = torch._C._cuda_getArchFlags() or ""  # noqa: SLF001 - `get_arch_list` is empty without a card
    except AttributeError:  # a build without CUDA
        flags = ""
    return {"torch": torch.__version__, "arch_list": flags.split()}


def _transformers() -> dict[str, Any]:
    transformers = importlib.import_module("transformers")
    types = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    try:
        known: Iterable[str] = importlib.import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    except ImportError:  # before 4.43 each model had the two forms itself
        known = ("linear", "dynamic")
    return {
        "transformers": transformers.__version__,
        "model_types": sorted(types),
        "rope_types": sorted({"default", *known}),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps({"answer": stack()}), encoding="utf-8")
