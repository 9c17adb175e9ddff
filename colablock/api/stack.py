"""The front door: what a notebook calls, shown where it is called."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from colablock._common.urls import checked_index
from colablock.display.reporters import (
    in_notebook,
    register_displays,
    reporter_for,
    restart_kernel,
    restart_prompt,
    show,
    undone_text,
)
from colablock.errors import InvalidInput
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import Plan, Remedy, Target
from colablock.transaction.up_to_date import up_to_date_report
from colablock.verification.verify import Report

if TYPE_CHECKING:
    from colablock.operations.pipeline import Pipeline
    from colablock.transaction.history import Change
    from colablock.transaction.rollback import UndoneChange

__all__ = [
    "apply",
    "export",
    "history",
    "lock",
    "open_pipeline",
    "plan",
    "rollback",
    "run",
    "verify",
    "why",
]

C = TypeVar("C", bound=Enum)
Name = str | os.PathLike[str]


def plan(name: Name, *, quiet: bool = False, **options: Any) -> Plan:
    """Return what `apply` would change and why; nothing is touched.

    Takes the options of `apply`, and ``runtime="colab-2026.08-gpu"`` for a recorded runtime.
    """
    with open_pipeline(quiet=quiet) as pipeline:
        return pipeline.prepare(_ask(name, **options)).plan


def apply(name: Name, *, quiet: bool = False, restart: str = "ask", **options: Any) -> Report:
    """Make the environment what the matrix *name* declares, prove it, and return the report.

    Options, each with a default that is decided:

    - ``into``: ``"kernel"`` or ``"env"``; else the kernel where that is harmless, and an
      isolated environment where it is not
    - ``variant``: of the matrix; else the first that fits the accelerator
    - ``with_``: requirements of your own, in the same solve
    - ``python``: the interpreter whose environment is the kernel target
    - ``find_links``, ``default_index``, ``offline``: where candidates come from
    - ``lock``: a lock file, whose pins are taken; by default the one beside the matrix that
      fits, and none with ``use_locks=False``
    - ``protect``: names that stay as they are
    - ``broken``: ``"repair"``, ``"remove"`` or ``"leave"`` what breaks directly
    - ``keep``: keep what was applied even when a proof fails
    - ``undo``: ``False`` takes an image's files away where they would have to be copied to
      keep them (overlayfs): such a change can neither be rolled back nor undone
    - ``break_system_packages``: change the kernel's environment although it is marked as
      externally managed (PEP 668)

    *restart* says what is done when the kernel holds modules of what changed:
    ``"ask"`` for a restart, ``"never"`` leaves it to you, ``"auto"`` restarts it: the cell ends
    there, and goes on when it is run again.

    Called again, it finds nothing to do.  Raises ColablockError: what stands in
    the way, and what to do about it where that is known.
    """
    ask, see_to = _ask(name, **options), _restarting(restart, then="run this cell again")
    register_displays()
    report = up_to_date_report(ask, os.environ)
    if report is None:
        with open_pipeline(quiet=quiet) as pipeline:
            prepared = pipeline.prepare(ask, recover=True)
            if not quiet and prepared.plan.steps:
                show(prepared.plan)
            report = pipeline.carry_out(ask, prepared)
    if not quiet:
        show(report)
    see_to(report.restart)
    return report


def verify(name: Name, *, quiet: bool = False) -> Report:
    """Prove again what was applied last for *name*."""
    with open_pipeline(quiet=quiet) as pipeline:
        report = pipeline.verify(os.fspath(name))
    if not quiet:
        show(report)
    return report


def rollback(
    *,
    to_first: bool = False,
    python: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    restart: str = "ask",
) -> tuple[UndoneChange, ...]:
    """Undo the last change that colablock made in place, or with *to_first* every one.

    *python* names another interpreter whose environment is meant, and *restart*
    is that of `apply`.  What was installed since by others stays, and is told.
    Where the last change was interrupted it is put back, and that is all.
    Raises NotFound where there is nothing to undo, Refused where what is needed
    for it was dropped.
    """
    see_to = _restarting(restart)
    with open_pipeline(quiet=quiet) as pipeline:
        undone = pipeline.rollback(os.fspath(python) if python is not None else None, to_first=to_first)
    if not quiet:
        print(undone_text(undone))  # noqa: T201
    see_to([module for one in undone for module in one.restart])
    return undone


def history(*, python: str | os.PathLike[str] | None = None) -> tuple[Change, ...]:
    """Return what colablock changed in place, oldest first."""
    with open_pipeline(quiet=True) as pipeline:
        return pipeline.history(os.fspath(python) if python is not None else None)


def run(name: Name, argv: str | Sequence[str]) -> int:
    """Run the command *argv* in the environment that was applied for *name*; return its exit code.

    One string is split as a shell does.
    """
    try:
        command = shlex.split(argv) if isinstance(argv, str) else list(argv)
    except ValueError as error:
        raise InvalidInput(f"the command `{argv}` cannot be split: {error}") from error
    if not command:
        raise InvalidInput(
            "no command to run", hint='Name one: `colablock.run(name, ["python", "train.py"])`'
        )
    with open_pipeline(quiet=True) as pipeline:
        return pipeline.run(os.fspath(name), command)


def lock(
    name: Name,
    *,
    runtime: str | None = None,
    python_version: str | None = None,
    platform: str | None = None,
    output: str | Path | None = None,
    upgrade: bool = False,
    quiet: bool = False,
    **options: Any,
) -> bytes:
    """Return a PEP 751 lock, and write it: to *output*, by default beside the matrix.

    For a recorded *runtime* it lists what is to come there, else all that is
    needed from nothing.  With *upgrade* no version of the lock that is there is kept.
    """
    from colablock.operations.lock import LockOptions

    wanted = LockOptions(
        python_version=python_version,
        platform=platform,
        output=Path(output) if output is not None else None,
        upgrade=upgrade,
    )
    with open_pipeline(quiet=quiet) as pipeline:
        return pipeline.lock(_ask(name, runtime=runtime, use_locks=False, **options), wanted).text


def export(
    name: Name = "",
    *,
    format: str = "requirements",  # noqa: A002 - the word of the command line
    output: str | Path | None = None,
    wheelhouse: str | Path | None = None,
    python_version: str | None = None,
    platform: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> str:
    """Return a lock as another installer reads it, and write it to *output* where that is given.

    *format* is ``"requirements"``, ``"constraints"`` or ``"notebook"``.  The
    lock is the file that the option ``lock`` names, else one solved from
    nothing.  *wheelhouse* is the folder for the wheels that no index has.
    """
    from colablock.lockfile.export import Format
    from colablock.operations.export import export

    form = _choice(Format, "format", format)
    with open_pipeline(quiet=quiet) as pipeline:
        exported = export(
            pipeline,
            _ask(name, **options),
            form=form,
            output=Path(output) if output is not None else None,
            wheelhouse=Path(wheelhouse) if wheelhouse is not None else None,
            python_version=python_version,
            platform=platform,
        )
    return exported.text


def why(name: Name, package: str, *, quiet: bool = False, **options: Any) -> list[str]:
    """Return why *package* is at its version in the plan of *name*, or why it goes."""
    with open_pipeline(quiet=quiet) as pipeline:
        return pipeline.prepare(_ask(name, **options)).why(package)


@contextmanager
def open_pipeline(*, quiet: bool) -> Iterator[Pipeline]:
    """Give a pipeline whose progress is shown where this is called: in a cell, if in one."""
    from colablock.operations.pipeline import Pipeline

    register_displays()
    with reporter_for(None, quiet=quiet, notebook=True) as reporter:
        yield Pipeline(environ=os.environ, reporter=reporter, in_kernel=in_notebook())


def _ask(name: Name, **options: Any) -> ApplyOptions:
    """Return the options of a call as one value, words turned into what they stand for."""
    unknown = sorted(options.keys() - ApplyOptions.__dataclass_fields__.keys())
    if unknown:
        message = f"no such option: {', '.join(unknown)}"
        raise TypeError(message)
    for key in ("with_", "protect", "find_links"):
        options[key] = _several(options.get(key))
    if options.get("into") is not None:
        options["into"] = _choice(Target, "into", options["into"])
    if options.get("broken") is not None:
        options["broken"] = _choice(Remedy, "broken", options["broken"])
    if options.get("lock") is not None:
        options["lock"] = Path(options["lock"])
    for key in ("python", "default_index"):
        if options.get(key) is not None:
            options[key] = str(options[key])
    checked_index(options.get("default_index"))
    return ApplyOptions(name=os.fspath(name), **options)


def _restarting(restart: str, *, then: str = "go on below") -> Callable[[Sequence[str]], None]:
    """Return what is done about the modules that the kernel holds as they were."""
    ways: dict[str, Callable[[Sequence[str]], None]] = {
        "ask": restart_prompt,
        "auto": partial(restart_kernel, then=then),
        "never": lambda _: None,
    }
    if restart not in ways:
        choices = ", ".join(f"`{way}`" for way in ways)
        raise InvalidInput(f"`restart` is `{restart}`, and has to be one of {choices}")
    return ways[restart]


def _several(value: Any) -> tuple[str, ...]:
    """Return one or several words or paths as words."""
    if value is None:
        return ()
    return (str(value),) if isinstance(value, (str, os.PathLike)) else tuple(map(str, value))


def _choice(kind: type[C], key: str, value: Any) -> C:
    try:
        return kind(value)
    except ValueError as error:
        choices = ", ".join(f"`{one.value}`" for one in kind)
        raise InvalidInput(f"`{key}` is `{value}`, and has to be one of {choices}") from error
