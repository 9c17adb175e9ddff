"""Run folders: written whole, or by a child process as the shim writes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from colablock.training.runs.folder import RunFolder, RunRecord, register
from colablock.training.scripts.ranks import start_time_of

__all__ = [
    "STARTED",
    "add_events",
    "end_run",
    "events_of",
    "make_record",
    "make_run",
    "process_facts",
    "sleeping_process",
    "train",
]

STARTED = 1_790_000_000.0

# Trains nothing, and writes what the shim would: each step a log event, a checkpoint every tenth.
_CHILD = """
import json, sys, time
from pathlib import Path

folder, steps, pause, ending = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
began = time.monotonic()
print("Loading checkpoint shards: 50%\\rLoading checkpoint shards: 100%", flush=True)
while not (folder / "go").exists():
    time.sleep(0.01)
metrics = (folder / "metrics.jsonl").open("a")

def tell(event, **facts):
    print(json.dumps({"event": event, "time": time.time(), **facts}), file=metrics, flush=True)

def end(state, step, **facts):
    (folder / "end.json").write_text(json.dumps({"state": state, "step": step, "time": time.time(), **facts}))
    sys.exit(state == "failed")

tell("start", step=0, total_steps=steps, resumed=False, world_size=1)
for step in range(1, steps + 1):
    time.sleep(pause)
    while step > 5 and (folder / "gate").exists():
        time.sleep(0.01)
    seconds = time.monotonic() - began
    tell("step", step=step, tokens=100 * step, seconds=seconds)
    tell("log", step=step, loss=6 - step / steps, learning_rate=1e-4, tokens=100 * step, seconds=seconds,
         memory=2**30 + step)
    wants_stop = (folder / "stop").exists()
    if wants_stop or step % 10 == 0:
        (folder / f"checkpoint-{step}").mkdir(exist_ok=True)
        tell("save", step=step, path=f"checkpoint-{step}", bytes=0, seconds=0.1)
    if wants_stop:
        end("stopped", step)
if ending == "failed":
    end("failed", steps, error="ValueError: no", traceback="")
(folder / "adapter").mkdir()
(folder / "adapter" / "adapter_config.json").write_text("{}")
end("done", steps)
"""


def make_record(**facts: Any) -> RunRecord:
    """Return the record of a run of a small Llama; *facts* replace the defaults."""
    usual: dict[str, Any] = {
        "id": "tiny",
        "matrix": "qlora-2026",
        "runner": "trl",
        "python": sys.executable,
        "lock": "ab12cd34ef567890",
        "config": {
            "base_model": "some/tiny-llama",
            "sequence_len": 1024,
            "micro_batch_size": 4,
            "learning_rate": 0.0002,
            "warmup_ratio": 0.03,
            "adapter": "qlora",
            "gradient_checkpointing": True,
            "save_total_limit": 2,
        },
        "config_digest": "c" * 64,
        "data_digest": "d" * 64,
        "model": "some/tiny-llama",
        "precision": "bf16",
        "cards": ("Tesla T4",),
        "started": STARTED,
        "process": 2**30,  # none has it: the run is over
        "process_started": 1,
    }
    return RunRecord(**(usual | facts))


def make_run(
    path: Path,
    *,
    events: Sequence[Mapping[str, Any]] = (),
    end: Mapping[str, Any] | None = None,
    log: str = "",
    home: Path | None = None,
    **facts: Any,
) -> RunFolder:
    """Write the folder of an ended run at *path*, and register it at *home*."""
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    record = make_record(**({"id": path.name} | facts))
    folder.write_record(record)
    add_events(folder, *events)
    folder.log.write_text(log, encoding="utf-8")
    if end is not None:
        folder.end_file.write_text(json.dumps(end), encoding="utf-8")
    if home is not None:
        register(home, record.id, path)
    return folder


def process_facts(process: int | None = None) -> dict[str, Any]:
    """Return the fields of a record for a running process (default: this one)."""
    process = os.getpid() if process is None else process
    return {"process": process, "process_started": start_time_of(process)}


def end_run(run: RunFolder, state: str = "done") -> None:
    """End the run as the shim does: its process is gone, and ``end.json`` is written."""
    record = run.record()
    assert record is not None
    run.write_record(replace(record, process=2**22 + 1, process_started=1))  # no process has this id
    run.end_file.write_text(json.dumps({"state": state, "step": 40, "time": 0.0}))


def add_events(folder: RunFolder, *events: Mapping[str, Any]) -> None:
    """Append *events*, as the shim does."""
    with folder.metrics_file.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def events_of(
    losses: Sequence[float],
    *,
    total: int | None = None,
    first: int = 0,
    began: float = STARTED + 20,
    seconds: float = 2.0,
    save_every: int = 0,
) -> list[dict[str, Any]]:
    """Return the events of one start from step *first* on, *seconds* a step and 1000 tokens each."""
    steps = total if total is not None else first + len(losses)
    events: list[dict[str, Any]] = [
        {"event": "start", "time": began, "step": first, "total_steps": steps, "resumed": first > 0}
    ]
    for at, loss in enumerate(losses, 1):
        step = first + at
        when = {"time": began + at * seconds, "step": step}
        done = {"tokens": 1000 * at, "seconds": at * seconds}
        rate = {"learning_rate": 1e-4, "memory": 2**30 + step, "memory_reserved": 2**31}
        events.append({"event": "log", **when, "loss": loss, **done, **rate})
        if save_every and step % save_every == 0:
            events.append({"event": "save", **when, "path": f"checkpoint-{step}", "bytes": 9, "seconds": 0.2})
    return events


@contextmanager
def train(
    path: Path,
    *,
    steps: int = 30,
    pause: float = 0.01,
    ending: str = "done",
    home: Path | None = None,
    waits: bool = False,
    is_held: bool = False,
) -> Iterator[tuple[RunFolder, subprocess.Popen[bytes]]]:
    """Give the folder of a run that a child process writes.

    With *waits* it waits for the file ``go``.  *is_held*: it takes no step after the fifth until the file
    ``gate`` is removed.
    """
    folder = make_run(path, home=home)
    folder.log.unlink()
    folder.metrics_file.unlink()
    if not waits:
        (path / "go").touch()
    if is_held:
        (path / "gate").touch()
    command = [sys.executable, "-c", _CHILD, os.fspath(path), str(steps), str(pause), ending]
    with (
        folder.log.open("ab") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as child,
    ):
        started = start_time_of(child.pid)
        folder.write_record(make_record(id=path.name, process=child.pid, process_started=started))
        try:
            yield folder, child
        finally:
            child.kill()


@contextmanager
def sleeping_process() -> Iterator[dict[str, Any]]:
    """Give the fields of a record for a process that runs and does nothing."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            yield process_facts(child.pid)
        finally:
            child.kill()
