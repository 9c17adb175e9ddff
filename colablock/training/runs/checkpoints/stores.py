"""Where a mirror keeps checkpoints: in a folder, such as a mounted drive, or in a repository on the hub."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from colablock._common.decoding import open_regular
from colablock._common.fs import expanded, file_digest
from colablock.environment.target_script import ask_target
from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.training.runs.checkpoints.archives import (
    HASH_SUFFIX,
    CheckpointArchive,
    complete_archives,
    hash_line,
    pack,
)
from colablock.training.scripts import FOLDER as SCRIPTS

__all__ = [
    "HUB",
    "CheckpointStore",
    "FileOperations",
    "FolderStore",
    "HubStore",
    "list_archives",
    "open_store",
]

HUB = "hf://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_BLOCK = 1 << 20  # bytes
_NOTHING_ELSE = os.O_NONBLOCK | os.O_NOFOLLOW


class FileOperations:
    """The file operations of a `FolderStore`.  Tests replace them to inject faults."""

    def create(self, path: Path) -> IO[bytes]:
        # A FIFO or a link that somebody left under this name is an error: opening a FIFO waits for a reader.
        return open(path, "wb", opener=lambda name, flags: os.open(name, flags | _NOTHING_ELSE, 0o666))

    def sync(self, file: IO[bytes]) -> None:
        """Flush *file* to the device and drop it from the page cache: a read then comes from the device."""
        file.flush()
        os.fsync(file.fileno())
        with suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, source: Path, destination: Path) -> None:
        source.replace(destination)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


class CheckpointStore(Protocol):
    """Where archives are kept.  Each method raises OSError or ColablockError if it fails."""

    @property
    def address(self) -> str:
        """The name that identifies the store."""

    def names(self) -> Collection[str]:
        """Return the names of the files in the store; empty if the store does not exist yet."""

    def put(self, checkpoint: Path, name: str, run_files: Mapping[str, bytes]) -> bool:
        """Store *checkpoint* and *run_files* as the archive *name*.

        Returns whether the store has confirmed the content.
        """

    def put_text(self, name: str, text: str) -> None:
        """Store *text* as the file *name*, whole or not at all."""

    def get(self, name: str, into: Path) -> None:
        """Copy the file *name* to *into*.  Raises ValueError as well."""

    def remove(self, names: Sequence[str]) -> None:
        """Delete the files *names*."""


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A folder, often on a mounted drive.  A drive uploads later, so `put` never returns true."""

    folder: Path
    files: FileOperations = field(default_factory=FileOperations)

    @property
    def address(self) -> str:
        return str(self.folder)

    def names(self) -> Collection[str]:
        with suppress(FileNotFoundError):
            return {path.name for path in self.folder.iterdir()}
        return set()

    def put(self, checkpoint: Path, name: str, run_files: Mapping[str, bytes]) -> bool:
        with self._partial(name) as partial:
            self._put(checkpoint, name, run_files, partial)
        return False

    def put_text(self, name: str, text: str) -> None:
        with self._partial(name) as partial:
            self._write(text.encode(), partial, self.folder / name)

    @contextmanager
    def _partial(self, name: str) -> Iterator[Path]:
        """Yield the path of a file to write and to rename to *name*; it is removed if that fails."""
        self.folder.mkdir(exist_ok=True)
        partial = self.folder / f".{name}.partial"
        try:
            yield partial
        except BaseException:
            with suppress(OSError):
                self.files.remove(partial)
            raise

    def _put(self, checkpoint: Path, name: str, run_files: Mapping[str, bytes], partial: Path) -> None:
        with self.files.create(partial) as file:
            digest = pack(checkpoint, run_files, file)
            self.files.sync(file)
        if file_digest(partial) != digest:
            raise Unmet(f"`{self.folder}` returns other data than was written to it")
        self.files.remove(self._hash_file(name))  # it belongs to the archive that is about to be replaced
        self.files.rename(partial, self.folder / name)
        self._write(hash_line(digest, name), partial, self._hash_file(name))

    def _write(self, data: bytes, partial: Path, path: Path) -> None:
        with self.files.create(partial) as file:
            file.write(data)
            self.files.sync(file)
        self.files.rename(partial, path)

    def get(self, name: str, into: Path) -> None:
        with open_regular(self.folder / name) as source, into.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.files.remove(self.folder / name)

    def _hash_file(self, name: str) -> Path:
        return self.folder / f"{name}{HASH_SUFFIX}"


@dataclass(frozen=True, slots=True)
class HubStore:
    """A private repository on the hub, used through the target's own huggingface_hub.

    Deleted files stay in the history of the repository.  The user may squash it.
    """

    repo: str
    python: str
    environ: Mapping[str, str] = field(repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{HUB}{self.repo}"

    def names(self) -> Collection[str]:
        return set(self._ask("names", answers=list[str]))

    def put(self, checkpoint: Path, name: str, run_files: Mapping[str, bytes]) -> bool:
        with tempfile.TemporaryDirectory(prefix=".mirror-", dir=checkpoint.parent) as folder:
            archive, hashes = Path(folder) / "archive", Path(folder) / "hash"
            with archive.open("wb") as file:
                digest = pack(checkpoint, run_files, file)
            hashes.write_bytes(hash_line(digest, name))
            files = {name: str(archive), f"{name}{HASH_SUFFIX}": str(hashes)}
            return bool(self._ask("put", files=files, digest=digest))

    def put_text(self, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "text"
            file.write_text(text, encoding="utf-8")
            self._ask("put", files={name: str(file)}, digest="")

    def get(self, name: str, into: Path) -> None:
        self._ask("get", name=name, into=str(into.absolute()))

    def remove(self, names: Sequence[str]) -> None:
        self._ask("remove", files=list(names))

    def _ask(self, job: str, *, answers: Any = object, **arguments: Any) -> Any:
        return ask_target(
            self.python,
            SCRIPTS / "hub.py",
            {"do": job, "repo": self.repo, **arguments},
            doing=f"reach `{self.address}`",
            environ=self.environ,
            answers=answers,
            secrets={"HF_TOKEN": self.token} if self.token else {},
        )


def open_store(target: str, *, python: str, environ: Mapping[str, str]) -> CheckpointStore:
    """Return the store that *target* names: ``hf://org/name``, or a folder.

    *python* is the interpreter whose huggingface_hub is used, *environ* the variables that it
    gets, and of the secrets among them HF_TOKEN.  The parent of a new folder has to exist: if a
    drive is not mounted, it does not.
    Raises InvalidInput or NotFound for a target that cannot be used.
    """
    if target.startswith(HUB):
        repo = target.removeprefix(HUB).rstrip("/")
        if not _REPOSITORY.fullmatch(repo):
            raise InvalidInput(f"`{target}` is not a repository on the hub", hint=f"Write `{HUB}user/name`")
        return HubStore(repo, python, environ, environ.get("HF_TOKEN"))
    if not target or _SCHEME.match(target):
        hint = f"A mirror is a folder, such as a mounted bucket, or `{HUB}user/name`"
        raise InvalidInput(f"`{target}` is not a mirror", hint=hint)
    folder = expanded(target, "the mirror").absolute()
    if not folder.parent.is_dir():
        message = f"cannot mirror to `{folder}`: `{folder.parent}` does not exist"
        raise NotFound(message, hint="Create that folder, or mount the drive")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InvalidInput(f"cannot mirror to `{folder}`: it is not a folder")
    return FolderStore(folder)


def list_archives(store: CheckpointStore, run_id: str | None = None) -> tuple[CheckpointArchive, ...]:
    """Return the complete archives in *store*, of one run or of all, the newest of each run first."""
    return complete_archives(store.names(), run_id)
