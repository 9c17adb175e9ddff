"""Write lock files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.text import count
from colablock._common.urls import checked_index
from colablock.cli.common import (
    MATRIX,
    Call,
    add_command,
    add_lock_target,
    add_protect,
    add_sources,
    print_json,
    session_of,
)
from colablock.errors import ExitCode

if TYPE_CHECKING:
    from colablock.operations.lock import LockResult

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = add_command(commands, "lock", "resolve a matrix and write PEP 751 lock files beside it")
    parser.add_argument("name", metavar="NAME|FILE", help=MATRIX)
    group = parser.add_argument_group("target")
    group.add_argument(
        "--runtime",
        metavar="R",
        help="a recorded runtime, such as colab-2026.08-gpu: the lock lists what to install there",
    )
    group.add_argument(
        "--all",
        action="store_true",
        help="every recorded runtime, and every Python with nothing installed",
    )
    add_lock_target(group)
    add_protect(group)
    group = parser.add_argument_group("versions")
    group.add_argument(
        "-U", "--upgrade", action="store_true", help="ignore the versions of the existing lock"
    )
    group.add_argument(
        "-P",
        "--upgrade-package",
        metavar="NAME",
        action="append",
        default=[],
        help="ignore the existing version of this package only (repeatable)",
    )
    group.add_argument(
        "--exclude-newer",
        metavar="DATE",
        help="ignore files uploaded after DATE, which replaces the matrix's own (2026-09-01, or with a time)",
    )
    group = parser.add_argument_group("lock file")
    group.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE; `-` is standard output"
    )
    group.add_argument(
        "--check", action="store_true", help="write nothing; exit with code 1 if a lock is not up to date"
    )
    group = parser.add_argument_group("what it lists")
    group.add_argument(
        "--all-files",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="list the files of every platform; default: those that the target can install, or those that the"
        " existing lock lists",
    )
    add_sources(parser)
    parser.set_defaults(handler=_lock)


def _lock(call: Call) -> int:
    from colablock.environment.requirements import project_named
    from colablock.errors import InvalidInput
    from colablock.operations.lock import lock_all, lock_matrix
    from colablock.planning.options import ApplyOptions, LockOptions, moment_of

    args = call.args
    of_one = ("runtime", "python_version", "platform", "output", "variant")
    named = [f"--{option.replace('_', '-')}" for option in of_one if getattr(args, option)]
    if args.all and named:
        raise InvalidInput(f"`--all` cannot be used with `{named[0]}`", hint="Omit one of them")
    options = ApplyOptions(
        name=args.name,
        runtime=args.runtime,
        variant=args.variant,
        with_=tuple(args.with_),
        protect=tuple(args.protect),
        default_index=checked_index(args.default_index),
        find_links=tuple(args.find_links),
        offline=args.offline,
        use_locks=False,
    )
    wanted = LockOptions(
        python_version=args.python_version,
        platform=args.platform,
        output=args.output,
        upgrade=args.upgrade,
        upgrade_packages=frozenset(map(project_named, args.upgrade_package)),
        exclude_newer=moment_of(args.exclude_newer),
        all_files=args.all_files,
        dry=args.check,
    )
    with session_of(call) as session:
        made = (
            list(lock_all(session, options, wanted)) if args.all else [lock_matrix(session, options, wanted)]
        )
    _print_results(call, made)
    if args.check:
        is_current = not any(one.is_changed for one in made)
        return ExitCode.DONE if is_current else ExitCode.UNMET
    return ExitCode.DONE if any(one.refusal is None for one in made) else ExitCode.UNMET


def _print_results(call: Call, made: Sequence[LockResult]) -> None:
    args = call.args
    to_stdout = args.output is not None and str(args.output) == "-"
    if args.json:
        print_json(_facts(made, whole=to_stdout) if args.all else _facts(made, whole=to_stdout)[0], call.out)
    elif to_stdout:
        call.out.file.write(made[0].text.decode())
    elif not args.quiet:
        for one in made:
            for line in _lines(one, call.err.width, checked=args.check):
                call.err.print(line)
        for path in dict.fromkeys(one.recorded for one in made if one.recorded is not None):
            call.err.print(f"wrote        {path}")
            call.err.print(f"{'':<13}why there is no lock, for `check`")


def _lines(one: LockResult, width: int, *, checked: bool) -> Iterator[str]:
    """Yield the lines about one lock: its outcome, and the pins that moved."""
    from textwrap import wrap

    what = f"{one.target}" + (f" ({one.variant})" if one.variant else "")
    if one.refusal is not None:
        yield f"no lock      {what}: {one.refusal.splitlines()[0]}"
        return
    changed = "wrote" if not checked else "missing" if one.is_new else "not current"
    hosts = f", files from {', '.join(one.hosts)}" if one.hosts else ""
    # The path has the line to itself: it is long, and is copied from here.
    yield f"{changed if one.is_changed else 'up to date':<11}  {one.path}"
    words = f"{what}, {count(one.packages, 'package')}{hosts}"
    indent = " " * 13
    yield from wrap(
        words,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (f"{'':<15}{line}" for line in one.moved)


def _facts(made: Sequence[LockResult], *, whole: bool) -> list[dict[str, object]]:
    return [
        {
            "target": one.target,
            "variant": one.variant,
            "output": None if whole or one.refusal is not None else str(one.path),
            **({"lock": one.text.decode()} if whole else {}),
            "bytes": len(one.text),
            "packages": one.packages,
            "moved": list(one.moved),
            "changed": one.is_changed,
            "refusal": one.refusal,
        }
        for one in made
    ]
