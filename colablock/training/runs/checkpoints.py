"""Which checkpoint a run goes on from: the newest whole one, for the same config, data and lock."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from colablock._common.fs import file_digest
from colablock._common.reporter import Reporter
from colablock._common.text import some_of
from colablock.errors import InvalidConfig, NotFound, Refused
from colablock.training.runs.config import DataSource, config_from
from colablock.training.runs.folder import MANIFEST, RunRecord

__all__ = [
    "accepted_changes",
    "data_digest",
    "list_checkpoints",
    "move_aside_later",
    "newest_valid",
    "step_of",
    "verify_checkpoint",
]

_SCHEMA = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_SHOWN = 3  # faults of one checkpoint: they tend to have one cause
_LONG = 60  # characters of a value in a sentence


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's folder name; None where it is the name of something else."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def list_checkpoints(folder: Path) -> tuple[Path, ...]:
    """Return the checkpoints in *folder*, whole or not, that of the latest step first."""
    found = [(step, path) for path in folder.glob("checkpoint-*") if (step := step_of(path.name)) is not None]
    return tuple(path for _, path in sorted(found, reverse=True) if path.is_dir())


def verify_checkpoint(path: Path) -> tuple[str, ...]:
    """Return what does not hold of the checkpoint, a phrase each; nothing where it is whole.

    Its manifest is written last, so one without was interrupted.  Files that the
    manifest does not name are nobody's concern.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
        files = {str(name): (int(row["size"]), str(row["sha256"])) for name, row in manifest["files"].items()}
    except FileNotFoundError:
        return ("it has no manifest, so its saving was interrupted",)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return (f"its manifest `{MANIFEST}` cannot be read",)
    if manifest.get("schema") != _SCHEMA:
        return (f"its manifest is of schema {manifest.get('schema')!r}, and {_SCHEMA} is known",)
    if not files:
        return ("its manifest names no file",)
    return tuple(
        fault
        for name, (size, digest) in sorted(files.items())
        if (fault := _fault(path, name, size, digest)) is not None
    )


def _fault(folder: Path, name: str, size: int, digest: str) -> str | None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return f"its manifest names `{name}`, which is outside of it"
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file():
            return f"`{name}` is missing" if not path.exists() else f"`{name}` is no file"
        if (found := path.stat().st_size) != size:
            return f"`{name}` has {found:,} bytes, and had {size:,}"
        if file_digest(path) != digest:
            return f"`{name}` has other content than when it was saved"
    except OSError as error:
        return f"`{name}` cannot be read: {error.strerror}"
    return None


def newest_valid(folder: Path, reporter: Reporter) -> Path | None:
    """Return the newest checkpoint in *folder* that is whole; None where none is.

    *reporter* is told of each newer one, and why it is passed over.
    """
    passed: list[tuple[str, tuple[str, ...]]] = []
    taken = None
    for path in list_checkpoints(folder):
        faults = verify_checkpoint(path)
        if not faults:
            taken = path
            break
        passed.append((path.name, faults))
    then = f"{taken.name} is taken" if taken is not None else "there is no whole one before it"
    for name, faults in passed:
        reporter.note(f"{name} is damaged: {some_of(faults, _SHOWN)}; {then}")
    return taken


def move_aside_later(folder: Path, taken: Path | None) -> None:
    """Give the checkpoints in *folder* that are later than *taken* another name; for None, all of them.

    A trainer keeps those of the highest steps: it would throw away the ones that it makes.
    """
    for path in list_checkpoints(folder):
        if path == taken:
            break
        aside = path.with_name(f"unused-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def data_digest(
    sources: Iterable[DataSource], *, folder: Path = Path(), revisions: Mapping[str, str] | None = None
) -> str:
    """Return a SHA-256 (hex) of the data: of the contents of what is local, of the names of what is not.

    Relative paths start in *folder*.  *revisions* tells the commit of each
    dataset of the hub, where it is known.  Where a file lies does not count, the
    order does.  Raises NotFound for a local file that cannot be read.
    """
    facts = [
        _facts_of(source, folder / Path(source.path).expanduser(), (revisions or {}).get(source.path))
        for source in sources
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _facts_of(source: DataSource, path: Path, revision: str | None) -> list[object]:
    try:
        if path.is_dir():
            found = _files(path, links=True)
            return ["local", [[name, file.stat().st_size, file_digest(file)] for name, file in found]]
        if path.exists():
            return ["local", path.stat().st_size, file_digest(path)]
    except OSError as error:
        raise NotFound(f"the data in `{path}` cannot be read: {error.strerror}") from error
    return ["hub", source.path, source.name, source.split, revision]


def accepted_changes(
    record: RunRecord,
    config_digest: str,
    data_digest: str,
    lock: str,
    *,
    config: Mapping[str, Any] | None = None,
    anyway: bool = False,
) -> tuple[str, ...]:
    """Return what has changed since the run of *record* was started, a sentence each; mostly nothing.

    *config* is as `config_to` gives it, and tells what differs.  Raises Refused
    where something has changed, unless *anyway*.
    """
    changes = []
    if record.config_digest != config_digest:
        differing = list(_differences(record.config, config)) if config is not None else []
        changes.append("the config" + (f" ({'; '.join(differing)})" if differing else ""))
    if record.data_digest != data_digest:
        changes.append("the data")
    if record.lock != lock:
        changes.append("the lock of the environment")
    if changes and not anyway:
        raise Refused(
            f"the run `{record.id}` cannot go on as it was: {_all_of(changes)} changed since",
            hint="`--resume-anyway` (`resume_anyway=True`) goes on with what there is now, "
            "and another `output_dir` starts anew",
        )
    return tuple(f"{change} changed since" for change in changes)


def _all_of(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield each key that decides what is learnt and differs: ``learning_rate: 0.0002 → 0.0001``."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and _counts(old, key, new):
            yield f"{key}: {_in_short(old, key)} → {_in_short(new, key)}"


def _counts(old: Mapping[str, Any], key: str, new: Mapping[str, Any]) -> bool:
    """Whether the digest of a config depends on *key*: it alone says which keys matter."""
    changed = {**old, key: new.get(key)}
    try:
        before, after = (config_from(one, passes_through=True).digest() for one in (old, changed))
    except InvalidConfig:
        return True  # a run of another version of ours
    return before != after


def _in_short(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return "unset"
    text = json.dumps(config[key], ensure_ascii=False, default=str)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


def _files(folder: Path, *, links: bool = False) -> list[tuple[str, Path]]:
    """Return every regular file below *folder* by its relative name, sorted; *links* to files, too."""
    found = [path for path in folder.rglob("*") if path.is_file() and (links or not path.is_symlink())]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)
