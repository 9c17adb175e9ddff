"""Report the training stack of the target.

`ask_target` passes the source of this file to ``python -c``.  It needs the standard library, torch
and transformers.  It does not use the card: a kernel may occupy it, and
``torch.cuda.get_arch_list()`` is empty without one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MARK = "--- colablock: answered "  # of `colablock.environment.target_script`


def stack() -> dict[str, Any]:
    """Return the versions, and what torch and transformers support; ``error`` if one cannot be imported."""
    projects = {
        "accelerate": "accelerate",
        "peft": "peft",
        "trl": "trl",
        "bitsandbytes": "bitsandbytes",
        "axolotl": "axolotl",
        "unsloth": "unsloth",
        "flash_attn": "flash-attn",
        "torchao": "torchao",
    }
    answer: dict[str, Any] = {name: _version(project) for name, project in projects.items()}
    answer["axolotl_plugins"] = _plugins() if answer["axolotl"] else []
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


def report_stack(answered: Path) -> bool:
    """Write the stack beside the file *answered*, and print its mark; return whether all can be imported."""
    found = stack()
    new = answered.with_name("stack.json.new")
    new.write_text(json.dumps({"answer": found}), encoding="utf-8")
    new.replace(answered.with_name("stack.json"))
    print(f"{MARK}stack", flush=True)  # noqa: T201 - this is read
    return "error" not in found


def _plugins() -> list[str]:
    """Return the plugins in axolotl whose own requirements are installed; none of their code is run."""
    folder = _folder("axolotl")
    if folder is None:
        return []
    found = {file.parent.name for file in folder.glob("integrations/*/__init__.py")}
    fork = _folder("cut_cross_entropy")  # the project has a fork for axolotl, which marks itself
    if fork is None or "AXOLOTL_CCE_FORK" not in _source(fork / "transformers" / "patch.py"):
        found.discard("cut_cross_entropy")
    for plugin, module in {"liger": "liger_kernel", "llm_compressor": "llmcompressor"}.items():
        if _folder(module) is None:
            found.discard(plugin)
    return sorted(found)


def _folder(module: str) -> Path | None:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin).parent if found is not None and found.origin else None


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
        **_read_names(Path(str(transformers.__file__)).parent),
    }


def _read_names(folder: Path) -> dict[str, list[str]]:
    """Return the names that transformers accepts, from its sources: an import would take seconds.

    A list is empty if the sources have another form.
    """
    return {
        "causal_types": _keys_of(
            folder / "models" / "auto" / "modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
        ),
        "optimizers": _values_of(folder / "training_args.py", "OptimizerNames"),
        "schedulers": _values_of(folder / "trainer_utils.py", "SchedulerType"),
    }


def _keys_of(file: Path, name: str) -> list[str]:
    """Return the first words of the pairs in the assignment to *name*."""
    for node in _body(file):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets):
            pairs = (one for one in ast.walk(node) if isinstance(one, ast.Tuple) and one.elts)
            return list(_texts(one.elts[0] for one in pairs))
    return []


def _values_of(file: Path, name: str) -> list[str]:
    """Return the values of the members of the enumeration *name*."""
    for node in _body(file):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return list(_texts(one.value for one in node.body if isinstance(one, ast.Assign)))
    return []


def _body(file: Path) -> list[Any]:
    try:
        return ast.parse(_source(file)).body
    except (ValueError, SyntaxError):
        return []


def _source(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _texts(nodes: Iterable[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps({"answer": stack()}), encoding="utf-8")
