"""Find the checkpoint to resume from: the newest valid one, for the same config, data and lock."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colablock._common.decoding import decode, is_plain_name, read_bounded
from colablock._common.fs import expanded, file_digest
from colablock._common.limits import RUN_FILE
from colablock._common.reporter import Reporter
from colablock._common.text import some_of
from colablock.errors import InvalidConfig, NotFound, Refused
from colablock.training.runs.config import DataSource, config_from
from colablock.training.runs.folder import MANIFEST, RunRecord

__all__ = [
    "accepted_changes",
    "data_digest",
    "is_sharded",
    "list_checkpoints",
    "move_aside_later",
    "newest_valid",
    "step_of",
    "verify_checkpoint",
]

_SCHEMA = 1
_SHARDS = "pytorch_model_fsdp_0"  # as accelerate names the folder
_WHOLE = "pytorch_model_fsdp.bin"  # and the file with `state_dict_type: FULL_STATE_DICT`
_NAME = re.compile(r"checkpoint-([0-9]{1,15})")
_MAX_FAULTS = 3  # of one checkpoint in a message: they tend to have one cause
_MOVED = 3  # versions in a message
_MAX_VALUE = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class _AnySchema:
    schema: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ManifestFile:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """The manifest of a checkpoint: the files by name."""

    files: Mapping[str, _ManifestFile]


def step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint folder; None for any other name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def list_checkpoints(folder: Path) -> tuple[Path, ...]:
    """Return the checkpoints in *folder*, valid or not, latest step first."""
    found = [(step, path) for path in folder.glob("checkpoint-*") if (step := step_of(path.name)) is not None]
    return tuple(path for _, path in sorted(found, reverse=True) if path.is_dir() and not path.is_symlink())


def verify_checkpoint(path: Path) -> tuple[str, ...]:
    """Return the faults of a checkpoint; empty if it is valid.

    A checkpoint is valid if its manifest matches the sizes and hashes of its files.  The manifest
    is written last, so a checkpoint without one was interrupted.  Files that the manifest does
    not list are ignored.
    """
    file = path / MANIFEST
    try:
        data = read_bounded(file, RUN_FILE)
        schema = decode(data, _AnySchema).schema
        if schema != _SCHEMA:
            return (f"its manifest has schema {schema!r}, and this version reads schema {_SCHEMA}",)
        files = decode(data, _Manifest, by_python=True).files
    except FileNotFoundError:
        return ("it has no manifest, so the save was interrupted",)
    except (OSError, ValueError):
        return (f"its manifest `{MANIFEST}` cannot be read",)
    if not files:
        return ("its manifest lists no files",)
    return tuple(
        fault for name, row in sorted(files.items()) if (fault := _fault(path, name, row)) is not None
    )


def _fault(folder: Path, name: str, row: _ManifestFile) -> str | None:
    path = folder / name
    is_inside = all(map(is_plain_name, name.split("/")))
    if (
        not is_inside
        or Path(os.path.realpath(folder)) not in Path(os.path.realpath(path.parent), "x").parents
    ):
        return f"its manifest lists `{name}`, which is outside the checkpoint"
    try:
        if path.is_symlink() or not path.is_file():
            return f"`{name}` is missing" if not path.exists() else f"`{name}` is not a regular file"
        if (found := path.stat().st_size) != row.size:
            return f"`{name}` has {found:,} bytes instead of {row.size:,}"
        if file_digest(path) != row.sha256:
            return f"`{name}` has changed since it was saved"
    except OSError as error:
        return f"`{name}` cannot be read: {error.strerror}"
    return None


def is_sharded(checkpoint: Path) -> bool:
    """Whether *checkpoint* is of ranks that share one model, by FSDP: in parts, or as axolotl can save it."""
    return (checkpoint / _SHARDS).is_dir() or (checkpoint / _WHOLE).is_file()


def newest_valid(folder: Path, reporter: Reporter) -> Path | None:
    """Return the newest valid checkpoint in *folder*; None if there is none.

    *reporter* is told of each newer checkpoint and its faults.
    """
    damaged: list[tuple[str, tuple[str, ...]]] = []
    valid = None
    for path in list_checkpoints(folder):
        faults = verify_checkpoint(path)
        if not faults:
            valid = path
            break
        damaged.append((path.name, faults))
    then = f"using {valid.name} instead" if valid is not None else "there is no valid checkpoint before it"
    for name, faults in damaged:
        reporter.note(f"{name} is damaged: {some_of(faults, _MAX_FAULTS)}; {then}")
    return valid


def move_aside_later(folder: Path, resumed: Path | None) -> None:
    """Rename the checkpoints in *folder* that are later than *resumed*; all of them if it is None.

    A trainer keeps the checkpoints with the highest steps.  With these in place it would delete
    the new ones.
    """
    for path in list_checkpoints(folder):
        if path == resumed:
            break
        aside = path.with_name(f"unused-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def data_digest(
    sources: Iterable[DataSource], *, folder: Path = Path(), revisions: Mapping[str, str] | None = None
) -> str:
    """Return a SHA-256 (hex) of the data.

    It covers the contents of local files, the names of datasets on the hub, and the order of the
    sources, but not the paths of local files.  Relative paths start in *folder*.  *revisions*
    maps datasets on the hub to their commits, as far as they are known.  Raises NotFound for a
    local file that cannot be read.
    """
    identities = [
        _identity(source, folder / expanded(source.path, "a dataset"), (revisions or {}).get(source.path))
        for source in sources
    ]
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


def _identity(source: DataSource, path: Path, revision: str | None) -> list[object]:
    try:
        if path.is_dir():
            found = _files(path, links=True)
            return ["local", [[name, file.stat().st_size, file_digest(file)] for name, file in found]]
        if path.exists():
            return ["local", path.stat().st_size, file_digest(path)]
    except OSError as error:
        raise NotFound(f"cannot read the data in `{path}`: {error.strerror}") from error
    return ["hub", source.path, source.name, source.split, revision]


def accepted_changes(
    record: RunRecord,
    config_digest: str,
    data_digest: str,
    lock: str,
    *,
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    anyway: bool = False,
    is_done: bool = False,
) -> tuple[str, ...]:
    """Return what has changed since the run of *record* was started, a sentence each.

    *config* is the new config as `config_to` returns it; with it, the sentence lists the keys.  *versions*
    are those of the environment: another lock with the same ones does not matter to a run that *is_done*.
    Raises Refused for a change unless *anyway* is true; one that *is_done* cannot be resumed.
    """
    changes = []
    if record.config_digest != config_digest:
        differing = list(_differences(record.config, config)) if config is not None else []
        changes.append("the config" + (f" ({'; '.join(differing)})" if differing else ""))
    if record.data_digest != data_digest:
        changes.append("the data")
    if record.lock != lock:
        same = bool(versions) and versions == dict(record.versions)
        moved = _moved(record.versions, versions or {})
        if not (is_done and same):
            changes.append("the lock of the environment" + (f" ({some_of(moved, _MOVED)})" if moved else ""))
    if changes and not anyway:
        if is_done:
            raise Refused(
                f"the run `{record.id}` is done, and {_joined(changes)} changed since it was started",
                hint="`--fresh` moves it aside and trains again, another `--output-dir` keeps both",
            )
        raise Refused(
            f"cannot resume the run `{record.id}`: {_joined(changes)} changed since it was started",
            hint="`--resume-anyway` resumes it with the changes, `--fresh` moves it aside and trains again, "
            "another `--output-dir` keeps both",
        )
    return tuple(f"{change} changed since the run was started" for change in changes)


def _moved(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the versions that differ, if both are known."""
    names = sorted({*before, *now}) if before and now else ()
    texts = ((name, before.get(name, "none"), now.get(name, "none")) for name in names)
    return [f"{name}: {old} → {new}" for name, old, new in texts if old != new]


def _joined(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield each key that differs and affects the training: ``learning_rate: 0.0002 → 0.0001``."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and _affects_digest(old, key, new):
            yield f"{key}: {_short_value(old, key)} → {_short_value(new, key)}"


def _affects_digest(old: Mapping[str, Any], key: str, new: Mapping[str, Any]) -> bool:
    """Whether the digest of a config depends on *key*: the digest defines which keys affect the training."""
    changed = {**old, key: new.get(key)}
    try:
        before, after = (config_from(one, passes_through=True).digest() for one in (old, changed))
    except InvalidConfig:
        return True  # the run of another version of colablock
    return before != after


def _short_value(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return "unset"
    text = json.dumps(config[key], ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"


def _files(folder: Path, *, links: bool = False) -> list[tuple[str, Path]]:
    """Return every regular file below *folder* by relative name, sorted; *links* adds links to files."""
    found = [path for path in folder.rglob("*") if path.is_file() and (links or not path.is_symlink())]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)
