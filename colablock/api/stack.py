"""The stack functions of the Python API; in a notebook they display what they return."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from colablock._common.fs import expanded
from colablock._common.urls import checked_index
from colablock.api.front_door import front_door
from colablock.api.values import Lines, Rows
from colablock.display.info_view import history_document, undone_document
from colablock.display.notebook import (
    note_shown,
    publish,
    register_displays,
    restart_kernel,
    restart_prompt,
    show,
    show_as,
    show_whole,
    told_in_cell,
)
from colablock.display.progress import reporter_for
from colablock.display.view import Document, Note
from colablock.environment.notebook_host import current_shell, in_notebook
from colablock.errors import UNCHANGED, ColablockError, InvalidInput, interrupted_as
from colablock.planning.options import ApplyOptions, UndoOptions
from colablock.planning.plan import Plan, Remedy, Target
from colablock.transaction.up_to_date import up_to_date_report
from colablock.verification.verify import Report

if TYPE_CHECKING:
    from colablock.operations.session import Session
    from colablock.training.runs.crash import Explanation
    from colablock.transaction.history import Change
    from colablock.transaction.rollback import UndoneChange

__all__ = [
    "apply",
    "apply_options",
    "choice",
    "explain",
    "history",
    "open_session",
    "plan",
    "rollback",
    "run",
    "strings",
    "verify",
    "why",
]

register_displays()  # an error of the first call shows itself, too

C = TypeVar("C", bound=Enum)
Name = str | os.PathLike[str]


@front_door(UNCHANGED)
def plan(
    name: Name = "",
    *,
    bundle: str | os.PathLike[str] | None = None,
    into: str | None = None,
    python: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    variant: str | None = None,
    with_: str | Sequence[str] | None = (),
    lock: str | os.PathLike[str] | None = None,
    use_locks: bool = True,
    protect: str | Sequence[str] | None = (),
    reinstall: str | Sequence[str] | None = (),
    broken: str | None = None,
    default_index: str | None = None,
    find_links: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = (),
    offline: bool = False,
    verbose: bool = False,
    quiet: bool = False,
) -> Plan:
    """Return the changes that `apply` would make, each with its reason.  Nothing is changed.

    Takes the options of `apply`, and ``runtime="colab-2026.08-gpu"`` to plan for
    a recorded runtime.  ``verbose=True`` shows every distribution, with its whole reason and its file.
    """
    from colablock.operations.plan import plan_change

    with open_session(quiet=quiet) as session:
        options = apply_options(locals())
        found = plan_change(session, _with_bundle(options)).plan
    if verbose:
        show_whole(found)
    return found


@front_door(UNCHANGED)
def apply(
    name: Name = "",
    *,
    bundle: str | os.PathLike[str] | None = None,
    into: str | None = None,
    python: str | os.PathLike[str] | None = None,
    variant: str | None = None,
    with_: str | Sequence[str] | None = (),
    lock: str | os.PathLike[str] | None = None,
    use_locks: bool = True,
    protect: str | Sequence[str] | None = (),
    reinstall: str | Sequence[str] | None = (),
    broken: str | None = None,
    default_index: str | None = None,
    find_links: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = (),
    offline: bool = False,
    keep: bool = False,
    undo: bool = True,
    break_system_packages: bool = False,
    restart: str = "ask",
    quiet: bool = False,
) -> Report:
    """Change the environment to match the matrix *name*, prove the result, and return the report.

    *name* is the name of a matrix or the path of its file.  Options:

    - ``into``: the target, ``"kernel"`` or ``"env"``; default: the kernel where that does no harm, else an
      isolated environment
    - ``variant``: the variant of the matrix; default: the first that fits the accelerator
    - ``with_``: additional requirements, resolved together with the matrix
    - ``python``: the interpreter whose environment is the kernel target
    - ``find_links``, ``default_index``, ``offline``: the sources of candidates
    - ``bundle``: an archive of `bundle`, whose matrix, lock and files are used, and no network
    - ``lock``: a lock file to take the pins from; default: the lock beside the matrix that fits;
      ``use_locks=False`` uses none
    - ``protect``: names of distributions to leave unchanged
    - ``reinstall``: names of distributions of the stack to install again, since their files are damaged
    - ``broken``: the remedy for everything that breaks directly: ``"repair"``, ``"remove"`` or ``"leave"``
    - ``keep``: ``True`` keeps the result even when a check fails
    - ``undo``: ``False`` deletes files of the image where a stash would need a copy of them (overlayfs);
      such a change can neither be rolled back on failure nor undone later
    - ``break_system_packages``: ``True`` changes the kernel's environment even if it is marked as externally
      managed (PEP 668)

    *restart* decides what happens when the kernel has loaded modules that were replaced.  ``"ask"`` displays
    a request to restart.  ``"auto"`` restarts the kernel: the cell ends there, and continues when it is run
    again.  ``"never"`` does nothing.

    ``apply`` is idempotent: a second call with the same arguments is a no-op.
    Raises ColablockError, with a hint where a remedy is known.
    """
    asked = _with_bundle(apply_options(locals()))
    return _apply(asked, _restart_function(restart, then="run this cell again"), quiet=quiet)


def _apply(asked: ApplyOptions, restart_after: Callable[[Sequence[str]], None], *, quiet: bool) -> Report:
    register_displays()
    report = up_to_date_report(asked, os.environ)
    if report is None:
        from colablock.operations.apply import apply_matrix

        def show_plan(plan: Plan) -> None:
            if plan.steps and not (quiet or plan.is_in_place):
                show(plan)

        with open_session(quiet=quiet) as session:
            report = apply_matrix(session, asked, on_plan=show_plan)
    with interrupted_as("The change is in place." if report.changed else UNCHANGED):
        if not quiet:
            show(report)
        restart_after(report.restart)
    return report


@front_door(UNCHANGED)
def verify(name: Name, *, quiet: bool = False) -> Report:
    """Prove the environment of the last apply of *name* again and return the report."""
    from colablock.operations.last_apply import verify_last_apply

    with open_session(quiet=quiet) as session:
        report = verify_last_apply(session, os.fspath(name))
    if not quiet:
        show(report)
    return report


@front_door(UNCHANGED)
def rollback(
    *,
    to_first: bool = False,
    with_companions: bool = False,
    leave_broken: bool = False,
    python: str | os.PathLike[str] | None = None,
    find_links: Any = (),
    default_index: str | None = None,
    offline: bool = False,
    quiet: bool = False,
    restart: str = "ask",
) -> Rows[UndoneChange]:
    """Undo the last change that colablock made in place, or with *to_first* every one.

    *python* names the interpreter whose environment is meant, by default this
    one.  *restart* is that of `apply`.  Distributions that others have installed
    since stay, and are reported.  If the last change was interrupted, it is
    recovered and nothing else is undone.

    Where others have moved distributions since, the undo may leave requirements
    unmet that are met now.  It is refused then.  *with_companions* puts those
    distributions back as well, in the versions before the change; they come from
    the index, or from *find_links* and *default_index*, and with *offline* from
    the cache alone.  *leave_broken* undoes the change anyway: the ``broken``
    of the result says what is unmet.

    Raises NotFound where there is nothing to undo, Refused where the stash of a
    change was dropped or requirements would be left unmet.
    """
    from colablock.operations.rollback import undo_changes
    from colablock.transaction.rollback import state_after

    restart_after = _restart_function(restart)
    options = UndoOptions(
        to_first=to_first,
        companions=with_companions,
        leave_broken=leave_broken,
        default_index=checked_index(default_index),
        find_links=strings(find_links),
        offline=offline,
    )
    with open_session(quiet=quiet) as session:
        undone = undo_changes(session, _path_text(python), options)
    undone = Rows(undone).shown_as(undone_document)
    with interrupted_as(state_after(undone)):
        if not quiet:
            tell(undone)
        restart_after([module for one in undone for module in one.restart])
    return undone


@front_door("Nothing was changed.")
def history(*, python: str | os.PathLike[str] | None = None, drop: int | bool | None = None) -> Rows[Change]:
    """Return the changes that colablock made in place, oldest first.

    Those that were undone are shown below them.  *drop* deletes the stashes of the change of that
    number and of those before it, or of all with ``True``: that frees disk space, and these changes
    can no longer be undone.
    """
    from colablock.operations.rollback import drop_stashes, list_changes, list_interrupted, list_undone
    from colablock.transaction.isolated_envs import has_envs

    with open_session(quiet=True) as session:
        if drop is not None and drop is not False:
            drop_stashes(session, _path_text(python), None if drop is True else drop)
        undone = list_undone(session, _path_text(python))
        changes = list_changes(session, _path_text(python))
        begun = list_interrupted(session, _path_text(python))
        built = has_envs(session.home)
    return Rows(changes).shown_as(partial(history_document, undone=undone, begun=begun, has_envs=built))


@front_door("Nothing was changed.")
def explain(
    failure: str | BaseException | None = None,
    *,
    python: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Explanation:
    """Return why a program that trains failed: the cause, what it means here, and what to do.

    *failure* is an exception, or the text of a traceback or of a log, of colablock's own runs or
    not; by default the last exception of this notebook.  *python* names the interpreter that it ran
    in, by default this one for an exception, and that of the environment in a text: the explanation
    names the versions there, and the matrix that has others.  Uses no network.
    """
    from colablock.display.run_view import explanation_document
    from colablock.operations.failure import explain_failure
    from colablock.training.failures import explain_error, text_of
    from colablock.training.runs.crash import Explanation

    show_as(Explanation, explanation_document)
    register_displays()
    failure = _last_exception() if failure is None else failure
    if isinstance(failure, ColablockError):
        found = explain_error(failure)
    else:
        with open_session(quiet=True) as session:
            is_here = isinstance(failure, BaseException)
            found = explain_failure(session, text_of(failure), python=_path_text(python), is_here=is_here)
    if not quiet:
        show(found)
    return found


def _last_exception() -> BaseException:
    last = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)  # until Python 3.12
    if not isinstance(last, BaseException):
        hint = "Give an exception or a text, or the file of a log to `%colablock explain FILE`"
        raise InvalidInput("no cell of this notebook has raised an exception yet", hint=hint)
    return last


@front_door(UNCHANGED)
def run(name: Name, argv: str | Sequence[str]) -> int:
    """Run the command *argv* in the environment of the last apply of *name*; return its exit code.

    A string is split into words as a shell does it.
    """
    from colablock.operations.run import run_command

    try:
        command = shlex.split(argv) if isinstance(argv, str) else list(argv)
    except ValueError as error:
        raise InvalidInput(f"the command `{argv}` cannot be split: {error}") from error
    if not command:
        raise InvalidInput(
            "no command to run", hint='Name one: `colablock.run(name, ["python", "train.py"])`'
        )
    with open_session(quiet=True) as session:
        return run_command(session, os.fspath(name), command)


@front_door(UNCHANGED)
def why(
    name: Name = "",
    package: str | None = None,
    *,
    not_: str | None = None,
    bundle: str | os.PathLike[str] | None = None,
    into: str | None = None,
    python: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    variant: str | None = None,
    with_: str | Sequence[str] | None = (),
    lock: str | os.PathLike[str] | None = None,
    use_locks: bool = True,
    protect: str | Sequence[str] | None = (),
    broken: str | None = None,
    default_index: str | None = None,
    find_links: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = (),
    offline: bool = False,
    quiet: bool = False,
) -> Lines[str]:
    """Return the reasons for the version of *package* in the plan of *name*, or for its removal.

    Without *package* they are the reasons for the target.  With *not_*, a name or a requirement such
    as ``"torch==2.8"``, they say why the plan does not have it.  With *with_*, what it changes follows.
    *bundle* is an archive of `bundle`, which names the matrix: ``why(package="torch", bundle=FILE)``.
    """
    from colablock.operations.plan import explain_plan
    from colablock.operations.session import named_in_bundle

    if package is not None and not_ is not None:
        raise InvalidInput("`not_` cannot be used with another package", hint="Omit one of them")

    if not_ is None:
        archive = Path(bundle) if bundle is not None else None
        name, package = named_in_bundle(os.fspath(name), package, archive)
    with open_session(quiet=quiet) as session:
        options = apply_options(locals())
        lines = explain_plan(session, _with_bundle(options), package, absent=not_)
    return Lines(lines).shown_as(lambda found: Document(blocks=tuple(map(Note, found))))


def tell(value: Rows[Any]) -> None:
    """Show *value* as the output of a cell, or print it."""
    shell = current_shell()
    if shell is None:
        print(value)  # noqa: T201 - this is where it is read
        return
    publish(value.document(), shell)
    note_shown(value)


@contextmanager
def open_session(*, quiet: bool) -> Iterator[Session]:
    """Open a session that shows its progress in the notebook cell, or on the terminal."""
    from colablock._common.fs import machine_error, machine_errors
    from colablock._common.scratch import sweep
    from colablock.operations.session import Session

    register_displays()
    sweep()
    with reporter_for(None, quiet=quiet, notebook=True, told=told_in_cell()) as reporter:
        try:
            session = Session(environ=os.environ, reporter=reporter, in_kernel=in_notebook())
            with closing(session), machine_errors():
                yield session
        except OSError as error:
            raise machine_error(error) from error


def apply_options(arguments: Mapping[str, Any]) -> ApplyOptions:
    """Return the ApplyOptions among the *arguments* of a call: its ``locals()``.  Raises InvalidInput."""
    options = {key: arguments[key] for key in ApplyOptions.__dataclass_fields__ if key in arguments}
    for key in ("with_", "protect", "reinstall", "find_links"):
        options[key] = strings(options.get(key))
    if options.get("into") is not None:
        options["into"] = choice(Target, "into", options["into"])
    if options.get("broken") is not None:
        options["broken"] = choice(Remedy, "broken", options["broken"])
    for key in ("lock", "bundle"):
        if options.get(key) is not None:
            options[key] = expanded(os.fspath(options[key]), key)
    for key in ("python", "default_index"):
        if options.get(key) is not None:
            options[key] = str(options[key])
    checked_index(options.get("default_index"))
    return ApplyOptions(**{**options, "name": os.fspath(options["name"])})


def _with_bundle(options: ApplyOptions) -> ApplyOptions:
    """Return *options* with the matrix and the lock of their bundle, if they name one."""
    if options.bundle is None:
        if not options.name:
            raise InvalidInput("no matrix is named", hint="Name one, or a bundle with `--bundle`")
        return options
    from colablock.operations.session import from_bundle

    return from_bundle(options, os.environ)


def _restart_function(restart: str, *, then: str = "go on below") -> Callable[[Sequence[str]], None]:
    """Return the function for the option *restart*; it takes the loaded modules that were replaced."""
    functions: dict[str, Callable[[Sequence[str]], None]] = {
        "ask": restart_prompt,
        "auto": partial(restart_kernel, then=then),
        "never": lambda _: None,
    }
    if restart not in functions:
        choices = ", ".join(f"`{option}`" for option in functions)
        raise InvalidInput(f"`restart` is `{restart}`, but must be one of {choices}")
    return functions[restart]


def _path_text(path: str | os.PathLike[str] | None) -> str | None:
    return os.fspath(path) if path is not None else None


def strings(value: Any) -> tuple[str, ...]:
    """Return one or several strings or paths as a tuple of strings."""
    if value is None:
        return ()
    return (str(value),) if isinstance(value, (str, os.PathLike)) else tuple(map(str, value))


def choice(kind: type[C], key: str, value: Any) -> C:
    """Return the member of *kind* with that *value*.  Raises InvalidInput, which names the argument *key*."""
    try:
        return kind(value)
    except ValueError as error:
        choices = ", ".join(f"`{one.value}`" for one in kind)
        raise InvalidInput(f"`{key}` is `{value}`, but must be one of {choices}") from error
