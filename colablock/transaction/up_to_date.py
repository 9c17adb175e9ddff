"""Whether the last apply still holds: what is asked first, before any station of the solve is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from colablock._common.fs import file_digest
from colablock.environment.site import is_unfinished
from colablock.environment.snapshot import installed_versions
from colablock.matrix.catalog import find_matrix, lock_files
from colablock.matrix.model import Matrix
from colablock.matrix.packed_locks import LockFile
from colablock.planning.options import ApplyOptions
from colablock.transaction import apply_record as applied
from colablock.transaction.serialise import report_from_json
from colablock.verification.verify import Report

# What an apply does not depend on: how it is done.
_UNASKED = frozenset({"break_system_packages", "keep", "offline", "undo"})

__all__ = ["digest_of", "request_key", "up_to_date_report"]


def up_to_date_report(options: ApplyOptions, environ: Mapping[str, str]) -> Report | None:
    """Return the report of the last apply where it still holds: same request, same state on disk.

    Names and versions are read from directory names: no solve, no network, no metadata opened.
    """
    matrix = find_matrix(options.name, environ=environ)
    last = applied.load(matrix.name, applied.home_folder(environ))
    if last is None or options.runtime or last.key != request_key(options, matrix, environ):
        return None
    if is_unfinished(last.prefix, last.sites[0]):
        return None
    if applied.versions_digest(installed_versions(last.sites)) != last.state:
        return None
    report = report_from_json(last.report)
    if not report.passed:
        return None
    # The process that held the old modules when they were replaced still does.
    waits = report.needs_restart and last.process == os.getpid()
    restart = report.restart if waits else ()
    return replace(report, changed=False, needs_restart=waits, restart=restart, seconds=0.0)


def request_key(options: ApplyOptions, matrix: Matrix, environ: Mapping[str, str] | None = None) -> str:
    """Return a digest of all that an apply depends on, apart from what the indexes have.

    Paths count as the places they name, a lock as what it holds; what does not
    change the result (``_UNASKED``) does not count.
    """
    facts = {
        **asdict(options),
        "name": matrix.name,
        "digest": matrix.digest,
        "kernel": sys.prefix,
        "python": _place(options.python) if options.python else None,
        "find_links": [_place(link) for link in options.find_links],
        "lock": digest_of(options.lock) if options.lock else None,
        "locks": _stamps(lock_files(matrix, environ=environ))
        if options.use_locks and not options.lock
        else None,
    }
    return applied.key_of({key: value for key, value in facts.items() if key not in _UNASKED})


def _stamps(paths: Iterable[LockFile]) -> list[tuple[str, int, int]]:
    """Return what tells that files have changed without reading them: their times and sizes."""
    found = ((path.name, path.stat()) for path in paths)
    return [(name, status.st_mtime_ns, status.st_size) for name, status in found]


def _place(text: str) -> str:
    """Return a path as an absolute one, its links kept: a virtual environment's python is one."""
    return str(Path(text).absolute()) if os.path.lexists(text) else text


def digest_of(path: Path) -> str | None:
    """Return the sha256 (hex) of a file, None where it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return None  # who reads the lock says what is wrong with it
