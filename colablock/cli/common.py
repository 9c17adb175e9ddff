"""Shared by the commands: the call, common arguments, JSON output, the question for consent."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.urls import checked_index
from colablock._records import dataclass
from colablock.errors import InvalidInput
from colablock.planning.plan import Remedy, Target

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.environment.notebook_host import Shell
    from colablock.operations.session import Session
    from colablock.planning.options import ApplyOptions

__all__ = [
    "MATRIX",
    "Call",
    "add_command",
    "add_lock_target",
    "add_no_lock",
    "add_protect",
    "add_reinstall",
    "add_sources",
    "add_target",
    "agreed",
    "lock_options_of",
    "options_of",
    "print_json",
    "print_note",
    "session_of",
]

#: The help of an argument that names a matrix.
MATRIX = "a matrix by name, or the path of its file"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the command line: its arguments, its environment, its two consoles.

    *shell* is that of the notebook whose cell makes the call.  *noted* are the notes that were given,
    and *told* those that were shown.
    """

    args: argparse.Namespace
    environ: Mapping[str, str]
    out: Console
    err: Console
    shell: Shell | None = None
    noted: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)


def add_command(
    commands: Any, name: str, help_text: str, *, has_result: bool = True
) -> argparse.ArgumentParser:
    """Return the parser of a new command, with the options that every command has."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}."
    )
    output = parser.add_argument_group("output")
    if has_result:
        output.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.set_defaults(json=False)
    output.add_argument("-q", "--quiet", action="store_true", help="print only the result, and errors")
    output.add_argument(
        "-v", "--verbose", action="store_true", help="shorten nothing; show a traceback with an error"
    )
    return parser


def add_target(parser: argparse.ArgumentParser, *, has_bundle: bool = False) -> None:
    """Add the arguments that choose a matrix, a target and versions; with *has_bundle*, also an archive."""
    group = parser.add_argument_group("request")
    if has_bundle:
        group.add_argument("name", metavar="NAME", nargs="?", default="", help=MATRIX)
        group.add_argument(
            "--bundle",
            metavar="FILE",
            type=Path,
            help="use the matrix, the lock and the files of this archive, and no network",
        )
    else:
        group.add_argument("name", metavar="NAME", help=MATRIX)
    group.add_argument(
        "--into",
        choices=[t.value for t in Target],
        help="the target; default: the kernel where that does no harm, else an isolated environment",
    )
    group.add_argument(
        "--python",
        metavar="EXE",
        help="interpreter of the kernel target; with `--into env`, the one to build the environment with",
    )
    group.add_argument(
        "--variant", metavar="V", help="variant of the matrix; default: the first that fits the accelerator"
    )
    _add_with(group)
    group.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        help="use the pins of this lock file; ask no index for versions",
    )
    add_no_lock(group)
    add_protect(group)
    group.add_argument(
        "--broken",
        choices=[r.value for r in Remedy],
        help="remedy for every distribution that breaks directly",
    )


def add_no_lock(parser: Any) -> None:
    """Add the switch that ignores the locks beside the matrix."""
    parser.add_argument(
        "--no-lock", dest="use_locks", action="store_false", help="ignore the locks beside the matrix"
    )


def add_protect(parser: Any) -> None:
    """Add the option that leaves installed distributions unchanged."""
    parser.add_argument(
        "--protect",
        metavar="NAME",
        action="append",
        default=[],
        help="leave this installed distribution unchanged (repeatable)",
    )


def add_reinstall(parser: Any) -> None:
    """Add the option that installs distributions again whose files are damaged."""
    parser.add_argument(
        "--reinstall",
        metavar="NAME",
        action="append",
        default=[],
        help="install this distribution of the stack again although its version is right: its files are"
        " damaged (repeatable; kernel only)",
    )


def add_lock_target(parser: Any, *more_names: str) -> None:
    """Add the arguments that choose Python, platform and variant of a complete lock.

    *more_names* are further names of ``--python-version``.
    """
    parser.add_argument(
        "--python-version", *more_names, metavar="X.Y[.Z]", help="Python of the target; default: this one"
    )
    parser.add_argument(
        "--platform",
        metavar="TAG",
        help="platform of the target, such as manylinux_2_35_x86_64; default: this one",
    )
    parser.add_argument(
        "--variant",
        metavar="V",
        help="variant of the matrix; default: the first, whatever card this machine has, or with `--runtime`"
        " the one that it selects",
    )
    _add_with(parser)


def _add_with(parser: Any) -> None:
    parser.add_argument(
        "--with",
        dest="with_",
        metavar="REQ",
        action="append",
        default=[],
        help="additional requirement, resolved together with the matrix (repeatable)",
    )


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the sources of candidates."""
    group = parser.add_argument_group("index")
    group.add_argument(
        "--default-index", metavar="URL", help="simple index to use instead of the default one"
    )
    group.add_argument(
        "--find-links",
        metavar="DIR",
        action="append",
        default=[],
        help="folder or page of files to prefer over every index (repeatable)",
    )
    group.add_argument("--offline", action="store_true", help="use no network")


def options_of(args: argparse.Namespace, environ: Mapping[str, str]) -> ApplyOptions:
    """Return the arguments of `plan`, `apply` or `why` as ApplyOptions.  A bundle names the matrix."""
    from colablock.planning.options import ApplyOptions

    bundle = getattr(args, "bundle", None)
    if bundle is None and not args.name:
        command = f"colablock {args.command}"
        hint = f"Write `{command} NAME`, where `NAME` is {MATRIX}; `{command} --help` has examples"
        raise InvalidInput(f"`{command}` needs `NAME`", hint=hint)
    options = ApplyOptions(
        name=args.name,
        bundle=bundle,
        into=Target(args.into) if args.into else None,
        python=args.python,
        runtime=getattr(args, "runtime", None),
        variant=args.variant,
        with_=tuple(args.with_),
        lock=args.lock,
        use_locks=args.use_locks,
        protect=tuple(args.protect),
        reinstall=tuple(getattr(args, "reinstall", ())),
        broken=Remedy(args.broken) if args.broken else None,
        default_index=checked_index(args.default_index),
        find_links=tuple(args.find_links),
        offline=args.offline,
        keep=getattr(args, "keep", False),
        undo=getattr(args, "undo", True),
        break_system_packages=getattr(args, "break_system_packages", False),
    )
    if bundle is None:
        return options
    from colablock.operations.session import from_bundle

    return from_bundle(options, environ)


def lock_options_of(args: argparse.Namespace) -> ApplyOptions:
    """Return the options of a command that uses a lock and changes nothing."""
    from colablock.planning.options import ApplyOptions

    return ApplyOptions(
        name=args.name,
        lock=args.lock,
        use_locks=args.use_locks,
        runtime=args.runtime,
        variant=args.variant,
        with_=tuple(args.with_),
        default_index=checked_index(args.default_index),
        find_links=tuple(args.find_links),
        offline=args.offline,
    )


@contextmanager
def session_of(call: Call) -> Iterator[Session]:
    """Open a session whose progress is shown on standard error."""
    from colablock._common.scratch import sweep
    from colablock.display.progress import reporter_for
    from colablock.operations.session import Session

    sweep()
    is_quiet, in_cell = call.args.quiet or call.args.json, call.shell is not None
    made = reporter_for(call.err, quiet=is_quiet, notebook=in_cell, environ=call.environ, told=call.told)
    with made as reporter:
        session = Session(environ=call.environ, reporter=reporter, in_kernel=in_cell, noted=call.noted)
        with closing(session):
            yield session


def can_ask(call: Call) -> bool:
    """Whether somebody can answer: on a terminal, without ``--yes`` and ``--json``."""
    is_silent = getattr(call.args, "yes", False) or call.args.json
    return not is_silent and sys.stdin.isatty() and call.err.is_terminal


def agreed(call: Call, question: str) -> bool:
    """Ask for consent on a terminal.

    Without a terminal, and with ``--yes`` or ``--json``, running the command is consent.
    """
    if not can_ask(call):
        return True
    call.err.print(f"{question} [y/N] ", end="")
    try:
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        call.err.print()  # what follows has a line of its own
        raise


def print_note(call: Call, text: str) -> None:
    """Print a note on standard error, in lines that fit the terminal."""
    from colablock.display.text import render
    from colablock.display.view import Document, Note

    render(Document(blocks=(Note(label="note", text=text),)), call.err)


def print_json(value: object, out: Console) -> None:
    """Print a result as JSON on standard output."""
    out.file.write(json.dumps(value, indent=2) + "\n")
