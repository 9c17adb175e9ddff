"""Report the training stack of the target.

`ask_target` passes the source of this file to ``python -c``.  It needs the standard library, torch
and transformers.  It does not use the card: a kernel may occupy it, and
``torch.cuda.get_arch_list()`` is empty without one.
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
    """Return the versions, and what torch and transformers support; ``error`` if one cannot be imported."""
    projects = {
        "trl": "trl",
        "bitsandbytes": "bitsandbytes",
        "axolotl": "axolotl",
        "flash_attn": "flash-attn",
    }
    answer: dict[str, Any] = {name: _version(project) for name, project in projects.items()}
    reporters = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}
    answer["reporters"] = [name for name, any_of in reporters.items() if any(map(_version, any_of))]
    name = "torch"
    try:
        answer.update(_torch())
        name = "transformers"
        answer.update(_transformers())
    except Exception as error:  # noqa: BLE001 - imports of libraries raise anything
        answer["error"] = f"{name} cannot be imported: {type(error).__name__}: {error}"
    return answer


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
    except ImportError:  # before 4.43 each model implemented these two types itself
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
