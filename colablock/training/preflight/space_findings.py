"""Findings about the memory of the machine, for loading, and about disk space."""

from __future__ import annotations

from collections.abc import Iterator

from colablock._common.text import memory_text, size_text
from colablock.training.preflight.facts import Access, Finding, Level, Machine
from colablock.training.preflight.memory import Setting, held_in_memory
from colablock.training.preflight.model_config import ModelShape
from colablock.training.runs.config import TrainConfig

__all__ = ["disk_findings", "loading_findings"]

_PROCESS_RAM = 2 * 2**30  # bytes of a process with torch, CUDA and transformers, without the model


def loading_findings(
    config: TrainConfig,
    shape: ModelShape,
    machine: Machine,
    setting: Setting,
    *,
    processes: int,
    shards: int | None,
) -> Iterator[Finding]:
    """Yield whether the machine has enough memory to load the model, in *processes* of this host.

    Before a model is sharded, it is in memory: all of it once, or with 4-bit weights each process's part of
    these, and the embeddings once for each.
    """
    tensor = shape.vocabulary * shape.hidden * 2  # the largest: files are mapped, and tensors read one by one
    ram = processes * (_PROCESS_RAM + tensor)
    why = (
        f"{'each process' if processes > 1 else 'a process'} needs {memory_text(_PROCESS_RAM)} and the size "
        "of the largest tensor"
    )
    if shards is not None:
        whole = held_in_memory(config, shape, setting, processes=processes)
        ram += whole
        why += f", and the model has {memory_text(whole)} before each card takes its part" if whole else ""
    if ram > machine.ram_free:
        yield Finding(
            level=Level.REFUSE,
            what=f"loading the model needs about {memory_text(ram)} of the machine's memory, "
            f"and {memory_text(machine.ram_free)} are free",
            why=why,
            fix="free memory (restarting a kernel frees its own), or use a runtime with more memory",
        )
    elif shards is not None:
        what = f"loading the model needs about {memory_text(ram)} of this host's memory"
        yield Finding(level=Level.NOTE, what=what, why=why)


def disk_findings(
    config: TrainConfig, machine: Machine, access: Access, checkpoint: int
) -> Iterator[Finding]:
    """Yield whether the disk has space for the model and for checkpoints of *checkpoint* bytes each."""
    weights, checkpoints = access.weights, (config.save_total_limit + 1) * checkpoint
    download = f"the weights to download have {size_text(weights)}"
    saved = f"{config.save_total_limit} checkpoints and the one being saved have {size_text(checkpoints)}"
    move_cache = "point `HF_HOME` at a larger disk"
    if machine.cache_free is not None:
        yield from _disk_shortage(weights, machine.cache_free, " for the hub's cache", download, move_cache)
        move_run = "set `--output-dir` to a folder on a larger disk"
        yield from _disk_shortage(checkpoints, machine.disk_free, " for the run", saved, move_run)
        return
    fix = move_cache if checkpoints <= machine.disk_free else ""
    why = f"{download}, and {saved}" if checkpoints else download
    yield from _disk_shortage(weights + checkpoints, machine.disk_free, "", why, fix)


def _disk_shortage(need: int, free: int, where: str, why: str, fix: str) -> Iterator[Finding]:
    if need > free:
        yield Finding(
            level=Level.REFUSE,
            what=f"{size_text(need)} of disk space are needed{where}, and {size_text(free)} are free",
            why=why,
            fix=f"free {size_text(need - free)}{', or ' + fix if fix else ''}",
        )
