"""Models on this machine: the cache of huggingface_hub, and the files of weights in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from colablock._common.decoding import decode, is_plain_name, read_bounded
from colablock._common.limits import RECORD_FILE

__all__ = ["CONFIG", "HubCache", "expand_path", "hub_home", "is_offline", "local_bytes", "weight_files"]

CONFIG = "config.json"

_REF = 4096  # bytes of a file with the name of a commit
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # the values that huggingface_hub accepts
# The files that transformers looks for, in its order.  The index of a file lists its shards.
_SHARDS = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_WEIGHTS = (
    ("model.safetensors", "model", "safetensors"),
    ("pytorch_model.bin", "pytorch_model", "bin"),
)


@dataclass(frozen=True, slots=True)
class HubCache:
    """The cache of huggingface_hub, read-only.  Every call reads the disk."""

    folder: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> HubCache:
        """Return the cache that huggingface_hub uses in a process with the variables *environ*."""
        named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        return cls(Path(expand_path(named, environ)) if named else hub_home(environ) / "hub")

    def snapshot(self, repo: str, revision: str) -> Path | None:
        """Return the folder of the revision's files; None if none is cached."""
        model = self._model(repo)
        commit = revision
        with suppress(OSError, ValueError):
            commit = read_bounded(model / "refs" / revision, _REF).decode().strip()
        found = model / "snapshots" / commit
        return found if is_plain_name(commit) and found.is_dir() else None

    def has_model(self, repo: str, revision: str) -> bool:
        """Whether the config and all weights are cached, so that the model loads without the hub."""
        found = self.snapshot(repo, revision)
        return found is not None and (found / CONFIG).is_file() and _has_weights(found)

    def has_blob(self, repo: str, digest: str) -> bool:
        """Whether the content of a file is cached, for any revision."""
        return bool(digest) and (self._model(repo) / "blobs" / digest).is_file()

    def _model(self, repo: str) -> Path:
        return self.folder / f"models--{repo.replace('/', '--')}"


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the variables forbid huggingface_hub, and so colablock, to use the network."""
    return (environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE", "")).upper() in _TRUE


def hub_home(environ: Mapping[str, str]) -> Path:
    """Return the folder of huggingface_hub: ``HF_HOME``."""
    named = environ.get("HF_HOME")
    if named:
        return Path(expand_path(named, environ))
    caches = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME", "/nonexistent"), ".cache")  # noqa: PTH118
    return Path(expand_path(caches, environ)) / "huggingface"


def expand_path(path: str, environ: Mapping[str, str]) -> str:
    """Return *path* with ``~`` and ``$NAME`` expanded, as huggingface_hub expands its variables."""
    if path == "~" or path.startswith("~/"):
        path = environ.get("HOME", "~") + path[1:]
    return re.sub(
        r"\$(\w+|\{\w+\})", lambda found: environ.get(found[1].strip("{}"), found[0]), path, flags=re.ASCII
    )


def local_bytes(folder: Path) -> int:
    """Return the bytes of the weights in a folder; 0 if it cannot be read."""
    try:
        sizes = {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}
    except OSError:
        return 0
    return sum(sizes[name] for name in weight_files(sizes))


def weight_files(names: Collection[str]) -> list[str]:
    """Return those of *names* that transformers would load as weights.

    Files in folders are for other programs.  If the weights exist in two formats, one is returned.
    """
    for single, stem, ending in _WEIGHTS:
        if single in names:
            return [single]
        shards = [name for name in names if (found := _SHARDS.fullmatch(name)) and found[1] == stem]
        if shards:
            return shards
        others = [name for name in names if name.endswith(f".{ending}") and "/" not in name]
        if others:
            return others
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class _WeightIndex:
    weight_map: Mapping[str, str]


def _has_weights(folder: Path) -> bool:
    """Whether a snapshot has all weights; a broken link does not count."""
    for single, _, _ in _WEIGHTS:
        if (folder / single).is_file():
            return True
        with suppress(OSError, ValueError, AttributeError):
            data = read_bounded(folder / f"{single}.index.json", RECORD_FILE)
            shards = set(decode(data, _WeightIndex).weight_map.values())
            if shards and all(is_plain_name(shard) and (folder / shard).is_file() for shard in shards):
                return True
    return False
