"""The proofs, which run in the target with the standard library and nothing of colablock.

``python -c`` gets the source of this file with three arguments: the number of an open file
descriptor for the answers, a JSON list of jobs ``[kind, subject]``, and a JSON object: facts about
versions (``nf4_on_cpu``: a release of bitsandbytes), and ``bytecode``: the folders in which imports may
write bytecode.  Each job writes a line of JSON when it starts and when it ends, so that a job that
crashes the process can be named.  Standard output is for the imported modules.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import sysconfig
import time
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from typing import Any

LINES = 8  # the last lines of a traceback, which say what went wrong
NF4_ERROR = 0.12  # the mean error of standard normal values in NF4 is 0.07


def main(descriptor: int, jobs: list[list[str]], known: dict[str, Any]) -> None:
    """Run *jobs* in order, and end the process without the exit handlers of imported modules."""
    os.set_inheritable(descriptor, False)
    if known["bytecode"]:
        write_bytecode_below(known["bytecode"])
    with os.fdopen(descriptor, "w", encoding="utf-8", closefd=False) as answers:

        def tell(**answer: Any) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        for kind, subject in jobs:
            tell(event="start", kind=kind, subject=subject)
            started = time.monotonic()
            result = run(kind, subject, known)
            tell(event="end", kind=kind, subject=subject, seconds=time.monotonic() - started, **result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def write_bytecode_below(folders: list[str]) -> None:
    """Let imports write bytecode into *folders* only: not into other distributions or the base."""
    write = SourceFileLoader.set_data
    below = tuple(os.path.realpath(folder) + os.sep for folder in folders)

    def set_data(self: SourceFileLoader, path: str, data: bytes, **options: Any) -> None:
        if os.path.realpath(path).startswith(below):
            write(self, path, data, **options)

    SourceFileLoader.set_data = set_data  # type: ignore[method-assign,assignment]
    sys.dont_write_bytecode = False


def run(kind: str, subject: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of one job.  A job that raises any exception has failed."""
    try:
        if kind == "facts":
            return {"passed": True, "facts": facts(json.loads(subject or "[]"))}
        if kind == "import":
            return {"passed": True, **import_one(subject)}
        return CAPABILITIES[subject](known)
    except BaseException:  # noqa: BLE001 (also SystemExit, which some modules raise if something is missing)
        lines = traceback.format_exc().rstrip().splitlines()
        return {"passed": False, "detail": "\n".join(lines[-LINES:])}


def facts(names: list[str]) -> dict[str, Any]:
    """Return the versions of *names*, the installed distributions, the markers and the folder of scripts.

    It does not use the probe of ``environment/_probe.py``: a proof sees the environment as importlib.metadata
    and the variables of a training child show it, and the probe runs isolated from those.
    """
    return {
        "versions": {name: version(name) for name in names},
        "distributions": list(distributions()),
        "scripts": sysconfig.get_path("scripts"),
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": version_of(sys.implementation.version),
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": platform.python_version(),
            "python_version": ".".join(platform.python_version_tuple()[:2]),
            "sys_platform": sys.platform,
        },
    }


def version(name: str) -> str | None:
    """Return what programs get that ask for the version of *name*: "" if the folder found has no metadata.

    None: nothing is found.  Python 3.9 finds `a.b` only by that name, not by `a-b`.
    """
    try:
        return metadata_of(importlib.metadata.distribution(name))["Version"] or ""
    except importlib.metadata.PackageNotFoundError:
        return None
    except Exception:  # noqa: BLE001 (of newer versions, for a folder without metadata)
        return ""


def metadata_of(found: importlib.metadata.Distribution, known: dict[str, Any] = {}) -> Any:  # noqa: B006
    """Return the metadata of a distribution, which is parsed once: both lists of the facts have it."""
    folder = str(getattr(found, "_path", ""))
    if not folder:
        return found.metadata
    if folder not in known:
        known[folder] = found.metadata
    return known[folder]


def distributions() -> Iterator[dict[str, Any]]:
    """Yield the name, version and requirements of each installed distribution; the first of a name counts."""
    for found in importlib.metadata.distributions():
        folder = pathlib.PurePath(str(getattr(found, "_path", "")))
        if folder.name.startswith(("~", "-")):
            continue  # left by an uninstallation that was interrupted: no name leads to it
        try:
            metadata = metadata_of(found)
        except Exception:  # noqa: BLE001, S112 (of newer versions, for a folder without metadata)
            continue
        if metadata["Name"] and metadata["Version"]:
            yield {
                "name": metadata["Name"],
                "version": metadata["Version"],
                "path": str(folder),
                "requires": metadata.get_all("Requires-Dist") or [],
            }


def version_of(info: Any) -> str:
    """Return the version of an implementation in the form of the marker (PEP 508)."""
    version = f"{info.major}.{info.minor}.{info.micro}"
    return version if info.releaselevel == "final" else f"{version}{info.releaselevel[0]}{info.serial}"


def import_one(subject: str) -> dict[str, Any]:
    """Import ``module`` or ``module:attribute``; return the version of the module, and its file or folder.

    Skipped if the module refuses a machine without a GPU with a NotImplementedError, as Unsloth does.
    """
    name, _, attribute = subject.partition(":")
    try:
        module = importlib.import_module(name)
    except NotImplementedError as error:
        torch = sys.modules.get("torch")
        if torch is None or torch.cuda.is_available():
            raise
        detail = f"skipped: there is no GPU here, and {name} refuses to be imported without one: {error}"
        return {"skipped": True, "detail": detail}
    found: Any = module
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    version = getattr(module, "__version__", "")
    return {"detail": version if isinstance(version, str) else "", "origin": origin_of(module)}


def origin_of(module: Any) -> str:
    """Return the file of a module, or a folder of a namespace package.  It reads no lazy attribute."""
    known = getattr(module, "__dict__", {})
    places = [known.get("__file__"), *list(known.get("__path__") or ())]
    return next((os.path.abspath(place) for place in places if isinstance(place, str)), "")  # noqa: PTH100


def nf4(known: dict[str, Any]) -> dict[str, Any]:
    """Quantise values to NF4 and back, and compare them with the original."""
    import torch

    version = importlib.metadata.version("bitsandbytes")
    has_gpu = torch.cuda.is_available()
    if not has_gpu and [int(part) for part in version.split(".")[:2]] < known["nf4_on_cpu"]:
        detail = (
            f"skipped: there is no GPU here, and bitsandbytes {version} quantises to 4 bits on a GPU only"
        )
        return {"passed": True, "skipped": True, "detail": detail}
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if has_gpu else "cpu"
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(256, 256, generator=generator).to(device)
    packed, state = quantize_4bit(original, quant_type="nf4", compress_statistics=True)
    returned = dequantize_4bit(packed, state)
    error = float((original - returned).abs().mean())
    where = torch.cuda.get_device_name(0) if has_gpu else "the CPU"
    detail = f"mean error {error:.4f} of standard normal values, on {where}"
    return {"passed": packed.numel() == original.numel() // 2 and error < NF4_ERROR, "detail": detail}


def llama3_rope(known: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Load a config with the rope scaling of Llama 3.1 and later models."""
    from transformers import LlamaConfig
    from transformers import __version__ as version

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    LlamaConfig(rope_scaling=scaling, rope_theta=500000.0, max_position_embeddings=131072)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    is_known = "llama3" in ROPE_INIT_FUNCTIONS
    detail = f"transformers {version}" if is_known else f"transformers {version} does not know `llama3`"
    return {"passed": is_known, "detail": detail}


CAPABILITIES = {"llama3-rope": llama3_rope, "nf4": nf4}

if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
