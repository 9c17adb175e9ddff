"""The functions of the Python API about locks: make one, export it, bundle it with its files, audit it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import count
from colablock.api.front_door import front_door
from colablock.api.stack import Name, apply_options, open_session, strings
from colablock.api.values import Exported, Facts, LockBytes
from colablock.display.notebook import show, show_as
from colablock.display.text import to_text
from colablock.display.view import Document, Note, spoken_in_python
from colablock.environment.notebook_host import in_notebook
from colablock.errors import InvalidInput

if TYPE_CHECKING:
    from colablock.check.advisories import AuditResult

__all__ = ["audit", "bundle", "export", "lock"]

_COMPLETE = "Every file is complete: the old one or the new one."


@front_door(_COMPLETE)
def lock(
    name: Name,
    *,
    runtime: str | None = None,
    python_version: str | None = None,
    platform: str | None = None,
    output: str | Path | None = None,
    upgrade: bool = False,
    upgrade_package: str | Sequence[str] = (),
    exclude_newer: str | datetime | None = None,
    all_files: bool | None = None,
    variant: str | None = None,
    with_: str | Sequence[str] | None = (),
    protect: str | Sequence[str] | None = (),
    default_index: str | None = None,
    find_links: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = (),
    offline: bool = False,
    quiet: bool = False,
) -> LockBytes:
    """Return a PEP 751 lock file, and write it to *output*, by default beside the matrix.

    With a recorded *runtime* the lock lists the distributions to install or to
    replace there, else all that an empty environment needs.  An existing lock's
    versions are preferred; *upgrade* ignores them, and *upgrade_package* those of some names.
    Files that were uploaded after *exclude_newer* (a date or an RFC 3339 time) are ignored.
    A lock lists the files that its target can install; *all_files* lists the files of every
    platform.  None keeps the choice of the existing lock.
    """
    from colablock.environment.requirements import project_named
    from colablock.operations.lock import lock_matrix
    from colablock.planning.options import LockOptions, moment_of

    wanted = LockOptions(
        python_version=python_version,
        platform=platform,
        output=Path(output) if output is not None else None,
        upgrade=upgrade,
        upgrade_packages=frozenset(map(project_named, strings(upgrade_package))),
        exclude_newer=moment_of(exclude_newer),
        all_files=all_files,
    )
    asked = apply_options({**locals(), "use_locks": False})
    with open_session(quiet=quiet) as session:
        made = lock_matrix(session, asked, wanted)
    about = f"the lock of `{os.fspath(name)}` has {count(made.text.count(b'[[packages]]'), 'package')}"
    return LockBytes(made.text).shown_as(lambda _: Document(blocks=(Note(about),)))


@front_door(_COMPLETE)
def bundle(
    name: Name,
    output: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    python_version: str | None = None,
    platform: str | None = None,
    with_python: bool = False,
    variant: str | None = None,
    with_: str | Sequence[str] | None = (),
    lock: str | os.PathLike[str] | None = None,
    use_locks: bool = True,
    default_index: str | None = None,
    find_links: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = (),
    offline: bool = False,
    quiet: bool = False,
) -> Facts:
    """Write *output*, one archive with a matrix, its lock and the files that the lock installs.

    ``colablock.apply(bundle=output)`` applies it without a network.  It is for the
    recorded *runtime*, or for an empty environment with *python_version* on *platform*,
    by default for the runtime of this notebook.  *with_python* includes a Python for machines that have
    none of that version.  A second call fetches only what is missing.
    Returns the facts of the bundle: its target, its size in bytes, its files with their hashes.
    """
    from colablock.operations.bundle import make_bundle

    asked = apply_options(locals())
    with open_session(quiet=quiet) as session:
        made = make_bundle(
            session,
            asked,
            Path(output),
            python_version=python_version,
            platform=platform,
            with_python=with_python,
        )
    about = f"`{made.path}` has {made.summary}"
    return Facts(made.facts()).shown_as(lambda _: Document(blocks=(Note(about),)))


@front_door(_COMPLETE)
def export(
    name: Name = "",
    *,
    format: str = "requirements",  # noqa: A002 - the word of the command line
    output: str | Path | None = None,
    wheelhouse: str | Path | None = None,
    python_version: str | None = None,
    platform: str | None = None,
    lock: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    use_locks: bool = True,
    variant: str | None = None,
    with_: str | Sequence[str] | None = (),
    default_index: str | None = None,
    find_links: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = (),
    offline: bool = False,
    quiet: bool = False,
) -> Exported:
    """Return a lock in the format of another tool, and write it to *output* if given.

    *format* is ``"requirements"``, ``"constraints"``, ``"notebook"``,
    ``"cyclonedx"`` (a software bill of materials), ``"dockerfile"``, ``"skypilot"``
    or ``"slurm"``.  The lock is the file that the
    option ``lock`` names, else the one beside the matrix, else one that is
    resolved now.  Requirements have the hashes of the
    files of every platform: those that the lock does not list come from its
    indexes, unless the option ``offline`` is set.  Wheels that no index has are
    copied to the folder *wheelhouse*.
    """
    from colablock.operations.export import FORMATS, export_lock

    if format not in FORMATS:
        choices = ", ".join(f"`{name}`" for name in FORMATS)
        raise InvalidInput(f"`format` is `{format}`, but must be one of {choices}")
    form = FORMATS[format]
    with open_session(quiet=quiet) as session:
        exported = export_lock(
            session,
            apply_options(locals()),
            form=form,
            output=Path(output) if output is not None else None,
            wheelhouse=Path(wheelhouse) if wheelhouse is not None else None,
            python_version=python_version,
            platform=platform,
        )
    text = Exported(exported.text)
    of = exported.target or f"`{os.fspath(name) or lock}`"
    text.about = f"{form.value} of {of}: {count(len(text.splitlines()), 'line')}"
    return text


@front_door("Nothing was changed.")
def audit(
    name: Name = "",
    *,
    every: bool = False,
    ignore: str | Sequence[str] = (),
    python_version: str | None = None,
    platform: str | None = None,
    lock: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    use_locks: bool = True,
    variant: str | None = None,
    with_: str | Sequence[str] | None = (),
    default_index: str | None = None,
    find_links: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = (),
    offline: bool = False,
    quiet: bool = False,
) -> AuditResult:
    """Check the pins of a lock against the advisories that its indexes publish; return the result.

    The lock is the one that `export` takes; with *every*, all locks beside the
    matrix are audited.  *ignore* are ids or aliases of advisories to accept.
    Raises FetchFailed offline, or if no release could be checked.
    """
    from colablock.check.advisories import AuditResult
    from colablock.display.check_view import audit_document
    from colablock.operations.audit import audit_locks

    with open_session(quiet=quiet) as session:
        result = audit_locks(
            session,
            apply_options(locals()),
            every=every,
            ignore=strings(ignore),
            python_version=python_version,
            platform=platform,
        )
    show_as(AuditResult, audit_document)
    if not quiet and in_notebook():
        show(result)
    elif not quiet:
        print(to_text(spoken_in_python(audit_document(result))))  # noqa: T201
    return result
