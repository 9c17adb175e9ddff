"""Whole checkpoints kept somewhere else, one archive each: on a mounted drive, or in a repository of the hub.

::

    TARGET/
        ID-checkpoint-40.tar          checkpoint-40/ with its manifest, run.json, metrics.jsonl
        ID-checkpoint-40.tar.sha256   written last: an archive without one is none

The newest two of a run are kept.  ``python -m colablock.training.runs.checkpoint_mirror RUN_FOLDER
TARGET`` mirrors each checkpoint as it comes until the run has ended; it is a
process of its own, so that a restarted kernel does not take it along.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import colablock
from colablock._common.fs import file_digest, locked_file, write_atomic
from colablock._common.process import start_session
from colablock._common.reporter import Reporter
from colablock.environment.target_script import ask_target
from colablock.errors import ColablockError, InvalidInput, NotFound, Unmet
from colablock.training.runs.checkpoints import list_checkpoints, verify_checkpoint
from colablock.training.runs.folder import MANIFEST, RunFolder, RunRecord, State
from colablock.training.scripts import FOLDER as SCRIPTS

__all__ = [
    "CheckpointArchive",
    "FileOperations",
    "FolderStore",
    "HubStore",
    "Mirror",
    "Store",
    "list_archives",
    "mirror_notes",
    "restore",
    "start_mirror",
    "store_of",
    "watch",
]

_HUB = "hf://"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_KEPT = 2  # archives: one may turn out to be damaged
_BLOCK = 1 << 20
_HASH = ".sha256"
_BESIDE = ("run.json", "metrics.jsonl")  # what another machine needs to go on with the run
_PAUSE = 5.0  # seconds between two looks
_LONGEST = 60.0  # where the target does not take it
_LAST_TRIES = 6  # once the run has ended
_PATIENCE = 600.0  # seconds for a run to start
_WAITING = frozenset({State.RUNNING, State.PREPARED})


@dataclass(frozen=True, slots=True, order=True)
class CheckpointArchive:
    """One checkpoint of one run, as it is called in a mirror."""

    run_id: str
    step: int

    @property
    def name(self) -> str:
        return f"{self.run_id}-checkpoint-{self.step}.tar"

    @property
    def checkpoint(self) -> str:
        return f"checkpoint-{self.step}"

    @classmethod
    def of(cls, name: str) -> CheckpointArchive | None:
        """Return what the file *name* stands for; None where it is something else."""
        found = re.fullmatch(r"(.+)-checkpoint-(\d+)\.tar", name)
        return cls(found[1], int(found[2])) if found and not name.startswith(".") else None


class FileOperations:
    """How a mirror writes on a drive.  Tests fail it."""

    def create(self, path: Path) -> IO[bytes]:
        return path.open("wb")

    def sync(self, file: IO[bytes]) -> None:
        """Have what was written leave the page cache, so that it is read from where it was written to."""
        file.flush()
        os.fsync(file.fileno())
        with suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, source: Path, destination: Path) -> None:
        source.replace(destination)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


class Store(Protocol):
    """Where archives are kept.  Each method raises OSError or ColablockError where it cannot do it."""

    @property
    def address(self) -> str:
        """What tells it from others."""

    def names(self) -> Collection[str]:
        """Return the names of the files there; none where there is nothing yet."""

    def put(self, checkpoint: Path, name: str, beside: Mapping[str, bytes]) -> bool:
        """Keep *checkpoint* as the archive *name*; whether it is certain to be there for good."""

    def get(self, name: str, into: Path) -> None:
        """Fetch the file *name* to *into*."""

    def remove(self, names: Sequence[str]) -> None:
        """Take the files *names* away."""


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A folder, mostly of a mounted drive: that uploads later, so nothing there is ever certain."""

    folder: Path
    files: FileOperations = field(default_factory=FileOperations)

    @property
    def address(self) -> str:
        return str(self.folder)

    def names(self) -> Collection[str]:
        with suppress(FileNotFoundError):
            return {path.name for path in self.folder.iterdir()}
        return set()

    def put(self, checkpoint: Path, name: str, beside: Mapping[str, bytes]) -> bool:
        self.folder.mkdir(exist_ok=True)
        partial = self.folder / f".{name}.partial"
        try:
            self._put(checkpoint, name, beside, partial)
        except BaseException:
            with suppress(OSError):
                self.files.remove(partial)
            raise
        return False

    def _put(self, checkpoint: Path, name: str, beside: Mapping[str, bytes], partial: Path) -> None:
        with self.files.create(partial) as file:
            digest = _pack(checkpoint, beside, file)
            self.files.sync(file)
        if file_digest(partial) != digest:
            raise Unmet(f"what was written to `{self.folder}` is not what can be read there")
        self.files.remove(self._hash_file(name))  # it was that of the archive that is replaced
        self.files.rename(partial, self.folder / name)
        with self.files.create(partial) as file:
            file.write(_hash_line(digest, name))
            self.files.sync(file)
        self.files.rename(partial, self._hash_file(name))

    def get(self, name: str, into: Path) -> None:
        with (self.folder / name).open("rb") as source, into.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.files.remove(self.folder / name)

    def _hash_file(self, name: str) -> Path:
        return self.folder / f"{name}{_HASH}"


@dataclass(frozen=True, slots=True)
class HubStore:
    """A private repository of the hub, by way of the target's own huggingface_hub.

    What is removed stays in the repository's history, which is the user's to squash.
    """

    repo: str
    python: str
    environ: Mapping[str, str] = field(repr=False)

    @property
    def address(self) -> str:
        return f"{_HUB}{self.repo}"

    def names(self) -> Collection[str]:
        return {str(name) for name in self._ask("names")}

    def put(self, checkpoint: Path, name: str, beside: Mapping[str, bytes]) -> bool:
        with tempfile.TemporaryDirectory(prefix=".mirror-", dir=checkpoint.parent) as folder:
            archive, hashes = Path(folder) / "archive", Path(folder) / "hash"
            with archive.open("wb") as file:
                digest = _pack(checkpoint, beside, file)
            hashes.write_bytes(_hash_line(digest, name))
            files = {name: str(archive), f"{name}{_HASH}": str(hashes)}
            return bool(self._ask("put", files=files, digest=digest))

    def get(self, name: str, into: Path) -> None:
        self._ask("get", name=name, into=str(into.absolute()))

    def remove(self, names: Sequence[str]) -> None:
        self._ask("remove", files=list(names))

    def _ask(self, job: str, **more: Any) -> Any:
        return ask_target(
            self.python,
            SCRIPTS / "mirror.py",
            {"do": job, "repo": self.repo, **more},
            doing=f"reach `{self.address}`",
            environ=self.environ,
        )


def store_of(target: str, *, python: str, environ: Mapping[str, str]) -> Store:
    """Return the store that *target* names: ``hf://org/name``, or a folder.

    Raises InvalidInput or NotFound for one that cannot be.  The folder above a
    new one has to exist: where the drive is not mounted, there is none.
    """
    if target.startswith(_HUB):
        repo = target.removeprefix(_HUB).rstrip("/")
        if not _REPOSITORY.fullmatch(repo):
            raise InvalidInput(f"`{target}` is no repository of the hub", hint=f"Write `{_HUB}user/name`")
        return HubStore(repo, python, environ)
    folder = Path(target).expanduser().absolute()
    if not folder.parent.is_dir():
        raise NotFound(f"there is no folder `{folder.parent}` to mirror to", hint="Is the drive mounted?")
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"`{folder}` is no folder to mirror to")
    return FolderStore(folder)


def list_archives(store: Store, run_id: str | None = None) -> tuple[CheckpointArchive, ...]:
    """Return the complete archives, of one run or of all, the newest of each run first."""
    return _complete(store.names(), run_id)


def _complete(names: Collection[str], run_id: str | None) -> tuple[CheckpointArchive, ...]:
    found = [
        archive
        for name in names
        if f"{name}{_HASH}" in names
        and (archive := CheckpointArchive.of(name)) is not None
        and run_id in (None, archive.run_id)
    ]
    return tuple(sorted(found, key=lambda archive: (archive.run_id, -archive.step)))


# Mirroring


@dataclass(slots=True)
class Mirror:
    """Mirrors the checkpoints of *run* to *store*, and tells *say* of each.

    A checkpoint that is saved anew under its old name is mirrored anew.
    """

    run: RunFolder
    store: Store
    say: Callable[[str], None]
    _damaged: set[str] = field(default_factory=set)  # digests of manifests
    _last: str = ""

    def once(self) -> bool:
        """Mirror the newest one that is whole, if it is not there yet; whether it is there now."""
        record, newest = self.run.record(), self._newest()
        if record is None or newest is None:
            return True
        checkpoint, digest = newest
        name = f"{record.id}-{checkpoint.name}.tar"
        is_there = _memory(self.run.path, self.store).get(name) == digest
        return is_there or self._mirror(checkpoint, name, digest)

    def _newest(self) -> tuple[Path, str] | None:
        """Return the newest checkpoint that is not damaged, with the digest of its manifest."""
        known = _memory(self.run.path, self.store).values()
        for checkpoint in list_checkpoints(self.run.path):
            digest = _manifest_digest(checkpoint)
            if digest is None or digest in self._damaged:  # one without a manifest is being saved
                continue
            if digest in known or not (faults := verify_checkpoint(checkpoint)):
                return checkpoint, digest
            self._damaged.add(digest)
            self.say(f"{checkpoint.name} is damaged, and not mirrored: {faults[0]}")
        return None

    def _mirror(self, checkpoint: Path, name: str, digest: str) -> bool:
        try:
            is_certain = self.store.put(checkpoint, name, _beside(self.run.path))
            _remember(self.run.path, self.store, name, digest)
        except (OSError, ColablockError) as error:
            text = f"{checkpoint.name} is not mirrored: {_in_short(error)}; it is tried again"
            if text != self._last:
                self.say(text)
            self._last = text
            return False
        self._last = ""
        self.say(f"{checkpoint.name} is {'mirrored' if is_certain else 'mirrored, not confirmed'}")
        try:
            self._take_away_older(name)
        except (OSError, ColablockError) as error:
            self.say(f"older archives are not taken away yet: {_in_short(error)}")
        return True

    def _take_away_older(self, name: str) -> None:
        """Take away what is older than the newest archives of this run, now that *name* is complete.

        What was left half done there goes, too.
        """
        names = self.store.names()
        done = CheckpointArchive.of(name)
        complete = _complete(names, done.run_id) if done is not None else ()
        if done is None or not complete:
            return
        kept = {archive.step for archive in complete[:_KEPT]} | {done.step}
        gone = [
            each
            for each in names
            if (
                archive := CheckpointArchive.of(
                    each.removeprefix(".").removesuffix(".partial").removesuffix(_HASH)
                )
            )
            is not None
            and archive.run_id == done.run_id
            and archive.step < max(kept)
            and archive.step not in kept
        ]
        if gone:  # hashes first: an archive without one is none
            self.store.remove(sorted(gone, key=lambda each: (not each.endswith(_HASH), each)))


def watch(
    mirror: Mirror,
    *,
    pause: float = _PAUSE,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Mirror each checkpoint as it comes, until the run has ended and its last one is mirrored."""
    waited, wait = 0.0, pause
    while (state := mirror.run.state()) in _WAITING and waited < _PATIENCE:
        wait = pause if mirror.once() else min(2 * wait, _LONGEST)
        waited = waited + wait if state is State.PREPARED else 0.0
        sleep(wait)
    for _ in range(_LAST_TRIES):
        if mirror.once():
            return
        wait = min(2 * wait, _LONGEST)
        sleep(wait)
    mirror.say("the run has ended, and its last checkpoint is not mirrored")


def start_mirror(run: Path, target: str, *, environ: Mapping[str, str]) -> int:
    """Start the process that mirrors *run* to *target*, and return its number.

    It has its own session and ends by itself; what it says, `mirror_notes` returns.
    Raises as `store_of` does.
    """
    store_of(target, python=sys.executable, environ=environ)
    ours = str(Path(colablock.__file__).parents[1])
    path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), ours]))
    with (run / "mirror-errors.txt").open("ab") as errors:
        process = start_session(  # our own interpreter, so with our own variables
            [sys.executable, "-m", "colablock.training.runs.checkpoint_mirror", str(run), target],
            environ={**environ, "PYTHONPATH": path},
            output=errors,
        )
    # It may outlive this process; ended before it, it is no zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


def mirror_notes(run: Path) -> tuple[str, ...]:
    """Return what the mirror of *run* has said so far, oldest first."""
    try:
        return tuple((run / "mirror.txt").read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def main(argv: Sequence[str]) -> int:
    """Mirror the run in the folder ``argv[0]`` to ``argv[1]`` until it ends; one process at a time does."""
    run, target = RunFolder(Path(argv[0])), argv[1]

    def say(text: str) -> None:
        with (run.path / "mirror.txt").open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    # The mirror of a resumed run waits for that of the run before, which may be at its last archive.
    with locked_file(run.path / "mirror.lock"):
        for left in run.path.glob(".mirror-*"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        record = run.record()
        python = record.python if record is not None else sys.executable
        try:
            watch(Mirror(run, store_of(target, python=python, environ=os.environ), say))
        except ColablockError as error:
            say(f"nothing is mirrored: {error}")
            return int(error.exit_code)
    return 0


# Restoring


def restore(store: Store, run_id: str, folder: Path, *, reporter: Reporter) -> Path:
    """Bring the newest mirrored checkpoint of a run back into *folder*, and return where it is.

    Its hash has to be the one that was kept with it, and its manifest has to hold;
    else the one before is taken, and *reporter* is told why.  What stands in
    *folder* whole stays; the run's own record and metrics come along where there
    are none.  Raises NotFound where nothing is mirrored, Unmet where nothing of it is whole.
    """
    archives = list_archives(store, run_id)
    if not archives:
        others = ", ".join(f"`{name}`" for name in sorted({one.run_id for one in list_archives(store)}))
        hint = f"There are checkpoints of {others}" if others else None
        raise NotFound(f"no checkpoint of the run `{run_id}` is mirrored there", hint=hint)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".restore-*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    reasons = []
    for at, archive in enumerate(archives):
        found = _try(store, archive, folder)
        if isinstance(found, Path):
            return found
        reasons.append(f"`{archive.name}`: {found}")
        if at + 1 < len(archives):
            then = f"{archives[at + 1].checkpoint} is taken"
            reporter.note(f"the mirrored {archive.checkpoint} cannot be used: {found}; {then}")
    raise Unmet("\n  ".join(["no mirrored checkpoint can be used", *reasons]))


def _try(store: Store, archive: CheckpointArchive, folder: Path) -> Path | str:
    """Return the checkpoint of *archive* in *folder*, or why it cannot be used."""
    try:
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder) as scratch:
            return _restore(store, archive, folder, Path(scratch))
    except (OSError, ValueError, tarfile.TarError, ColablockError) as error:
        return _in_short(error)


def _restore(store: Store, archive: CheckpointArchive, folder: Path, scratch: Path) -> Path:
    destination = folder / archive.checkpoint
    if destination.is_dir() and not verify_checkpoint(destination):
        return destination
    packed, hashes, unpacked = scratch / "archive", scratch / "hash", scratch / "unpacked"
    store.get(f"{archive.name}{_HASH}", hashes)
    store.get(archive.name, packed)
    expected = hashes.read_text(encoding="ascii", errors="replace").partition(" ")[0]
    if file_digest(packed) != expected:
        raise Unmet("its hash is not the one that was kept with it")
    _unpack(packed, unpacked, archive.checkpoint)
    found = unpacked / archive.checkpoint
    faults = verify_checkpoint(found)
    if faults:
        raise Unmet(faults[0])
    if destination.is_dir():
        destination.replace(scratch / "damaged")
    found.replace(destination)
    _bring_beside(unpacked, folder)
    digest = _manifest_digest(destination)
    if digest is not None:
        _remember(folder, store, archive.name, digest)
    return destination


def _bring_beside(unpacked: Path, folder: Path) -> None:
    for name in _BESIDE:
        if (unpacked / name).is_file() and not (folder / name).exists():
            (unpacked / name).replace(folder / name)
            if name == RunFolder(folder).record_file.name:
                _forget_process(RunFolder(folder))


def _forget_process(run: RunFolder) -> None:
    """Have the record say that nothing was started here: the number was that of another machine's process."""
    record: RunRecord | None = run.record()
    if record is not None:
        run.write_record(replace(record, process=0, process_started=0))


# Archives


class _Hashing(io.RawIOBase):
    """Passes on what is written, and keeps its hash."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _pack(checkpoint: Path, beside: Mapping[str, bytes], file: IO[bytes]) -> str:
    """Write *checkpoint* to *file* as a tar archive, in one pass, and return its SHA-256 (hex)."""
    hashing = _Hashing(file)
    with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK) as archive:
        for name, data in beside.items():
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
        for path in sorted(checkpoint.rglob("*")):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as source:
                    name = f"{checkpoint.name}/{path.relative_to(checkpoint).as_posix()}"
                    archive.addfile(_member(name, os.fstat(source.fileno()).st_size), source)
    return hashing.digest.hexdigest()


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _unpack(packed: Path, into: Path, checkpoint: str) -> None:
    """Write the files of an archive below *into*: plain files by names as `_pack` gives them, nothing else.

    Contents only, so no link, mode or owner of an archive means anything.
    """
    with tarfile.open(packed, "r:") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            is_ours = member.name in _BESIDE or (len(parts) > 1 and parts[0] == checkpoint)
            source = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if source is None or not is_ours or ".." in parts:
                raise Unmet(f"it holds `{member.name}`, which no archive of ours does")
            path = into.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file, _BLOCK)


def _hash_line(digest: str, name: str) -> bytes:
    return f"{digest}  {name}\n".encode()  # as sha256sum(1) reads it


def _beside(run: Path) -> dict[str, bytes]:
    return dict(_contents(run, _BESIDE))


def _contents(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with suppress(OSError):
            yield name, (folder / name).read_bytes()


def _manifest_digest(checkpoint: Path) -> str | None:
    try:
        return file_digest(checkpoint / MANIFEST)
    except OSError:
        return None


def _memory(run: Path, store: Store) -> dict[str, str]:
    """Return the archives of *run* that *store* got, each with the digest of its checkpoint's manifest."""
    found = _all_memory(run).get(store.address)
    return {str(name): str(digest) for name, digest in found.items()} if isinstance(found, dict) else {}


def _all_memory(run: Path) -> dict[str, Any]:
    try:
        value = json.loads((run / "mirror.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remember(run: Path, store: Store, name: str, digest: str) -> None:
    value = {**_all_memory(run), store.address: {**_memory(run, store), name: digest}}
    write_atomic(run / "mirror.json", json.dumps(value).encode())


def _in_short(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error)
    return text.partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
