"""Results as `colablock check` writes them for some matrices and runtimes, with every verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from colablock.runtimes.catalog import runtimes
from colablock.runtimes.document import RecordedRuntime

__all__ = ["ACCELERATORS", "MATRICES", "RUNTIMES", "check_of", "checks"]

ACCELERATORS = ("T4", "L4", "A100", "H100", "G4", "P100", "none")
RUNTIMES = runtimes()
MATRICES = {
    "qlora-2024": "QLoRA with axolotl 0.4.0 on the mid-2024 stack: torch 2.4.0, transformers 4.41.0",
    "qlora-2025": "QLoRA with trl on the stack of late 2025: torch 2.8, transformers 4.57",
    "qlora-2026": "QLoRA with trl on the runtime's own torch and transformers",
    "qlora-2026-axolotl": "QLoRA with axolotl 0.18.0 on torch 2.11",
}

ENV = {
    "qlora-2024": (
        "`numpy` 2.0.2 is loaded by the kernel and has to become 1.26.4\n"
        "because transformers 4.41.0 needs numpy<2.0,>=1.17\n"
        "and the kernel's own google-colab 1.0.0 needs pandas==2.2.2\n"
        "and 31 distributions that work would break, opencv-python 4.12.0.88 and jax 0.7.2 among them"
    ),
    "qlora-2025": "transformers 5.15.0 goes back to 4.57.6, which newly breaks 3 distributions",
    "qlora-2026": "the image's torch is older than 2.11, so 61 distributions come beside it",
    "qlora-2026-axolotl": (
        "axolotl 0.18.0 pins 58 distributions that the image has in other versions, so 94 would be replaced"
        " and 12 that work would break"
    ),
}
FINDS = [
    {
        "package": "axolotl",
        "version": "0.4.0",
        "kind": "missing",
        "severity": "error",
        "name": "gradio.Blocks",
        "where": "axolotl/cli/train.py:12",
        "detail": "imported at module level, and no requirement of axolotl leads to gradio",
    },
    {
        "package": "axolotl",
        "version": "0.4.0",
        "kind": "missing",
        "severity": "warning",
        "name": "mlflow",
        "where": "axolotl/utils/mlflow_.py:3",
        "detail": "imported only where `use_mlflow` is set",
    },
]


def checks(
    matrices: Mapping[str, str] = MATRICES, runtimes: tuple[RecordedRuntime, ...] = RUNTIMES
) -> list[dict[str, Any]]:
    """Return one check for each of *matrices*."""
    return [check_of(name, runtimes) for name in matrices]


def check_of(matrix: str, runtimes: tuple[RecordedRuntime, ...] = RUNTIMES) -> dict[str, Any]:
    """Return the check of one matrix.  An unknown name gets the results of `qlora-2024`."""
    kind = matrix if matrix in MATRICES else "qlora-2024"
    found: dict[str, Any] = {
        "schema": 1,
        "matrix": matrix,
        "matrix-digest": "0" * 64,
        "results": list(_results(matrix, kind, runtimes)),
    }
    if kind == "qlora-2024":
        found["imports"] = FINDS
    return found


def _results(matrix: str, kind: str, runtimes: tuple[RecordedRuntime, ...]) -> Iterator[dict[str, Any]]:
    for runtime in runtimes:
        for accelerator in ACCELERATORS if runtime.flavour == "gpu" else ("none",):
            verdict = _verdict(kind, runtime, accelerator)
            yield _result(matrix, kind, runtime, accelerator, verdict)


def _verdict(kind: str, runtime: RecordedRuntime, accelerator: str) -> str:
    if kind == "qlora-2025" and runtime.label < "2025.10":
        return "unknown"
    if accelerator == "P100" and kind != "qlora-2024":
        return "none"
    if kind == "qlora-2024":
        return "none" if accelerator == "G4" else "env"
    if kind == "qlora-2026" and runtime.label >= "2026.07":
        return "kernel"
    if kind == "qlora-2025" and runtime.label in {"2025.10", "2026.01"}:
        return "kernel"
    return "env"


def _result(
    matrix: str, kind: str, runtime: RecordedRuntime, accelerator: str, verdict: str
) -> dict[str, Any]:
    takes = verdict in {"kernel", "env"}
    variant = "cpu" if accelerator == "none" else "cuda"
    is_new = runtime.label == "2026.08"
    label = runtime.label.replace(".", "_")
    reason = {
        "kernel": f"bitsandbytes and trl come{', torchao goes' if is_new else ''}; nothing breaks",
        "env": ENV[kind],
        "none": f"no variant takes a {accelerator}: cuda wants a compute capability that it does not have",
        "unknown": "no lock of it was made for this runtime",
    }[verdict]
    return {
        "runtime": runtime.name,
        "accelerator": accelerator,
        "variant": None if verdict == "none" else variant,
        "verdict": verdict,
        "reason": reason,
        "lock": f"pylock.{matrix}--colab-{label}-{runtime.flavour}.toml" if takes else None,
        "python": "3.12.12" if verdict == "env" and is_new else runtime.python_version,
        "fetch-bytes": {"kernel": 45_000_000, "env": 2_900_000_000}.get(verdict),
        "installs": {"kernel": 2, "env": 61}.get(verdict, 0),
        "replaces": 0,
        "removes": ["torchao 0.10.0"] if verdict == "kernel" and is_new else [],
        "breaks": ["tensorflow: tensorboard~=2.19.0"] if kind == "qlora-2025" and verdict == "kernel" else [],
        "restart": kind == "qlora-2025" and verdict == "kernel",
        "claims": {
            "nf4": "holds",
            "llama3-rope": "does not hold: transformers 4.41.0 does not support such form"
            if kind == "qlora-2024"
            else "holds",
        }
        if takes
        else {},
    }
