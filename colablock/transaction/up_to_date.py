"""No-op check: is the last apply still up to date?  It runs before anything of the solver is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import expanded, file_digest
from colablock._common.scratch import sweep
from colablock.environment.site import is_unfinished
from colablock.environment.snapshot import installed_versions
from colablock.errors import InvalidInput
from colablock.matrix.catalog import find_matrix, lock_files
from colablock.matrix.model import Matrix, shadow_text
from colablock.matrix.packed_locks import LockFile
from colablock.matrix.reader import is_path
from colablock.network.cache import sweep_cache
from colablock.planning.options import ApplyOptions
from colablock.transaction import apply_record as applied
from colablock.transaction.serialise import report_from_json

# Options that do not change the result of an apply.
_IRRELEVANT = frozenset({"bundle", "break_system_packages", "keep", "offline", "reinstall", "undo"})

if TYPE_CHECKING:
    from colablock.verification.verify import Report

__all__ = ["absolute", "digest_of", "request_key", "up_to_date_report"]


def up_to_date_report(options: ApplyOptions, environ: Mapping[str, str]) -> Report | None:
    """Return the report of the last apply if the request and the state on disk are the same, else None.

    Names and versions are read from directory names, without a solve, the network or metadata files.
    What a killed call has left in temporary folders and the cache is removed.
    """
    matrix = find_matrix(options.name, environ=environ)
    last = applied.load(matrix.name, applied.home_folder(environ))
    if (
        last is None
        or options.runtime
        or options.reinstall
        or last.key != request_key(options, matrix, environ)
    ):
        return None
    if is_unfinished(last.prefix, last.sites[0]):
        return None
    if applied.versions_digest(installed_versions(last.sites)) != last.state:
        return None
    try:
        report = report_from_json(last.report)
    except InvalidInput:
        return None
    if not report.passed:
        return None
    sweep()  # a call that has something to do sweeps when it opens its session and the cache
    with suppress(InvalidInput):  # which is not used
        sweep_cache(environ)
    # A process that had loaded the old modules still has them.
    waits = report.needs_restart and last.process == os.getpid()
    restart = report.restart if waits else ()
    shadow = shadow_text(matrix)
    notes = (shadow, *report.notes) if shadow else report.notes
    return replace(
        report,
        notes=notes,
        changed=False,
        is_recorded=True,
        needs_restart=waits,
        restart=restart,
        seconds=0.0,
    )


def request_key(options: ApplyOptions, matrix: Matrix, environ: Mapping[str, str] | None = None) -> str:
    """Return a digest of everything that determines the result of an apply, except the indexes.

    Paths are made absolute, and a lock counts by its content.  Options that do
    not change the result (``_IRRELEVANT``) are left out.
    """
    facts = {
        **asdict(absolute(options)),
        "name": matrix.name,
        "digest": matrix.digest,
        "kernel": sys.prefix,
        "lock": digest_of(options.lock) if options.lock else None,
        "locks": _stamps(lock_files(matrix, environ=environ))
        if options.use_locks and not options.lock
        else None,
    }
    return applied.key_of({key: value for key, value in facts.items() if key not in _IRRELEVANT})


def _stamps(paths: Iterable[LockFile]) -> list[tuple[str, int, int]]:
    """Return names, mtimes and sizes of files, which show whether they have changed."""
    found = ((path.name, path.stat()) for path in paths)
    return [(name, status.st_mtime_ns, status.st_size) for name, status in found]


def absolute(options: ApplyOptions) -> ApplyOptions:
    """Return *options* with absolute paths, for a call in another folder."""
    return replace(
        options,
        name=str(expanded(options.name, "NAME").absolute()) if is_path(options.name) else options.name,
        python=_place(options.python) if options.python else None,
        lock=options.lock.absolute() if options.lock is not None else None,
        bundle=options.bundle.absolute() if options.bundle is not None else None,
        default_index=_place(options.default_index) if options.default_index else options.default_index,
        find_links=tuple(map(_place, options.find_links)),
    )


def _place(text: str) -> str:
    """Return an existing path as an absolute one.  Links are kept: the python of an environment is one."""
    return str(Path(text).absolute()) if os.path.lexists(text) else text


def digest_of(path: Path) -> str | None:
    """Return the SHA-256 (hex) of a file, or None if it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return None  # the reader of the lock reports the fault
