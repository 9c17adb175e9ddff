"""Make a bundle of a matrix, its lock and its files.  `session.from_bundle` uses one."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from colablock._common.fs import NEW, file_digest, free_space, make_private
from colablock._common.scratch import scratch_folder
from colablock._common.text import command_line, count, option_words, size_text
from colablock._vendor import tomli_w
from colablock._vendor.packaging.utils import parse_wheel_filename
from colablock.bundles.manifest import FILES, FORMAT, PYTHON, BundleManifest
from colablock.bundles.reader import Bundle
from colablock.bundles.writer import Source, write_bundle
from colablock.environment.interpreters import standalone_interpreter
from colablock.environment.markers_and_tags import environment_for, platform_family
from colablock.environment.notebook_host import Host
from colablock.errors import BadDistribution, InvalidInput, Refused
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.store import LockHead, read_head
from colablock.lockfile.targets import lock_file_name
from colablock.lockfile.tool_table import DELTA
from colablock.matrix.model import select_variant
from colablock.network.fetcher import Fetcher
from colablock.operations.lock import (
    lock_matrix,
    lock_state,
    lock_with_links,
    nothing_installed,
    up_to_date_lock,
)
from colablock.operations.plan import solver_for
from colablock.operations.session import Session, comparable
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.runtimes.catalog import load_runtime, runtime_of
from colablock.transaction.history import read_history
from colablock.unpacking.interpreter import pack_interpreter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile
    from colablock.planning.plan import Artifact
    from colablock.planning.planned import PlannedChange

__all__ = ["BundleResult", "make_bundle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleResult:
    """A bundle that was written, or was there already with the same members."""

    path: Path
    manifest: BundleManifest
    is_changed: bool

    @property
    def summary(self) -> str:
        """What the bundle has, and what it is for, in one line."""
        made = self.manifest
        files = f"{count(len(made.members), 'file')}, {size_text(made.size)}"
        return f"{made.matrix} for {made.runtime or f'Python {made.python} on {made.platform}'} ({files})"

    def facts(self) -> dict[str, object]:
        """Return the result as plain values, for JSON."""
        made = self.manifest
        return {
            "bundle": str(self.path),
            "changed": self.is_changed,
            "matrix": made.matrix,
            "kind": made.kind,
            "python": made.python,
            "platform": made.platform,
            "runtime": made.runtime,
            "python_file": made.python_file,
            "variant": made.variant,
            "with": list(made.with_),
            "size": made.size,
            "files": [{"path": one.path, "sha256": one.sha256, "size": one.size} for one in made.members],
        }


def make_bundle(
    session: Session,
    options: ApplyOptions,
    output: Path,
    *,
    python_version: str | None = None,
    platform: str | None = None,
    with_python: bool = False,
) -> BundleResult:
    """Write the bundle *output* with the matrix of *options*, its lock, and the files that it installs.

    The lock is ``options.lock``, else it is for ``options.runtime``, for *python_version* and *platform*,
    for the runtime of this notebook, or for this Python.  With *with_python* a standalone Python of
    that version is packed, too, which uv has or fetches.  Files that were fetched before come from the
    cache, also those of an interrupted call.  Nothing is written if *output* has the same members.

    Raises NoSolution, FetchFailed, Refused (exit 1), InvalidInput (exit 2).
    """
    if output.is_dir():
        raise InvalidInput(f"`{output}` cannot be written: it is a folder", hint="Name a file")
    sources = matrix_sources(session, options.name)
    with scratch_folder() as scratch:
        lock, state = _lock_for(session, options, scratch, python_version, platform)
        head = read_head(lock)
        if head is None:
            message = f"`{lock.name}` is not a lock made by colablock"
            raise InvalidInput(message, hint="Make one with `colablock lock NAME`")
        planned = _solved(session, options, lock, head, state)
        manifest = _manifest(planned.matrix, head, f"{planned.matrix.name}.toml", lock)
        sources[manifest.lock_file] = Source.of(lock.read_bytes())
        sources |= _rebuilt_sources(planned, scratch / lock.name)
        if with_python:
            path, sources[path] = _python_source(session, head, scratch)
            manifest = msgspec.structs.replace(manifest, python_file=path)
        with _fetched(session, planned) as (files, built):
            sources |= files
            manifest = msgspec.structs.replace(manifest, built=built)
            return _written(session, output, manifest, sources)


def _lock_for(
    session: Session, options: ApplyOptions, scratch: Path, python_version: str | None, platform: str | None
) -> tuple[LockFile, Snapshot | None]:
    """Return the lock to bundle, and the state that it is a delta over, if that is no recorded runtime's."""
    if options.lock is not None:
        return options.lock, None
    state = None
    if options.runtime:
        named = load_runtime(options.runtime, environ=session.environ)
        if python_version or platform:
            matrix = select_variant(session.matrix(options.name), named.accelerator, options.variant)
            options = replace(options, runtime=None, variant=matrix.variant)
            platform = platform or named.environment.platform
            python_version = python_version or str(named.environment.python_version)
        elif named.source != options.runtime:
            # A recording that the machine of the bundle does not know by name.
            state = comparable(replace(named, source="live"))
    elif not (python_version or platform):
        runtime, state = _runtime_here(session, options)
        options = replace(options, runtime=runtime)
    if state is not None:
        output = scratch / lock_file_name(session.matrix(options.name).name, "state")
        wanted = LockOptions(output=output, has_files=True)
        return lock_state(session, replace(options, runtime=None), wanted, state).path, state
    output = scratch / lock_file_name(session.matrix(options.name).name, options.runtime or "complete")
    wanted = LockOptions(python_version=python_version, platform=platform, output=output, has_files=True)
    existing = up_to_date_lock(session, options, wanted) if options.use_locks else None
    if existing is None:
        return lock_matrix(session, replace(options, use_locks=False), wanted).path, None
    better = lock_with_links(session, options, wanted) if options.runtime is None else None
    return better.path if better is not None else existing, None


def _runtime_here(session: Session, options: ApplyOptions) -> tuple[str | None, Snapshot | None]:
    """Return the recorded runtime of this notebook, or its state if that is not recorded.

    Both are None outside of a notebook.  Raises Refused if colablock has changed a runtime that is
    not recorded: the next session begins without that change.
    """
    state = session.snapshot(options.python, options.protect)
    if state.host is Host.PLAIN and not options.python:
        return None, None
    changes = read_history(session.site(options.python))
    runtime = next((one.runtime for one in changes if one.runtime), None)
    runtime = runtime or (None if changes else runtime_of(state, environ=session.environ))
    if runtime is None and changes:
        undo = command_line("rollback", *option_words({"--python": options.python}))
        raise Refused(
            "colablock has changed this environment, and a bundle is for the state before that",
            hint=f"Run `{undo}` first, or name a target with `--runtime` or `--python-version`",
        )
    session.reporter.note(f"the bundle is for {runtime or 'the state of this environment'}")
    return runtime, None if runtime else comparable(state)


def _solved(
    session: Session, options: ApplyOptions, lock: LockFile, head: LockHead, state: Snapshot | None
) -> PlannedChange:
    """Return the plan of the lock for its own target, so that its steps have the files to pack."""
    asked = replace(
        options,
        lock=None,
        runtime=None,
        variant=head.variant,
        with_=tuple(sorted(head.with_)),
        use_locks=False,
    )
    if head.kind == DELTA:
        if state is None:
            state = comparable(load_runtime(str(head.runtime), environ=session.environ))
        solver = replace(solver_for(session, asked, state), lock=lock, lock_store=None)
        return solver.in_kernel("bundled")
    solver = replace(solver_for(session, asked, nothing_installed()), lock=lock, lock_store=None)
    return solver.in_env_of(environment_for(head.python, head.platform), "bundled")


def _python_source(session: Session, head: LockHead, scratch: Path) -> tuple[str, Source]:
    """Return the packed Python for a lock, with its path in the archive."""
    if head.kind == DELTA:
        message = (
            f"`--with-python` cannot be used: a bundle for {head.runtime} changes the Python that is there"
        )
        raise InvalidInput(message, hint="Omit it, or name a Python with `--python`")
    here = nothing_installed().environment.platform
    if platform_family(head.platform) != platform_family(here):
        message = f"`--with-python` cannot be used: the bundle is for {head.platform}, and this is {here}"
        raise InvalidInput(message, hint="Make the bundle on such a machine, or omit `--with-python`")
    found = standalone_interpreter(head.short, session.environ, session.reporter)
    name = f"cpython-{found.version}.tar.gz"
    session.reporter.stage(f"Packing Python {found.version}")
    packed = scratch / name
    pack_interpreter(Path(found.path), head.short, packed)
    return f"{PYTHON}{name}", Source(sha256=file_digest(packed), size=packed.stat().st_size, path=packed)


def _manifest(matrix: Matrix, head: LockHead, matrix_file: str, lock: LockFile) -> BundleManifest:
    return BundleManifest(
        format=FORMAT,
        matrix=matrix.name,
        kind=head.kind,
        python=head.python,
        platform=head.platform,
        matrix_file=matrix_file,
        lock_file=lock.name,
        index=head.index,
        runtime=head.runtime,
        variant=head.variant,
        with_=tuple(sorted(head.with_)),
    )


def matrix_sources(session: Session, name: str) -> dict[str, Source]:
    """Return the file of the matrix *name*, and those that it extends, each in the same folder."""
    matrices = [*matrices_of(session, name)]
    files = [f"{matrices[0].name}.toml", *(f"{base.name}.base.toml" for base in matrices[1:])]
    found = {}
    for file, base, matrix in zip_longest(files, files[1:], matrices):
        content = Path(matrix.source).read_bytes()
        if base is not None:
            table = {**tomllib.loads(content.decode("utf-8-sig")), "extends": base}
            content = tomli_w.dumps(table).encode()
        found[file] = Source.of(content)
    return found


def matrices_of(session: Session, name: str) -> Iterator[Matrix]:
    """Yield the matrix *name* and those that it extends."""
    base: Any = name
    while base is not None:
        yield (matrix := session.matrix(str(base)))
        base = tomllib.loads(Path(matrix.source).read_text(encoding="utf-8-sig")).get("extends")
        if base is not None and str(base).endswith(".toml"):
            base = Path(matrix.source).parent / str(base)


def _rebuilt_sources(planned: PlannedChange, lock: Path) -> dict[str, Source]:
    """Return the rebuilt wheels that the lock names, at the paths that it names."""
    source = planned.preparer.source
    assert isinstance(source, LockSource)  # noqa: S101 - the solve was made from a lock
    found = {}
    for name, made in planned.preparer.wheels_beside(planned.resolution, lock).items():
        listed, path = source.wheel(name), lock.parent / made.path
        if listed is None or listed.path is None or not path.is_file():
            raise BadDistribution(
                f"the wheel of {name} that the lock names cannot be made here",
                hint="Its archive has to be reached: run the command again with a network",
            )
        found[listed.path] = Source(sha256=made.sha256, size=made.size, path=path)
    return found


@contextmanager
def _fetched(session: Session, planned: PlannedChange) -> Iterator[tuple[dict[str, Source], dict[str, str]]]:
    """Fetch the files of a plan into the cache; yield them as members while they are there, and `built`.

    An sdist goes with the wheel that is built from it here, so that the apply needs no build requirements.
    """
    fetcher: Fetcher = planned.preparer.fetcher
    steps = (step.artifact for step in planned.plan.steps)
    files = [one for one in steps if one is not None and one.rebuilt is None]
    # In the cache a file is linked, which takes no space.
    with tempfile.TemporaryDirectory(prefix=NEW, dir=make_private(fetcher.cache.unfinished)) as folder:
        paths = fetcher.download(files, Path(folder), session.reporter)
        found = {f"{FILES}{path.name}": _source_of(one, path) for one, path in zip(files, paths, strict=True)}
        built = {}
        for sdist in (path for one, path in zip(files, paths, strict=True) if one.build):
            wheel = _portable_wheel(session, planned, sdist)
            if wheel is not None:
                built[f"{FILES}{sdist.name}"] = f"{FILES}{wheel.name}"
                size = wheel.stat().st_size
                found[f"{FILES}{wheel.name}"] = Source(sha256=file_digest(wheel), size=size, path=wheel)
        yield found, built


def _portable_wheel(session: Session, planned: PlannedChange, sdist: Path) -> Path | None:
    """Return the wheel of *sdist* if it can be built here and is for any platform, or say what is missing."""
    builder = planned.preparer.builder
    session.reporter.stage(f"Building {sdist.name}")
    try:
        wheel = builder(sdist)
        tags = parse_wheel_filename(wheel.name)[3]
        if any(tag.platform == "any" and tag in builder.environment.tags for tag in tags):
            return wheel
        why = "its wheel is for this platform only"
    except BadDistribution as error:
        why = error.message
    session.reporter.note(
        f"{sdist.name} will be built when the bundle is applied, and what the build requires is not in the"
        f" bundle: {why}"
    )
    return None


def _source_of(file: Artifact, path: Path) -> Source:
    sha256 = file.hashes.get("sha256", "").lower() or file_digest(path)
    return Source(sha256=sha256, size=path.stat().st_size, path=path)


def _written(
    session: Session, output: Path, manifest: BundleManifest, sources: Mapping[str, Source]
) -> BundleResult:
    """Write the bundle, unless *output* has these members already."""
    size = sum(source.size for source in sources.values())
    try:
        standing = Bundle.open(output).manifest if output.is_file() else None
    except InvalidInput:
        standing = None  # it is replaced
    if standing is not None and _is_same(standing, manifest, sources):
        return BundleResult(path=output, manifest=standing, is_changed=False)
    try:
        free = free_space(output.absolute().parent)
        if size > free:
            message = f"`{output}` needs {size_text(size)}, and {size_text(free)} are free there"
            raise Refused(message, hint="Write it to another disk, with `--output`")
        session.reporter.stage(f"Packing {count(len(sources), 'file')}, {size_text(size)}")
        progress = partial(_progress, session)
        made = write_bundle(output, manifest, sources, progress=progress)
    except OSError as error:
        raise InvalidInput(
            f"`{output}` cannot be written: {error.strerror or error}", hint="Name another file"
        ) from error
    return BundleResult(path=output, manifest=made, is_changed=True)


def _is_same(standing: BundleManifest, manifest: BundleManifest, sources: Mapping[str, Source]) -> bool:
    members = {member.path: (member.sha256, member.size) for member in standing.members}
    facts = (
        "matrix",
        "kind",
        "python",
        "platform",
        "matrix_file",
        "lock_file",
        "python_file",
        "runtime",
        "variant",
        "with_",
        "built",
    )
    is_for_same = all(getattr(standing, name) == getattr(manifest, name) for name in facts)
    return is_for_same and members == {path: (one.sha256, one.size) for path, one in sources.items()}


def _progress(session: Session, path: str, done: int, total: int) -> None:
    session.reporter.step(f"Packing {os.path.basename(path)}", done, total, is_sized=True)  # noqa: PTH119 - no file system path
