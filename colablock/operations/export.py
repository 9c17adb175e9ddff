"""Export a lock for other installers, with the wheels beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import write_atomic
from colablock._common.scratch import scratch_folder
from colablock.environment.accelerator import Accelerator
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import BadDistribution, FetchFailed, InvalidInput, InvalidMatrix, NotFound
from colablock.index.project_pages import project_files
from colablock.lockfile.export import Format, export_text, files_beside
from colablock.lockfile.package_files import with_all_files
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import read_head
from colablock.lockfile.tool_table import lists_target_files, table_of
from colablock.matrix.model import roots, select_variant
from colablock.network.fetcher import Fetcher
from colablock.operations.lock import lock_matrix, up_to_date_lock, write_wheels
from colablock.operations.session import Session
from colablock.planning.locks import open_lock
from colablock.planning.options import LockOptions

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import Pylock
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.index.candidates import File
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile
    from colablock.planning.options import ApplyOptions

__all__ = ["ExportResult", "export_lock", "lock_of", "matrix_of"]

_WORKERS = 16  # most of them wait for the network


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The exported *text*, and the *wheels* that were copied to the wheelhouse."""

    text: str
    wheels: tuple[Path, ...] = ()


def export_lock(
    session: Session,
    options: ApplyOptions,
    *,
    form: Format = Format.REQUIREMENTS,
    output: Path | None = None,
    wheelhouse: Path | None = None,
    python_version: str | None = None,
    platform: str | None = None,
) -> ExportResult:
    """Return the lock that *options* name in the format *form*, and write it to *output* if given.

    Requirements have the hashes of the files of every platform: those that the
    lock does not list come from its indexes, except offline.  The wheels beside
    the lock are copied to *wheelhouse*; without one the text names their folder.

    Raises InvalidInput for a lock that *form* cannot express, BadDistribution for
    a wheel whose hash is not that of the lock, FetchFailed for an index that
    cannot be read.
    """
    with scratch_folder() as scratch:
        path = lock_of(session, options, scratch, python_version, platform)
        lock = read_lock(path)
        if options.lock is not None and options.name:
            _check_matrix(lock, options.lock, session.matrix(options.name).name)
        _check_sources(session, options, path, lock)
        if form is Format.REQUIREMENTS and lists_target_files(lock):
            lock = _with_all_files(session, options, lock)
        is_listed_only = form is Format.CYCLONEDX and wheelhouse is None  # the lock has the hashes
        beside = {} if is_listed_only else files_beside(lock)
        folder = path.parent
        if not all((folder / name).is_file() for name in beside) and (head := read_head(path)) is not None:
            folder = write_wheels(session, head, scratch)
        wheels = {folder / name: hashes for name, hashes in beside.items()}
        contents = {wheel.name: _checked(wheel, hashes) for wheel, hashes in wheels.items()}
        if wheelhouse is not None:
            folders = {wheelhouse} if wheels else set()
        elif wheels and folder == scratch and form is not Format.CONSTRAINTS:
            raise InvalidInput(
                f"no index has {_listed(contents)}", hint="Pass `--wheelhouse DIR` to have it written there"
            )
        else:
            folders = {wheel.parent for wheel in wheels}
        links = [_from(output, folder) for folder in sorted(folders)]
        source = str(options.lock or options.name)
        moment = _build_time(session.environ)
        text = export_text(lock, form, source=source, find_links=links, moment=moment)
    copied = tuple(wheelhouse / name for name in contents) if wheelhouse is not None else ()
    for destination in copied:
        write_atomic(destination, contents[destination.name])
    if output is not None:
        write_atomic(output, text.encode())
    return ExportResult(text=text, wheels=copied)


def _build_time(environ: Mapping[str, str]) -> datetime | None:
    """Return the time in ``SOURCE_DATE_EPOCH`` (seconds since the epoch), None if it is not set."""
    text = environ.get("SOURCE_DATE_EPOCH", "")
    try:
        return datetime.fromtimestamp(int(text), tz=timezone.utc) if text else None
    except (ValueError, OverflowError, OSError) as error:
        message = f"SOURCE_DATE_EPOCH is {text!r}, which is not a time"
        raise InvalidInput(message, hint="Write the seconds since 1970-01-01, or unset it") from error


def lock_of(
    session: Session, options: ApplyOptions, scratch: Path, python_version: str | None, platform: str | None
) -> LockFile:
    """Return the lock file that *options* name, else the one beside the matrix, else a new one."""
    if options.lock is not None:
        _refuse_choices(options, python_version, platform)
        return options.lock
    if not options.name:
        raise InvalidInput("there is nothing to export", hint="Name a matrix, or a lock with `--lock FILE`")
    wanted = LockOptions(
        python_version=python_version,
        platform=platform,
        output=scratch / "pylock.toml",
        upgrade=True,
        all_files=True,
    )
    existing = up_to_date_lock(session, options, wanted)
    return existing if existing is not None else lock_matrix(session, options, wanted).path


def _check_sources(session: Session, options: ApplyOptions, path: LockFile, lock: Pylock) -> None:
    """Raise InvalidInput if a lock of colablock names files of other sources than its matrix."""
    head, matrix = read_head(path), matrix_of(session, options, lock)
    if head is None or matrix is None:
        return
    open_lock(
        path,
        select_variant(matrix, Accelerator(), head.variant) if head.variant else matrix,
        environment_for(head.python, head.platform),
        settings=session.settings(options, matrix),
        environ=session.environ,
        additions=roots(matrix, sorted(head.with_))[len(matrix.packages) :],
        allow_local=True,
    )


def _with_all_files(session: Session, options: ApplyOptions, lock: Pylock) -> Pylock:
    """Return *lock* with the files of other platforms that its indexes list.

    Offline it is returned as it is, with a note.
    """
    matrix = matrix_of(session, options, lock)
    settings = session.settings(options, matrix)
    if settings.offline:
        table = table_of(lock)
        target = f"those for Python {table.get('python')} on {table.get('platform')}"
        session.reporter.note(f"offline, so the hashes are only those that the lock lists: {target}")
        return lock
    fetcher = Fetcher.for_settings(settings, session.environ)
    for url in (settings.default_index, *(index.url for index in (matrix.indexes if matrix else ()))):
        fetcher.learn_credentials(url)
    session.reporter.stage("Listing the files of other platforms")
    indexes = {package.name: package.index for package in lock.packages if package.index}
    pool = ThreadPoolExecutor(max_workers=_WORKERS)
    try:
        files = dict(
            zip(indexes, pool.map(partial(_project_files, fetcher), indexes, indexes.values()), strict=True)
        )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    linked = [
        str(p.name) for p in lock.packages if p.index is None and any(file.url for file in p.wheels or ())
    ]
    if linked:
        session.reporter.note(
            f"only the hashes that the lock lists, since no index has them: {', '.join(linked)}"
        )
    return with_all_files(lock, files)


def _project_files(fetcher: Fetcher, name: NormalizedName, index: str) -> list[File]:
    try:
        return project_files(fetcher, index, name)
    except FetchFailed as error:
        message = f"the files of {name} for other platforms cannot be listed: {error.message}"
        hint = "`--offline` exports only the hashes that the lock lists"
        hint = f"{error.hint}; {hint}" if error.hint else hint
        raise FetchFailed(message, url=error.url, status=error.status, hint=hint) from error


def matrix_of(session: Session, options: ApplyOptions, lock: Pylock) -> Matrix | None:
    """Return the matrix of *lock*, which names its indexes; None if it cannot be found any more."""
    try:
        return session.matrix(options.name or str(table_of(lock).get("matrix", "")))
    except (NotFound, InvalidMatrix):
        return None


def _refuse_choices(options: ApplyOptions, python_version: str | None, platform: str | None) -> None:
    """Raise InvalidInput for options that select a lock, where *options* name the file."""
    choices = {
        "--platform": platform,
        "--python-version": python_version,
        "--runtime": options.runtime,
        "--variant": options.variant,
        "--with": options.with_,
    }
    given = [option for option, value in choices.items() if value]
    if given:
        message = (
            f"{_listed(given)} cannot be used with `--lock`: the lock `{options.lock}` is for one target"
        )
        raise InvalidInput(message, hint="Omit one of them")


def _check_matrix(lock: Pylock, path: Path, name: str) -> None:
    made_for = table_of(lock).get("matrix", name)
    if made_for != name:
        raise InvalidInput(f"`{path}` is a lock of {made_for}, not of {name}")


def _checked(wheel: Path, hashes: Iterable[str]) -> bytes:
    """Return the bytes of a wheel beside the lock.  Raises BadDistribution unless all *hashes* match."""
    try:
        content = wheel.read_bytes()
    except OSError as error:
        message = f"cannot read `{wheel}`, which the lock names: {error.strerror}"
        raise BadDistribution(message, hint="Put its folder beside the lock, or lock again") from error
    pairs = (text.split(":") for text in hashes)
    if any(hashlib.new(name, content).hexdigest() != value for name, value in pairs):
        raise BadDistribution(f"`{wheel}` is not the wheel that the lock names", hint="Lock again")
    return content


def _from(output: Path | None, folder: Path) -> str:
    """Return the path of *folder* from the folder of *output*, or from the current folder."""
    return os.path.relpath(folder, output.parent if output is not None else Path())


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
