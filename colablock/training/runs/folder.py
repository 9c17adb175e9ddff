"""The folder of a run: what is written where, by whom, and what state it is in.

::

    OUTPUT/
        run.json           what was asked for and on what: written before the start, by `launch`
        job.json           what the shim is to do: written by `launch`
        config.yaml        what the runner reads
        data/              the tokens, as prepared
        log.txt            all that the processes print
        metrics.jsonl      one JSON object a line: written by the shim of rank 0
        stop               exists when the run is asked to stop at a checkpoint
        checkpoint-40/     the trainer's own
            colablock.json     its manifest, written last: names, sizes, hashes
        adapter/           what was learnt, once it is done
        end.json           how it ended: written by the shim; a killed process leaves none
        mirror.*           what the process that mirrors checkpoints says and knows

    HOME/runs/ID.json      where the folder of each run is
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from colablock._common.fs import read_object, write_atomic
from colablock._common.text import near
from colablock.errors import NotFound, Refused

__all__ = [
    "RunFolder",
    "RunRecord",
    "State",
    "find_run",
    "list_runs",
    "record_to_json",
    "register",
    "start_time_of",
    "stop_run",
]

MANIFEST = "colablock.json"  # in a checkpoint


class State(Enum):
    """What a run is doing, as its folder and its process tell."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"  # asked to, at a checkpoint
    FAILED = "failed"  # with an exception
    KILLED = "killed"  # the process is gone and left no word
    PREPARED = "prepared"  # not started


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """``run.json``: the manifest of a run as it was started last.

    *lock* is the lock's digest or, in a kernel, that of its pins.  *process* is
    the launcher's number and *process_started* its start in clock ticks since boot: a
    number alone is used again.  Times are seconds since the epoch.
    """

    id: str
    matrix: str
    runner: str
    python: str
    lock: str
    config: Mapping[str, Any]
    config_digest: str
    data_digest: str
    model: str
    forms: Sequence[str] = ()  # of the datasets, as they were found
    workarounds: Sequence[str] = ()
    precision: str = ""  # "bf16", "fp16" or "fp32"
    processes: int = 1
    runtime: str | None = None
    cards: Sequence[str] = ()
    driver: str | None = None
    seed: int = 0
    git_revision: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    resumed_from: str | None = None  # the checkpoint's folder name
    total_steps: int | None = None
    process: int = 0
    process_started: int = 0
    command: Sequence[str] = ()
    estimate: int | None = None  # bytes of a card's memory, as preflight reckoned


_FIELDS = {"mends": "workarounds"}  # a key of the file → the field that it is read into
_KEYS = {name: key for key, name in _FIELDS.items()}


def record_to_json(record: RunRecord) -> dict[str, Any]:
    """Return *record* as the object that ``run.json`` holds."""
    return {_KEYS.get(name, name): value for name, value in asdict(record).items()}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk.  Nothing is cached: every call looks."""

    path: Path

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def stop_file(self) -> Path:
        return self.path / "stop"

    @property
    def end_file(self) -> Path:
        return self.path / "end.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def record(self) -> RunRecord | None:
        """Return what was started here; None where nothing was, or it cannot be read."""
        value = read_object(self.record_file)
        known = {one.name for one in fields(RunRecord)}
        found = {_FIELDS.get(key, key): each for key, each in value.items()}
        try:
            return RunRecord(**{name: each for name, each in found.items() if name in known})
        except TypeError:
            return None

    def write_record(self, record: RunRecord) -> None:
        """Keep *record*, as a whole."""
        write_atomic(self.record_file, (json.dumps(record_to_json(record), indent=2) + "\n").encode())

    def end(self) -> Mapping[str, Any]:
        """Return how it ended, as the shim says: ``state``, ``step``, ``error``, ``traceback``, ``time``."""
        return read_object(self.end_file)

    def is_alive(self, record: RunRecord | None = None) -> bool:
        """Whether the process that was started last still runs, or one that it left behind still trains.

        *record* is that of the folder, where it was read already.
        """
        record = record or self.record()
        if record is None or record.process_started <= 0:
            return False
        if began := start_time_of(record.process):  # or another's, as its session is
            return began == record.process_started
        # A launcher that was killed leaves its ranks running, which write here as before.
        return not self.end_file.exists() and _is_session_alive(record.process)

    def state(self, record: RunRecord | None = None) -> State:
        """Return what the run is doing; *record* as for `is_alive`."""
        record = record or self.record()
        if record is None or not record.process:
            return State.PREPARED
        if self.is_alive(record):
            return State.RUNNING
        try:
            return State(self.end().get("state"))
        except ValueError:
            return State.KILLED

    def metrics(self) -> list[dict[str, Any]]:
        """Return every event so far, oldest first; a last line that is being written is left out."""
        try:
            lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        events = []
        for line in lines:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.append(event)
        return events

    def request_stop(self) -> None:
        """Have the run stop at its next checkpoint, which it makes after the step that it is at."""
        self.stop_file.touch()


def stop_run(run_id: str, folder: RunFolder) -> None:
    """Ask a run to stop.  Raises Refused where it does not run: a request stays until there is one."""
    state = folder.state()
    if state is not State.RUNNING:
        why = f"it is {state.value}" if folder.path.is_dir() else "its folder is gone"
        raise Refused(f"`{run_id}` does not run: {why}")
    folder.request_stop()


def start_time_of(process: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 where it is gone or a zombie (proc(5))."""
    facts = _stat(process)
    return int(facts[19]) if facts else 0


def _is_session_alive(leader: int) -> bool:
    """Whether a process of the session that *leader* began still runs; its number is in use until then."""
    found = (_stat(int(path.name)) for path in Path("/proc").glob("[0-9]*"))
    return any(facts and int(facts[3]) == leader for facts in found)


def _stat(process: int) -> list[str]:
    """Return what the kernel tells of a process from its state on; nothing where it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    facts = stat.rpartition(")")[2].split()
    return [] if facts[0] in ("Z", "X") else facts


def register(home: Path, run_id: str, folder: Path) -> None:
    """Have `find_run` and `list_runs` know the run."""
    write_atomic(home / "runs" / f"{run_id}.json", json.dumps({"folder": os.fspath(folder)}).encode())


def list_runs(home: Path) -> Iterator[tuple[str, RunFolder]]:
    """Yield every run that was started here, newest first; the folder of one may be gone."""
    known = sorted((home / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in known:
        folder = read_object(path).get("folder")
        if isinstance(folder, str):
            yield path.stem, RunFolder(Path(folder))


def find_run(home: Path, run_id: str | None = None) -> tuple[str, RunFolder]:
    """Return the run of that name, or of that folder; the newest one by default.  Raises NotFound."""
    known = dict(list_runs(home))
    if run_id is None:
        for name, folder in known.items():
            return name, folder
        raise NotFound("no run was started here", hint="`colablock train NAME` starts one")
    if run_id in known:
        return run_id, known[run_id]
    folder = RunFolder(Path(run_id))
    record = folder.record()
    if record is not None:
        return record.id, folder
    hint = near(run_id, list(known)) or "`colablock runs list` shows them"
    raise NotFound(f"no run is called `{run_id}`", hint=hint)
