"""The front door: what a notebook calls, shown where it is called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colablock.display import in_notebook, register_displays, reporter_for, restart_prompt, show
from colablock.pipeline import Ask, Pipeline
from colablock.plan import Plan, Remedy, Target
from colablock.verify import Report

__all__ = ["apply", "lock", "plan", "run", "verify", "why"]


def plan(name: str, *, quiet: bool = False, **options: Any) -> Plan:
    """Return what `apply` would change and why; nothing is touched.

    Takes the options of `apply`, and ``runtime="colab-2026.08-gpu"`` for a recorded runtime.
    """
    with _pipeline(quiet=quiet) as pipeline:
        return pipeline.prepare(_ask(name, **options)).plan


def apply(name: str, *, quiet: bool = False, **options: Any) -> Report:
    """Make the environment what the matrix *name* declares, prove it, and return the report.

    Options, each with a default that is decided:

    - ``into``: ``"kernel"`` or ``"env"``; else the kernel where that is harmless, and an
      isolated environment where it is not
    - ``variant``: of the matrix; else the first that fits the accelerator
    - ``with_``: requirements of your own, in the same solve
    - ``python``: the interpreter whose environment is the kernel target
    - ``find_links``, ``default_index``, ``offline``: where candidates come from
    - ``lock``: a lock file, whose pins are taken
    - ``protect``: names that stay as they are
    - ``broken``: ``"repair"``, ``"remove"`` or ``"leave"`` what breaks directly
    - ``keep``: keep what was applied even when a proof fails

    Called again, it finds nothing to do.  Raises ColablockError: what stands in
    the way, and what to do about it where that is known.
    """
    ask = _ask(name, **options)
    with _pipeline(quiet=quiet) as pipeline:
        report = pipeline.standing(ask)
        restart: tuple[str, ...] = ()
        if report is None:
            prepared = pipeline.prepare(ask)
            if not quiet and prepared.plan.steps:
                show(prepared.plan)
            report = pipeline.carry_out(ask, prepared)
            restart = tuple(module for modules in prepared.plan.restart.values() for module in modules)
    if not quiet:
        show(report)
    if report.needs_restart:
        restart_prompt(restart)
    return report


def verify(name: str, *, quiet: bool = False) -> Report:
    """Prove again what was applied last for *name*."""
    with _pipeline(quiet=quiet) as pipeline:
        report = pipeline.verify(name)
    if not quiet:
        show(report)
    return report


def run(name: str, argv: Sequence[str]) -> int:
    """Run the command *argv* in the environment that was applied for *name*; return its exit code."""
    with _pipeline(quiet=True) as pipeline:
        return pipeline.run(name, argv)


def lock(
    name: str,
    *,
    python_version: str | None = None,
    platform: str | None = None,
    output: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> bytes:
    """Return the PEP 751 lock of a solve from nothing, and write it to *output* where that is given."""
    with _pipeline(quiet=quiet) as pipeline:
        return pipeline.lock(
            _ask(name, **options),
            python_version=python_version,
            platform=platform,
            output=Path(output) if output is not None else None,
        )


def why(name: str, package: str, *, quiet: bool = False, **options: Any) -> list[str]:
    """Return why *package* is at its version in the plan of *name*, or why it goes."""
    with _pipeline(quiet=quiet) as pipeline:
        return pipeline.prepare(_ask(name, **options)).why(package)


@contextmanager
def _pipeline(*, quiet: bool) -> Iterator[Pipeline]:
    register_displays()
    with reporter_for(None, quiet=quiet, notebook=True) as reporter:
        yield Pipeline(environ=os.environ, reporter=reporter, in_kernel=in_notebook())


def _ask(name: str, **options: Any) -> Ask:
    """Return the options of a call as one value, words turned into what they stand for."""
    unknown = sorted(options.keys() - Ask.__dataclass_fields__.keys())
    if unknown:
        message = f"no such option: {', '.join(unknown)}"
        raise TypeError(message)
    for key in ("with_", "protect", "find_links"):
        value = options.get(key, ())
        options[key] = (value,) if isinstance(value, str) else tuple(value)
    if options.get("into") is not None:
        options["into"] = Target(options["into"])
    if options.get("broken") is not None:
        options["broken"] = Remedy(options["broken"])
    for key in ("lock",):
        if options.get(key) is not None:
            options[key] = Path(options[key])
    if options.get("python") is not None:
        options["python"] = str(options["python"])
    return Ask(name=name, **options)
