"""Run folders as training leaves them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from colablock._common.fs import file_digest
from colablock.training.runs.checkpoints import step_of
from colablock.training.runs.folder import MANIFEST, RunFolder, RunRecord, start_time_of

__all__ = ["CHECKPOINT", "end", "make_checkpoint", "make_run", "write_manifest"]

CHECKPOINT = {
    "adapter_model.safetensors": b"a" * 5000,
    "optimizer.pt": b"o" * 3400,
    "scheduler.pt": b"s" * 900,
    "rng_state.pth": b"r" * 700,
    "trainer_state.json": b'{"global_step": 40}',
    "global_step40/rank 0.pt": b"x" * 100,
}


def make_checkpoint(run: Path, step: int, *, is_whole: bool = True, more: bytes = b"") -> Path:
    """Write a checkpoint, with *more* in its weights."""
    folder = run / f"checkpoint-{step}"
    for name, data in CHECKPOINT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data + (more if name.startswith("adapter") else b""))
    if is_whole:
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


def make_run(folder: Path, *, process: int | None = None, **facts: Any) -> RunFolder:
    """Write the record of a run whose process is *process* (default: this one)."""
    process = os.getpid() if process is None else process
    run = RunFolder(folder)
    known: dict[str, Any] = {
        "id": "run-1",
        "matrix": "tiny",
        "runner": "trl",
        "python": "python",
        "lock": "l",
        "config": {},
        "config_digest": "c",
        "data_digest": "d",
        "model": "a/b",
        "process": process,
        "process_started": start_time_of(process) if process else 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    run.write_record(RunRecord(**{**known, **facts}))
    return run


def end(run: RunFolder, state: str = "done") -> None:
    """End the run as the shim does."""
    record = run.record()
    assert record is not None
    make_run(run.path, process=2**22 + 1, process_started=1, id=record.id)  # no process has that number
    run.end_file.write_text(json.dumps({"state": state, "step": 40, "time": 0.0}))
