"""Export a lock for other installers and other machines, with the wheels beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import expanded, write_atomic
from colablock._common.scratch import scratch_folder
from colablock._common.urls import basename, local_path
from colablock.deployment.dockerfile import dockerfile_text
from colablock.deployment.skypilot import skypilot_text
from colablock.deployment.slurm_job import BatchJob, batch_script
from colablock.deployment.target import Deployment, checked_name, installable, target_of
from colablock.environment.accelerator import Accelerator
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import BadDistribution, FetchFailed, InvalidInput, InvalidMatrix, NotFound
from colablock.index.project_pages import project_files
from colablock.lockfile.export import (
    Format,
    checked_line,
    export_text,
    files_beside,
    header_lines,
    target_text,
)
from colablock.lockfile.package_files import with_all_files
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import read_head
from colablock.lockfile.tool_table import lists_target_files, table_of
from colablock.matrix.catalog import is_shipped
from colablock.matrix.model import roots, select_variant
from colablock.network.fetcher import Fetcher
from colablock.operations.bundle import matrices_of, matrix_sources
from colablock.operations.lock import lock_matrix, nothing_installed, up_to_date_lock
from colablock.operations.plan import solver_for
from colablock.operations.session import Session
from colablock.planning.locks import open_lock
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.runtimes.catalog import load_runtime

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import Pylock
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.index.candidates import File
    from colablock.lockfile.store import LockHead
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile

__all__ = ["FORMATS", "ExportResult", "export_lock", "lock_of", "matrix_of"]

FORMATS: dict[str, Format | Deployment] = {form.value: form for form in (*Format, *Deployment)}
"""The formats by their names."""

_WORKERS = 16  # most of them wait for the network


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The exported *text*, and the *files* that were written for it: wheels, a lock, a matrix.

    *target* names matrix, variant, Python and platform; None for a lock of another tool.
    """

    text: str
    target: str | None = None
    files: tuple[Path, ...] = ()


def export_lock(
    session: Session,
    options: ApplyOptions,
    *,
    form: Format | Deployment = Format.REQUIREMENTS,
    output: Path | None = None,
    wheelhouse: Path | None = None,
    python_version: str | None = None,
    platform: str | None = None,
) -> ExportResult:
    """Return the lock that *options* name in the format *form*, and write it to *output* if given.

    Requirements have the hashes of the files of every platform: those that the
    lock does not list come from its indexes, except offline.  The wheels beside
    the lock are copied to *wheelhouse*; without one the text names their folder.
    A SkyPilot task and a batch script name the lock; it is copied beside them,
    and a matrix that is not shipped as well.

    Raises InvalidInput for a lock that *form* cannot express, BadDistribution for
    a wheel whose hash is not that of the lock, FetchFailed for an index that
    cannot be read.
    """
    with scratch_folder() as scratch:
        all_files = not isinstance(form, Deployment)
        path = lock_of(session, options, scratch, python_version, platform, all_files=all_files)
        lock = read_lock(path)
        if options.lock is not None and options.name:
            _check_matrix(lock, options.lock, session.matrix(options.name).name)
        _check_sources(session, options, path, lock)
        found = _Exported(session=session, options=options, path=path, lock=lock, scratch=scratch)
        if form in (Deployment.SKYPILOT, Deployment.SLURM):
            if wheelhouse is not None:
                message = f"`--wheelhouse` cannot be used with `--format {form.value}`"
                raise InvalidInput(message, hint="The wheels of the lock are copied beside the file")
            text, files = _job_text(found, form, output or Path(form.value))
            if output is None and files:
                names = _listed(str(file) for file in files)
                hint = "Pass `-o FILE` to have all written to its folder"
                raise InvalidInput(f"the file needs {names} beside it", hint=hint)
            _check_not_replaced(files)
        else:
            text, files = _pinned_text(found, form, output, wheelhouse)
    for destination, content in files.items():
        write_atomic(destination, content)
    if output is not None:
        write_atomic(output, text.encode())
    return ExportResult(text=text, target=target_text(lock), files=tuple(files))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exported:
    """The *lock* that is exported, read from *path*, which may be in the folder *scratch*."""

    session: Session
    options: ApplyOptions
    path: LockFile
    lock: Pylock
    scratch: Path

    @property
    def source(self) -> str:
        """What the user calls it."""
        return str(self.options.lock or self.options.name)

    def wheels(self) -> dict[Path, bytes]:
        """Return the wheels beside the lock with their content; they are made again if one is missing."""
        beside, folder = files_beside(self.lock), self.path.parent
        is_whole = all((folder / name).is_file() for name in beside)
        if not is_whole and (head := read_head(self.path)) is not None:
            folder = _write_wheels(self.session, self.options.name or head.matrix, head, self.scratch)
        return {folder / name: _checked(folder / name, hashes) for name, hashes in beside.items()}


def _write_wheels(session: Session, name: str, head: LockHead, into: Path) -> Path:
    """Make the rebuilt wheels that a lock names and write them below *into*, as beside the lock; return it.

    Raises NoSolution where the matrix has changed since it was locked,
    FetchFailed, BadDistribution.
    """
    options = ApplyOptions(name=session.matrix(name).source, variant=head.variant, use_locks=False)
    if head.runtime is not None:
        runtime = load_runtime(head.runtime, environ=session.environ)
        solver = replace(solver_for(session, options, runtime), lock=head.path, lock_store=None)
        planned = solver.in_kernel("exported")
        resolution, preparer = planned.resolution, planned.preparer
    else:
        solver = replace(solver_for(session, options, nothing_installed()), lock=head.path, lock_store=None)
        environment = environment_for(head.python, head.platform)
        resolution, preparer = solver.from_nothing(environment, solver.kernel.python)
    preparer.wheels_beside(resolution, into / head.path.name)
    return into


def _pinned_text(
    found: _Exported, form: Format | Deployment, output: Path | None, wheelhouse: Path | None
) -> tuple[str, dict[Path, bytes]]:
    """Return the pins of a lock in the format *form*, and the wheels for *wheelhouse*."""
    if form is Deployment.DOCKERFILE:
        found = replace(found, lock=installable(found.lock, target_of(found.lock)))
    if form is Format.REQUIREMENTS and lists_target_files(found.lock):
        found = replace(found, lock=_with_all_files(found.session, found.options, found.lock))
    is_listed_only = form is Format.CYCLONEDX and wheelhouse is None  # the lock has the hashes
    wheels = {} if is_listed_only else found.wheels()
    if wheelhouse is not None:
        folders = {wheelhouse} if wheels else set()
    elif any(wheel.is_relative_to(found.scratch) for wheel in wheels) and form is not Format.CONSTRAINTS:
        raise InvalidInput(
            f"no index has {_listed(wheel.name for wheel in wheels)}",
            hint="Pass `--wheelhouse DIR` to have it written there",
        )
    else:
        folders = {wheel.parent for wheel in wheels}
    links = [checked_name(_from(output, folder)) for folder in sorted(folders)]
    files = {wheelhouse / wheel.name: content for wheel, content in wheels.items()} if wheelhouse else {}
    called = _called(found.options.name, output)
    if isinstance(form, Deployment):
        _check_context(links)
        return dockerfile_text(found.lock, source=found.source, matrix=called, wheels=links), files
    moment = _build_time(found.session.environ)
    text = export_text(found.lock, form, source=found.source, matrix=called, find_links=links, moment=moment)
    return text, files


def _check_context(folders: Iterable[str]) -> None:
    """Raise InvalidInput for wheels outside the folder of a Dockerfile: an image is built from that alone."""
    outside = [folder for folder in folders if not _stays_below(folder)]
    if outside:
        raise InvalidInput(
            f"an image cannot be built with the wheels in {_listed(outside)}: they are outside of its folder",
            hint="Pass `--wheelhouse DIR` with a folder beside the Dockerfile",
        )


def _job_text(found: _Exported, form: Format | Deployment, output: Path) -> tuple[str, dict[Path, bytes]]:
    """Return the task or batch script *output*, and the files that it needs in its folder."""
    lock, path, folder = found.lock, found.path, output.parent
    target = target_of(lock)
    files: dict[Path, bytes] = {}
    if isinstance(path, Path) and not path.is_relative_to(found.scratch) and _is_below(path, folder):
        lock_file = _from(output, path)
    else:
        lock_file = f"pylock.{target.matrix.replace('.', '-')}.toml"
        names = list(files_beside(lock))
        if not all(map(_stays_below, names)):
            message = f"`{found.source}` names wheels outside of its folder"
            raise InvalidInput(message, hint="Lock again")
        files = {folder / name: made for name, made in zip(names, found.wheels().values(), strict=True)}
        files[folder / lock_file] = path.read_bytes()
    _check_local(form, lock)
    matrix, sources = _matrix_for(found.session, found.options.name or target.matrix, output)
    files |= sources
    lines = header_lines(lock, (), form.value, called=_called(found.options.name, output))
    header = [checked_line(line, found.source) for line in lines]
    if form is Deployment.SKYPILOT:
        return skypilot_text(target, header, matrix=matrix, lock=lock_file, file=_from(output, output)), files
    name, chosen = target.matrix, target.choices
    job = BatchJob(
        name=name,
        command=["colablock", "train", matrix, "--config", "train.yaml", "--output-dir", f"outputs/{name}"],
        arguments=["--launcher", "slurm"],
        run=f"outputs/{name}",
        log="%x-%j.log",
        needs_card=target.needs_card,
        setup=[["colablock", "apply", matrix, "--lock", lock_file, *chosen, "--into", "env", "--yes"]],
        header=[
            *header[:-1],
            "# Put it beside train.yaml, the training config, and submit it there.",
            "# The command colablock has to be on the PATH of the nodes.",
        ],
    )
    return batch_script(job), files


def _called(name: str, output: Path | None) -> str | None:
    """Return how a file names the matrix that is called *name*: not by a path of this machine."""
    return _from(output, expanded(name, "the matrix")) if name.endswith(".toml") else name or None


def _matrix_for(session: Session, name: str, output: Path) -> tuple[str, dict[Path, bytes]]:
    """Return how a command in the folder of *output* names the matrix, and the files that it needs there."""
    matrix = session.matrix(name)
    if is_shipped(matrix):
        return matrix.name, {}
    folder = output.parent
    if all(is_shipped(one) or _is_below(Path(one.source), folder) for one in matrices_of(session, name)):
        return f"./{_from(output, Path(matrix.source)).removeprefix('./')}", {}
    sources = matrix_sources(session, name)
    return f"./{matrix.name}.toml", {folder / file: made.content for file, made in sources.items()}


def _check_not_replaced(files: Mapping[Path, bytes]) -> None:
    """Raise InvalidInput if a file that goes beside a script is there with another content."""
    other = [path.name for path, content in files.items() if path.exists() and path.read_bytes() != content]
    if other:
        raise InvalidInput(
            f"the export would replace {_listed(other)} in the folder of its file",
            hint="Move it away, or name a file in another folder with `-o`",
        )


def _check_local(form: Format | Deployment, lock: Pylock) -> None:
    """Raise InvalidInput for files of this machine: a machine of SkyPilot does not have them."""
    urls = [wheel.url for package in lock.packages for wheel in package.wheels or ()]
    urls += [package.archive.url for package in lock.packages if package.archive is not None]
    local = [basename(url) for url in urls if url and local_path(url) is not None]
    if local and form is Deployment.SKYPILOT:
        raise InvalidInput(
            f"the lock has files of this machine, which other machines do not have: {_listed(local)}",
            hint="Lock with an index that has them",
        )


def _stays_below(path: str) -> bool:
    return not Path(path).is_absolute() and os.pardir not in Path(path).parts


def _is_below(path: Path, folder: Path) -> bool:
    return _stays_below(os.path.relpath(path, folder))  # `absolute` keeps the `..` of a path


def _build_time(environ: Mapping[str, str]) -> datetime | None:
    """Return the time in ``SOURCE_DATE_EPOCH`` (seconds since the epoch), None if it is not set."""
    text = environ.get("SOURCE_DATE_EPOCH", "")
    try:
        return datetime.fromtimestamp(int(text), tz=timezone.utc) if text else None
    except (ValueError, OverflowError, OSError) as error:
        message = f"SOURCE_DATE_EPOCH is {text!r}, which is not a time"
        raise InvalidInput(message, hint="Write the seconds since 1970-01-01, or unset it") from error


def lock_of(
    session: Session,
    options: ApplyOptions,
    scratch: Path,
    python_version: str | None,
    platform: str | None,
    *,
    all_files: bool = True,
) -> LockFile:
    """Return the lock file that *options* name, else the one beside the matrix, else a new one.

    A new one lists the files of every platform, or without *all_files* those of its target.
    """
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
        all_files=all_files,
    )
    existing = up_to_date_lock(session, options, wanted)
    return existing if existing is not None else lock_matrix(session, options, wanted).path


def _check_sources(session: Session, options: ApplyOptions, path: LockFile, lock: Pylock) -> None:
    """Raise InvalidInput if a lock of colablock names files of other sources than its matrix."""
    head, matrix = read_head(path), matrix_of(session, options, lock)
    if head is None or matrix is None:
        return
    matrix = select_variant(matrix, Accelerator(), head.variant) if head.variant else matrix
    if head.matrix_digest != matrix.digest:  # one that was not named is made again
        session.reporter.note(f"the lock `{path.name}` is stale: {matrix.name} has changed since")
    open_lock(
        path,
        matrix,
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
    """Return the path of *folder* from the folder of *output*, or from the current folder; no option."""
    path = os.path.relpath(folder, output.parent if output is not None else Path())
    return f"./{path}" if path.startswith("-") else path


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
