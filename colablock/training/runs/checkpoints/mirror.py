"""Mirror the checkpoints of a run to a `CheckpointStore`, in a process of its own.

``main([RUN_FOLDER, TARGET, PYTHON])`` runs in that process and mirrors each new checkpoint until
the run has ended.  The process survives a restart of the kernel.
The store keeps the newest two archives of a run, and is told of each start: which run is the newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from colablock._common.child_environment import Purpose, child_environment, opt_outs
from colablock._common.decoding import decode, read_bounded, read_end
from colablock._common.fs import expanded, locked_file, open_private, write_private
from colablock._common.limits import RUN_FILE
from colablock._common.process import detach, own_command, start_session
from colablock.errors import ColablockError
from colablock.training.runs.checkpoints.archives import (
    HASH_SUFFIX,
    CheckpointArchive,
    complete_archives,
    marked_name,
    newest_name,
    read_run_files,
)
from colablock.training.runs.checkpoints.finder import list_checkpoints, verify_checkpoint
from colablock.training.runs.checkpoints.stores import HUB, CheckpointStore, open_store
from colablock.training.runs.folder import MANIFEST, RunFolder, RunRecord, State
from colablock.training.scripts.ranks import RANK_FILE, start_time_of

__all__ = [
    "Mirror",
    "first_line",
    "is_being_mirrored",
    "manifest_digest",
    "mirror_notes",
    "mirrored_archives",
    "nap",
    "record_mirrored",
    "start_mirror",
    "wait_for_mirror",
    "watch",
]

_NOTES = 1 << 20  # bytes that are read of the notes: a run with 1000 checkpoints has 50 kB
_KEPT = 2  # archives: one may turn out to be damaged
_PAUSE = 5.0  # seconds between two looks at the run folder
_LONGEST_PAUSE = 60.0  # seconds, after failures
_LAST_ATTEMPTS = 6  # once the run has ended
_START_TIMEOUT = 600.0  # seconds for a run to start
_UNFINISHED = frozenset({State.RUNNING, State.PREPARED})
_WITH_ADAPTER = frozenset({State.DONE, State.STOPPED})
_LOOK = 0.5  # seconds between two looks at a process
_LOCK = "mirror.lock"
_PROCESS = "mirror.process"  # its number, its start and its host
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(slots=True)
class Mirror:
    """Mirrors the checkpoints of *run* to *store* and reports each one to *note*.

    A checkpoint that is saved again under the same name is mirrored again.
    """

    run: RunFolder
    store: CheckpointStore
    note: Callable[[str], None]
    _damaged: set[str] = field(default_factory=set)  # digests of manifests
    _last_failure: str = ""

    def mirror_newest(self) -> bool:
        """Mirror the newest valid checkpoint unless the store has it; return whether the store has it now."""
        record = self.run.record()
        if record is None:
            return True
        if not self._tell_start(record):
            return False
        newest = self._newest()
        if newest is None:
            return True
        checkpoint, digest = newest
        name = marked_name(f"{record.id}-{checkpoint.name}", record.mark)
        is_mirrored = mirrored_archives(self.run.path, self.store).get(name) == digest
        return is_mirrored or self._put(checkpoint, name, digest)

    def mirror_adapter(self) -> bool:
        """Mirror the adapter of a run that has ended with one; return whether the store has it now."""
        record, adapter = self.run.record(), self.run.adapter
        has_one = self.run.state(record) in _WITH_ADAPTER and (adapter / _ADAPTER_CONFIG).is_file()
        if record is None or not has_one:
            return True
        name, digest = marked_name(f"{record.id}-adapter", record.mark), _digest_of(adapter)
        is_mirrored = mirrored_archives(self.run.path, self.store).get(name) == digest
        return is_mirrored or self._put(adapter, name, digest)

    def _tell_start(self, record: RunRecord) -> bool:
        """Tell the store, once, that no run with this id was started later; return whether it knows now."""
        name, start = newest_name(record.id), f"{record.mark} {record.started}"
        is_known = mirrored_archives(self.run.path, self.store).get(name) == start
        if is_known or not record.mark:  # the run of an earlier version has none
            return True
        try:
            self.store.put_text(name, f"{record.mark}\n")
            record_mirrored(self.run.path, self.store, name, start)
        except (OSError, ColablockError) as error:
            self._note_failure(f"the start of `{record.id}`", error)
            return False
        return True

    def _newest(self) -> tuple[Path, str] | None:
        """Return the newest undamaged checkpoint and the digest of its manifest."""
        known = mirrored_archives(self.run.path, self.store).values()
        for checkpoint in list_checkpoints(self.run.path):
            digest = manifest_digest(checkpoint)
            if digest is None or digest in self._damaged:  # without a manifest, it is being saved
                continue
            if digest in known or not (faults := verify_checkpoint(checkpoint)):
                return checkpoint, digest
            self._damaged.add(digest)
            self.note(f"not mirroring {checkpoint.name}, which is damaged: {faults[0]}")
        return None

    def _put(self, checkpoint: Path, name: str, digest: str) -> bool:
        try:
            is_confirmed = self.store.put(checkpoint, name, read_run_files(self.run.path))
            record_mirrored(self.run.path, self.store, name, digest)
        except (OSError, ColablockError) as error:
            self._note_failure(checkpoint.name, error)
            return False
        self._last_failure = ""
        self.note(f"{checkpoint.name} is mirrored{'' if is_confirmed else ', not confirmed'}")
        try:
            self._prune(name)
        except (OSError, ColablockError) as error:
            self.note(f"older archives could not be deleted and will be retried: {first_line(error)}")
        return True

    def _note_failure(self, what: str, error: Exception) -> None:
        text = f"{what} could not be mirrored and will be retried: {first_line(error)}"
        if text != self._last_failure:
            self.note(text)
        self._last_failure = text

    def _prune(self, name: str) -> None:
        """Delete archives of this run that are older than the newest two up to *name*, which is complete.

        Incomplete files of older archives are deleted as well.
        """
        names = self.store.names()
        done = CheckpointArchive.of(name)
        complete = complete_archives(names, done.run_id, done.mark) if done is not None else ()
        if done is None or not complete:
            return
        # Later ones were damaged, or this step would not be new: they do not take the place of one.
        kept = [archive.step for archive in complete if archive.step <= done.step][:_KEPT]
        obsolete = []
        for each in names:
            archive = CheckpointArchive.of(
                each.removeprefix(".").removesuffix(".partial").removesuffix(HASH_SUFFIX)
            )
            if (
                archive is not None
                and (archive.run_id, archive.mark) == (done.run_id, done.mark)
                and archive.step < done.step
                and archive.step not in kept
            ):
                obsolete.append(each)
        if obsolete:  # hash files first: an archive without one is incomplete
            self.store.remove(sorted(obsolete, key=lambda each: (not each.endswith(HASH_SUFFIX), each)))


def watch(
    mirror: Mirror,
    *,
    pause: float = _PAUSE,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Mirror each new checkpoint until the run has ended, and then its last checkpoint and its adapter.

    Returns whether the store has both.
    """
    waited, wait = 0.0, pause
    while (state := mirror.run.state()) in _UNFINISHED and waited < _START_TIMEOUT:
        wait = pause if mirror.mirror_newest() else min(2 * wait, _LONGEST_PAUSE)
        waited = waited + wait if state is State.PREPARED else 0.0
        sleep(wait)
    has_newest = False
    for _ in range(_LAST_ATTEMPTS):
        has_newest = mirror.mirror_newest()
        if has_newest and mirror.mirror_adapter():
            return True
        wait = min(2 * wait, _LONGEST_PAUSE)
        sleep(wait)
    lost = "adapter" if has_newest else "last checkpoint"
    mirror.note(f"the run has ended, but its {lost} could not be mirrored")
    return False


def nap(run: RunFolder, seconds: float) -> None:
    """Sleep for *seconds*, or until *run* ends: a call may wait for its mirror then."""
    until, was_over = time.monotonic() + seconds, run.state() not in _UNFINISHED
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK))
        if not was_over and run.state() not in _UNFINISHED:
            return


def start_mirror(run: Path, target: str, *, python: str, environ: Mapping[str, str]) -> int:
    """Start the process that mirrors *run* to *target*, and return its process id.

    *python* is the interpreter whose huggingface_hub uploads to the hub.
    The process has its own session and ends by itself.  `mirror_notes` returns its notes.
    Raises the errors of `open_store`.
    """
    open_store(target, python=python, environ=environ)
    run = run.absolute()
    token = environ.get("HF_TOKEN") if target.startswith(HUB) else None
    with open(run / "mirror-errors.txt", "ab", opener=open_private) as errors:
        arguments = str(run), _absolute(target), str(Path(python).absolute())
        process = start_session(
            own_command(__name__, *arguments),
            environ=child_environment(
                Purpose.TRAINING, environ, **opt_outs(environ), **({"HF_TOKEN": token} if token else {})
            ),
            folder=run,
            output=errors,
            private=True,
        )
    detach(process)
    _PROCESSES[run] = process
    facts = f"{process.pid} {start_time_of(process.pid)} {socket.gethostname()}"
    with suppress(OSError):  # a full disk: only calls of other processes need it
        write_private(run / _PROCESS, facts.encode())
    return process.pid


_PROCESSES: dict[Path, subprocess.Popen[bytes]] = {}  # by the folder of the run


def wait_for_mirror(run: Path, *, limit: float, was_seen: bool = False) -> bool:
    """Wait for the mirror of a run that has ended, *limit* seconds at most.

    Returns whether the last checkpoint and the adapter are mirrored.  It is true at once if nobody mirrors
    *run*.  Another process may have started its mirror.  *was_seen*: it was alive a moment ago.
    """
    process, until = _PROCESSES.get(run.absolute()), time.monotonic() + limit
    if process is None and not was_seen and not is_being_mirrored(run):
        return True
    try:
        if process is not None:
            code = process.wait(limit)
            _PROCESSES.pop(run.absolute(), None)  # its failure is told once
            return code == 0
    except subprocess.TimeoutExpired:
        return False
    while is_being_mirrored(run):
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK)
    return _has_all(RunFolder(run))


def is_being_mirrored(run: Path) -> bool:
    """Whether a process on this machine mirrors *run* now."""
    process = _PROCESSES.get(run.absolute())
    if process is not None and process.poll() is None:
        return True
    try:
        number, began, host = read_bounded(run / _PROCESS, RANK_FILE).decode().split()
        # A mirror that had ended before this was written has no start, as any process that is gone.
        return host == socket.gethostname() and 0 < int(began) == start_time_of(int(number))
    except (OSError, ValueError):  # there was none
        return False


def _has_all(run: RunFolder) -> bool:
    """Whether a store has the newest valid checkpoint of *run*, and its adapter if it has ended with one."""
    record = run.record()
    if record is None:
        return False
    stores = list(_all_mirrored(run.path).values()) or [{}]
    return any(_has_all_in(store, run, record) for store in stores)


def _has_all_in(store: Mapping[str, str], run: RunFolder, record: RunRecord) -> bool:
    has_adapter = run.state(record) in _WITH_ADAPTER and (run.adapter / _ADAPTER_CONFIG).is_file()
    if has_adapter and store.get(marked_name(f"{record.id}-adapter", record.mark)) != _digest_of(run.adapter):
        return False
    for checkpoint in list_checkpoints(run.path):
        digest = manifest_digest(checkpoint)  # None: it was being saved
        name = marked_name(f"{record.id}-{checkpoint.name}", record.mark)
        if digest is not None and store.get(name) == digest:
            return True
        if digest is not None and not verify_checkpoint(checkpoint):
            return False
    return True


def _absolute(target: str) -> str:
    """Return *target* for a process in another folder."""
    return target if target.startswith(HUB) else str(expanded(target, "the mirror").absolute())


def mirror_notes(run: Path) -> tuple[str, ...]:
    """Return the notes of the mirror of *run* so far, oldest first."""
    return tuple(read_end(run / "mirror.txt", _NOTES).decode(errors="replace").splitlines())


def manifest_digest(checkpoint: Path) -> str | None:
    """Return the SHA-256 of the manifest of *checkpoint*; None if it has no manifest."""
    with suppress(OSError, ValueError):
        return hashlib.sha256(read_bounded(checkpoint / MANIFEST, RUN_FILE)).hexdigest()
    return None


def _digest_of(folder: Path) -> str:
    """Return a digest of the names, sizes and times of the files in *folder*."""
    facts = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def record_mirrored(run: Path, store: CheckpointStore, name: str, digest: str) -> None:
    """Record that *store* has the archive *name* of a checkpoint with the manifest digest *digest*."""
    value = {**_all_mirrored(run), store.address: {**mirrored_archives(run, store), name: digest}}
    write_private(run / "mirror.json", json.dumps(value).encode())


def first_line(error: Exception) -> str:
    """Return the first line of the message of *error*."""
    text = str(getattr(error, "strerror", None) or error)
    return text.partition("\n")[0]


def mirrored_archives(run: Path, store: CheckpointStore) -> dict[str, str]:
    """Return the archives of *run* in *store*: their names and the digests of the checkpoints' manifests."""
    return _all_mirrored(run).get(store.address, {})


def _all_mirrored(run: Path) -> dict[str, dict[str, str]]:
    """Return the content of ``mirror.json``: the archives by store.  A damaged file says nothing."""
    try:
        return decode(read_bounded(run / "mirror.json", RUN_FILE), dict[str, dict[str, str]], by_python=True)
    except (OSError, ValueError):
        return {}


def main(argv: Sequence[str]) -> int:
    """Mirror the run in the folder ``argv[0]`` to ``argv[1]`` until it ends; ``argv[2]`` is an interpreter.

    A lock lets one process at a time mirror a run.
    """
    run, target, python = RunFolder(Path(argv[0])), argv[1], argv[2]

    def note(text: str) -> None:
        with open(run.path / "mirror.txt", "a", encoding="utf-8", opener=open_private) as file:
            file.write(f"{text}\n")

    # The mirror of a resumed run waits for that of the previous start, which may still write an archive.
    with locked_file(run.path / _LOCK, required=False):
        for left in run.path.glob(".mirror-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            mirror = Mirror(run, open_store(target, python=python, environ=os.environ), note)
            is_kept = watch(mirror, sleep=partial(nap, run))
        except ColablockError as error:
            note(f"mirroring stopped: {error}")
            return int(error.exit_code)
    return int(not is_kept)
