"""Isolated environments, one per lock, built at their final path.

::

    HOME/envs/<lock hash>/                  a virtual environment
    HOME/envs/<lock hash>/colablock.json    its manifest, written last: only a complete environment has one
    HOME/current/<matrix name>              a link to the environment that was applied last
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from colablock._common.decoding import decode, is_plain_name, read_bounded
from colablock._common.fs import (
    atomic_path,
    locked_file,
    machine_error,
    make_private,
    remove_unfinished,
    try_lock_file,
    write_private,
)
from colablock._common.limits import RUN_FILE
from colablock._common.process import quiet_python, run_uv
from colablock._common.reporter import Reporter
from colablock._common.scratch import scratch_folder
from colablock._common.text import count
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.snapshot import installed_versions
from colablock.errors import InvalidInput, NotFound, Refused, Unmet
from colablock.planning.plan import Action, Plan
from colablock.transaction import apply_record as applied
from colablock.transaction.disk_operations import remove_tree
from colablock.transaction.disk_space import check_room, tree_size
from colablock.transaction.staging import environment_layout, install_wheels, room_needed

if TYPE_CHECKING:
    from colablock.network.cache import Cache
    from colablock.network.cache_prune import PruneResult

__all__ = [
    "BuiltEnvironment",
    "Manifest",
    "build_env",
    "discard_env",
    "env_folder",
    "has_envs",
    "is_own_interpreter",
    "list_envs",
    "prune_home",
    "read_env",
    "remove_env",
    "select_env",
    "site_of",
    "sweep_home",
]

_MANIFEST = "colablock.json"
_MORE_ROOM = (
    "`colablock env list` shows the environments, `colablock env remove NAME` removes one, and then"
    " `colablock cache prune` what no environment uses"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The origin and content of an environment.  *python* is its interpreter."""

    lock: str
    matrix: str
    matrix_digest: str
    variant: str | None
    python: str
    python_version: str
    interpreter: str  # the base interpreter
    site: str
    created: str  # UTC, ISO 8601
    installed: Mapping[str, str] = field(default_factory=dict)
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEnvironment:
    """One environment in a home folder, complete or not.

    *manifest* is None for an incomplete one: its build or removal was
    interrupted, or others have changed it.  *size* is in bytes; *shared* of them are
    not freed by a removal, because the cache or others have links to the files.  *current_of* are
    the matrices whose current environment it is.
    """

    lock: str
    folder: Path
    manifest: Manifest | None
    size: int
    shared: int = 0
    current_of: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.manifest is not None

    @property
    def matrix(self) -> str | None:
        """The matrix of the environment, or None if it is not known."""
        return self.manifest.matrix if self.manifest is not None else next(iter(self.current_of), None)


def env_folder(home: Path, lock_hash: str) -> Path:
    """Return the path of the environment for a lock, whether it exists or not."""
    return home / "envs" / lock_hash


def build_env(
    plan: Plan,
    files: Mapping[NormalizedName, Path],
    *,
    lock_hash: str,
    home: Path,
    environ: Mapping[str, str],
    interpreter: str | None = None,
    reporter: Reporter | None = None,
    now: datetime | None = None,
    cache: Cache | None = None,
) -> Path:
    """Return the interpreter of the environment for a lock, which is built unless it is complete.

    It is created with *interpreter* (default: ``plan.python``) and has exactly
    the wheels in *files* of the steps of the plan.  A failure leaves no files.
    """
    folder = env_folder(home, lock_hash)
    with _building(folder):
        existing = read_env(home, lock_hash)
        if existing is not None:
            return Path(existing.python)
        _clear(folder)
        steps = [step for step in plan.steps if step.action is not Action.REMOVE]
        (reporter or Reporter()).stage(f"Building an environment of {count(len(steps), 'distribution')}")
        needed = room_needed(steps, files, folder.parent, cache, environ)
        check_room(needed, folder.parent, hint=_MORE_ROOM)
        try:
            python = interpreter or plan.python
            _fill(folder, plan, files, python, environ=environ, reporter=reporter, cache=cache)
            manifest = _manifest_of(folder, plan, lock_hash, interpreter or plan.python, now)
            write_private(folder / _MANIFEST, f"{json.dumps(asdict(manifest), indent=2)}\n".encode())
        except OSError as error:
            _clear(folder)
            hint = machine_error(error).hint
            raise Unmet(f"the environment `{folder}` could not be built: {error}", hint=hint) from error
        except BaseException:
            _clear(folder)
            raise
        return Path(manifest.python)


def read_env(home: Path, lock_hash: str) -> Manifest | None:
    """Return the manifest of the environment for a lock, or None if it is missing or incomplete."""
    return _read(env_folder(home, lock_hash))


def is_own_interpreter(python: str, home: Path) -> bool:
    """Whether *python* is an interpreter that this user has chosen: no file of a stranger may name another.

    It is the running one, that of an environment that colablock has built in *home*, or that of
    a recorded apply.
    """
    if not Path(python).is_absolute() or "\0" in python:
        return False
    place = _place_of(python)
    if place == _place_of(sys.executable):
        return True
    folder = place.parent.parent
    is_built = folder.parent == Path(os.path.realpath(home / "envs")) and place == Path(_python_of(folder))
    if is_built and (folder / _MANIFEST).is_file():
        return True
    return any(_place_of(one.python) == place for one in applied.load_all(home))


def _place_of(python: str) -> Path:
    """Return the path of an interpreter with the links of its folder resolved, but not its own."""
    path = Path(os.path.normpath(python))
    return Path(os.path.realpath(path.parent), path.name)


def select_env(home: Path, matrix: str, lock_hash: str) -> None:
    """Make the environment for a lock the current one of a matrix, atomically."""
    pointer = _pointer(home, matrix)
    make_private(pointer.parent)
    with atomic_path(pointer) as new:
        new.symlink_to(Path("..", "envs", lock_hash))


def sweep_home(home: Path) -> None:
    """Remove what killed processes have left in *home*: incomplete environments, unfinished files, locks.

    What another process is building stays.  Never raises.
    """
    for folder in (home / "applied", home / "current", home / "runs", *(home / "applied").glob("[!.]*/")):
        remove_unfinished(folder)
    try:
        names = os.listdir(home / "envs")  # noqa: PTH208 - every call looks here
    except OSError:
        return
    for name in sorted(names):
        is_lock = name.startswith(".") and name.endswith(".lock")
        folder = home / "envs" / (name[1 : -len(".lock")] if is_lock else name)
        if not is_lock and (name.startswith(".") or os.path.lexists(folder / _MANIFEST)):
            continue
        lock = folder.with_name(f".{folder.name}.lock")
        held = try_lock_file(lock)
        if held is not None:
            if folder.is_dir() and not os.path.lexists(folder / _MANIFEST):
                remove_tree(folder)
            with suppress(OSError):
                lock.unlink()
            os.close(held)


def prune_home(home: Path, *, before: float) -> PruneResult:
    """Remove what bundles have left in *home* and no apply uses, if it was not used since *before*.

    These are matrices and locks that no record names, and Pythons that no environment links to.  All of
    a matrix that has a record stay: a rollback restores the record before it.  *before* is in seconds
    since the epoch.
    """
    from colablock.network.cache_prune import PruneResult  # noqa: PLC0415 - only `cache` prunes

    result = PruneResult()
    names = [f"{one.name}.toml" for one in applied.load_all(home)]
    for folder in _below(home / applied.BUNDLES):
        if not any((folder / name).exists() for name in names):
            _prune(folder, before, result)
    bases = {base for folder in _folders(home) for base in Path(os.path.realpath(_python_of(folder))).parents}
    for folder in _below(home / applied.PYTHONS):
        if Path(os.path.realpath(folder)) not in bases:
            _prune(folder, before, result)
    return result


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


def _prune(folder: Path, before: float, result: PruneResult) -> None:
    try:
        if folder.lstat().st_mtime >= before:
            return
        total, shared = tree_size(folder)
        shutil.rmtree(folder)
    except OSError:
        result.left += 1
        return
    result.entries += 1
    result.size += total - shared


def list_envs(home: Path) -> tuple[BuiltEnvironment, ...]:
    """Return the environments in *home* by matrix, the oldest first, and incomplete ones last."""
    pointers = _pointers(home)
    built = []
    for folder in _folders(home):
        total, shared = tree_size(folder)
        current_of = tuple(matrix for matrix, lock in pointers.items() if lock == folder.name)
        built.append(
            BuiltEnvironment(
                lock=folder.name,
                folder=folder,
                manifest=_read(folder),
                size=total,
                shared=shared,
                current_of=current_of,
            )
        )
    return tuple(sorted(built, key=_place_in_list))


def has_envs(home: Path) -> bool:
    """Whether *home* has an isolated environment."""
    return bool(_folders(home))


def remove_env(home: Path, name: str) -> BuiltEnvironment:
    """Remove the current environment of the matrix *name*, or the one whose lock hash starts with *name*.

    Returns it.  Raises NotFound if there is none, InvalidInput if several match,
    and Refused if it cannot be removed completely.
    """
    built = list_envs(home)
    found = [one for one in built if name in one.current_of]
    found = found or [one for one in built if name and one.lock.startswith(name)]
    if not found:
        raise NotFound(
            f"there is no isolated environment of `{name}` in `{home}`",
            hint="`colablock env list` shows all of them",
        )
    if len(found) > 1:
        hashes = ", ".join(f"`{one.lock[: len(name) + 12]}`" for one in found)
        raise InvalidInput(f"`{name}` matches {len(found)} lock hashes: {hashes}")
    discard_env(home, found[0].lock)
    return found[0]


def discard_env(home: Path, lock_hash: str) -> None:
    """Remove the environment for a lock: its manifest first, then its records and links, then its files.

    If this is interrupted, the rest counts as incomplete and can be removed
    again.  Raises Refused if a file cannot be removed.
    """
    folder = env_folder(home, lock_hash)
    with _building(folder):
        try:
            (folder / _MANIFEST).unlink(missing_ok=True)
            applied.forget(home, python=_python_of(folder))
            for matrix, lock in _pointers(home).items():
                if lock == lock_hash:
                    _pointer(home, matrix).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
        except OSError as error:
            raise Refused(
                f"`{error.filename or folder}` cannot be removed: {error.strerror}",
                hint=f"The rest of `{folder}` is no longer used. Remove it by hand",
            ) from error


def _folders(home: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in (home / "envs").iterdir()
            if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return []


def _place_in_list(built: BuiltEnvironment) -> tuple[bool, str, str]:
    return not built.is_whole, built.matrix or "", built.manifest.created if built.manifest else built.lock


def _pointer(home: Path, matrix: str) -> Path:
    return home / "current" / quote(matrix, safe="")


def _pointers(home: Path) -> dict[str, str]:
    """Return the lock hash of the current environment of each matrix."""
    links = [path for path in sorted((home / "current").glob("[!.]*")) if path.is_symlink()]
    found = {unquote(link.name): link.readlink().name for link in links}
    return {matrix: lock for matrix, lock in found.items() if is_plain_name(lock)}


def _python_of(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _read(folder: Path) -> Manifest | None:
    try:
        manifest = decode(read_bounded(folder / _MANIFEST, RUN_FILE), Manifest, by_python=True)
        is_here = _place_of(manifest.python) == _place_of(_python_of(folder))
        is_here = is_here and Path(os.path.realpath(folder)) in Path(os.path.realpath(manifest.site)).parents
    except (OSError, ValueError):
        return None
    if manifest.schema != 1 or not is_here or not Path(manifest.python).exists():
        return None  # of another folder, or a link to an interpreter that was removed
    return manifest if installed_versions([manifest.site]) == manifest.installed else None


def _fill(
    folder: Path,
    plan: Plan,
    files: Mapping[NormalizedName, Path],
    interpreter: str,
    *,
    environ: Mapping[str, str],
    reporter: Reporter | None,
    cache: Cache | None,
) -> None:
    _make_venv(folder, plan.matrix, interpreter, environ)
    steps = [step for step in plan.steps if step.action is not Action.REMOVE]
    if not steps:
        return
    layout = environment_layout(folder, site_of(folder), _python_of(folder))
    with tempfile.TemporaryDirectory(prefix=".colablock-", dir=folder) as scratch:
        install_wheels(
            steps, files, layout, scratch=Path(scratch), cache=cache, environ=environ, reporter=reporter
        )
    with suppress(OSError):
        (folder / ".lock").unlink()  # of uv, and everybody could write to it


def _make_venv(folder: Path, prompt: str, interpreter: str, environ: Mapping[str, str]) -> None:
    """Make an environment without distributions.  Raises Unmet.

    Whether the interpreter prints at its start, which uv cannot read, is only asked if uv fails: uv keeps
    what it has read of an interpreter, and needs no process for it.
    """
    doing = f"make an environment with `{interpreter}`"
    words = ["venv", "--no-project", "--prompt", prompt, "--python"]
    try:
        run_uv([*words, interpreter, str(folder)], environ=environ, doing=doing)
    except Unmet:
        with scratch_folder() as outside:
            quiet = quiet_python(interpreter, environ, outside)
            if quiet == interpreter:
                raise
            run_uv([*words, quiet, str(folder)], environ=environ, doing=doing)


def site_of(folder: Path) -> Path:
    """Return the folder of the distributions of an environment."""
    (site,) = folder.glob("lib/python*/site-packages")
    return site


def _manifest_of(
    folder: Path, plan: Plan, lock_hash: str, interpreter: str, now: datetime | None
) -> Manifest:
    site = site_of(folder)
    return Manifest(
        lock=lock_hash,
        matrix=plan.matrix,
        matrix_digest=plan.matrix_digest,
        variant=plan.variant,
        python=_python_of(folder),
        python_version=plan.python_version,
        interpreter=interpreter,
        site=str(site),
        created=(now or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
        installed=dict(sorted(installed_versions([site]).items())),
    )


def _clear(folder: Path) -> None:
    with suppress(FileNotFoundError):
        (folder / _MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    """Lock an environment during its build; another build of it waits, and then finds it complete."""
    make_private(folder.parent)
    with locked_file(folder.with_name(f".{folder.name}.lock")):
        yield
