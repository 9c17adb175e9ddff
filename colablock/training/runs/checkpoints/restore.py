"""Restore a run from its mirrored checkpoints."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from colablock._common.decoding import read_end
from colablock._common.fs import file_digest
from colablock._common.reporter import Reporter
from colablock.errors import ColablockError, NotFound, Unmet
from colablock.training.runs.checkpoints.archives import (
    HASH_SUFFIX,
    RUN_FILES,
    CheckpointArchive,
    complete_archives,
    newest_name,
    unpack,
)
from colablock.training.runs.checkpoints.finder import verify_checkpoint
from colablock.training.runs.checkpoints.mirror import (
    first_line,
    manifest_digest,
    mirrored_archives,
    record_mirrored,
)
from colablock.training.runs.checkpoints.stores import CheckpointStore, list_archives
from colablock.training.runs.folder import RunFolder, is_mark

__all__ = ["restore_checkpoint"]

_HASH_FILE = 4096  # bytes: a hash and the name of a file


def restore_checkpoint(
    store: CheckpointStore, run_id: str, folder: Path, *, reporter: Reporter, only_own: bool = False
) -> Path:
    """Restore the newest valid mirrored checkpoint of a run to *folder*, and return its path.

    An archive is valid if its hash matches the hash file, and the manifest of its checkpoint
    matches the files.  If the newest is not, the one before is restored, and *reporter* is
    told why.  A valid checkpoint that *folder* already has is kept.  The record and the metrics
    of the run are restored if *folder* has none.  Of several runs with that id, it is the one that was
    started last or, with *only_own*, the one in *folder*.  Raises NotFound if the store has no checkpoint
    of the run, Unmet if it has no valid one.
    """
    archives = _own_archives(store, run_id, folder) if only_own else _newest_archives(store, run_id)
    if not archives:
        others = ", ".join(f"`{name}`" for name in sorted({one.run_id for one in list_archives(store)}))
        hint = f"It has checkpoints of {others}" if others else None
        raise NotFound(f"the mirror has no checkpoint of the run `{run_id}`", hint=hint)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".restore-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    reasons = []
    for at, archive in enumerate(archives):
        found = _try(store, archive, folder)
        if isinstance(found, Path):
            return found
        reasons.append(f"`{archive.name}`: {found}")
        if at + 1 < len(archives):
            reporter.note(
                f"the mirrored {archive.checkpoint} cannot be used: {found};"
                f" trying {archives[at + 1].checkpoint}"
            )
    raise Unmet(
        "\n  ".join(["no mirrored checkpoint can be used", *reasons]), hint="`--fresh` starts a new run"
    )


def _own_archives(store: CheckpointStore, run_id: str, folder: Path) -> tuple[CheckpointArchive, ...]:
    record = RunFolder(folder).record()
    mark = record.mark if record is not None else ""
    archives = complete_archives(store.names(), run_id, mark)
    if mark:
        return archives
    made = mirrored_archives(folder, store)  # an earlier version wrote no marks
    return tuple(one for one in archives if one.name in made)


def _newest_archives(store: CheckpointStore, run_id: str) -> tuple[CheckpointArchive, ...]:
    """Return the archives of the run that was started last; those of all if the store does not tell."""
    names, name = store.names(), newest_name(run_id)
    if name not in names:
        return complete_archives(names, run_id)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "newest"
        try:
            store.get(name, file)
        except (OSError, ValueError) as error:
            raise Unmet(f"the mirror cannot return `{name}`: {first_line(error)}") from error
        mark = read_end(file, _HASH_FILE).decode("ascii", "replace").strip()
    # A drive that was cut off may have kept the name of the file only.
    return complete_archives(names, run_id, mark if is_mark(mark) else None)


def _try(store: CheckpointStore, archive: CheckpointArchive, folder: Path) -> Path | str:
    """Return the path of the restored checkpoint, or why *archive* cannot be used."""
    try:
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder) as scratch:
            return _restore(store, archive, folder, Path(scratch))
    except (OSError, ValueError, tarfile.TarError, ColablockError) as error:
        return first_line(error)


def _restore(store: CheckpointStore, archive: CheckpointArchive, folder: Path, scratch: Path) -> Path:
    destination = folder / archive.checkpoint
    if destination.is_dir() and not verify_checkpoint(destination):
        return destination
    packed, hashes, unpacked = scratch / "archive", scratch / "hash", scratch / "unpacked"
    store.get(f"{archive.name}{HASH_SUFFIX}", hashes)
    store.get(archive.name, packed)
    expected = read_end(hashes, _HASH_FILE).decode("ascii", "replace").partition(" ")[0]
    if file_digest(packed) != expected:
        raise Unmet("its SHA-256 differs from the one in its hash file")
    unpack(packed, unpacked, archive.checkpoint)
    found = unpacked / archive.checkpoint
    faults = verify_checkpoint(found)
    if faults:
        raise Unmet(faults[0])
    if destination.is_dir():
        destination.replace(scratch / "damaged")
    found.replace(destination)
    _restore_run_files(unpacked, folder)
    digest = manifest_digest(destination)
    if digest is not None:
        record_mirrored(folder, store, archive.name, digest)
    return destination


def _restore_run_files(unpacked: Path, folder: Path) -> None:
    for name in RUN_FILES:
        if (unpacked / name).is_file() and not (folder / name).exists():
            (unpacked / name).replace(folder / name)
            if name == RunFolder(folder).record_file.name:
                _clear_process(RunFolder(folder))


def _clear_process(run: RunFolder) -> None:
    """Clear the process id in the record: it is that of a process on another machine."""
    record = run.record()
    if record is not None:
        run.write_record(replace(record, process=0, process_started=0))
