"""Checkpoints as training leaves them."""

from __future__ import annotations

import json
from pathlib import Path

from colablock._common.fs import file_digest
from colablock.training.runs.checkpoints.finder import step_of
from colablock.training.runs.folder import MANIFEST

__all__ = ["CHECKPOINT", "make_checkpoint", "write_manifest"]

CHECKPOINT = {
    "adapter_model.safetensors": b"a" * 5000,
    "optimizer.pt": b"o" * 3400,
    "scheduler.pt": b"s" * 900,
    "rng_state.pth": b"r" * 700,
    "trainer_state.json": b'{"global_step": 40}',
    "global_step40/rank 0.pt": b"x" * 100,
}


def make_checkpoint(run: Path, step: int, *, is_valid: bool = True, more: bytes = b"") -> Path:
    """Write a checkpoint, with *more* in its weights."""
    folder = run / f"checkpoint-{step}"
    for name, data in CHECKPOINT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data + (more if name.startswith("adapter") else b""))
    if is_valid:
        write_manifest(folder)
    return folder


def write_manifest(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint's files as they are, as the shim does once it is saved."""
    files = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"schema": 1, "step": step_of(checkpoint.name), "files": files}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
