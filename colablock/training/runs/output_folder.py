"""The output folder of a run: which one it is, its lock, the id of its run, and how it is moved aside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from colablock._common.decoding import is_plain_name
from colablock._common.fs import expanded, flock, make_private, unusable
from colablock._common.reporter import Reporter
from colablock.errors import InvalidInput, Refused
from colablock.training.runs.config import TrainConfig
from colablock.training.runs.folder import RunFolder, check_owner, list_runs, register, unregister
from colablock.training.runs.launch import ranks_of

__all__ = [
    "default_folder",
    "folder_of",
    "lock_run_folder",
    "mirrored_id",
    "set_aside",
    "unused_run_id",
    "with_own_folder",
]


def _checked_folder(folder: Path) -> Path:
    """Return *folder* if a run can have its name.  Raises InvalidInput."""
    if not is_plain_name(folder.name):
        raise InvalidInput(f"`{folder}` cannot be the folder of a run", hint="Set another `--output-dir`")
    return folder


def default_folder(config: TrainConfig) -> Path:
    """Return the output folder of a run.

    Without `output_dir` the name comes from model and data, so that the same call finds the run again.
    """
    if config.output_dir:
        return _checked_folder(expanded(config.output_dir, "output_dir").absolute())
    model = Path(config.base_model.rstrip("/")).name
    data = Path(config.datasets[0].path.rstrip("/")).name.partition(".")[0]
    return _checked_folder((Path("outputs") / f"{model}-{data}").absolute())


def with_own_folder(
    config: TrainConfig, launch_arguments: tuple[str, ...], home: Path, reporter: Reporter | None = None
) -> TrainConfig:
    """Return *config* with an output folder that is called as its run.

    It has a number if a run in another folder is registered in *home* under the name that comes from
    model and data; *reporter* is told of a new one.  On several hosts the name must not depend on what
    else each has run.
    """
    if config.output_dir or ranks_of(1, launch_arguments).hosts > 1:
        return config
    first = folder = default_folder(config)
    known, number = dict(list_runs(home)), 1
    while RunFolder(folder).record() is None and _is_of_another(known, folder):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    if reporter is not None and folder != first and RunFolder(folder).record() is None:
        there = known[first.name].path
        reporter.note(f"the run is called `{folder.name}`: `{first.name}` is the run in `{there}`")
    return config if folder == first else replace(config, output_dir=str(folder))


def folder_of(config: TrainConfig, launch_arguments: tuple[str, ...]) -> Path:
    """Return the folder of a run on this host, which *launch_arguments* name.

    That of host 0 is the output folder.  Hosts may share a file system, so host 1 writes to ``host-1/NAME``
    beside it.
    """
    folder, host = default_folder(config), ranks_of(1, launch_arguments).host
    return folder.parent / f"host-{host}" / folder.name if host else folder


def unused_run_id(home: Path, folder: Path, reporter: Reporter | None = None, *, host: int = 0) -> str:
    """Return the id of the run in *folder*: the folder's name, with a number if another run has that id.

    After the first, a *host* has its number in the id, since hosts may share *home*.  A new run that is
    called otherwise is noted.
    """
    known = dict(list_runs(home))
    first = name = f"{folder.name}-host-{host}" if host else folder.name
    number = 1
    while _is_of_another(known, folder, name):
        number += 1
        name = f"{first}-{number}"
    if reporter is not None and name != first and RunFolder(folder).record() is None:
        there = known[first].path
        reporter.note(f"the run in `{folder}` is called `{name}`: `{first}` is the run in `{there}`")
    return name


def mirrored_id(home: Path, config: TrainConfig, run_id: str, host: int) -> str:
    """Return the id that the mirror has the checkpoints of a run under, which is that of host 0.

    *run_id* is the id on this *host*.  If *home* does not know the run of host 0, it is called as its folder.
    """
    first = default_folder(config)
    known = (name for name, folder in list_runs(home) if folder.path == first)
    return next(known, first.name) if host else run_id


def _is_of_another(known: Mapping[str, RunFolder], folder: Path, name: str | None = None) -> bool:
    """Whether the id *name*, by default that of *folder*, is one of *known* in another folder."""
    found = known.get(name or folder.name)
    return found is not None and found.path != folder and found.path.exists()


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Lock the folder of a run while it is started.  Raises Refused if another call has locked it.

    It is created; if nothing is written there, it is removed again with the created ones above it.
    """
    created = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        check_owner(make_private(folder))
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise unusable(error, f"cannot use the output folder `{folder}`: {error.strerror}") from error
    try:
        with suppress(OSError):  # file systems without locks, such as NFS for folders
            if not flock(descriptor, wait=False):
                created = []  # the folder is that of the other call
                raise Refused(f"another call is starting a run in `{folder}`")
        yield
    finally:
        with suppress(OSError):  # it has files
            for one in created:
                one.rmdir()
        os.close(descriptor)


@contextmanager
def set_aside(folder: Path, home: Path, reporter: Reporter, *, host: int = 0) -> Iterator[None]:
    """Rename and lock *folder*, so that a new run of *host* can begin there; undo that if none begins.

    The run that was there is registered in *home* under its new name.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        yield
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    name = unused_run_id(home, aside, host=host)
    try:
        if RunFolder(aside).record() is not None:
            register(home, name, aside)
        with lock_run_folder(folder):  # the folder that was locked has been renamed
            yield
    finally:
        if RunFolder(folder).record_file.exists():
            reporter.note(f"moved the contents of `{folder}` to `{aside}`")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # it is still registered where it is
                aside.rename(folder)
                unregister(home, name)
