"""The folder of a run: its files, their writers, and the state of the run.

::

    OUTPUT/
        run.json           the record of the run; written before the process starts
        job.json           the job for the shim and the runner; written before the process starts
        config.yaml        the config for axolotl
        data/              the tokenised data
        log.txt            the output of all processes
        metrics.jsonl      events, one JSON object per line; written by the shim of rank 0
        stop               a request to stop at the next checkpoint
        checkpoint-40/     written by the trainer
            colablock.json     its manifest with names, sizes and hashes; written last, by the shim
        adapter/           the trained adapter
        end.json           how the run ended; written by the shim, unless the process is killed
        alive              the time of the last sign of life; other hosts see no processes of this one
        mirror.*           notes and state of the process that mirrors checkpoints

    HOME/runs/ID.json      the path of the run folder
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

from colablock._common.decoding import (
    Malformed,
    decode,
    fitted,
    is_plain_name,
    read_bounded,
    read_end,
)
from colablock._common.fs import working_folder, write_private
from colablock._common.limits import METRICS_FILE, METRICS_LINE, RUN_FILE
from colablock._common.ownership import require_trusted
from colablock._common.text import near
from colablock.errors import InvalidInput, NotFound, Refused
from colablock.training.scripts.ranks import noted_ranks, process_facts, start_time_of

__all__ = [
    "RunFolder",
    "RunRecord",
    "State",
    "event_of",
    "find_run",
    "is_mark",
    "list_runs",
    "record_to_json",
    "register",
    "stop_run",
    "unregister",
]

MANIFEST = "colablock.json"  # in a checkpoint


class State(Enum):
    """The state of a run, from its folder and its process."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"  # at a checkpoint, on request
    FAILED = "failed"  # with an exception
    KILLED = "killed"  # the process is gone, and end.json was not written
    PREPARED = "prepared"  # not started


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """``run.json``: the record of the latest start of a run.

    *source* is the name or path of the matrix, by which it is applied.  *lock* is the digest of the lock or,
    for a kernel, of its pins.  *process* is the process id of
    the launcher and *process_started* its start in clock ticks since boot, since process ids are
    reused.  *estimate* is in bytes.  Times are seconds since the epoch.
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
    source: str = ""
    forms: Sequence[str] = ()  # the format of each dataset
    thinks: bool = False  # whether thinking is learnt
    workarounds: Sequence[str] = ()
    precision: str = ""  # "bf16", "fp16" or "fp32"
    processes: int = 1
    is_sharded: bool = False  # the processes share one model
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
    host: str = ""  # where the launcher was started
    mark: str = ""  # tells runs with one id apart; a resumed run keeps it
    job: str = ""  # the number of its job of Slurm
    cluster: str = ""  # that has the job
    command: Sequence[str] = ()
    estimate: int | None = None  # of the memory, by preflight
    seconds: Mapping[str, float] = field(default_factory=dict)  # before the start: "facts", "tokens"

    @property
    def is_elsewhere(self) -> bool:
        """Whether it was started on another host, whose processes are not seen here."""
        return self.host not in ("", socket.gethostname())


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """``end.json``, as the shim writes it."""

    state: str
    step: int | None = None
    error: str | None = None
    traceback: str | None = None
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registration:
    """``HOME/runs/ID.json``."""

    folder: str


_LAST_SECOND = 253_402_300_799  # of the year 9999, the last that a date can have
_LARGEST_PROCESS = 1 << 31
_SILENT = 180.0  # seconds without a sign of life, after which a run on another host counts as killed
_SIGN_FILE = 512  # bytes: one number
_FIELDS = {"mends": "workarounds"}  # a key of the file → its field
_KEYS = {name: key for key, name in _FIELDS.items()}


def record_to_json(record: RunRecord) -> dict[str, Any]:
    """Return *record* as the content of ``run.json``."""
    return {_KEYS.get(name, name): value for name, value in asdict(record).items()}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk.  Every call reads the disk; nothing is cached."""

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
        """Return the record; None if there is none, or it cannot be read."""
        try:
            return self._read_record()
        except (OSError, ValueError):  # Malformed, and a folder with a null character in its path
            return None

    def fault(self) -> str | None:
        """Return why the record cannot be read; None if it can, or there is none."""
        try:
            self._read_record()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            return f"`{self.record_file}` cannot be read: {getattr(error, 'strerror', None) or error}"
        return None

    def _read_record(self) -> RunRecord:
        value = decode(read_bounded(self.record_file, RUN_FILE), dict, by_python=True)
        record = fitted(value, RunRecord, renamed=_FIELDS)
        for name in (record.id, record.resumed_from):
            if name is not None and not is_plain_name(name):
                raise Malformed(f"`{name}` is not the name of a run or of a checkpoint")
        if record.mark and not is_mark(record.mark):
            raise Malformed(f"`{record.mark}` is not the mark of a run")
        if not 0 <= record.started <= _LAST_SECOND:
            raise Malformed("the time of its start is not a time")
        if not (0 <= record.process <= _LARGEST_PROCESS and 0 <= record.processes <= _LARGEST_PROCESS):
            raise Malformed("the number of a process is out of range")
        return record

    def write_record(self, record: RunRecord) -> None:
        """Write *record* atomically."""
        write_private(self.record_file, (json.dumps(record_to_json(record), indent=2) + "\n").encode())

    def end(self) -> Mapping[str, Any]:
        """Return the content of ``end.json``: ``state``, ``step``, ``error``, ``traceback``, ``time``.

        It is empty if there is no such file, or it cannot be read.
        """
        try:
            end = decode(read_bounded(self.end_file, RUN_FILE), _End, by_python=True)
        except (OSError, ValueError):
            return {}
        return {name: value for name, value in asdict(end).items() if value is not None}

    def is_alive(self, record: RunRecord | None = None) -> bool:
        """Whether the launcher of the latest start is running, or a rank that it left behind.

        *record* is the record of the folder if it was read already.
        """
        record = record or self.record()
        if record is None or record.process <= 0 or record.process_started <= 0:
            return False
        if record.is_elsewhere:
            return not self.end_file.exists() and abs(time.time() - self.last_sign(record)) < _SILENT
        began = start_time_of(record.process)
        if began == record.process_started or self.end_file.exists():
            return began == record.process_started
        # A launcher that was killed leaves its ranks running, and they write to this folder.  Each of several
        # has a session of its own.  A process that has reused the id of the launcher may lead a session, too.
        is_left = not began and _is_session_alive(record.process)
        return is_left or any(alive for _, alive in noted_ranks(self.path))

    def last_sign(self, record: RunRecord) -> float:
        """Return when the run of *record* has last shown that it is alive, in seconds since the epoch."""
        file = self.path / "alive"
        try:
            try:
                text = read_bounded(file, _SIGN_FILE)
            except OSError:  # on NFS, a file that is replaced while it is read
                text = read_bounded(file, _SIGN_FILE)
            # An earlier version empties the file before it writes to it, and a full disk leaves it empty.
            sign = float(text) if text else file.lstat().st_mtime
        except (OSError, ValueError):  # there is none yet
            return record.started
        return max(record.started, sign) if 0 <= sign <= _LAST_SECOND else record.started

    def state(self, record: RunRecord | None = None) -> State:
        """Return the state of the run; *record* as for `is_alive`."""
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
        """Return every event so far, oldest first, without a last line that is incomplete.

        Lines that are not events are left out, and so is the beginning of a very large file.
        """
        lines = read_end(self.metrics_file, METRICS_FILE).splitlines()
        return [event for line in lines if (event := event_of(line)) is not None]

    def waits_at(self, record: RunRecord) -> str | None:
        """Return the address at which the launcher waits for other hosts; None if it has started a rank."""
        words = dict(pairwise(record.command))
        is_alone = words.get("--num_machines", "1") == "1"
        return None if is_alone or (self.path / "ranks").is_dir() else words.get("--main_process_ip", "")

    def request_stop(self) -> None:
        """Request the run to save a checkpoint after the current step and stop."""
        os.close(os.open(self.stop_file, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o666))


def is_mark(text: str) -> bool:
    """Whether *text* is the mark of a run: eight hex digits."""
    return re.fullmatch(r"[0-9a-f]{8}", text) is not None


def event_of(line: bytes) -> dict[str, Any] | None:
    """Return the event in one line of ``metrics.jsonl``; None for any other line."""
    if len(line) > METRICS_LINE:
        return None
    try:
        return decode(line, dict, by_python=True)
    except Malformed:
        return None


def stop_run(run_id: str, folder: RunFolder) -> None:
    """Request a run to stop; end it if its launcher waits for other hosts.

    Raises Refused if it is not running: a later start would obey the request.
    """
    state = folder.state()
    if state is not State.RUNNING:
        why = f"it is {state.value}" if folder.path.is_dir() else "its folder is gone"
        raise Refused(f"the run `{run_id}` is not running: {why}")
    folder.request_stop()
    record = folder.record()
    if record is not None and not record.is_elsewhere and folder.waits_at(record) is not None:
        with suppress(OSError):  # it has ended
            os.killpg(record.process, signal.SIGTERM)


def _is_session_alive(leader: int) -> bool:
    """Whether a process of the session of *leader* is running.  The session id is reserved until then."""
    found = (process_facts(int(path.name)) for path in Path("/proc").glob("[0-9]*"))
    return any(facts and int(facts[3]) == leader for facts in found)


def register(home: Path, run_id: str, folder: Path) -> None:
    """Register the run for `find_run` and `list_runs`."""
    write_private(home / "runs" / f"{run_id}.json", json.dumps({"folder": os.fspath(folder)}).encode())


def unregister(home: Path, run_id: str) -> None:
    """Undo `register`.  Raises OSError."""
    (home / "runs" / f"{run_id}.json").unlink(missing_ok=True)


def list_runs(home: Path) -> Iterator[tuple[str, RunFolder]]:
    """Yield every registered run, newest first.  Its folder may be gone."""
    for path in sorted((home / "runs").glob("*.json"), key=_modified, reverse=True):
        try:
            folder = decode(read_bounded(path, RUN_FILE), _Registration, by_python=True).folder
        except (OSError, ValueError):
            continue
        if Path(folder).is_absolute() and "\0" not in folder:
            yield path.stem, RunFolder(Path(folder))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile, or a link to nothing
        return 0.0


def check_owner(folder: Path) -> None:
    """Raise InvalidInput if other users can change a run folder: its record says what to start."""
    here = working_folder()
    full = folder if folder.is_absolute() else here / folder
    require_trusted(
        folder,
        what="a run folder",
        below=here if full.is_relative_to(here) else None,
        hint="If you trust its content, make yourself its owner (`chown`) and remove the write permission of"
        " others (`chmod -R go-w`)",
    )


def find_run(home: Path, run_id: str | None = None) -> tuple[str, RunFolder]:
    """Return the run with that id or folder; without *run_id*, the newest.  Raises NotFound."""
    known = dict(list_runs(home))
    if run_id is None:
        for name, folder in known.items():
            check_owner(folder.path)
            return name, folder
        raise NotFound("there are no runs", hint="`colablock train NAME` starts one")
    if run_id in known:
        check_owner(known[run_id].path)
        return run_id, known[run_id]
    folder = RunFolder(Path(run_id))
    fault = folder.fault()
    if fault is not None:
        raise InvalidInput(fault, hint="Name the folder of a run that colablock has written")
    record = folder.record()
    if record is not None:
        check_owner(folder.path)
        return record.id, folder
    hint = near(run_id, list(known)) or "`colablock runs list` lists them"
    raise NotFound(f"there is no run `{run_id}`", hint=hint)
